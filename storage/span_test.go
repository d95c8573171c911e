package storage_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
)

// A small batch in front of a large one can be read after both left memory, though
// the file has only a part of their span.
func TestSmallBatchBeforeLargeOne(t *testing.T) {
	o := crashOptions(newCrashFS(t))
	o.WALSize, o.DirectBytes = 1<<20, 200_000
	w := &world{t: t, rng: rand.New(rand.NewPCG(1, 1))}
	w.add(2)
	var err error
	if w.store, err = storage.Open(o); err != nil {
		t.Fatal(err)
	}
	defer w.store.Close()
	cfg := storage.LogConfig{SegmentBytes: 32 << 20}
	w.appendAs(w.parts[0], 1000, cfg)
	w.appendAs(w.parts[0], 210_001, cfg)
	w.settle()
	for i := range 400 { // takes memory and ring from the other one
		w.appendAs(w.parts[1], 150_000, cfg)
		w.settle()
		if i == 200 {
			w.appendAs(w.parts[0], 100, cfg)
			w.settle()
		}
	}
	eventually(t, "eviction", func() bool { return w.store.Stats().SpillFiles > 0 && w.store.Stats().TailBatches < 150 })
	time.Sleep(1500 * time.Millisecond) // the cleaner comes by once a second
	l := w.store.Log(w.parts[0].tp)
	if end := readRest(t, l, w.parts[0]); end != l.Offsets().End {
		t.Fatalf("read up to %d of %d", end, l.Offsets().End)
	}
	if _, err := l.Read(context.Background(), 0, 100, true); err != nil {
		t.Fatal(err)
	}
}
