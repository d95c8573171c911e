package ring

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/cirrolog/cirrolog/storage/wal"
)

// A decoded commit header is encoded again to the same bytes, and its entries
// are whole batches, whatever its body holds. The checksums are made right, so
// that the fuzzer comes behind them.
func FuzzCommit(f *testing.F) {
	const key = 7
	r := &Ring{key: key, size: 1 << 20}
	seed := make([]byte, commitHeader+2*wal.EntryHeader)
	h := commitHead{pos: 8192, length: len(seed), entries: 1, prevEnd: 4096}
	h.encode(seed, key)
	f.Add(seed)
	entry := make([]byte, wal.EntrySize(61))
	wal.EncodeEntry(entry, &wal.Entry{Kind: wal.KindLogStart, Base: 5, Last: 5}, 0)
	f.Add(append(bytes.Clone(seed[:commitHeader]), entry[:wal.EntryHeader]...))
	ref := (&wal.Ref{Pos: 5000, From: 4096, Size: 300_000, Rest: []byte("rest")}).Append(make([]byte, wal.EntryHeader))
	n := len(ref) - wal.EntryHeader
	ref = append(ref, make([]byte, wal.EntrySize(n)-len(ref))...)
	wal.EncodeEntry(ref, &wal.Entry{Kind: wal.KindRef, Base: 5, Last: 5, InSegment: true}, n)
	h.length = commitHeader + len(ref)
	h.encode(seed, key)
	f.Add(append(bytes.Clone(seed[:commitHeader]), ref...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < commitHeader {
			return
		}
		b = bytes.Clone(b)
		binary.LittleEndian.PutUint32(b, magicCommit)
		binary.LittleEndian.PutUint64(b[8:], key)
		binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
		h, ok := decodeCommit(b, key)
		if !ok || h.length > len(b) {
			return
		}
		if len(b) >= commitHeader+wal.EntryHeader {
			e := b[commitHeader:]
			n := min(int(binary.LittleEndian.Uint32(e[28:])), len(e)-wal.EntryHeader, 21)
			sum := crc32.Update(crc32.Checksum(e[:60], castagnoli), castagnoli, e[wal.EntryHeader:wal.EntryHeader+n])
			binary.LittleEndian.PutUint32(e[60:], sum)
		}
		entries, err := r.entriesOf(h, b)
		if err != nil {
			return
		}
		if len(entries) != h.entries {
			t.Fatalf("%d entries, header says %d", len(entries), h.entries)
		}
		for i := range entries {
			e := &entries[i]
			if e.Pos != h.pos || checkEntry(e) != nil {
				t.Fatalf("entry %+v", e)
			}
		}
	})
}

// Superblock and trim slot are what was encoded, or an error.
func FuzzHead(f *testing.F) {
	b := make([]byte, dataStart)
	sb := superblock{key: 9, size: MinSize}
	sb.encode(b)
	encodeSlot(b[block:], 3, 8192)
	f.Add(b[:superSize], b[block:block+slotSize])
	f.Fuzz(func(t *testing.T, super, slot []byte) {
		b := make([]byte, superSize+slotSize)
		copy(b, super)
		copy(b[superSize:], slot)
		binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
		if s, err := decodeSuper(b); err == nil {
			c := make([]byte, superSize)
			s.encode(c)
			again, err := decodeSuper(c)
			if err != nil || again != s {
				t.Fatalf("%+v became %+v, %v", s, again, err)
			}
		}
		if n, trim, ok := decodeSlot(b[superSize:]); ok {
			c := make([]byte, slotSize)
			encodeSlot(c, n, trim)
			if n2, trim2, ok := decodeSlot(c); !ok || n2 != n || trim2 != trim {
				t.Fatal("slot changed")
			}
		}
	})
}
