package storage_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// A lower disk budget counts at once, and who waits for space goes on when it is raised.
func TestSetLimits(t *testing.T) {
	const ring = 16 << 20
	s, err := storage.Open(storage.Options{FS: vfs.OS(), Dir: t.TempDir(), WALSize: ring, TailBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}}, storage.LogConfig{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	try := func(wait time.Duration) error {
		b := makeBatch(1, 1000, 1)
		h, err := batch.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		return l.Append(ctx, b, h, storage.AppendOptions{}, func(storage.AppendResult) {})
	}
	if err := try(time.Second); err != nil {
		t.Fatal(err)
	}
	s.SetLimits(storage.Limits{TailBytes: 32 << 20, ReadBytes: 32 << 20, DiskBudget: ring})
	if st := s.Stats(); st.TailLimit != 32<<20 || st.ReadLimit != 32<<20 || st.DiskBudget != ring {
		t.Errorf("limits are %+v", st)
	}
	if err := try(50 * time.Millisecond); !errors.Is(err, storage.ErrBusy) {
		t.Fatalf("beyond the budget: %v", err)
	}
	done := make(chan error)
	go func() { done <- try(10 * time.Second) }()
	time.Sleep(20 * time.Millisecond)
	s.SetLimits(storage.Limits{TailBytes: 32 << 20, ReadBytes: 32 << 20, DiskBudget: ring + 1<<20})
	if err := <-done; err != nil {
		t.Fatalf("within the raised budget: %v", err)
	}
}
