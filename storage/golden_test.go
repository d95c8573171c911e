package storage

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/storage/wal/waltest"
)

// TestGolden reads disk.json and a spill file as an earlier program wrote them, and writes the same.
func TestGolden(t *testing.T) {
	want := Identity{Format: diskFormat, DiskID: "000102030405060708090a0b0c0d0e0f", ClusterID: "_Qn_iv_jR4ettml16XYyJQ", NodeID: 3, Epoch: 12}
	fs := vfs.NewMem()
	if err := fs.MkdirAll("d"); err != nil {
		t.Fatal(err)
	}
	d := &Disk{fs: fs, dir: "d", Identity: want}
	if err := d.Save(); err != nil {
		t.Fatal(err)
	}
	b, err := readFile(fs, filepath.Join("d", "disk.json"), 1<<10)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(fs, filepath.Join("d", "disk.json"), golden.Bytes(t, "disk-v1.json", b)); err != nil {
		t.Fatal(err)
	}
	if got, err := PeekDisk(fs, "d"); err != nil || got != want {
		t.Errorf("disk.json: %+v, %v", got, err)
	}

	var records []*record
	var data [][]byte
	for i := range int64(3) {
		e := waltest.Entry(ids.TopicPartition{Topic: ids.TopicID{1, 2, 3}, Partition: int32(i)}, 40+i, 80+int(i))
		e.Segment, e.InSegment = 30, i > 0
		records, data = append(records, &record{Entry: *e}), append(data, e.Data)
	}
	b, pos := encodeSpill(records, data)
	i := 0
	err = decodeSpill(golden.Bytes(t, "spill-v1.bin", b), func(e *wal.Entry, at int64) error {
		w := &records[i].Entry
		if e.TP != w.TP || e.Base != w.Base || e.Last != w.Last || e.Epoch != w.Epoch || e.InSegment != w.InSegment || e.InSegment && e.Segment != w.Segment || !bytes.Equal(e.Data, w.Data) || at != pos[i] {
			t.Errorf("entry %d at %d is %+v, want %+v at %d", i, at, e, w, pos[i])
		}
		i++
		return nil
	})
	if err != nil || i != len(records) {
		t.Errorf("spill file: %d entries, %v", i, err)
	}
}
