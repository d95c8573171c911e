package tiering

import (
	"bytes"
	"log/slog"
	"path"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// TestGoldenCache reads a block of the disk cache as an earlier program wrote it, and writes the same.
func TestGoldenCache(t *testing.T) {
	fs := vfs.NewMem()
	open := func() *diskCache {
		t.Helper()
		c, err := openDiskCache(fs, "cache", 1<<20, 64<<10, slog.New(slog.DiscardHandler), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	id, data := blockID{"data/AQID/7/00000000000000000100", 3}, bytes.Repeat([]byte("block "), 20)
	open().put(id, data)
	name := path.Join("cache", id.file())
	f, err := fs.Open(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	written := make([]byte, cacheHeader+len(data))
	if _, err := f.ReadAt(written, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(golden.Bytes(t, "cache-v1.blk", written), 0); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	got := make([]byte, len(data))
	if !open().get(id, got) || !bytes.Equal(got, data) {
		t.Errorf("the block reads as %q", got)
	}
}
