package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/group"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/lock"
)

// OffsetsTopic is the internal topic that holds consumer groups and their
// committed offsets. Clients may read it; only Groups writes it.
const OffsetsTopic = "__consumer_offsets"

// TransactionsTopic is the name that Kafka keeps for the state of transactions.
const TransactionsTopic = "__transaction_state"

// IsInternal tells whether a topic is the cluster's own: clients are told so,
// and may not make, write, change or delete it. As in Kafka these are two names;
// others that begin with __ are like any.
func IsInternal(topic string) bool { return topic == OffsetsTopic || topic == TransactionsTopic }

// GroupOptions of the consumer groups; zero values mean the defaults.
type GroupOptions struct {
	// Partitions of OffsetsTopic when it is created; default 50.
	Partitions int32
	// Config of the coordinators; its NewID and MaxRecordBytes are not used.
	Config group.Config
	// ExpireInterval is how often expired offsets are removed; default 10 min.
	ExpireInterval time.Duration
	now            func() time.Time // the broker's clock
}

func (o *GroupOptions) setDefaults() {
	if o.Partitions <= 0 {
		o.Partitions = 50
	}
	if o.ExpireInterval <= 0 {
		o.ExpireInterval = 10 * time.Minute
	}
	if o.now == nil {
		o.now = time.Now
	}
}

// Groups coordinates the consumer groups of this agent: one coordinator for
// each partition of OffsetsTopic that it leads. A partition is loaded when it
// is first asked for; until then its groups answer ErrGroupsLoading. Its
// methods may be called from several goroutines.
type Groups struct {
	b      *Broker
	o      GroupOptions
	ctx    context.Context // ends when close begins
	cancel context.CancelFunc
	wg     sync.WaitGroup // of groupPartition.run

	creating lock.Mutex

	mu     sync.Mutex
	parts  map[ids.TopicPartition]*groupPartition
	closed bool
}

func newGroups(b *Broker, o GroupOptions) (*Groups, error) {
	o.now = b.opts.Now
	o.setDefaults()
	o.Config.NewID = newMemberID
	if _, err := group.New(o.Config); err != nil {
		return nil, err
	}
	g := &Groups{b: b, o: o, parts: map[ids.TopicPartition]*groupPartition{}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g, nil
}

// newMemberID is a random UUID, as members' ids end with in Kafka.
func newMemberID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// close gives all partitions up: requests that wait are answered. It may be
// called again.
func (g *Groups) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	g.wg.Wait()
}

// maxRecordBytes is the most that a group's record may take in the log.
const maxRecordBytes = 16 << 20

// Ensure makes OffsetsTopic if it is not there.
func (g *Groups) Ensure(ctx context.Context) (*Topic, error) {
	if t := g.b.Topic(OffsetsTopic); t != nil {
		return t, nil
	}
	g.creating.Lock()
	defer g.creating.Unlock()
	if t := g.b.Topic(OffsetsTopic); t != nil {
		return t, nil
	}
	store, err := g.b.storeOf(g.b.opts.Meta.Defaults().Durability())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", group.ErrCoordinatorNotAvailable, err)
	}
	compact, remote, keep, segment, message := "compact", "true", "false", "104857600", strconv.Itoa(min(maxRecordBytes+recordRoom, store.MaxBatch()))
	_, err = g.b.CreateTopic(ctx, metadata.CreateTopic{Name: OffsetsTopic, Partitions: g.o.Partitions, ReplicationFactor: -1,
		Configs: map[string]*string{"cleanup.policy": &compact, "remote.storage.enable": &remote, "remote.log.copy.disable": &keep, "segment.bytes": &segment, "max.message.bytes": &message}})
	if err != nil && !errors.Is(err, metadata.ErrTopicExists) {
		g.b.opts.Logger.Warn("the topic of consumer groups can't be created", "topic", OffsetsTopic, "err", err)
		return nil, fmt.Errorf("%w: create %s: %w", group.ErrCoordinatorNotAvailable, OffsetsTopic, err)
	}
	if t := g.b.Topic(OffsetsTopic); t != nil {
		return t, nil
	}
	return nil, group.ErrCoordinatorNotAvailable
}

// of returns the partition of a group; the first call for it starts its load.
func (g *Groups) of(ctx context.Context, groupID string) (*groupPartition, error) {
	t, err := g.Ensure(ctx)
	if err != nil {
		return nil, err
	}
	p, err := g.part(t, group.PartitionFor(groupID, t.Partitions))
	if errors.Is(err, ErrNotLeader) {
		err = group.ErrNotCoordinator
	}
	return p, err
}

func (g *Groups) part(t *Topic, n int32) (*groupPartition, error) {
	log, err := g.b.Partition(t.ID, n)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed, !log.bound && !g.b.live():
		return nil, group.ErrNotCoordinator
	case log.leaving.Load():
		return nil, ErrNotLeader
	}
	p := g.parts[log.ID()]
	if p == nil {
		ctx, stop := context.WithCancel(g.ctx)
		p = newGroupPartition(ctx, &g.o, partitionLog{log}, g.b.opts.Logger.With("partition", n), func(topic string) bool { return g.b.Topic(topic) != nil })
		p.stop, p.ended = stop, make(chan struct{})
		g.parts[log.ID()] = p
		g.wg.Go(func() {
			defer close(p.ended)
			p.run()
		})
	}
	return p, nil
}

// giveUp stops the coordinators of partitions that leave: requests that wait are answered, and
// the last writes end. When a partition is led again it is loaded anew.
func (g *Groups) giveUp(tps []ids.TopicPartition) {
	var stopped []*groupPartition
	g.mu.Lock()
	for _, tp := range tps {
		if p := g.parts[tp]; p != nil {
			delete(g.parts, tp)
			p.stop()
			stopped = append(stopped, p)
		}
	}
	g.mu.Unlock()
	for _, p := range stopped {
		<-p.ended
	}
}

// topicDeleted removes the offsets of a topic. Partitions that are not loaded
// find out when they are.
func (g *Groups) topicDeleted(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.parts {
		_ = p.with(func(c *group.Coordinator, _ time.Time) group.Effects { return c.DropTopic(name) })
	}
}

// Find returns the node that coordinates a group; if it is this one the
// coordinator is prepared for the requests that follow.
func (g *Groups) Find(ctx context.Context, groupID string) (node int32, err error) {
	t, err := g.Ensure(ctx)
	if err != nil {
		return -1, err
	}
	n := group.PartitionFor(groupID, t.Partitions)
	if _, err = g.part(t, n); errors.Is(err, ErrNotLeader) {
		err = nil
	}
	node, _ = g.b.Leader(t, n)
	return node, err
}

// request calls the coordinator for one request.
type request = func(c *group.Coordinator, t group.Ticket, now time.Time) group.Effects

// ask sends a request to the coordinator of a group and waits for its answer,
// or until wait ends. ctx bounds what comes before.
func ask[R group.Response](ctx, wait context.Context, g *Groups, groupID string, call request) (none R, err error) {
	p, err := g.of(ctx, groupID)
	if err != nil {
		return none, err
	}
	r, err := p.ask(ctx, wait, call)
	if err != nil {
		return none, err
	}
	return r.(R), nil
}

// Join takes part in a group. It may wait as long as the join phase lasts, or
// until ctx ends.
func (g *Groups) Join(ctx context.Context, req group.JoinRequest) (*group.JoinResponse, error) {
	return ask[*group.JoinResponse](ctx, ctx, g, req.GroupID, func(c *group.Coordinator, t group.Ticket, now time.Time) group.Effects {
		return c.Join(t, req, now)
	})
}

// Sync asks for a member's assignment. It may wait for the leader's, or until
// ctx ends.
func (g *Groups) Sync(ctx context.Context, req group.SyncRequest) (*group.SyncResponse, error) {
	return ask[*group.SyncResponse](ctx, ctx, g, req.GroupID, func(c *group.Coordinator, t group.Ticket, now time.Time) group.Effects {
		return c.Sync(t, req, now)
	})
}

// Heartbeat keeps a member's session.
func (g *Groups) Heartbeat(ctx context.Context, req group.HeartbeatRequest) error {
	p, err := g.of(ctx, req.GroupID)
	if err == nil {
		err = p.ready(ctx)
	}
	if err != nil {
		return err
	}
	var answer error
	err = p.with(func(c *group.Coordinator, now time.Time) (fx group.Effects) {
		answer = c.Heartbeat(req, now)
		return fx
	})
	return errors.Join(err, answer)
}

// Leave takes members out of a group.
func (g *Groups) Leave(ctx context.Context, req group.LeaveRequest) (*group.LeaveResponse, error) {
	return ask[*group.LeaveResponse](ctx, context.WithoutCancel(ctx), g, req.GroupID, func(c *group.Coordinator, t group.Ticket, now time.Time) group.Effects {
		return c.Leave(t, req, now)
	})
}

// Commit stores offsets; they are durable when it returns.
func (g *Groups) Commit(ctx context.Context, req group.CommitRequest) (*group.CommitResponse, error) {
	return ask[*group.CommitResponse](ctx, context.WithoutCancel(ctx), g, req.GroupID, func(c *group.Coordinator, t group.Ticket, now time.Time) group.Effects {
		return c.Commit(t, req, now)
	})
}

// FetchOffsets reads committed offsets; without topics, all that the group has.
// Those of an earlier topic of the same name are not told.
func (g *Groups) FetchOffsets(ctx context.Context, req group.FetchRequest) ([]group.FetchTopic, error) {
	p, err := g.of(ctx, req.GroupID)
	if err == nil {
		err = p.ready(ctx)
	}
	if err != nil {
		return nil, err
	}
	var out []group.FetchTopic
	err = p.with(func(c *group.Coordinator, _ time.Time) (fx group.Effects) {
		if req.Topics != nil {
			out = c.FetchOffsets(req)
			return fx
		}
		out = c.FetchOffsets(g.living(c.FetchOffsets(req), req))
		for i := range out {
			out[i].Partitions = committed(out[i].Partitions)
		}
		return fx
	})
	return out, err
}

// living is the request for the same offsets, of topics that there are now.
func (g *Groups) living(found []group.FetchTopic, req group.FetchRequest) group.FetchRequest {
	req.Topics = []group.TopicPartitions{}
	for _, f := range found {
		t := g.b.Topic(f.Name)
		if t == nil {
			continue
		}
		tp := group.TopicPartitions{Name: f.Name, ID: group.TopicID(t.ID)}
		for _, p := range f.Partitions {
			tp.Partitions = append(tp.Partitions, p.Partition)
		}
		req.Topics = append(req.Topics, tp)
	}
	return req
}

func committed(in []group.FetchPartition) (out []group.FetchPartition) {
	for _, p := range in {
		if p.Offset >= 0 || p.Err != nil {
			out = append(out, p)
		}
	}
	return out
}

// DeleteOffsets removes committed offsets of topics that the group does not
// consume now.
func (g *Groups) DeleteOffsets(ctx context.Context, req group.OffsetDeleteRequest) (*group.OffsetDeleteResponse, error) {
	return ask[*group.OffsetDeleteResponse](ctx, context.WithoutCancel(ctx), g, req.GroupID, func(c *group.Coordinator, t group.Ticket, now time.Time) group.Effects {
		return c.DeleteOffsets(t, req, now)
	})
}

// Delete removes a group without members and its offsets.
func (g *Groups) Delete(ctx context.Context, groupID string) error {
	r, err := ask[*group.DeleteResponse](ctx, context.WithoutCancel(ctx), g, groupID, func(c *group.Coordinator, t group.Ticket, now time.Time) group.Effects {
		return c.Delete(t, groupID, now)
	})
	if err != nil {
		return err
	}
	return r.Err
}

// Describe returns what is known of a group; one that does not exist is
// described as Dead, with group.ErrGroupIDNotFound.
func (g *Groups) Describe(ctx context.Context, groupID string) (group.Description, error) {
	p, err := g.of(ctx, groupID)
	if err == nil {
		err = p.ready(ctx)
	}
	if err != nil {
		return group.Description{GroupID: groupID}, err
	}
	var d group.Description
	var answer error
	err = p.with(func(c *group.Coordinator, _ time.Time) (fx group.Effects) {
		d, answer = c.Describe(groupID)
		return fx
	})
	return d, errors.Join(err, answer)
}

// List names the groups in the given states and of the given types; none given
// means all. With ErrGroupsLoading the list lacks some.
func (g *Groups) List(ctx context.Context, states, types []string) ([]group.Listed, error) {
	t := g.b.Topic(OffsetsTopic)
	if t == nil {
		return nil, nil
	}
	parts := make([]*groupPartition, t.Partitions)
	for n := range parts { // all begin to load
		var err error
		if parts[n], err = g.part(t, int32(n)); err != nil && !errors.Is(err, ErrNotLeader) {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, loadWait)
	defer cancel()
	var out []group.Listed
	var first error
	for _, p := range parts {
		if p == nil { // another agent's
			continue
		}
		err := p.ready(ctx)
		if err == nil {
			err = p.with(func(c *group.Coordinator, _ time.Time) (fx group.Effects) {
				out = append(out, c.List(states, types)...)
				return fx
			})
		}
		if first == nil {
			first = err
		}
	}
	return out, first
}
