package broker

import (
	"context"
	"fmt"

	"github.com/cirrolog/cirrolog/storage/batch"
)

// Special timestamps of ListOffsets.
const (
	TimestampLatest                = -1
	TimestampEarliest              = -2
	TimestampMax                   = -3 // KIP-734
	TimestampEarliestLocal         = -4 // KIP-405
	TimestampLatestTiered          = -5 // KIP-1005
	TimestampEarliestPendingUpload = -6 // KIP-1023
)

// Offset answers ListOffsets: ts is a time in ms since 1970, giving the first
// record at or after it, or one of the special timestamps. Offset -1 means
// that there is none.
func (p *Partition) Offset(ctx context.Context, ts int64) (OffsetAt, error) {
	off := p.log.Offsets()
	at := func(o int64) (OffsetAt, error) {
		return OffsetAt{Offset: o, Timestamp: -1, LeaderEpoch: p.LeaderEpoch()}, nil
	}
	none := OffsetAt{Offset: -1, Timestamp: -1, LeaderEpoch: -1}
	switch ts {
	case TimestampLatest:
		return at(off.HighWatermark)
	case TimestampEarliest:
		return at(off.Start)
	case TimestampEarliestLocal:
		return at(max(off.LocalStart, off.Start))
	case TimestampLatestTiered:
		if end := p.tiered.Load(); end > 0 {
			return at(end - 1)
		}
		return none, nil
	case TimestampEarliestPendingUpload:
		if !p.config().RemoteStorage {
			return none, nil
		}
		return at(max(p.tiered.Load(), off.Start))
	case TimestampMax:
		return p.maxTimestamp(ctx)
	}
	if ts < 0 {
		return none, fmt.Errorf("%w: timestamp %d", ErrInvalidTimestamp, ts)
	}
	return p.offsetSince(ctx, ts)
}

// offsetSince finds the first record at or after ts: in the bucket for what is
// only there, then on this disk and in memory.
func (p *Partition) offsetSince(ctx context.Context, ts int64) (OffsetAt, error) {
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	off := p.log.Offsets()
	if off.Start < off.LocalStart && p.tiered.Load() > off.Start {
		r, ok, err := p.b.opts.Reader.OffsetForTimestamp(ctx, p.tp, ts, off.Start)
		if err != nil {
			return OffsetAt{}, fmt.Errorf("%w: %w", ErrStorage, err)
		}
		if ok && r.Offset < off.LocalStart {
			return OffsetAt{Offset: r.Offset, Timestamp: r.Timestamp, LeaderEpoch: r.Epoch}, nil
		}
	}
	for from := off.Start; ; {
		base, end, ok, err := p.log.FirstSpanSince(ts, from)
		if err != nil {
			return OffsetAt{}, storageError(err)
		}
		if !ok {
			return OffsetAt{Offset: -1, Timestamp: -1, LeaderEpoch: -1}, nil
		}
		found, err := p.scanSince(ctx, max(base, from), end, ts)
		if err != nil || found.Offset >= 0 {
			return found, err
		}
		from = end // the span's timestamp was that of a record below the log start
	}
}

// scanSince walks records on this disk from offset up to (without) end.
func (p *Partition) scanSince(ctx context.Context, offset, end, ts int64) (OffsetAt, error) {
	none := OffsetAt{Offset: -1, Timestamp: -1, LeaderEpoch: -1}
	start := offset
	for offset < end {
		r, err := p.log.Read(ctx, offset, 1<<20, true)
		if err != nil {
			return none, storageError(err)
		}
		if r.Size == 0 {
			return none, nil
		}
		for _, b := range r.Data {
			found, next, err := FindTimestamp(b, start, ts)
			if err != nil {
				r.Release()
				return none, fmt.Errorf("%w: %w", ErrStorage, err)
			}
			if found.Offset >= 0 {
				r.Release()
				return found, nil
			}
			offset = next
		}
		r.Release()
	}
	return none, nil
}

// FindTimestamp returns the first record in the batches b with an offset of at
// least from and a timestamp of at least ts, and the offset behind b.
func FindTimestamp(b []byte, from, ts int64) (found OffsetAt, next int64, err error) {
	found = OffsetAt{Offset: -1, Timestamp: -1, LeaderEpoch: -1}
	for len(b) > 0 {
		h, err := batch.Parse(b)
		if err != nil {
			return found, 0, err
		}
		next = h.LastOffset() + 1
		one := b[:h.Size()]
		b = b[h.Size():]
		if h.MaxTimestamp < ts || h.LastOffset() < from {
			continue
		}
		if h.LogAppendTime() {
			return OffsetAt{Offset: max(h.BaseOffset, from), Timestamp: h.MaxTimestamp, LeaderEpoch: h.LeaderEpoch}, next, nil
		}
		for r, err := range batch.Records(one, batch.Limits{}) {
			if err != nil {
				return found, next, err
			}
			if o := h.BaseOffset + int64(r.OffsetDelta); r.Timestamp >= ts && o >= from {
				return OffsetAt{Offset: o, Timestamp: r.Timestamp, LeaderEpoch: h.LeaderEpoch}, next, nil
			}
		}
	}
	return found, next, nil
}

// maxTimestamp finds the record with the greatest timestamp of all tiers. What
// segments say of theirs is an upper bound: it may be that of a record below
// the log start.
func (p *Partition) maxTimestamp(ctx context.Context) (OffsetAt, error) {
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	off := p.log.Offsets()
	ts := p.log.MaxTimestamp()
	if off.Start < off.LocalStart && p.tiered.Load() > off.Start {
		t, err := p.b.opts.Reader.MaxTimestamp(ctx, p.tp, off.Start)
		if err != nil {
			return OffsetAt{}, fmt.Errorf("%w: %w", ErrStorage, err)
		}
		ts = max(ts, t)
	}
	best := OffsetAt{Offset: -1, Timestamp: -1, LeaderEpoch: -1}
	for at := ts; best.Timestamp < ts; at = ts - (ts-best.Timestamp)/2 {
		found, err := p.offsetSince(ctx, at)
		if err != nil {
			return found, err
		}
		if found.Offset >= 0 {
			best = found
		} else {
			ts = at - 1
		}
	}
	return best, nil
}
