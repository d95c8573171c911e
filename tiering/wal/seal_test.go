package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/storage/wal/waltest"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// owner appends to partitions of a stream and knows what was acknowledged.
type owner struct {
	*Stream
	t    *testing.T
	inc  ids.Incarnation
	pool *contract.Pool

	mu    sync.Mutex
	next  map[ids.TopicPartition]int64
	acked map[ids.TopicPartition]int64 // offset behind the last acknowledged one
	pos   map[ids.TopicPartition][]contract.Pos
	data  map[string][]byte // of batches, by partition and offset
	err   error
	late  int // acknowledged after a failure
}

func newOwner(t *testing.T, b objstore.Bucket, o Options) *owner {
	t.Helper()
	w := &owner{t: t, inc: ids.NewIncarnation(), pool: contract.NewPool(64 << 20), next: map[ids.TopicPartition]int64{}, acked: map[ids.TopicPartition]int64{},
		pos: map[ids.TopicPartition][]contract.Pos{}, data: map[string][]byte{}}
	o.Bucket, o.Incarnation, o.Pool, o.Announce = b, w.inc, w.pool, w.announced
	if o.Linger == 0 {
		o.Linger = 200 * time.Microsecond
	}
	var err error
	if w.Stream, err = Open(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *owner) announced(es []*contract.Entry, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range es {
		if err != nil {
			w.err = err
		} else {
			if w.err != nil {
				w.late++
			}
			w.acked[e.TP] = e.Last + 1
			w.pos[e.TP] = append(w.pos[e.TP], e.Pos)
		}
		e.Chunk.Release()
	}
}

func part(i int) ids.TopicPartition {
	return ids.TopicPartition{Topic: ids.TopicID{byte(1 + i/2)}, Partition: int32(i % 2)}
}

func (w *owner) accept(tps ...ids.TopicPartition) {
	w.t.Helper()
	var ch Change
	for _, tp := range tps {
		ch.Acceptances = append(ch.Acceptances, Acceptance{TP: tp, Epoch: 3, Giver: "meta/topics/a/1"})
	}
	if err := w.Change(context.Background(), ch); err != nil {
		w.t.Fatal(err)
	}
}

func (w *owner) append(tp ids.TopicPartition, size int) error {
	w.mu.Lock()
	e := waltest.Entry(tp, w.next[tp], size)
	w.data[fmt.Sprint(tp, e.Base)] = bytes.Clone(e.Data)
	w.mu.Unlock()
	if err := w.Stream.Append(context.Background(), e); err != nil {
		return err
	}
	w.mu.Lock()
	w.next[tp]++
	w.mu.Unlock()
	return nil
}

func (w *owner) settle() {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if st := w.State(); st.Durable == st.End || st.Err != nil {
			return
		}
		if time.Now().After(end) {
			w.t.Fatal("nothing becomes durable")
		}
	}
}

// heirsOf gives every partition to an incarnation.
func heirsOf(to ids.Incarnation) func(*State) []Heir {
	return func(st *State) (out []Heir) {
		for tp, t := range st.Tails {
			out = append(out, Heir{TP: tp, Epoch: t.Epoch + 1, To: to})
		}
		for tp, r := range st.Released {
			out = append(out, Heir{TP: tp, Epoch: r.Epoch, To: r.To, Released: true})
		}
		slices.SortFunc(out, func(a, b Heir) int { return CompareTP(a.TP, b.TP) })
		return out
	}
}

// check compares what a seal says with what was acknowledged: all of it is
// there, from offset from on, byte for byte.
func (w *owner) check(b objstore.Bucket, s *Sealed, from map[ids.TopicPartition]int64) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for tp, acked := range w.acked {
		tail := s.Tails[tp]
		if tail == nil {
			w.t.Fatalf("%s is not in the state of the sealed stream", tp)
		}
		if tail.End < acked || tail.End > w.next[tp]+1 {
			w.t.Fatalf("%s ends at %d, acknowledged to %d, appended to %d", tp, tail.End, acked, w.next[tp])
		}
		next := from[tp]
		for _, p := range tail.Batches {
			if p.Last < next {
				continue
			}
			if p.Base != next {
				w.t.Fatalf("%s: after offset %d comes %d", tp, next, p.Base)
			}
			next = p.Last + 1
			got, err := ReadBatches(context.Background(), b, p.Stream, p.Seq, []Batch{p.Batch})
			if err != nil || !bytes.Equal(got, w.data[fmt.Sprint(tp, p.Base)]) {
				w.t.Fatalf("%s at %d: %v, or other bytes", tp, p.Base, err)
			}
		}
		if next < acked {
			w.t.Fatalf("%s: batches end at %d, acknowledged to %d", tp, next, acked)
		}
	}
}

// A seal fences the owner, has all that was acknowledged, and every sealer gets the same.
func TestSealFencesOwner(t *testing.T) {
	b := objstore.NewMem()
	w := newOwner(t, b, Options{})
	w.accept(part(0), part(1), part(2))
	for i := range 60 {
		if err := w.append(part(i%3), 100+i); err != nil {
			t.Fatal(err)
		}
	}
	w.settle()
	heir := ids.NewIncarnation()
	s, err := SealStream(context.Background(), b, [16]byte{}, w.inc, heir, heirsOf(heir))
	if err != nil {
		t.Fatal(err)
	}
	w.check(b, s, nil)
	if len(s.Seal.Heirs) != 3 || s.Seal.Heirs[0] != (Heir{TP: part(0), Epoch: 4, To: heir}) {
		t.Fatalf("heirs %+v", s.Seal.Heirs)
	}
	for end := time.Now().Add(10 * time.Second); w.append(part(0), 100) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a sealed stream goes on")
		}
	}
	if err := w.Close(); !errors.Is(err, ErrFenced) || !errors.Is(err, contract.ErrPoisoned) {
		t.Fatalf("close of the fenced stream: %v", err)
	}
	if err := w.Change(context.Background(), Change{}); err == nil {
		t.Fatal("a fenced stream takes a change")
	}
	for range 2 {
		other := ids.NewIncarnation()
		again, err := SealStream(context.Background(), b, [16]byte{}, w.inc, other, heirsOf(other))
		if err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("sealed again: %v\n%+v\n%+v", err, again, s)
		}
	}
	read, err := ReadSealed(context.Background(), b, [16]byte{}, w.inc)
	if err != nil || !reflect.DeepEqual(read, s) {
		t.Fatalf("read again: %v", err)
	}
	if _, err := SealStream(context.Background(), b, [16]byte{9}, w.inc, heir, heirsOf(heir)); !errors.Is(err, contract.ErrForeign) {
		t.Fatalf("stream of another cluster: %v", err)
	}
}

// A seal whose number had been used and trimmed is void: the walk begins anew, and what the
// owner has acknowledged meanwhile is not lost.
func TestVoidSeal(t *testing.T) {
	b := objstore.NewMem()
	w := newOwner(t, b, Options{CheckpointEvery: 3})
	w.accept(part(0))
	grow := func(n int) {
		for range n {
			if err := w.append(part(0), 100); err != nil {
				t.Fatal(err)
			}
			w.settle()
		}
	}
	grow(6)
	// The sealer has listed the stream; before it makes its seal the owner writes and trims beyond it.
	heir := ids.NewIncarnation()
	moved := map[ids.TopicPartition]int64{}
	first := true
	s, err := SealStream(context.Background(), b, [16]byte{}, w.inc, heir, func(st *State) []Heir {
		if first {
			first = false
			grow(12)
			if err := w.Trim(w.pos[part(0)][16]); err != nil {
				t.Fatal(err)
			}
			moved[part(0)] = 16
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
				if _, err := b.Head(context.Background(), Key(w.inc, st.End+1)); errors.Is(err, objstore.ErrNotFound) {
					break
				}
				if time.Now().After(end) {
					t.Fatal("trimmed objects stay")
				}
			}
		}
		return heirsOf(heir)(st)
	})
	if err != nil {
		t.Fatal(err)
	}
	if first || s.At < 18 {
		t.Fatalf("the seal that counts is %d", s.At)
	}
	w.check(b, s, moved)
	_ = w.Close()
}

// Owners that append, trim and move partitions, and several sealers at once, on a bucket
// that is busy, slow and loses answers.
func TestSealUnderLoad(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { sealUnderLoad(t, seed) })
	}
}

func sealUnderLoad(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	mem := objstore.NewMem()
	b := objstore.NewFault(mem, seed)
	b.Add(objstore.FaultRule{Kind: objstore.FaultLatency, Delay: time.Millisecond, Probability: 0.3})
	b.Add(objstore.FaultRule{Kind: objstore.FaultThrottle, Probability: 0.05})
	b.Add(objstore.FaultRule{Method: objstore.MethodPut, Kind: objstore.FaultUnknownAfter, Probability: 0.05})
	b.Add(objstore.FaultRule{Method: objstore.MethodPut, Kind: objstore.FaultUnknownBefore, Probability: 0.05})
	w := newOwner(t, b, Options{CheckpointEvery: 4, MaxInFlight: 1 + rng.IntN(6)})
	for i := range 4 {
		w.accept(part(i))
	}
	stop := make(chan struct{})
	trimmed := map[ids.TopicPartition]int64{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if w.append(part(rng.IntN(4)), 61+rng.IntN(2000)) != nil {
				return
			}
			if i%7 == 6 {
				w.trimTo(rng, trimmed)
			}
		}
	})
	time.Sleep(time.Duration(5+seed%40) * time.Millisecond)
	results := make([]*Sealed, 3)
	var sealing sync.WaitGroup
	for i := range results {
		sealing.Go(func() {
			me := ids.NewIncarnation()
			s, err := SealStream(context.Background(), b, [16]byte{}, w.inc, me, heirsOf(me))
			if err != nil {
				t.Errorf("sealer %d: %v", i, err)
			}
			results[i] = s
		})
	}
	sealing.Wait()
	close(stop)
	wg.Wait()
	_ = w.Close()
	if t.Failed() {
		return
	}
	for _, r := range results[1:] {
		if r.At != results[0].At || !reflect.DeepEqual(r.Seal, results[0].Seal) {
			t.Fatalf("two seals count: %d and %d\n%+v\n%+v", r.At, results[0].At, r.Seal, results[0].Seal)
		}
	}
	b.Clear()
	last, err := ReadSealed(context.Background(), b, [16]byte{}, w.inc)
	if err != nil || last == nil {
		t.Fatal(err)
	}
	w.check(mem, last, trimmed)
	if w.late > 0 {
		t.Fatalf("%d batches were acknowledged after a failure", w.late)
	}
}

// trimTo trims up to a place that all partitions agree with.
func (w *owner) trimTo(rng *rand.Rand, trimmed map[ids.TopicPartition]int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	to := contract.Pos(rng.Uint64N(uint64(w.State().Durable) + 1))
	for tp, pos := range w.pos {
		n := int64(0)
		for n < int64(len(pos)) && pos[n] < to {
			n++
		}
		trimmed[tp] = max(trimmed[tp], n)
	}
	_ = w.Trim(to)
}
