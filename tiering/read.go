package tiering

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// ReadResult is what Read returns.
type ReadResult struct {
	// Data is whole, verified batches from the one that holds the offset on,
	// all of one segment; empty when the first one is larger than was asked
	// for. Valid until Release.
	Data [][]byte
	Size int // bytes of Data
	// NextOffset is where to read on.
	NextOffset int64
	Segment    Segment // where Data is from
	nextPos    int64   // in its log, behind Data
	// Release gives the memory back; it must be called exactly once, and is
	// never nil.
	Release func()
}

// Read returns batches of tp from the one that holds offset on, at most
// maxBytes; with minOne the first batch comes even when it alone is larger.
// It waits for the bucket and for memory until ctx ends. The error is
// ErrNoSegment when no indexed segment holds the offset, ErrDamaged when its
// bytes are not those that were written.
func (r *Reader) Read(ctx context.Context, tp ids.TopicPartition, offset int64, maxBytes int, minOne bool) (ReadResult, error) {
	if err := r.enter(); err != nil {
		return ReadResult{}, err
	}
	defer r.leave()
	once := r.streams.follows(tp, offset) // a sequential reader seldom comes again
	var bad []SegmentKey                  // rows whose objects are damaged or gone
	var badErr error
	for first := offset; ; {
		row, until, rows, err := r.find(ctx, tp, offset, bad)
		switch {
		case err != nil && offset > first && errors.Is(err, ErrNoSegment) && badErr == nil:
			// Compaction has emptied the rest of the tiered range.
			return ReadResult{NextOffset: offset, Release: func() {}}, nil
		case badErr != nil && (err != nil || row.Generation < bad[len(bad)-1].Generation):
			return ReadResult{}, badErr
		case err != nil:
			return ReadResult{}, err
		}
		res, err := r.readRow(ctx, row, until, offset, maxBytes, minOne, once)
		switch {
		case errors.Is(err, objstore.ErrNotFound), errors.Is(err, ErrDamaged):
			// A rewrite may have replaced it since its row was read, or
			// another object may hold the same records.
			bad, badErr = append(bad, row.SegmentKey), err
			r.forgetRows(tp)
			continue
		case err != nil:
			return ReadResult{}, err
		case res.Size == 0 && res.NextOffset > offset:
			offset = res.NextOffset
			res.Release()
			continue
		}
		r.aheadOf(tp, first, row, rows, res)
		r.count(func(s *ReaderStats) { s.Reads++; s.BytesServed += int64(res.Size) })
		return res, nil
	}
}

// readRow reads from one segment, but nothing from offset until on.
func (r *Reader) readRow(ctx context.Context, row Segment, until, offset int64, maxBytes int, minOne, once bool) (ReadResult, error) {
	res := ReadResult{NextOffset: until, Segment: row, Release: func() {}}
	idx, err := r.trailers.get(ctx, row.SegmentKey, row)
	if err != nil {
		return res, err
	}
	all := idx.Spans()
	if len(all) == 0 {
		return res, nil
	}
	limit := min(int64(max(maxBytes, 1)), r.resultsN/4)
	for at := max(offset, all[0].Base); at < until; {
		spans, end := idx.SpansFrom(at, limit)
		buf, release, err := r.readSpans(ctx, row, spans, end, once)
		if err != nil {
			return res, err
		}
		c := cut(buf, offset, until, maxBytes, minOne)
		switch {
		case len(c.data) > 0:
			res.Data, res.Size, res.Release = [][]byte{c.data}, len(c.data), release
			res.nextPos = spans[0].Pos + int64(c.end)
			if res.nextPos < row.LogSize {
				res.NextOffset = min(c.next, until)
			}
			return res, nil
		case c.tooBig:
			release()
			res.NextOffset = offset
			return res, nil
		}
		release()
		if end >= row.LogSize {
			break
		}
		at = spanAt(all, end) // a hole that compaction left: look in the next spans
	}
	return res, nil
}

// spanAt returns the base offset of the span at position pos.
func spanAt(spans []segment.Span, pos int64) int64 {
	lo, hi := 0, len(spans)-1
	for lo < hi {
		mid := (lo + hi) / 2
		if spans[mid].Pos < pos {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return spans[lo].Base
}

// cutting is what cut found in a run of batches.
type cutting struct {
	data   []byte
	next   int64 // offset behind data
	end    int   // position behind data
	tooBig bool  // the first batch does not fit
}

// cut returns the batches of b that hold offsets from offset on and begin
// before until, as many as fit maxBytes; with minOne the first always fits.
func cut(b []byte, offset, until int64, maxBytes int, minOne bool) cutting {
	start, at, next := -1, 0, offset
	for at < len(b) {
		h, err := batch.Parse(b[at:])
		if err != nil || h.BaseOffset >= until {
			break
		}
		if h.LastOffset() >= offset {
			if start < 0 {
				start = at
			}
			if at+h.Size()-start > maxBytes && (at > start || !minOne) {
				break
			}
			next = h.LastOffset() + 1
		}
		at += h.Size()
	}
	if start < 0 {
		return cutting{}
	}
	return cutting{data: b[start:at:at], next: next, end: at, tooBig: at == start}
}

// readSpans returns the verified bytes of spans of a row's log; end is where
// the last of them ends. release gives the memory back.
func (r *Reader) readSpans(ctx context.Context, row Segment, spans []segment.Span, end int64, once bool) (buf []byte, release func(), err error) {
	pos := spans[0].Pos
	size := end - pos
	memory := int64(1) << class(int(size)) // of the buffer
	weight := min(memory, r.resultsN)
	if err := r.results.Acquire(ctx, weight); err != nil {
		return nil, nil, err
	}
	buf = r.buffers.get(int(size))
	r.count(func(s *ReaderStats) { s.Memory += memory })
	var given sync.Once
	release = func() {
		given.Do(func() {
			r.buffers.put(buf)
			r.count(func(s *ReaderStats) { s.Memory -= memory })
			r.results.Release(weight)
		})
	}
	for attempt := 1; ; attempt++ {
		if err = r.fill(ctx, row, pos, buf, once); err != nil {
			break
		}
		r.atWork(func() { err = segment.VerifySpan(buf, spans, end) })
		if err == nil {
			return buf, release, nil
		}
		err = fmt.Errorf("%w: %s: %w", ErrDamaged, row.Key(), err)
		r.count(func(s *ReaderStats) { s.Damaged++ })
		r.o.Logger.Warn("bytes of a segment do not match, fetching them again", "key", row.Key(), "position", pos, "attempt", attempt, "err", err)
		r.dropBlocks(row, pos, end)
		if attempt == 2 {
			break
		}
	}
	release()
	return nil, nil, err
}

// fill copies the bytes from position pos of a row's log, block by block; the
// blocks behind the first are loaded at the same time.
func (r *Reader) fill(ctx context.Context, row Segment, pos int64, buf []byte, once bool) error {
	key := row.Key()
	first, last := pos/r.o.BlockBytes, (pos+int64(len(buf))-1)/r.o.BlockBytes
	for n := first; n <= last; n++ {
		for m := n + 1; m <= last; m++ {
			if !r.blocks.readAhead(blockID{key, m}, r.blockLen(row, m), once) {
				break
			}
		}
		b, err := r.blocks.get(ctx, blockID{key, n}, r.blockLen(row, n), once)
		if err != nil {
			return err
		}
		from := max(pos-n*r.o.BlockBytes, 0)
		to := n*r.o.BlockBytes + from - pos
		r.atWork(func() { copy(buf[to:], b.data[from:]) })
		r.blocks.release(b)
	}
	return nil
}

// atWork calls f, which takes milliseconds of a core, while not more than half of
// the cores do so: a replay must not make those wait who write.
func (r *Reader) atWork(f func()) {
	r.work <- struct{}{}
	f()
	<-r.work
}

// dropBlocks makes the next read of the range [pos, end) go to the bucket.
func (r *Reader) dropBlocks(row Segment, pos, end int64) {
	key := row.Key()
	for n := pos / r.o.BlockBytes; n <= (end-1)/r.o.BlockBytes; n++ {
		r.blocks.drop(blockID{key, n})
		if r.disk != nil {
			r.disk.drop(blockID{key, n})
		}
	}
}

// bufferPool recycles result buffers by the power of two of their size.
type bufferPool struct {
	classes [32]sync.Pool // of *[]byte
}

func class(n int) int { return bits.Len(uint(max(n-1, 0))) }

func (p *bufferPool) get(n int) []byte {
	c := class(n)
	if c >= len(p.classes) {
		return make([]byte, n)
	}
	if b, ok := p.classes[c].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, 1<<c)
}

func (p *bufferPool) put(b []byte) {
	c := class(cap(b))
	if c < len(p.classes) && cap(b) == 1<<c {
		p.classes[c].Put(&b)
	}
}
