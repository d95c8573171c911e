package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/cirrolog/cirrolog/storage/ids"
)

// An entry as it stands in streams and spill files; little-endian; 64-byte
// header, data, zero padding to 8.
//
//	 0  kind               u8
//	 1  flags              u8     1: the segment is known, 2: the position too
//	 2  reserved           2
//	 4  partition          i32
//	 8  topic id           16
//	24  leader epoch       i32
//	28  data length        u32
//	32  base offset        i64
//	40  last offset        i64
//	48  base - segment     u32    base offset of the segment, as a distance
//	52  position           i64    of the batch in the segment's file
//	60  crc                u32    CRC32C of [0,60) and the first 21 bytes of data
//
// A batch carries Kafka's own CRC of everything behind its first 21 bytes, so
// every byte is under exactly one checksum and none is computed twice.
const (
	// EntryHeader is the size of the header in bytes.
	EntryHeader = 64
	entryAlign  = 8
	entryHead   = 21 // batch.HeadSize; this package is below it

	flagSegment = 1
	flagPos     = 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// EntrySize is the size in bytes of an entry with data bytes of data.
func EntrySize(data int) int { return alignUp(EntryHeader+data, entryAlign) }

// EncodeEntry writes header and padding around the data already at b[EntryHeader:].
func EncodeEntry(b []byte, e *Entry, dataLen int) {
	clear(b[:EntryHeader])
	b[0] = byte(e.Kind)
	binary.LittleEndian.PutUint32(b[4:], uint32(e.TP.Partition))
	copy(b[8:], e.TP.Topic[:])
	binary.LittleEndian.PutUint32(b[24:], uint32(e.Epoch))
	binary.LittleEndian.PutUint32(b[28:], uint32(dataLen))
	binary.LittleEndian.PutUint64(b[32:], uint64(e.Base))
	binary.LittleEndian.PutUint64(b[40:], uint64(e.Last))
	if e.InSegment {
		b[1] = flagSegment
		binary.LittleEndian.PutUint32(b[48:], uint32(e.Base-e.Segment))
	}
	if e.InSegment && e.HasPos {
		b[1] |= flagPos
		binary.LittleEndian.PutUint64(b[52:], uint64(e.FilePos))
	}
	binary.LittleEndian.PutUint32(b[60:], entryCRC(b, b[EntryHeader:EntryHeader+dataLen]))
	clear(b[EntryHeader+dataLen : EntrySize(dataLen)])
}

func entryCRC(head, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(head[:60], castagnoli), castagnoli, data[:min(len(data), entryHead)])
}

// DecodeEntry reads the entry at the start of b into e; e.Data aliases b.
func DecodeEntry(b []byte, e *Entry) (size int, err error) {
	if len(b) < EntryHeader {
		return 0, fmt.Errorf("entry header cut at %d bytes", len(b))
	}
	n := int(binary.LittleEndian.Uint32(b[28:]))
	if n > len(b)-EntryHeader {
		return 0, fmt.Errorf("entry of %d bytes in the %d that are left", n, len(b)-EntryHeader)
	}
	data := b[EntryHeader : EntryHeader+n]
	if entryCRC(b, data) != binary.LittleEndian.Uint32(b[60:]) {
		return 0, fmt.Errorf("entry checksum")
	}
	var topic ids.TopicID
	copy(topic[:], b[8:])
	e.TP = ids.TopicPartition{Topic: topic, Partition: int32(binary.LittleEndian.Uint32(b[4:]))}
	e.Kind = Kind(b[0])
	e.Epoch = int32(binary.LittleEndian.Uint32(b[24:]))
	e.Base = int64(binary.LittleEndian.Uint64(b[32:]))
	e.Last = int64(binary.LittleEndian.Uint64(b[40:]))
	if e.InSegment = b[1]&flagSegment != 0; e.InSegment {
		e.Segment = e.Base - int64(binary.LittleEndian.Uint32(b[48:]))
	}
	if e.HasPos = e.InSegment && b[1]&flagPos != 0; e.HasPos {
		e.FilePos = int64(binary.LittleEndian.Uint64(b[52:]))
	}
	e.Data = data
	return min(EntrySize(n), len(b)), nil
}

func alignUp(n, to int) int { return (n + to - 1) &^ (to - 1) }
