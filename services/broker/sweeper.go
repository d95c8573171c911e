package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// SweeperOptions of NewSweeper. Meta and Bucket are required.
type SweeperOptions struct {
	Meta   *metadata.Store // of metadata.Open or OpenTool
	Bucket objstore.Bucket
	Now    func() time.Time // default: time.Now
	Logger *slog.Logger     // default: discard
}

// Sweeper deletes what the bucket proves that nobody needs. It needs no agent: whoever has the metadata store and the
// bucket can sweep, several at once, beside the agents. It is safe for concurrent use.
type Sweeper struct {
	o      SweeperOptions
	index  tiering.Index
	proofs proofReader
}

// NewSweeper returns a sweeper that does nothing by itself.
func NewSweeper(o SweeperOptions) *Sweeper {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Sweeper{o: o, index: NewIndex(o.Meta)}
}

// Segments runs one sweep of data/: see tiering.Sweep. What is dead stays for grace, for readers that still hold its row.
func (s *Sweeper) Segments(ctx context.Context, grace time.Duration, dryRun bool) (tiering.SweepReport, error) {
	if err := s.o.Meta.CheckOwner(ctx); err != nil {
		return tiering.SweepReport{}, err
	}
	proofs, err := s.proofs.read(ctx, s.o.Meta, s.o.Now(), grace)
	if err != nil {
		return tiering.SweepReport{}, err
	}
	return tiering.Sweep(ctx, tiering.SweepOptions{Bucket: s.o.Bucket, Index: s.index, Proofs: proofs, Grace: grace, DryRun: dryRun,
		Now: s.o.Now, Logger: s.o.Logger})
}

// proofReader reads from the bucket what may be deleted. A log start there is as old as the newest object that has
// all of them, which may be young for ever; so it also remembers since when it has known them.
type proofReader struct {
	mu      sync.Mutex
	history []startsAt // oldest first
}

type startsAt struct {
	at     time.Time
	starts map[ids.TopicPartition]int64
}

// read returns the proofs for one sweep. A log start counts as old as the
// newest reading that has passed the grace period.
func (r *proofReader) read(ctx context.Context, meta *metadata.Store, now time.Time, grace time.Duration) (tiering.Proofs, error) {
	p := &bucketProofs{meta: meta, deleted: map[ids.TopicID]time.Time{}}
	topics, err := meta.DeletedTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("read deleted topics: %w", err)
	}
	for _, t := range topics {
		p.deleted[t.ID] = time.UnixMilli(t.At)
	}
	starts, at, err := meta.DatedLogStarts(ctx)
	if err != nil {
		return nil, fmt.Errorf("read log starts: %w", err)
	}
	if at.After(now) {
		at = now
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history = append(r.history, startsAt{at: at, starts: starts})
	for len(r.history) > 1 && now.Sub(r.history[1].at) >= grace {
		r.history = r.history[1:]
	}
	p.starts = r.history[0]
	return p, nil
}

// bucketProofs are the proofs of one sweep.
type bucketProofs struct {
	meta    *metadata.Store
	deleted map[ids.TopicID]time.Time
	starts  startsAt
}

var _ tiering.Proofs = (*bucketProofs)(nil)

// Topic implements tiering.Proofs.
func (p *bucketProofs) Topic(_ context.Context, id ids.TopicID) (tiering.TopicState, error) {
	if at, ok := p.deleted[id]; ok {
		return tiering.TopicState{Known: true, Deleted: true, DeletedAt: at}, nil
	}
	return tiering.TopicState{Known: p.meta.Snapshot().TopicByID(id) != nil}, nil
}

// LogStart implements tiering.Proofs.
func (p *bucketProofs) LogStart(_ context.Context, tp ids.TopicPartition) (tiering.LogStart, error) {
	if o, ok := p.starts.starts[tp]; ok {
		return tiering.LogStart{Offset: o, Since: p.starts.at}, nil
	}
	return tiering.LogStart{}, nil
}
