package storage_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// What a spill file gives are whole batches, whatever is in it. The header's
// checksum and length are made right, so that the fuzzer comes behind them.
func FuzzSpill(f *testing.F) {
	b := spillSample(f)
	f.Add(b)
	f.Add(b[:len(b)-8])
	f.Add(b[:32])
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, right := range []bool{false, true} {
			if right && len(b) >= 32 {
				b = bytes.Clone(b)
				binary.LittleEndian.PutUint64(b[16:], uint64(len(b)))
				binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], crc32.MakeTable(crc32.Castagnoli)))
			}
			all, err := scanSpill(t, b)
			if err != nil && !reportedSpill(err) {
				t.Fatal(err)
			}
			for _, d := range all {
				if h, err := batch.Check(d); err != nil || h.Size() != len(d) {
					t.Fatalf("entry of %d bytes: %v", len(d), err)
				}
			}
		}
	})
}

// A disk.json is refused, or keeps its meaning when it is saved and read again.
func FuzzDiskIdentity(f *testing.F) {
	mem := vfs.NewMem()
	d, err := storage.OpenDisk(mem, crashDir)
	if err != nil {
		f.Fatal(err)
	}
	if err := d.Close(); err != nil {
		f.Fatal(err)
	}
	path := crashDir + "/disk.json"
	f.Add(readBytes(f, mem, path))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"disk_id":"00000000000000000000000000000000","node_id":0,"epoch":0,"crc32c":"00000000"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		mem := copyOf(mem)
		put(t, mem, path, b)
		d, err := storage.OpenDisk(mem, crashDir)
		if err != nil {
			if !errors.Is(err, storage.ErrDamaged) && !errors.Is(err, storage.ErrFormat) || !strings.Contains(err.Error(), crashDir) {
				t.Fatal(err)
			}
			return
		}
		want := d.Identity
		if err := errors.Join(d.Save(), d.Close()); err != nil {
			t.Fatal(err)
		}
		again, err := storage.OpenDisk(mem, crashDir)
		if err != nil || again.Identity != want {
			t.Fatalf("%+v became %+v, %v", want, again, err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
