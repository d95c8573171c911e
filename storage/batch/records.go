package batch

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Limits bound what decompression may produce.
type Limits struct {
	// MaxBytes is the most that a batch may expand to; 0 means 128 MiB.
	MaxBytes int
	// MaxRatio is the most by which it may grow, beyond a first 64 KiB; 0 means
	// no bound but MaxBytes, because records that are all alike shrink honestly
	// by a thousand times and more.
	MaxRatio int
}

// bytes is the bound for a batch with n bytes of compressed records.
func (l Limits) bytes(n int) int {
	limit := l.MaxBytes
	if limit == 0 {
		limit = 128 << 20
	}
	if l.MaxRatio > 0 {
		limit = min(limit, 64<<10+l.MaxRatio*n)
	}
	return limit
}

// ErrTooBig is wrapped when a batch expands beyond its limit.
var ErrTooBig = errors.New("batch: decompressed size exceeds the limit")

// Record is one record of a batch. Its slices alias the batch or its
// decompressed form.
type Record struct {
	OffsetDelta int32
	Timestamp   int64 // ms since 1970
	Key, Value  []byte
	Headers     []RecordHeader
}

// RecordHeader is a header of a record.
type RecordHeader struct {
	Key   string
	Value []byte
}

// Records iterates over the records of b, one whole batch, decompressing it
// within the limits. It is for readers and tools, not for the hot path. After
// an error it ends.
func Records(b []byte, limits Limits) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		h, err := Parse(b)
		if err == nil && h.Size() > len(b) {
			err = ErrTruncated
		}
		var raw []byte
		if err == nil {
			raw, err = Decompress(h.Codec(), b[HeaderSize:h.Size()], limits.bytes(h.Size()-HeaderSize))
		}
		if err != nil {
			yield(Record{}, err)
			return
		}
		for i := range h.NumRecords {
			r, rest, err := parseRecord(raw, &h)
			if err != nil {
				yield(Record{}, fmt.Errorf("%w: record %d of %d: %w", ErrInvalid, i, h.NumRecords, err))
				return
			}
			raw = rest
			if !yield(r, nil) {
				return
			}
		}
		if len(raw) != 0 {
			yield(Record{}, fmt.Errorf("%w: %d bytes behind the last record", ErrInvalid, len(raw)))
		}
	}
}

var errRecord = errors.New("fields do not fit")

func parseRecord(b []byte, h *Header) (r Record, rest []byte, err error) {
	size, w := varint(b)
	if w == 0 || size < 1 || size > int64(len(b)-w) {
		return r, nil, errRecord
	}
	rest = b[w+int(size):]
	b = b[w+1 : w+int(size)] // behind the attributes
	ts, w := varint(b)
	if w == 0 {
		return r, nil, errRecord
	}
	delta, w2 := varint(b[w:])
	if w2 == 0 || delta < 0 || delta > int64(h.LastOffsetDelta) {
		return r, nil, errRecord
	}
	r.OffsetDelta, r.Timestamp = int32(delta), h.BaseTimestamp+ts
	if h.LogAppendTime() {
		r.Timestamp = h.MaxTimestamp
	}
	b = b[w+w2:]
	var ok bool
	if r.Key, b, ok = field(b); !ok {
		return r, nil, errRecord
	}
	if r.Value, b, ok = field(b); !ok {
		return r, nil, errRecord
	}
	n, w := varint(b)
	if w == 0 || n < 0 || n > int64(len(b)-w)/2 {
		return r, nil, errRecord
	}
	b = b[w:]
	for range n {
		var k, v []byte
		if k, b, ok = field(b); !ok || k == nil {
			return r, nil, errRecord
		}
		if v, b, ok = field(b); !ok {
			return r, nil, errRecord
		}
		r.Headers = append(r.Headers, RecordHeader{Key: string(k), Value: v})
	}
	if len(b) != 0 {
		return r, nil, errRecord
	}
	return r, rest, nil
}

func field(b []byte) (f, rest []byte, ok bool) {
	n, w := varint(b)
	if w == 0 || n < -1 || n > int64(len(b)-w) {
		return nil, nil, false
	}
	if n == -1 {
		return nil, b[w:], true
	}
	return b[w : w+int(n) : w+int(n)], b[w+int(n):], true
}

// Decompress expands the records of a batch to at most limit bytes (ErrTooBig).
// Without compression it returns b itself.
func Decompress(c Codec, b []byte, limit int) ([]byte, error) {
	switch c {
	case CodecNone:
		return b, nil
	case CodecGzip:
		r, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("%w: gzip: %w", ErrCorrupt, err)
		}
		return readAll(r, c, limit)
	case CodecSnappy:
		return unsnappy(b, limit)
	case CodecLZ4:
		return readAll(lz4.NewReader(bytes.NewReader(b)), c, limit)
	case CodecZstd:
		r, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxWindow(uint64(max(min(limit, 128<<20), minWindow))), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, fmt.Errorf("%w: zstd: %w", ErrCorrupt, err)
		}
		defer r.Close()
		return readAll(r, c, limit)
	}
	return nil, fmt.Errorf("%w: %d", ErrCodec, c)
}

// minWindow is the zstd window that every decoder should grant (RFC 8878):
// encoders declare it before they know how little will follow.
const minWindow = 8 << 20

// readAll grows with what really comes out, never with what a header claims.
func readAll(r io.Reader, c Codec, limit int) ([]byte, error) {
	out, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if len(out) > limit || errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return nil, fmt.Errorf("%w: %s, %d bytes", ErrTooBig, c, limit)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, c, err)
	}
	return out, nil
}

// xerial is the framing that Java clients put around snappy blocks.
var xerial = []byte{130, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

func unsnappy(b []byte, limit int) ([]byte, error) {
	if len(b) < 16 || !bytes.HasPrefix(b, xerial) {
		return snappyBlock(nil, b, limit)
	}
	var out []byte
	for b = b[16:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, fmt.Errorf("%w: snappy block length", ErrCorrupt)
		}
		n := int(int32(binary.BigEndian.Uint32(b)))
		if n < 0 || n > len(b)-4 {
			return nil, fmt.Errorf("%w: snappy block of %d bytes", ErrCorrupt, n)
		}
		var err error
		if out, err = snappyBlock(out, b[4:4+n], limit); err != nil {
			return nil, err
		}
		b = b[4+n:]
	}
	return out, nil
}

// snappyBlock appends one decoded block. A block claims its size; no valid one
// expands by more than about 64 times its length (a 3-byte copy of 64 bytes
// gives 21), so the claim is checked before memory is taken.
func snappyBlock(out, b []byte, limit int) ([]byte, error) {
	n, err := s2.DecodedLen(b)
	if err != nil {
		return nil, fmt.Errorf("%w: snappy: %w", ErrCorrupt, err)
	}
	if n > limit-len(out) {
		return nil, fmt.Errorf("%w: snappy, %d bytes", ErrTooBig, limit)
	}
	if n > 64*len(b)+64 {
		return nil, fmt.Errorf("%w: snappy block of %d bytes claims %d", ErrCorrupt, len(b), n)
	}
	block, err := s2.Decode(nil, b)
	if err != nil {
		return nil, fmt.Errorf("%w: snappy: %w", ErrCorrupt, err)
	}
	if out == nil {
		return block, nil
	}
	return append(out, block...), nil
}
