package tiering

import (
	"context"
	"fmt"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
)

// TimeOffset is a record's place and time.
type TimeOffset struct {
	Offset    int64
	Timestamp int64 // ms since 1970
	Epoch     int32 // leader epoch of its batch
}

// eachRow calls fn with the rows of tp that hold offsets from from on, in
// order of Last and without those hidden by a higher generation within a page,
// until it returns true or an error.
func (r *Reader) eachRow(ctx context.Context, tp ids.TopicPartition, from int64, fn func(Segment) (done bool, err error)) error {
	for {
		rows, err := r.o.Index.Segments(ctx, tp, from, rowsAtOnce)
		if err != nil {
			return fmt.Errorf("read rows of %s: %w", tp, err)
		}
		last := from
		for _, row := range winners(rows) {
			if row.Last < from {
				continue
			}
			if done, err := fn(row); done || err != nil {
				return err
			}
			last = max(last, row.Last+1)
		}
		if len(rows) < rowsAtOnce || last == from {
			return nil
		}
		from = last
	}
}

// OffsetForTimestamp returns the first tiered record with an offset of at
// least from and a timestamp of at least ts (ms since 1970). ok is false when
// there is none.
func (r *Reader) OffsetForTimestamp(ctx context.Context, tp ids.TopicPartition, ts, from int64) (found TimeOffset, ok bool, err error) {
	if err := r.enter(); err != nil {
		return found, false, err
	}
	defer r.leave()
	err = r.eachRow(ctx, tp, max(from, 0), func(row Segment) (bool, error) {
		if row.MaxTimestamp < ts {
			from = max(from, row.Last+1)
			return false, nil
		}
		var err error
		found, ok, err = r.searchRow(ctx, row, ts, from)
		from = max(from, row.Last+1) // what a rewritten segment hides of the next is not looked at
		return ok, err
	})
	return found, ok, err
}

// searchRow looks for the record in one segment.
func (r *Reader) searchRow(ctx context.Context, row Segment, ts, from int64) (TimeOffset, bool, error) {
	idx, err := r.trailers.get(ctx, row.SegmentKey, row)
	if err != nil {
		return TimeOffset{}, false, err
	}
	spans := idx.Spans()
	for i, s := range spans {
		end := row.LogSize
		if i+1 < len(spans) {
			end = spans[i+1].Pos
			if spans[i+1].Base <= from {
				continue
			}
		}
		if s.MaxTimestamp < ts {
			continue
		}
		buf, release, err := r.readSpans(ctx, row, spans[i:i+1], end, false)
		if err != nil {
			return TimeOffset{}, false, err
		}
		found, ok, err := findTimestamp(buf, from, ts)
		release()
		if ok || err != nil {
			return found, ok, err
		}
	}
	return TimeOffset{}, false, nil
}

// MaxTimestamp returns the greatest timestamp of the tiered segments that hold
// offsets from from on, -1 when there is none.
func (r *Reader) MaxTimestamp(ctx context.Context, tp ids.TopicPartition, from int64) (int64, error) {
	if err := r.enter(); err != nil {
		return -1, err
	}
	defer r.leave()
	ts := int64(-1)
	err := r.eachRow(ctx, tp, max(from, 0), func(row Segment) (bool, error) {
		ts = max(ts, row.MaxTimestamp)
		return false, nil
	})
	return ts, err
}

// EpochEnd returns the greatest leader epoch in the tiered range that is not
// greater than epoch, and the offset at which it ends: where the next epoch
// begins, or the end of the tiered range when that has no later one. ok is
// false when every tiered epoch is greater. *GapError: the boundary lies where
// the index has no rows, or behind its last row, which ends before offset to.
func (r *Reader) EpochEnd(ctx context.Context, tp ids.TopicPartition, epoch int32, to int64) (found int32, end int64, ok bool, err error) {
	if err := r.enter(); err != nil {
		return -1, -1, false, err
	}
	defer r.leave()
	// A row's epoch is its writer's, so no batch of it has a greater one:
	// only rows about the boundary need their trailers.
	var before *Segment
	bounded := false  // a greater epoch was found
	next := int64(-1) // behind the rows before, if there are any
	err = r.eachRow(ctx, tp, 0, func(row Segment) (bool, error) {
		behind := next
		next = max(next, row.Last+1)
		if row.Epoch <= epoch {
			before, ok, end = &row, false, row.Last+1
			return false, nil
		}
		idx, err := r.trailers.get(ctx, row.SegmentKey, row)
		if err != nil {
			return false, err
		}
		for i, e := range idx.Epochs {
			if e.Epoch > epoch {
				if i == 0 && behind >= 0 && behind < row.Base {
					return false, &GapError{TP: tp, From: behind, To: row.Base}
				}
				end, bounded = e.Start, true
				return true, nil
			}
			found, ok = e.Epoch, true
		}
		end = row.Last + 1
		return false, nil
	})
	if err == nil && !bounded && max(next, 0) < to {
		err = &GapError{TP: tp, From: max(next, 0), To: to}
	}
	if err != nil {
		return -1, -1, false, err
	}
	if !ok && before != nil {
		idx, err := r.trailers.get(ctx, before.SegmentKey, *before)
		if err != nil {
			return -1, -1, false, err
		}
		if n := len(idx.Epochs); n > 0 {
			found, ok = idx.Epochs[n-1].Epoch, true
		}
	}
	if !ok {
		return -1, -1, false, nil
	}
	return found, end, true, nil
}

// Aborted returns the aborted transactions that touch offsets [from, to) of
// the tiered range. complete is false when later, not yet tiered segments may
// hold more of them: the tiered range's last stable offset is below to.
func (r *Reader) Aborted(ctx context.Context, tp ids.TopicPartition, from, to int64) (txns []segment.AbortedTxn, complete bool, err error) {
	if err := r.enter(); err != nil {
		return nil, false, err
	}
	defer r.leave()
	err = r.eachRow(ctx, tp, max(from, 0), func(row Segment) (bool, error) {
		idx, err := r.trailers.get(ctx, row.SegmentKey, row)
		if err != nil {
			return false, err
		}
		txns = append(txns, idx.Aborted(from, to)...)
		complete = row.LastStable >= to
		return complete, nil
	})
	return txns, complete, err
}

// Producers returns the state of the idempotent producers at the end of a
// segment. The caller must not change it.
func (r *Reader) Producers(ctx context.Context, s Segment) ([]segment.ProducerState, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	idx, err := r.trailers.get(ctx, s.SegmentKey, s)
	if err != nil {
		return nil, err
	}
	return idx.Producers, nil
}

// SegmentAt returns the row of the tiered segment that a read of offset uses,
// or ErrNoSegment.
func (r *Reader) SegmentAt(ctx context.Context, tp ids.TopicPartition, offset int64) (Segment, error) {
	if err := r.enter(); err != nil {
		return Segment{}, err
	}
	defer r.leave()
	row, _, _, err := r.find(ctx, tp, offset, nil)
	return row, err
}

// findTimestamp returns the first record in b, verified whole batches, with an
// offset of at least from and a timestamp of at least ts.
func findTimestamp(b []byte, from, ts int64) (TimeOffset, bool, error) {
	for len(b) > 0 {
		h, err := batch.Parse(b)
		if err != nil {
			return TimeOffset{}, false, err
		}
		one := b[:h.Size()]
		b = b[h.Size():]
		if h.MaxTimestamp < ts || h.LastOffset() < from {
			continue
		}
		if h.LogAppendTime() {
			return TimeOffset{max(h.BaseOffset, from), h.MaxTimestamp, h.LeaderEpoch}, true, nil
		}
		for r, err := range batch.Records(one, batch.Limits{}) {
			if err != nil {
				return TimeOffset{}, false, fmt.Errorf("read batch at %d: %w", h.BaseOffset, err)
			}
			if o := h.BaseOffset + int64(r.OffsetDelta); r.Timestamp >= ts && o >= from {
				return TimeOffset{o, r.Timestamp, h.LeaderEpoch}, true, nil
			}
		}
	}
	return TimeOffset{}, false, nil
}
