package tiering

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// A scan finds what an index would have, leaves out what others hide, and names what is damaged or missing.
func TestScanBucket(t *testing.T) {
	r := newSweepRig()
	other := ids.TopicPartition{Topic: testTopic, Partition: 9}
	unknown := ids.TopicPartition{Topic: ids.NewTopicID()}
	want := r.three(t, testTP)[:2] // the third is damaged below
	makeSegment(unknown, 0, 2, 0, 1).put(t, r.b, r.x)
	first := makeSegment(other, 0, 2, 0, 1).put(t, r.b, r.x)
	longer := makeSegment(other, 0, 4, 0, 2).put(t, r.b, r.x) // hides the first
	far := makeSegment(other, 100, 2, 0, 2).put(t, r.b, r.x)
	damaged := r.x.all(testTP)[2]
	if err := r.b.Delete(t.Context(), damaged.Key()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.b.Put(t.Context(), damaged.Key(), bytes.NewReader(make([]byte, damaged.Size)), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex
	got := map[ids.TopicPartition]*BucketPartition{}
	if err := ScanBucket(t.Context(), r.b, func(id ids.TopicID) bool { return id == testTopic }, func(_ context.Context, p *BucketPartition) error {
		mu.Lock()
		defer mu.Unlock()
		got[p.TP] = p
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Fatalf("%d partitions", len(got))
	}
	same := func(a, b Segment) bool {
		return a.SegmentKey == b.SegmentKey && a.Size == b.Size && a.LogSize == b.LogSize && a.Records == b.Records && a.MaxTimestamp == b.MaxTimestamp
	}
	if p := got[testTP]; !slices.EqualFunc(p.Rows, want, same) || len(p.Damaged) != 1 || p.Damaged[0].SegmentKey != damaged.SegmentKey || p.Damaged[0].Err == nil || len(p.Gaps(0)) > 0 {
		t.Errorf("rows %+v, want %+v; damaged %+v", p.Rows, want, p.Damaged)
	}
	p := got[other]
	if !slices.EqualFunc(p.Rows, []Segment{longer, far}, same) || len(p.Damaged) > 0 {
		t.Errorf("rows %+v of %+v, %+v and %+v", p.Rows, first, longer, far)
	}
	if gaps := p.Gaps(10); !slices.Equal(gaps, [][2]int64{{longer.Last + 1, 100}}) {
		t.Errorf("gaps %v", gaps)
	}
	if gaps := p.Gaps(100); len(gaps) > 0 {
		t.Errorf("gaps %v below the log start", gaps)
	}
}
