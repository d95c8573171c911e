package redis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/localstack/redis"
	"github.com/cirrolog/cirrolog/metadata/kv"
)

// quick makes the reader look at the position often.
var quick = Options{blockFor: 50 * time.Millisecond}

// A watch goes on over broken connections, and gets every change.
func TestWatchResumes(t *testing.T) {
	server, ns := shared.Start(t), newNamespace()
	p := newProxy(t, server.Addr)
	watcher, writer := openURL(t, p.url(ns), Options{}), openURL(t, server.URL(ns), Options{})
	ch := watchAll(t, watcher)
	const rounds, each = 20, 10
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range rounds * each {
			commit(t, writer, set(fmt.Sprintf("k%04d", i), fmt.Sprint(i)))
			if i%each == 0 {
				p.cut()
			}
		}
	})
	seen := map[string]bool{}
	var last kv.Revision
	for len(seen) < rounds*each {
		items, ok := next(t, ch)
		if !ok {
			t.Fatalf("watch ended with %d of %d changes", len(seen), rounds*each)
		}
		for _, it := range items {
			if it.Revision <= last || seen[it.Key] {
				t.Fatalf("%s at revision %d after %d", it.Key, it.Revision, last)
			}
			last, seen[it.Key] = it.Revision, true
		}
	}
	wg.Wait()
}

// A watch gets nothing that was committed before it, even while the reader lags.
func TestWatchBeginsAtItsCall(t *testing.T) {
	server, ns := shared.Start(t), newNamespace()
	p := newProxy(t, server.Addr)
	watcher, writer := openURL(t, p.url(ns), Options{}), openURL(t, server.URL(ns), Options{})
	first := watchAll(t, watcher)
	p.set(func() { p.away = true })
	p.cut()
	time.Sleep(300 * time.Millisecond) // by now the reader tries but rarely
	commit(t, writer, set("before", "v"))
	p.set(func() { p.away = false })
	second := watchAll(t, watcher)
	commit(t, writer, set("after", "v"))
	if items, ok := next(t, second); !ok || items[0].Key != "after" {
		t.Fatalf("the second watch began with %+v, %v", items, ok)
	}
	if items, ok := next(t, first); !ok || items[0].Key != "before" {
		t.Fatalf("the first watch went on with %+v, %v", items, ok)
	}
}

// A watch that was away for longer than changes are kept ends.
func TestWatchEndsWhenChangesAreNoLongerKept(t *testing.T) {
	server, ns := shared.Start(t), newNamespace()
	p := newProxy(t, server.Addr)
	watcher, writer := openURL(t, p.url(ns), quick), openURL(t, server.URL(ns), Options{logBytes: 2000})
	for _, n := range []int{3, 100} { // changes while it is away
		ch := watchAll(t, watcher)
		commit(t, writer, set("before", "v"))
		if _, ok := next(t, ch); !ok {
			t.Fatal("watch ended")
		}
		p.set(func() { p.away = true })
		p.cut()
		for i := range n {
			commit(t, writer, set(fmt.Sprint("k", i), "v"))
		}
		p.set(func() { p.away = false })
		if n == 100 {
			wantEnd(t, ch)
			continue
		}
		for got := 0; got < n; {
			items, ok := next(t, ch)
			if !ok {
				t.Fatalf("watch ended with %d of %d changes, though all are kept", got, n)
			}
			got += len(items)
		}
	}
	if n := atoi(t, do(t, server, "XLEN", keysOf(ns).log)); n < 10 || n > 25 {
		t.Errorf("the log of 2000 bytes has %d entries of about 90", n)
	}
	ch := watchAll(t, watcher) // and a new one works
	commit(t, writer, set("after", "v"))
	if items, ok := next(t, ch); !ok || items[0].Key != "after" {
		t.Fatalf("%v %v", items, ok)
	}
}

func TestLogIsBoundedWithLargeAndSmallCommits(t *testing.T) {
	server, ns := shared.Start(t), newNamespace()
	s := openURL(t, server.URL(ns), Options{logBytes: 100_000})
	for i := range 200 {
		commit(t, s, kv.Op{Key: "k", Value: make([]byte, i%7*10_000)})
		bytes := atoi(t, do(t, server, "HGET", keysOf(ns).meta, "bytes"))
		if bytes > 100_000 || bytes < 64 {
			t.Fatalf("the log has %d bytes", bytes)
		}
	}
	if _, err := s.Get(ctxOf(t), "k"); err != nil {
		t.Fatal(err)
	}
}

// A server that was emptied serves nothing to those who knew what was there.
func TestFlushedServer(t *testing.T) {
	server := redis.Start(t)
	s, idle := openURL(t, server.URL("x"), quick), openURL(t, server.URL("x"), quick)
	rev := commit(t, s, set("k", "v"))
	ch, ch2 := watchAll(t, s), watchAll(t, idle)
	do(t, server, "FLUSHALL")
	wantEnd(t, ch)
	wantEnd(t, ch2)
	if _, err := s.Get(ctxOf(t), "k"); !errors.Is(err, kv.ErrUnavailable) || !errors.Is(err, ErrDataLost) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Commit(ctxOf(t), []kv.Op{set("k", "v")}, nil); !errors.Is(err, ErrDataLost) || errors.Is(err, kv.ErrUnknown) {
		t.Errorf("commit: %v", err)
	}
	if err := s.Acquire(ctxOf(t), "l", "o", time.Minute); !errors.Is(err, ErrDataLost) {
		t.Errorf("acquire: %v", err)
	}
	if _, err := s.Watch(ctxOf(t), ""); !errors.Is(err, ErrDataLost) {
		t.Errorf("watch: %v", err)
	}
	again := openURL(t, server.URL("x"), Options{})
	if now := commit(t, again, set("k", "new")); now <= rev {
		t.Errorf("revision %d after %d", now, rev)
	}
	if _, err := s.Get(ctxOf(t), "k"); !errors.Is(err, ErrDataLost) {
		t.Errorf("get from a namespace that was made anew: %v", err)
	}
	no := errors.New("no")
	if err := s.Reopen(ctxOf(t), func(kv.Store) error { return no }); !errors.Is(err, no) {
		t.Errorf("reopen that is refused: %v", err)
	}
	if _, err := s.Get(ctxOf(t), "k"); !errors.Is(err, ErrDataLost) {
		t.Errorf("get after that: %v", err)
	}
	asked := 0
	for range 2 { // the second time there is nothing to do
		if err := s.Reopen(ctxOf(t), func(now kv.Store) error {
			asked++
			it, err := now.Get(ctxOf(t), "k")
			if string(it.Value) != "new" {
				t.Errorf("the new namespace has %q", it.Value)
			}
			return err
		}); err != nil || asked != 1 {
			t.Fatalf("reopen: %v, asked %d times", err, asked)
		}
	}
	ch = watchAll(t, s)
	commit(t, again, set("k", "newer"))
	if items, ok := next(t, ch); !ok || string(items[0].Value) != "newer" {
		t.Errorf("the watch got %v, %t", items, ok)
	}
	do(t, server, "FLUSHALL")
	if err := s.Reopen(ctxOf(t), func(kv.Store) error { t.Error("asked about nothing"); return nil }); err != nil {
		t.Errorf("reopen of nothing: %v", err)
	}
	if _, err := s.Get(ctxOf(t), "k"); !errors.Is(err, ErrDataLost) {
		t.Errorf("get of nothing: %v", err)
	}
}

// A server that went back in time (a failover, or a restart from a snapshot) ends
// the watches that saw more, and gives no revision twice.
func TestServerLostTheLastCommits(t *testing.T) {
	for _, commitFirst := range []bool{false, true} {
		server := redis.Start(t, "--dbfilename", "dump.rdb")
		opts := quick
		if commitFirst { // then the first sign is the next entry
			opts = Options{}
		}
		s := openURL(t, server.URL("x"), opts)
		kept := commit(t, s, set("kept", "v"))
		do(t, server, "SAVE")
		ch := watchAll(t, s)
		lost := commit(t, s, set("lost", "v"))
		if items, ok := next(t, ch); !ok || items[0].Key != "lost" {
			t.Fatal(items, ok)
		}
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
		if commitFirst {
			if now := commit(t, openURL(t, server.URL("x"), Options{}), set("lost", "another")); now <= lost {
				t.Fatalf("revision %d after %d, which was lost", now, lost)
			}
		}
		wantEnd(t, ch)
		_, err := s.Commit(ctxOf(t), []kv.Op{set("lost", "mine")}, []kv.Precondition{{Key: "lost", Revision: lost}})
		if !errors.Is(err, kv.ErrConflict) {
			t.Fatalf("a commit on a lost revision: %v", err)
		}
		if it, err := s.Get(ctxOf(t), "kept"); err != nil || it.Revision != kept {
			t.Fatalf("%+v %v", it, err)
		}
		ch = watchAll(t, s)
		commit(t, s, set("after", "v"))
		if items, ok := next(t, ch); !ok || items[0].Key != "after" {
			t.Fatal(items, ok)
		}
	}
}

// A replica that lacks the last writes is promoted. In one case the connections
// break; in the other the former primary goes on as a replica, and clients still
// have it on the line.
func TestFailover(t *testing.T) {
	for _, broken := range []bool{true, false} {
		at := []string{"--repl-diskless-sync-delay", "0"} // at once
		old, promoted := redis.Start(t, at...), redis.Start(t, at...)
		p := newProxy(t, old.Addr)
		s := openURL(t, p.url("x"), quick)
		kept := commit(t, s, set("kept", "v"))
		do(t, promoted, "REPLICAOF", "127.0.0.1", old.Addr[len("127.0.0.1:"):])
		for end := time.Now().Add(patient); do(t, promoted, "EXISTS", s.keys.meta) != "1"; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the replica gets nothing:\n%s", promoted.Log())
			}
		}
		ch := watchAll(t, s)
		do(t, promoted, "REPLICAOF", "NO", "ONE")
		lost := commit(t, s, set("lost", "v"))
		if items, ok := next(t, ch); !ok || items[0].Revision != lost {
			t.Fatal(items, ok)
		}
		p.set(func() { p.target = promoted.Addr })
		if broken {
			p.cut()
		} else {
			do(t, old, "REPLICAOF", "127.0.0.1", promoted.Addr[len("127.0.0.1:"):])
		}
		if err := writeOnce(s, "new"); err != nil {
			t.Fatal(err)
		}
		wantEnd(t, ch)
		if it, err := s.Get(ctxOf(t), "new"); err != nil || it.Revision <= lost {
			t.Fatalf("%+v after revision %d, which was lost: %v", it, lost, err)
		}
		if it, err := s.Get(ctxOf(t), "kept"); err != nil || it.Revision != kept {
			t.Fatalf("%+v %v", it, err)
		}
		newMirror(t, s).same(t, s)
	}
}

// load writes new keys from several goroutines until stop, repeating what was
// not done, and looking after what became of the rest. It returns the keys that
// were acknowledged.
func load(t *testing.T, s kv.Store, writers int, stop <-chan struct{}) (wait func() []string, acked *atomic.Int64) {
	acked = new(atomic.Int64)
	keys := make([][]string, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("load/%d/%05d", w, i)
				if err := writeOnce(s, key); err != nil {
					t.Errorf("%s: %v", key, err)
					return
				}
				keys[w] = append(keys[w], key)
				acked.Add(1)
			}
		})
	}
	return func() (out []string) {
		wg.Wait()
		for _, k := range keys {
			out = append(out, k...)
		}
		return out
	}, acked
}

func writeOnce(s kv.Store, key string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	for {
		_, err := s.Commit(ctx, []kv.Op{set(key, key)}, []kv.Precondition{{Key: key}})
		for errors.Is(err, kv.ErrUnknown) && ctx.Err() == nil {
			_, gerr := s.Get(ctx, key)
			if gerr == nil {
				return nil
			}
			if errors.Is(gerr, kv.ErrNotFound) {
				err = kv.ErrUnavailable // not done, so far: the connection is closed
			}
			time.Sleep(5 * time.Millisecond)
		}
		if !errors.Is(err, kv.ErrUnavailable) || ctx.Err() != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// With appendfsync always, kills of the server under load lose nothing that was
// acknowledged, do nothing twice, and leave no gap in a watch.
func TestKilledServerUnderLoad(t *testing.T) {
	server := redis.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	s := openURL(t, server.URL("x"), Options{})
	m := newMirror(t, openURL(t, server.URL("x"), Options{}))
	stop := make(chan struct{})
	wait, acked := load(t, s, 4, stop)
	for range 4 {
		for n := acked.Load() + 50; acked.Load() < n && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	keys := wait()
	for _, k := range keys {
		if it, err := s.Get(ctxOf(t), k); err != nil || string(it.Value) != k {
			t.Fatalf("acknowledged key %s: %q, %v", k, it.Value, err)
		}
	}
	m.same(t, s)
	if m.ends > 0 {
		t.Errorf("the watch ended %d times, though nothing was lost", m.ends)
	}
	if n, want := atoi(t, do(t, server, "XLEN", s.keys.log)), len(keys); n != want {
		t.Errorf("%d keys were created by %d commits", want, n)
	}
	t.Logf("%d commits over 4 kills", len(keys))
}

// The reader waits on the server: an idle watch costs next to nothing.
func TestIdleWatchIsQuiet(t *testing.T) {
	server := redis.Start(t)
	s := openURL(t, server.URL("x"), Options{})
	watchAll(t, s)
	time.Sleep(200 * time.Millisecond)
	count := func() (n int) {
		out := do(t, server, "INFO", "stats")
		i := serverInfo{}
		i.read(out)
		return atoi(t, i["total_commands_processed"])
	}
	before := count()
	time.Sleep(2500 * time.Millisecond)
	if n := count() - before; n > 12 {
		t.Errorf("%d commands in 2.5 s without a change", n)
	}
}

// A certificate of the test's own is enough to talk TLS.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	c, k := selfSigned(t)
	for path, data := range map[string][]byte{cert: c, key: k} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	probe := redis.Start(t) // only for its port
	if err := probe.Kill(); err != nil {
		t.Fatal(err)
	}
	redis.Start(t, "--tls-port", probe.Addr[len("127.0.0.1:"):], "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no")
	if _, err := Open(ctxOf(t), "rediss://"+probe.Addr, Options{}); !errors.Is(err, kv.ErrUnavailable) {
		t.Fatalf("open with a certificate of nobody's: %v", err)
	}
	s := openURL(t, "rediss://"+probe.Addr+"?skip_verify=true", Options{})
	ch := watchAll(t, s)
	commit(t, s, set("k", "v"))
	if items, ok := next(t, ch); !ok || items[0].Key != "k" {
		t.Fatal(items, ok)
	}
}
