package group

import (
	"maps"
	"time"
)

// replaceStatic gives the place of a static member to a new run of its client
// (KIP-345). Whoever waits under the old member id is fenced.
func (c *Coordinator) replaceStatic(t Ticket, g *group, m *member, id string, req *JoinRequest, now time.Time, fx *Effects) {
	old, wasLeader := *m, g.leader
	c.answerJoin(g, m, &JoinResponse{Err: ErrFencedInstanceID, Generation: -1, MemberID: m.id}, fx)
	c.answerSync(m, &SyncResponse{Err: ErrFencedInstanceID}, fx)
	g.rename(m, id)
	m.isNew = false
	g.update(m, req)
	c.setJoin(g, m, t, fx)
	c.touch(g, m, now)

	reason := because("static member "+m.instance+" returns", req.Reason)
	switch g.state {
	case Stable:
		if g.vote() != g.protocol || g.topicsChanged(&old, m) {
			c.prepare(g, reason, now, fx)
			return
		}
		c.storeStatic(t, g, m, &old, wasLeader, req.Version >= 9, fx)
	case CompletingRebalance:
		// The leader may be assigning to the old member id just now.
		c.prepare(g, reason, now, fx)
	default:
		c.maybeComplete(g, now, fx)
	}
}

// storeStatic writes the new member id before its client is told.
func (c *Coordinator) storeStatic(t Ticket, g *group, m, old *member, wasLeader string, canSkip bool, fx *Effects) {
	id, generation := m.id, g.generation
	c.write(fx, g, []Record{g.record(nil)}, func(err error, now time.Time, fx *Effects) {
		if g.members[id] != m || m.join != t || g.state != Stable || g.generation != generation {
			return // it waits for a rebalance now, or was replaced again
		}
		if err != nil {
			c.answerJoin(g, m, &JoinResponse{Err: storeError(err), Generation: -1}, fx)
			g.rename(m, old.id)
			g.count(m, -1)
			m.protocols = old.protocols
			g.count(m, 1)
			m.session, m.rebalance = old.session, old.rebalance
			m.clientID, m.clientHost = old.clientID, old.clientHost
			c.touch(g, m, now)
			return
		}
		r := g.joined(m)
		if canSkip {
			r.SkipAssignment = g.leader == m.id
		} else {
			// An old client that learnt that it leads would assign anew.
			r.Leader, r.Members = wasLeader, nil
		}
		c.answerJoin(g, m, r, fx)
		c.touch(g, m, now)
	})
}

func (g *group) rename(m *member, id string) {
	delete(g.members, m.id)
	if g.leader == m.id {
		g.leader = id
	}
	m.id = id
	g.members[id] = m
}

// topicsChanged says whether a consumer came back with other topics, so that
// the assignment it would get does not fit. Metadata itself may differ in what
// an assignor notes there.
func (g *group) topicsChanged(old, m *member) bool {
	if g.protocolType != ConsumerType {
		return false
	}
	a, b := map[string]struct{}{}, map[string]struct{}{}
	if !subscription(old.metadata(g.protocol), a) || !subscription(m.metadata(g.protocol), b) {
		return false
	}
	return !maps.Equal(a, b)
}
