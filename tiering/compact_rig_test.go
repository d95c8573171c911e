package tiering

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// compactIndex is a memIndex that can replace, and lose the answer of it.
type compactIndex struct {
	*memIndex
	before, after func() error // of a replace
	replaces      int
}

func (x *compactIndex) Replace(ctx context.Context, s Segment, replaced []SegmentKey) error {
	if x.before != nil {
		if err := x.before(); err != nil {
			return err
		}
	}
	x.replaces++
	if len(replaced) > MaxReplaced {
		return fmt.Errorf("%d segments replaced at once", len(replaced))
	}
	if err := errors.Join(x.Drop(ctx, s.TP, replaced), x.Add(ctx, s)); err != nil {
		return err
	}
	if x.after != nil {
		return x.after()
	}
	return nil
}

// rec is a record: "" of value is a tombstone, "-" of key none.
type rec struct {
	key, value string
	at         int64 // ms
}

func (r rec) record() batch.Record {
	out := batch.Record{Timestamp: r.at, Key: []byte(r.key), Value: []byte(r.value), Headers: []batch.RecordHeader{{Key: "h", Value: nil}}}
	if r.key == "-" {
		out.Key = nil
	}
	if r.value == "" {
		out.Value = nil
	}
	return out
}

// encodeAt makes a batch of records.
func encodeAt(t testing.TB, base int64, o batch.EncodeOptions, recs ...rec) []byte {
	t.Helper()
	var rs []batch.Record
	for _, r := range recs {
		rs = append(rs, r.record())
	}
	o.BaseOffset = base
	b, err := batch.Encode(rs, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// compactRig is a compacted partition in a bucket.
type compactRig struct {
	b     *hooks
	x     *compactIndex
	inc   int
	epoch int32
	now   time.Time
	c     *Compactor
	o     CompactorOptions
	t     CompactTarget
	end   int64
	ro    ReaderOptions
	own   *Reader // of this incarnation
}

func newCompactRig(t testing.TB) *compactRig {
	r := &compactRig{b: newHooks(), x: &compactIndex{memIndex: newMemIndex()}, now: time.UnixMilli(1_000_000)}
	r.o = CompactorOptions{Bucket: r.b, Index: r.x, Logger: testLogger(t), Now: func() time.Time { return r.now }, BytesPerSecond: 1 << 40}
	r.t = CompactTarget{TP: testTP, Config: CompactConfig{DeleteRetentionMs: 1000, MaxLagMs: 1 << 62, SegmentBytes: 1 << 20, IndexInterval: 200}}
	r.ro = ReaderOptions{Bucket: r.b, Index: r.x, MemoryBytes: 64 * testBlock, BlockBytes: testBlock, ReadAhead: -1,
		AttemptTimeout: 5 * time.Second, Timeout: 10 * time.Second}
	r.restart(t)
	t.Cleanup(r.close)
	return r
}

// restart is a new incarnation of the leader.
func (r *compactRig) restart(t testing.TB) {
	t.Helper()
	r.epoch++
	r.inc++
	r.t.Epoch = r.epoch
	r.o.Incarnation = ids.Incarnation(fmt.Sprintf("01K%023d", r.inc))
	r.close()
	var err error
	if r.own, err = NewReader(r.ro); err != nil {
		t.Fatal(err)
	}
	r.o.Reader = r.own
	if r.c, err = NewCompactor(r.o); err != nil {
		t.Fatal(err)
	}
}

func (r *compactRig) close() {
	if r.own != nil {
		r.own.Close()
	}
}

// reader is a fresh one, closed with the test.
func (r *compactRig) reader(t testing.TB) *Reader {
	t.Helper()
	reader, err := NewReader(r.ro)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	return reader
}

// segment puts a segment of the batches, which it stamps.
func (r *compactRig) segment(t testing.TB, batches ...[]byte) Segment {
	t.Helper()
	base := r.end
	for _, b := range batches {
		batch.Stamp(b, r.end, r.epoch)
		h, err := batch.Check(b)
		if err != nil {
			t.Fatal(err)
		}
		r.end = h.LastOffset() + 1
	}
	s := segmentOf(testTP, base, batches...)
	row := s.row()
	row.Epoch, row.Uploaded, row.Incarnation = r.epoch, r.now.UnixMilli(), r.o.Incarnation
	return s.putAs(t, r.b, r.x, row)
}

// records makes a segment of one batch.
func (r *compactRig) records(t testing.TB, recs ...rec) Segment {
	t.Helper()
	return r.segment(t, encodeAt(t, 0, batch.EncodeOptions{}, recs...))
}

func (r *compactRig) compact(t testing.TB) CompactResult {
	t.Helper()
	res, err := r.c.Compact(t.Context(), r.t)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// seen is what a reader finds, by offset.
type seen struct {
	offset int64
	batch.Record
}

// read reads everything from an offset on, and checks that offsets grow, that no
// read stops before the end, and that every object is whole.
func (r *compactRig) read(t testing.TB, from int64) []seen {
	t.Helper()
	reader := r.own
	reader.forgetRows(testTP)
	var out []seen
	next := int64(-1)
	for at := from; at < r.end; {
		res, err := reader.Read(t.Context(), testTP, at, 500, true)
		if err != nil {
			t.Fatalf("read at %d: %v\n%s", at, err, r.show())
		}
		if res.NextOffset <= at {
			t.Fatalf("read at %d goes on at %d\n%s", at, res.NextOffset, r.show())
		}
		for _, b := range res.Data {
			for len(b) > 0 {
				h, err := batch.Check(b)
				if err != nil {
					t.Fatal(err)
				}
				if h.BaseOffset < next {
					t.Fatalf("batch at %d after %d\n%s", h.BaseOffset, next, r.show())
				}
				for rc, err := range batch.Records(b[:h.Size()], batch.Limits{}) {
					if err != nil {
						t.Fatal(err)
					}
					o := h.BaseOffset + int64(rc.OffsetDelta)
					if o < next || o > h.LastOffset() {
						t.Fatalf("record at %d after %d in %d-%d", o, next, h.BaseOffset, h.LastOffset())
					}
					if next = o + 1; o >= from {
						rc.Key, rc.Value = bytes.Clone(rc.Key), bytes.Clone(rc.Value) // not the reader's memory
						out = append(out, seen{o, rc})
					}
				}
				next = h.LastOffset() + 1
				b = b[h.Size():]
			}
		}
		at = res.NextOffset
		res.Release()
	}
	return out
}

// text is what is read, as offset=key:value.
func (r *compactRig) text(t testing.TB) string {
	t.Helper()
	out := ""
	for _, s := range r.read(t, 0) {
		key, value := string(s.Key), string(s.Value)
		if s.Key == nil {
			key = "-"
		}
		out += fmt.Sprintf("%d=%s:%s ", s.offset, key, value)
	}
	return out[:max(len(out)-1, 0)]
}

func (r *compactRig) show() (out string) {
	for _, row := range r.x.all(testTP) {
		out += fmt.Sprintf("%d-%d g%x %d bytes\n", row.Base, row.Last, row.Generation, row.LogSize)
	}
	return out
}

// verify checks every object of the bucket wholly, and that the rows tell the
// same of theirs.
func (r *compactRig) verify(t testing.TB) {
	t.Helper()
	rows := map[string]Segment{}
	for _, row := range r.x.all(testTP) {
		rows[row.Key()] = row
	}
	for _, key := range r.b.keys(t) {
		info, err := r.b.Bucket.Head(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		b, err := getAll(t.Context(), r.b.Bucket, key, 0, info.Size)
		if err != nil {
			t.Fatal(err)
		}
		rep, err := segment.Verify(bytes.NewReader(b), info.Size)
		if err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		if row, ok := rows[key]; ok {
			m := rep.Index.Meta
			if row.Records != m.Records || row.MinTimestamp != m.MinTimestamp || row.MaxTimestamp != m.MaxTimestamp || row.Size != info.Size {
				t.Fatalf("row %+v, footer %+v", row, m)
			}
			delete(rows, key)
		}
	}
	if len(rows) > 0 {
		t.Fatalf("rows without objects: %v", rows)
	}
}

func (r *compactRig) sweep(t testing.TB) SweepReport {
	t.Helper()
	rep, err := Sweep(t.Context(), SweepOptions{Bucket: r.b, Index: r.x, Logger: testLogger(t), Grace: time.Nanosecond, Settle: time.Nanosecond,
		Proofs: &fakeProofs{topics: map[ids.TopicID]TopicState{testTopic: {Known: true}}}, Now: func() time.Time { return time.Now().Add(time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

var allCodecs = []batch.Codec{batch.CodecNone, batch.CodecGzip, batch.CodecSnappy, batch.CodecLZ4, batch.CodecZstd}

func sameRecord(a, b batch.Record) bool {
	return a.Timestamp == b.Timestamp && bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value) && (a.Key == nil) == (b.Key == nil) &&
		(a.Value == nil) == (b.Value == nil) && slices.EqualFunc(a.Headers, b.Headers, func(x, y batch.RecordHeader) bool {
		return x.Key == y.Key && bytes.Equal(x.Value, y.Value)
	})
}

var _ objstore.Bucket = (*hooks)(nil)
