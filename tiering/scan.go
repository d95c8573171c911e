package tiering

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/segment"
)

// scanChunk is how much of an object a Scan gets at once, in bytes.
const scanChunk = 4 << 20

// Trailer returns a segment's trailer.
func (r *Reader) Trailer(ctx context.Context, row Segment) (*segment.Index, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	return r.trailers.get(ctx, row.SegmentKey, row)
}

// Scan calls fn with every verified batch of one segment that holds an offset
// of [from, to], in order. It goes past the caches of blocks, so that background
// work does not push out what consumers read. raw is only valid during the
// call; an error of fn ends the scan as it is.
func (r *Reader) Scan(ctx context.Context, row Segment, from, to int64, fn func(h batch.Header, raw []byte) error) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	idx, err := r.trailers.get(ctx, row.SegmentKey, row)
	if err != nil {
		return err
	}
	spans := idx.Spans()
	var buf []byte
	for i := 0; i < len(spans) && spans[i].Base <= to; {
		if i+1 < len(spans) && spans[i+1].Base <= from {
			i++
			continue
		}
		j := i + 1
		for j < len(spans) && spans[j].Base <= to && spans[j].Pos-spans[i].Pos < scanChunk {
			j++
		}
		end := row.LogSize
		if j < len(spans) {
			end = spans[j].Pos
		}
		n := int(end - spans[i].Pos)
		buf = slices.Grow(buf[:0], n)[:n]
		if err := r.scanSpans(ctx, row, spans[i:j], end, buf); err != nil {
			return err
		}
		if err := eachBatch(buf, from, to, fn); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// scanSpans gets the bytes of spans and verifies them.
func (r *Reader) scanSpans(ctx context.Context, row Segment, spans []segment.Span, end int64, buf []byte) error {
	for attempt := 1; ; attempt++ {
		if err := r.fetcher.fetch(ctx, row.Key(), spans[0].Pos, buf); err != nil {
			return err
		}
		err := segment.VerifySpan(buf, spans, end)
		if err == nil {
			return nil
		}
		r.count(func(s *ReaderStats) { s.Damaged++ })
		if attempt == 2 {
			return fmt.Errorf("%w: %s: %w", ErrDamaged, row.Key(), err)
		}
	}
}

// eachBatch calls fn with the batches of b, which are whole, that hold an
// offset of [from, to].
func eachBatch(b []byte, from, to int64, fn func(h batch.Header, raw []byte) error) error {
	for len(b) > 0 {
		h, err := batch.Parse(b)
		if err != nil || h.Size() > len(b) {
			return errors.Join(ErrDamaged, err) // verified: can't be
		}
		raw := b[:h.Size():h.Size()]
		b = b[h.Size():]
		if h.LastOffset() < from || h.BaseOffset > to {
			continue
		}
		if err := fn(h, raw); err != nil {
			return err
		}
	}
	return nil
}
