package wal

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
)

// Placed is a batch and the object that has it.
type Placed struct {
	Batch
	Stream ids.Incarnation
	Seq    uint64
}

// Tail is a partition as the end of a stream has it.
type Tail struct {
	Held
	// Batches are those that objects of the stream have, by offset, each in the
	// newest object that has it. Some may be tiered, or below the log start.
	Batches []Placed
}

// State is what a stream says of its partitions.
type State struct {
	Stream ids.Incarnation
	// First and End bound the objects that it was read from: [First, End).
	First, End uint64
	Tails      map[ids.TopicPartition]*Tail
	Released   map[ids.TopicPartition]Release
}

// fold computes the state of a stream from the footers of its objects, in order
// and without a gap, from the lowest present one on.
func fold(stream ids.Incarnation, fs []*Footer) (*State, error) {
	st := &State{Stream: stream, Tails: map[ids.TopicPartition]*Tail{}, Released: map[ids.TopicPartition]Release{}}
	if len(fs) == 0 {
		return st, nil
	}
	last := fs[len(fs)-1]
	st.First, st.End = fs[0].Seq, last.Seq+1
	at := last.CheckpointAt
	if at < st.First || at > last.Seq || fs[at-st.First].Checkpoint == nil {
		return nil, fmt.Errorf("%w: stream %s: object %d names a checkpoint in %d, but it has none", contract.ErrDamaged, stream, last.Seq, at)
	}
	from := fs[at-st.First]
	for _, h := range from.Checkpoint.Held {
		st.accept(Acceptance(h))
	}
	for _, r := range from.Checkpoint.Released {
		st.Released[r.TP] = r
	}
	for _, f := range fs[at-st.First+1:] {
		st.apply(f)
	}
	for _, f := range fs {
		for _, b := range f.Batches {
			if t := st.Tails[b.TP]; t != nil {
				t.Batches = append(t.Batches, Placed{b, stream, f.Seq})
				t.End = max(t.End, b.Last+1)
			}
		}
	}
	for _, t := range st.Tails {
		t.order()
	}
	return st, nil
}

func (st *State) accept(a Acceptance) {
	st.Tails[a.TP] = &Tail{Held: Held(a)}
	delete(st.Released, a.TP)
}

func (st *State) apply(f *Footer) {
	for _, a := range f.Acceptances {
		st.accept(a)
	}
	for _, l := range f.LogStarts {
		if t := st.Tails[l.TP]; t != nil {
			t.LogStart = max(t.LogStart, l.Offset)
		}
	}
	for _, r := range f.Releases {
		delete(st.Tails, r.TP)
		st.Released[r.TP] = r
	}
}

// Merge joins batches of a partition that several streams have, each once, by offset.
func Merge(a, b []Placed) []Placed {
	t := Tail{Batches: slices.Concat(a, b)}
	t.order()
	return t.Batches
}

// order sorts the batches by offset; of one that was carried forward the newest place counts.
func (t *Tail) order() {
	slices.SortStableFunc(t.Batches, func(a, b Placed) int {
		if c := cmp.Compare(a.Base, b.Base); c != 0 {
			return c
		}
		return cmp.Compare(b.Seq, a.Seq)
	})
	t.Batches = slices.CompactFunc(t.Batches, func(a, b Placed) bool { return a.Base == b.Base })
}
