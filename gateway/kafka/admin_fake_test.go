package kafka

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// adminBroker is a Broker in memory: topics with real config rules, and
// partitions whose answers a test sets. fail has errors by method name.
type adminBroker struct {
	mu       sync.Mutex
	topics   map[string]*broker.Topic
	parts    map[ids.TopicPartition]*adminPartition
	defaults *metadata.Defaults
	fail     map[string]error
	created  []metadata.CreateTopic
	nextID   byte
	pids     int64
	dirs     []broker.LogDir
	groups   fakeGroups
}

// adminPartition is a Partition for the APIs that only look at offsets.
type adminPartition struct {
	epoch     int32
	offsets   map[int64]broker.OffsetAt
	ends      map[int32]broker.EpochEnd
	low, high int64
	err       error
	running   *atomic.Int32 // lookups at this moment, and their maximum
	most      *atomic.Int32
	gate      chan struct{} // when set, lookups wait for it
}

func newAdminBroker(t *testing.T) *adminBroker {
	t.Helper()
	d, err := metadata.NewDefaults(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &adminBroker{topics: map[string]*broker.Topic{}, parts: map[ids.TopicPartition]*adminPartition{}, defaults: d, fail: map[string]error{}}
}

// add makes a topic with partitions at leader epoch 5.
func (b *adminBroker) add(name string, partitions int32) *broker.Topic {
	b.nextID++
	t := &broker.Topic{Name: name, ID: ids.TopicID{15: b.nextID}, Partitions: partitions, Configs: map[string]string{}}
	b.topics[name] = t
	for p := range partitions {
		b.parts[ids.TopicPartition{Topic: t.ID, Partition: p}] = &adminPartition{epoch: 5, high: 100,
			offsets: map[int64]broker.OffsetAt{}, ends: map[int32]broker.EpochEnd{}}
	}
	return t
}

func (b *adminBroker) part(name string, p int32) *adminPartition {
	return b.parts[ids.TopicPartition{Topic: b.topics[name].ID, Partition: p}]
}

func (b *adminBroker) ClusterID() string { return "cluster-1" }
func (b *adminBroker) NodeID() int32     { return 1 }
func (b *adminBroker) AutoCreate() bool  { return false }
func (b *adminBroker) Leader(t *broker.Topic, p int32) (node, epoch int32) {
	if part, err := b.Partition(t.ID, p); err == nil {
		return 1, part.LeaderEpoch()
	}
	return -1, -1
}
func (b *adminBroker) Nodes() []broker.Node {
	return []broker.Node{{ID: 1, Host: "one", Port: 9092, Rack: "a"}, {ID: 2, Host: "two", Port: 9093}}
}
func (b *adminBroker) BrokerConfigs() []metadata.ConfigEntry {
	return b.defaults.BrokerConfigs(map[string]string{"node.id": "1"})
}
func (b *adminBroker) LogDirs(context.Context) []broker.LogDir {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dirs
}

func (b *adminBroker) Topics() []*broker.Topic {
	var out []*broker.Topic
	for _, t := range b.topics {
		out = append(out, t)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}
func (b *adminBroker) Topic(name string) *broker.Topic { return b.topics[name] }
func (b *adminBroker) TopicByID(id ids.TopicID) *broker.Topic {
	for _, t := range b.topics {
		if t.ID == id {
			return t
		}
	}
	return nil
}
func (b *adminBroker) TopicConfigs(name string) ([]metadata.ConfigEntry, error) {
	t := b.topics[name]
	if t == nil {
		return nil, fmt.Errorf("%w: %s", broker.ErrUnknownTopic, name)
	}
	return b.defaults.Describe(t.Configs), nil
}

func (b *adminBroker) CreateTopic(_ context.Context, req metadata.CreateTopic) (*broker.Topic, error) {
	b.created = append(b.created, req)
	if err := b.fail["CreateTopic"]; err != nil {
		return nil, err
	}
	if err := metadata.ValidateTopicName(req.Name); err != nil {
		return nil, err
	}
	if b.topics[req.Name] != nil {
		return nil, fmt.Errorf("%w: %s", metadata.ErrTopicExists, req.Name)
	}
	configs, err := b.defaults.Replace(nil, req.Configs)
	if err != nil {
		return nil, err
	}
	n := req.Partitions
	if n == -1 {
		n = 3
	}
	if n < 1 {
		return nil, fmt.Errorf("%w: %d", metadata.ErrInvalidPartitions, n)
	}
	if req.ReplicationFactor > 2 {
		return nil, fmt.Errorf("%w: %d", metadata.ErrInvalidReplication, req.ReplicationFactor)
	}
	if req.ValidateOnly {
		return &broker.Topic{Name: req.Name, Partitions: n, Configs: configs}, nil
	}
	t := b.add(req.Name, n)
	t.Configs = configs
	return t, nil
}

func (b *adminBroker) DeleteTopic(_ context.Context, id ids.TopicID) error {
	t := b.TopicByID(id)
	if t == nil {
		return broker.ErrUnknownTopic
	}
	if err := b.fail["DeleteTopic"]; err != nil {
		return err
	}
	delete(b.topics, t.Name)
	return nil
}

func (b *adminBroker) CreatePartitions(_ context.Context, name string, total int32, validateOnly bool) error {
	t := b.topics[name]
	if t == nil {
		return fmt.Errorf("%w: %s", broker.ErrUnknownTopic, name)
	}
	if total <= t.Partitions {
		return fmt.Errorf("%w: %s has %d partitions already", metadata.ErrInvalidPartitions, name, t.Partitions)
	}
	if !validateOnly {
		t.Partitions = total
	}
	return nil
}

func (b *adminBroker) AlterTopicConfig(_ context.Context, name string, ops []metadata.ConfigOp, validateOnly bool) error {
	return b.change(name, validateOnly, func(c map[string]string) (map[string]string, error) { return b.defaults.Apply(c, ops) })
}

func (b *adminBroker) ReplaceTopicConfig(_ context.Context, name string, configs map[string]*string, validateOnly bool) error {
	return b.change(name, validateOnly, func(c map[string]string) (map[string]string, error) { return b.defaults.Replace(c, configs) })
}

func (b *adminBroker) change(name string, validateOnly bool, f func(map[string]string) (map[string]string, error)) error {
	t := b.topics[name]
	if t == nil {
		return fmt.Errorf("%w: %s", broker.ErrUnknownTopic, name)
	}
	c, err := f(t.Configs)
	if err == nil && !validateOnly {
		t.Configs = c
	}
	return err
}

func (b *adminBroker) Await(_ context.Context, id ids.TopicID, p int32) (Partition, error) {
	return b.Partition(id, p)
}

func (b *adminBroker) Partition(id ids.TopicID, p int32) (Partition, error) {
	if part := b.parts[ids.TopicPartition{Topic: id, Partition: p}]; part != nil {
		return part, nil
	}
	return nil, broker.ErrUnknownPartition
}

func (b *adminBroker) Follower(ids.TopicID, int32) (Source, error) { return nil, broker.ErrNotLeader }

func (b *adminBroker) InitProducerID(context.Context) (int64, int16, error) {
	if err := b.fail["InitProducerID"]; err != nil {
		return -1, -1, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pids++
	return 1000 + b.pids, 0, nil
}

func (p *adminPartition) Produce(_ context.Context, _ []byte, _ *broker.Room, done func(broker.Produced)) {
	done(broker.Produced{Err: broker.ErrClosed})
}

func (p *adminPartition) Room(int, int, int) *broker.Room { return nil }

func (p *adminPartition) DeleteRecords(_ context.Context, before int64) (int64, error) {
	if p.err != nil {
		return 7, p.err // a low watermark with an error must not leak
	}
	if before == -1 {
		before = p.high
	}
	if before > p.high || before < -1 {
		return -1, broker.ErrOffsetOutOfRange
	}
	p.low = max(p.low, before)
	return p.low, nil
}

func (p *adminPartition) Read(context.Context, broker.ReadOptions) broker.ReadResult {
	return broker.ReadResult{Err: broker.ErrClosed}
}

func (p *adminPartition) Watch(broker.Watcher) func() { return func() {} }
func (p *adminPartition) LeaderEpoch() int32          { return p.epoch }

func (p *adminPartition) Offset(ctx context.Context, ts int64) (broker.OffsetAt, error) {
	if p.gate != nil {
		n := p.running.Add(1)
		defer p.running.Add(-1)
		for m := p.most.Load(); n > m && !p.most.CompareAndSwap(m, n); m = p.most.Load() {
		}
		select {
		case <-p.gate:
		case <-ctx.Done():
			return broker.OffsetAt{}, ctx.Err()
		}
	}
	if p.err != nil {
		return broker.OffsetAt{Offset: 7}, p.err
	}
	if at, ok := p.offsets[ts]; ok {
		return at, nil
	}
	return broker.OffsetAt{Offset: -1, Timestamp: -1, LeaderEpoch: -1}, nil
}

func (p *adminPartition) EpochEnd(_ context.Context, epoch int32) (broker.EpochEnd, error) {
	if p.err != nil {
		return broker.EpochEnd{Epoch: 7, EndOffset: 7}, p.err
	}
	if e, ok := p.ends[epoch]; ok {
		return e, nil
	}
	return broker.EpochEnd{Epoch: -1, EndOffset: -1}, nil
}

// roundTrip sends req at a version through the codec, the handler that the
// server has for it, and the codec again, as a client and the server would.
func roundTrip[R kmsg.Response](t *testing.T, b Broker, req kmsg.Request, version int16) R {
	t.Helper()
	s := NewServer(Options{Broker: b})
	a, ok := s.apis[req.Key()]
	if !ok {
		t.Fatalf("api key %d is not served", req.Key())
	}
	if version < a.min || version > a.max {
		t.Fatalf("%s v%d is not served (%d to %d)", a.name, version, a.min, a.max)
	}
	req.SetVersion(version)
	in := kmsg.RequestForKey(req.Key())
	in.SetVersion(version)
	if err := in.ReadFrom(req.AppendTo(nil)); err != nil {
		t.Fatalf("decode request %s v%d: %v", a.name, version, err)
	}
	resp, err := a.handle(context.Background(), nil, in)
	if err != nil {
		t.Fatalf("%s v%d closes the connection: %v", a.name, version, err)
	}
	if resp.Key() != req.Key() || resp.GetVersion() != version {
		t.Fatalf("%s v%d answered with key %d v%d", a.name, version, resp.Key(), resp.GetVersion())
	}
	wire := resp.AppendTo(nil)
	out := req.ResponseKind()
	out.SetVersion(version)
	if err := out.ReadFrom(wire); err != nil {
		t.Fatalf("decode response %s v%d: %v", a.name, version, err)
	}
	if again := out.AppendTo(nil); !reflect.DeepEqual(again, wire) {
		t.Fatalf("%s v%d: response is not canonical:\n%x\n%x", a.name, version, wire, again)
	}
	return out.(R)
}

// versions runs f for each version of an API that the server has.
func versions(t *testing.T, key, from, to int16, f func(t *testing.T, v int16)) {
	t.Helper()
	a := NewServer(Options{Broker: newAdminBroker(t)}).apis[key]
	if a.min != from || a.max != to {
		t.Fatalf("%s is served from %d to %d, want %d to %d", a.name, a.min, a.max, from, to)
	}
	for v := from; v <= to; v++ {
		t.Run(fmt.Sprintf("v%d", v), func(t *testing.T) { f(t, v) })
	}
}

func wantCode(t *testing.T, what string, got int16, want *kerr.Error) {
	t.Helper()
	switch {
	case want == nil && got != 0:
		t.Errorf("%s: %v, want no error", what, kerr.ErrorForCode(got))
	case want != nil && got != want.Code:
		t.Errorf("%s: %v, want %v", what, kerr.ErrorForCode(got), want)
	}
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func ptr[T any](v T) *T { return &v }

func TestErrorCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want *kerr.Error
	}{
		{nil, nil},
		{fmt.Errorf("wrapped: %w", broker.ErrNotLeader), kerr.NotLeaderForPartition},
		{fmt.Errorf("wrapped: %w", kerr.InvalidReplicaAssignment), kerr.InvalidReplicaAssignment},
		{fmt.Errorf("%w: %w", broker.ErrStorage, context.DeadlineExceeded), kerr.RequestTimedOut},
		{fmt.Errorf("%w: disk", broker.ErrStorage), kerr.KafkaStorageError},
		{broker.ErrThrottled, kerr.RequestTimedOut},
		{metadata.ErrPolicy, kerr.PolicyViolation},
		{metadata.ErrUnavailable, kerr.RequestTimedOut},
		{errors.New("never seen"), kerr.UnknownServerError},
	} {
		wantCode(t, fmt.Sprint(c.err), errorCode(c.err), c.want)
	}
	if m := errorMessage(nil); m != nil {
		t.Errorf("message without an error: %q", *m)
	}
	if m := errorMessage(kerr.InvalidRequest); text(m) != kerr.InvalidRequest.Description {
		t.Errorf("message of a bare Kafka error: %q", text(m))
	}
	if m := errorMessage(fmt.Errorf("key x: %w", metadata.ErrInvalidConfig)); text(m) != "key x: invalid config" {
		t.Errorf("message of our error: %q", text(m))
	}
}
