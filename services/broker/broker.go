package broker

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Options of a Broker. Store, Meta, Bucket and Incarnation are required.
type Options struct {
	Store       *storage.Store
	Local       LocalStore // of topics of class local, Store is of class object; nil: Store has all
	Meta        *metadata.Store
	Bucket      objstore.Bucket
	Incarnation ids.Incarnation
	Epoch       int32 // leader epoch of the partitions led by this start, without Leaders
	// Leaders tells who leads what; nil: this agent leads everything. With it a
	// partition is served from Lead on.
	Leaders Leaders
	// Live, when not nil, tells whether this agent may answer as a leader without a
	// put of its own: the others do not take it for dead yet.
	Live func() bool
	// OnTiered is told where the tiered part of a partition ends.
	OnTiered func(tp ids.TopicPartition, end int64)
	// SetLogStart makes a move of a log start durable in the agent's stream; nil: the metadata store
	// does that alone.
	SetLogStart func(ctx context.Context, tp ids.TopicPartition, epoch int32, offset int64) error
	Self        Node // as clients reach it

	// Reader reads tiered segments.
	Reader TieredReader

	AutoCreate bool
	// Settings are the agent's own, under Kafka's names, for DescribeConfigs.
	Settings map[string]string

	// DataDir and BucketName are what DescribeLogDirs calls the two tiers.
	DataDir, BucketName string

	RetentionInterval time.Duration // default 30 s
	SweepInterval     time.Duration // default 10 min
	SweepGrace        time.Duration // default 1 h: how long dead objects stay in the bucket
	CompactInterval   time.Duration // default 15 s: how often compacted topics are looked at
	UploadConcurrency int
	Groups            GroupOptions
	UploadObserver    func(topic string, bytes int64, took time.Duration, err error)

	Logger *slog.Logger
	Now    func() time.Time
}

func (o *Options) setDefaults() error {
	if o.Store == nil || o.Meta == nil || o.Bucket == nil || o.Incarnation == "" || o.Reader == nil {
		return errors.New("create broker: store, metadata, bucket, reader and incarnation are required")
	}
	if o.RetentionInterval <= 0 {
		o.RetentionInterval = 30 * time.Second
	}
	if o.SweepInterval <= 0 {
		o.SweepInterval = 10 * time.Minute
	}
	if o.SweepGrace <= 0 {
		o.SweepGrace = time.Hour
	}
	if o.CompactInterval <= 0 {
		o.CompactInterval = 15 * time.Second // Kafka's log.cleaner.backoff.ms
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return nil
}

// Broker serves the partitions of one agent. Its methods may be called from
// several goroutines.
type Broker struct {
	opts     Options
	uploader *tiering.Uploader
	index    *metaIndex
	compact  compaction
	waiting  *waitingList

	followers followers

	view atomic.Pointer[view]
	mu   sync.Mutex // serialises changes of view
	// shown is closed, and another one, when partitions were added to view.
	shown atomic.Pointer[chan struct{}]
	// loading collects the topics there are at the start; nil afterwards.
	loading *view
	unsub   func()

	hotReads, localReads, tieredReads atomic.Int64

	producer producerIDs
	warm     warmRows
	groups   *Groups
	house    housekeeper
	sweeper  *Sweeper
	own      ownNeeds
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

// view is an immutable picture of topics and partitions.
type view struct {
	sorted []*Topic
	byName map[string]*Topic
	byID   map[ids.TopicID]*Topic
	parts  map[ids.TopicID][]*Partition
}

// New opens all partitions of all topics and starts uploading, retention and
// sweeping. Close ends them.
func New(ctx context.Context, o Options) (*Broker, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	b := &Broker{opts: o, index: &metaIndex{meta: o.Meta}, waiting: newWaitingList()}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.sweeper = NewSweeper(SweeperOptions{Meta: o.Meta, Bucket: o.Bucket, Now: o.Now, Logger: o.Logger})
	b.own.needs = needs{s: b.sweeper, proofs: &bucketProofs{}, indexed: map[ids.TopicPartition]indexed{}}
	b.view.Store(newView(0))
	b.noteShown()
	b.loading = newView(0)
	b.house.init()
	if err := b.compact.init(b); err != nil {
		b.cancel()
		return nil, err
	}
	groups, err := newGroups(b, o.Groups)
	if err != nil {
		b.cancel()
		return nil, err
	}
	b.groups = groups
	var first error
	b.unsub = o.Meta.Subscribe(func(c metadata.Change) {
		if err := b.change(c); err != nil && first == nil {
			first = err
		}
	})
	b.loaded()
	if first != nil {
		b.cancel()
		b.unsub()
		return nil, fmt.Errorf("open partitions: %w", first)
	}
	if err := b.loadTiered(ctx); err != nil {
		b.cancel()
		b.unsub()
		return nil, err
	}
	if err := b.checkEnds(); err != nil {
		b.cancel()
		b.unsub()
		return nil, err
	}
	b.dropForeignLogs()
	b.waiting.find(b.view.Load())
	up, err := tiering.NewUploader(tiering.UploaderOptions{
		Bucket: o.Bucket, Index: b.index, Local: (*localTier)(b), Incarnation: o.Incarnation, Logger: o.Logger, Now: o.Now,
		Concurrency: o.UploadConcurrency, OnUpload: b.uploaded, Interval: 2 * time.Second,
	})
	if err != nil {
		b.cancel()
		b.unsub()
		return nil, err
	}
	b.uploader = up
	b.wg.Add(5)
	go b.compactLoop()
	go b.housekeepLoop()
	go b.publishLoop()
	go b.keptLoop()
	go b.sweepLoop()
	return b, nil
}

// dropForeignLogs removes local logs whose topic is gone: the deletion was
// durable, the removal of the bytes was not finished.
func (b *Broker) dropForeignLogs() {
	v := b.view.Load()
	for _, s := range b.stores() {
		for _, l := range s.Logs() {
			if v.byID[l.TP().Topic] == nil {
				b.house.remove(l.TP())
			}
		}
	}
}

// change applies one change of a topic to the view.
func (b *Broker) change(c metadata.Change) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.loading != nil && c.Old == nil {
		t := topicOf(c.New)
		parts, err := b.openPartitions(t, nil)
		if err == nil {
			b.loading.add(t, parts)
		}
		return err
	}
	b.loadedLocked()
	old := b.view.Load()
	v := newView(len(old.sorted) + 1)
	for _, t := range old.sorted {
		if c.Old != nil && t.ID == c.Old.ID && (c.New == nil || c.New.ID != t.ID) {
			b.dropTopic(old.parts[t.ID])
			continue
		}
		if c.New != nil && t.ID == c.New.ID {
			continue
		}
		v.add(t, old.parts[t.ID])
	}
	if c.New != nil {
		t := topicOf(c.New)
		parts, err := b.openPartitions(t, old.parts[t.ID])
		if err != nil {
			return err
		}
		v.add(t, parts)
		if c.Old != nil && uploads(t) && (!c.Old.Config.RemoteStorage || c.Old.Config.RemoteCopyDisabled) {
			for p := range led(parts) {
				b.waiting.add(p)
			}
		}
	}
	v.sort()
	b.view.Store(v)
	if c.Old != nil && (c.New == nil || c.New.ID != c.Old.ID) {
		b.groups.topicDeleted(c.Old.Name)
	}
	return nil
}

// loaded ends the time in which topics are only collected, so that the start
// does not make a view for each of them.
func (b *Broker) loaded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loadedLocked()
}

func (b *Broker) loadedLocked() {
	if b.loading != nil {
		b.loading.sort()
		b.view.Store(b.loading)
		b.loading = nil
	}
}

// led are the partitions of parts that this agent leads.
func led(parts []*Partition) iter.Seq[*Partition] {
	return func(yield func(*Partition) bool) {
		for _, p := range parts {
			if p != nil && !yield(p) {
				return
			}
		}
	}
}

func newView(topics int) *view {
	return &view{byName: make(map[string]*Topic, topics), byID: make(map[ids.TopicID]*Topic, topics), parts: make(map[ids.TopicID][]*Partition, topics)}
}

func (v *view) add(t *Topic, parts []*Partition) {
	v.sorted = append(v.sorted, t)
	v.byName[t.Name], v.byID[t.ID], v.parts[t.ID] = t, t, parts
}

func topicOf(t *metadata.Topic) *Topic {
	return &Topic{Name: t.Name, ID: t.ID, Partitions: t.Partitions, Internal: IsInternal(t.Name), Configs: t.Configs, Config: t.Config}
}

// dropTopic makes the partitions of a deleted topic refuse everything; their
// bytes go in the background.
func (b *Broker) dropTopic(parts []*Partition) {
	for p := range led(parts) {
		p.gone.Store(true)
		p.log.Wake()
		b.house.remove(p.tp)
	}
}

// openPartitions returns the topic's partitions, the known ones and new ones.
func (b *Broker) openPartitions(t *Topic, known []*Partition) ([]*Partition, error) {
	parts := append([]*Partition(nil), known...)
	cfg := logConfig(t)
	for p := range led(parts) {
		p.topic.Store(t)
		p.log.SetConfig(cfg)
	}
	if b.opts.Leaders != nil {
		return append(parts, make([]*Partition, int(t.Partitions)-len(parts))...), nil
	}
	for i := int32(len(parts)); i < t.Partitions; i++ {
		p := &Partition{b: b, store: b.opts.Store, tp: ids.TopicPartition{Topic: t.ID, Partition: i}, epoch: b.opts.Epoch}
		p.topic.Store(t)
		start := b.opts.Meta.LogStart(p.tp)
		l, err := p.store.Create(p.tp, cfg, start)
		if err != nil {
			return nil, fmt.Errorf("open %s-%d: %w", t.Name, i, err)
		}
		p.log = l
		parts = append(parts, p)
	}
	return parts, nil
}

func logConfig(t *Topic) storage.LogConfig {
	age := t.Config.SegmentMs
	if t.Config.CleanupPolicy.Compact { // what is active is not cleaned
		age = min(age, t.Config.MaxCompactionLagMs)
	}
	age = min(age, math.MaxInt64/int64(time.Millisecond))
	return storage.LogConfig{SegmentBytes: t.Config.SegmentBytes, SegmentAge: time.Duration(age) * time.Millisecond,
		IndexInterval: int(max(t.Config.IndexIntervalBytes, 1))}
}

// loadTiered learns from the segment index what is in the bucket. With several agents no partition is open yet: what
// one has there is read when it is taken over.
func (b *Broker) loadTiered(ctx context.Context) error {
	if b.opts.Leaders != nil {
		return nil
	}
	return b.opts.Meta.ScanSegments(ctx, ids.TopicID{}, func(r metadata.SegmentRow) error {
		parts := b.view.Load().parts[r.TP.Topic]
		if int(r.TP.Partition) < len(parts) && parts[r.TP.Partition] != nil {
			parts[r.TP.Partition].addTiered(segmentOf(r))
		}
		return nil
	})
}

// checkEnds refuses a disk that knows less than the segment index: appending
// there would give offsets a second time.
func (b *Broker) checkEnds() error {
	for _, parts := range b.view.Load().parts {
		for p := range led(parts) {
			if end := p.log.Offsets().End; end < p.tiered.Load() {
				return fmt.Errorf("%s-%d ends at offset %d on this disk but at %d in the bucket: this is not the disk that wrote it, start with the original data directory",
					p.topic.Load().Name, p.tp.Partition, end, p.tiered.Load())
			}
		}
	}
	return nil
}

// raise makes v the value of a, unless that is greater.
func raise(a *atomic.Int64, v int64) {
	for have := a.Load(); v > have && !a.CompareAndSwap(have, v); have = a.Load() {
	}
}

// addTiered notes an indexed segment.
func (p *Partition) addTiered(s tiering.Segment) {
	p.bucketBytes.Add(s.Size)
	p.bucketCount.Add(1)
	raise(&p.tiered, s.Last+1)
	raise(&p.lastUpload, s.Uploaded)
	p.log.MarkTiered(s.Last)
	if p.b.opts.OnTiered != nil {
		p.b.opts.OnTiered(p.tp, s.Last+1)
	}
	p.check.stir.Store(true)
	if s.Generation > 0 {
		// All up to here was cleaned: this disk must not go on with what has been removed.
		p.log.DropLocal(s.Last + 1)
	}
}

// Close stops uploads and background work. The store stays open.
func (b *Broker) Close() error {
	b.groups.close()
	b.unsub()
	b.cancel()
	b.wg.Wait()
	return b.uploader.Close()
}

// closingPause is how long Drain waits for segments that are being closed.
const closingPause = 10 * time.Millisecond

// Drain gives the consumer groups up and uploads what is closed, until ctx
// ends. Segments that are full and not yet wholly written are waited for.
// Nothing may be appended meanwhile.
func (b *Broker) Drain(ctx context.Context) error {
	b.groups.close()
	for {
		closing := b.closing() // before the uploads, so that they see the last of them
		if err := b.uploader.Drain(ctx); err != nil || !closing {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("drain: a segment is still being closed: %w", ctx.Err())
		case <-time.After(closingPause):
		}
	}
}

// closing tells whether a segment is full and will soon be closed.
func (b *Broker) closing() bool {
	if b.failed() != nil {
		return false
	}
	for _, parts := range b.view.Load().parts {
		for p := range led(parts) {
			if p.log.Closing() {
				return true
			}
		}
	}
	return false
}

// Groups coordinates the consumer groups.
func (b *Broker) Groups() *Groups { return b.groups }

// ClusterID is the id of the cluster.
func (b *Broker) ClusterID() string { return b.opts.Meta.ClusterID() }

// NodeID is this agent's node id.
func (b *Broker) NodeID() int32 { return b.opts.Self.ID }

// Nodes lists the live agents.
func (b *Broker) Nodes() []Node {
	if b.opts.Leaders != nil {
		return b.opts.Leaders.Nodes()
	}
	return []Node{b.opts.Self}
}

// Leader returns the node that leads a partition, or is about to, and the leader
// epoch; node -1: none is known.
func (b *Broker) Leader(t *Topic, partition int32) (node, epoch int32) {
	if b.opts.Leaders != nil {
		return b.opts.Leaders.Leader(t.ID, partition)
	}
	return b.opts.Self.ID, b.opts.Epoch
}

// AutoCreate tells whether a topic may be created by asking for it.
func (b *Broker) AutoCreate() bool { return b.opts.AutoCreate }

// Topics returns all topics by name.
func (b *Broker) Topics() []*Topic { return b.view.Load().sorted }

// Topic returns a topic by name, or nil.
func (b *Broker) Topic(name string) *Topic { return b.view.Load().byName[name] }

// TopicByID returns a topic by id, or nil.
func (b *Broker) TopicByID(id ids.TopicID) *Topic { return b.view.Load().byID[id] }

// Partition returns a partition.
func (b *Broker) Partition(id ids.TopicID, p int32) (*Partition, error) {
	parts, ok := b.view.Load().parts[id]
	if !ok {
		return nil, ErrUnknownTopic
	}
	if p < 0 || int(p) >= len(parts) {
		return nil, ErrUnknownPartition
	}
	if parts[p] == nil {
		return nil, ErrNotLeader
	}
	return parts[p], nil
}

func (b *Broker) count(memory bool, size int) {
	if size == 0 {
		return
	}
	if memory {
		b.hotReads.Add(1)
	} else {
		b.localReads.Add(1)
	}
}

// Reads returns how many reads were served from memory, SSD and bucket.
func (b *Broker) Reads() (memory, local, tiered int64) {
	return b.hotReads.Load(), b.localReads.Load(), b.tieredReads.Load()
}

// UploadCounters counts what the uploader did, without its lag.
func (b *Broker) UploadCounters() tiering.UploadStats { return b.uploader.Counters() }
