package lead

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
)

func agents(n int) (out []Candidate) {
	for i := range n {
		out = append(out, Candidate{Incarnation: ids.NewIncarnation(), Node: int32(i + 1)})
	}
	return out
}

func partitions(n int) (out []ids.TopicPartition) {
	for i := range n {
		out = append(out, ids.TopicPartition{Topic: ids.TopicID{byte(i % 7), 1}, Partition: int32(i)})
	}
	return out
}

// No agent gets more than a quarter above its share, whoever has what before; when an
// agent goes, only its partitions move.
func TestPlaceIsBoundedAndStable(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		as := agents(1 + rng.IntN(9))
		for i := range as {
			as[i].Load = rng.IntN(50)
		}
		tps := partitions(1 + rng.IntN(500))
		got := Place(tps, as)
		total, load := len(tps), map[ids.Incarnation]int{}
		for _, a := range as {
			total += a.Load
			load[a.Incarnation] = a.Load
		}
		share := (total + len(as) - 1) / len(as)
		for _, inc := range got {
			if load[inc]++; load[inc] > share+share/slack+1 {
				t.Fatalf("%d of %d partitions for one of %d agents", load[inc], total, len(as))
			}
		}
		if again := Place(tps, as); !slices.Equal(got, again) {
			t.Fatal("the same question has two answers")
		}
	}
	as := agents(5)
	tps := partitions(1000)
	before := Place(tps, as)
	dead := as[2].Incarnation
	after := Place(tps, slices.Delete(slices.Clone(as), 2, 3))
	moved := 0
	for i := range tps {
		if before[i] != dead && before[i] != after[i] {
			moved++
		}
	}
	if moved > len(tps)/10 { // a few, as the bounds are others
		t.Errorf("%d of %d partitions of living agents have another place", moved, len(tps))
	}
	if Place(tps, nil) != nil {
		t.Error("without agents there is a place")
	}
}

// A lease is dead when it was seen unchanged for its full length without a gap, and
// neither the store's opinion nor a jump of its counter to nothing shortens or prolongs that.
func TestObserver(t *testing.T) {
	inc, start := ids.NewIncarnation(), time.Now()
	o := NewObserver(3 * time.Second)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	for _, step := range []struct {
		at      float64
		counter uint64
		held    bool
		lost    bool
		dead    bool
	}{
		{at: 0, counter: 5, held: true}, {at: 1, counter: 6, held: true}, {at: 3.9, counter: 6, held: true},
		{at: 4.1, counter: 6, held: true, dead: true}, // unchanged since 1, though the store calls it alive
		{at: 4.2, counter: 7, held: true}, {at: 6, counter: 0}, {at: 7.1, counter: 0}, {at: 7.3, counter: 0, dead: true},
		{at: 8, counter: 8, held: true}, {at: 9, lost: true}, {at: 11.5, counter: 8, held: true}, // what was in between nobody knows
		{at: 14.4, counter: 8}, {at: 14.6, counter: 8, dead: true},
	} {
		if step.lost {
			o.Lost()
			continue
		}
		if dead := o.Seen(inc, step.counter, step.held, at(step.at)); dead != step.dead {
			t.Fatalf("at %v: dead %v, want %v", step.at, dead, step.dead)
		}
	}
	o.Forget(inc)
	if o.Seen(inc, 8, false, at(100)) {
		t.Error("dead at first sight")
	}
}

// One's own lease ends a margin before the others may judge it, and lives on while puts succeed.
func TestOwnLease(t *testing.T) {
	start := time.Now()
	o := NewOwn(3*time.Second, 300*time.Millisecond)
	if o.Live(start) {
		t.Error("live before the first renewal")
	}
	o.Renewed(start)
	o.Renewed(start.Add(-time.Second)) // an answer that came late
	if !o.Live(start.Add(2600*time.Millisecond)) || o.Live(start.Add(2800*time.Millisecond)) {
		t.Error("the lease does not end its margin early")
	}
	o.Put(start.Add(2 * time.Second))
	if !o.Live(start.Add(4600*time.Millisecond)) || o.Live(start.Add(4800*time.Millisecond)) {
		t.Error("a put does not count")
	}
}
