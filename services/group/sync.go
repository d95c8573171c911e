package group

import (
	"bytes"
	"time"
)

// Sync asks for the member's assignment in the current generation; the leader
// brings all of them with it. The answer comes when the assignments are
// written.
func (c *Coordinator) Sync(t Ticket, req SyncRequest, now time.Time) (fx Effects) {
	g, m, err := c.member(req.GroupID, req.MemberID, req.InstanceID, req.Generation)
	switch {
	case err != nil:
	case differs(req.ProtocolType, g.protocolType), differs(req.ProtocolName, g.protocol):
		err = ErrInconsistentGroupProtocol
	case g.state == PreparingRebalance:
		err = ErrRebalanceInProgress
	case g.state == CompletingRebalance && m.id == g.leader && g.storing == 0:
		err = c.assign(g, &req, now, &fx)
	}
	if err != nil {
		fx.Answers = append(fx.Answers, Answer{t, &SyncResponse{Err: err}})
		return fx
	}
	g.synced(m)
	if g.pendingSync == 0 {
		g.syncBy = time.Time{}
	}
	// A sync that waited already is answered: its client sent another.
	c.answerSync(m, &SyncResponse{Err: ErrRebalanceInProgress}, &fx)
	m.sync = t
	if g.state == Stable {
		c.answerAssigned(g, m, &fx)
		c.touch(g, m, now)
	}
	return fx
}

// differs compares a protocol field that old clients do not send.
func differs(given, is string) bool { return given != "" && is != "" && given != is }

func (c *Coordinator) answerAssigned(g *group, m *member, fx *Effects) {
	c.answerSync(m, &SyncResponse{ProtocolType: g.protocolType, ProtocolName: g.protocol, Assignment: m.assignment}, fx)
}

// member finds who sends a request in the current generation.
func (c *Coordinator) member(groupID, memberID, instance string, generation int32) (*group, *member, error) {
	if groupID == "" || len(groupID) > MaxString {
		return nil, nil, ErrInvalidGroupID
	}
	g := c.groups[groupID]
	if g == nil || g.state == Empty {
		return nil, nil, ErrUnknownMemberID
	}
	if g.state == Dead {
		return nil, nil, ErrCoordinatorNotAvailable
	}
	m, err := g.check(memberID, instance)
	if err != nil {
		return nil, nil, err
	}
	if generation != g.generation {
		return nil, nil, ErrIllegalGeneration
	}
	return g, m, nil
}

// assign writes the leader's assignments; the group is stable when they are
// durable. Members that the leader left out get nothing. With assignments that
// do not fit in a record the group rebalances, as in Kafka.
func (c *Coordinator) assign(g *group, req *SyncRequest, now time.Time, fx *Effects) error {
	given := make(map[string][]byte, len(g.members))
	for _, a := range req.Assignments {
		if _, ok := g.members[a.MemberID]; ok {
			given[a.MemberID] = bytes.Clone(a.Data)
		}
	}
	record := g.record(given)
	if len(record.Value) > c.cfg.MaxRecordBytes {
		c.touch(g, g.members[req.MemberID], now)
		c.syncFailed(g, ErrRecordTooLarge, now, fx)
		c.prepare(g, "the assignments are too large", now, fx)
		return ErrRecordTooLarge
	}
	var w *pendingWrite
	w = c.write(fx, g, []Record{record}, func(err error, now time.Time, fx *Effects) {
		g.markStored(err, now, fx)
		if g.storing == w.id {
			c.assigned(g, given, err, now, fx)
		}
	})
	g.storing = w.id
	return nil
}

// assigned goes on when the assignments of the current generation are written
// or failed.
func (c *Coordinator) assigned(g *group, given map[string][]byte, err error, now time.Time, fx *Effects) {
	g.storing = 0
	if err != nil {
		c.syncFailed(g, storeError(err), now, fx)
		c.prepare(g, "the assignment could not be stored", now, fx)
		return
	}
	for m := g.first; m != nil; m = m.next {
		m.assignment = given[m.id]
		if m.sync != 0 {
			c.answerAssigned(g, m, fx)
			c.touch(g, m, now)
		}
	}
	g.to(Stable, now)
}

// Heartbeat keeps a member's session. ErrRebalanceInProgress tells the member
// to join again.
func (c *Coordinator) Heartbeat(req HeartbeatRequest, now time.Time) error {
	g, m, err := c.member(req.GroupID, req.MemberID, req.InstanceID, req.Generation)
	if err != nil {
		return err
	}
	c.touch(g, m, now)
	if g.state == PreparingRebalance {
		return ErrRebalanceInProgress
	}
	return nil
}

// Leave takes members out. An administrator names static members by instance
// id alone.
func (c *Coordinator) Leave(t Ticket, req LeaveRequest, now time.Time) (fx Effects) {
	r := &LeaveResponse{}
	g := c.groups[req.GroupID]
	switch {
	case req.GroupID == "" || len(req.GroupID) > MaxString:
		r.Err = ErrInvalidGroupID
	case g == nil:
		r.Err = ErrUnknownMemberID
	case g.state == Dead:
		r.Err = ErrCoordinatorNotAvailable
	}
	if r.Err != nil {
		fx.Answers = append(fx.Answers, Answer{t, r})
		return fx
	}
	reason, before := "", len(g.members)
	for _, l := range req.Members {
		err := c.leave(g, l, &fx)
		if err == nil {
			reason = because("member "+l.MemberID+l.InstanceID+" left", l.Reason)
		}
		r.Members = append(r.Members, LeaveResult{l.MemberID, l.InstanceID, err})
	}
	if len(g.members) < before {
		c.left(g, reason, now, &fx)
	}
	c.maybeComplete(g, now, &fx) // a pending member may have been the last to wait for
	c.answerAfter(Answer{t, r}, &fx)
	c.drop(g)
	return fx
}

// answerAfter sends an answer when the writes of these effects are done.
func (c *Coordinator) answerAfter(a Answer, fx *Effects) {
	if len(fx.Writes) == 0 {
		fx.Answers = append(fx.Answers, a)
		return
	}
	last := c.writes[len(c.writes)-1]
	last.answers = append(last.answers, a)
}

func (c *Coordinator) leave(g *group, l LeaveMember, fx *Effects) error {
	if l.MemberID == "" {
		m := g.statics[l.InstanceID]
		if l.InstanceID == "" || m == nil {
			return ErrUnknownMemberID
		}
		c.evict(g, m, fx)
		return nil
	}
	if _, ok := g.pending[l.MemberID]; ok {
		delete(g.pending, l.MemberID)
		return nil
	}
	m, err := g.check(l.MemberID, l.InstanceID)
	if err != nil {
		return err
	}
	c.evict(g, m, fx)
	return nil
}
