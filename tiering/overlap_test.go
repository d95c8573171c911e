package tiering

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// A rewrite replaces a segment while a reader still has its row.
func TestObjectReplacedByRewrite(t *testing.T) {
	r := newReadRig(t, 2, nil)
	res, err := r.Read(t.Context(), testTP, 0, 1000, true)
	if err != nil {
		t.Fatal(err)
	}
	res.Release()
	old := r.x.all(testTP)[1]
	s := makeSegment(testTP, 500, 50, 1500, 1)
	row := s.row()
	row.Generation = 1
	s.putAs(t, r.b, r.x, row)
	if err := errors.Join(r.x.Drop(t.Context(), testTP, []SegmentKey{old.SegmentKey}), r.b.Delete(t.Context(), old.Key())); err != nil {
		t.Fatal(err)
	}
	res, err = r.Read(t.Context(), testTP, 500, 1000, true)
	if err != nil || res.Segment.Generation != 1 {
		t.Fatalf("segment %v, %v", res.Segment.Key(), err)
	}
	res.Release()
}

// Where two objects hold the same records, one of them is enough.
func TestDamagedObjectWithTwin(t *testing.T) {
	r := newReadRig(t, 3, func(o *ReaderOptions) { o.Logger = nil })
	twin := makeSegment(testTP, 500, 50, 1500, 1)
	row := twin.row()
	row.Epoch, row.Incarnation = 2, "01K00000000000000000000001"
	bad := row.Key()
	twin.putAs(t, r.b, r.x, row)
	r.b.get = func(_ context.Context, key string, _ int64, body []byte) ([]byte, error) {
		if key == bad {
			body[len(body)/2] ^= 1
		}
		return body, nil
	}
	r.checkAll(t, 20_000)
	r.reopen(t)
	if err := r.b.Delete(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	r.checkAll(t, 20_000)
	if err := r.b.Delete(t.Context(), r.x.all(testTP)[1].Key()); err != nil {
		t.Fatal(err)
	}
	r.dropBlocks(r.x.all(testTP)[1], 0, r.x.all(testTP)[1].LogSize)
	if _, err := r.Read(t.Context(), testTP, 500, 100, true); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("both gone: %v", err)
	}
}

// Compacted segments have holes, and hide what they rewrote.
func TestReadCompacted(t *testing.T) {
	r := newReadRig(t, 3, nil)
	var keep [][]byte
	for i, b := range makeSegment(testTP, 500, 50, 1500, 1).batches {
		if i%7 == 3 && i < 40 {
			keep = append(keep, b)
		}
	}
	rewrite := segmentOf(testTP, 500, keep...)
	row := rewrite.row()
	// A rewrite keeps the range of what it replaces: a footer of a lower last offset does not match.
	row.Last, row.Generation = 999, 1
	if err := matches(row, rewrite.meta); !errors.Is(err, ErrDamaged) {
		t.Fatalf("matches: %v", err)
	}
	keep = append(keep, makeSegment(testTP, 500, 50, 1500, 1).batches[49])
	rewrite = segmentOf(testTP, 500, keep...)
	row = rewrite.row()
	row.Generation = 1
	rewrite.putAs(t, r.b, r.x, row)
	r.forgetRows(testTP)
	var want []byte
	all := append(append([]byte{}, r.log[:len(r.log)/3]...), rewrite.log...)
	want = append(all, r.log[2*len(r.log)/3:]...)
	for _, size := range []int{1, 5000, 1 << 20} {
		got, err := r.readAll(t.Context(), size)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("size %d: %d bytes, want %d, %v", size, len(got), len(want), err)
		}
	}
	for at := int64(500); at < 1000; at++ {
		res, err := r.Read(t.Context(), testTP, at, 1, true)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := batch.Parse(res.Data[0]); err != nil || h.LastOffset() < at || res.NextOffset != h.LastOffset()+1 {
			t.Fatalf("offset %d: batch %d-%d, next %d", at, h.BaseOffset, h.LastOffset(), res.NextOffset)
		}
		res.Release()
	}
}

// A rewrite may begin and end within older segments: each offset is served by
// the highest generation that holds it, once.
func TestReadRewriteAcrossSegments(t *testing.T) {
	r := newReadRig(t, 3, nil)
	var keep, want [][]byte
	for i := range 150 {
		b := makeBatch(int64(i)*10, 10, 1000+int64(i)*10, 100, 1)
		inside := i >= 65 && i < 115
		if inside && (i%5 == 0 || i == 114) {
			keep = append(keep, b)
		}
		if !inside || i%5 == 0 || i == 114 {
			want = append(want, b)
		}
	}
	rewrite := segmentOf(testTP, 650, keep...)
	row := rewrite.row()
	row.Generation = 1
	rewrite.putAs(t, r.b, r.x, row)
	for _, size := range []int{1, 7000, 1 << 20} {
		got, err := r.readAll(t.Context(), size)
		if err != nil || !bytes.Equal(got, bytes.Join(want, nil)) {
			t.Errorf("size %d: %d bytes, want %d, %v", size, len(got), len(bytes.Join(want, nil)), err)
		}
	}
}
