// Package waltest is the conformance suite of wal.Stream: every driver passes
// it on a file system in memory, with crash clones and injected errors.
package waltest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/vfs/crashtest"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// Config is what a driver is opened with.
type Config struct {
	FS       vfs.FS
	DiskID   [16]byte
	Size     int64 // capacity in bytes, for drivers that have one
	Pool     *wal.Pool
	Announce wal.Announce
	OnFull   func()
}

// Open opens the one stream of cfg.FS, making it if it is missing.
type Open func(cfg Config) (wal.Stream, error)

// Run runs the suite.
func Run(t *testing.T, open Open) { RunFewer(t, open, 1) }

// RunFewer is Run with one in n of the crash points and generations: for drivers on real servers.
func RunFewer(t *testing.T, open Open, n int) {
	crash := func(t *testing.T, open Open) { testCrash(t, open, 200/n) }
	generations := func(t *testing.T, open Open) { testGenerations(t, open, max(1, 8/n)) }
	for _, c := range []struct {
		name string
		f    func(*testing.T, Open)
	}{
		{"OrderAndGroupCommit", testOrder}, {"OneAppendIsOneCommit", testAtomic}, {"ReplayEqualsAppended", testReplay},
		{"ReplayEnds", testReplayEnds}, {"TrimGivesSpace", testTrim}, {"TrimAnywhere", testTrimAnywhere}, {"Laps", testLaps}, {"Jumbo", testJumbo},
		{"DurableIsAnnounced", testDurableIsAnnounced}, {"CrashAtEveryOperation", crash}, {"Generations", generations}, {"Poisoned", testPoisoned},
		{"PoisonedByTrim", testPoisonedTrim}, {"CloseAnnounces", testClose}, {"Foreign", testForeign}, {"Memory", testMemory},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(t, open) })
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Batch returns a stamped batch of one record at offset, of size bytes in all.
func Batch(offset int64, size int, seed uint64) []byte {
	b := make([]byte, max(size, batch.HeaderSize))
	rng := rand.New(rand.NewPCG(seed, 7))
	for i := batch.HeaderSize; i < len(b); i++ {
		b[i] = byte(rng.Uint32())
	}
	be := binary.BigEndian
	be.PutUint32(b[8:], uint32(len(b)-batch.LogOverhead))
	b[16] = 2
	be.PutUint64(b[27:], seed)
	be.PutUint64(b[35:], seed)
	be.PutUint64(b[43:], ^uint64(0))
	be.PutUint16(b[51:], ^uint16(0))
	be.PutUint32(b[53:], ^uint32(0))
	be.PutUint32(b[57:], 1)
	be.PutUint32(b[17:], crc32.Checksum(b[batch.HeadSize:], castagnoli))
	batch.Stamp(b, offset, 1)
	return b
}

// Entry returns an entry of one batch.
func Entry(tp ids.TopicPartition, offset int64, size int) *wal.Entry {
	return &wal.Entry{TP: tp, Kind: wal.KindBatch, Epoch: 1, Base: offset, Last: offset,
		Data: Batch(offset, size, uint64(tp.Partition)<<32|uint64(offset))}
}

// rig is one opened stream and what it announced.
type rig struct {
	t    testing.TB
	fs   vfs.FS
	pool *wal.Pool
	wal.Stream

	mu       sync.Mutex
	next     int64
	appended []*wal.Entry // in order of Append; none missing
	acked    int          // appended[:acked] are announced as durable
	failed   error
	calls    int
	full     chan struct{}
}

// opened opens the stream; the test calls replay.
func opened(t testing.TB, open Open, fsys vfs.FS, size int64) *rig {
	t.Helper()
	r := &rig{t: t, fs: fsys, pool: wal.NewPool(64 << 20), full: make(chan struct{}, 1)}
	s, err := open(Config{FS: fsys, DiskID: [16]byte{1}, Size: size, Pool: r.pool, Announce: r.announce, OnFull: func() {
		select {
		case r.full <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	r.Stream = s
	return r
}

func (r *rig) announce(entries []*wal.Entry, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	for _, e := range entries {
		if err != nil {
			r.failed = err
		} else if r.acked >= len(r.appended) || e != r.appended[r.acked] {
			r.t.Errorf("announced offset %d of %s out of order", e.Base, e.TP)
		} else if r.failed != nil {
			r.t.Errorf("announced offset %d after a failure", e.Base)
		} else {
			r.acked++
		}
	}
}

// append appends one batch of size bytes; calls are serialised.
func (r *rig) append(size int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := Entry(ids.TopicPartition{Topic: ids.TopicID{9}}, r.next, size)
	r.appended = append(r.appended, e)
	r.mu.Unlock() // Append may wait for the announcement of others
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	err := r.Stream.Append(ctx, e)
	cancel()
	r.mu.Lock()
	if err != nil {
		r.appended = r.appended[:len(r.appended)-1]
		return err
	}
	r.next++
	return nil
}

func (r *rig) mustAppend(sizes ...int) {
	r.t.Helper()
	for _, n := range sizes {
		if err := r.append(n); err != nil {
			r.t.Fatalf("append of %d bytes: %v", n, err)
		}
	}
}

// failure is what was announced, or nil.
func (r *rig) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// told reports whether everything appended was announced, well or not.
func (r *rig) told() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed != nil || r.acked == len(r.appended)
}

// settle waits until everything appended is announced and State tells so.
func (r *rig) settle() {
	r.t.Helper()
	eventually(r.t, "announcements", func() bool {
		r.mu.Lock()
		acked, failed := r.acked == len(r.appended), r.failed != nil
		r.mu.Unlock()
		st := r.State()
		return failed || acked && st.Durable == st.End
	})
}

// within waits for a result, with a deadline.
func within[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(10 * time.Second):
		t.Fatal("timed out")
	}
	return v
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(200 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

func (r *rig) close() {
	r.t.Helper()
	if err := r.Close(); err != nil {
		r.t.Fatalf("close: %v", err)
	}
	for _, e := range r.appended {
		if e.Chunk != nil {
			e.Chunk.Release()
			e.Chunk, e.Data = nil, nil
		}
	}
}

// replay replays the stream and returns copies of its entries.
func (r *rig) replay() []wal.Entry {
	r.t.Helper()
	out, err := collect(r.Stream)
	if err != nil {
		r.t.Fatalf("replay: %v", err)
	}
	if n := len(out); n > 0 {
		r.next = out[n-1].Last + 1
	}
	return out
}

func collect(s wal.Stream) (out []wal.Entry, err error) {
	err = s.Replay(func(e *wal.Entry) error {
		c := *e
		c.Data = bytes.Clone(e.Data)
		out = append(out, c)
		return nil
	})
	return out, err
}

// checkRun fails unless got are the offsets from first on, each with its bytes.
func checkRun(t testing.TB, got []wal.Entry, first, last int64) {
	t.Helper()
	if int64(len(got)) != last-first+1 {
		at := 0
		for at < len(got) && got[at].Base == first+int64(at) {
			at++
		}
		t.Fatalf("%d entries replayed, want offsets %d to %d; they differ from offset %d on", len(got), first, last, first+int64(at))
	}
	for i := range got {
		checkEntry(t, &got[i], first+int64(i))
	}
}

func checkEntry(t testing.TB, e *wal.Entry, offset int64) {
	t.Helper()
	want := Entry(e.TP, offset, len(e.Data))
	if e.Base != offset || e.Last != offset || e.Kind != wal.KindBatch || e.Epoch != 1 || !bytes.Equal(e.Data, want.Data) {
		t.Fatalf("entry %+v is not what was appended at offset %d", e, offset)
	}
}

func testOrder(t *testing.T, open Open) {
	r := opened(t, open, vfs.NewMem(), 4<<20)
	r.replay()
	var gate sync.WaitGroup
	for w := range 8 {
		gate.Add(1)
		go func() {
			defer gate.Done()
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range 200 {
				e := Entry(ids.TopicPartition{Partition: int32(w)}, int64(i), 61+rng.IntN(900))
				want := bytes.Clone(e.Data)
				given := e.Data
				r.mu.Lock() // order of Append is the order of announcements
				r.appended = append(r.appended, e)
				err := r.Stream.Append(context.Background(), e)
				r.mu.Unlock()
				clear(given) // the caller may reuse its buffer at once
				if err != nil || !bytes.Equal(e.Data, want) {
					t.Errorf("append: %v, or data is not a copy", err)
				}
			}
		}()
	}
	gate.Wait()
	r.settle()
	st := r.State()
	if st.Durable != st.End || st.Trimmed > st.Durable || st.Err != nil {
		t.Errorf("state %+v", st)
	}
	for i := 1; i < len(r.appended); i++ {
		if r.appended[i].Pos < r.appended[i-1].Pos {
			t.Fatal("positions do not grow")
		}
	}
	if r.calls >= len(r.appended) {
		t.Errorf("%d announcements for %d appends: no group commit", r.calls, len(r.appended))
	}
	r.close()
}

// All entries of one Append are in a replay, or none is.
func testAtomic(t *testing.T, open Open) {
	mem := vfs.NewMem()
	r := opened(t, open, mem, 1<<20)
	r.replay()
	rng := rand.New(rand.NewPCG(3, 3))
	sampler := crashtest.Sample(mem, 3, 100, func() struct{} { return struct{}{} })
	const group = 7
	var done int64
	for range 12 {
		es := make([]*wal.Entry, group)
		for i := range es {
			es[i] = Entry(ids.TopicPartition{Topic: ids.TopicID{9}}, done, 300+rng.IntN(3000))
			done++
		}
		r.mu.Lock()
		r.appended = append(r.appended, es...)
		err := r.Stream.Append(context.Background(), es...)
		r.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		r.settle()
	}
	r.close()
	points, _ := sampler.End()
	for _, p := range points {
		again := opened(t, open, p.FS, 1<<20)
		if n := len(again.replay()); n%group != 0 {
			t.Fatalf("%v: %d entries of groups of %d", p.Event, n, group)
		}
		again.close()
	}
}

func testReplay(t *testing.T, open Open) {
	fsys := vfs.NewMem()
	total := int64(0)
	var end wal.Pos
	for round := range 5 {
		r := opened(t, open, fsys, 1<<20)
		checkRun(t, r.replay(), 0, total-1)
		r.next = total
		if st := r.State(); st.End < end || st.Durable != st.End {
			t.Fatalf("round %d: positions went back from %d: %+v", round, end, st)
		}
		for i := range 40 {
			r.mustAppend(61 + i*100)
			total++
		}
		r.settle()
		for _, e := range r.appended {
			if e.Pos < end {
				t.Fatalf("round %d: position %d used again", round, e.Pos)
			}
		}
		end = r.State().End
		if err := r.Stream.Append(context.Background(), Entry(ids.TopicPartition{}, 0, r.MaxAppend()+wal.EntryHeader*8)); !errors.Is(err, wal.ErrTooLarge) {
			t.Fatalf("too large an append: %v", err)
		}
		r.close()
		if err := r.Close(); !errors.Is(err, wal.ErrClosed) {
			t.Fatalf("second close: %v", err)
		}
		if err := r.append(100); !errors.Is(err, wal.ErrClosed) {
			t.Fatalf("append after close: %v", err)
		}
	}
}

// An error of the replay's function ends it.
func testReplayEnds(t *testing.T, open Open) {
	fsys := vfs.NewMem()
	r := opened(t, open, fsys, 1<<20)
	r.replay()
	r.mustAppend(100, 200, 300)
	r.close()
	r = opened(t, open, fsys, 1<<20)
	seen, stop := 0, errors.New("stop")
	if err := r.Replay(func(*wal.Entry) error { seen++; return stop }); !errors.Is(err, stop) || seen != 1 {
		t.Fatalf("replay: %v after %d entries", err, seen)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}
