package wal

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// An object that was trimmed goes only when what it has is spare at that moment, or in a newer one.
func TestDeleteAsksAgain(t *testing.T) {
	b := objstore.NewMem()
	var spare atomic.Int64 // up to which offset of part(0)
	var fails atomic.Bool
	var asked atomic.Int64
	w := newOwner(t, b, Options{CheckpointEvery: 1, Spare: func(_ context.Context, tp ids.TopicPartition, _, last int64) (bool, error) {
		asked.Add(1)
		if fails.Load() {
			return true, errors.New("the index can't be read")
		}
		return tp == part(0) && last < spare.Load(), nil
	}})
	w.accept(part(0), part(1))
	add := func(tp ids.TopicPartition) {
		t.Helper()
		if err := w.append(tp, 100); err != nil {
			t.Fatal(err)
		}
		w.settle()
	}
	for range 4 {
		add(part(0))
	}
	add(part(1))
	w.next[part(1)]--
	add(part(1)) // carried forward
	add(part(0))
	lowest := func() uint64 {
		t.Helper()
		objects, _, err := list(t.Context(), b, w.inc)
		if err != nil {
			t.Fatal(err)
		}
		return objects[0].seq
	}
	await := func(what string, want uint64) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); lowest() != want && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		}
		from := asked.Load()
		for end := time.Now().Add(3 * time.Second); asked.Load() == from && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		}
		if got := lowest(); got != want {
			t.Fatalf("%s: the lowest object is %d, want %d", what, got, want)
		}
	}
	fails.Store(true)
	spare.Store(100)
	if err := w.Trim(w.State().Durable); err != nil { // 0 and 1 have no batches
		t.Fatal(err)
	}
	await("the index can't be read", 2)
	spare.Store(2)
	fails.Store(false)
	await("half is indexed", 4)
	spare.Store(100)
	// 2 to 5 are offsets 0 to 3 of the first partition, 6 and 7 the same of the second.
	await("all but what was carried", 7)
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}
