package storage_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// Batches that come while a commit is written share the next one: the writes
// and syncs per batch are few, whatever their partitions.
func TestWritesPerBatch(t *testing.T) {
	fs := &countingFS{FS: vfs.OS(), writeTime: 5 * time.Millisecond}
	s, err := storage.Open(storage.Options{FS: fs, Dir: t.TempDir(), WALSize: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var logs []*storage.Log
	for p := range int32(16) {
		l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}, Partition: p}, storage.LogConfig{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, l)
	}
	writes, syncs := fs.writes.Load(), fs.syncs.Load()
	const n = 2000
	var wg sync.WaitGroup
	for i := range n {
		appendOne(t, logs[i%16], makeBatch(1, 1000, uint64(i)), &wg)
	}
	wg.Wait()
	if w, y := fs.writes.Load()-writes, fs.syncs.Load()-syncs; w > n/20 || y > 4 {
		t.Errorf("%d writes and %d syncs for %d batches that did not wait for each other", w, y, n)
	}
}

// An append and a read of the tail cost few allocations.
func TestAllocations(t *testing.T) {
	s, err := storage.Open(storage.Options{FS: vfs.OS(), Dir: t.TempDir(), WALSize: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}}, storage.LogConfig{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := makeBatch(1, 1000, 1)
	done := make(chan struct{}, 1)
	wake := func(storage.AppendResult) { done <- struct{}{} }
	offset := int64(0)
	if n := testing.AllocsPerRun(200, func() {
		h, err := batch.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Append(context.Background(), b, h, storage.AppendOptions{}, wake); err != nil {
			t.Fatal(err)
		}
		<-done
		r, err := l.Read(context.Background(), offset, 1<<20, true)
		if err != nil || r.Size != len(b) {
			t.Fatal(r.Size, err)
		}
		r.Release()
		offset++
	}); n > 5 {
		t.Errorf("%.0f allocations for an append and a read of it", n)
	}
}
