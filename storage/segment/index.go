package segment

import (
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cirrolog/cirrolog/storage/batch"
)

// Index is a parsed trailer. It is immutable.
type Index struct {
	Meta      Meta
	Producers []ProducerState
	Epochs    []EpochStart
	aborted   []AbortedTxn
	spans     []Span
	objectCRC uint32
}

// ParseTrailer parses a whole trailer: an .idx file, or the end of an object.
// Every checksum is verified.
func ParseTrailer(b []byte) (*Index, error) {
	if len(b) < FooterSize {
		return nil, fmt.Errorf("%w: trailer of %d bytes", ErrCorrupt, len(b))
	}
	f, err := ParseFooter(b[len(b)-FooterSize:])
	if err != nil {
		return nil, err
	}
	if f.TrailerSize != int64(len(b)) {
		return nil, fmt.Errorf("%w: trailer of %d bytes, its footer says %d", ErrCorrupt, len(b), f.TrailerSize)
	}
	var part [sections][]byte
	for i, s := range f.table {
		part[i] = b[s[0] : s[0]+s[1]]
		if crc32.Checksum(part[i], castagnoli) != s[2] {
			return nil, fmt.Errorf("%w: checksum of section %d", ErrCorrupt, i)
		}
	}
	idx := &Index{Meta: f.Meta, objectCRC: crc32.Update(f.Meta.LogCRC, castagnoli, b)}
	if idx.spans, err = decodeSpans(part[0]); err != nil {
		return nil, err
	}
	if idx.aborted, err = decodeAborted(part[1]); err != nil {
		return nil, err
	}
	if idx.Producers, err = decodeProducers(part[2]); err != nil {
		return nil, err
	}
	if idx.Epochs, err = decodeEpochs(part[3]); err != nil {
		return nil, err
	}
	if n := len(idx.spans); n > 0 && (idx.spans[0].Pos != 0 || idx.spans[0].Base < f.Meta.Base ||
		idx.spans[n-1].Pos >= f.Meta.LogSize || idx.spans[n-1].Base > f.Meta.Last) || n == 0 && f.Meta.LogSize > 0 {
		return nil, fmt.Errorf("%w: spans do not fit the log", ErrCorrupt)
	}
	return idx, nil
}

// ObjectCRC is the CRC32C of the log followed by this trailer.
func (x *Index) ObjectCRC() uint32 { return x.objectCRC }

// Spans returns all spans; the caller must not change them.
func (x *Index) Spans() []Span { return x.spans }

// Lookup returns the span that holds offset as positions in the log.
func (x *Index) Lookup(offset int64) (pos, end int64) { return lookup(x.spans, offset, x.Meta.LogSize) }

// SpansFrom returns the spans from the one that holds offset on, at least one
// and as many as start within limit bytes, and where the last of them ends.
func (x *Index) SpansFrom(offset, limit int64) ([]Span, int64) {
	return spansFrom(x.spans, offset, limit, x.Meta.LogSize, x.Meta.LogSize)
}

// LookupTime returns the first span with a timestamp >= ts that ends behind
// offset from: its first offset and the one behind its last.
func (x *Index) LookupTime(ts, from int64) (base, end int64, ok bool) {
	return lookupTime(x.spans, ts, from, x.Meta.Last+1)
}

// Aborted returns the aborted transactions that touch offsets [from, to).
func (x *Index) Aborted(from, to int64) []AbortedTxn {
	var out []AbortedTxn
	for _, t := range x.aborted {
		if t.First < to && t.Last >= from {
			out = append(out, t)
		}
	}
	return out
}

// VerifySpan checks log, the bytes of the spans up to position end: every
// batch's CRC, that offsets grow, and the spans' head checksums.
func VerifySpan(log []byte, spans []Span, end int64) error {
	if len(spans) == 0 || int64(len(log)) != end-spans[0].Pos {
		return fmt.Errorf("%w: %d bytes for %d spans that end at %d", ErrCorrupt, len(log), len(spans), end)
	}
	next := int64(-1)
	for i, s := range spans {
		to := end
		if i+1 < len(spans) {
			to = spans[i+1].Pos
		}
		if s.Pos < spans[0].Pos || to <= s.Pos || to > end {
			return fmt.Errorf("%w: span at %d does not lie before %d", ErrCorrupt, s.Pos, to)
		}
		b := log[s.Pos-spans[0].Pos : to-spans[0].Pos]
		crc, at, first := uint32(0), s.Pos, true
		for len(b) > 0 {
			h, err := batch.Check(b)
			if err != nil {
				return fmt.Errorf("%w: batch at %d: %w", ErrCorrupt, at, err)
			}
			if h.BaseOffset < next || first && h.BaseOffset != s.Base {
				return fmt.Errorf("%w: batch at %d has base offset %d", ErrCorrupt, at, h.BaseOffset)
			}
			crc = crc32.Update(crc, castagnoli, b[:HeadSize])
			next, first = h.LastOffset()+1, false
			at += int64(h.Size())
			b = b[h.Size():]
		}
		if crc != s.HeadCRC {
			return fmt.Errorf("%w: head checksum of the span at %d", ErrCorrupt, s.Pos)
		}
	}
	return nil
}

// Cut returns the batches of b, verified whole batches, from the one that holds
// offset on, as many as fit maxBytes; with minOne the first may be larger. next
// is the offset behind them, offset itself when there are none.
func Cut(b []byte, offset int64, maxBytes int, minOne bool) (cut []byte, next int64) {
	n, started := 0, false
	next = offset
	for n < len(b) {
		h, err := batch.Parse(b[n:])
		if err != nil || n+h.Size() > len(b) {
			break
		}
		if !started && h.LastOffset() < offset {
			b = b[h.Size():]
			continue
		}
		if n+h.Size() > maxBytes && (started || !minOne) {
			break
		}
		started = true
		n += h.Size()
		next = h.LastOffset() + 1
	}
	return b[:n], next
}

// ScanLog reads a log from position pos on and calls fn for every whole, intact
// batch; base offsets must follow each other from expectBase without a gap, or
// with expectBase -1 only grow. It returns where the valid batches end. An end
// before size is ErrTorn, which says what was found; an error of fn ends the
// scan as it is. raw is only valid during the call. Memory is bounded by the
// largest batch that the log has room for.
func ScanLog(r io.ReaderAt, size, pos, expectBase int64, fn func(h batch.Header, raw []byte, pos int64) error) (int64, error) {
	w := &scanWindow{r: r, size: size, pos: pos, buf: make([]byte, min(size, 256<<10))}
	strict := expectBase >= 0
	for w.pos < size {
		raw, err := w.batch()
		if err != nil {
			return w.pos, err
		}
		h, err := batch.Check(raw)
		if err == nil && (h.BaseOffset < expectBase || strict && h.BaseOffset != expectBase) {
			err = fmt.Errorf("%w: base offset %d, expected %d", ErrCorrupt, h.BaseOffset, expectBase)
		}
		if err != nil {
			return w.pos, torn(w.pos, err)
		}
		if err := fn(h, raw, w.pos); err != nil {
			return w.pos, err
		}
		expectBase = h.LastOffset() + 1
		w.skip(len(raw))
	}
	return w.pos, nil
}

// scanWindow reads a log forward, batch by batch; buf[lo:hi] are the bytes at pos.
type scanWindow struct {
	r         io.ReaderAt
	size, pos int64
	buf       []byte
	lo, hi    int
}

// batch returns the bytes of the batch at pos, unchecked but for its length.
func (w *scanWindow) batch() ([]byte, error) {
	if err := w.fill(batch.HeaderSize); err != nil {
		return nil, err
	}
	h, err := batch.Parse(w.buf[w.lo:w.hi])
	if err == nil && int64(h.Size()) > w.size-w.pos {
		err = batch.ErrTruncated
	}
	if err != nil {
		return nil, torn(w.pos, err)
	}
	if err := w.fill(h.Size()); err != nil {
		return nil, err
	}
	return w.buf[w.lo : w.lo+h.Size()], nil
}

// fill makes at least n bytes at pos available. n is bounded by the log's size.
func (w *scanWindow) fill(n int) error {
	if w.hi-w.lo >= n {
		return nil
	}
	if int64(n) > w.size-w.pos {
		return torn(w.pos, batch.ErrTruncated)
	}
	if n > len(w.buf) {
		w.buf = append(make([]byte, 0, n), w.buf[w.lo:w.hi]...)[:n]
	} else {
		copy(w.buf, w.buf[w.lo:w.hi])
	}
	w.lo, w.hi = 0, w.hi-w.lo
	want := w.buf[w.hi:min(int64(len(w.buf)), w.size-w.pos)]
	got, err := w.r.ReadAt(want, w.pos+int64(w.hi))
	w.hi += got
	if w.hi < n {
		return fmt.Errorf("read log at %d: %w", w.pos, err)
	}
	return nil
}

func (w *scanWindow) skip(n int) {
	w.lo += n
	w.pos += int64(n)
}

func torn(pos int64, err error) error {
	return fmt.Errorf("%w at position %d: %w", ErrTorn, pos, err)
}
