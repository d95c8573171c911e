// Package kvtest is the conformance suite of the metadata store: every driver
// of kv.Store passes Run.
package kvtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// patience bounds every wait of the suite.
const patience = 20 * time.Second

// Run checks a driver. open returns an empty store and closes it with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) kv.Store) {
	for _, tc := range []struct {
		name string
		test func(*testing.T, kv.Store)
	}{
		{"GetSetDelete", testGetSetDelete},
		{"Atomicity", testAtomicity},
		{"Preconditions", testPreconditions},
		{"RevisionsGrow", testRevisionsGrow},
		{"Range", testRange},
		{"RangeEdges", testRangeEdges},
		{"Limits", testLimits},
		{"InvalidRequests", testInvalid},
		{"ValuesAreCopied", testCopies},
		{"CancelledContext", testCancelled},
		{"WatchOrder", testWatchOrder},
		{"WatchNoGap", testWatchNoGap},
		{"WatchSlowReader", testWatchSlow},
		{"WatchEnds", testWatchEnds},
		{"LeaseExpiry", testLeaseExpiry},
		{"LeaseTakeover", testLeaseTakeover},
		{"LostResponses", testLostResponses},
		{"Counters", testCounters},
		{"Linearizable", testLinearizable},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.test(t, open(t)) })
	}
}

func testCtx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func set(key, value string) kv.Op { return kv.Op{Key: key, Value: []byte(value)} }
func del(key string) kv.Op        { return kv.Op{Key: key, Delete: true} }

func mustCommit(t *testing.T, s kv.Store, ops ...kv.Op) []kv.Revision {
	t.Helper()
	revs, err := s.Commit(testCtx(t), ops, nil)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	if len(revs) != len(ops) {
		t.Fatalf("commit of %d ops returned %d revisions", len(ops), len(revs))
	}
	return revs
}

func wantValue(t *testing.T, s kv.Store, key, value string) kv.Item {
	t.Helper()
	it, err := s.Get(testCtx(t), key)
	if err != nil || string(it.Value) != value || it.Key != key {
		t.Fatalf("get %q = %q %q, %v; want %q", key, it.Key, it.Value, err, value)
	}
	return it
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: error %v, want %v", what, err, want)
	}
}

func wantAbsent(t *testing.T, s kv.Store, key string) {
	t.Helper()
	_, err := s.Get(testCtx(t), key)
	wantErr(t, "get "+key, err, kv.ErrNotFound)
}

func testGetSetDelete(t *testing.T, s kv.Store) {
	wantAbsent(t, s, "a")
	revs := mustCommit(t, s, set("a", "1"), set("empty", ""), set("bytes", "\x00\xff"))
	if it := wantValue(t, s, "a", "1"); it.Revision != revs[0] || revs[0] == 0 {
		t.Fatalf("get says revision %d, commit %d", it.Revision, revs[0])
	}
	if it := wantValue(t, s, "empty", ""); it.Value == nil {
		t.Fatal("an empty value came back as nil, which means deleted")
	}
	wantValue(t, s, "bytes", "\x00\xff")
	if revs := mustCommit(t, s, del("a"), del("never")); revs[0] != 0 || revs[1] != 0 {
		t.Fatalf("revisions of deletes are %v, want 0", revs)
	}
	wantAbsent(t, s, "a")
	wantValue(t, s, "bytes", "\x00\xff")
}

func testAtomicity(t *testing.T, s kv.Store) {
	ctx := testCtx(t)
	mustCommit(t, s, set("a", "old"), set("gone", "x"))
	_, err := s.Commit(ctx, []kv.Op{set("a", "new"), set("b", "new"), del("gone")}, []kv.Precondition{{Key: "c", Revision: 7}})
	wantErr(t, "commit", err, kv.ErrConflict)
	wantValue(t, s, "a", "old")
	wantValue(t, s, "gone", "x")
	wantAbsent(t, s, "b")

	// A reader sees either all of a commit or none: both keys move together.
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			v := fmt.Sprint(i)
			if _, err := s.Commit(ctx, []kv.Op{set("p/1", v), set("p/2", v)}, nil); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 200 {
		items, err := s.Range(ctx, "p/", "", 10, false)
		if err != nil {
			t.Fatal(err)
		}
		if len(items) == 1 || len(items) == 2 && !bytes.Equal(items[0].Value, items[1].Value) {
			t.Fatalf("half a commit is visible: %+v", items)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func testPreconditions(t *testing.T, s kv.Store) {
	ctx := testCtx(t)
	absent := []kv.Precondition{{Key: "k", Revision: 0}}
	revs, err := s.Commit(ctx, []kv.Op{set("k", "1")}, absent)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Commit(ctx, []kv.Op{set("k", "2")}, absent)
	wantErr(t, "create of a present key", err, kv.ErrConflict)
	_, err = s.Commit(ctx, []kv.Op{set("k", "2")}, []kv.Precondition{{Key: "k", Revision: revs[0] + 1}})
	wantErr(t, "a revision that is not yet", err, kv.ErrConflict)
	wantValue(t, s, "k", "1")
	_, err = s.Commit(ctx, nil, absent)
	wantErr(t, "check without ops", err, kv.ErrConflict)
	if _, err := s.Commit(ctx, nil, []kv.Precondition{{Key: "k", Revision: revs[0]}, {Key: "other"}}); err != nil {
		t.Fatalf("check without ops: %v", err)
	}
	// All preconditions must hold, on keys other than those written too.
	_, err = s.Commit(ctx, []kv.Op{set("x", "1")}, []kv.Precondition{{Key: "k", Revision: revs[0]}, {Key: "k2", Revision: 9}})
	wantErr(t, "second precondition fails", err, kv.ErrConflict)
	wantAbsent(t, s, "x")
	if _, err := s.Commit(ctx, []kv.Op{del("k"), set("x", "1")}, []kv.Precondition{{Key: "k", Revision: revs[0]}}); err != nil {
		t.Fatal(err)
	}
	_, err = s.Commit(ctx, []kv.Op{set("y", "1")}, []kv.Precondition{{Key: "k", Revision: revs[0]}})
	wantErr(t, "revision of a deleted key", err, kv.ErrConflict)
}

func testRevisionsGrow(t *testing.T, s kv.Store) {
	var last kv.Revision
	for i := range 20 {
		revs := mustCommit(t, s, set("k", "same"), set(fmt.Sprint("other", i), "v"))
		if revs[0] <= last {
			t.Fatalf("round %d: revision %d after %d", i, revs[0], last)
		}
		last = revs[0]
		if i%3 == 2 {
			mustCommit(t, s, del("k"))
			if i%2 == 0 {
				mustCommit(t, s, del("k"))
			}
		}
	}
}

func keysOf(items []kv.Item) []string {
	out := make([]string, len(items))
	for i, it := range items {
		out[i] = it.Key
	}
	return out
}

func testRange(t *testing.T, s kv.Store) {
	ctx := testCtx(t)
	var all []string
	var ops []kv.Op
	for i := range 30 {
		k := fmt.Sprintf("r/%02d", i)
		all = append(all, k)
		ops = append(ops, set(k, k))
	}
	slices.Reverse(ops)
	mustCommit(t, s, append(ops, set("q/1", ""), set("r", ""), set("r0", ""), set("s/1", ""))...)
	reversed := slices.Clone(all)
	slices.Reverse(reversed)
	for _, tc := range []struct {
		from    string
		limit   int
		reverse bool
		want    []string
	}{
		{"", 100, false, all},
		{"", 30, false, all},
		{"", 29, false, all[:29]},
		{"", 1, false, all[:1]},
		{"r/09", 3, false, all[10:13]},
		{"r/095", 3, false, all[10:13]},
		{"r/", 2, false, all[:2]},
		{"r/29", 3, false, nil},
		{"r/28", 3, false, all[29:]},
		{"r/zz", 3, false, nil},
		{"", 100, true, reversed},
		{"", 2, true, reversed[:2]},
		{"r/09", 3, true, reversed[21:24]},
		{"r/095", 3, true, reversed[20:23]},
		{"r/00", 3, true, nil},
		{"r/", 3, true, nil},
		{"r/zz", 3, true, reversed[:3]},
	} {
		items, err := s.Range(ctx, "r/", tc.from, tc.limit, tc.reverse)
		if err != nil {
			t.Fatal(err)
		}
		if got := keysOf(items); !slices.Equal(got, tc.want) {
			t.Errorf("range from %q limit %d reverse %v = %v, want %v", tc.from, tc.limit, tc.reverse, got, tc.want)
		}
		for _, it := range items {
			if string(it.Value) != it.Key || it.Revision == 0 {
				t.Errorf("range item %q has value %q and revision %d", it.Key, it.Value, it.Revision)
			}
		}
	}
}

func testRangeEdges(t *testing.T, s kv.Store) {
	ctx := testCtx(t)
	check := func(prefix string, reverse bool, want ...string) {
		t.Helper()
		items, err := s.Range(ctx, prefix, "", 100, reverse)
		if err != nil {
			t.Fatal(err)
		}
		if got := keysOf(items); !slices.Equal(got, want) {
			t.Errorf("range %q reverse %v = %q, want %q", prefix, reverse, got, want)
		}
	}
	check("x", false)
	check("x", true)
	mustCommit(t, s, set("a", ""), set("a\xff", ""), set("a\xff\xff", ""), set("b", ""), set("\xff", ""), set("\xff\xff1", ""))
	check("a\xff", false, "a\xff", "a\xff\xff")
	check("a\xff", true, "a\xff\xff", "a\xff")
	check("\xff", true, "\xff\xff1", "\xff")
	check("\xff\xff", true, "\xff\xff1")
	check("", false, "a", "a\xff", "a\xff\xff", "b", "\xff", "\xff\xff1")
	check("", true, "\xff\xff1", "\xff", "b", "a\xff\xff", "a\xff", "a")
	check("0", true)
	mustCommit(t, s, del("\xff"), del("\xff\xff1"), del("b"))
	check("", true, "a\xff\xff", "a\xff", "a")
	check("b", true)
}

func testLimits(t *testing.T, s kv.Store) {
	ctx := testCtx(t)
	many := func(n int) (ops []kv.Op) {
		for i := range n {
			ops = append(ops, set(fmt.Sprintf("many/%03d", i), "v"))
		}
		return ops
	}
	refused := func(what string, ops []kv.Op, pre []kv.Precondition) {
		t.Helper()
		_, err := s.Commit(ctx, ops, pre)
		wantErr(t, what, err, kv.ErrLimit)
	}
	refused("101 ops", many(kv.MaxCommitKeys+1), nil)
	refused("100 ops and a precondition", many(kv.MaxCommitKeys), []kv.Precondition{{Key: "p"}})
	refused("large value", []kv.Op{{Key: "big", Value: make([]byte, kv.MaxValueBytes+1)}}, nil)
	refused("long key", []kv.Op{set(strings.Repeat("k", kv.MaxKeyBytes+1), "")}, nil)
	var large []kv.Op
	for i := range kv.MaxCommitBytes / kv.MaxValueBytes {
		large = append(large, kv.Op{Key: fmt.Sprint("large", i), Value: make([]byte, kv.MaxValueBytes)})
	}
	refused("1 MiB and the keys", large, nil)
	for _, key := range []string{"many/000", "big", "large0"} {
		wantAbsent(t, s, key)
	}
	mustCommit(t, s, many(kv.MaxCommitKeys)...)
	mustCommit(t, s, large[1:]...)
	long := strings.Repeat("k", kv.MaxKeyBytes)
	mustCommit(t, s, set(long, "v"))
	wantValue(t, s, long, "v")
}

func testInvalid(t *testing.T, s kv.Store) {
	ctx := testCtx(t)
	for what, ops := range map[string][]kv.Op{"empty key": {set("", "v")}, "key twice": {set("a", "1"), del("a")}} {
		_, err := s.Commit(ctx, ops, nil)
		wantErr(t, what, err, kv.ErrInvalid)
	}
	_, err := s.Commit(ctx, nil, []kv.Precondition{{Key: "a"}, {Key: "a"}})
	wantErr(t, "precondition twice", err, kv.ErrInvalid)
	for _, limit := range []int{0, -1, kv.MaxRangeItems + 1} {
		_, err := s.Range(ctx, "", "", limit, false)
		wantErr(t, fmt.Sprint("range limit ", limit), err, kv.ErrInvalid)
	}
	_, err = s.Range(ctx, "a/", "b/1", 1, false)
	wantErr(t, "from outside prefix", err, kv.ErrInvalid)
	wantErr(t, "lease without owner", s.Acquire(ctx, "l", "", time.Second), kv.ErrInvalid)
	wantErr(t, "lease without ttl", s.Acquire(ctx, "l", "o", 0), kv.ErrInvalid)
}

func testCopies(t *testing.T, s kv.Store) {
	v := []byte("value")
	mustCommit(t, s, kv.Op{Key: "k", Value: v})
	copy(v, "XXXXX")
	it := wantValue(t, s, "k", "value")
	copy(it.Value, "YYYYY")
	items, err := s.Range(testCtx(t), "k", "", 1, false)
	if err != nil {
		t.Fatal(err)
	}
	copy(items[0].Value, "ZZZZZ")
	wantValue(t, s, "k", "value")
}

func testCancelled(t *testing.T, s kv.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := s.Commit(ctx, []kv.Op{set("k", "v")}, nil)
	wantErr(t, "commit", err, context.Canceled)
	_, err = s.Get(ctx, "k")
	wantErr(t, "get", err, context.Canceled)
	_, err = s.Range(ctx, "", "", 1, false)
	wantErr(t, "range", err, context.Canceled)
	wantAbsent(t, s, "k")
}
