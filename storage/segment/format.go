// Package segment is the format of a closed segment: a .log file that is a
// plain run of Kafka v2 batches, identical to Kafka's, and a trailer that holds
// its indexes. On disk the trailer is the .idx file; in the bucket the object is
// the bytes of the log followed by those of the trailer, so uploading is
// concatenation and one codec serves both.
package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/cirrolog/cirrolog/storage/ids"
)

// Trailer: four sections, then the footer. Integers little-endian; checksums
// CRC32C; uvarint and varint as in encoding/binary.
//
//	spans      per span: uvarint position delta, uvarint base offset delta,
//	           varint max timestamp delta, u32 head crc
//	aborted    per transaction: i64 producer id, first offset, last offset, last stable offset
//	producers  per producer: see appendProducer
//	epochs     per epoch: i32 epoch, i64 start offset
//
// Footer (192 bytes, the last of the object and of the .idx file):
//
//	  0  magic "CIRROSEG"   8
//	  8  version            u32
//	 12  reserved           u32
//	 16  topic id           16
//	 32  partition          i32
//	 36  leader epoch       i32   of the last batch
//	 40  base offset        i64
//	 48  last offset        i64
//	 56  log size           i64   bytes
//	 64  records            i64
//	 72  min timestamp      i64   ms; -1 when there are no batches
//	 80  max timestamp      i64
//	 88  last stable offset i64   when the segment was closed
//	 96  log crc            u32   of all bytes of the log
//	100  trailer size       u32   sections and footer
//	104  section table      4 × (u32 offset in the trailer, u32 length, u32 crc)
//	152  reserved           36
//	188  crc of [0,188)     u32
//
// A span is a run of whole batches of at least index.interval.bytes. Its head
// crc covers the first 21 bytes of each of its batches, which Kafka's own batch
// CRC leaves out.
const (
	magic      = "CIRROSEG"
	version    = 1
	FooterSize = 192
	sections   = 4
	// MaxTrailer bounds a trailer that is read, in bytes: 1 GiB of log in
	// spans of 4 KiB needs less than 8 MiB.
	MaxTrailer = 256 << 20
	// HeadSize is how many bytes of each batch the head crc covers.
	HeadSize = 21
)

var (
	// ErrCorrupt is wrapped when bytes are not what was written.
	ErrCorrupt = errors.New("segment: corrupt")
	// ErrVersion is wrapped for a format version this program does not know.
	ErrVersion = errors.New("segment: unknown format version")
	// ErrTorn is wrapped when a log without trailer ends in something that is
	// not a whole batch.
	ErrTorn = errors.New("segment: torn end")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Meta describes a segment as a whole.
type Meta struct {
	TP                         ids.TopicPartition
	Epoch                      int32
	Base, Last                 int64
	LogSize, Records           int64
	MinTimestamp, MaxTimestamp int64
	LastStable                 int64
	LogCRC                     uint32
}

// Span is a run of whole batches that is read and verified together.
type Span struct {
	Pos          int64 // in the log
	Base         int64 // base offset of the first batch
	MaxTimestamp int64
	HeadCRC      uint32
}

// EpochStart is the first offset of a leader epoch.
type EpochStart struct {
	Epoch int32
	Start int64
}

// AbortedTxn is an aborted transaction that ends in the segment.
type AbortedTxn struct {
	ProducerID, First, Last, LastStable int64
}

// BatchRef remembers an idempotent producer's batch, to answer a retry.
type BatchRef struct {
	BaseSequence, LastSequence int32
	BaseOffset, LastOffset     int64
	Timestamp                  int64
}

// ProducerState is a producer's state as of the segment's end.
type ProducerState struct {
	ProducerID       int64
	Epoch            int16
	CoordinatorEpoch int32
	LastTimestamp    int64 // ms
	TxnFirstOffset   int64 // -1: no open transaction
	Batches          []BatchRef
}

const (
	abortedSize  = 32
	epochSize    = 12
	producerSize = 8 + 2 + 4 + 8 + 8 + 1
	batchRefSize = 4 + 4 + 8 + 8 + 8
	maxBatchRefs = 5
)

func appendSpans(b []byte, spans []Span) []byte {
	var prev Span
	for _, s := range spans {
		b = binary.AppendUvarint(b, uint64(s.Pos-prev.Pos))
		b = binary.AppendUvarint(b, uint64(s.Base-prev.Base))
		b = binary.AppendVarint(b, s.MaxTimestamp-prev.MaxTimestamp)
		b = binary.LittleEndian.AppendUint32(b, s.HeadCRC)
		prev = s
	}
	return b
}

func decodeSpans(b []byte) ([]Span, error) {
	out := make([]Span, 0, len(b)/7+1)
	var s Span
	for first := true; len(b) > 0; first = false {
		pos, n1 := binary.Uvarint(b)
		if n1 <= 0 {
			return nil, fmt.Errorf("%w: span position", ErrCorrupt)
		}
		base, n2 := binary.Uvarint(b[n1:])
		if n2 <= 0 {
			return nil, fmt.Errorf("%w: span offset", ErrCorrupt)
		}
		ts, n3 := binary.Varint(b[n1+n2:])
		if n := n1 + n2 + n3; n3 <= 0 || len(b) < n+4 {
			return nil, fmt.Errorf("%w: span timestamp", ErrCorrupt)
		}
		b = b[n1+n2+n3:]
		if !first && (pos == 0 || base == 0) || int64(pos) < 0 || int64(base) < 0 || s.Pos+int64(pos) < s.Pos || s.Base+int64(base) < s.Base {
			return nil, fmt.Errorf("%w: spans do not grow", ErrCorrupt)
		}
		s.Pos += int64(pos)
		s.Base += int64(base)
		s.MaxTimestamp += ts
		s.HeadCRC = binary.LittleEndian.Uint32(b)
		b = b[4:]
		out = append(out, s)
	}
	return out, nil
}

func appendAborted(b []byte, txns []AbortedTxn) []byte {
	for _, t := range txns {
		for _, v := range []int64{t.ProducerID, t.First, t.Last, t.LastStable} {
			b = binary.LittleEndian.AppendUint64(b, uint64(v))
		}
	}
	return b
}

func decodeAborted(b []byte) ([]AbortedTxn, error) {
	if len(b)%abortedSize != 0 {
		return nil, fmt.Errorf("%w: aborted transactions of %d bytes", ErrCorrupt, len(b))
	}
	var out []AbortedTxn
	i64 := func(at int) int64 { return int64(binary.LittleEndian.Uint64(b[at:])) }
	for ; len(b) > 0; b = b[abortedSize:] {
		out = append(out, AbortedTxn{ProducerID: i64(0), First: i64(8), Last: i64(16), LastStable: i64(24)})
	}
	return out, nil
}

// appendProducer: i64 producer id, i16 epoch, i32 coordinator epoch, i64 last
// timestamp, i64 first offset of the open transaction, u8 batches, then per
// batch i32 base sequence, i32 last sequence, i64 base offset, i64 last offset,
// i64 timestamp.
func appendProducer(b []byte, p *ProducerState) []byte {
	refs := p.Batches
	if len(refs) > maxBatchRefs {
		refs = refs[len(refs)-maxBatchRefs:]
	}
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(p.ProducerID))
	b = le.AppendUint16(b, uint16(p.Epoch))
	b = le.AppendUint32(b, uint32(p.CoordinatorEpoch))
	b = le.AppendUint64(b, uint64(p.LastTimestamp))
	b = le.AppendUint64(b, uint64(p.TxnFirstOffset))
	b = append(b, byte(len(refs)))
	for _, r := range refs {
		b = le.AppendUint32(b, uint32(r.BaseSequence))
		b = le.AppendUint32(b, uint32(r.LastSequence))
		b = le.AppendUint64(b, uint64(r.BaseOffset))
		b = le.AppendUint64(b, uint64(r.LastOffset))
		b = le.AppendUint64(b, uint64(r.Timestamp))
	}
	return b
}

func decodeProducers(b []byte) ([]ProducerState, error) {
	var out []ProducerState
	le := binary.LittleEndian
	for len(b) > 0 {
		if len(b) < producerSize {
			return nil, fmt.Errorf("%w: producer cut", ErrCorrupt)
		}
		p := ProducerState{ProducerID: int64(le.Uint64(b)), Epoch: int16(le.Uint16(b[8:])), CoordinatorEpoch: int32(le.Uint32(b[10:])),
			LastTimestamp: int64(le.Uint64(b[14:])), TxnFirstOffset: int64(le.Uint64(b[22:]))}
		n := int(b[30])
		b = b[producerSize:]
		if n > maxBatchRefs || len(b) < n*batchRefSize {
			return nil, fmt.Errorf("%w: producer with %d batches", ErrCorrupt, n)
		}
		for range n {
			p.Batches = append(p.Batches, BatchRef{BaseSequence: int32(le.Uint32(b)), LastSequence: int32(le.Uint32(b[4:])),
				BaseOffset: int64(le.Uint64(b[8:])), LastOffset: int64(le.Uint64(b[16:])), Timestamp: int64(le.Uint64(b[24:]))})
			b = b[batchRefSize:]
		}
		out = append(out, p)
	}
	return out, nil
}

func appendEpochs(b []byte, epochs []EpochStart) []byte {
	for _, e := range epochs {
		b = binary.LittleEndian.AppendUint32(b, uint32(e.Epoch))
		b = binary.LittleEndian.AppendUint64(b, uint64(e.Start))
	}
	return b
}

func decodeEpochs(b []byte) ([]EpochStart, error) {
	if len(b)%epochSize != 0 {
		return nil, fmt.Errorf("%w: epochs of %d bytes", ErrCorrupt, len(b))
	}
	var out []EpochStart
	for ; len(b) > 0; b = b[epochSize:] {
		out = append(out, EpochStart{Epoch: int32(binary.LittleEndian.Uint32(b)), Start: int64(binary.LittleEndian.Uint64(b[4:]))})
	}
	return out, nil
}

// encodeTrailer lays out sections and footer.
func encodeTrailer(m *Meta, spans []Span, aborted []AbortedTxn, producers []ProducerState, epochs []EpochStart) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, len(spans)*16+len(producers)*200+FooterSize)
	var table [sections][3]uint32
	section := func(i int, start int) {
		table[i] = [3]uint32{uint32(start), uint32(len(b) - start), crc32.Checksum(b[start:], castagnoli)}
	}
	b = appendSpans(b, spans)
	section(0, 0)
	at := len(b)
	b = appendAborted(b, aborted)
	section(1, at)
	at = len(b)
	for i := range producers {
		b = appendProducer(b, &producers[i])
	}
	section(2, at)
	at = len(b)
	b = appendEpochs(b, epochs)
	section(3, at)

	f := make([]byte, FooterSize)
	copy(f, magic)
	le.PutUint32(f[8:], version)
	copy(f[16:], m.TP.Topic[:])
	le.PutUint32(f[32:], uint32(m.TP.Partition))
	le.PutUint32(f[36:], uint32(m.Epoch))
	for i, v := range []int64{m.Base, m.Last, m.LogSize, m.Records, m.MinTimestamp, m.MaxTimestamp, m.LastStable} {
		le.PutUint64(f[40+8*i:], uint64(v))
	}
	le.PutUint32(f[96:], m.LogCRC)
	le.PutUint32(f[100:], uint32(len(b)+FooterSize))
	for i, s := range table {
		for j, v := range s {
			le.PutUint32(f[104+12*i+4*j:], v)
		}
	}
	le.PutUint32(f[188:], crc32.Checksum(f[:188], castagnoli))
	return append(b, f...)
}

// Footer is the fixed-size end of a trailer.
type Footer struct {
	Meta        Meta
	TrailerSize int64 // sections and footer, in bytes
	table       [sections][3]uint32
}

// ParseFooter reads the last FooterSize bytes of a trailer or an object.
func ParseFooter(f []byte) (Footer, error) {
	var out Footer
	if len(f) != FooterSize || string(f[:8]) != magic {
		return out, fmt.Errorf("%w: no footer", ErrCorrupt)
	}
	le := binary.LittleEndian
	if v := le.Uint32(f[8:]); v != version {
		return out, fmt.Errorf("%w: %d, this program knows %d", ErrVersion, v, version)
	}
	if crc32.Checksum(f[:188], castagnoli) != le.Uint32(f[188:]) {
		return out, fmt.Errorf("%w: footer checksum", ErrCorrupt)
	}
	m := &out.Meta
	copy(m.TP.Topic[:], f[16:])
	m.TP.Partition = int32(le.Uint32(f[32:]))
	m.Epoch = int32(le.Uint32(f[36:]))
	for i, p := range []*int64{&m.Base, &m.Last, &m.LogSize, &m.Records, &m.MinTimestamp, &m.MaxTimestamp, &m.LastStable} {
		*p = int64(le.Uint64(f[40+8*i:]))
	}
	m.LogCRC = le.Uint32(f[96:])
	out.TrailerSize = int64(le.Uint32(f[100:]))
	at := uint32(0)
	for i := range out.table {
		for j := range out.table[i] {
			out.table[i][j] = le.Uint32(f[104+12*i+4*j:])
		}
		if out.table[i][0] != at || at+out.table[i][1] < at {
			return out, fmt.Errorf("%w: section table", ErrCorrupt)
		}
		at += out.table[i][1]
	}
	if int64(at)+FooterSize != out.TrailerSize || out.TrailerSize > MaxTrailer || m.Base < 0 || m.Last < m.Base || m.LogSize < 0 || m.TP.Partition < 0 {
		return out, fmt.Errorf("%w: footer contradicts itself", ErrCorrupt)
	}
	return out, nil
}
