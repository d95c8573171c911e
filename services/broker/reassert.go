package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
)

const (
	// recentAge is for how long an agent remembers the segments that it has indexed: a metadata
	// store that forgets its last writes forgets those of seconds.
	recentAge = 15 * time.Minute
	// maxRecent bounds how many they are; the oldest are given up first.
	maxRecent = 20_000
)

// recentRows are rows of the segment index that this agent has written lately.
type recentRows struct {
	mu    sync.Mutex
	rows  map[tiering.SegmentKey]recentRow
	order []tiering.SegmentKey // as they were noted; some may be gone
}

type recentRow struct {
	segment  tiering.Segment
	replaced []tiering.SegmentKey
	at       time.Time
}

func (r *recentRows) note(s tiering.Segment, replaced []tiering.SegmentKey, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rows == nil {
		r.rows = map[tiering.SegmentKey]recentRow{}
	}
	if _, ok := r.rows[s.SegmentKey]; !ok {
		r.order = append(r.order, s.SegmentKey)
	}
	r.rows[s.SegmentKey] = recentRow{s, replaced, now}
	r.pruneLocked(now)
}

// forget drops rows that are about to be removed: they must not come back.
func (r *recentRows) forget(keys []tiering.SegmentKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range keys {
		delete(r.rows, k)
	}
}

func (r *recentRows) pruneLocked(now time.Time) {
	n := 0
	for ; n < len(r.order); n++ {
		row, ok := r.rows[r.order[n]]
		if ok && now.Sub(row.at) <= recentAge && len(r.rows) <= maxRecent {
			break
		}
		delete(r.rows, r.order[n])
	}
	r.order = r.order[n:]
}

// by returns the rows by partition.
func (r *recentRows) by(now time.Time) map[ids.TopicPartition][]recentRow {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pruneLocked(now)
	out := map[ids.TopicPartition][]recentRow{}
	for _, row := range r.rows {
		out[row.segment.TP] = append(out[row.segment.TP], row)
	}
	return out
}

// has tells whether a row is still one that was written lately, and not replaced since.
func (r *recentRows) has(k tiering.SegmentKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.rows[k]
	return ok
}

// Reassert writes those rows of the segment index again that this agent has written lately as a
// partition's leader and that the metadata store has forgotten. It goes on after an error, and
// returns the first.
func (b *Broker) Reassert(ctx context.Context) error {
	var first error
	for tp, rows := range b.index.recent.by(b.opts.Now()) {
		p, err := b.Partition(tp.Topic, tp.Partition)
		if err != nil || p.gone.Load() || p.leaving.Load() {
			continue // others assert it, or nobody has to
		}
		n, err := p.reassert(ctx, rows)
		if err != nil && first == nil {
			first = fmt.Errorf("index segments of %s again: %w", tp, err)
		}
		if n > 0 {
			b.opts.Logger.Warn("the metadata store had forgotten segments, which are indexed again", "topic", p.topic.Load().Name, "partition", tp.Partition, "segments", n)
		}
	}
	return first
}

func (p *Partition) reassert(ctx context.Context, rows []recentRow) (n int, err error) {
	from := rows[0].segment.Last
	for _, r := range rows {
		from = min(from, r.segment.Last)
	}
	have, err := p.b.tieredRows(ctx, p.tp, from)
	if err != nil {
		return 0, err
	}
	there := make(map[tiering.SegmentKey]bool, len(have))
	for _, h := range have {
		there[h.SegmentKey] = true
	}
	start := p.log.Offsets().Start
	for _, r := range rows {
		if there[r.segment.SegmentKey] || r.segment.Last < start || !p.b.index.recent.has(r.segment.SegmentKey) {
			continue
		}
		err := p.b.index.replace(ctx, r.segment, r.replaced)
		if errors.Is(err, tiering.ErrFenced) {
			return n, nil // another one leads it
		}
		if err == nil && !p.b.index.recent.has(r.segment.SegmentKey) { // replaced in this moment
			err = p.b.index.Drop(ctx, p.tp, []tiering.SegmentKey{r.segment.SegmentKey})
		}
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// ownNeeds tells what of this agent's own stream can go.
type ownNeeds struct {
	needs
	startsMu sync.Mutex
	startsAt time.Time // when the log starts were read
}

// Spare reports whether offsets of a partition that this agent's stream has are needed by nobody: they
// are in the index now, below the log start that is in the bucket, or their topic is deleted.
func (b *Broker) Spare(ctx context.Context, tp ids.TopicPartition, base, last int64) (bool, error) {
	if b.opts.Meta.Deleted(tp.Topic) {
		return true, nil
	}
	if ok, err := b.own.Spare(ctx, tp, base, last); ok || err != nil {
		return ok, err
	}
	if again, err := b.own.readStarts(ctx); !again || err != nil {
		return false, err
	}
	return b.own.Spare(ctx, tp, base, last)
}

// readStarts reads the log starts that are in the bucket, unless they were read just now.
func (o *ownNeeds) readStarts(ctx context.Context) (read bool, err error) {
	o.startsMu.Lock()
	defer o.startsMu.Unlock()
	now := o.s.o.Now()
	if now.Sub(o.startsAt) <= needsAge {
		return false, nil
	}
	starts, err := o.s.o.Meta.ReadLogStarts(ctx)
	if err != nil {
		return false, err
	}
	o.mu.Lock()
	o.proofs = &bucketProofs{starts: startsAt{starts: starts}}
	o.mu.Unlock()
	o.startsAt = now
	return true, nil
}
