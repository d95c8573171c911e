package kafka

import (
	"context"
	"sync/atomic"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
)

// fakeGroups is a Groups whose answers a test sets; it notes what it was asked.
type fakeGroups struct {
	err      error // of every method
	join     func(ctx context.Context, req group.JoinRequest) (*group.JoinResponse, error)
	sync     func(ctx context.Context, req group.SyncRequest) (*group.SyncResponse, error)
	leave    *group.LeaveResponse
	describe map[string]group.Description
	listed   []group.Listed
	offsets  map[string]map[string]map[int32]group.FetchPartition // by group, topic and partition

	commits  []group.CommitRequest
	deletes  []group.OffsetDeleteRequest
	fetches  []group.FetchRequest
	beats    []group.HeartbeatRequest
	leaves   []group.LeaveRequest
	ensured  atomic.Int32
	filtered [][]string
}

func (b *adminBroker) Groups() Groups { return &b.groups }

func (g *fakeGroups) Ensure(context.Context) (*broker.Topic, error) {
	g.ensured.Add(1)
	return nil, g.err
}
func (g *fakeGroups) Find(context.Context, string) (int32, error) { return 1, g.err }
func (g *fakeGroups) Join(ctx context.Context, req group.JoinRequest) (*group.JoinResponse, error) {
	if g.join == nil {
		return nil, group.ErrCoordinatorNotAvailable
	}
	return g.join(ctx, req)
}
func (g *fakeGroups) Sync(ctx context.Context, req group.SyncRequest) (*group.SyncResponse, error) {
	if g.sync == nil {
		return nil, group.ErrCoordinatorNotAvailable
	}
	return g.sync(ctx, req)
}
func (g *fakeGroups) Heartbeat(_ context.Context, req group.HeartbeatRequest) error {
	g.beats = append(g.beats, req)
	return g.err
}
func (g *fakeGroups) Leave(_ context.Context, req group.LeaveRequest) (*group.LeaveResponse, error) {
	g.leaves = append(g.leaves, req)
	if g.leave == nil {
		return &group.LeaveResponse{Err: group.ErrUnknownMemberID}, g.err
	}
	return g.leave, g.err
}

func (g *fakeGroups) Commit(_ context.Context, req group.CommitRequest) (*group.CommitResponse, error) {
	g.commits = append(g.commits, req)
	if g.err != nil {
		return nil, g.err
	}
	resp := &group.CommitResponse{}
	for _, t := range req.Topics {
		tr := group.TopicResult{Name: t.Name, ID: t.ID}
		for _, p := range t.Partitions {
			var err error
			if len(p.Metadata) > 10 {
				err = group.ErrOffsetMetadataTooLarge
			}
			tr.Partitions = append(tr.Partitions, group.PartitionResult{Partition: p.Partition, Err: err})
		}
		resp.Topics = append(resp.Topics, tr)
	}
	return resp, nil
}

func (g *fakeGroups) FetchOffsets(_ context.Context, req group.FetchRequest) ([]group.FetchTopic, error) {
	g.fetches = append(g.fetches, req)
	if g.err != nil {
		return nil, g.err
	}
	have := g.offsets[req.GroupID]
	if req.Topics == nil {
		var out []group.FetchTopic
		for name, parts := range have {
			ft := group.FetchTopic{Name: name}
			for _, p := range parts {
				ft.Partitions = append(ft.Partitions, p)
			}
			out = append(out, ft)
		}
		return out, nil
	}
	out := []group.FetchTopic{}
	for _, t := range req.Topics {
		ft := group.FetchTopic{Name: t.Name, ID: t.ID}
		for _, n := range t.Partitions {
			p, ok := have[t.Name][n]
			if !ok {
				p = group.FetchPartition{Partition: n, Offset: -1, LeaderEpoch: -1}
			}
			ft.Partitions = append(ft.Partitions, p)
		}
		out = append(out, ft)
	}
	return out, nil
}

func (g *fakeGroups) DeleteOffsets(_ context.Context, req group.OffsetDeleteRequest) (*group.OffsetDeleteResponse, error) {
	g.deletes = append(g.deletes, req)
	if g.err != nil {
		return nil, g.err
	}
	resp := &group.OffsetDeleteResponse{}
	for _, t := range req.Topics {
		tr := group.TopicResult{Name: t.Name}
		for _, p := range t.Partitions {
			tr.Partitions = append(tr.Partitions, group.PartitionResult{Partition: p})
		}
		resp.Topics = append(resp.Topics, tr)
	}
	return resp, nil
}

func (g *fakeGroups) Describe(_ context.Context, id string) (group.Description, error) {
	d, ok := g.describe[id]
	if !ok {
		return group.Description{GroupID: id, State: group.Dead}, group.ErrGroupIDNotFound
	}
	return d, g.err
}
func (g *fakeGroups) List(_ context.Context, states, types []string) ([]group.Listed, error) {
	g.filtered = append(g.filtered, states, types)
	return g.listed, g.err
}
func (g *fakeGroups) Delete(_ context.Context, id string) error {
	if _, ok := g.describe[id]; !ok {
		return group.ErrGroupIDNotFound
	}
	return g.err
}
