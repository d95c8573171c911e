package waltest

import (
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/vfs/crashtest"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// known is what a test knows of a stream: offsets below need are trimmed, those
// below acked are acknowledged, those below tried were given to Append.
type known struct{ need, acked, tried int64 }

// checkPoint opens what a power loss left: the replay has all that was
// acknowledged and is needed, in order, and the stream goes on.
func checkPoint(t *testing.T, open Open, p crashtest.Point[known], size int64) {
	t.Helper()
	r := opened(t, open, p.FS, size)
	got := r.replay()
	if len(got) == 0 {
		if p.Before.acked > p.After.need {
			t.Fatalf("%v: nothing replayed, want offsets %d to %d", p.Event, p.After.need, p.Before.acked-1)
		}
		r.next = p.Before.acked
	} else {
		first, next := got[0].Base, got[len(got)-1].Last+1
		if first > p.After.need || next < p.Before.acked || next > p.After.tried {
			t.Fatalf("%v: replay has offsets %d to %d, want from %d on, %d acknowledged, %d appended", p.Event, first, next-1, p.After.need, p.Before.acked, p.After.tried)
		}
		checkRun(t, got, first, next-1)
	}
	from := r.next
	r.mustAppend(5000, 100)
	r.settle()
	r.close()
	r = opened(t, open, p.FS, size)
	if got := r.replay(); len(got) < 2 || got[len(got)-1].Last != from+1 {
		t.Fatalf("%v: appends after the power loss are lost", p.Event)
	}
	r.close()
}

// workload appends with trims, telling note what is known all the time. k is what
// was known before; the replay has shown what became of that.
func workload(t *testing.T, r *rig, rng *rand.Rand, appends int, k known, note func(known)) {
	t.Helper()
	first := r.next
	k.tried, k.acked = r.next, r.next
	note(k)
	for range appends {
		size := 61 + rng.IntN(3000)
		if rng.IntN(8) == 0 {
			size = rng.IntN(60_000)
		}
		k.tried++
		note(k)
		r.mustAppend(size)
		st := r.State()
		full := st.Capacity > 0 && int64(st.End-st.Trimmed) > st.Capacity/2
		if full || rng.IntN(2) == 0 {
			r.settle()
			k.acked = k.tried
			note(k)
		}
		if k.acked < k.tried || !full && rng.IntN(4) > 0 {
			continue
		}
		to := r.State().Durable // gives up what was replayed too
		upTo := k.acked - rng.Int64N(4)
		if upTo >= first && upTo < r.next {
			to = r.appended[upTo-first].Pos
		} else {
			upTo = k.acked
		}
		k.need = max(k.need, upTo)
		note(k)
		if err := r.Trim(to); err != nil {
			t.Fatal(err)
		}
	}
	r.settle()
	k.acked = k.tried
	note(k)
}

// A power loss at any operation keeps every acknowledged entry, in order, and
// invents none.
func testCrash(t *testing.T, open Open, limit int) {
	seed := crashtest.Seed(t)
	mem := vfs.NewMem()
	state := newBox(known{})
	s := crashtest.Sample(mem, seed, limit, state.get)
	r := opened(t, open, mem, 512<<10)
	r.replay()
	workload(t, r, rand.New(rand.NewPCG(seed, 1)), 200, known{}, state.set)
	r.close()
	points, seen := s.End()
	if seen < 200 {
		t.Errorf("only %d operations", seen)
	}
	crashtest.Each(t, points, func(t *testing.T, p crashtest.Point[known]) { checkPoint(t, open, p, 512<<10) })
}

// Each run begins with what a power loss in the run before has left.
func testGenerations(t *testing.T, open Open, rounds int) {
	seed := crashtest.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	const size = 256 << 10
	for range rounds {
		mem := vfs.NewMem()
		var k known
		for generation := range 6 {
			state := newBox(k)
			s := crashtest.Sample(mem, rng.Uint64(), 12, state.get)
			r := opened(t, open, mem, size)
			if got := r.replay(); len(got) > 0 {
				checkRun(t, got, got[0].Base, got[len(got)-1].Last)
			} else {
				r.next = k.acked
			}
			workload(t, r, rng, 5+rng.IntN(20), k, state.set)
			r.close()
			points, _ := s.End()
			next := points[rng.IntN(len(points))]
			looked := next
			looked.FS = next.FS.CrashClone(rng)
			checkPoint(t, open, looked, size)
			if t.Failed() {
				t.Fatalf("generation %d", generation)
			}
			mem = next.FS
			k = known{need: next.After.need, acked: max(next.Before.acked, next.After.need), tried: next.After.tried}
		}
	}
}

// A failed write poisons the stream for ever; it is not tried again. The first
// commit fails, or a later one, or a write in the background.
func testPoisoned(t *testing.T, open Open) {
	for _, good := range []int{0, 3} {
		mem := vfs.NewMem()
		fault := vfs.NewFault(mem)
		r := opened(t, open, fault, 512<<10)
		r.replay()
		for range good {
			r.mustAppend(200)
			r.settle()
		}
		fault.Add(vfs.Rule{Op: vfs.OpWrite, Count: 1, Err: syscall.EIO})
		if err := r.append(300); err != nil && !errors.Is(err, wal.ErrPoisoned) {
			t.Fatalf("append: %v", err)
		}
		eventually(t, "failure", func() bool { return r.State().Err != nil && r.told() })
		if err := r.failure(); err != nil && (!errors.Is(err, wal.ErrPoisoned) || !errors.Is(err, syscall.EIO)) {
			t.Fatalf("announced %v", err)
		}
		// The failed write was that of the entry, or one in the background beside it.
		acked := r.acked
		if acked > good && r.failure() != nil || acked > good+1 || acked < good {
			t.Fatalf("%d entries announced as durable, want %d, then %v", acked, good, r.failure())
		}
		for range 3 { // writes would succeed now
			if err := r.append(100); !errors.Is(err, wal.ErrPoisoned) {
				t.Fatalf("append after the failure: %v", err)
			}
		}
		if err := r.Trim(r.State().End); !errors.Is(err, wal.ErrPoisoned) {
			t.Fatalf("trim after the failure: %v", err)
		}
		if !errors.Is(r.State().Err, wal.ErrPoisoned) || fault.Fired(vfs.OpWrite) != 1 {
			t.Fatalf("state %+v, %d writes failed", r.State(), fault.Fired(vfs.OpWrite))
		}
		if err := r.Close(); !errors.Is(err, wal.ErrPoisoned) {
			t.Fatalf("close: %v", err)
		}
		r = opened(t, open, mem, 512<<10)
		checkRun(t, r.replay(), 0, int64(acked)-1)
		r.close()
	}
}

func testPoisonedTrim(t *testing.T, open Open) {
	fault := vfs.NewFault(vfs.NewMem())
	r := opened(t, open, fault, 256<<10)
	r.replay()
	bounded(t, r)
	if r.State().TrimsLater {
		r.close()
		t.Skip("this driver's Trim does not write")
	}
	for range 10 {
		r.mustAppend(9000)
	}
	r.settle()
	to := r.State().Durable
	fault.Add(vfs.Rule{Op: vfs.OpWrite, Count: 1, Err: syscall.EIO})
	if err := r.Trim(to); !errors.Is(err, wal.ErrPoisoned) {
		t.Fatalf("trim on a failing disk: %v", err)
	}
	if r.State().Trimmed != 0 {
		t.Error("space was given back without a durable trim")
	}
	if err := r.append(100); !errors.Is(err, wal.ErrPoisoned) {
		t.Fatalf("append after the failure: %v", err)
	}
	if err := r.Close(); !errors.Is(err, wal.ErrPoisoned) {
		t.Fatal(err)
	}
}

// Close commits and announces what is pending, and ends appends that wait.
func testClose(t *testing.T, open Open) {
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	r := opened(t, open, fault, 256<<10)
	r.replay()
	fault.Add(vfs.Rule{Op: vfs.OpWrite, Delay: 2 * time.Millisecond})
	r.mustAppend(100, 200, 300, 400)
	r.close()
	if r.acked != 4 {
		t.Fatalf("%d of 4 announced when Close returned", r.acked)
	}
	r = opened(t, open, mem, 256<<10)
	checkRun(t, r.replay(), 0, 3)
	if bounded(t, r) > 0 {
		if err := r.fill(20_000); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		waiting := make(chan error, 1)
		go func() {
			waiting <- r.Stream.Append(context.Background(), Entry(ids.TopicPartition{}, 0, 20_000))
		}()
		time.Sleep(5 * time.Millisecond)
		r.close()
		if err := within(t, waiting); !errors.Is(err, wal.ErrClosed) {
			t.Fatalf("append that waited for space: %v", err)
		}
	}
}

// A stream of another disk is refused.
func testForeign(t *testing.T, open Open) {
	mem := vfs.NewMem()
	r := opened(t, open, mem, 256<<10)
	r.replay()
	r.close()
	pool := wal.NewPool(1)
	s, err := open(Config{FS: mem, DiskID: [16]byte{2}, Pool: pool, Announce: func([]*wal.Entry, error) {}})
	if err == nil {
		err = s.Replay(func(*wal.Entry) error { return nil })
		s.Close()
	}
	if !errors.Is(err, wal.ErrForeign) {
		t.Fatalf("stream of another disk: %v", err)
	}
}

// All memory comes back after Close and the callers' releases.
func testMemory(t *testing.T, open Open) {
	r := opened(t, open, vfs.NewMem(), 4<<20)
	r.replay()
	for i := range 300 {
		r.mustAppend(100 + i*50)
		if i%10 == 0 {
			r.settle()
			if err := r.Trim(r.State().Durable); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.settle()
	r.close()
	if n, _, _ := r.pool.Usage(); n != 0 {
		t.Errorf("%d bytes of chunks are still held", n)
	}
}
