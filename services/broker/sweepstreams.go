package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

const (
	// streamSweepLease is for how long one agent has the right to sweep streams; while it does it renews that.
	streamSweepLease = 30 * time.Second
	// streamSweepTime bounds a sweep; the next one goes on.
	streamSweepTime = 5 * time.Minute
)

// SweptStreams is what a sweep of sealed streams has done.
type SweptStreams struct {
	wal.Swept
	Elsewhere bool `json:"elsewhere"` // another sweep is at them, so nothing was done
}

// Streams deletes objects of sealed streams that nobody needs any more, unless another sweep is
// at it, which two may be without harm.
func (s *Sweeper) Streams(ctx context.Context) (SweptStreams, error) {
	if err := s.o.Meta.CheckOwner(ctx); err != nil {
		return SweptStreams{}, err
	}
	if ok, err := s.o.Meta.TryDuty(ctx, metadata.SweepStreams, streamSweepLease); !ok {
		return SweptStreams{Elsewhere: err == nil}, err
	}
	work, cancel := context.WithTimeout(ctx, streamSweepTime)
	var wg sync.WaitGroup
	wg.Go(func() { s.keepSweeping(work, cancel) })
	swept, err := s.sweepStreams(work)
	cancel()
	wg.Wait() // before the right is given up
	return SweptStreams{Swept: swept}, errors.Join(err, s.o.Meta.EndDuty(context.WithoutCancel(ctx), metadata.SweepStreams))
}

func (s *Sweeper) sweepStreams(ctx context.Context) (wal.Swept, error) {
	cluster, err := ids.ParseTopicID(s.o.Meta.ClusterID())
	if err != nil {
		return wal.Swept{}, fmt.Errorf("cluster id: %w", err)
	}
	n, err := s.newNeeds(ctx)
	if err != nil {
		return wal.Swept{}, err
	}
	return wal.SweepSealed(ctx, s.o.Bucket, cluster, n, s.o.Logger)
}

// keepSweeping renews the right to sweep streams until ctx ends, and ends it when another sweep has the right.
func (s *Sweeper) keepSweeping(ctx context.Context, end context.CancelFunc) {
	every(ctx, streamSweepLease/3, func() {
		if ok, err := s.o.Meta.TryDuty(ctx, metadata.SweepStreams, streamSweepLease); !ok && err == nil {
			end()
		}
	})
}

// needsAge is for how long what was read of the metadata store counts as read just before a delete.
const needsAge = 5 * time.Second

// needs tells what of streams can go: by the index and the rows of partitions as they are now, and by
// what the bucket says of topics and log starts. Spare may be called by several goroutines.
type needs struct {
	s      *Sweeper
	epochs map[ids.TopicID]epochsAt

	mu      sync.Mutex
	proofs  *bucketProofs
	indexed map[ids.TopicPartition]indexed
}

type epochsAt struct {
	at     time.Time
	epochs map[int32]int32
}

// indexed is a range of offsets without a gap that the index had.
type indexed struct {
	at       time.Time
	from, to int64 // [from, to)
}

var _ wal.Needs = (*needs)(nil)

func (s *Sweeper) newNeeds(ctx context.Context) (*needs, error) {
	p, err := s.readProofs(ctx)
	if err != nil {
		return nil, err
	}
	return &needs{s: s, proofs: p, epochs: map[ids.TopicID]epochsAt{}, indexed: map[ids.TopicPartition]indexed{}}, nil
}

// readProofs reads what the bucket says of deleted topics and log starts.
func (s *Sweeper) readProofs(ctx context.Context) (*bucketProofs, error) {
	p := &bucketProofs{meta: s.o.Meta, deleted: map[ids.TopicID]time.Time{}}
	topics, err := s.o.Meta.DeletedTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("read deleted topics: %w", err)
	}
	for _, t := range topics {
		p.deleted[t.ID] = time.UnixMilli(t.At)
	}
	if p.starts.starts, p.starts.at, err = s.o.Meta.DatedLogStarts(ctx); err != nil {
		return nil, fmt.Errorf("read log starts: %w", err)
	}
	return p, nil
}

// Accepted implements wal.Needs: the row of a partition is raised when the acceptance is durable.
func (n *needs) Accepted(ctx context.Context, tp ids.TopicPartition, epoch int32) (bool, error) {
	if _, deleted := n.proofs.deleted[tp.Topic]; deleted {
		return true, nil
	}
	have, ok := n.epochs[tp.Topic]
	if now := n.s.o.Now(); !ok || now.Sub(have.at) > needsAge {
		rows, err := n.s.o.Meta.Raised(ctx, tp.Topic)
		if err != nil {
			return false, err
		}
		have = epochsAt{now, rows}
		n.epochs[tp.Topic] = have
	}
	got, ok := have.epochs[tp.Partition]
	return ok && got >= epoch, nil
}

// Spare implements wal.Needs.
func (n *needs) Spare(ctx context.Context, tp ids.TopicPartition, base, last int64) (bool, error) {
	n.mu.Lock()
	start, x := n.proofs.starts.starts[tp], n.indexed[tp]
	_, deleted := n.proofs.deleted[tp.Topic]
	n.mu.Unlock()
	if deleted || last < start {
		return true, nil
	}
	base = max(base, start)
	if now := n.s.o.Now(); now.Sub(x.at) > needsAge || base < x.from || base > x.to {
		x = indexed{at: now, from: base, to: base}
	}
	defer func() {
		n.mu.Lock()
		n.indexed[tp] = x
		n.mu.Unlock()
	}()
	for x.to <= last {
		rows, err := n.s.index.Segments(ctx, tp, x.to, segmentPage)
		if err != nil {
			return false, fmt.Errorf("read segment index: %w", err)
		}
		to := coveredTo(rows, x.to)
		if to == x.to {
			return false, nil
		}
		x.to = to
	}
	return true, nil
}

// coveredTo returns up to where the rows hold all offsets from from on.
func coveredTo(rows []tiering.Segment, from int64) int64 {
	rows = slices.Clone(rows)
	slices.SortFunc(rows, func(a, b tiering.Segment) int { return cmp.Compare(a.Base, b.Base) })
	for _, r := range rows {
		if r.Base > from {
			break
		}
		from = max(from, r.Last+1)
	}
	return from
}

// Sweeper is what sweeps the bucket for this broker.
func (b *Broker) Sweeper() *Sweeper { return b.sweeper }

// sweepStreams is a sweep of streams in the background.
func (b *Broker) sweepStreams() {
	if b.opts.Leaders == nil {
		return // there are no streams in the bucket
	}
	s, err := b.sweeper.Streams(b.ctx)
	if err != nil && b.ctx.Err() == nil && !errors.Is(err, metadata.ErrUnavailable) {
		b.opts.Logger.Warn("sweep of sealed streams failed", "err", err)
	}
	if s.Objects > 0 {
		b.opts.Logger.Info("swept sealed streams", "objects", s.Objects, "bytes", s.Bytes, "waiting", s.Waiting)
	}
}
