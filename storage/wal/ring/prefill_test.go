package ring_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/storage/wal/ring"
)

// writesFS counts writes, and makes those of zeros slow.
type writesFS struct {
	vfs.FS
	writes atomic.Int64
	slow   time.Duration
}

func (w *writesFS) Open(name string, flag vfs.Flag) (vfs.File, error) {
	f, err := w.FS.Open(name, flag)
	if err != nil {
		return nil, err
	}
	return &writesFile{File: f, fs: w}, nil
}

type writesFile struct {
	vfs.File
	fs *writesFS
}

func (f *writesFile) WriteAt(b []byte, at int64) (int, error) {
	f.fs.writes.Add(1)
	if f.fs.slow > 0 && len(b) > 128<<10 && b[0] == 0 {
		time.Sleep(f.fs.slow)
	}
	return f.File.WriteAt(b, at)
}

// prefilled opens a ring of size bytes; commit appends one small entry and
// waits for it, and found is what the ring had.
func prefilled(t *testing.T, fs vfs.FS, path string, size, prefill int64) (r *ring.Ring, found int, commit func()) {
	t.Helper()
	pool := wal.NewPool(32 << 20)
	durable := make(chan struct{}, 1)
	r, err := ring.Open(ring.Options{FS: fs, Path: path, Size: size, Pool: pool, Prefill: prefill,
		Announce: func(entries []*wal.Entry, err error) {
			for _, e := range entries {
				e.Chunk.Release()
				durable <- struct{}{}
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Replay(func(*wal.Entry) error { found++; return nil }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, found, func() {
		t.Helper()
		e := &wal.Entry{TP: ids.TopicPartition{Topic: ids.TopicID{1}}, Kind: wal.KindLogStart, Base: 1}
		if err := r.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
		<-durable
	}
}

// A small commit is one write: the prefill goes on by large pieces, not by as
// much as each commit took.
func TestPrefillInBouts(t *testing.T) {
	fs := &writesFS{FS: vfs.OS()}
	_, _, commit := prefilled(t, fs, filepath.Join(t.TempDir(), "ring.wal"), 16<<20, 1<<20)
	const n = 200 // 800 KiB
	for range n {
		commit()
	}
	// The head of the file, a MiB to begin with, and 256 KiB for every 256 KiB.
	if got := fs.writes.Load(); got > n+1+4+4 {
		t.Errorf("%d writes for %d commits", got, n)
	}
}

// Commits don't wait for a prefill that is slow and far ahead of them.
func TestCommitsPassThePrefill(t *testing.T) {
	fs := &writesFS{FS: vfs.OS(), slow: 300 * time.Millisecond}
	_, _, commit := prefilled(t, fs, filepath.Join(t.TempDir(), "ring.wal"), 64<<20, 32<<20) // 128 pieces: 38 s
	time.Sleep(400 * time.Millisecond)                                                       // the first piece is there
	began := time.Now()
	for range 50 {
		commit()
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("50 commits took %v: as if each had waited for a piece", took)
	}
}

// A commit where zeros are being written waits for them, and is not overwritten.
func TestPrefillSparesCommits(t *testing.T) {
	fs := &writesFS{FS: vfs.OS(), slow: 200 * time.Millisecond}
	path := filepath.Join(t.TempDir(), "ring.wal")
	r, _, commit := prefilled(t, fs, path, 16<<20, 4<<20)
	time.Sleep(50 * time.Millisecond) // the prefill is at the first piece
	for range 3 {
		commit()
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, found, _ := prefilled(t, fs, path, 16<<20, 4<<20); found != 3 {
		t.Errorf("%d of 3 durable entries are there after a restart", found)
	}
}
