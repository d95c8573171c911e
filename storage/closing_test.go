package storage_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// heldFS holds back writes to the ring while held is locked.
type heldFS struct {
	vfs.FS
	held *sync.RWMutex
}

func (f heldFS) Open(name string, flag vfs.Flag) (vfs.File, error) {
	file, err := f.FS.Open(name, flag)
	if err != nil || !strings.Contains(name, "ring.wal") {
		return file, err
	}
	return heldFile{file, f.held}, nil
}

type heldFile struct {
	vfs.File
	held *sync.RWMutex
}

func (f heldFile) WriteAt(b []byte, off int64) (int, error) {
	f.held.RLock()
	defer f.held.RUnlock()
	return f.File.WriteAt(b, off)
}

// A segment that is rolled while its last batch is not yet durable is closed as
// soon as that is, though nothing more is appended.
func TestClosesWhenItsLastBatchIsDurable(t *testing.T) {
	var held sync.RWMutex
	o := crashOptions(heldFS{newCrashFS(t), &held})
	o.WALSize, o.TailBytes = 4<<20, 64<<20 // so that nothing else makes the store write
	s, err := storage.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}}, storage.LogConfig{SegmentBytes: 3000}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	held.Lock()
	for i := range uint64(3) {
		appendOne(t, l, makeBatch(10, 1400, i), &wg) // two fit, the third rolls
	}
	time.Sleep(20 * time.Millisecond) // the flusher has looked and found nothing to close
	held.Unlock()
	wg.Wait()
	eventually(t, "the full segment is closed", func() bool { return len(l.ClosedSegments()) == 1 })
}
