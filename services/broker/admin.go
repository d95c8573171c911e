package broker

import (
	"context"
	"fmt"
	"sort"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/lock"
)

func (v *view) sort() {
	sort.Slice(v.sorted, func(i, j int) bool { return v.sorted[i].Name < v.sorted[j].Name })
}

// CreateTopic creates a topic; when it returns, the topic can be used.
func (b *Broker) CreateTopic(ctx context.Context, req metadata.CreateTopic) (*Topic, error) {
	if req.Name == OffsetsTopic {
		if configs, err := b.opts.Meta.Defaults().Replace(nil, req.Configs); err == nil { // else it is refused below
			if err := b.checkOffsetsTopic(req.Name, configs); err != nil {
				return nil, err
			}
		}
	}
	t, err := b.opts.Meta.CreateTopic(ctx, req)
	if err != nil {
		return nil, err
	}
	return topicOf(t), nil
}

// DeleteTopic deletes a topic; its bytes go later.
func (b *Broker) DeleteTopic(ctx context.Context, id ids.TopicID) error {
	return b.opts.Meta.DeleteTopic(ctx, id)
}

// CreatePartitions raises a topic's number of partitions to total.
func (b *Broker) CreatePartitions(ctx context.Context, name string, total int32, validateOnly bool) error {
	return b.opts.Meta.AddPartitions(ctx, name, total, validateOnly)
}

// AlterTopicConfig changes some configs of a topic.
func (b *Broker) AlterTopicConfig(ctx context.Context, name string, ops []metadata.ConfigOp, validateOnly bool) error {
	if t := b.Topic(name); t != nil {
		if configs, err := b.opts.Meta.Defaults().Apply(t.Configs, ops); err == nil {
			if err := b.checkOffsetsTopic(name, configs); err != nil {
				return err
			}
		}
	}
	return b.opts.Meta.AlterConfig(ctx, name, ops, validateOnly)
}

// ReplaceTopicConfig replaces all configs that a topic sets.
func (b *Broker) ReplaceTopicConfig(ctx context.Context, name string, configs map[string]*string, validateOnly bool) error {
	if t := b.Topic(name); t != nil {
		if next, err := b.opts.Meta.Defaults().Replace(t.Configs, configs); err == nil {
			if err := b.checkOffsetsTopic(name, next); err != nil {
				return err
			}
		}
	}
	return b.opts.Meta.ReplaceConfig(ctx, name, configs, validateOnly)
}

// TopicConfigs returns all configs of a topic for DescribeConfigs.
func (b *Broker) TopicConfigs(name string) ([]metadata.ConfigEntry, error) {
	t := b.Topic(name)
	if t == nil {
		return nil, ErrUnknownTopic
	}
	return b.opts.Meta.Defaults().Describe(t.Configs), nil
}

// BrokerConfigs returns the agent's configs for DescribeConfigs, read-only.
func (b *Broker) BrokerConfigs() []metadata.ConfigEntry {
	return b.opts.Meta.Defaults().BrokerConfigs(b.opts.Settings)
}

// producerIDs hands out producer ids.
type producerIDs struct{ mu lock.Mutex }

// InitProducerID returns a new producer id with epoch 0. No id is ever given
// twice (I6).
func (b *Broker) InitProducerID(ctx context.Context) (pid int64, epoch int16, err error) {
	b.producer.mu.Lock()
	defer b.producer.mu.Unlock()
	pid, err = b.opts.Meta.NextProducerID(ctx)
	if err != nil {
		return -1, -1, fmt.Errorf("init producer id: %w", err)
	}
	return pid, 0, nil
}

// LogDirs describes SSD and bucket as Kafka's log directories.
func (b *Broker) LogDirs(context.Context) []LogDir {
	local := LogDir{Path: b.opts.DataDir, Total: -1, Usable: -1, Partitions: map[ids.TopicPartition]int64{}}
	for i, s := range b.stores() {
		st := s.Stats()
		if st.DiskBudget == 0 {
			break
		}
		if i == 0 {
			local.Total, local.Usable = 0, 0
		}
		local.Total, local.Usable = local.Total+st.DiskBudget, local.Usable+max(st.DiskBudget-st.DiskUsed, 0)
	}
	bucket := LogDir{Path: b.opts.BucketName, Total: -1, Usable: -1, Partitions: map[ids.TopicPartition]int64{}}
	for _, parts := range b.view.Load().parts {
		for p := range led(parts) {
			n := int64(0)
			for _, s := range p.log.Segments() {
				n += s.Bytes
			}
			local.Partitions[p.tp] = n
			bucket.Partitions[p.tp] = p.bucketBytes.Load()
		}
	}
	return []LogDir{local, bucket}
}

// PartitionStorage tells where a partition's records are.
type PartitionStorage struct {
	Partition       int32 `json:"partition"`
	LogStart        int64 `json:"log_start_offset"`
	LocalStart      int64 `json:"local_start_offset"`
	HighWatermark   int64 `json:"high_watermark"`
	TieredEnd       int64 `json:"tiered_end_offset"` // behind the last tiered record
	LocalBytes      int64 `json:"local_bytes"`
	BucketBytes     int64 `json:"bucket_bytes"`
	LocalSegments   int   `json:"local_segments"`
	BucketSegments  int64 `json:"bucket_segments"`
	LastUploadMs    int64 `json:"last_upload_ms"` // ms since 1970, 0 never
	ClosedNotTiered int   `json:"closed_not_tiered"`
}

// TopicStorage describes all partitions of a topic.
func (b *Broker) TopicStorage(name string) (*Topic, []PartitionStorage, error) {
	t := b.Topic(name)
	if t == nil {
		return nil, nil, fmt.Errorf("%w: %s", ErrUnknownTopic, name)
	}
	var out []PartitionStorage
	for p := range led(b.view.Load().parts[t.ID]) {
		off := p.log.Offsets()
		s := PartitionStorage{Partition: p.tp.Partition, LogStart: off.Start, LocalStart: off.LocalStart, HighWatermark: off.HighWatermark,
			TieredEnd: p.tiered.Load(), BucketBytes: p.bucketBytes.Load(), BucketSegments: p.bucketCount.Load(), LastUploadMs: p.lastUpload.Load()}
		for _, g := range p.log.Segments() {
			s.LocalBytes += g.Bytes
			s.LocalSegments++
			if g.Closed && !g.Tiered {
				s.ClosedNotTiered++
			}
		}
		out = append(out, s)
	}
	return t, out, nil
}

// SegmentInfo is one segment of a partition, in one of the tiers.
type SegmentInfo struct {
	Partition    int32  `json:"partition"`
	Tier         string `json:"tier"`  // local or bucket
	State        string `json:"state"` // active or closed
	Base         int64  `json:"base"`
	Last         int64  `json:"last"`
	Bytes        int64  `json:"bytes"`
	Records      int64  `json:"records"`
	MinTimestamp int64  `json:"min_timestamp"`
	MaxTimestamp int64  `json:"max_timestamp"`
	Epoch        int32  `json:"epoch"`
	Key          string `json:"key,omitempty"`
	UploadedMs   int64  `json:"uploaded_ms,omitempty"`
}

// segmentPage is how many index rows are read at once.
const segmentPage = 500

// Segments calls fn for the segments of a partition, bucket first, each tier in
// order of offsets.
func (b *Broker) Segments(ctx context.Context, p *Partition, fn func(SegmentInfo) error) error {
	rows, err := b.tieredRows(ctx, p.tp, 0)
	if err != nil {
		return err
	}
	for _, s := range rows {
		err := fn(SegmentInfo{Partition: p.tp.Partition, Tier: "bucket", State: "closed", Base: s.Base, Last: s.Last, Bytes: s.Size, Records: s.Records,
			MinTimestamp: s.MinTimestamp, MaxTimestamp: s.MaxTimestamp, Epoch: s.Epoch, Key: s.Key(), UploadedMs: s.Uploaded})
		if err != nil {
			return err
		}
	}
	for _, s := range p.log.Segments() {
		state := "active"
		if s.Closed {
			state = "closed"
		}
		err := fn(SegmentInfo{Partition: p.tp.Partition, Tier: "local", State: state, Base: s.Base, Last: s.Last, Bytes: s.Bytes, Records: s.Last - s.Base + 1,
			MinTimestamp: -1, MaxTimestamp: s.MaxTimestamp, Epoch: p.LeaderEpoch()})
		if err != nil {
			return err
		}
	}
	return nil
}

// Roll closes the active segments of a topic now, so that they can be tiered.
func (b *Broker) Roll(name string) error {
	t := b.Topic(name)
	if t == nil {
		return fmt.Errorf("%w: %s", ErrUnknownTopic, name)
	}
	for p := range led(b.view.Load().parts[t.ID]) {
		p.log.RollIfOld(true)
	}
	return nil
}
