// Package group is the coordinator of consumer groups of Kafka's classic
// protocol, with their committed offsets, as a pure state machine: it has no
// network, disk, clock or goroutine of its own.
//
// A Coordinator serves the groups of one partition of the internal topic
// __consumer_offsets. Methods take the request, a Ticket to answer it by, and
// the time; they return Effects: records to append to that partition and
// answers to send. Answers that promise something durable come back from
// Written, when the caller has reported the write they depend on. The caller
// also calls Tick when Deadline has come. To take a partition over, it applies
// the partition's records in order with Apply and then calls Loaded; to give
// one up it calls Unload.
//
// Semantics are those of Kafka 4.3's ClassicGroup (KIP-62, 211, 345, 394, 814)
// and its records are the same bytes. It differs on purpose in this:
//   - A request that replaces another of the same member answers it with
//     ErrRebalanceInProgress, where Kafka forgets it; so does a member's removal
//     with ErrUnknownMemberID while it waits for its assignment.
//   - A leader that repeats its sync while the first is being written does not
//     write another assignment for the same generation.
//   - A static consumer that comes back with other topics starts a rebalance,
//     and finds its place in a group that is full.
//   - An id that was given out but never joined can leave without a rebalance.
//   - A group without a generation or an offset is not in the log; a group whose
//     deletion is being written is Dead and asks clients to retry.
//   - With RequireStable a commit that is being written is ErrUnstableOffsetCommit.
//   - Sizes are limited (Config), because requests are.
//
// Methods are not safe for concurrent use.
package group

import (
	"container/heap"
	"time"
)

// Coordinator of the groups of one partition.
type Coordinator struct {
	cfg        Config
	groups     map[string]*group
	wakes      wakes
	lastID     WriteID
	writes     []*pendingWrite // not yet reported or not yet applied, in order
	rebalances uint64
}

// pendingWrite is a write between Effects and Written. What a write changes
// here, it changes in the order of the log, whatever the order of reports.
type pendingWrite struct {
	id      WriteID
	group   *group
	done    bool
	err     error
	apply   func(err error, now time.Time, fx *Effects)
	unload  Answer   // that apply would send, for Unload; Ticket 0: none
	answers []Answer // sent after apply
}

// New makes a coordinator without groups.
func New(cfg Config) (*Coordinator, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	return &Coordinator{cfg: cfg, groups: map[string]*group{}}, nil
}

// write hands records to the caller; apply runs when they are written.
func (c *Coordinator) write(fx *Effects, g *group, records []Record, apply func(error, time.Time, *Effects)) *pendingWrite {
	c.lastID++
	w := &pendingWrite{id: c.lastID, group: g, apply: apply}
	c.writes = append(c.writes, w)
	g.writes++
	fx.Writes = append(fx.Writes, Write{ID: w.id, Records: records})
	return w
}

// Written reports that the records of a write are durable (err nil) or will
// never be. Writes may be reported in any order; they take effect in their
// own. Ids of unknown writes are ignored.
func (c *Coordinator) Written(id WriteID, err error, now time.Time) (fx Effects) {
	if len(c.writes) == 0 || id < c.writes[0].id || id > c.lastID {
		return fx
	}
	w := c.writes[id-c.writes[0].id] // ids are consecutive
	if w.done {
		return fx
	}
	w.done, w.err = true, err
	for len(c.writes) > 0 && c.writes[0].done {
		w, c.writes[0] = c.writes[0], nil
		c.writes = c.writes[1:]
		w.group.writes--
		w.apply(w.err, now, &fx)
		fx.Answers = append(fx.Answers, w.answers...)
		c.drop(w.group)
	}
	return fx
}

// drop forgets a group that has nothing in it and nothing in the log.
func (c *Coordinator) drop(g *group) {
	if g == nil || g.stored || g.generation != 0 || g.writes != 0 || g.state == PreparingRebalance ||
		len(g.members)+len(g.pending)+len(g.offsets)+len(g.flying) != 0 {
		return
	}
	c.forget(g)
}

func (c *Coordinator) forget(g *group) {
	if c.groups[g.id] == g {
		delete(c.groups, g.id)
	}
	if g.heap >= 0 {
		heap.Remove(&c.wakes, g.heap)
	}
}

// group finds a group, or makes it if there is room.
func (c *Coordinator) group(id string) (*group, error) {
	if g := c.groups[id]; g != nil {
		return g, nil
	}
	if len(c.groups) >= c.cfg.MaxGroups {
		return nil, ErrCoordinatorNotAvailable
	}
	g := newGroup(id)
	c.groups[id] = g
	return g, nil
}

// Loaded starts the life of what Apply has read: members have a session from
// now on, and a group that is larger than the limit is made to rejoin.
func (c *Coordinator) Loaded(now time.Time) (fx Effects) {
	for _, id := range c.sorted() {
		g := c.groups[id]
		for m := g.first; m != nil; m = m.next {
			c.touch(g, m, now)
		}
		if len(g.members) > c.cfg.MaxSize {
			c.prepare(g, "the group is larger than the limit", now, &fx)
		}
		c.drop(g)
	}
	return fx
}

// Unload gives the partition up. All requests that wait are answered, and the
// coordinator is empty: later calls find no group and make none, and reports of
// writes are ignored.
func (c *Coordinator) Unload() []Answer {
	var fx Effects
	for _, id := range c.sorted() {
		for _, m := range c.groups[id].list() {
			c.answerJoin(c.groups[id], m, &JoinResponse{Err: ErrNotCoordinator, Generation: -1, MemberID: m.id}, &fx)
			c.answerSync(m, &SyncResponse{Err: ErrNotCoordinator}, &fx)
		}
	}
	for _, w := range c.writes {
		if w.unload.Ticket != 0 {
			failed(w.unload.Response, ErrNotCoordinator)
			fx.Answers = append(fx.Answers, w.unload)
		}
		fx.Answers = append(fx.Answers, w.answers...)
	}
	c.groups, c.wakes, c.writes = map[string]*group{}, nil, nil
	c.cfg.MaxGroups = 0
	return fx.Answers
}

// failed puts the error into the response to a request whose write failed.
func failed(r Response, err error) {
	all := func(topics []TopicResult) {
		for _, t := range topics {
			for i := range t.Partitions {
				if t.Partitions[i].Err == nil {
					t.Partitions[i].Err = err
				}
			}
		}
	}
	switch r := r.(type) {
	case *CommitResponse:
		all(r.Topics)
	case *OffsetDeleteResponse:
		all(r.Topics)
	case *DeleteResponse:
		r.Err = err
	}
}

// Stats counts the groups, members and offsets.
func (c *Coordinator) Stats() Stats {
	s := Stats{Groups: map[State]int{}, Rebalances: c.rebalances, Writes: len(c.writes)}
	for _, g := range c.groups {
		s.Groups[g.state]++
		s.Members += len(g.members)
		for _, t := range g.offsets {
			s.Offsets += len(t)
		}
	}
	return s
}

// wakes is a heap of groups by the time at which something may be due. The
// time may be too early, never too late: heartbeats leave it as it is.
type wakes []*group

func (w wakes) Len() int           { return len(w) }
func (w wakes) Less(i, j int) bool { return w[i].wake.Before(w[j].wake) }
func (w wakes) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].heap, w[j].heap = i, j
}
func (w *wakes) Push(x any) {
	g := x.(*group)
	g.heap = len(*w)
	*w = append(*w, g)
}
func (w *wakes) Pop() any {
	old := *w
	g := old[len(old)-1]
	old[len(old)-1] = nil
	*w = old[:len(old)-1]
	g.heap = -1
	return g
}

// arm makes sure that the group is looked at when t has come.
func (c *Coordinator) arm(g *group, t time.Time) {
	if g.heap < 0 {
		g.wake = t
		heap.Push(&c.wakes, g)
	} else if t.Before(g.wake) {
		g.wake = t
		heap.Fix(&c.wakes, g.heap)
	}
}

// Deadline is when Tick has to be called next; false means not at all. It
// changes with every call of any other method.
func (c *Coordinator) Deadline() (time.Time, bool) {
	if len(c.wakes) == 0 {
		return time.Time{}, false
	}
	return c.wakes[0].wake, true
}

// Tick does what is due: sessions, pending joins, join and sync phases end.
func (c *Coordinator) Tick(now time.Time) (fx Effects) {
	for len(c.wakes) > 0 && !c.wakes[0].wake.After(now) {
		g := heap.Pop(&c.wakes).(*group)
		c.expire(g, now, &fx)
		if t, ok := g.nextWake(now); ok && c.groups[g.id] == g {
			c.arm(g, t)
		}
	}
	return fx
}
