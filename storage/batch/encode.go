package batch

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Producer identifies the idempotent producer of a batch.
type Producer struct {
	ID           int64
	Epoch        int16
	BaseSequence int32
}

// EncodeOptions say how records become a batch. The zero value is an
// uncompressed batch at offset 0 without a producer.
type EncodeOptions struct {
	Codec       Codec
	BaseOffset  int64
	LeaderEpoch int32
	// Producer is nil for none.
	Producer               *Producer
	Transactional, Control bool
	// KeepDeltas takes the records' OffsetDelta, which must grow, instead of
	// counting from 0: a batch with holes, as compaction leaves it.
	KeepDeltas bool
	// Xerial puts the framing of Java clients around snappy.
	Xerial bool
}

// Encode makes a batch of records. It is for tools and tests: what clients send
// is never encoded again.
func Encode(records []Record, opts EncodeOptions) ([]byte, error) {
	if len(records) == 0 {
		return nil, fmt.Errorf("encode batch: %w: no records", ErrInvalid)
	}
	h := Header{BaseOffset: opts.BaseOffset, LeaderEpoch: opts.LeaderEpoch, Magic: 2, Attributes: int16(opts.Codec),
		BaseTimestamp: records[0].Timestamp, MaxTimestamp: records[0].Timestamp,
		ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, NumRecords: int32(len(records))}
	if p := opts.Producer; p != nil {
		h.ProducerID, h.ProducerEpoch, h.BaseSequence = p.ID, p.Epoch, p.BaseSequence
	}
	if opts.Transactional {
		h.Attributes |= attrTransactional
	}
	if opts.Control {
		h.Attributes |= attrControl
	}
	var raw, one []byte
	for i := range records {
		r := &records[i]
		delta := int32(i)
		if opts.KeepDeltas {
			delta = r.OffsetDelta
			if delta < 0 || i > 0 && delta <= h.LastOffsetDelta {
				return nil, fmt.Errorf("encode batch: %w: offset delta %d after %d", ErrInvalid, delta, h.LastOffsetDelta)
			}
		}
		h.LastOffsetDelta = delta
		h.MaxTimestamp = max(h.MaxTimestamp, r.Timestamp)
		one = appendRecord(one[:0], r, delta, h.BaseTimestamp)
		raw = binary.AppendVarint(raw, int64(len(one)))
		raw = append(raw, one...)
	}
	packed, err := Compress(opts.Codec, raw, opts.Xerial)
	if err != nil {
		return nil, err
	}
	return Assemble(h, packed), nil
}

// NoHorizon: Retain leaves the delete horizon of the batch as it is.
const NoHorizon = -1

// Retain returns the batch of header h with only these of its records, in their
// order, as Kafka's log cleaner does: base offset, last offset, producer and
// codec stay, so the offsets of what is gone stay taken. A horizon, in ms since
// 1970, is set as the batch's delete horizon (KIP-534) unless it is NoHorizon.
func Retain(h Header, records []Record, horizon int64) ([]byte, error) {
	if len(records) == 0 {
		return nil, fmt.Errorf("retain records of the batch at %d: %w: none", h.BaseOffset, ErrInvalid)
	}
	switch {
	case horizon != NoHorizon:
		h.Attributes |= attrDeleteHorizon
		h.BaseTimestamp = horizon
	case !h.DeleteHorizon():
		h.BaseTimestamp = records[0].Timestamp
	}
	if !h.LogAppendTime() {
		h.MaxTimestamp = records[0].Timestamp
	}
	h.NumRecords = int32(len(records))
	var raw, one []byte
	for i := range records {
		r := &records[i]
		if !h.LogAppendTime() {
			h.MaxTimestamp = max(h.MaxTimestamp, r.Timestamp)
		}
		one = appendRecord(one[:0], r, r.OffsetDelta, h.BaseTimestamp)
		raw = binary.AppendVarint(raw, int64(len(one)))
		raw = append(raw, one...)
	}
	packed, err := Compress(h.Codec(), raw, true)
	if err != nil {
		return nil, fmt.Errorf("retain records of the batch at %d: %w", h.BaseOffset, err)
	}
	return Assemble(h, packed), nil
}

// Assemble puts header and records section together, with the right length and CRC.
func Assemble(h Header, records []byte) []byte {
	b := make([]byte, HeaderSize+len(records))
	be := binary.BigEndian
	be.PutUint64(b, uint64(h.BaseOffset))
	be.PutUint32(b[8:], uint32(len(b)-LogOverhead))
	be.PutUint32(b[12:], uint32(h.LeaderEpoch))
	b[16] = byte(h.Magic)
	be.PutUint16(b[21:], uint16(h.Attributes))
	be.PutUint32(b[23:], uint32(h.LastOffsetDelta))
	be.PutUint64(b[27:], uint64(h.BaseTimestamp))
	be.PutUint64(b[35:], uint64(h.MaxTimestamp))
	be.PutUint64(b[43:], uint64(h.ProducerID))
	be.PutUint16(b[51:], uint16(h.ProducerEpoch))
	be.PutUint32(b[53:], uint32(h.BaseSequence))
	be.PutUint32(b[57:], uint32(h.NumRecords))
	copy(b[HeaderSize:], records)
	be.PutUint32(b[17:], crc32.Checksum(b[HeadSize:], castagnoli))
	return b
}

func appendRecord(b []byte, r *Record, delta int32, base int64) []byte {
	b = append(b, 0) // attributes
	b = binary.AppendVarint(b, r.Timestamp-base)
	b = binary.AppendVarint(b, int64(delta))
	b = appendField(b, r.Key)
	b = appendField(b, r.Value)
	b = binary.AppendVarint(b, int64(len(r.Headers)))
	for _, h := range r.Headers {
		b = binary.AppendVarint(b, int64(len(h.Key)))
		b = append(b, h.Key...)
		b = appendField(b, h.Value)
	}
	return b
}

// appendField appends a nullable field: nil is null.
func appendField(b, f []byte) []byte {
	if f == nil {
		return binary.AppendVarint(b, -1)
	}
	b = binary.AppendVarint(b, int64(len(f)))
	return append(b, f...)
}

// Compress packs the records section of a batch. Without compression it returns
// raw itself. xerial is for snappy alone.
func Compress(c Codec, raw []byte, xerial bool) ([]byte, error) {
	var out bytes.Buffer
	switch c {
	case CodecNone:
		return raw, nil
	case CodecSnappy:
		if xerial {
			return xerialBlocks(raw), nil
		}
		return s2.EncodeSnappy(nil, raw), nil
	case CodecGzip:
		return pack(c, gzip.NewWriter(&out), raw, &out)
	case CodecLZ4:
		w := lz4.NewWriter(&out)
		if err := w.Apply(lz4.BlockSizeOption(lz4.Block64Kb)); err != nil { // as Kafka's
			return nil, fmt.Errorf("compress %s: %w", c, err)
		}
		return pack(c, w, raw, &out)
	case CodecZstd:
		window := zstd.MinWindowSize
		for window < len(raw) && window < minWindow {
			window *= 2 // not more memory than there are records
		}
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(window))
		if err != nil {
			return nil, fmt.Errorf("compress %s: %w", c, err)
		}
		packed := w.EncodeAll(raw, nil)
		return packed, w.Close()
	}
	return nil, fmt.Errorf("%w: %d", ErrCodec, c)
}

func pack(c Codec, w io.WriteCloser, raw []byte, out *bytes.Buffer) ([]byte, error) {
	_, err := w.Write(raw)
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("compress %s: %w", c, err)
	}
	return out.Bytes(), nil
}

// xerialBlock is the uncompressed size of a block of the xerial framing.
const xerialBlock = 32 << 10

func xerialBlocks(raw []byte) []byte {
	out := append([]byte(nil), xerial...)
	out = append(out, 0, 0, 0, 1, 0, 0, 0, 1) // version, least compatible version
	for len(raw) > 0 {
		n := min(len(raw), xerialBlock)
		block := s2.EncodeSnappy(nil, raw[:n])
		out = binary.BigEndian.AppendUint32(out, uint32(len(block)))
		out = append(out, block...)
		raw = raw[n:]
	}
	return out
}

// HasNullKey reports whether a record of the batch has no key, which compacted
// topics refuse. It decompresses within the limits.
func HasNullKey(b []byte, limits Limits) (bool, error) {
	for r, err := range Records(b, limits) {
		if err != nil {
			return false, err
		}
		if r.Key == nil {
			return true, nil
		}
	}
	return false, nil
}
