package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// stream lists what the bucket has of a stream, without its prefix.
func (c *moveCluster) stream(inc ids.Incarnation) (out []string) {
	c.t.Helper()
	objects, _, err := c.bucket.List(c.t.Context(), wal.Prefix+string(inc)+"/", "", 1000)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, o := range objects {
		out = append(out, strings.TrimPrefix(o.Key, wal.Prefix+string(inc)+"/"))
	}
	return out
}

// swept sweeps until do is content with what is left of a stream.
func (c *moveCluster) swept(n *moveNode, inc ids.Incarnation, content func(left []string) bool) {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := n.broker.Sweeper().Streams(c.t.Context()); err != nil {
			c.t.Fatal(err)
		}
		left := c.stream(inc)
		if content(left) {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("left of the sealed stream are %v", left)
		}
	}
}

// After a failover the dead agent's stream shrinks to its seal when the heirs have tiered what it has;
// before that nothing of a partition goes that is not tiered, whatever the metadata store has forgotten.
func TestSealedStreamIsSwept(t *testing.T) {
	c := newMoveCluster(t, time.Second)
	a, b := c.start(true), c.start(true)
	const partitions = 3
	id := c.create(a, "t", partitions)
	c.gather(a, id, partitions)
	slow := ids.TopicPartition{Topic: id, Partition: 1}
	for _, n := range c.nodes {
		n.bucket.Add(objstore.FaultRule{Method: objstore.MethodPut, Prefix: tiering.PartitionPrefix(slow), Kind: objstore.FaultThrottle, Probability: 1})
	}
	inc := a.incarnation()
	c.write(id, partitions, func() {
		time.Sleep(500 * time.Millisecond) // some are tiered before
		a.die()
	})
	s, err := wal.ReadSealed(t.Context(), c.bucket, c.cluster(), inc)
	if err != nil || s == nil || len(s.Tails[slow].Batches) == 0 {
		t.Fatalf("sealed: %+v, %v", s, err)
	}
	sweep := func() {
		t.Helper()
		for range 3 {
			if _, err := b.broker.Sweeper().Streams(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.tiered(b, s, ids.TopicPartition{Topic: id})
	c.tiered(b, s, ids.TopicPartition{Topic: id, Partition: 2})
	sweep()
	for _, p := range s.Tails[slow].Batches {
		if _, err := c.bucket.Head(t.Context(), wal.Key(p.Stream, p.Seq)); err != nil {
			t.Fatalf("offset %d is not tiered and its object is gone: %v", p.Base, err)
		}
	}
	b.bucket.Clear()
	c.tiered(b, s, slow)
	before := c.stream(inc)
	for _, prefix := range []string{"seg/", "part/"} {
		rows := c.forget(prefix)
		sweep()
		if left := c.stream(inc); len(left) != len(before) {
			t.Errorf("%d of %d objects are left after the metadata store forgot %d rows of %s", len(left), len(before), len(rows), prefix)
		}
		c.restore(rows)
	}
	c.swept(b, inc, func(left []string) bool { return len(left) == 2 && left[1] == "sealed" })
	c.start(true) // it reads the seal, too
	for p := range int32(partitions) {
		w := &writer{c: c, tp: ids.TopicPartition{Topic: id, Partition: p}}
		_, led := c.leader(w.tp)
		w.acked.Store(led.Read(t.Context(), broker.ReadOptions{CurrentEpoch: -1, LastFetchedEpoch: -1}).HighWatermark)
		c.check(w)
	}
}

// tiered waits until all that a sealed stream has of a partition is indexed.
func (c *moveCluster) tiered(n *moveNode, s *wal.Sealed, tp ids.TopicPartition) {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		row, ok, err := n.meta.LastSegment(c.t.Context(), tp)
		if err != nil {
			c.t.Fatal(err)
		}
		if ok && row.Last+1 >= s.Tails[tp].End {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("%s is tiered up to %d, want %d", tp, row.Last, s.Tails[tp].End)
		}
	}
}

// forget removes rows of the metadata store and returns them.
func (c *moveCluster) forget(prefix string) (out []kv.Item) {
	c.t.Helper()
	out, err := c.kv.Range(c.t.Context(), prefix, "", 100, false)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, it := range out {
		if _, err := c.kv.Commit(c.t.Context(), []kv.Op{{Key: it.Key, Delete: true}}, nil); err != nil {
			c.t.Fatal(err)
		}
	}
	return out
}

func (c *moveCluster) restore(items []kv.Item) {
	c.t.Helper()
	for _, it := range items {
		if _, err := c.kv.Commit(c.t.Context(), []kv.Op{{Key: it.Key, Value: it.Value}}, nil); err != nil {
			c.t.Fatal(err)
		}
	}
}

// Segments are listed by one agent of the cluster, and by another when that is dead.
func TestSegmentsAreSweptByOne(t *testing.T) {
	c := newMoveCluster(t, time.Second)
	c.sweep = 50 * time.Millisecond
	sweeps := func(n *moveNode) func() int64 {
		id := n.bucket.Add(objstore.FaultRule{Method: objstore.MethodList, Prefix: tiering.DataPrefix, Kind: objstore.FaultLatency, Probability: 1})
		return func() int64 { return n.bucket.Hits(id) }
	}
	first := c.start(true)
	byFirst := sweeps(first)
	some := func(what string, of func() int64) {
		t.Helper()
		for end, from := time.Now().Add(20*time.Second), of(); of() < from+3; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s swept %d times", what, of()-from)
			}
		}
	}
	some("one agent", byFirst)
	second := c.start(true)
	bySecond := sweeps(second)
	some("the first of two", byFirst)
	time.Sleep(2 * c.sweep)
	if n := bySecond(); n > 0 {
		t.Errorf("the second agent swept %d times beside the first", n)
	}
	first.die()
	some("the second after the first died", bySecond)
}
