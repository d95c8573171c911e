package broker

import (
	"testing"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// What an earlier owner has tiered, so that its stream was trimmed, and the metadata store has forgotten
// afterwards, is found in the bucket.
func TestForgottenIsNotLookedForInStreams(t *testing.T) {
	f := newFollowed(t)
	bucket := f.inBucket()
	store, err := storage.Open(storage.Options{FS: vfs.NewMem(), Dir: "disk", Logger: f.opts.Logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	p := &Partition{b: f.Broker, tp: f.tp, epoch: 5, store: store}
	p.topic.Store(f.topic)
	if p.log, err = store.CreateAt(f.tp, storage.LogConfig{}, storage.Begin{End: 30}); err != nil {
		t.Fatal(err)
	}
	f.putSegment(bucket, 0, 0, false)
	f.putSegment(bucket, 10, 1, true)
	p.tiered.Store(10)
	inc := ids.NewIncarnation()
	placed := func(base int64, seq uint64) wal.Placed {
		return wal.Placed{Stream: inc, Seq: seq, Batch: wal.Batch{TP: f.tp, Base: base, Last: base + 9, Epoch: 1}}
	}
	p.older.Store(&older{[]wal.Placed{placed(10, 7), placed(20, 8)}})
	if err := p.dropOlder(t.Context()); err != nil {
		t.Error(err)
	}
	if o := p.older.Load(); o == nil || len(o.batches) != 1 || o.batches[0].Base != 20 || p.tiered.Load() != 20 {
		t.Errorf("looked for in streams: %+v, tiered to %d", o, p.tiered.Load())
	}
	if rows, err := f.tieredRows(t.Context(), f.tp, 10); err != nil || len(rows) != 1 {
		t.Errorf("rows %v, %v", rows, err)
	}
	f.sleep(mendEvery)
	if err := p.dropOlder(t.Context()); err == nil {
		t.Error("what is nowhere is said to be tiered")
	}
	f.putSegment(bucket, 20, 5, false) // tiered while this agent took over
	if err := p.dropOlder(t.Context()); err != nil || p.older.Load() != nil || p.tiered.Load() != 30 {
		t.Errorf("what is indexed: %v, %+v, tiered to %d", err, p.older.Load(), p.tiered.Load())
	}
}
