package redis

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/metadata/kv"
)

// goldenRev is a revision beyond every server's clock, so that the next ones count from it.
const goldenRev = 8_000_000_000_000_000

// namespaceOf is a namespace as the commands that make it, one a line, each argument quoted, NAME for its name.
func namespaceOf(t *testing.T, c *goredis.Client, ns string) string {
	t.Helper()
	ctx := ctxOf(t)
	var b strings.Builder
	line := func(args ...string) {
		for i, a := range args {
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(strconv.QuoteToASCII(strings.ReplaceAll(a, "{"+ns+"}", "{NAME}")))
		}
		b.WriteByte('\n')
	}
	names, err := c.Keys(ctx, "{"+ns+"}*").Result()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, k := range names {
		switch kind := c.Type(ctx, k).Val(); kind {
		case "hash":
			m := c.HGetAll(ctx, k).Val()
			args := []string{"HSET", k}
			for _, f := range slices.Sorted(maps.Keys(m)) {
				args = append(args, f, m[f])
			}
			line(args...)
		case "zset":
			for _, z := range c.ZRangeWithScores(ctx, k, 0, -1).Val() {
				line("ZADD", k, fmt.Sprint(z.Score), z.Member.(string))
			}
		case "string":
			line("SET", k, c.Get(ctx, k).Val())
		case "stream":
			entries, err := c.Do(ctx, "XRANGE", k, "-", "+").Slice()
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				args := []string{"XADD", k, e.([]any)[0].(string)}
				for _, f := range e.([]any)[1].([]any) {
					args = append(args, f.(string))
				}
				line(args...)
			}
		default:
			t.Fatalf("key %s is a %s", k, kind)
		}
	}
	return b.String()
}

// TestGolden opens a namespace as an earlier program left it, and leaves the same after the same calls.
func TestGolden(t *testing.T) {
	server := shared.Start(t)
	c := goredis.NewClient(&goredis.Options{Addr: server.Addr, Protocol: 2})
	defer c.Close()
	run := func(ns, text string) {
		t.Helper()
		for l := range strings.Lines(text) {
			var args []any
			for rest := strings.TrimSpace(l); rest != ""; rest = strings.TrimSpace(rest) {
				q, err := strconv.QuotedPrefix(rest)
				if err != nil {
					t.Fatalf("%s: %v", l, err)
				}
				a, _ := strconv.Unquote(q)
				args, rest = append(args, strings.ReplaceAll(a, "{NAME}", "{"+ns+"}")), rest[len(q):]
			}
			if err := c.Do(ctxOf(t), args...).Err(); err != nil {
				t.Fatalf("%s: %v", l, err)
			}
		}
	}
	ns := newNamespace()
	run(ns, fmt.Sprintf(`"HSET" "{NAME}:meta" "version" "1" "gen" "golden" "rev" "%d" "lease" "%d" "bytes" "0"`, goldenRev, goldenRev))
	s := openURL(t, server.URL(ns), Options{})
	commit(t, s, set("a/1", "one"), set("a/2", "two\x00\xff"))
	revs, err := s.Commit(ctxOf(t), []kv.Op{set("a/1", "uno"), {Key: "a/2", Delete: true}, set("b", "")}, []kv.Precondition{{Key: "a/1", Revision: goldenRev + 1}, {Key: "c"}})
	if err != nil || revs[0] != goldenRev+2 {
		t.Fatal(revs, err)
	}
	if err := s.Acquire(ctxOf(t), "lease/x", "me", time.Hour); err != nil {
		t.Fatal(err)
	}

	old := newNamespace()
	run(old, string(golden.Bytes(t, "namespace-v1.txt", []byte(namespaceOf(t, c, ns)))))
	s = openURL(t, server.URL(old), Options{})
	items, err := s.Range(ctxOf(t), "", "", 10, false)
	if err != nil || len(items) != 2 || items[0].Key != "a/1" || string(items[0].Value) != "uno" || items[0].Revision != goldenRev+2 || items[1].Key != "b" || len(items[1].Value) != 0 {
		t.Errorf("rows %+v, %v", items, err)
	}
	if owner, counter, err := s.Holder(ctxOf(t), "lease/x"); err != nil || owner != "me" || counter != goldenRev+1 {
		t.Errorf("lease of %q, %d, %v", owner, counter, err)
	}
	ch := watchAll(t, s)
	if rev := commit(t, s, set("c", "three")); rev != goldenRev+3 {
		t.Errorf("the next revision is %d", rev)
	}
	if got, ok := next(t, ch); !ok || len(got) != 1 || got[0].Key != "c" {
		t.Errorf("watch: %v, %t", got, ok)
	}
}
