// Package batch reads and stamps Kafka v2 record batches (KIP-98, magic 2)
// without re-encoding them. Header work allocates nothing.
package batch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Layout of a batch; big-endian. Kafka's CRC32C covers everything from
// attributes on, so base offset and leader epoch can be stamped in place.
//
//	 0  base offset            int64   ┐
//	 8  length                 int32   │ bytes after this field
//	12  partition leader epoch int32   │ HeadSize: not under Kafka's CRC
//	16  magic                  int8    │
//	17  crc                    uint32  ┘ CRC32C of [21, 12+length)
//	21  attributes             int16
//	23  last offset delta      int32
//	27  base timestamp         int64
//	35  max timestamp          int64
//	43  producer id            int64
//	51  producer epoch         int16
//	53  base sequence          int32
//	57  number of records      int32
//	61  records, compressed as a whole by the codec of attributes
const (
	HeaderSize  = 61 // fixed part of a batch, in bytes
	HeadSize    = 21 // the part that Kafka's CRC leaves out
	LogOverhead = 12 // base offset and length: what the length field does not count
)

// Attribute bits.
const (
	attrCodecMask     = 0x07
	attrLogAppendTime = 0x08
	attrTransactional = 0x10
	attrControl       = 0x20
	attrDeleteHorizon = 0x40
)

// Errors of Parse and Validate, wrapped with detail.
var (
	// ErrTruncated: fewer bytes than the batch says it has. In a fetch it only
	// means that the rest was not asked for.
	ErrTruncated = errors.New("batch: truncated")
	// ErrCorrupt: CRC mismatch or a header that no writer produces (Kafka:
	// CORRUPT_MESSAGE).
	ErrCorrupt = errors.New("batch: corrupt")
	// ErrInvalid: well-formed bytes that lie about their content (Kafka:
	// INVALID_RECORD).
	ErrInvalid = errors.New("batch: invalid record")
	// ErrTimestampType: a client set the append time, which only the broker may
	// (Kafka: INVALID_TIMESTAMP).
	ErrTimestampType = errors.New("batch: invalid timestamp type")
	// ErrMagic: message format v0 or v1 (Kafka: INVALID_RECORD).
	ErrMagic = errors.New("batch: message format not supported, want v2")
	// ErrCodec: a compression codec that Kafka does not define.
	ErrCodec = errors.New("batch: unknown compression codec")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Codec is a batch's compression.
type Codec int8

// Kafka's codecs.
const (
	CodecNone Codec = iota
	CodecGzip
	CodecSnappy
	CodecLZ4
	CodecZstd
)

// String returns Kafka's name of the codec.
func (c Codec) String() string {
	if c < CodecNone || c > CodecZstd {
		return fmt.Sprintf("codec(%d)", int8(c))
	}
	return [...]string{"none", "gzip", "snappy", "lz4", "zstd"}[c]
}

// Header is the fixed part of a batch.
type Header struct {
	BaseOffset      int64
	Length          int32 // bytes after the length field
	LeaderEpoch     int32
	Magic           int8
	CRC             uint32
	Attributes      int16
	LastOffsetDelta int32
	BaseTimestamp   int64 // ms since 1970; the first record's
	MaxTimestamp    int64 // ms since 1970
	ProducerID      int64 // -1: none
	ProducerEpoch   int16
	BaseSequence    int32 // -1: none
	NumRecords      int32
}

// Size is the batch's size in bytes.
func (h *Header) Size() int { return LogOverhead + int(h.Length) }

// LastOffset is the offset of the last record.
func (h *Header) LastOffset() int64 { return h.BaseOffset + int64(h.LastOffsetDelta) }

// Codec returns the compression codec; it may be one that Kafka does not define.
func (h *Header) Codec() Codec { return Codec(h.Attributes & attrCodecMask) }

// LogAppendTime reports whether MaxTimestamp was set by the broker and counts
// for every record.
func (h *Header) LogAppendTime() bool { return h.Attributes&attrLogAppendTime != 0 }

// Transactional reports whether the batch is part of a transaction.
func (h *Header) Transactional() bool { return h.Attributes&attrTransactional != 0 }

// Control reports whether the batch holds a control record (a transaction marker).
func (h *Header) Control() bool { return h.Attributes&attrControl != 0 }

// DeleteHorizon reports whether BaseTimestamp is the time at which a log cleaner
// may drop the batch's tombstones, instead of the first record's timestamp.
func (h *Header) DeleteHorizon() bool { return h.Attributes&attrDeleteHorizon != 0 }

// HasProducer reports whether the batch is from an idempotent producer.
func (h *Header) HasProducer() bool { return h.ProducerID >= 0 }

// LastSequence is the sequence number of the last record; sequences wrap from
// 2^31-1 to 0.
func (h *Header) LastSequence() int32 {
	return AddSequence(h.BaseSequence, h.LastOffsetDelta)
}

// AddSequence adds n to a sequence number with Kafka's wrap at 2^31-1.
func AddSequence(seq, n int32) int32 {
	return int32((int64(seq) + int64(n)) & 0x7fffffff)
}

// Parse reads the header of the batch at the start of b, which may be longer
// or shorter than the batch: fewer than HeaderSize bytes is ErrTruncated. It
// checks magic and that the length can hold a header, nothing else.
func Parse(b []byte) (Header, error) {
	var h Header
	if len(b) < LogOverhead+5 {
		return h, ErrTruncated
	}
	h.BaseOffset = int64(binary.BigEndian.Uint64(b))
	h.Length = int32(binary.BigEndian.Uint32(b[8:]))
	h.LeaderEpoch = int32(binary.BigEndian.Uint32(b[12:]))
	h.Magic = int8(b[16])
	if h.Magic != 2 {
		if h.Magic == 0 || h.Magic == 1 {
			return h, fmt.Errorf("%w: magic %d", ErrMagic, h.Magic)
		}
		return h, fmt.Errorf("%w: magic %d", ErrCorrupt, h.Magic)
	}
	if h.Length < HeaderSize-LogOverhead {
		return h, fmt.Errorf("%w: length %d, a batch has at least %d", ErrCorrupt, h.Length, HeaderSize-LogOverhead)
	}
	if len(b) < HeaderSize {
		return h, ErrTruncated
	}
	h.CRC = binary.BigEndian.Uint32(b[17:])
	h.Attributes = int16(binary.BigEndian.Uint16(b[21:]))
	h.LastOffsetDelta = int32(binary.BigEndian.Uint32(b[23:]))
	h.BaseTimestamp = int64(binary.BigEndian.Uint64(b[27:]))
	h.MaxTimestamp = int64(binary.BigEndian.Uint64(b[35:]))
	h.ProducerID = int64(binary.BigEndian.Uint64(b[43:]))
	h.ProducerEpoch = int16(binary.BigEndian.Uint16(b[51:]))
	h.BaseSequence = int32(binary.BigEndian.Uint32(b[53:]))
	h.NumRecords = int32(binary.BigEndian.Uint32(b[57:]))
	return h, nil
}

// Check parses the batch at the start of b, which must be there whole, and
// verifies its CRC. It is what recovery, reads from disk and reads from the
// bucket use.
func Check(b []byte) (Header, error) {
	h, err := Parse(b)
	if err != nil {
		return h, err
	}
	if len(b) < h.Size() {
		return h, ErrTruncated
	}
	if got := crc32.Checksum(b[HeadSize:h.Size()], castagnoli); got != h.CRC {
		return h, fmt.Errorf("%w: crc %08x, computed %08x, at base offset %d", ErrCorrupt, h.CRC, got, h.BaseOffset)
	}
	if h.LastOffsetDelta < 0 || h.BaseOffset < 0 || h.BaseOffset+int64(h.LastOffsetDelta) < 0 {
		return h, fmt.Errorf("%w: base offset %d, last offset delta %d", ErrCorrupt, h.BaseOffset, h.LastOffsetDelta)
	}
	return h, nil
}

// Stamp sets base offset and leader epoch in place; neither is under the CRC.
func Stamp(b []byte, baseOffset int64, leaderEpoch int32) {
	binary.BigEndian.PutUint64(b, uint64(baseOffset))
	binary.BigEndian.PutUint32(b[12:], uint32(leaderEpoch))
}

// StampLogAppendTime makes ms (since 1970) the timestamp of all records
// (message.timestamp.type=LogAppendTime): it sets the attribute bit and the
// maximum timestamp and computes the CRC anew, in place.
func StampLogAppendTime(b []byte, ms int64) {
	size := LogOverhead + int(int32(binary.BigEndian.Uint32(b[8:])))
	binary.BigEndian.PutUint16(b[21:], binary.BigEndian.Uint16(b[21:])|attrLogAppendTime)
	binary.BigEndian.PutUint64(b[35:], uint64(ms))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[HeadSize:size], castagnoli))
}
