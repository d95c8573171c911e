// Package recovery rebuilds a metadata store that was lost from the bucket alone: topics and their configs,
// who leads what, log starts, and the index of segments. Nothing in the bucket is changed but that it belongs to the new
// store from then on.
package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// ErrInUse: agents write to the bucket that have their leases elsewhere.
var ErrInUse = errors.New("the bucket is in use by agents of another metadata store")

// How it is found whether agents live.
const (
	recentPut = time.Minute // who has put an object since then may live
	leaseWait = 8 * time.Second
	leasePoll = 100 * time.Millisecond
)

// streamsAtOnce is how many streams are read at the same time.
const streamsAtOnce = 8

// Options of Run. Bucket and KV are required.
type Options struct {
	Bucket objstore.Bucket
	KV     kv.Store
	// TakeOver goes on although agents of another metadata store seem to live: they are fenced.
	TakeOver bool
	Wait     time.Duration // for agents that live to find the store and take their leases in it; 0: 8 s
	Logger   *slog.Logger
	Now      func() time.Time
	// Progress, if not nil, is told how far it is: things of one kind done so far. It may be called
	// by several goroutines.
	Progress func(what string, done int)
}

// Loss is something of the bucket that is damaged or missing.
type Loss struct {
	Topic     string `json:"topic,omitempty"`
	Partition int32  `json:"partition"`
	// From and To bound the offsets, To not among them; both 0 where they are not known.
	From   int64  `json:"from"`
	To     int64  `json:"to"`
	Object string `json:"object,omitempty"` // "": no object has them
	Error  string `json:"error"`
}

// Report is what was recovered, and what could not be.
type Report struct {
	ClusterID  string        `json:"cluster_id"`
	Generation int64         `json:"generation"` // of recoveries of the bucket
	Topics     int           `json:"topics"`
	Partitions int           `json:"partitions"`
	Owned      int           `json:"owned"`   // partitions whose owner's stream is not sealed
	Streams    int           `json:"streams"` // of the object WAL
	Sealed     int           `json:"sealed"`  // of them
	Segments   int           `json:"segments"`
	Bytes      int64         `json:"bytes"` // of the segments' objects
	Lost       []Loss        `json:"lost"`
	Took       time.Duration `json:"took_ns"`
}

// Run rebuilds the metadata store. It may be run again when it was interrupted. Agents of the cluster may run meanwhile:
// they go on, and come back to the metadata store by themselves. What is damaged is reported, and does not keep the rest
// from being recovered. metadata.ErrNotLost: the store has the cluster. ErrInUse: see Options.TakeOver.
func Run(ctx context.Context, o Options) (*Report, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Wait <= 0 {
		o.Wait = leaseWait
	}
	if o.Progress == nil {
		o.Progress = func(string, int) {}
	}
	began := o.Now()
	r := &run{o: o, owned: map[ids.TopicPartition]metadata.Owner{}, report: &Report{Lost: []Loss{}}}
	meta, err := metadata.OpenRecovery(ctx, metadata.Options{KV: o.KV, Bucket: o.Bucket, Incarnation: ids.NewIncarnation(), Logger: o.Logger, Now: o.Now}, r.noneElsewhere)
	if err != nil {
		return nil, err
	}
	r.meta = meta
	defer func() { _ = meta.Close() }()
	cluster, err := ids.ParseTopicID(meta.ClusterID())
	if err != nil {
		return nil, fmt.Errorf("cluster id: %w", err)
	}
	r.cluster = cluster
	for _, step := range []func(context.Context) error{r.streams, r.owners, r.disks, r.segments, meta.FinishRecovery} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	r.report.ClusterID, r.report.Generation, r.report.Took = meta.ClusterID(), meta.Generation(), o.Now().Sub(began)
	return r.report, nil
}

type run struct {
	o       Options
	meta    *metadata.Store
	cluster [16]byte
	mu      sync.Mutex // of what follows
	owned   map[ids.TopicPartition]metadata.Owner
	report  *Report
}

// noneElsewhere makes sure that whoever writes to the bucket has its lease in the metadata store that is being rebuilt.
func (r *run) noneElsewhere(ctx context.Context, meta *metadata.Store) error {
	if r.o.TakeOver {
		return nil
	}
	streams, err := wal.ListStreams(ctx, r.o.Bucket)
	if err != nil {
		return err
	}
	end := r.o.Now().Add(r.o.Wait)
	for _, s := range streams {
		if s.Sealed || r.o.Now().Sub(s.Newest) > recentPut {
			continue
		}
		for {
			_, held, err := meta.LeaseCounter(ctx, s.Incarnation)
			if err != nil {
				return err
			}
			if held {
				break
			}
			if r.o.Now().After(end) {
				return fmt.Errorf("%w: %s has put an object %s ago and has no lease in this one: give recover the metadata store that the agents use, or stop them, wait for a minute and run it again",
					ErrInUse, s.Incarnation, r.o.Now().Sub(s.Newest).Round(time.Second))
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(leasePoll):
			}
		}
	}
	return nil
}

// streams reads who leads what, and tells of the seals.
func (r *run) streams(ctx context.Context) error {
	streams, err := wal.ListStreams(ctx, r.o.Bucket)
	if err != nil {
		return err
	}
	r.report.Streams = len(streams)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(streamsAtOnce)
	for _, s := range streams {
		g.Go(func() error {
			err := r.stream(ctx, s)
			if err != nil && ctx.Err() == nil && !errors.Is(err, metadata.ErrUnavailable) && !objstore.Retriable(err) {
				r.lose(Loss{Object: wal.Prefix + string(s.Incarnation) + "/", Error: err.Error()})
				err = nil
			}
			return err
		})
	}
	return g.Wait()
}

func (r *run) stream(ctx context.Context, s wal.Listed) error {
	if s.Objects == 0 {
		return nil
	}
	if s.Sealed {
		seal, err := wal.ReadSeal(ctx, r.o.Bucket, r.cluster, s.Incarnation)
		if err == nil && seal == nil {
			err = fmt.Errorf("the list shows a seal of %s, and it is not there", s.Incarnation)
		}
		if err == nil {
			err = r.meta.PublishSealed(ctx, s.Incarnation, seal.At)
		}
		if err == nil {
			r.mu.Lock()
			r.report.Sealed++
			r.o.Progress("sealed streams", r.report.Sealed)
			r.mu.Unlock()
		}
		return err
	}
	st, err := wal.FoldLiving(ctx, r.o.Bucket, r.cluster, s.Incarnation)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for tp, t := range st.Tails {
		r.meta.NoteLogStart(tp, t.LogStart)
		if have, ok := r.owned[tp]; !ok || have.Epoch < t.Epoch {
			r.owned[tp] = metadata.Owner{Incarnation: s.Incarnation, Epoch: t.Epoch}
		}
	}
	return nil
}

// owners writes the rows of partitions. What seals and releases have given and nobody has accepted yet is
// left to the agents, who read the seals, and seal the streams of dead owners.
func (r *run) owners(ctx context.Context) error {
	var owned []metadata.Owned
	for _, t := range r.meta.Snapshot().Topics() {
		r.report.Topics++
		for p := range t.Partitions {
			r.report.Partitions++
			tp := ids.TopicPartition{Topic: t.ID, Partition: p}
			if o, ok := r.owned[tp]; ok || r.meta.LogStart(tp) > 0 {
				owned = append(owned, metadata.Owned{TP: tp, Owner: o})
			}
			if _, ok := r.owned[tp]; ok {
				r.report.Owned++
			}
		}
	}
	r.o.Progress("partitions", r.report.Partitions)
	return r.meta.RaiseOwners(ctx, owned)
}

// disks tells of those that were abandoned.
func (r *run) disks(ctx context.Context) error {
	disks, err := r.meta.Disks(ctx)
	for _, d := range disks {
		if err == nil && d.Abandoned() {
			err = r.meta.PublishAbandoned(ctx, d.Disk, d.N)
		}
	}
	return err
}

// segments indexes what data/ has.
func (r *run) segments(ctx context.Context) error {
	topics := r.meta.Snapshot()
	known := func(id ids.TopicID) bool { return topics.TopicByID(id) != nil }
	return tiering.ScanBucket(ctx, r.o.Bucket, known, func(ctx context.Context, p *tiering.BucketPartition) error {
		rows := make([]metadata.SegmentRow, len(p.Rows))
		bytes := int64(0)
		for i, s := range p.Rows {
			rows[i] = broker.RowOf(s)
			bytes += s.Size
		}
		if err := r.meta.IndexSegments(ctx, rows); err != nil {
			return err
		}
		r.mu.Lock()
		r.report.Segments += len(rows)
		r.report.Bytes += bytes
		r.o.Progress("segments", r.report.Segments)
		r.mu.Unlock()
		r.lacking(topics.TopicByID(p.TP.Topic).Name, p)
		return nil
	})
}

// lacking notes what is damaged or missing of a partition.
func (r *run) lacking(topic string, p *tiering.BucketPartition) {
	for _, d := range p.Damaged {
		r.lose(Loss{Topic: topic, Partition: p.TP.Partition, From: d.Base, To: d.Last + 1, Object: d.Key(), Error: d.Err.Error()})
	}
	for _, g := range p.Gaps(r.meta.LogStart(p.TP)) {
		r.lose(Loss{Topic: topic, Partition: p.TP.Partition, From: g[0], To: g[1], Error: "no segment has these offsets"})
	}
}

func (r *run) lose(l Loss) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Lost = append(r.report.Lost, l)
	r.o.Logger.Error("the bucket is damaged", "topic", l.Topic, "partition", l.Partition, "from", l.From, "to", l.To, "object", l.Object, "err", l.Error)
}
