package dynamo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// DynamoDB shows the items of one transaction one after the other; the local
// one does not. These tests write them one by one.

func dynamodbNew(o dynamodb.Options) *dynamodb.Client { return dynamodb.New(o) }

// plant writes one item as it is.
func plant(t *testing.T, s *Store, item attrs) {
	t.Helper()
	if _, err := s.api.PutItem(testCtx(t), &dynamodb.PutItemInput{TableName: &s.lay.table, Item: item}); err != nil {
		t.Fatal(err)
	}
}

func rowItem(s *Store, r row) attrs {
	a := s.lay.rowKey(r.key)
	a[attrRev], a[attrLog], a[attrPrev] = number(uint64(r.rev)), number(uint64(r.log)), number(uint64(r.prev))
	if r.value != nil {
		a[attrValue] = blob(r.value)
	}
	return a
}

func headItem(s *Store, e entry) attrs {
	a := s.lay.headKey(e.ref.shard())
	a[attrSeq], a[attrRev] = number(e.ref.seq()), number(uint64(e.rev))
	return a
}

// TestRangeHidesHalfCommits: a Range that sees one key of a commit waits for the
// others: for one that changed, one that is new, and also when the first was
// written again meanwhile.
func TestRangeHidesHalfCommits(t *testing.T) {
	for _, tc := range []struct {
		name    string
		old     bool // the late key was there before
		again   bool // the early key was written again
		noEntry bool // the entry is late too
	}{
		{name: "changed", old: true}, {name: "new"}, {name: "written again", again: true}, {name: "entry late", noEntry: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := openStore(t, fresh())
			mustCommit(t, s, set("p/1", "old"))
			if tc.old {
				mustCommit(t, s, set("p/2", "old"))
			}
			s.clock.observe(s.clock.next() + 10)
			e := entry{ref: refOf(9, 1), rev: s.clock.next(), keys: []string{"p/1", "p/2"}}
			early := row{key: "p/1", value: []byte("new"), rev: e.rev, log: e.ref}
			if tc.again {
				early = row{key: "p/1", value: []byte("newer"), rev: s.clock.next(), prev: e.ref}
			}
			if !tc.noEntry {
				plant(t, s, e.attrs(s.lay, time.Now().Add(keep).Unix()))
			}
			plant(t, s, rowItem(s, early))
			const late = 300 * time.Millisecond
			start := time.Now()
			var wg sync.WaitGroup
			wg.Go(func() {
				time.Sleep(late)
				plant(t, s, rowItem(s, row{key: "p/2", value: []byte("new"), rev: e.rev, log: e.ref}))
				if tc.noEntry {
					plant(t, s, e.attrs(s.lay, time.Now().Add(keep).Unix()))
				}
			})
			items, err := s.Range(testCtx(t), "p/", "", 10, false)
			if err != nil || len(items) != 2 || string(items[0].Value) != string(early.value) || string(items[1].Value) != "new" {
				t.Errorf("range after %v: %v, %v", time.Since(start), items, err)
			}
			wg.Wait()
			// A range that the commit does not reach into does not wait.
			if _, err := s.Range(testCtx(t), "q/", "", 10, false); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRangeIsOneInstant: "a" is always counted up before "b". A range whose
// query of b comes late sees more of b than of a, and must read again.
func TestRangeIsOneInstant(t *testing.T) {
	prefix, ctx := fresh(), testCtx(t)
	writer := openStore(t, prefix)
	first, second := "n/a", "n/b"
	for bucketOf(first) == bucketOf(second) {
		second += "b"
	}
	mustCommit(t, writer, set(first, "0"))
	mustCommit(t, writer, set(second, "0"))
	answered := make(chan struct{}, 100)
	var rounds atomic.Int64
	s := openAt(t, bodyProxy(t, func(op, body string) fault {
		if op != "Query" {
			return pass
		}
		if strings.Contains(body, prefix+"/kv/"+strconv.Itoa(bucketOf(first))) {
			answered <- struct{}{}
		}
		if !strings.Contains(body, prefix+"/kv/"+strconv.Itoa(bucketOf(second))) {
			return pass
		}
		<-answered
		time.Sleep(30 * time.Millisecond) // until that query is over
		if n := rounds.Add(1); n < 4 {
			mustCommit(t, writer, set(first, strconv.Itoa(int(n))))
			mustCommit(t, writer, set(second, strconv.Itoa(int(n))))
		}
		return pass
	}), prefix, testOptions())
	items, err := s.Range(ctx, "n/", "", 10, false)
	if err != nil || len(items) != 2 || string(items[0].Value) < string(items[1].Value) {
		t.Fatalf("%v, %v", items, err)
	}
}

// TestRangeEdgesOfHalfCommits: only what lies in the range counts.
func TestRangeEdgesOfHalfCommits(t *testing.T) {
	s := openStore(t, fresh())
	mustCommit(t, s, set("p/1", "x"), set("p/3", "x"), set("p/5", "x"))
	e := entry{ref: refOf(9, 1), rev: s.clock.next() + 10, keys: []string{"o", "p/0", "p/3", "p/6", "q"}}
	plant(t, s, e.attrs(s.lay, time.Now().Add(keep).Unix()))
	plant(t, s, rowItem(s, row{key: "p/3", value: []byte("new"), rev: e.rev, log: e.ref}))
	s.opts.Budget = 300 * time.Millisecond
	for _, tc := range []struct {
		from    string
		limit   int
		reverse bool
		whole   bool // nothing is missing
	}{
		{"p/0", 3, false, true}, {"p/1", 2, false, true}, {"p/1", 3, false, false}, {"", 2, false, false},
		{"p/6", 2, true, true}, {"p/6", 3, true, true}, {"p/6", 4, true, false}, {"", 2, true, false}, {"p/3", 9, false, true}, // shows nothing of the commit
	} {
		_, err := s.Range(testCtx(t), "p/", tc.from, tc.limit, tc.reverse)
		if tc.whole != (err == nil) {
			t.Errorf("%+v: %v", tc, err)
		}
		if err != nil && (!errors.Is(err, kv.ErrUnavailable) || !errors.Is(err, errMoving)) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}

// TestRowsPointBack: a row names the entries of the last two commits of several
// keys that wrote it in a row.
func TestRowsPointBack(t *testing.T) {
	s := openStore(t, fresh())
	var last logRef
	for i, ops := range [][]kv.Op{
		{set("a", "1"), set("b", "1")}, {{Key: "a", Delete: true}, set("b", "2")}, {set("a", "3")}, {set("a", "4"), set("b", "4")},
	} {
		rev := mustCommit(t, s, ops...)[len(ops)-1]
		r, err := s.row(testCtx(t), "a")
		if err != nil || r.prev != last || (r.log == 0) != (len(ops) == 1) {
			t.Fatalf("commit %d left %+v, %v; want prev %d", i, r, err, last)
		}
		if last = r.log; last == 0 {
			continue
		}
		entries, err := s.entries(testCtx(t), []logRef{last})
		if e := entries[last]; err != nil || e.rev != rev || !slices.Equal(e.keys, []string{"a", "b"}) {
			t.Fatalf("commit %d left %+v, %v; want revision %d", i, entries, err, rev)
		}
	}
}

// TestRangeManyTombstones: deleted keys neither count nor end a range early.
func TestRangeManyTombstones(t *testing.T) {
	s := openStore(t, fresh())
	for base := 0; base < 300; base += 100 {
		var put, del []kv.Op
		for i := range 100 {
			key := fmt.Sprintf("a/b/c/%03d", base+i)
			put = append(put, set(key, "v"))
			if (base+i)%50 != 7 {
				del = append(del, kv.Op{Key: key, Delete: true})
			}
		}
		mustCommit(t, s, put...)
		mustCommit(t, s, del...)
	}
	for _, prefix := range []string{"", "a/b/c/"} {
		for _, reverse := range []bool{false, true} {
			items, err := s.Range(testCtx(t), prefix, "", 4, reverse)
			want := []string{"a/b/c/007", "a/b/c/057", "a/b/c/107", "a/b/c/157"}
			if reverse {
				want = []string{"a/b/c/257", "a/b/c/207", "a/b/c/157", "a/b/c/107"}
			}
			var got []string
			for _, it := range items {
				got = append(got, it.Key)
			}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("range %q reverse %v: %v, %v", prefix, reverse, got, err)
			}
		}
	}
}

// follow collects what a watch delivers until done says so.
func follow(t *testing.T, ch <-chan []kv.Item, done func(map[string]kv.Item) bool) map[string]kv.Item {
	t.Helper()
	seen := map[string]kv.Item{}
	for deadline := time.After(20 * time.Second); !done(seen); {
		select {
		case items, ok := <-ch:
			if !ok {
				t.Fatal("the watch ended")
			}
			for _, it := range items {
				if it.Revision <= seen[it.Key].Revision {
					t.Errorf("%q: revision %d after %d", it.Key, it.Revision, seen[it.Key].Revision)
				}
				seen[it.Key] = it
			}
		case <-deadline:
			t.Fatalf("the watch delivered only %d keys: %v", len(seen), slices.Sorted(maps.Keys(seen)))
		}
	}
	return seen
}

// TestWatchOfTwoStores: what two stores write at the same time reaches watches
// on both, and the last value of each key; also when they meet in the change log.
func TestWatchOfTwoStores(t *testing.T) {
	for _, n := range []int{shards, 2} {
		t.Run(fmt.Sprint(n, " shards"), func(t *testing.T) { testWatchOfTwo(t, n) })
	}
}

func testWatchOfTwo(t *testing.T, n int) {
	ctx, prefix := testCtx(t), fresh()
	stores := []*Store{openStore(t, prefix), openStore(t, prefix)}
	for _, s := range stores {
		for range shards - n {
			<-s.shards.free
		}
		s.shards.idle = slices.DeleteFunc(s.shards.idle, func(sh *shard) bool { return sh.n >= n })
	}
	const rounds = 40
	var writing, watching sync.WaitGroup
	for _, s := range stores {
		for _, filter := range []string{"g/", "g/x", ""} {
			ch, err := s.Watch(ctx, filter)
			if err != nil {
				t.Fatal(err)
			}
			want := 0
			for w := range 4 {
				for r := range rounds {
					if strings.HasPrefix(fmt.Sprint("g/x", w, "/", r), filter) {
						want++
					}
				}
				if strings.HasPrefix(fmt.Sprint("g/", w), filter) {
					want++
				}
			}
			watching.Go(func() {
				seen := follow(t, ch, func(seen map[string]kv.Item) bool {
					for w := range 4 {
						if it, ok := seen[fmt.Sprint("g/", w)]; filter != "g/x" && (!ok || string(it.Value) != strconv.Itoa(rounds-1)) {
							return false
						}
					}
					return len(seen) >= want
				})
				if len(seen) != want {
					t.Errorf("watch of %q delivered %d keys, want %d", filter, len(seen), want)
				}
			})
		}
	}
	for w := range 4 {
		writing.Go(func() {
			for r := range rounds {
				v := strconv.Itoa(r)
				mustCommit(t, stores[w%2], set(fmt.Sprint("g/", w), v), set(fmt.Sprint("g/x", w, "/", r), v))
			}
		})
	}
	writing.Wait()
	watching.Wait()
}

// TestWatchWaitsForLateItems: a change whose entry is visible before it is is
// delivered once it is, and Watch does not return before those told up to then are.
func TestWatchWaitsForLateItems(t *testing.T) {
	ctx := testCtx(t)
	s := openStore(t, fresh())
	ch, err := s.Watch(ctx, "w/")
	if err != nil {
		t.Fatal(err)
	}
	e := entry{ref: refOf(9, 1), rev: s.clock.next(), keys: []string{"w/k"}}
	plant(t, s, headItem(s, e)) // before the entry
	time.Sleep(60 * time.Millisecond)
	plant(t, s, e.attrs(s.lay, time.Now().Add(keep).Unix()))
	var wg sync.WaitGroup
	const late = 200 * time.Millisecond
	wg.Go(func() {
		time.Sleep(late)
		plant(t, s, rowItem(s, row{key: "w/k", value: []byte("late"), rev: e.rev}))
	})
	start := time.Now()
	if _, err := openStore(t, s.lay.prefix).Watch(ctx, "w/"); err != nil {
		t.Fatal(err)
	}
	if it, err := s.Get(ctx, "w/k"); err != nil {
		t.Errorf("watch returned after %v, before a change that it will not deliver: %v, %v", time.Since(start), it, err)
	}
	seen := follow(t, ch, func(seen map[string]kv.Item) bool { return len(seen) == 1 })
	if string(seen["w/k"].Value) != "late" {
		t.Errorf("%v", seen)
	}
	wg.Wait()
}

// TestWatchWaitsForLateEntry: a store that begins while a head is visible whose entry is not waits for that, and
// for what it tells: neither its reads nor its watch would have the change.
func TestWatchWaitsForLateEntry(t *testing.T) {
	s := openStore(t, fresh())
	e := entry{ref: refOf(9, 1), rev: s.clock.next(), keys: []string{"w/k"}}
	plant(t, s, headItem(s, e))
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		time.Sleep(200 * time.Millisecond)
		plant(t, s, e.attrs(s.lay, time.Now().Add(keep).Unix()))
		time.Sleep(200 * time.Millisecond)
		plant(t, s, rowItem(s, row{key: "w/k", value: []byte("late"), rev: e.rev}))
	})
	other := openStore(t, s.lay.prefix)
	for _, prefix := range []string{"other/", "w/"} {
		if _, err := other.Watch(testCtx(t), prefix); err != nil {
			t.Fatal(err)
		}
	}
	if it, err := other.Get(testCtx(t), "w/k"); err != nil || string(it.Value) != "late" {
		t.Errorf("a watch began before a change that it will not deliver: %v, %v", it, err)
	}
}

// TestWatchesShareWhatTheyReadBack: the second watch reads what came since the first alone, and misses nothing.
func TestWatchesShareWhatTheyReadBack(t *testing.T) {
	writer := openStore(t, fresh())
	for i := range 200 {
		mustCommit(t, writer, set(fmt.Sprintf("a/%d", i), "v"), set(fmt.Sprintf("b/%d", i), "v"))
	}
	s := openStore(t, writer.lay.prefix)
	for i, prefix := range []string{"a/", "b/", "c/", "d/"} {
		mustCommit(t, writer, set(prefix+"last", "v"))
		if _, err := s.Watch(testCtx(t), prefix); err != nil {
			t.Fatal(err)
		}
		late := 0
		for n, tail := range s.watch.back {
			for j, e := range tail.entries {
				if late++; j > 0 && slices.ContainsFunc(tail.entries[:j], func(o entry) bool { return o.ref == e.ref }) {
					t.Errorf("entry %d of shard %d is there twice", e.ref.seq(), n)
				}
			}
		}
		if late != 200+i+1 {
			t.Errorf("watch %d knows of %d late commits, want %d", i, late, 200+i+1)
		}
		if _, err := s.Get(testCtx(t), prefix+"last"); err != nil {
			t.Error(err)
		}
	}
}

// TestWatchEndsAtGap: entries that are gone end the watches.
func TestWatchEndsAtGap(t *testing.T) {
	opts := testOptions()
	opts.recent = 200 * time.Millisecond
	s := openAt(t, local.Start(t), fresh(), opts)
	ch, err := s.Watch(testCtx(t), "")
	if err != nil {
		t.Fatal(err)
	}
	plant(t, s, headItem(s, entry{ref: refOf(9, 3), rev: s.clock.next()}))
	select {
	case items, ok := <-ch:
		if ok {
			t.Fatalf("delivered %v", items)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the watch goes on")
	}
	if ch, err = s.Watch(testCtx(t), ""); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, set("k", "v"))
	follow(t, ch, func(seen map[string]kv.Item) bool { return len(seen) == 1 })
}

func manyOps(n int, value string) (ops []kv.Op) {
	for i := range n {
		ops = append(ops, set(fmt.Sprintf("many/%03d", i), value))
	}
	return ops
}

// TestLargeCommits: those that leave no room for the change log are delivered
// by watches all the same, and their preconditions hold.
func TestLargeCommits(t *testing.T) {
	ctx, prefix := testCtx(t), fresh()
	s, other := openStore(t, prefix), openStore(t, prefix)
	ch, err := other.Watch(ctx, "many/")
	if err != nil {
		t.Fatal(err)
	}
	for n := maxTogether; n <= maxTransact; n++ {
		mustCommit(t, s, manyOps(n, strconv.Itoa(n))...)
		follow(t, ch, func(seen map[string]kv.Item) bool {
			for _, it := range seen {
				if string(it.Value) != strconv.Itoa(n) {
					t.Errorf("%q is %q in round %d", it.Key, it.Value, n)
				}
			}
			return len(seen) == n
		})
	}
	pre := []kv.Precondition{{Key: "absent", Revision: 3}}
	if _, err := s.Commit(ctx, manyOps(99, "never"), pre); !errors.Is(err, kv.ErrConflict) {
		t.Fatalf("commit: %v", err)
	}
	wantValue(t, s, "many/000", "100")
}

// TestAbandonedLargeCommit: its writer died behind the entry. A watch brings it
// about that the commit never comes, and the next ones are delivered.
func TestAbandonedLargeCommit(t *testing.T) {
	ctx, prefix := testCtx(t), fresh()
	opts := testOptions()
	opts.fenceAfter = 100 * time.Millisecond
	s, other := openStore(t, prefix), openAt(t, local.Start(t), prefix, opts)
	before := mustCommit(t, s, manyOps(1, "old")...)[0]
	ch, err := other.Watch(ctx, "many/")
	if err != nil {
		t.Fatal(err)
	}
	writes := writesOf(manyOps(100, "dead"), nil)
	sh := &shard{n: 63}
	rev := s.clock.next()
	e := s.entryOf(sh, writes, rev)
	e.large, e.anchor = true, before
	if err := s.transact(ctx, s.newWriteTries(), s.append(sh, e)); err != nil {
		t.Fatal(err)
	}
	seen := follow(t, ch, func(seen map[string]kv.Item) bool { return len(seen) == 1 })
	if it := seen["many/000"]; string(it.Value) != "old" || it.Revision <= before {
		t.Fatalf("%+v", it)
	}
	writes[0].at = &before
	if err := s.transact(ctx, s.newWriteTries(), s.items(writes, rev, e.ref)); err == nil {
		t.Fatal("the fenced commit was carried out")
	}
	mustCommit(t, s, manyOps(2, "next")...)
	follow(t, ch, func(seen map[string]kv.Item) bool { return len(seen) == 2 })
}

// TestOvertakenLargeCommit: a watch took the writer of a large commit for dead,
// or another commit changed its first key: it begins anew, with another entry.
func TestOvertakenLargeCommit(t *testing.T) {
	for _, name := range []string{"fenced", "changed"} {
		t.Run(name, func(t *testing.T) {
			prefix := fresh()
			other := openStore(t, prefix)
			before := mustCommit(t, other, manyOps(1, "old")...)[0]
			var n atomic.Int64
			s := openAt(t, proxy(t, func(op string) fault {
				if op != "TransactWriteItems" || n.Add(1) != 2 {
					return pass
				}
				if name == "changed" { // by a clock that is behind
					plant(t, other, rowItem(other, row{key: "many/000", value: []byte("other"), rev: before + 1}))
				} else if err := other.fence(testCtx(t), "many/000", before); err != nil {
					t.Error(err)
				}
				return pass
			}), prefix, testOptions())
			mustCommit(t, s, manyOps(100, "new")...)
			if n.Load() != 4 {
				t.Errorf("%d transactions; want entry and commit, twice", n.Load())
			}
			wantValue(t, s, "many/000", "new")
		})
	}
}

// TestLargeCommitOverALateWatch: a watch that begins between the entry and the
// commit delivers the commit.
func TestLargeCommitOverALateWatch(t *testing.T) {
	ctx, prefix := testCtx(t), fresh()
	s, other := openStore(t, prefix), openStore(t, prefix)
	writes := writesOf(manyOps(100, "v"), nil)
	sh := &shard{n: 5}
	rev := s.clock.next()
	e := s.entryOf(sh, writes, rev)
	e.large = true
	if err := s.transact(ctx, s.newWriteTries(), s.append(sh, e)); err != nil {
		t.Fatal(err)
	}
	ch, err := other.Watch(ctx, "many/")
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	writes[0].at = new(kv.Revision)
	if err := s.transact(ctx, s.newWriteTries(), s.items(writes, rev, e.ref)); err != nil {
		t.Fatal(err)
	}
	follow(t, ch, func(seen map[string]kv.Item) bool { return len(seen) == 100 })
}

// TestCommitsDoNotMeet: commits of one store on different keys, many at a time,
// do not get into each other's way in the change log.
func TestCommitsDoNotMeet(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s := openStore(t, fresh())
	var wg sync.WaitGroup
	for i := range 2 * shards {
		wg.Go(func() {
			if _, err := s.Commit(ctx, []kv.Op{set(fmt.Sprint("k", i), "v")}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	items, err := s.Range(ctx, "k", "", 1000, false)
	if err != nil || len(items) != 2*shards {
		t.Fatalf("%d items, %v", len(items), err)
	}
}
