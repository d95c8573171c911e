package storage_test

import (
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// Many partitions with many small batches, none of which fills 64 KiB, do not
// grow the number of batches that are remembered one by one; and what is in
// spill files is there after a start.
func TestManySmallBatches(t *testing.T) {
	const (
		partitions = 40
		each       = 500
		tail       = 2 << 20
		// What recordMemory allows, what comes between two trims, and less than a
		// block of each partition.
		limit = tail/512 + 16<<20/4/4096*2 + partitions*30
	)
	fs := vfs.NewMem()
	open := func() *storage.Store {
		s, err := storage.Open(storage.Options{FS: fs, Dir: "/data", WALSize: 16 << 20, TailBytes: tail})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	var want [partitions][]byte
	logs := func() (out []*storage.Log) {
		for p := range int32(partitions) {
			l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}, Partition: p}, storage.LogConfig{}, 0)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, l)
		}
		return out
	}
	all, peak := logs(), int64(0)
	for i := range each {
		for p, l := range all {
			var wg sync.WaitGroup
			b := makeBatch(1, 60, uint64(i*partitions+p))
			appendOne(t, l, b, &wg)
			want[p] = append(want[p], b...)
			wg.Wait() // a commit of its own
		}
		peak = max(peak, s.Stats().TailBatches)
	}
	t.Logf("at most %d of %d batches in the tails, %d spill files", peak, partitions*each, s.Stats().SpillFiles)
	if peak > limit {
		t.Errorf("%d batches in the tails, want at most %d", peak, limit)
	}
	began := time.Now()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open()
		for p, l := range logs() {
			if got := readAll(t, l); string(got) != string(want[p]) {
				t.Fatalf("partition %d has %d bytes, want %d", p, len(got), len(want[p]))
			}
		}
	}
	t.Logf("two starts in %v", time.Since(began))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
