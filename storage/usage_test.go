package storage_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// TestUsage follows segments from open to closed, tiered and dropped.
func TestUsage(t *testing.T) {
	const size = 10_000
	s, err := storage.Open(storage.Options{FS: vfs.OS(), Dir: t.TempDir(), WALSize: 16 << 20, TailBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}}, storage.LogConfig{SegmentBytes: 1 << 20}, 0)
	if err != nil {
		t.Fatal(err)
	}
	bytes := int64(0)
	for range 2 {
		var wg sync.WaitGroup
		b := makeBatch(3, size, 1)
		appendOne(t, l, b, &wg)
		wg.Wait()
		bytes += int64(len(b))
		if u := l.Usage(0); u.Bytes != bytes {
			t.Errorf("%+v, want %d bytes", u, bytes)
		}
		l.RollIfOld(true)
	}
	for end := time.Now().Add(20 * time.Second); len(l.ClosedSegments()) < 2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not closed in 20 s")
		}
	}
	first, second := l.ClosedSegments()[0], l.ClosedSegments()[1]
	check := func(what string, tieredEnd, want int64, since time.Time) {
		t.Helper()
		if u := l.Usage(tieredEnd); u.Bytes != bytes || u.WaitingBytes != want || !u.WaitingSince.Equal(since) {
			t.Errorf("%s: %+v, want %d bytes, %d waiting since %v", what, u, bytes, want, since)
		}
	}
	check("both closed", 0, first.Bytes+second.Bytes, first.ClosedAt)
	check("the first is indexed", 3, second.Bytes, second.ClosedAt)
	l.MarkTiered(2)
	check("the first is tiered", 0, second.Bytes, second.ClosedAt)
	l.SetStart(6)
	check("below the log start", 0, 0, time.Time{})
	bytes -= l.DropLocal(6)
	check("dropped", 0, 0, time.Time{})
	if bytes != 0 {
		t.Errorf("%d bytes are left", bytes)
	}
}

// TestWaits counts an append that waits for the disk budget.
func TestWaits(t *testing.T) {
	s, err := storage.Open(storage.Options{FS: vfs.OS(), Dir: t.TempDir(), WALSize: 16 << 20, TailBytes: 16 << 20, DiskBudget: 16<<20 + 50_000})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}}, storage.LogConfig{SegmentBytes: 1 << 20}, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := makeBatch(1, 100_000, 1)
	h, err := batch.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	before := s.Stats()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := l.Append(ctx, b, h, storage.AppendOptions{}, func(storage.AppendResult) {}); !errors.Is(err, storage.ErrBusy) {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Waits != before.Waits+1 || st.WaitTime <= before.WaitTime {
		t.Errorf("%d waits of %v", st.Waits-before.Waits, st.WaitTime-before.WaitTime)
	}
}
