package segment

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cirrolog/cirrolog/storage/batch"
)

// Kind says what bytes hold of a segment.
type Kind string

// The kinds of files and objects.
const (
	KindLog    Kind = "log"    // batches alone: a .log file
	KindIndex  Kind = "index"  // a trailer alone: an .idx file
	KindObject Kind = "object" // batches and trailer: a bucket object
)

// Report is what Verify found. Counts end at the first error.
type Report struct {
	Kind Kind
	// Size is the bytes given, LogSize those of the batches that are intact.
	Size, LogSize              int64
	Batches, Records           int64
	Base, Last                 int64 // first and last offset; -1 without batches
	MinTimestamp, MaxTimestamp int64
	LogCRC                     uint32 // of the intact batches
	// Index is the parsed trailer, nil without one.
	Index *Index
}

// Detect tells what r holds from its end, and parses the trailer of an index or
// an object. Bytes without a footer are taken for a log; so are those whose
// footer lost its magic, and then the log has a torn end.
func Detect(r io.ReaderAt, size int64) (Kind, *Index, error) {
	foot := make([]byte, FooterSize)
	if size < FooterSize {
		return KindLog, nil, nil
	}
	if n, err := r.ReadAt(foot, size-FooterSize); n < FooterSize {
		return "", nil, fmt.Errorf("read footer: %w", err)
	}
	if string(foot[:8]) != magic {
		return KindLog, nil, nil
	}
	kind := KindObject
	f, err := ParseFooter(foot)
	if err != nil {
		return kind, nil, err
	}
	switch size {
	case f.TrailerSize:
		kind = KindIndex
	case f.Meta.LogSize + f.TrailerSize:
	default:
		return kind, nil, fmt.Errorf("%w: %d bytes, want %d for an object or %d for an index", ErrCorrupt, size, f.Meta.LogSize+f.TrailerSize, f.TrailerSize)
	}
	trailer := make([]byte, f.TrailerSize)
	if n, err := r.ReadAt(trailer, size-f.TrailerSize); n < len(trailer) {
		return kind, nil, fmt.Errorf("read trailer: %w", err)
	}
	idx, err := ParseTrailer(trailer)
	return kind, idx, err
}

// Verify checks a log, an index or an object wholly: every checksum, that
// offsets grow, and that trailer and batches agree. The error says where the
// first problem is; it wraps ErrCorrupt, ErrTorn or ErrVersion unless reading
// failed.
func Verify(r io.ReaderAt, size int64) (Report, error) {
	kind, idx, err := Detect(r, size)
	rep := Report{Kind: kind, Size: size, Base: -1, Last: -1, MinTimestamp: -1, MaxTimestamp: -1, Index: idx}
	if err != nil {
		return rep, err
	}
	if kind == KindIndex {
		m := &idx.Meta
		rep.Records, rep.Base, rep.Last = m.Records, m.Base, m.Last
		rep.MinTimestamp, rep.MaxTimestamp = m.MinTimestamp, m.MaxTimestamp
		return rep, nil
	}
	logSize := size
	if idx != nil {
		logSize = idx.Meta.LogSize
	}
	err = verifyLog(&rep, r, logSize, idx)
	return rep, err
}

// VerifyLog checks a log of size bytes against the index of the same segment,
// as Verify does for an object.
func VerifyLog(r io.ReaderAt, size int64, idx *Index) (Report, error) {
	rep := Report{Kind: KindLog, Size: size, Base: -1, Last: -1, MinTimestamp: -1, MaxTimestamp: -1, Index: idx}
	if idx != nil && size != idx.Meta.LogSize {
		return rep, fmt.Errorf("%w: log of %d bytes, its index says %d", ErrCorrupt, size, idx.Meta.LogSize)
	}
	err := verifyLog(&rep, r, size, idx)
	return rep, err
}

func verifyLog(rep *Report, r io.ReaderAt, size int64, idx *Index) error {
	var spans spanCheck
	if idx != nil {
		spans.spans = idx.spans
	}
	_, err := ScanLog(r, size, 0, -1, func(h batch.Header, raw []byte, pos int64) error {
		if idx != nil {
			if err := spans.add(&h, raw, pos); err != nil {
				return err
			}
		}
		rep.add(&h, raw)
		return nil
	})
	if err != nil || idx == nil {
		return err
	}
	if err := spans.end(); err != nil {
		return err
	}
	m := &idx.Meta
	switch {
	case rep.LogCRC != m.LogCRC:
		return fmt.Errorf("%w: log checksum %08x, the footer has %08x", ErrCorrupt, rep.LogCRC, m.LogCRC)
	case rep.Records != m.Records || rep.Batches > 0 && (rep.Base < m.Base || rep.Last > m.Last):
		return fmt.Errorf("%w: %d records from %d to %d, the footer has %d from %d to %d", ErrCorrupt, rep.Records, rep.Base, rep.Last, m.Records, m.Base, m.Last)
	case rep.MinTimestamp != m.MinTimestamp || rep.MaxTimestamp != m.MaxTimestamp:
		return fmt.Errorf("%w: timestamps %d to %d, the footer has %d to %d", ErrCorrupt, rep.MinTimestamp, rep.MaxTimestamp, m.MinTimestamp, m.MaxTimestamp)
	}
	return nil
}

func (r *Report) add(h *batch.Header, raw []byte) {
	if r.Batches == 0 {
		r.Base = h.BaseOffset
	}
	r.Last = h.LastOffset()
	r.Batches++
	r.Records += int64(h.NumRecords)
	r.LogSize += int64(len(raw))
	r.LogCRC = crc32.Update(r.LogCRC, castagnoli, raw)
	r.MaxTimestamp = max(r.MaxTimestamp, h.MaxTimestamp)
	if first := firstTimestamp(h, raw); r.MinTimestamp < 0 || first < r.MinTimestamp {
		r.MinTimestamp = first
	}
}

// spanCheck compares batches, as they come, with the spans of an index.
type spanCheck struct {
	spans []Span
	next  int // the span that begins next
	crc   uint32
	maxTS int64
}

func (c *spanCheck) add(h *batch.Header, raw []byte, pos int64) error {
	if c.next < len(c.spans) && pos >= c.spans[c.next].Pos {
		if err := c.end(); err != nil {
			return err
		}
		s := &c.spans[c.next]
		if pos != s.Pos || h.BaseOffset != s.Base {
			return fmt.Errorf("%w: span at %d with base offset %d, the batch is at %d with %d", ErrCorrupt, s.Pos, s.Base, pos, h.BaseOffset)
		}
		c.next++
		c.crc, c.maxTS = 0, h.MaxTimestamp
	}
	if c.next == 0 {
		return fmt.Errorf("%w: batch at %d is in no span", ErrCorrupt, pos)
	}
	c.crc = crc32.Update(c.crc, castagnoli, raw[:HeadSize])
	c.maxTS = max(c.maxTS, h.MaxTimestamp)
	return nil
}

// end checks the span that ends here.
func (c *spanCheck) end() error {
	if c.next == 0 {
		return nil
	}
	if s := &c.spans[c.next-1]; c.crc != s.HeadCRC || c.maxTS != s.MaxTimestamp {
		return fmt.Errorf("%w: head checksum or timestamp of the span at %d", ErrCorrupt, s.Pos)
	}
	return nil
}

// Damaged reports whether err of Verify says that bytes are wrong, rather than
// that they could not be read or are of another version.
func Damaged(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrTorn) || errors.Is(err, batch.ErrCorrupt)
}
