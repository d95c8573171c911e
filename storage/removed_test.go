package storage_test

import (
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// syncHook calls f before the directory of a log is synced.
type syncHook struct {
	vfs.FS
	f atomic.Pointer[func()]
}

// SyncDir implements vfs.FS.
func (h *syncHook) SyncDir(dir string) error {
	if f := h.f.Load(); f != nil && filepath.Base(filepath.Dir(dir)) == "logs" {
		(*f)()
	}
	return h.FS.SyncDir(dir)
}

// A log that is removed while old index files of it are dropped is no failure of the disk.
func TestRemoveWhileIndexIsDropped(t *testing.T) {
	fs := &syncHook{FS: vfs.OS()}
	s, err := storage.Open(storage.Options{FS: fs, Dir: t.TempDir(), WALSize: 16 << 20, TailBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tp := ids.TopicPartition{Topic: ids.TopicID{1}}
	l, err := s.Create(tp, storage.LogConfig{SegmentBytes: 1 << 20}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 3; n++ {
		var wg sync.WaitGroup
		appendOne(t, l, makeBatch(3, 10_000, 1), &wg)
		wg.Wait()
		l.RollIfOld(true)
		for end := time.Now().Add(20 * time.Second); len(l.ClosedSegments()) < n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("not closed in 20 s")
			}
		}
	}
	removed := false
	f := func() {
		fs.f.Store(nil)
		removed = true
		if err := s.Remove(tp); err != nil {
			t.Error(err)
		}
	}
	fs.f.Store(&f)
	l.DropLocal(6)
	if !removed {
		t.Fatal("no directory was synced")
	}
	if err := s.Err(); err != nil {
		t.Errorf("the store has failed: %v", err)
	}
}
