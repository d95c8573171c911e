package ring

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/storage/wal/waltest"
)

// goldenRing is a ring's file up to the end of its only commit, without what is zero at its
// end. The trim slots follow the superblock.
func goldenRing() (b []byte, entries []*wal.Entry) {
	const key = 0x1122334455667788
	at := ids.TopicPartition{Topic: ids.TopicID{1, 2, 3}, Partition: 7}
	one, two := waltest.Entry(at, 40, 100), waltest.Entry(at, 41, 90)
	two.Segment, two.InSegment, two.FilePos, two.HasPos = 30, true, 12345, true
	entries = []*wal.Entry{one, two}
	head := commitHead{length: commitHeader, entries: len(entries)}
	for _, e := range entries {
		head.length += wal.EntrySize(len(e.Data))
	}
	b = make([]byte, dataStart+head.length)
	sb := superblock{diskID: [16]byte{9, 8, 7}, key: key, size: MinSize, version: formatVersion}
	sb.encode(b)
	encodeSlot(b[block:], 1, 0)
	head.encode(b[dataStart:], key)
	p := dataStart + commitHeader
	for _, e := range entries {
		copy(b[p+wal.EntryHeader:], e.Data)
		wal.EncodeEntry(b[p:], e, len(e.Data))
		p += wal.EntrySize(len(e.Data))
	}
	return b, entries
}

// TestGolden replays rings as earlier programs wrote them, and writes the same of the newest version.
func TestGolden(t *testing.T) {
	newest, entries := goldenRing()
	first := append([]byte{}, newest...) // differs by the numbers only
	binary.LittleEndian.PutUint32(first[8:], firstVersion)
	binary.LittleEndian.PutUint32(first[60:], crc32.Checksum(first[:60], castagnoli))
	binary.LittleEndian.PutUint16(first[dataStart+4:], firstVersion)
	binary.LittleEndian.PutUint32(first[dataStart+60:], crc32.Checksum(first[dataStart:dataStart+60], castagnoli))
	for name, b := range map[string][]byte{"ring-v1.bin": first, "ring-v2.bin": newest} {
		b = append(golden.Bytes(t, name, b), make([]byte, dataStart+MinSize-len(b))...)
		fs := vfs.NewMem()
		f, err := fs.Open("ring", vfs.Create)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		r, err := Open(Options{FS: fs, Path: "ring", DiskID: [16]byte{9, 8, 7}, Pool: wal.NewPool(1 << 20)})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got []wal.Entry
		if err := r.Replay(func(e *wal.Entry) error {
			got = append(got, wal.Entry{TP: e.TP, Kind: e.Kind, Epoch: e.Epoch, Base: e.Base, Last: e.Last, Segment: e.Segment, InSegment: e.InSegment, FilePos: e.FilePos, HasPos: e.HasPos, Data: bytes.Clone(e.Data)})
			return nil
		}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(got) != len(entries) {
			t.Fatalf("%s: %d entries, want %d", name, len(got), len(entries))
		}
		for i, w := range entries {
			g := got[i]
			if g.TP != w.TP || g.Kind != w.Kind || g.Epoch != w.Epoch || g.Base != w.Base || g.Last != w.Last || g.Segment != w.Segment || g.InSegment != w.InSegment ||
				g.FilePos != w.FilePos || g.HasPos != w.HasPos || !bytes.Equal(g.Data, w.Data) {
				t.Errorf("%s: entry %d is %+v, want %+v", name, i, g, *w)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
