package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Ref is the data of a KindRef entry: where a batch lies in the .log file of
// its segment. The bytes [From, end) of that file were durable before the entry,
// end being the last block border at or before the batch's end; what the batch has
// behind that border is Rest. Little-endian:
//
//	 0  position of the batch  i64   in the file
//	 8  from                   i64   a block border at or before the position
//	16  size of the batch      u32
//	20  crc                    u32   CRC32C of [0,20), [24,32) and the rest
//	24  batch crc              u32   that of the batch's header: Kafka's, of [21, size)
//	28  flags                  u32   1: the batch crc is known
//	32  rest                         less than a block
type Ref struct {
	Pos, From int64
	Size      int
	Rest      []byte
	// BatchCRC, if HasCRC, tells the batch from an old one that a file made of used
	// blocks may have at the same place.
	BatchCRC uint32
	HasCRC   bool
}

const (
	refHeader  = 32
	refFlagCRC = 1
)

// Append appends the encoded Ref to b.
func (r *Ref) Append(b []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, refHeader)...)
	binary.LittleEndian.PutUint64(b[at:], uint64(r.Pos))
	binary.LittleEndian.PutUint64(b[at+8:], uint64(r.From))
	binary.LittleEndian.PutUint32(b[at+16:], uint32(r.Size))
	if r.HasCRC {
		binary.LittleEndian.PutUint32(b[at+24:], r.BatchCRC)
		binary.LittleEndian.PutUint32(b[at+28:], refFlagCRC)
	}
	b = append(b, r.Rest...)
	binary.LittleEndian.PutUint32(b[at+20:], refCRC(b[at:]))
	return b
}

func refCRC(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:20], castagnoli), castagnoli, b[24:])
}

// ParseRef reads and checks the data of a KindRef entry. Rest aliases b.
func ParseRef(b []byte) (Ref, error) {
	if len(b) < refHeader {
		return Ref{}, fmt.Errorf("reference of %d bytes", len(b))
	}
	if refCRC(b) != binary.LittleEndian.Uint32(b[20:]) {
		return Ref{}, fmt.Errorf("reference checksum")
	}
	r := Ref{Pos: int64(binary.LittleEndian.Uint64(b)), From: int64(binary.LittleEndian.Uint64(b[8:])),
		Size: int(binary.LittleEndian.Uint32(b[16:])), Rest: b[refHeader:],
		BatchCRC: binary.LittleEndian.Uint32(b[24:]), HasCRC: binary.LittleEndian.Uint32(b[28:])&refFlagCRC != 0}
	if r.Pos < 0 || r.From < 0 || r.From > r.Pos || r.Size < len(r.Rest) {
		return Ref{}, fmt.Errorf("reference to %d bytes at %d, from %d, with %d of them", r.Size, r.Pos, r.From, len(r.Rest))
	}
	return r, nil
}
