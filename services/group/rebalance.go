package group

import "time"

// minWait is the least time between two attempts to end a join phase.
const minWait = time.Second

// rebalance begins a rebalance, or goes on with the one under way.
func (c *Coordinator) rebalance(g *group, reason string, now time.Time, fx *Effects) {
	if g.state == PreparingRebalance {
		c.maybeComplete(g, now, fx)
		return
	}
	c.prepare(g, reason, now, fx)
}

// prepare begins the join phase. Members that wait for their assignment must
// join again; a group that was empty waits for more members first.
func (c *Coordinator) prepare(g *group, reason string, now time.Time, fx *Effects) {
	if g.state == CompletingRebalance {
		c.syncFailed(g, ErrRebalanceInProgress, now, fx)
	}
	for m := g.first; m != nil; m = m.next {
		g.synced(m)
	}
	g.syncBy, g.storing = time.Time{}, 0
	g.initial = g.state == Empty
	g.reason = reason
	g.to(PreparingRebalance, now)
	c.rebalances++
	switch {
	case g.initial && c.cfg.InitialRebalanceDelay > 0:
		g.newMember, g.delay = false, c.cfg.InitialRebalanceDelay
		g.remaining = max(g.rebalanceTimeout()-g.delay, 0)
		c.joinUntil(g, now.Add(g.delay))
	case g.initial, g.allJoined():
		c.completeJoin(g, now, fx)
	default:
		c.joinUntil(g, now.Add(g.rebalanceTimeout()))
	}
}

func (c *Coordinator) joinUntil(g *group, t time.Time) {
	g.joinBy = t
	c.arm(g, t)
}

// joinTimeout ends the join phase, or extends the first delay of a group while
// members are being added, up to the rebalance timeout.
func (c *Coordinator) joinTimeout(g *group, now time.Time, fx *Effects) {
	if g.initial && g.newMember && g.remaining > 0 {
		delay := min(c.cfg.InitialRebalanceDelay, g.remaining)
		g.newMember, g.remaining, g.delay = false, max(g.remaining-g.delay, 0), delay
		c.joinUntil(g, now.Add(delay))
		return
	}
	c.completeJoin(g, now, fx)
}

// maybeComplete ends the join phase if there is nobody left to wait for.
func (c *Coordinator) maybeComplete(g *group, now time.Time, fx *Effects) {
	if g.state == PreparingRebalance && !g.initial && g.allJoined() {
		c.completeJoin(g, now, fx)
	}
}

// completeJoin begins the next generation with those that joined, and with
// static members, who keep their place until their session ends.
func (c *Coordinator) completeJoin(g *group, now time.Time, fx *Effects) {
	g.joinBy = time.Time{}
	for _, m := range g.list() {
		if m.join == 0 && m.instance == "" {
			g.remove(m)
		}
	}
	if len(g.members) == 0 {
		c.emptied(g, now, fx)
		return
	}
	if !g.electJoined() { // only static members, and none of them is here
		c.joinUntil(g, now.Add(max(g.rebalanceTimeout(), minWait)))
		return
	}
	g.generation++
	g.initial = false
	g.protocol = g.vote()
	g.subscribe()
	g.to(CompletingRebalance, now)
	for m := g.first; m != nil; m = m.next {
		c.answerJoin(g, m, g.joined(m), fx)
		c.touch(g, m, now)
		m.isNew, m.pendingSync = false, true
	}
	g.pendingSync = len(g.members)
	g.syncBy = now.Add(g.rebalanceTimeout())
	c.arm(g, g.syncBy)
}

// emptied ends a rebalance that nobody joined.
func (c *Coordinator) emptied(g *group, now time.Time, fx *Effects) {
	g.generation++
	g.initial = false
	g.protocol, g.leader = "", ""
	g.subscribe()
	g.to(Empty, now)
	c.write(fx, g, []Record{g.record(nil)}, g.markStored)
}

func (g *group) markStored(err error, _ time.Time, _ *Effects) {
	g.stored = g.stored || err == nil
}

// syncFailed takes all assignments back and answers who waits for one.
func (c *Coordinator) syncFailed(g *group, err error, now time.Time, fx *Effects) {
	for m := g.first; m != nil; m = m.next {
		m.assignment = nil
		if m.sync != 0 {
			c.answerSync(m, &SyncResponse{Err: err}, fx)
			c.touch(g, m, now)
		}
	}
}

// expire does for a group what is due.
func (c *Coordinator) expire(g *group, now time.Time, fx *Effects) {
	for id, until := range g.pending {
		if !until.After(now) {
			delete(g.pending, id)
		}
	}
	var gone []*member
	for m := g.first; m != nil; m = m.next {
		if m.expired(now) {
			gone = append(gone, m)
		}
	}
	for _, m := range gone {
		// An earlier one may have ended the join phase, and this one with it.
		if g.members[m.id] == m && m.expired(now) {
			c.evict(g, m, fx)
			c.left(g, "session of member "+m.id+" ended", now, fx)
		}
	}
	c.maybeComplete(g, now, fx)
	if !g.joinBy.IsZero() && !g.joinBy.After(now) {
		c.joinTimeout(g, now, fx)
	}
	if !g.syncBy.IsZero() && !g.syncBy.After(now) {
		c.syncTimeout(g, now, fx)
	}
	c.drop(g)
}

// evict takes a member out and answers its requests. Its client, if it is
// still there, joins again with a new id.
func (c *Coordinator) evict(g *group, m *member, fx *Effects) {
	c.answerJoin(g, m, &JoinResponse{Err: ErrUnknownMemberID, Generation: -1}, fx)
	c.answerSync(m, &SyncResponse{Err: ErrUnknownMemberID}, fx)
	g.remove(m)
}

// left goes on after members were taken out.
func (c *Coordinator) left(g *group, reason string, now time.Time, fx *Effects) {
	switch g.state {
	case Stable, CompletingRebalance:
		c.prepare(g, because(reason, ""), now, fx)
	case PreparingRebalance:
		c.maybeComplete(g, now, fx)
	}
}

// syncTimeout takes out the members that did not ask for their assignment.
func (c *Coordinator) syncTimeout(g *group, now time.Time, fx *Effects) {
	g.syncBy = time.Time{}
	if g.pendingSync == 0 {
		return
	}
	for _, m := range g.list() {
		if m.pendingSync {
			c.evict(g, m, fx)
		}
	}
	c.left(g, "members did not sync in time", now, fx)
}

// Of a group of manyMembers, sessions and pending ids end up to manyPause late:
// each look at it goes over all of them.
const (
	manyMembers = 1000
	manyPause   = 100 * time.Millisecond
)

// nextWake is when something may be due in the group.
func (g *group) nextWake(now time.Time) (t time.Time, ok bool) {
	at := func(u time.Time) {
		if !u.IsZero() && (!ok || u.Before(t)) {
			t, ok = u, true
		}
	}
	for _, u := range g.pending {
		at(u)
	}
	for m := g.first; m != nil; m = m.next {
		if m.isNew || m.join == 0 && m.sync == 0 {
			at(m.deadline)
		}
	}
	if soon := now.Add(manyPause); ok && t.Before(soon) && len(g.members)+len(g.pending) >= manyMembers {
		t = soon
	}
	at(g.joinBy)
	at(g.syncBy)
	return t, ok
}
