package tiering

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// The whole way, up and back, over a store that does everything wrong that a
// store can do: what was closed arrives, is read back equal, and is swept.
func TestStorm(t *testing.T) {
	fault := objstore.NewFault(objstore.NewMem(), 42)
	for _, rule := range []objstore.FaultRule{
		{Kind: objstore.FaultThrottle, Probability: 0.2},
		{Kind: objstore.FaultUnknownBefore, Probability: 0.1},
		{Kind: objstore.FaultUnknownAfter, Method: objstore.MethodPut, Probability: 0.2},
		{Kind: objstore.FaultSwallowPut, Method: objstore.MethodPut, Probability: 0.05},
		{Kind: objstore.FaultHang, Probability: 0.02},
		{Kind: objstore.FaultLatency, Probability: 0.2, Delay: 5 * time.Millisecond},
		{Kind: objstore.FaultCutBody, Method: objstore.MethodGet, Probability: 0.1},
		{Kind: objstore.FaultWrongBytes, Method: objstore.MethodGet, Probability: 0.05},
	} {
		fault.Add(rule)
	}
	index, local := newMemIndex(), &fakeLocal{}
	up, err := NewUploader(UploaderOptions{
		Bucket: fault, Index: index, Local: local, Incarnation: testInc, Interval: 10 * time.Millisecond,
		Backoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, MinTime: 100 * time.Millisecond, MinRate: 1 << 30,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	r, err := NewReader(ReaderOptions{
		Bucket: fault, Index: index, FS: vfs.OS(), CacheDir: t.TempDir(), CacheBytes: 300 << 10,
		BlockBytes: testBlock, MemoryBytes: 32 * testBlock, ReadAhead: 64 << 10, AttemptTimeout: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.fetcher.backoff = backoff{time.Millisecond, 5 * time.Millisecond}
	r.fetcher.gate.backoff = r.fetcher.backoff

	var wg sync.WaitGroup
	for p := range 4 {
		tp := ids.TopicPartition{Topic: testTopic, Partition: int32(p)}
		var want []byte
		var segs []*testSegment
		for i := range 6 {
			s := makeSegment(tp, int64(i)*200, 20, 0, 1)
			segs, want = append(segs, s), append(want, s.log...)
		}
		wg.Go(func() { follow(t, r, tp, 1200, want) })
		wg.Go(func() {
			for _, s := range segs {
				local.add(s)
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	if err := up.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	stormSweep(t, fault, index)
}

// follow reads a partition while it is being uploaded. Bytes that are wrong
// twice in a row are an error; a consumer asks again.
func follow(t *testing.T, r *Reader, tp ids.TopicPartition, end int64, want []byte) {
	var got []byte
	deadline := time.Now().Add(60 * time.Second)
	for at := int64(0); at < end; {
		if time.Now().After(deadline) {
			t.Errorf("%s: stuck at %d", tp, at)
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		res, err := r.Read(ctx, tp, at, 10_000, true)
		cancel()
		switch {
		case errors.Is(err, ErrNoSegment):
			time.Sleep(5 * time.Millisecond)
			continue
		case err != nil:
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrDamaged) && !errors.Is(err, segment.ErrVersion) {
				t.Errorf("%s at %d: %v", tp, at, err)
				return
			}
			continue
		}
		for _, d := range res.Data {
			got = append(got, d...)
		}
		at = res.NextOffset
		res.Release()
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: read %d bytes, want %d", tp, len(got), len(want))
	}
}

// stormSweep deletes the first halves, however often it takes, and nothing else.
func stormSweep(t *testing.T, b *objstore.Fault, x *memIndex) {
	now := time.Now().Add(48 * time.Hour)
	p := &fakeProofs{topics: map[ids.TopicID]TopicState{testTopic: {Known: true}}, starts: map[ids.TopicPartition]LogStart{}}
	for i := range 4 {
		p.starts[ids.TopicPartition{Topic: testTopic, Partition: int32(i)}] = LogStart{Offset: 600, Since: now.Add(-3 * time.Hour)}
	}
	for range 500 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		rep, err := Sweep(ctx, SweepOptions{Bucket: b, Index: x, Proofs: p, Now: func() time.Time { return now }})
		cancel()
		if rep.By[SweepMissing].Objects > 0 {
			t.Fatalf("objects are missing: %+v", rep)
		}
		if err == nil && rep.By[SweepFailed].Objects == 0 && rep.Seen.Objects == 12 {
			break
		}
	}
	b.Clear()
	rep, err := Sweep(t.Context(), SweepOptions{Bucket: b, Index: x, Proofs: p, Now: func() time.Time { return now }})
	if err != nil || rep.Seen.Objects != 12 || rep.Deleted.Objects != 0 || len(rep.By) != 0 {
		t.Errorf("after the sweeps: %+v, %v", rep, err)
	}
	for tp := range x.rows {
		if rows := x.all(tp); len(rows) != 3 || rows[0].Base != 600 {
			t.Errorf("%s: %d rows", tp, len(rows))
		}
	}
}
