package group

import (
	"bytes"
	"time"
)

func joinError(t Ticket, memberID string, err error) Answer {
	return Answer{t, &JoinResponse{Err: err, Generation: -1, MemberID: memberID}}
}

// Join takes part in a group. The answer may come at once, or when the join
// phase ends. A new dynamic member is answered ErrMemberIDRequired and a
// member id, with which it has to join again.
func (c *Coordinator) Join(t Ticket, req JoinRequest, now time.Time) (fx Effects) {
	g, err := c.checkJoin(&req)
	switch {
	case err == nil && req.MemberID == "":
		c.joinNew(t, g, &req, now, &fx)
	case err == nil:
		err = c.joinKnown(t, g, &req, now, &fx)
	case err == ErrGroupMaxSizeReached:
		c.turnAway(g, &req, now, &fx)
	}
	if err != nil {
		fx.Answers = append(fx.Answers, joinError(t, req.MemberID, err))
	}
	c.drop(g)
	return fx
}

// checkJoin refuses what no group would take, and finds or makes the group.
// With ErrGroupMaxSizeReached it returns the group too.
func (c *Coordinator) checkJoin(req *JoinRequest) (*group, error) {
	if req.GroupID == "" || len(req.GroupID) > MaxString {
		return nil, ErrInvalidGroupID
	}
	if req.SessionTimeout < c.cfg.MinSessionTimeout || req.SessionTimeout > c.cfg.MaxSessionTimeout {
		return nil, ErrInvalidSessionTimeout
	}
	if req.RebalanceTimeout < 0 {
		req.RebalanceTimeout = req.SessionTimeout
	}
	size := 0
	for _, p := range req.Protocols {
		size += len(p.Name) + len(p.Metadata)
		if len(p.Name) > MaxString {
			return nil, ErrInvalidRequest
		}
	}
	// A member id is made of one of these and a random id.
	for _, s := range []string{req.ClientID, req.InstanceID, req.MemberID, req.ClientHost, req.ProtocolType} {
		if len(s) > MaxString-64 {
			return nil, ErrInvalidRequest
		}
	}
	if size > c.cfg.MaxMemberBytes || len(req.Protocols) > MaxProtocols {
		return nil, ErrInvalidRequest
	}
	if g := c.groups[req.GroupID]; g != nil {
		return c.admit(g, req, size)
	}
	if req.MemberID != "" {
		return nil, ErrUnknownMemberID
	}
	if req.ProtocolType == "" || len(req.Protocols) == 0 {
		return nil, ErrInconsistentGroupProtocol
	}
	return c.group(req.GroupID)
}

// admit refuses what this group does not take. Members of a group that is too
// large are kept as long as they wait already: the last to rejoin must go.
func (c *Coordinator) admit(g *group, req *JoinRequest, size int) (*group, error) {
	if g.state == Dead {
		return nil, ErrCoordinatorNotAvailable
	}
	m := g.members[req.MemberID]
	if m == nil && req.MemberID == "" && req.InstanceID != "" {
		m = g.statics[req.InstanceID]
	}
	full := false
	switch {
	case g.state == PreparingRebalance:
		full = (m == nil || m.join == 0) && g.awaiting >= c.cfg.MaxSize
	case m == nil:
		full = len(g.members) >= c.cfg.MaxSize
	}
	if m == nil && req.MemberID == "" {
		full = full || len(g.pending) >= c.cfg.MaxSize
	}
	if m != nil {
		size -= m.bytes()
	}
	if full || size > 0 && g.bytes+size > c.cfg.MaxGroupBytes {
		return g, ErrGroupMaxSizeReached
	}
	if !g.accepts(req.ProtocolType, req.Protocols) {
		return nil, ErrInconsistentGroupProtocol
	}
	return g, nil
}

// turnAway takes out who has no place in a full group any more: an id that was
// given out, or a member that is the last to rejoin a group that is too large.
func (c *Coordinator) turnAway(g *group, req *JoinRequest, now time.Time, fx *Effects) {
	delete(g.pending, req.MemberID)
	if m, err := g.check(req.MemberID, req.InstanceID); err == nil {
		c.evict(g, m, fx)
		c.left(g, "member "+req.MemberID+" was turned away", now, fx)
	}
	c.maybeComplete(g, now, fx)
}

func (c *Coordinator) joinNew(t Ticket, g *group, req *JoinRequest, now time.Time, fx *Effects) {
	if req.InstanceID != "" {
		id := req.InstanceID + "-" + c.cfg.NewID()
		if old := g.statics[req.InstanceID]; old != nil {
			c.replaceStatic(t, g, old, id, req, now, fx)
		} else {
			c.addMember(t, g, id, req, now, fx)
		}
		return
	}
	id := req.ClientID + "-" + c.cfg.NewID()
	if req.Version < 4 {
		c.addMember(t, g, id, req, now, fx)
		return
	}
	if g.pending == nil {
		g.pending = map[string]time.Time{}
	}
	g.pending[id] = now.Add(req.SessionTimeout)
	c.arm(g, g.pending[id])
	fx.Answers = append(fx.Answers, joinError(t, id, ErrMemberIDRequired))
}

func (c *Coordinator) joinKnown(t Ticket, g *group, req *JoinRequest, now time.Time, fx *Effects) error {
	if _, ok := g.pending[req.MemberID]; ok {
		if req.InstanceID != "" {
			return ErrUnknownMemberID // a static member is given no id in advance
		}
		c.addMember(t, g, req.MemberID, req, now, fx)
		return nil
	}
	m, err := g.check(req.MemberID, req.InstanceID)
	if err != nil {
		return err
	}
	same := m.matches(req.Protocols)
	switch {
	case g.state == Empty:
		return ErrUnknownMemberID
	case g.state == CompletingRebalance && same, g.state == Stable && same && g.leader != m.id:
		// Nothing changed: perhaps the last answer was lost.
		c.setJoin(g, m, t, fx)
		c.answerJoin(g, m, g.joined(m), fx)
		c.touch(g, m, now)
		return nil
	}
	// The leader may see changes which its own metadata does not show.
	g.update(m, req)
	c.setJoin(g, m, t, fx)
	c.rebalance(g, because("member "+m.id+" joins again", req.Reason), now, fx)
	return nil
}

func because(what, reason string) string {
	if reason != "" {
		what += ": " + reason
	}
	return what[:min(len(what), maxReason)]
}

// cloneProtocols keeps the first of protocols with the same name.
func cloneProtocols(from []Protocol) []Protocol {
	out := make([]Protocol, 0, len(from))
	for _, p := range from {
		double := false
		for i := range out {
			double = double || out[i].Name == p.Name
		}
		if !double {
			out = append(out, Protocol{p.Name, bytes.Clone(p.Metadata)})
		}
	}
	return out
}

// update gives a member what it joins with.
func (g *group) update(m *member, req *JoinRequest) {
	g.count(m, -1)
	m.protocols = cloneProtocols(req.Protocols)
	g.count(m, 1)
	m.session, m.rebalance = req.SessionTimeout, req.RebalanceTimeout
	m.clientID, m.clientHost = req.ClientID, req.ClientHost
}

func (c *Coordinator) addMember(t Ticket, g *group, id string, req *JoinRequest, now time.Time, fx *Effects) {
	m := &member{id: id, instance: req.InstanceID, isNew: true,
		clientID: req.ClientID, clientHost: req.ClientHost,
		session: req.SessionTimeout, rebalance: req.RebalanceTimeout, protocols: cloneProtocols(req.Protocols)}
	if len(g.members) == 0 {
		g.protocolType = req.ProtocolType
	}
	if g.state == PreparingRebalance && g.initial {
		g.newMember = true
	}
	g.add(m)
	c.setJoin(g, m, t, fx)
	// Its client may not know its id yet and cannot send heartbeats.
	m.deadline = now.Add(c.cfg.NewMemberJoinTimeout)
	c.arm(g, m.deadline)
	c.rebalance(g, because("member "+id+" joins", req.Reason), now, fx)
}

// setJoin makes a member wait for the answer to its join. A join that waited
// already is answered: its client sent another.
func (c *Coordinator) setJoin(g *group, m *member, t Ticket, fx *Effects) {
	c.answerJoin(g, m, &JoinResponse{Err: ErrRebalanceInProgress, Generation: -1, MemberID: m.id}, fx)
	m.join = t
	g.awaiting++
}

func (c *Coordinator) answerJoin(g *group, m *member, r *JoinResponse, fx *Effects) {
	if m.join != 0 {
		fx.Answers = append(fx.Answers, Answer{m.join, r})
		m.join = 0
		g.awaiting--
	}
}

func (c *Coordinator) answerSync(m *member, r *SyncResponse, fx *Effects) {
	if m.sync != 0 {
		fx.Answers = append(fx.Answers, Answer{m.sync, r})
		m.sync = 0
	}
}

// joined is what a member of the current generation is told.
func (g *group) joined(m *member) *JoinResponse {
	r := &JoinResponse{Generation: g.generation, ProtocolType: g.protocolType, ProtocolName: g.protocol,
		Leader: g.leader, MemberID: m.id}
	if g.leader == m.id {
		r.Members = make([]JoinMember, 0, len(g.members))
		for o := g.first; o != nil; o = o.next {
			r.Members = append(r.Members, JoinMember{o.id, o.instance, o.metadata(g.protocol)})
		}
	}
	return r
}

// touch starts a member's session anew.
func (c *Coordinator) touch(g *group, m *member, now time.Time) {
	m.deadline = now.Add(m.session)
	c.arm(g, m.deadline)
}
