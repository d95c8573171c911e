package storage_test

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// filesIn returns the bytes of all files below dir.
func filesIn(t *testing.T, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// What is appended but not yet in a segment's file counts against the disk
// budget: it will be written. Nothing of the count is lost over a restart, and
// all of it comes back when the logs are removed.
func TestDiskBudget(t *testing.T) {
	const (
		ring, budget = 16 << 20, 24 << 20
		partitions   = 24
		size         = 100_000
	)
	dir := t.TempDir()
	open := func(budget int64) *storage.Store {
		s, err := storage.Open(storage.Options{FS: vfs.OS(), Dir: dir, WALSize: ring, TailBytes: 32 << 20, DiskBudget: budget})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	log := func(s *storage.Store, p int) *storage.Log {
		l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}, Partition: int32(p)}, storage.LogConfig{SegmentBytes: 1 << 20}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	s := open(budget)
	empty := s.DiskUsed()
	// Many logs, so that none of them has a piece that is worth a write.
	var wg, busy sync.WaitGroup
	var appended int64
	var mu sync.Mutex
	fill := func(l *storage.Log) {
		for i := uint64(0); ; i++ {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			b := makeBatch(1, size, i)
			h, err := batch.Parse(b)
			if err == nil {
				wg.Add(1)
				err = l.Append(ctx, b, h, storage.AppendOptions{}, func(storage.AppendResult) { wg.Done() })
			}
			cancel()
			if err != nil {
				wg.Done()
				if !errors.Is(err, storage.ErrBusy) {
					t.Error(err)
					return
				}
				if s.DiskUsed()+int64(len(b)) > budget {
					return
				}
				continue // a busy machine: the ring was not trimmed in time
			}
			mu.Lock()
			appended += int64(len(b))
			mu.Unlock()
		}
	}
	for p := range partitions {
		l := log(s, p)
		busy.Go(func() { fill(l) })
	}
	busy.Wait()
	wg.Wait()
	fill(log(s, 0)) // what others had reserved and could not use on a slow disk
	wg.Wait()
	if appended+empty > budget || appended+empty < budget-2*size {
		t.Errorf("%d bytes appended beside the ring's %d, the budget is %d", appended, empty, budget)
	}
	if used := s.DiskUsed(); used < appended+empty || !s.DiskFull() {
		t.Errorf("%d bytes count as used, %d were appended; full: %v", used, appended, s.DiskFull())
	}
	for p := range partitions {
		log(s, p).RollIfOld(true)
	}
	closed := func(l *storage.Log) bool {
		return !slices.ContainsFunc(l.Segments(), func(g storage.SegmentInfo) bool { return !g.Closed && g.Bytes > 0 })
	}
	for p, end := 0, time.Now().Add(30*time.Second); p < partitions; p++ {
		for !closed(log(s, p)) {
			if time.Now().After(end) {
				t.Fatalf("segments of partition %d are not closed", p)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	used := s.DiskUsed()
	if files := filesIn(t, filepath.Join(dir, "logs")) + ring; files > used || files > budget+partitions*4096 {
		t.Errorf("%d bytes of files, %d count, the budget is %d", files, used, budget)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(0)
	defer s.Close()
	if again := s.DiskUsed(); again > used || again < used-partitions*4096 {
		t.Errorf("%d bytes count after a restart, %d before", again, used)
	}
	for p := range partitions {
		l := log(s, p)
		l.DropLocal(l.Offsets().End - 1)
		if err := s.Remove(ids.TopicPartition{Topic: ids.TopicID{1}, Partition: int32(p)}); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.DiskUsed(); got != empty {
		t.Errorf("%d bytes count with no log left, want the ring's %d", got, empty)
	}
}
