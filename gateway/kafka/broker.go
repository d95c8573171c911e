package kafka

import (
	"context"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Broker is what the server needs of services/broker; New adapts one.
type Broker interface {
	Cluster
	Topics
	TopicAdmin
	Data
	Groups() Groups
}

// Groups coordinates consumer groups. Errors beside those in the answers are
// broker.ErrGroupsLoading and those of package group.
type Groups interface {
	GroupMembers
	GroupOffsets
	GroupAdmin
}

// GroupMembers serves members. Join and Sync wait, until ctx ends.
type GroupMembers interface {
	Join(ctx context.Context, req group.JoinRequest) (*group.JoinResponse, error)
	Sync(ctx context.Context, req group.SyncRequest) (*group.SyncResponse, error)
	Heartbeat(ctx context.Context, req group.HeartbeatRequest) error
	Leave(ctx context.Context, req group.LeaveRequest) (*group.LeaveResponse, error)
}

// GroupOffsets keeps committed offsets.
type GroupOffsets interface {
	Commit(ctx context.Context, req group.CommitRequest) (*group.CommitResponse, error)
	FetchOffsets(ctx context.Context, req group.FetchRequest) ([]group.FetchTopic, error)
	DeleteOffsets(ctx context.Context, req group.OffsetDeleteRequest) (*group.OffsetDeleteResponse, error)
}

// GroupAdmin finds, describes and removes groups. Ensure makes the topic that
// they live in.
type GroupAdmin interface {
	Ensure(ctx context.Context) (*broker.Topic, error)
	Find(ctx context.Context, groupID string) (node int32, err error)
	Describe(ctx context.Context, groupID string) (group.Description, error)
	List(ctx context.Context, states, types []string) ([]group.Listed, error)
	Delete(ctx context.Context, groupID string) error
}

// Cluster describes the cluster and this agent.
type Cluster interface {
	ClusterID() string
	NodeID() int32
	Nodes() []broker.Node
	AutoCreate() bool
	BrokerConfigs() []metadata.ConfigEntry
	LogDirs(ctx context.Context) []broker.LogDir
}

// Topics finds topics.
type Topics interface {
	Topics() []*broker.Topic
	Topic(name string) *broker.Topic
	TopicByID(id ids.TopicID) *broker.Topic
	Leader(t *broker.Topic, partition int32) (node, epoch int32)
	TopicConfigs(name string) ([]metadata.ConfigEntry, error)
}

// TopicAdmin changes topics.
type TopicAdmin interface {
	CreateTopic(ctx context.Context, req metadata.CreateTopic) (*broker.Topic, error)
	DeleteTopic(ctx context.Context, id ids.TopicID) error
	CreatePartitions(ctx context.Context, name string, total int32, validateOnly bool) error
	AlterTopicConfig(ctx context.Context, name string, ops []metadata.ConfigOp, validateOnly bool) error
	ReplaceTopicConfig(ctx context.Context, name string, configs map[string]*string, validateOnly bool) error
}

// Data gives access to records.
type Data interface {
	Partition(id ids.TopicID, p int32) (Partition, error)
	// Await is Partition; it waits a while for one that this agent is about to lead.
	Await(ctx context.Context, id ids.TopicID, p int32) (Partition, error)
	// Follower gives what this agent can serve of a partition that another one leads.
	Follower(id ids.TopicID, p int32) (Source, error)
	InitProducerID(ctx context.Context) (pid int64, epoch int16, err error)
}

// Partition is one partition.
type Partition interface {
	Writer
	Reader
}

// Writer changes a partition.
type Writer interface {
	Produce(ctx context.Context, records []byte, room *broker.Room, done func(broker.Produced))
	Room(size, head, n int) *broker.Room
	DeleteRecords(ctx context.Context, before int64) (low int64, err error)
}

// Source is what Fetch reads.
type Source interface {
	Read(ctx context.Context, o broker.ReadOptions) broker.ReadResult
	Watch(w broker.Watcher) (cancel func())
}

// Reader reads a partition.
type Reader interface {
	Source
	Offset(ctx context.Context, ts int64) (broker.OffsetAt, error)
	EpochEnd(ctx context.Context, epoch int32) (broker.EpochEnd, error)
	LeaderEpoch() int32
}

// Adapt makes a *broker.Broker a Broker.
func Adapt(b *broker.Broker) Broker { return adapted{b} }

type adapted struct{ *broker.Broker }

func (a adapted) Groups() Groups { return a.Broker.Groups() }

func (a adapted) Await(ctx context.Context, id ids.TopicID, p int32) (Partition, error) {
	return partition(a.Broker.Await(ctx, id, p))
}

func (a adapted) Partition(id ids.TopicID, p int32) (Partition, error) {
	return partition(a.Broker.Partition(id, p))
}

// partition keeps a nil *broker.Partition out of the interface.
func partition(p *broker.Partition, err error) (Partition, error) {
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (a adapted) Follower(id ids.TopicID, p int32) (Source, error) {
	f, err := a.Broker.Follower(id, p)
	if err != nil {
		return nil, err
	}
	return f, nil
}
