package broker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// complete returns the rows of a partition with those that the metadata store has forgotten: an
// earlier owner's stream was trimmed when they were there. The bucket is asked only where offsets
// from the log start on are neither in the index nor in the streams of earlier owners.
func (b *Broker) complete(ctx context.Context, l lead.Lead, topic string, start int64, rows []tiering.Segment) ([]tiering.Segment, error) {
	from := max(start, tieredEnd(rows))
	at := held(l.Batches, from)
	if at >= l.End {
		return rows, nil
	}
	found, err := b.inBucket(ctx, l.TP, at, l.End)
	if err != nil {
		return nil, fmt.Errorf("search the bucket for offset %d of %s: %w", at, l.TP, err)
	}
	if err := b.restore(ctx, found, l.Epoch); err != nil {
		return nil, err
	}
	for _, s := range found {
		rows, from = append(rows, s), s.Last+1
	}
	if at = held(l.Batches, from); at < l.End {
		b.opts.Logger.Error("offsets are neither in the bucket nor in the streams of earlier owners", "topic", topic, "partition", l.TP.Partition, "from", at, "end", l.End)
	}
	return rows, nil
}

// completeAbandoned returns the rows of a partition whose disk was abandoned with those of segments that were
// put and not indexed: all that is in the bucket counts, and nothing else may get its offsets.
func (b *Broker) completeAbandoned(ctx context.Context, l lead.Lead, start int64, rows []tiering.Segment) ([]tiering.Segment, error) {
	from := max(start, tieredEnd(rows))
	found, err := b.inBucket(ctx, l.TP, from, math.MaxInt64)
	if err == nil {
		err = b.restore(ctx, found, l.Epoch)
	}
	if err != nil {
		return nil, fmt.Errorf("search the bucket for what an abandoned disk has put of %s: %w", l.TP, err)
	}
	return append(rows, found...), nil
}

// restore indexes segments of the bucket again, as the leader of epoch.
func (b *Broker) restore(ctx context.Context, found []tiering.Segment, epoch int32) error {
	for _, s := range found {
		if err := b.opts.Meta.RestoreSegment(ctx, RowOf(s), epoch); err != nil {
			return fmt.Errorf("index %s again: %w", s.Key(), err)
		}
		b.opts.Logger.Warn("indexed a segment again, which the metadata store had forgotten", "key", s.Key())
	}
	return nil
}

// reindex indexes again, as the leader of epoch, what the bucket has of the offsets [from, end), and drops the
// rows of objects that these segments had replaced and that are gone: a metadata store that forgot its last
// writes names them again. It returns the segments.
func (b *Broker) reindex(ctx context.Context, tp ids.TopicPartition, from, end int64, epoch int32) ([]tiering.Segment, error) {
	found, err := b.inBucket(ctx, tp, from, end)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	if err := b.restore(ctx, found, epoch); err != nil {
		return nil, err
	}
	rows, err := b.tieredRows(ctx, tp, found[0].Base)
	if err != nil {
		return nil, err
	}
	replaced := slices.DeleteFunc(rows, func(r tiering.Segment) bool {
		return r.Last > found[len(found)-1].Last || slices.ContainsFunc(found, func(f tiering.Segment) bool { return f.SegmentKey == r.SegmentKey })
	})
	if _, err := b.dropGone(ctx, tp, replaced); err != nil {
		return nil, err
	}
	return found, nil
}

// dropGone drops those of the rows from the index of which the bucket has no object, and returns the others. A metadata
// store that forgot its last writes names again what was replaced or deleted.
func (b *Broker) dropGone(ctx context.Context, tp ids.TopicPartition, rows []tiering.Segment) (left []tiering.Segment, err error) {
	var gone []tiering.SegmentKey
	for _, r := range rows {
		_, err := b.opts.Bucket.Head(ctx, r.Key())
		switch {
		case errors.Is(err, objstore.ErrNotFound):
			gone = append(gone, r.SegmentKey)
			b.opts.Logger.Warn("dropped a segment from the index that is gone, which the metadata store had forgotten", "key", r.Key())
		case err != nil:
			return nil, fmt.Errorf("look for %s: %w", r.Key(), err)
		default:
			left = append(left, r)
		}
	}
	if len(gone) == 0 {
		return left, nil
	}
	return left, b.index.Drop(ctx, tp, gone)
}

// lastProducers reads the idempotence state behind the last row. Where that row's object is gone, the rows are
// mended first; rows are those to go on with.
func (b *Broker) lastProducers(ctx context.Context, l lead.Lead, start int64, rows []tiering.Segment) (_ []tiering.Segment, state []segment.ProducerState, err error) {
	last := rows[len(rows)-1]
	state, err = b.opts.Reader.Producers(ctx, last)
	if errors.Is(err, objstore.ErrNotFound) && last.Last < start {
		// Deleted with its row, which is back: the metadata store forgot that. What it knew of producers is gone for good.
		rows, err = b.dropGone(ctx, l.TP, rows)
		return rows, nil, err
	}
	if errors.Is(err, objstore.ErrNotFound) {
		if _, err = b.reindex(ctx, l.TP, min(start, last.Last), last.Last+1, l.Epoch); err != nil {
			return nil, nil, fmt.Errorf("mend index of %s: %w", l.TP, err)
		}
		if rows, err = b.tieredRows(ctx, l.TP, 0); err != nil {
			return nil, nil, err
		}
		if len(rows) == 0 || rows[len(rows)-1].Last < last.Last {
			return nil, nil, fmt.Errorf("mend index of %s: %s is gone, and so is what replaced it", l.TP, last.Key())
		}
		state, err = b.opts.Reader.Producers(ctx, rows[len(rows)-1])
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read producers of %s: %w", l.TP, err)
	}
	return rows, state, nil
}

// mendEvery is how often the bucket is searched for what the index of a partition lacks.
const mendEvery = time.Second

// mend indexes again what the metadata store has forgotten of this partition's offsets [from, end), which
// were indexed once, or are indexed under the name of an object that was replaced. It tells whether the first can
// be read again, or may be soon.
func (p *Partition) mend(ctx context.Context, from, end int64) bool {
	p.mending.Lock()
	defer p.mending.Unlock()
	if now := p.b.opts.Now(); now.Sub(p.mended) < mendEvery {
		return true // somebody has just done it
	}
	found, err := p.b.reindex(ctx, p.tp, from, end, p.LeaderEpoch())
	if err != nil && ctx.Err() == nil {
		p.b.opts.Logger.Warn("could not index again what the metadata store has forgotten", "topic", p.topic.Load().Name, "partition", p.tp.Partition, "offset", from, "err", err)
	}
	if err == nil {
		p.mended = p.b.opts.Now()
	}
	return err == nil && len(found) > 0
}

// tieredEnd is the offset behind the last of a partition's rows, in order; 0: there is none.
func tieredEnd(rows []tiering.Segment) int64 {
	if len(rows) == 0 {
		return 0
	}
	return rows[len(rows)-1].Last + 1
}

// held returns the first offset from from on that the batches, in order, do not have.
func held(batches []wal.Placed, from int64) int64 {
	for _, p := range batches {
		if p.Base <= from && p.Last >= from {
			from = p.Last + 1
		}
	}
	return from
}

// inBucket returns segments with the offsets [from, end) as far as they are in the bucket without a gap:
// of those that hold an offset the one of the highest generation, and then the longest.
func (b *Broker) inBucket(ctx context.Context, tp ids.TopicPartition, from, end int64) (out []tiering.Segment, err error) {
	const atOnce = 1000
	index := tiering.NewBucketIndex(b.opts.Bucket)
	for from < end {
		rows, err := index.Segments(ctx, tp, from, atOnce)
		if err != nil {
			return nil, err
		}
		var best *tiering.Segment
		for i := range rows {
			r := &rows[i]
			if r.Base <= from && r.LogSize >= 0 && (best == nil || r.Generation > best.Generation || r.Generation == best.Generation && r.Last > best.Last) {
				best = r
			}
		}
		if best == nil {
			return out, nil
		}
		out, from = append(out, *best), best.Last+1
	}
	return out, nil
}
