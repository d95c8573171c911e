package group

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

func compareKeys(a, b key) int {
	return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.partition, b.partition))
}

// sorted returns the ids of all groups in order, so that what is done for all
// groups is done in the same order every time.
func (c *Coordinator) sorted() []string {
	ids := make([]string, 0, len(c.groups))
	for id := range c.groups {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Delete removes a group without members and its offsets.
func (c *Coordinator) Delete(t Ticket, groupID string, _ time.Time) (fx Effects) {
	r := &DeleteResponse{}
	g := c.groups[groupID]
	switch {
	case g == nil || g.state == Dead:
		r.Err = ErrGroupIDNotFound
	case g.state != Empty:
		r.Err = ErrNonEmptyGroup
	}
	if r.Err != nil {
		fx.Answers = append(fx.Answers, Answer{t, r})
		return fx
	}
	w := c.delete(g, &fx, func(err error, fx *Effects) {
		if err != nil {
			failed(r, storeError(err))
		}
		fx.Answers = append(fx.Answers, Answer{t, r})
	})
	if w != nil {
		w.unload = Answer{t, r}
	}
	return fx
}

// delete removes an empty group. It is Dead until that is written, and empty
// again if that fails. It returns nil if there was nothing in the log.
func (c *Coordinator) delete(g *group, fx *Effects, then func(error, *Effects)) *pendingWrite {
	var records []Record
	for _, t := range g.allOffsets(true) {
		for _, p := range t.Partitions {
			records = append(records, offsetRecord(g.id, key{t.Name, p}, nil))
		}
	}
	if g.stored || g.generation != 0 {
		records = append(records, Record{Key: groupKey(g.id)})
	}
	if len(records) == 0 {
		c.forget(g)
		then(nil, fx)
		return nil
	}
	g.state = Dead // since stays: it may become Empty again
	return c.write(fx, g, records, func(err error, _ time.Time, fx *Effects) {
		if err != nil {
			g.state = Empty
		} else {
			c.forget(g)
		}
		then(err, fx)
	})
}

// List names the groups in the given states and of the given types; none given
// means all. Names are compared without case.
func (c *Coordinator) List(states, types []string) []Listed {
	has := func(list []string, s string) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(e string) bool { return strings.EqualFold(e, s) })
	}
	var out []Listed
	if !has(types, Type) {
		return nil
	}
	for _, id := range c.sorted() {
		if g := c.groups[id]; has(states, g.state.String()) {
			out = append(out, Listed{GroupID: id, ProtocolType: g.protocolType, State: g.state})
		}
	}
	return out
}

// Describe returns what is known of a group. One that does not exist is
// described as Dead, with ErrGroupIDNotFound; old versions of DescribeGroups
// have no error for it.
func (c *Coordinator) Describe(groupID string) (Description, error) {
	g := c.groups[groupID]
	if g == nil {
		return Description{GroupID: groupID, State: Dead}, ErrGroupIDNotFound
	}
	d := Description{GroupID: groupID, ProtocolType: g.protocolType, State: g.state,
		Generation: g.generation, Leader: g.leader, Reason: g.reason}
	if g.state == Stable {
		d.Protocol = g.protocol
	}
	for m := g.first; m != nil; m = m.next {
		dm := DescribedMember{MemberID: m.id, InstanceID: m.instance, ClientID: m.clientID, ClientHost: m.clientHost}
		if g.state == Stable {
			dm.Metadata, dm.Assignment = m.metadata(g.protocol), m.assignment
		}
		d.Members = append(d.Members, dm)
	}
	return d, nil
}
