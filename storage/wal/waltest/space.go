package waltest

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// bounded skips a test that needs a capacity.
func bounded(t *testing.T, r *rig) int64 {
	t.Helper()
	c := r.State().Capacity
	if c == 0 {
		r.close()
		t.Skip("this driver has no capacity")
	}
	return c
}

// fill appends until the stream is full and returns the error of the append
// that did not fit; it has a deadline.
func (r *rig) fill(size int) error {
	r.t.Helper()
	for range 1 << 20 {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		e := Entry(ids.TopicPartition{Topic: ids.TopicID{9}}, r.next, size)
		r.mu.Lock()
		r.appended = append(r.appended, e)
		r.mu.Unlock()
		err := r.Stream.Append(ctx, e)
		cancel()
		if err != nil {
			r.mu.Lock()
			r.appended = r.appended[:len(r.appended)-1]
			r.mu.Unlock()
			return err
		}
		r.next++
		if r.next%4 == 0 {
			r.settle() // else all might be one commit
		}
	}
	r.t.Fatal("never full")
	return nil
}

// A full stream makes Append wait until Trim, and gives up with the context.
func testTrim(t *testing.T, open Open) {
	fsys := vfs.NewMem()
	r := opened(t, open, fsys, 256<<10)
	r.replay()
	bounded(t, r)
	if err := r.fill(9000); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("append to a full stream: %v", err)
	}
	select {
	case <-r.full:
	default:
		t.Error("nobody was told that the stream is full")
	}
	r.settle()
	before := r.State()
	if int64(before.End-before.Trimmed) > before.Capacity {
		t.Fatalf("more used than there is: %+v", before)
	}
	waiting := make(chan error, 1)
	go func() { waiting <- r.append(9000) }()
	select {
	case err := <-waiting:
		t.Fatalf("append did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	r.mu.Lock()
	cut := len(r.appended) / 2
	pos := r.appended[cut].Pos
	r.mu.Unlock()
	if err := r.Trim(pos); err != nil {
		t.Fatal(err)
	}
	if err := within(t, waiting); err != nil {
		t.Fatalf("append after the trim: %v", err)
	}
	r.settle()
	if st := r.State(); st.Trimmed > pos || st.Trimmed <= before.Trimmed {
		t.Fatalf("trimmed to %d, state %+v", pos, st)
	}
	if err := r.Trim(0); err != nil || r.State().Trimmed < before.Trimmed {
		t.Fatalf("trim backwards: %v", err)
	}
	last := r.next - 1
	r.close()
	r = opened(t, open, fsys, 256<<10)
	got := r.replay()
	if len(got) == 0 || got[0].Base > int64(cut) {
		t.Fatalf("trim to the position of offset %d lost it", cut)
	}
	checkRun(t, got, got[0].Base, last)
	r.close()
}

// Trim takes the position of any commit: what lies behind it is kept, and the
// stream goes on. A position inside of a commit is refused, or does no harm.
func testTrimAnywhere(t *testing.T, open Open) {
	fsys := vfs.NewMem()
	next := int64(0)
	rng := rand.New(rand.NewPCG(5, 5))
	for range 12 {
		r := opened(t, open, fsys, 1<<20)
		got := r.replay()
		r.next = next
		if len(got) > 0 {
			checkRun(t, got, got[0].Base, next-1)
		}
		for range 10 {
			r.mustAppend(61 + rng.IntN(9000))
			r.settle()
			next++
		}
		for _, e := range r.appended {
			got = append(got, *e)
		}
		st := r.State()
		cut := rng.IntN(len(got))
		to := got[cut].Pos
		_ = r.Trim(st.Trimmed + (to-st.Trimmed)/2 + 1)
		if err := r.Trim(to); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(2) == 0 { // a trim to what is kept already changes nothing
			if err := r.Trim(st.Trimmed); err != nil {
				t.Fatal(err)
			}
		}
		r.close()
		r = opened(t, open, fsys, 1<<20)
		left := r.replay()
		if len(left) == 0 || left[0].Base > got[cut].Base {
			t.Fatalf("trim to %d of %d to %d: offset %d is lost, %d entries left", to, st.Trimmed, st.End, got[cut].Base, len(left))
		}
		checkRun(t, left, left[0].Base, next-1)
		r.close()
	}
}

// Whoever trims by State has been told of all that State calls durable.
func testDurableIsAnnounced(t *testing.T, open Open) {
	told, hold := make(chan struct{}), make(chan struct{})
	pool := wal.NewPool(64 << 20)
	var once sync.Once
	s, err := open(Config{FS: vfs.NewMem(), Size: 1 << 20, Pool: pool, Announce: func([]*wal.Entry, error) {
		once.Do(func() { close(told) })
		<-hold
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := collect(s); err != nil {
		t.Fatal(err)
	}
	e := Entry(ids.TopicPartition{}, 0, 1000)
	if err := s.Append(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	within(t, told)
	if st := s.State(); st.Durable > e.Pos {
		t.Errorf("durable up to %d while the entry at %d is being announced", st.Durable, e.Pos)
	}
	close(hold)
	eventually(t, "durable", func() bool { st := s.State(); return st.Durable == st.End })
	e.Chunk.Release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// The stream is written over many times.
func testLaps(t *testing.T, open Open) {
	fsys := vfs.NewMem()
	rng := rand.New(rand.NewPCG(6, 6))
	size := int64(256 << 10)
	next, kept := int64(0), int64(0)
	var bytes int64
	for laps := int64(0); bytes < 12*size; laps++ {
		r := opened(t, open, fsys, size)
		got := r.replay()
		if len(got) > 0 && got[0].Base > kept {
			t.Fatalf("replay begins at %d, want %d", got[0].Base, kept)
		}
		if next > kept {
			checkRun(t, got, next-int64(len(got)), next-1)
		}
		r.next = next
		for range 30 {
			n := 61 + rng.IntN(20_000)
			r.mustAppend(n)
			bytes += int64(n)
			next++
			r.settle()
			if st := r.State(); int64(st.End-st.Trimmed) > size/2 {
				e := r.appended[len(r.appended)-1]
				if err := r.Trim(e.Pos); err != nil {
					t.Fatal(err)
				}
				kept = e.Base
			}
		}
		r.close()
	}
}

// Entries larger than a chunk of the pool pass, alone and between others.
func testJumbo(t *testing.T, open Open) {
	fsys := vfs.NewMem()
	size := int64(48 << 20)
	r := opened(t, open, fsys, size)
	r.replay()
	sizes := []int{100, wal.ChunkSize - 200, wal.ChunkSize, 100, wal.ChunkSize + 1, 9 << 20, 300, 5 << 20}
	for _, n := range sizes {
		r.mustAppend(n)
		if n > wal.ChunkSize {
			r.settle()
		}
	}
	r.settle()
	r.close()
	if n, _, _ := r.pool.Usage(); n != 0 {
		t.Errorf("%d bytes of chunks are still held", n)
	}
	r = opened(t, open, fsys, size)
	checkRun(t, r.replay(), 0, int64(len(sizes))-1)
	r.close()
}

// box is a value that a sampler reads while the test changes it.
type box struct {
	mu sync.Mutex
	k  known
}

func newBox(k known) *box { return &box{k: k} }

func (b *box) get() known {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.k
}

func (b *box) set(k known) {
	b.mu.Lock()
	b.k = k
	b.mu.Unlock()
}
