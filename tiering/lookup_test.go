package tiering

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

func TestReaderLookups(t *testing.T) {
	r := newReadRig(t, 3, nil)
	ctx := t.Context()
	for _, tt := range []struct{ ts, from, offset, found int64 }{
		{0, 0, 0, 1000}, {1000, 0, 0, 1000}, {1234, 0, 234, 1234}, {1500, 0, 500, 1500},
		{0, 703, 703, 1703}, {1200, 703, 703, 1703}, {2499, 0, 1499, 2499}, {2499, 1499, 1499, 2499},
	} {
		got, ok, err := r.OffsetForTimestamp(ctx, testTP, tt.ts, tt.from)
		if err != nil || !ok || got.Offset != tt.offset || got.Timestamp != tt.found || got.Epoch != 1 {
			t.Errorf("timestamp %d from %d: %+v, %v, %v", tt.ts, tt.from, got, ok, err)
		}
	}
	if _, ok, err := r.OffsetForTimestamp(ctx, testTP, 2500, 0); ok || err != nil {
		t.Errorf("behind the last timestamp: %v, %v", ok, err)
	}
	if ts, err := r.MaxTimestamp(ctx, testTP, 0); ts != 2499 || err != nil {
		t.Errorf("max timestamp %d, %v", ts, err)
	}
	if ts, err := r.MaxTimestamp(ctx, ids.TopicPartition{}, 0); ts != -1 || err != nil {
		t.Errorf("max timestamp of nothing %d, %v", ts, err)
	}
	if p, err := r.Producers(ctx, r.x.all(testTP)[0]); err != nil || len(p) != 1 || p[0].ProducerID != 5 {
		t.Errorf("producers %v, %v", p, err)
	}
	if s, err := r.SegmentAt(ctx, testTP, 750); err != nil || s.Base != 500 {
		t.Errorf("segment %v, %v", s.Key(), err)
	}
}

func TestEpochEnd(t *testing.T) {
	r := newReadRig(t, 0, nil)
	put := func(base int64, epochs ...int32) {
		var bs [][]byte
		for i, e := range epochs {
			bs = append(bs, makeBatch(base+int64(i)*10, 10, 0, 10, e))
		}
		segmentOf(testTP, base, bs...).put(t, r.b, r.x)
	}
	put(0, 2, 2)
	put(20, 2, 4)
	put(40, 4, 4)
	put(60, 7, 7)
	for _, tt := range []struct {
		epoch, found int32
		end          int64
		ok           bool
	}{{0, -1, -1, false}, {1, -1, -1, false}, {2, 2, 30, true}, {3, 2, 30, true}, {4, 4, 60, true}, {6, 4, 60, true}, {7, 7, 80, true}, {9, 7, 80, true}} {
		found, end, ok, err := r.EpochEnd(t.Context(), testTP, tt.epoch, 0)
		if err != nil || found != tt.found || end != tt.end || ok != tt.ok {
			t.Errorf("epoch %d: %d ends at %d, %v, %v; want %+v", tt.epoch, found, end, ok, err, tt)
		}
	}
}

// Where the index has forgotten rows between two epochs, neither is said to end there.
func TestEpochEndInGap(t *testing.T) {
	r := newReadRig(t, 0, nil)
	put := func(base int64, epoch int32) {
		segmentOf(testTP, base, makeBatch(base, 10, 0, 10, epoch)).put(t, r.b, r.x)
	}
	put(0, 0)
	// 10 to 19 were of epoch 2, say.
	put(20, 3)
	put(40, 3) // 30 to 39 were of epoch 3
	for _, epoch := range []int32{0, 1, 2} {
		_, _, _, err := r.EpochEnd(t.Context(), testTP, epoch, 0)
		var gap *GapError
		if !errors.As(err, &gap) || gap.From != 10 || gap.To != 20 || !errors.Is(err, ErrNoSegment) {
			t.Errorf("epoch %d: %v", epoch, err)
		}
	}
	if found, end, ok, err := r.EpochEnd(t.Context(), testTP, 3, 50); err != nil || !ok || found != 3 || end != 50 {
		t.Errorf("epoch 3: %d ends at %d, %v, %v", found, end, ok, err)
	}
	var gap *GapError
	if _, _, _, err := r.EpochEnd(t.Context(), testTP, 3, 60); !errors.As(err, &gap) || gap.From != 50 || gap.To != 60 {
		t.Errorf("epoch 3, whose last rows are forgotten: %v", err)
	}
	put(10, 2)
	if found, end, ok, err := r.EpochEnd(t.Context(), testTP, 2, 0); err != nil || !ok || found != 2 || end != 20 {
		t.Errorf("epoch 2: %d ends at %d, %v, %v", found, end, ok, err)
	}
}

func TestAborted(t *testing.T) {
	r := newReadRig(t, 0, nil)
	put := func(base int64, lastStable int64, txns ...segment.AbortedTxn) {
		b := segment.NewBuilder(testTP, base, 4096)
		raw := makeBatch(base, 10, 0, 10, 1)
		h, err := batch.Check(raw)
		if err != nil {
			t.Fatal(err)
		}
		b.Add(h, raw)
		s := &testSegment{meta: b.Meta(), log: raw, object: append(bytes.Clone(raw), b.Trailer(lastStable, txns, nil)...)}
		s.meta.LastStable = lastStable
		s.put(t, r.b, r.x)
	}
	put(0, 5)
	put(10, 20, segment.AbortedTxn{ProducerID: 1, First: 5, Last: 12, LastStable: 20})
	for _, tt := range []struct {
		from, to int64
		n        int
		complete bool
	}{{0, 5, 0, true}, {0, 10, 1, true}, {13, 20, 0, true}, {0, 30, 1, false}} {
		txns, complete, err := r.Aborted(t.Context(), testTP, tt.from, tt.to)
		if err != nil || len(txns) != tt.n || complete != tt.complete {
			t.Errorf("%d to %d: %v, %v, %v", tt.from, tt.to, txns, complete, err)
		}
	}
}

func TestBucketIndex(t *testing.T) {
	r := newReadRig(t, 5, nil)
	other := ids.TopicPartition{Topic: testTopic, Partition: 10}
	makeSegment(other, 0, 1, 0, 1).put(t, r.b, nil)
	if _, err := r.b.Put(t.Context(), PartitionPrefix(testTP)+"note", bytes.NewReader([]byte("x")), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	x := NewBucketIndex(r.b)
	if p, err := x.Partitions(t.Context(), testTopic); err != nil || fmt.Sprint(p) != "[7 10]" {
		t.Errorf("partitions %v, %v", p, err)
	}
	rows, err := x.Segments(t.Context(), testTP, 750, 2)
	if err != nil || len(rows) != 2 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	want := r.x.all(testTP)[1]
	want.Uploaded = rows[0].Uploaded
	if rows[0] != want || rows[0].Uploaded == 0 {
		t.Errorf("row %+v, want %+v", rows[0], want)
	}
	if err := x.Add(t.Context(), want); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	if err := x.Drop(t.Context(), testTP, nil); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	// everything is readable from the bucket alone
	r.o.Index = x
	r.reopen(t)
	r.checkAll(t, 50_000)

	broken := makeSegment(testTP, 2500, 2, 0, 1)
	broken.object = broken.object[:len(broken.object)-1]
	row := broken.put(t, r.b, nil)
	x.lists = map[ids.TopicPartition]listing{} // a later LIST
	r.checkAll(t, 50_000)
	if _, err := r.Read(t.Context(), testTP, 2500, 100, true); !errors.Is(err, ErrDamaged) {
		t.Errorf("read of a cut object: %v", err)
	}
	if _, err := readRow(t.Context(), r.b, objstore.ObjectInfo{Key: row.Key(), Size: int64(len(broken.object))}); !errors.Is(err, ErrDamaged) {
		t.Errorf("cut object: %v", err)
	}

	// deleted between LIST and GET
	if err := r.b.Delete(t.Context(), row.Key()); err != nil {
		t.Fatal(err)
	}
	rows, err = x.Segments(t.Context(), testTP, 2000, 10)
	if err != nil || len(rows) != 1 {
		t.Errorf("%d rows, %v", len(rows), err)
	}
}
