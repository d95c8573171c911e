// Package ring is the WAL stream of class local: one preallocated, recycled
// file on SSD. Commits are 4 KiB-aligned and written with O_DIRECT|O_DSYNC where
// the file system has them. One commit is in flight at a time and takes
// everything that came in meanwhile, so the cost of a sync is shared by all
// partitions and connections.
package ring

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// The file; all integers little-endian, all checksums CRC32C.
//
//	block 0      superblock
//	block 1, 2   trim slots, written in turn
//	block 4…     the ring: position p lies at dataStart + p % size
//
// Superblock (64 bytes, rest of the block zero):
//
//	 0  magic "CIRRORNG"   8
//	 8  version            u32
//	12  reserved           u32
//	16  disk id            16
//	32  ring key           u64   random, tells this ring's commits from others'
//	40  ring size          u64   bytes, a multiple of 4096
//	48  reserved           12
//	60  crc of [0,60)      u32
//
// Trim slot (32 bytes):
//
//	 0  magic "CIRROTRM"   8
//	 8  counter            u64   the valid slot with the greater one counts
//	16  trim position      u64
//	24  reserved           u32
//	28  crc of [0,28)      u32
//
// Commit (64-byte header, then entries; starts at a multiple of 4096, never
// wraps around the ring's end):
//
//	 0  magic "CRWC"       u32
//	 4  version            u16
//	 6  reserved           u16
//	 8  ring key           u64
//	16  position           u64   of this header; tells laps apart
//	24  length             u32   bytes of header and entries, without padding
//	28  entries            u32
//	32  previous end       u64   where the commit before ended (padded): the chain
//	40  reserved           20
//	60  crc of [0,60)      u32
//
// Entries are those of wal.EncodeEntry.
const (
	magicSuper  = "CIRRORNG"
	magicTrim   = "CIRROTRM"
	magicCommit = 0x43575243 // "CRWC"

	// formatVersion is that of new rings. Version 1 has no references
	// (wal.KindRef), and gets none: an older program would not see them.
	formatVersion = 2
	firstVersion  = 1

	block        = vfs.BlockSize
	dataStart    = 4 * block
	superSize    = 64
	slotSize     = 32
	commitHeader = 64

	// MinSize is the smallest ring: a few commits of one chunk.
	MinSize = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func align(n, to int) int { return (n + to - 1) &^ (to - 1) }

type superblock struct {
	diskID  [16]byte
	key     uint64
	size    int64
	version uint32
}

func (s *superblock) encode(b []byte) {
	copy(b, magicSuper)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	copy(b[16:], s.diskID[:])
	binary.LittleEndian.PutUint64(b[32:], s.key)
	binary.LittleEndian.PutUint64(b[40:], uint64(s.size))
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
}

func decodeSuper(b []byte) (superblock, error) {
	var s superblock
	if string(b[:8]) != magicSuper {
		return s, fmt.Errorf("%w: superblock has no magic", wal.ErrDamaged)
	}
	s.version = binary.LittleEndian.Uint32(b[8:])
	if s.version < firstVersion || s.version > formatVersion {
		return s, fmt.Errorf("%w: ring version %d, this program knows %d to %d", wal.ErrVersion, s.version, firstVersion, formatVersion)
	}
	if crc32.Checksum(b[:60], castagnoli) != binary.LittleEndian.Uint32(b[60:]) {
		return s, fmt.Errorf("%w: superblock checksum", wal.ErrDamaged)
	}
	copy(s.diskID[:], b[16:])
	s.key = binary.LittleEndian.Uint64(b[32:])
	s.size = int64(binary.LittleEndian.Uint64(b[40:]))
	if s.size < MinSize || s.size%block != 0 {
		return s, fmt.Errorf("%w: ring size %d", wal.ErrDamaged, s.size)
	}
	return s, nil
}

func encodeSlot(b []byte, counter uint64, trim wal.Pos) {
	copy(b, magicTrim)
	binary.LittleEndian.PutUint64(b[8:], counter)
	binary.LittleEndian.PutUint64(b[16:], uint64(trim))
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
}

func decodeSlot(b []byte) (counter uint64, trim wal.Pos, ok bool) {
	if string(b[:8]) != magicTrim || crc32.Checksum(b[:28], castagnoli) != binary.LittleEndian.Uint32(b[28:]) {
		return 0, 0, false
	}
	return binary.LittleEndian.Uint64(b[8:]), wal.Pos(binary.LittleEndian.Uint64(b[16:])), true
}

type commitHead struct {
	pos     wal.Pos
	length  int
	entries int
	prevEnd wal.Pos
}

// end is the position behind the commit's padding.
func (h *commitHead) end() wal.Pos { return h.pos + wal.Pos(align(h.length, block)) }

func (h *commitHead) encode(b []byte, key uint64) {
	clear(b[:commitHeader])
	binary.LittleEndian.PutUint32(b, magicCommit)
	binary.LittleEndian.PutUint16(b[4:], formatVersion)
	binary.LittleEndian.PutUint64(b[8:], key)
	binary.LittleEndian.PutUint64(b[16:], uint64(h.pos))
	binary.LittleEndian.PutUint32(b[24:], uint32(h.length))
	binary.LittleEndian.PutUint32(b[28:], uint32(h.entries))
	binary.LittleEndian.PutUint64(b[32:], uint64(h.prevEnd))
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
}

// decodeCommit reads a commit header; ok is false for anything that this ring
// did not write whole.
func decodeCommit(b []byte, key uint64) (h commitHead, ok bool) {
	if binary.LittleEndian.Uint32(b) != magicCommit || binary.LittleEndian.Uint64(b[8:]) != key ||
		crc32.Checksum(b[:60], castagnoli) != binary.LittleEndian.Uint32(b[60:]) {
		return h, false
	}
	h.pos = wal.Pos(binary.LittleEndian.Uint64(b[16:]))
	h.length = int(binary.LittleEndian.Uint32(b[24:]))
	h.entries = int(binary.LittleEndian.Uint32(b[28:]))
	h.prevEnd = wal.Pos(binary.LittleEndian.Uint64(b[32:]))
	return h, h.length >= commitHeader && h.length <= wal.MaxJumbo && h.entries <= h.length/wal.EntryHeader
}
