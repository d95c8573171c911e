package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// rows are all rows of the metadata store with these prefixes.
func (c *moveCluster) rows(prefixes ...string) (out []kv.Item) {
	c.t.Helper()
	for _, prefix := range prefixes {
		for after := ""; ; {
			items, err := c.kv.Range(c.t.Context(), prefix, after, 1000, false)
			if err != nil {
				c.t.Fatal(err)
			}
			if len(items) == 0 {
				break
			}
			out = append(out, items...)
			after = items[len(items)-1].Key
		}
	}
	return out
}

// rollBack makes the rows what they were.
func (c *moveCluster) rollBack(to []kv.Item, prefixes ...string) {
	c.t.Helper()
	for _, it := range c.rows(prefixes...) {
		if !slices.ContainsFunc(to, func(o kv.Item) bool { return o.Key == it.Key }) {
			if _, err := c.kv.Commit(c.t.Context(), []kv.Op{{Key: it.Key, Delete: true}}, nil); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	c.restore(to)
}

// same waits until the metadata store knows again what it knew.
func (c *moveCluster) same(want []kv.Item, prefixes ...string) {
	c.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		have := c.rows(prefixes...)
		i := slices.IndexFunc(want, func(w kv.Item) bool {
			return !slices.ContainsFunc(have, func(h kv.Item) bool {
				dated := strings.HasPrefix(w.Key, "agent/") || strings.HasPrefix(w.Key, "sealed/")
				return h.Key == w.Key && (dated || string(h.Value) == string(w.Value))
			})
		})
		if i < 0 {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("row %s = %s has not come back", want[i].Key, want[i].Value)
		}
	}
}

// A metadata store that comes back without its last writes is mended by those who know: agents, leaders,
// seals and the index of what was tiered lately; nothing is lost for those who read the index.
func TestMetadataRolledBack(t *testing.T) {
	prefixes := []string{"agent/", "part/", "seg/", "sealed/"}
	c := newMoveCluster(t, time.Second)
	a, b := c.start(true), c.start(true)
	const partitions = 4
	id := c.create(a, "t", partitions)
	old := c.rows(prefixes...)
	third := c.start(true)
	c.gather(a, id, partitions)
	c.write(id, partitions, func() {
		time.Sleep(time.Second) // some is tiered
		third.die()
		for end := time.Now().Add(10 * time.Second); len(b.meta.Sealed()) == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		for _, n := range []*moveNode{a, b} {
			n.away.Store(true)
		}
		time.Sleep(400 * time.Millisecond) // less than a lease, more than a renewal
		now := c.rows(prefixes...)
		if len(now) < len(old)+partitions {
			t.Errorf("%d rows, before there were %d", len(now), len(old))
		}
		c.rollBack(old, prefixes...)
		for _, n := range []*moveNode{a, b} {
			n.away.Store(false)
		}
		c.same(now, prefixes...)
	})
}

// What is lost without anybody noticing comes back with the next checkpoint.
func TestCheckpointAsserts(t *testing.T) {
	c := newMoveCluster(t, 3*time.Second)
	a, b := c.start(true), c.start(true)
	const partitions = 2
	id := c.create(a, "t", partitions)
	c.gather(b, id, partitions)
	c.write(id, partitions, func() {
		for p := range int32(partitions) {
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
				if _, ok, err := b.meta.LastSegment(t.Context(), ids.TopicPartition{Topic: id, Partition: p}); err != nil || ok {
					break
				}
			}
		}
		now := append(c.forget("seg/"), c.forget("part/")...)
		if len(now) < 2*partitions {
			t.Errorf("only %d rows were forgotten", len(now))
		}
		c.same(now, "seg/", "part/")
	})
}
