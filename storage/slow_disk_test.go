package storage_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// slow has each write and sync of files below path take so long.
func slow(f *vfs.Fault, path string, d time.Duration) {
	for _, op := range []vfs.Op{vfs.OpWrite, vfs.OpSync} {
		f.Add(vfs.Rule{Op: op, Path: path, Delay: d})
	}
}

// On a slow disk appends wait for it, in bounded memory; all that was acknowledged is there, and when the disk is quick
// again so are they.
func TestSlowDisk(t *testing.T) {
	const tail, size = 16 << 20, 40_000
	mem := newCrashFS(t)
	fault := vfs.NewFault(mem)
	o := storage.Options{FS: fault, Dir: crashDir, WALSize: 64 << 20, TailBytes: tail}
	s, err := storage.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}}, storage.LogConfig{SegmentBytes: 1 << 20}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var acked atomic.Int64
	var wg sync.WaitGroup
	load := func(d time.Duration) (n int64) {
		before := acked.Load()
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		for i := range 8 {
			wg.Go(func() {
				for ctx.Err() == nil {
					b := makeBatch(1, size, uint64(i))
					h, err := batch.Parse(b)
					if err != nil {
						t.Error(err)
						return
					}
					wg.Add(1)
					if err := l.Append(ctx, b, h, storage.AppendOptions{Epoch: 1}, func(r storage.AppendResult) {
						if r.Err == nil {
							acked.Add(1)
						}
						wg.Done()
					}); err != nil {
						wg.Done() // the time was over
					}
				}
			})
		}
		wg.Wait()
		return acked.Load() - before
	}
	quick := load(300 * time.Millisecond)
	waits := s.Stats().Waits
	slow(fault, crashDir, 50*time.Millisecond)
	var most atomic.Int64
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				most.Store(max(most.Load(), s.Stats().TailInUse))
			}
		}
	})
	crept := load(5 * time.Second)
	close(stop)
	watch.Wait()
	if w := s.Stats().Waits - waits; crept == 0 || w == 0 {
		t.Errorf("%d batches were acknowledged in 5 s by a disk that takes 50 ms for each write, %d appends waited", crept, w)
	}
	if m := most.Load(); m == 0 || m > s.Stats().TailLimit {
		t.Errorf("memory of %d bytes, the limit is %d", m, s.Stats().TailLimit)
	}
	fault.Clear()
	if again := load(time.Second); again < quick/5 {
		t.Errorf("%d batches in a second on the quick disk again, %d in 0.3 s before", again, quick)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	o.FS = mem
	s, err = storage.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if end := s.Log(l.TP()).Offsets().End; end != acked.Load() {
		t.Errorf("the log ends at %d, %d were acknowledged", end, acked.Load())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A slow disk holds up no acknowledgement of class object, which is the bucket's, as long as memory lasts.
func TestSlowDiskRemote(t *testing.T) {
	fault := vfs.NewFault(vfs.OS())
	r := openRemoteOn(t, fault, objstore.NewMem(), t.TempDir(), storage.RemoteOptions{}, 64<<20)
	logs := r.create(4, storage.LogConfig{SegmentBytes: 1 << 20})
	slow(fault, "logs/", 200*time.Millisecond)
	began := time.Now()
	var wg sync.WaitGroup
	for range 50 { // 40 s if each waited for the disk
		for _, l := range logs {
			if err := r.append(l, 50_000, &wg); err != nil {
				t.Fatal(err)
			}
		}
	}
	wg.Wait()
	took := time.Since(began)
	for _, l := range logs {
		if end := r.ends[l.TP()]; end != 50 {
			t.Errorf("%s: acknowledged to %d", l.TP(), end)
		}
	}
	eventually(t, "the disk is written", func() bool { return fault.Fired(vfs.OpWrite) > 0 })
	if took > 10*time.Second {
		t.Errorf("acknowledgements of 10 MB took %v, %d writes of the disk were slow", took, fault.Fired(vfs.OpWrite))
	}
	fault.Clear()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}
