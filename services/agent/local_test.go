package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// disk is a data directory with an id.
func (c *moveCluster) disk(n byte) moveDisk {
	return moveDisk{id: ids.DiskID{n, 0xd}, dir: filepath.Join(c.dir, fmt.Sprintf("disk-%d", n)), node: int32(n)}
}

// until waits for a condition.
func (c *moveCluster) until(what string, f func() bool) {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("not in time: %s", what)
		}
	}
}

// kill ends an agent at once; its disk can be started on.
func (n *moveNode) kill() {
	n.die()
	n.close()
}

// onNode are the partitions of a topic that the agent leads, by their number.
func (n *moveNode) onNode(id ids.TopicID, partitions int32) map[int32]*broker.Partition {
	out := map[int32]*broker.Partition{}
	for _, tp := range n.led(id, partitions) {
		out[tp.Partition], _ = n.broker.Partition(id, tp.Partition)
	}
	return out
}

// Partitions of class local stay with their disk: when its agent dies nobody leads them, while those of class
// object go on elsewhere, and the next start on the disk goes on with all that was
// acknowledged, under a greater leader epoch.
func TestLocalStaysWithItsDisk(t *testing.T) {
	c := newMoveCluster(t, 600*time.Millisecond)
	a, b := c.startOn(true, c.disk(1)), c.startOn(true, c.disk(2))
	c.until("the first agent knows the second", func() bool { return len(a.meta.Agents()) == 2 })
	const parts = 12 // more than one may be given
	object, local := c.create(a, "o", parts), c.create(a, "l", parts, "durability", "local")
	mine := a.onNode(local, parts)
	if len(mine) == 0 || len(mine) == parts {
		t.Fatalf("the first agent leads %d of %d", len(mine), parts)
	}
	c.write(local, parts, func() {
		for _, start := range []string{"first", "second"} {
			a.kill()
			c.until("the object partitions have other leaders", func() bool { return len(b.led(object, parts)) == parts })
			c.until("nobody leads what is on the disk", func() bool {
				for p := range mine {
					if node, _ := broker.NewLeaders(b.meta).Leader(local, p); node >= 0 {
						return false
					}
				}
				return true
			})
			if got := b.onNode(local, parts); len(got) != parts-len(mine) {
				t.Errorf("%s: the other agent leads %d", start, len(got))
			}
			a = c.startOn(true, c.disk(1))
			c.until("the disk's partitions are led again", func() bool { return len(a.led(local, parts)) == len(mine) })
			now := a.onNode(local, parts)
			for p, before := range mine {
				if now[p] == nil || now[p].LeaderEpoch() != before.LeaderEpoch()+1 {
					t.Errorf("%s: partition %d has epoch %v after %d", start, p, now[p], before.LeaderEpoch())
				}
			}
			mine = now
			time.Sleep(100 * time.Millisecond) // for some more records
		}
	})
	for p, part := range mine {
		if _, err := part.DeleteRecords(t.Context(), int64(p)+3); err != nil {
			t.Fatal(err)
		}
	}
	a.kill()
	a = c.startOn(true, c.disk(1))
	c.until("the disk's partitions are led again", func() bool { return len(a.led(local, parts)) == len(mine) })
	for p, part := range a.onNode(local, parts) {
		if r := part.Read(t.Context(), broker.ReadOptions{Offset: int64(p) + 3, CurrentEpoch: -1, LastFetchedEpoch: -1}); r.LogStart != int64(p)+3 || r.Err != nil {
			t.Errorf("partition %d begins at %d after the restart, want %d: %v", p, r.LogStart, p+3, r.Err)
		}
	}
}

// Without the metadata store, and without puts of its own, an agent answers for partitions of class local as long as
// it runs: nobody else can lead them. For those of class object it does so within its lease.
func TestLocalNeedsNoLease(t *testing.T) {
	c := newMoveCluster(t, 600*time.Millisecond)
	c.leases = true
	a := c.startOn(true, c.disk(1))
	object, local := c.create(a, "o", 1), c.create(a, "l", 1, "durability", "local")
	write := func(id ids.TopicID, seq int32) error {
		_, err := (&writer{c: c, tp: ids.TopicPartition{Topic: id}, pid: 5}).once(c.nodes, seq)
		return err
	}
	read := func(id ids.TopicID) error {
		p, err := a.broker.Partition(id, 0)
		if err != nil {
			t.Fatal(err)
		}
		return p.Read(t.Context(), broker.ReadOptions{MaxBytes: 1 << 20, CurrentEpoch: -1, LastFetchedEpoch: -1}).Err
	}
	if err := errors.Join(write(object, 0), write(local, 0), read(object), read(local)); err != nil {
		t.Fatal(err)
	}
	a.away.Store(true)
	c.until("the lease has ended", func() bool { return !a.manager.Live() })
	if err := read(object); !errors.Is(err, broker.ErrNotLeader) {
		t.Errorf("a read of class object without a lease: %v", err)
	}
	if err := errors.Join(write(local, 1), read(local)); err != nil {
		t.Errorf("class local without a lease: %v", err)
	}
	a.away.Store(false)
}

// A drain leaves partitions of class local where they are, nobody else takes them, and the next
// start on the disk goes on.
func TestDrainLeavesLocal(t *testing.T) {
	c := newMoveCluster(t, 600*time.Millisecond)
	a, b := c.startOn(false, c.disk(1)), c.startOn(false, c.disk(2))
	const parts = 4
	object, local := c.create(a, "o", parts), c.create(a, "l", parts, "durability", "local")
	mine := a.onNode(local, parts)
	c.write(local, parts, func() {
		if err := a.manager.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(b.led(object, parts)); n != parts {
			t.Errorf("after the drain the other leads %d of class object", n)
		}
		if n := len(a.led(local, parts)); n != len(mine) {
			t.Errorf("after the drain %d of class local are led, before %d", n, len(mine))
		}
		a.kill()
		again := c.startOn(false, c.disk(1))
		c.until("the disk's partitions are led again", func() bool { return len(again.led(local, parts)) == len(mine) })
	})
}

// Who joins gets partitions of class object only.
func TestRebalanceLeavesLocal(t *testing.T) {
	c := newMoveCluster(t, 600*time.Millisecond)
	a := c.startOn(false, c.disk(1))
	const parts = 8
	object, local := c.create(a, "o", parts), c.create(a, "l", parts, "durability", "local")
	b := c.startOn(false, c.disk(2))
	c.until("partitions move", func() bool { return len(b.led(object, parts)) == parts })
	time.Sleep(2 * time.Second) // two more rounds
	if n := len(a.led(local, parts)); n != parts {
		t.Errorf("%d of %d partitions of class local have moved", parts-n, parts)
	}
	if a.local.Opened() == nil || b.local.Opened() != nil {
		t.Error("the store of class local is to be open where there is such a partition, and only there")
	}
}

// forgetSegments removes the rows of a partition's segments.
func (c *moveCluster) forgetSegments(id ids.TopicID, partition int32) {
	c.t.Helper()
	rows, err := c.kv.Range(c.t.Context(), fmt.Sprintf("seg/%s/%d/", id, partition), "", 100, false)
	if err != nil || len(rows) == 0 {
		c.t.Fatalf("%d rows, %v", len(rows), err)
	}
	for _, it := range rows {
		if _, err := c.kv.Commit(c.t.Context(), []kv.Op{{Key: it.Key, Delete: true}}, nil); err != nil {
			c.t.Fatal(err)
		}
	}
}

// abandonable brings up two agents with tiered and untiered records of class local, and kills the first.
func abandonable(t *testing.T) (c *moveCluster, b *moveNode, id ids.TopicID, lost map[int32]*broker.Partition, tiered map[int32]int64) {
	c = newMoveCluster(t, 600*time.Millisecond)
	a, b := c.startOn(true, c.disk(1)), c.startOn(true, c.disk(2))
	const parts = 6
	id = c.create(a, "l", parts, "durability", "local")
	c.write(id, parts, func() {})
	if err := errors.Join(a.broker.Roll("l"), b.broker.Roll("l")); err != nil {
		t.Fatal(err)
	}
	lost, tiered = a.onNode(id, parts), map[int32]int64{}
	c.until("what is closed is tiered", func() bool {
		for p, part := range lost {
			row, ok, err := b.meta.LastSegment(t.Context(), part.ID())
			if err != nil || !ok {
				return false
			}
			tiered[p] = row.Last + 1
		}
		return true
	})
	for _, part := range lost {
		w := &writer{c: c, tp: part.ID(), pid: 77}
		for seq := range int32(5) {
			if _, err := w.once(c.nodes, seq); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := b.manager.AbandonDisk(t.Context(), c.disk(1).id); !errors.Is(err, lead.ErrDiskInUse) {
		t.Fatalf("a disk whose agent lives: %v", err)
	}
	a.kill()
	return c, b, id, lost, tiered
}

// What was abandoned goes on at another agent behind what is tiered, readers can see where
// the log was cut, and who starts on the disk is refused, at any moment.
func TestAbandonDisk(t *testing.T) {
	c, b, id, lost, tiered := abandonable(t)
	for p := range lost { // as if its agent had died between the put and the row
		c.forgetSegments(id, p)
	}
	if _, err := b.manager.AbandonDisk(t.Context(), ids.DiskID{9}); !errors.Is(err, lead.ErrUnknownDisk) {
		t.Errorf("an unknown disk: %v", err)
	}
	if _, err := b.manager.AbandonDisk(t.Context(), c.disk(2).id); !errors.Is(err, lead.ErrDiskInUse) {
		t.Errorf("its own disk: %v", err)
	}
	c.until("the disk can be abandoned", func() bool {
		_, err := b.manager.AbandonDisk(t.Context(), c.disk(1).id)
		return err == nil
	})
	c.until("the partitions have another leader", func() bool { return len(b.led(id, 6)) == 6 })
	for p, before := range lost {
		now, err := b.broker.Partition(id, p)
		if err != nil {
			t.Fatal(err)
		}
		if now.LeaderEpoch() <= before.LeaderEpoch() {
			t.Errorf("partition %d: epoch %d after %d", p, now.LeaderEpoch(), before.LeaderEpoch())
		}
		if high := now.Read(t.Context(), broker.ReadOptions{Offset: tiered[p], CurrentEpoch: -1, LastFetchedEpoch: -1}).HighWatermark; high != tiered[p] {
			t.Errorf("partition %d ends at %d, tiered is it to %d", p, high, tiered[p])
		}
		r := now.Read(t.Context(), broker.ReadOptions{Offset: tiered[p] + 3, MaxBytes: 1 << 20, CurrentEpoch: -1, LastFetchedEpoch: -1})
		if !errors.Is(r.Err, broker.ErrOffsetOutOfRange) {
			t.Errorf("partition %d: a read of what is lost: %v", p, r.Err)
		}
		e, err := now.EpochEnd(t.Context(), before.LeaderEpoch())
		if err != nil || e.EndOffset != tiered[p] || e.Epoch != before.LeaderEpoch() {
			t.Errorf("partition %d: the old epoch ends at %+v, %v", p, e, err)
		}
		base, err := (&writer{c: c, tp: now.ID(), pid: 78}).once(c.nodes, 0)
		if err != nil || base != tiered[p] {
			t.Errorf("partition %d: the next record has offset %d, %v", p, base, err)
		}
	}
	if r, err := b.manager.AbandonDisk(t.Context(), c.disk(1).id); err != nil || !r.Abandoned() {
		t.Errorf("the second time: %+v, %v", r, err)
	}
	again := c.startOn(true, c.disk(1))
	c.until("the abandoned disk is refused", func() bool { return again.abandoned.Load() != nil })
	if err := *again.abandoned.Load(); !errors.Is(err, lead.ErrDiskAbandoned) {
		t.Errorf("it is refused with %v", err)
	}
	if n := len(again.led(id, 6)); n != 0 {
		t.Errorf("the abandoned disk leads %d partitions", n)
	}
}

// Of a start on the disk and its being abandoned at the same time one counts.
func TestAbandonWhileDiskStarts(t *testing.T) {
	c, b, id, lost, _ := abandonable(t)
	c.until("the disk is sealed", func() bool { return len(b.meta.Sealed()) == 1 })
	done := make(chan error, 1)
	go func() {
		_, err := b.manager.AbandonDisk(t.Context(), c.disk(1).id)
		done <- err
	}()
	again := c.startOn(true, c.disk(1))
	err := <-done
	c.until("all have one leader", func() bool { return len(b.led(id, 6))+len(again.led(id, 6)) == 6 })
	time.Sleep(time.Second)
	kept := len(again.led(id, 6))
	t.Logf("abandon: %v; %d partitions are on the disk", err, kept)
	switch {
	case len(b.led(id, 6))+kept != 6:
		t.Errorf("%d and %d of 6 partitions are led", len(b.led(id, 6)), kept)
	case err == nil && (kept != 0 || again.abandoned.Load() == nil):
		t.Errorf("abandoned, and %d partitions are led on it", kept)
	case err != nil && (!errors.Is(err, lead.ErrDiskInUse) || kept != len(lost)):
		t.Errorf("not abandoned (%v), and %d of %d partitions are led on it", err, kept, len(lost))
	}
}

// Who is given partitions of an abandoned disk may die before accepting them: they go on to
// others like anything that was given, still as new partitions of class local behind what is tiered.
func TestAbandonToTheDying(t *testing.T) {
	c, b, id, lost, tiered := abandonable(t)
	dying := c.startOn(true, c.disk(3))
	c.until("the disk is sealed", func() bool { return len(b.meta.Sealed()) == 1 && len(b.meta.Agents()) == 2 })
	dying.kill()
	r, err := b.manager.AbandonDisk(t.Context(), c.disk(1).id)
	if err != nil {
		t.Fatal(err)
	}
	given := 0
	for _, p := range r.Partitions {
		if p.To == dying.inc {
			given++
		}
	}
	if given == 0 {
		t.Fatalf("%d of %d partitions were given to the dying one", given, len(r.Partitions)) // it leads least
	}
	c.until("the partitions have another leader", func() bool { return len(b.led(id, 6)) == 6 })
	for p := range lost {
		now, err := b.broker.Partition(id, p)
		if err != nil {
			t.Fatal(err)
		}
		if base, err := (&writer{c: c, tp: now.ID(), pid: 78}).once(c.nodes, 0); err != nil || base != tiered[p] {
			t.Errorf("partition %d: the next record has offset %d, %v; tiered is it to %d", p, base, err, tiered[p])
		}
	}
	b.kill()
	again := c.startOn(true, c.disk(2))
	c.until("they are on the disk of who took them", func() bool { return len(again.led(id, 6)) == 6 })
}
