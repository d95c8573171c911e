package broker

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// inBucket has rows and objects read as they are, and returns the bucket of the objects.
func (f *followed) inBucket() objstore.Bucket {
	f.t.Helper()
	bucket := objstore.NewMem()
	reader, err := tiering.NewReader(tiering.ReaderOptions{Bucket: bucket, Index: NewIndex(f.meta), ReadAhead: -1})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { reader.Close() })
	f.opts.Reader, f.opts.Bucket, f.index = reader, bucket, &metaIndex{meta: f.meta}
	return bucket
}

// putSegment puts a segment of ten records of a leader epoch, and indexes it unless the row was forgotten.
func (f *followed) putSegment(b objstore.Writer, base int64, epoch int32, forgotten bool) {
	f.t.Helper()
	raw, err := batch.Encode(make([]batch.Record, 10), batch.EncodeOptions{BaseOffset: base, LeaderEpoch: epoch})
	if err != nil {
		f.t.Fatal(err)
	}
	h, err := batch.Check(raw)
	if err != nil {
		f.t.Fatal(err)
	}
	builder := segment.NewBuilder(f.tp, base, 4096)
	builder.Add(h, raw)
	object := append(slices.Clone(raw), builder.Trailer(base+10, nil, nil)...)
	k := tiering.SegmentKey{TP: f.tp, Base: base, Last: base + 9, Epoch: epoch, Incarnation: ids.NewIncarnation()}
	if _, err := b.Put(f.t.Context(), k.Key(), bytes.NewReader(object), objstore.PutOptions{IfNoneMatch: true}); err != nil {
		f.t.Fatal(err)
	}
	if forgotten {
		return
	}
	m := builder.Meta()
	r := metadata.SegmentRow{TP: f.tp, SegmentID: rowID(k), Size: int64(len(object)), LogSize: m.LogSize, Records: m.Records, MinTimestamp: m.MinTimestamp, MaxTimestamp: m.MaxTimestamp, LastStable: base + 10}
	if err := f.meta.AddSegment(f.t.Context(), r); err != nil {
		f.t.Fatal(err)
	}
}

// No client is told that an epoch ends where the metadata store has only forgotten the next one's rows: the
// bucket has them.
func TestEpochEndOfForgottenRows(t *testing.T) {
	f := newFollowed(t)
	bucket := f.inBucket()
	f.putSegment(bucket, 0, 0, false)
	f.putSegment(bucket, 10, 2, true)
	f.putSegment(bucket, 20, 2, true)
	f.putSegment(bucket, 30, 3, false)
	f.putSegment(bucket, 40, 4, true) // the last rows
	p := &Partition{b: f.Broker, tp: f.tp, epoch: 5}
	p.topic.Store(f.topic)
	p.tiered.Store(50)
	ends := func(epoch int32, want EpochEnd) {
		t.Helper()
		if got, err := p.tieredEpochEnd(t.Context(), epoch, 0, 55); err != nil || got != want {
			t.Errorf("epoch %d: %+v, %v; want %+v", epoch, got, err, want)
		}
	}
	ends(2, EpochEnd{Epoch: 2, EndOffset: 30})
	ends(1, EpochEnd{Epoch: 0, EndOffset: 10})
	if got, err := p.tieredEpochEnd(t.Context(), 4, 0, 55); !errors.Is(err, ErrStorage) { // it has just been searched
		t.Errorf("epoch 4 at once: %+v, %v", got, err)
	}
	f.sleep(mendEvery)
	ends(4, EpochEnd{Epoch: 4, EndOffset: 55})
	ends(3, EpochEnd{Epoch: 3, EndOffset: 40})
	ends(0, EpochEnd{Epoch: 0, EndOffset: 10})
}

// Rows of what is deleted are not missed; those behind the log start are, which the bucket has though the deleted ones are gone.
func TestEpochEndOfDeletedRows(t *testing.T) {
	f := newFollowed(t)
	bucket := f.inBucket()
	p := &Partition{b: f.Broker, tp: f.tp, epoch: 5}
	p.topic.Store(f.topic)
	p.tiered.Store(50)
	none := EpochEnd{Epoch: -1, EndOffset: -1}
	if got, err := p.tieredEpochEnd(t.Context(), 4, 50, 55); err != nil || got != none {
		t.Errorf("everything is deleted: %+v, %v", got, err)
	}
	f.putSegment(bucket, 40, 4, true)
	if got, err := p.tieredEpochEnd(t.Context(), 4, 43, 55); err != nil || got != (EpochEnd{Epoch: 4, EndOffset: 55}) {
		t.Errorf("the last row is forgotten, those before are deleted: %+v, %v", got, err)
	}
}

// What streams of earlier owners have, and nobody has tiered yet, has epochs too.
func TestEpochEndInOlderStreams(t *testing.T) {
	at := func(base int64, epoch int32) wal.Placed {
		return wal.Placed{Batch: wal.Batch{Base: base, Last: base + 9, Epoch: epoch}}
	}
	o := &older{[]wal.Placed{at(50, 1), at(60, 1), at(70, 3), at(80, 3)}}
	for _, tt := range []struct {
		o          *older
		epoch      int32
		found      EpochEnd
		next, want int64
	}{
		{o, 4, EpochEnd{3, 90}, 90, 90}, {o, 3, EpochEnd{3, 90}, 90, 90}, {o, 2, EpochEnd{1, 70}, 90, 70}, {o, 0, EpochEnd{-1, -1}, 90, 50},
		{o, 2, EpochEnd{1, 65}, 65, 65}, {nil, 2, EpochEnd{-1, -1}, 90, 90},
	} {
		if found, next := tt.o.epochEnd(tt.epoch, tt.next); found != tt.found || next != tt.want {
			t.Errorf("epoch %d before %d: %+v, greater ones from %d; want %+v, %d", tt.epoch, tt.next, found, next, tt.found, tt.want)
		}
	}
}
