package wal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// known is a Needs of a test: what is accepted and what is spare up to which offset.
type known struct {
	accepted map[ids.TopicPartition]int32
	spare    map[ids.TopicPartition]int64
	err      error
}

func (k *known) Accepted(_ context.Context, tp ids.TopicPartition, epoch int32) (bool, error) {
	return k.accepted[tp] >= epoch, k.err
}

func (k *known) Spare(_ context.Context, tp ids.TopicPartition, _, last int64) (bool, error) {
	return last < k.spare[tp], k.err
}

// sweepRig is a sealed stream of two partitions, an object for each batch.
type sweepRig struct {
	t    *testing.T
	b    objstore.Bucket
	w    *owner
	seal *Sealed
	at   map[uint64]Batch // batches by object
}

func newSweepRig(t *testing.T) *sweepRig {
	t.Helper()
	heir := ids.NewIncarnation()
	return sealedRig(t, heir, heirsOf(heir))
}

func sealedRig(t *testing.T, heir ids.Incarnation, heirs func(*State) []Heir) *sweepRig {
	r := &sweepRig{t: t, b: objstore.NewMem(), at: map[uint64]Batch{}}
	r.w = newOwner(t, r.b, Options{CheckpointEvery: 4})
	r.w.accept(part(0), part(1))
	for i := range 12 {
		if err := r.w.append(part(i%2), 100); err != nil {
			t.Fatal(err)
		}
		r.w.settle()
	}
	var err error
	if r.seal, err = SealStream(t.Context(), r.b, [16]byte{}, r.w.inc, heir, heirs); err != nil {
		t.Fatal(err)
	}
	for seq := r.seal.First; seq < r.seal.End; seq++ {
		f, err := ReadFooter(t.Context(), r.b, r.w.inc, seq, -1)
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Batches) == 1 {
			r.at[seq] = f.Batches[0]
		}
	}
	// A put that was under way when the stream was sealed, and a claim.
	f := &Footer{Stream: r.w.inc, Seq: r.seal.At + 2, CheckpointAt: r.seal.At + 2, Checkpoint: &Checkpoint{}}
	o := &body{}
	o.add(f.header())
	o.add(f.encode())
	if _, err := objstore.PutCreateOnly(t.Context(), r.b, Key(r.w.inc, f.Seq), o, objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := PutClaim(t.Context(), r.b, [16]byte{}, Claim{Dead: r.w.inc, TP: part(5), Epoch: 1, To: heir, Giver: "meta/topics/t/1"}); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *sweepRig) sweep(k *known) Swept {
	r.t.Helper()
	s, err := SweepSealed(r.t.Context(), r.b, [16]byte{}, k, slog.New(slog.DiscardHandler))
	if !errors.Is(err, k.err) {
		r.t.Fatal(err)
	}
	return s
}

func (r *sweepRig) left() (out []uint64) {
	r.t.Helper()
	objects, sealed, err := list(r.t.Context(), r.b, r.w.inc)
	if err != nil || !sealed {
		r.t.Fatalf("list: %v, sealed %v", err, sealed)
	}
	for _, o := range objects {
		out = append(out, o.seq)
	}
	return out
}

func (r *sweepRig) want(what string, from uint64) {
	r.t.Helper()
	var want []uint64
	for seq := from; seq <= r.seal.At; seq++ {
		want = append(want, seq)
	}
	if from < r.seal.At {
		want = append(want, r.seal.At+2)
	}
	if got := r.left(); fmt.Sprint(got) != fmt.Sprint(want) {
		r.t.Errorf("%s: objects %v are left, want %v", what, got, want)
	}
	s, err := ReadSealed(r.t.Context(), r.b, [16]byte{}, r.w.inc)
	if err != nil || s.At != r.seal.At || len(s.Seal.Heirs) != 2 {
		r.t.Errorf("%s: the seal reads %+v, %v", what, s, err)
	}
	if _, err := (&Older{Bucket: r.b}).Batches(r.t.Context(), part(0), []OlderRange{{Stream: r.w.inc, To: r.seal.At - 1, End: 100}}); err != nil {
		r.t.Errorf("%s: read as an older stream: %v", what, err)
	}
}

// A sealed stream shrinks in order to seal, `sealed` and claims, as far as it is proved that nobody
// needs more.
func TestSweepSealed(t *testing.T) {
	r := newSweepRig(t)
	all := map[ids.TopicPartition]int64{part(0): 100, part(1): 100}
	r.sweep(&known{spare: all})
	r.want("nothing is accepted", r.seal.First)
	r.sweep(&known{spare: all, accepted: map[ids.TopicPartition]int32{part(0): 4, part(1): 3}})
	r.want("one heir has not accepted", r.seal.First)
	accepted := map[ids.TopicPartition]int32{part(0): 4, part(1): 9}
	r.sweep(&known{spare: all, accepted: accepted, err: objstore.ErrThrottled})
	r.want("nothing can be read", r.seal.First)

	// The second partition is tiered in part: what is before that may go, the first one's too.
	var stop uint64
	for seq, b := range r.at {
		if b.TP == part(1) && b.Base == 2 {
			stop = seq
		}
	}
	s := r.sweep(&known{accepted: accepted, spare: map[ids.TopicPartition]int64{part(0): 100, part(1): 2}})
	r.want("tiered in part", stop)
	if s.Waiting != 1 || s.Objects != int(stop-r.seal.First) {
		t.Errorf("swept %+v", s)
	}
	if r.sweep(&known{accepted: accepted, spare: all}).Waiting != 0 {
		t.Error("something waits")
	}
	r.want("all is tiered", r.seal.At)
	if s, err := ReadSealed(t.Context(), r.b, [16]byte{}, r.w.inc); err != nil || !s.Swept || len(s.Tails) != 0 {
		t.Errorf("a swept stream reads %+v, %v", s, err)
	}
	if _, err := ReadClaim(t.Context(), r.b, [16]byte{}, ClaimKey(r.w.inc, part(5), 1)); err != nil {
		t.Errorf("the claim: %v", err)
	}
	if r.sweep(&known{}) != (Swept{}) {
		t.Error("there is something left to do")
	}
}

// What was carried forward goes before its newest place does, and no stream goes that is not sealed.
func TestSweepCarried(t *testing.T) {
	b := objstore.NewMem()
	w := newOwner(t, b, Options{})
	w.accept(part(0))
	if err := w.append(part(0), 100); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.next[part(0)] = 0
	if err := w.append(part(0), 100); err != nil { // once more
		t.Fatal(err)
	}
	w.settle()
	k := &known{accepted: map[ids.TopicPartition]int32{part(0): 4}}
	if s, err := SweepSealed(t.Context(), b, [16]byte{}, k, slog.New(slog.DiscardHandler)); s != (Swept{}) || err != nil {
		t.Errorf("swept %+v of a living stream, %v", s, err)
	}
	heir := ids.NewIncarnation()
	seal, err := SealStream(t.Context(), b, [16]byte{}, w.inc, heir, heirsOf(heir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SweepSealed(t.Context(), b, [16]byte{}, k, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	objects, _, err := list(t.Context(), b, w.inc)
	if err != nil || len(objects) != 2 || objects[0].seq != seal.At-1 {
		t.Errorf("left are %+v, %v; want the newest place and the seal %d", objects, err, seal.At)
	}
}

// What waits for its disk does not keep the stream's objects: the stream never had anything of it.
func TestSweepWaitsForNoDisk(t *testing.T) {
	heir := ids.NewIncarnation()
	r := sealedRig(t, heir, func(st *State) []Heir {
		return append(heirsOf(heir)(st), Heir{TP: part(9), Epoch: 1, Disk: ids.DiskID{1}})
	})
	k := &known{accepted: map[ids.TopicPartition]int32{part(0): 99, part(1): 99}, spare: map[ids.TopicPartition]int64{part(0): 1 << 40, part(1): 1 << 40}}
	if s := r.sweep(k); s.Waiting != 0 || s.Objects == 0 {
		t.Errorf("swept %+v", s)
	}
}
