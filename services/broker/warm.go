package broker

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
)

// warmTime is how long index rows that were read ahead may be used.
const warmTime = 30 * time.Second

// warmRows are index rows of partitions that this agent is about to be given.
type warmRows struct {
	mu sync.Mutex
	m  map[ids.TopicPartition]warmed
}

type warmed struct {
	rows []tiering.Segment
	read time.Time
}

// Warm reads ahead what partitions need to be led: their index rows, and the trailers of their last segments.
func (b *Broker) Warm(ctx context.Context, tps []ids.TopicPartition) error {
	b.warm.forgetOld(b.opts.Now())
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(leadsAtOnce)
	for _, tp := range tps {
		g.Go(func() error {
			read := b.opts.Now()
			rows, err := b.tieredRows(ctx, tp, 0)
			if err != nil {
				return err
			}
			if n := len(rows); n > 0 {
				if _, err := b.opts.Reader.Producers(ctx, rows[n-1]); err != nil {
					return err
				}
			}
			b.warm.put(tp, warmed{rows, read})
			return nil
		})
	}
	return g.Wait()
}

func (w *warmRows) put(tp ids.TopicPartition, rows warmed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.m == nil {
		w.m = map[ids.TopicPartition]warmed{}
	}
	w.m[tp] = rows
}

func (w *warmRows) forgetOld(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for tp, r := range w.m {
		if now.Sub(r.read) > warmTime {
			delete(w.m, tp)
		}
	}
}

// take returns the rows that were read ahead; false: none, or too long ago.
func (w *warmRows) take(tp ids.TopicPartition, now time.Time) ([]tiering.Segment, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.m[tp]
	delete(w.m, tp)
	return r.rows, ok && now.Sub(r.read) <= warmTime
}

// rowsToLead are the index rows that a partition begins with. Those that were read ahead do if the streams of
// earlier owners have everything behind them: what was tiered meanwhile is looked up before it is fetched from there.
func (b *Broker) rowsToLead(ctx context.Context, l lead.Lead, t *Topic) (rows []tiering.Segment, stale bool, err error) {
	if rows, ok := b.warm.take(l.TP, b.opts.Now()); ok && !t.Config.CleanupPolicy.Compact {
		from := max(l.LogStart, b.opts.Meta.LogStart(l.TP), tieredEnd(rows))
		if held(l.Batches, from) >= l.End {
			return rows, true, nil
		}
	}
	rows, err = b.tieredRows(ctx, l.TP, 0)
	return rows, false, err
}

// refreshAll does refreshOlder for partitions before any is fetched, as the objects of what was tiered may go.
func (b *Broker) refreshAll(parts []*Partition) {
	g, ctx := errgroup.WithContext(b.ctx)
	g.SetLimit(leadsAtOnce)
	for _, p := range parts {
		g.Go(func() error {
			_, _ = p.refreshOlder(ctx) // it is tried again before the partition is fetched
			return nil
		})
	}
	_ = g.Wait() // never fails
}

// refreshOlder notes what was tiered since the partition's index rows were read, and returns what is left to be
// fetched from the streams of earlier owners; nil: nothing.
func (p *Partition) refreshOlder(ctx context.Context) (*older, error) {
	if !p.stale.Load() {
		return p.older.Load(), nil
	}
	rows, err := p.b.tieredRows(ctx, p.tp, p.tiered.Load())
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		if r.Last >= p.tiered.Load() {
			p.addTiered(r)
		}
	}
	p.olderMu.Lock()
	defer p.olderMu.Unlock()
	p.stale.Store(false)
	o := p.older.Load()
	if o == nil { // dropOlder has given up all of it meanwhile
		return nil, nil
	}
	return p.keepOlder(o, p.tiered.Load()), nil
}
