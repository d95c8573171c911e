package kvtest

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

func watch(t *testing.T, ctx context.Context, s kv.Store, prefix string) <-chan []kv.Item {
	t.Helper()
	ch, err := s.Watch(ctx, prefix)
	if err != nil {
		t.Fatalf("watch %q: %v", prefix, err)
	}
	return ch
}

// next waits for a batch of a watch.
func next(t *testing.T, ch <-chan []kv.Item) []kv.Item {
	t.Helper()
	select {
	case items, ok := <-ch:
		if !ok {
			t.Fatal("watch ended")
		}
		return items
	case <-time.After(patience):
		t.Fatal("watch delivered nothing")
	}
	return nil
}

func testWatchOrder(t *testing.T, s kv.Store) {
	mustCommit(t, s, set("w/before", "x"))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ch := watch(t, ctx, s, "w/")
	mustCommit(t, s, set("other", "x"))
	want := mustCommit(t, s, set("w/a", ""))
	items := next(t, ch)
	if len(items) != 1 || items[0].Key != "w/a" || items[0].Value == nil || items[0].Revision != want[0] {
		t.Fatalf("watch delivered %+v", items)
	}
	mustCommit(t, s, del("w/a"))
	items = next(t, ch)
	if len(items) != 1 || items[0].Key != "w/a" || items[0].Value != nil || items[0].Revision <= want[0] {
		t.Fatalf("watch delivered %+v for a delete", items)
	}
}

// testWatchNoGap: writers commit while watchers come; each watcher sees, per
// key, growing revisions and in the end the last value of every key that
// changed after its Watch returned.
func testWatchNoGap(t *testing.T, s kv.Store) {
	const writers, rounds, watchers = 4, 60, 4
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var writing, watching sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for r := range rounds {
				v := strconv.Itoa(r)
				if _, err := s.Commit(ctx, []kv.Op{set(fmt.Sprint("g/", w), v), set(fmt.Sprint("g/x", w, "/", r), v)}, nil); err != nil {
					t.Errorf("commit: %v", err)
				}
			}
		})
	}
	for range watchers {
		ch := watch(t, ctx, s, "g/")
		seen := map[string]kv.Item{}
		have, err := s.Range(ctx, "g/", "", 1000, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range have {
			seen[it.Key] = it
		}
		watching.Go(func() { collect(t, ch, seen, writers*(rounds+1), rounds, writers) })
		time.Sleep(2 * time.Millisecond)
	}
	writing.Wait()
	watching.Wait()
}

// collect reads a watch until seen holds all keys with their last values.
func collect(t *testing.T, ch <-chan []kv.Item, seen map[string]kv.Item, keys, rounds, writers int) {
	watched := map[string]kv.Revision{}
	complete := func() bool {
		for w := range writers {
			if string(seen[fmt.Sprint("g/", w)].Value) != strconv.Itoa(rounds-1) {
				return false
			}
		}
		return len(seen) == keys
	}
	for !complete() {
		items, ok := <-ch
		if !ok {
			t.Errorf("watch ended with %d of %d keys: a change was lost", len(seen), keys)
			return
		}
		for _, it := range items {
			if it.Revision <= watched[it.Key] {
				t.Errorf("watch of %q went from revision %d to %d", it.Key, watched[it.Key], it.Revision)
			}
			watched[it.Key] = it.Revision
			if it.Revision > seen[it.Key].Revision {
				seen[it.Key] = it
			}
		}
	}
}

// testWatchSlow: a watcher that does not read delays no commit and afterwards
// gets the last value of each key.
func testWatchSlow(t *testing.T, s kv.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ch := watch(t, ctx, s, "k")
	for i := range 50 {
		mustCommit(t, s, set("k1", fmt.Sprint(i)), set("k2", fmt.Sprint(-i)))
	}
	last := map[string]string{}
	for last["k1"] != "49" || last["k2"] != "-49" {
		for _, it := range next(t, ch) {
			last[it.Key] = string(it.Value)
		}
	}
}

func testWatchEnds(t *testing.T, s kv.Store) {
	ended := func(ch <-chan []kv.Item) {
		t.Helper()
		deadline := time.After(patience)
		for {
			select {
			case _, ok := <-ch:
				if !ok {
					return
				}
			case <-deadline:
				t.Fatal("watch did not end")
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ch := watch(t, ctx, s, "k")
	mustCommit(t, s, set("k", "waits for a reader"))
	cancel()
	ended(ch)
	ch = watch(t, context.Background(), s, "k")
	mustCommit(t, s, set("k", "waits for a reader"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ended(ch)
}

func testLeaseExpiry(t *testing.T, s kv.Store) {
	ctx := testCtx(t)
	const ttl = 300 * time.Millisecond
	if err := s.Acquire(ctx, "l", "a", ttl); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for {
		owner, _, err := s.Holder(ctx, "l")
		if err != nil {
			t.Fatal(err)
		}
		if owner == "" {
			break
		}
		if owner != "a" || time.Since(start) > patience {
			t.Fatalf("holder is %q after %v", owner, time.Since(start))
		}
		time.Sleep(10 * time.Millisecond)
	}
	if d := time.Since(start); d < ttl-50*time.Millisecond {
		t.Fatalf("a lease of %v expired after %v", ttl, d)
	}
	wantErr(t, "release of an expired lease", s.Release(ctx, "l", "a"), kv.ErrLeaseLost)
	if err := s.Acquire(ctx, "l", "b", time.Minute); err != nil {
		t.Fatalf("takeover of an expired lease: %v", err)
	}
	wantErr(t, "the former owner renews", s.Acquire(ctx, "l", "a", ttl), kv.ErrLeaseLost)
}

func testLeaseTakeover(t *testing.T, s kv.Store) {
	ctx := testCtx(t)
	if owner, _, err := s.Holder(ctx, "l"); owner != "" || err != nil {
		t.Fatalf("holder of a free lease is %q, %v", owner, err)
	}
	var last uint64
	for range 3 {
		if err := s.Acquire(ctx, "l", "a", time.Minute); err != nil {
			t.Fatal(err)
		}
		owner, counter, err := s.Holder(ctx, "l")
		if err != nil || owner != "a" || counter == last {
			t.Fatalf("holder is %q, counter %d after %d, %v", owner, counter, last, err)
		}
		last = counter
	}
	wantErr(t, "acquire of a held lease", s.Acquire(ctx, "l", "b", time.Minute), kv.ErrLeaseLost)
	wantErr(t, "release by another", s.Release(ctx, "l", "b"), kv.ErrLeaseLost)
	if err := s.Acquire(ctx, "other", "b", time.Minute); err != nil {
		t.Fatalf("leases are not independent: %v", err)
	}
	if err := s.Release(ctx, "l", "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Acquire(ctx, "l", "b", time.Minute); err != nil {
		t.Fatalf("acquire of a released lease: %v", err)
	}
	if owner, counter, _ := s.Holder(ctx, "l"); owner != "b" || counter == last {
		t.Fatalf("holder is %q, counter %d after %d", owner, counter, last)
	}
	// Of many contenders for a free lease exactly one gets it.
	won := make(chan string, 8)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			owner := fmt.Sprint("c", i)
			if s.Acquire(ctx, "contended", owner, time.Minute) == nil {
				won <- owner
			}
		})
	}
	wg.Wait()
	close(won)
	if len(won) != 1 {
		t.Fatalf("%d contenders got the lease", len(won))
	}
}
