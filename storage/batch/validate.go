package batch

import (
	"encoding/binary"
	"fmt"
)

// Validate checks a batch that a client sent: b must be exactly one whole v2
// batch with a right CRC, whose header is one a producer may send and, when it
// is not compressed, whose records are as many and as long as it says.
// Compressed records are never decompressed here. It does not allocate unless
// it fails.
func Validate(b []byte) (Header, error) {
	h, err := Parse(b)
	if err != nil {
		return h, err
	}
	if h.Size() != len(b) {
		if h.Size() < len(b) {
			return h, fmt.Errorf("%w: %d bytes behind the batch, one batch per partition is allowed", ErrInvalid, len(b)-h.Size())
		}
		return h, fmt.Errorf("%w: batch of %d bytes in %d", ErrTruncated, h.Size(), len(b))
	}
	if h, err = Check(b); err != nil {
		return h, err
	}
	if err := checkHeader(&h); err != nil {
		return h, err
	}
	if h.Codec() == CodecNone {
		return h, walkRecords(b[HeaderSize:], h.NumRecords)
	}
	if len(b) == HeaderSize {
		return h, fmt.Errorf("%w: compressed batch without records", ErrInvalid)
	}
	return h, nil
}

func checkHeader(h *Header) error {
	switch {
	case h.Control():
		return fmt.Errorf("%w: clients may not write control batches", ErrInvalid)
	case h.Codec() > CodecZstd:
		return fmt.Errorf("%w: %d", ErrCodec, h.Codec())
	case h.Attributes & ^(attrCodecMask|attrLogAppendTime|attrTransactional) != 0:
		return fmt.Errorf("%w: attributes %#x", ErrInvalid, h.Attributes)
	case h.NumRecords < 1 || h.LastOffsetDelta != h.NumRecords-1:
		return fmt.Errorf("%w: %d records with a last offset delta of %d", ErrInvalid, h.NumRecords, h.LastOffsetDelta)
	case h.LogAppendTime():
		return fmt.Errorf("%w: only the broker stamps the append time", ErrTimestampType)
	case h.ProducerID >= 0 && (h.ProducerEpoch < 0 || h.BaseSequence < 0):
		return fmt.Errorf("%w: producer %d with epoch %d and sequence %d", ErrInvalid, h.ProducerID, h.ProducerEpoch, h.BaseSequence)
	case h.ProducerID < 0 && h.Transactional():
		return fmt.Errorf("%w: transactional batch without a producer id", ErrInvalid)
	case h.MaxTimestamp < -1 || h.BaseTimestamp < -1:
		return fmt.Errorf("%w: timestamps %d and %d", ErrInvalid, h.BaseTimestamp, h.MaxTimestamp)
	}
	return nil
}

// walkRecords checks the framing of uncompressed records: their lengths fill b,
// their offset deltas count from 0, and what is in them lies inside.
func walkRecords(b []byte, n int32) error {
	bad := func(i int32, what string) error {
		return fmt.Errorf("%w: record %d of %d: %s", ErrInvalid, i, n, what)
	}
	for i := range n {
		size, w := varint(b)
		if w == 0 || size < 0 || size > int64(len(b)-w) {
			return bad(i, "length")
		}
		r := b[w : w+int(size)]
		b = b[w+int(size):]
		if len(r) < 1 {
			return bad(i, "attributes")
		}
		r = r[1:]
		_, w = varint(r)
		if w == 0 {
			return bad(i, "timestamp delta")
		}
		r = r[w:]
		delta, w := varint(r)
		if w == 0 || delta != int64(i) {
			return bad(i, "offset delta")
		}
		r = r[w:]
		if r = skipField(r); r == nil { // key
			return bad(i, "key length")
		}
		if r = skipField(r); r == nil {
			return bad(i, "value length")
		}
		if !skipHeaders(r) {
			return bad(i, "headers")
		}
	}
	if len(b) != 0 {
		return fmt.Errorf("%w: %d bytes behind the last of %d records", ErrInvalid, len(b), n)
	}
	return nil
}

// varint reads a zigzag varint; the fast paths are one and two bytes.
func varint(b []byte) (int64, int) {
	if len(b) > 0 && b[0] < 0x80 {
		u := uint64(b[0])
		return int64(u>>1) ^ -int64(u&1), 1
	}
	if len(b) > 1 && b[1] < 0x80 {
		u := uint64(b[0]&0x7f) | uint64(b[1])<<7
		return int64(u>>1) ^ -int64(u&1), 2
	}
	v, n := binary.Varint(b)
	if n <= 0 {
		return 0, 0
	}
	return v, n
}

var empty = []byte{}

// skipField skips a length-prefixed field (-1: null) and returns what follows,
// or nil when it does not fit.
func skipField(b []byte) []byte {
	n, w := varint(b)
	if w == 0 || n < -1 || n > int64(len(b)-w) {
		return nil
	}
	b = b[w+int(max(n, 0)):]
	if b == nil {
		return empty
	}
	return b
}

// skipHeaders reports whether b is exactly a list of headers.
func skipHeaders(b []byte) bool {
	n, w := varint(b)
	if w == 0 || n < 0 || n > int64(len(b)-w)/2 {
		return false
	}
	b = b[w:]
	for range n {
		k, w := varint(b)
		if w == 0 || k < 0 || k > int64(len(b)-w) {
			return false
		}
		if b = skipField(b[w+int(k):]); b == nil {
			return false
		}
	}
	return len(b) == 0
}
