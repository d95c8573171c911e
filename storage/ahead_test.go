package storage_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// onDisk returns a log whose batches of size bytes, n together, are only in its
// segment files, and their bytes.
func onDisk(t *testing.T, fs vfs.FS, n, size int, readBytes int64) (*storage.Store, *storage.Log, []byte) {
	t.Helper()
	s, err := storage.Open(storage.Options{FS: fs, Dir: t.TempDir(), WALSize: 64 << 20, TailBytes: 16 << 20, ReadBytes: readBytes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}}, storage.LogConfig{SegmentBytes: 16 << 20}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	for i := range n {
		b := makeBatch(3, size, uint64(i))
		var wg sync.WaitGroup
		appendOne(t, l, b, &wg)
		wg.Wait()
		want = append(want, b...)
	}
	l.RollIfOld(true)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if segs := l.Segments(); segs[len(segs)-1].Closed {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the segments are not closed after a minute")
		}
	}
	return s, l, want
}

// sequential reads the log's batches from offset on, pieces of at most maxBytes.
func sequential(l *storage.Log, offset int64, maxBytes int) (out []byte, fromFiles int, err error) {
	for offset < l.Offsets().HighWatermark {
		r, err := l.Read(context.Background(), offset, maxBytes, true)
		if err != nil {
			return out, fromFiles, err
		}
		if r.Size == 0 {
			return out, fromFiles, errors.New("an empty read below the high watermark")
		}
		if !r.FromMemory {
			fromFiles++
		}
		for _, d := range r.Data {
			out = append(out, d...)
			for ; len(d) > 0; d = d[batchSize(d):] {
				h, err := batch.Check(d)
				if err != nil {
					return out, fromFiles, err
				}
				offset = h.LastOffset() + 1
			}
		}
		r.Release()
	}
	return out, fromFiles, nil
}

func batchSize(b []byte) int {
	h, _ := batch.Parse(b)
	return h.Size()
}

// Consumers with limits around the size of a batch, alone and several at once,
// get every byte in order, and few reads reach the disk.
func TestReadAhead(t *testing.T) {
	fs := &countingFS{FS: vfs.OS()}
	s, l, want := onDisk(t, fs, 64, 600<<10, 0)
	before := fs.reads.Load()
	for _, maxBytes := range []int{1 << 20, 1, 700 << 10, 3 << 20, 5 << 20} {
		got, fromFiles, err := sequential(l, 0, maxBytes)
		if err != nil {
			t.Fatalf("limit %d: %v", maxBytes, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("limit %d: %d bytes, want %d, or other ones", maxBytes, len(got), len(want))
		}
		if fromFiles == 0 {
			t.Fatal("nothing was read from files")
		}
	}
	// 37 MiB in pieces of up to 4 MiB, five times; one by one it would be 240 reads.
	if n := fs.reads.Load() - before; n > 110 {
		t.Errorf("%d reads of files", n)
	}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if got, _, err := sequential(l, 0, (i+1)*400<<10); err != nil || !bytes.Equal(got, want) {
				t.Errorf("reader %d: %d bytes of %d, %v", i, len(got), len(want), err)
			}
		}()
	}
	wg.Wait()
	if err := s.Remove(l.TP()); err != nil {
		t.Fatal(err)
	}
	idle(t, s)
}

// idle waits until no buffer of reads is in use.
func idle(t *testing.T, s *storage.Store) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); s.Stats().ReadInUse > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes of read buffers are still in use", s.Stats().ReadInUse)
		}
	}
}

// What was read ahead for a consumer that went away is given back after some
// seconds, and at once to a read that has to wait for memory.
func TestReadAheadGivesWay(t *testing.T) {
	s, l, _ := onDisk(t, vfs.OS(), 40, 600<<10, 16<<20)
	var held []storage.ReadResult
	for o := int64(0); o < 9; o += 3 { // the third read has a piece after it
		r, err := l.Read(context.Background(), o, 600<<10, true)
		if err != nil {
			t.Fatal(err)
		}
		r.Release()
	}
	for deadline := time.Now().Add(20 * time.Second); s.Stats().ReadInUse == 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("nothing was read ahead")
		}
	}
	for _, o := range []int64{60, 30, 45, 75} { // as many buffers as there are
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		r, err := l.Read(ctx, o, 600<<10, true)
		cancel()
		if err != nil {
			t.Fatalf("read at %d: %v", o, err)
		}
		held = append(held, r)
	}
	for _, r := range held {
		r.Release()
	}
	for o := int64(0); o < 9; o += 3 {
		r, err := l.Read(context.Background(), o, 600<<10, true)
		if err != nil {
			t.Fatal(err)
		}
		r.Release()
	}
	idle(t, s)
}

// A damaged batch is an error, read ahead or not, and those before it are served.
func TestReadAheadOfDamage(t *testing.T) {
	fs := &countingFS{FS: vfs.OS(), flipAt: 5 << 20}
	_, l, want := onDisk(t, fs, 40, 600<<10, 0)
	got, _, err := sequential(l, 0, 600<<10)
	if !errors.Is(err, storage.ErrDamaged) {
		t.Fatalf("%d bytes, error %v, want ErrDamaged", len(got), err)
	}
	if len(got) < 3<<20 || !bytes.HasPrefix(want, got) {
		t.Errorf("%d good bytes came before the damaged one", len(got))
	}
}
