package broker

import (
	"context"
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
	starts knownStarts
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
	now := s.o.Now()
	proofs, err := s.readProofs(ctx)
	if err != nil {
		return tiering.SweepReport{}, err
	}
	proofs.starts = s.starts.note(proofs.starts, now, grace)
	return tiering.Sweep(ctx, tiering.SweepOptions{Bucket: s.o.Bucket, Index: s.index, Proofs: proofs, Grace: grace, DryRun: dryRun,
		Now: s.o.Now, Logger: s.o.Logger})
}

// knownStarts remembers since when log starts are known. One in the bucket is as old as the newest object that has
// all of them, which may be young for ever.
type knownStarts struct {
	mu      sync.Mutex
	history []startsAt // oldest first
}

type startsAt struct {
	at     time.Time
	starts map[ids.TopicPartition]int64
}

// note adds what was read now, and returns the newest reading that has passed the grace period, else the oldest: as old
// its log starts count.
func (k *knownStarts) note(read startsAt, now time.Time, grace time.Duration) startsAt {
	if read.at.After(now) {
		read.at = now
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.history = append(k.history, read)
	for len(k.history) > 1 && now.Sub(k.history[1].at) >= grace {
		k.history = k.history[1:]
	}
	return k.history[0]
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
