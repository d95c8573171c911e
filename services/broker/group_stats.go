package broker

import (
	"time"

	"github.com/cirrolog/cirrolog/services/group"
)

// loadedParts are the partitions that are in use, in no order.
func (g *Groups) loadedParts() []*groupPartition {
	g.mu.Lock()
	defer g.mu.Unlock()
	parts := make([]*groupPartition, 0, len(g.parts))
	for _, p := range g.parts {
		parts = append(parts, p)
	}
	return parts
}

// Committed yields the committed offsets of the groups that are loaded, those
// of a group together, until yield returns false. It copies nothing: a
// partition of OffsetsTopic is locked while its offsets are yielded, so that
// yield must be quick and must not call Groups. An offset of a topic that was
// deleted and made again may have the TopicID of the earlier one.
func (g *Groups) Committed(yield func(group.Committed) bool) {
	for _, p := range g.loadedParts() {
		more := true
		_ = p.with(func(c *group.Coordinator, _ time.Time) (fx group.Effects) { // not loaded: has none yet
			c.Offsets(func(o group.Committed) bool {
				more = yield(o)
				return more
			})
			return fx
		})
		if !more {
			return
		}
	}
}

// Stats sums up the coordinators that are loaded. Rebalances begin at 0 when a
// partition is loaded.
func (g *Groups) Stats() group.Stats {
	sum := group.Stats{Groups: map[group.State]int{}}
	for _, p := range g.loadedParts() {
		_ = p.with(func(c *group.Coordinator, _ time.Time) (fx group.Effects) {
			s := c.Stats()
			for state, n := range s.Groups {
				sum.Groups[state] += n
			}
			sum.Members += s.Members
			sum.Offsets += s.Offsets
			sum.Rebalances += s.Rebalances
			sum.Writes += s.Writes
			return fx
		})
	}
	return sum
}
