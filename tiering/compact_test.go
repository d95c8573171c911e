package tiering

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/segment"
)

func TestCompactKeepsTheLatest(t *testing.T) {
	r := newCompactRig(t)
	r.records(t, rec{"a", "1", 1}, rec{"b", "1", 2}, rec{"c", "1", 3})
	r.records(t, rec{"a", "2", 4}, rec{"-", "x", 5}, rec{"b", "2", 6})
	if res := r.compact(t); res.Passes != 1 {
		t.Fatalf("%+v", res)
	}
	if got := r.text(t); got != "2=c:1 3=a:2 5=b:2" {
		t.Errorf("left %s", got)
	}
	rows := r.x.all(testTP)
	if len(rows) != 1 || rows[0].Base != 0 || rows[0].Last != 5 || rows[0].Records != 3 || rows[0].Generation != 1<<32|1 {
		t.Errorf("rows\n%s", r.show())
	}
	if st := r.c.Stats(); st.Passes != 1 || st.SegmentsReplaced != 2 || st.SegmentsWritten != 1 || st.RecordsRemoved != 3 || st.BytesRemoved <= 0 || st.Failures != 0 {
		t.Errorf("%+v", st)
	}
	r.verify(t)
	if res := r.compact(t); res.Passes != 0 || !res.Next.IsZero() {
		t.Errorf("again: %+v", res)
	}
	// a new value in a later segment makes the first one's go
	r.records(t, rec{"c", "2", 7})
	r.compact(t)
	if got := r.text(t); got != "3=a:2 5=b:2 6=c:2" {
		t.Errorf("left %s", got)
	}
	if rep := r.sweep(t); rep.Deleted.Objects != 4 || len(r.b.keys(t)) != 1 {
		t.Errorf("%d objects are left, %+v", len(r.b.keys(t)), rep)
	}
	if got := r.text(t); got != "3=a:2 5=b:2 6=c:2" {
		t.Errorf("left after the sweep: %s", got)
	}
}

// A tombstone stays for delete.retention.ms from the pass that met it, then goes.
func TestCompactTombstones(t *testing.T) {
	r := newCompactRig(t)
	r.records(t, rec{"a", "1", 1}, rec{"b", "1", 2})
	r.records(t, rec{"a", "", 3})
	r.compact(t)
	want := func(s string) {
		t.Helper()
		if got := r.text(t); got != s {
			t.Errorf("left %q, want %q", got, s)
		}
	}
	want("1=b:1 2=a:")
	r.now = r.now.Add(999 * time.Millisecond)
	r.records(t, rec{"c", "1", 4})
	r.compact(t)
	want("1=b:1 2=a: 3=c:1")
	r.now = r.now.Add(time.Millisecond)
	r.records(t, rec{"c", "2", 5})
	r.compact(t)
	want("1=b:1 4=c:2")
	// the record's own time is not changed by the horizon
	r.records(t, rec{"b", "", 6}, rec{"c", "3", 7})
	r.compact(t)
	for _, s := range r.read(t, 0) {
		if want := map[int64]int64{5: 6, 6: 7}[s.offset]; s.Timestamp != want {
			t.Errorf("record at %d has timestamp %d", s.offset, s.Timestamp)
		}
	}
	want("5=b: 6=c:3")
	// for ever
	r.t.Config.DeleteRetentionMs = math.MaxInt64
	r.records(t, rec{"c", "", 8})
	r.compact(t)
	r.now = r.now.Add(1e6 * time.Hour)
	r.records(t, rec{"d", "1", 9})
	r.compact(t)
	want("7=c: 8=d:1")
}

// Whatever is left of a range, its offsets stay taken, and a read in a gap finds
// what is next.
func TestCompactGaps(t *testing.T) {
	r := newCompactRig(t)
	r.t.Config.SegmentBytes = 1 // each batch its own object
	for range 5 {
		r.segment(t, encodeAt(t, 0, batch.EncodeOptions{}, rec{"a", "1", 1}, rec{"b", "1", 2}), encodeAt(t, 0, batch.EncodeOptions{}, rec{"a", "2", 3}))
	}
	r.records(t, rec{"b", "9", 9})
	r.compact(t)
	r.verify(t)
	for from := range r.end {
		got := r.read(t, from)
		want := map[bool]int{true: 2, false: 1}[from <= 14]
		if len(got) != want {
			t.Fatalf("from %d: %d records\n%s", from, len(got), r.show())
		}
	}
	reader := r.reader(t)
	for _, tc := range []struct{ ts, offset int64 }{{0, 14}, {3, 14}, {4, 15}, {9, 15}, {10, -1}} {
		got, ok, err := reader.OffsetForTimestamp(t.Context(), testTP, tc.ts, 0)
		if err != nil || ok != (tc.offset >= 0) || ok && got.Offset != tc.offset {
			t.Errorf("timestamp %d: %+v %v %v, want %d", tc.ts, got, ok, err, tc.offset)
		}
	}
	// emptied to its end
	r = newCompactRig(t)
	r.t.Config.DeleteRetentionMs = 0
	r.records(t, rec{"a", "1", 1}, rec{"a", "", 2})
	r.compact(t)
	r.records(t, rec{"b", "", 1})
	r.compact(t)
	r.records(t, rec{"-", "", 1})
	r.compact(t)
	if got := r.text(t); got != "" {
		t.Errorf("left %s", got)
	}
	if rows := r.x.all(testTP); len(rows) != 1 || rows[0].Last != 3 || rows[0].LogSize != 0 {
		t.Errorf("rows\n%s", r.show())
	}
	r.verify(t)
}

func TestCompactCodecs(t *testing.T) {
	for _, codec := range allCodecs {
		t.Run(codec.String(), func(t *testing.T) {
			r := newCompactRig(t)
			long := strings.Repeat("value ", 100)
			o := batch.EncodeOptions{Codec: codec, Producer: &batch.Producer{ID: 7, Epoch: 3, BaseSequence: 40}}
			r.segment(t, encodeAt(t, 0, o, rec{"a", long + "1", 5}, rec{"b", long + "1", 4}, rec{"c", "", 9}, rec{"d", long, 8}))
			appended := encodeAt(t, 0, batch.EncodeOptions{Codec: codec}, rec{"a", long + "2", 50}, rec{"d", long + "2", 51}, rec{"e", long, 52})
			batch.StampLogAppendTime(appended, 77)
			r.segment(t, appended)
			r.records(t, rec{"e", "3", 60})
			r.compact(t)
			got := r.read(t, 0)
			want := []seen{{1, rec{"b", long + "1", 4}.record()}, {2, rec{"c", "", 9}.record()}, {4, rec{"a", long + "2", 77}.record()},
				{5, rec{"d", long + "2", 77}.record()}, {7, rec{"e", "3", 60}.record()}}
			if len(got) != len(want) {
				t.Fatalf("%d records", len(got))
			}
			for i := range want {
				if got[i].offset != want[i].offset || !sameRecord(got[i].Record, want[i].Record) {
					t.Errorf("record %d: %d %v, want %d %v", i, got[i].offset, got[i].Record, want[i].offset, want[i].Record)
				}
			}
			h := r.header(t, 0)
			if h.Codec() != codec || h.ProducerID != 7 || h.ProducerEpoch != 3 || h.BaseSequence != 40 || h.LastOffsetDelta != 3 || h.BaseOffset != 0 ||
				!h.DeleteHorizon() || h.BaseTimestamp != r.now.UnixMilli()+1000 || h.MaxTimestamp != 9 {
				t.Errorf("header %+v", h)
			}
			if h := r.header(t, 4); !h.LogAppendTime() || h.MaxTimestamp != 77 || h.LastOffsetDelta != 2 {
				t.Errorf("header %+v", h)
			}
			r.verify(t)
		})
	}
}

// header is that of the first batch a read at an offset gives.
func (r *compactRig) header(t *testing.T, at int64) batch.Header {
	t.Helper()
	res, err := r.reader(t).Read(t.Context(), testTP, at, 1, true)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Release()
	h, err := batch.Check(res.Data[0])
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Batches whose meaning a transaction decides stay as they are, byte for byte.
func TestCompactLeavesTransactions(t *testing.T) {
	r := newCompactRig(t)
	p := &batch.Producer{ID: 1}
	txn := encodeAt(t, 0, batch.EncodeOptions{Producer: p, Transactional: true}, rec{"a", "txn", 1}, rec{"a", "txn2", 1})
	marker := encodeAt(t, 0, batch.EncodeOptions{Producer: p, Transactional: true, Control: true}, rec{"\x00\x00\x00\x01", "\x00\x00\x00\x00\x00\x00", 2})
	r.segment(t, encodeAt(t, 0, batch.EncodeOptions{}, rec{"a", "0", 1}), txn, marker)
	r.records(t, rec{"a", "3", 3})
	r.compact(t)
	if got := r.text(t); got != "1=a:txn 2=a:txn2 3=\x00\x00\x00\x01:\x00\x00\x00\x00\x00\x00 4=a:3" {
		t.Errorf("left %q", got)
	}
}

// A table of keys that is too small means more passes, with the same result,
// also when one segment has more keys than it takes.
func TestCompactSmallMap(t *testing.T) {
	text := func(bytes int64) (string, CompactStats) {
		r := newCompactRig(t)
		r.o.MapBytes = bytes
		r.restart(t)
		for s := range 6 {
			var batches [][]byte
			for b := range 20 {
				var recs []rec
				for i := range 10 {
					k := (s*200 + b*10 + i*7) % 450
					recs = append(recs, rec{fmt.Sprint("k", k), fmt.Sprint(s, b, i), 1})
				}
				batches = append(batches, encodeAt(t, 0, batch.EncodeOptions{Codec: allCodecs[b%5]}, recs...))
			}
			r.segment(t, batches...)
		}
		r.compact(t)
		r.verify(t)
		if n := len(r.x.all(testTP)); n != 1 {
			t.Errorf("with %d bytes: %d segments\n%s", bytes, n, r.show())
		}
		return r.text(t), r.c.Stats()
	}
	want, st := text(1 << 20)
	if st.Passes != 1 {
		t.Errorf("%d passes with a large table", st.Passes)
	}
	got, st := text(1)
	if got != want {
		t.Errorf("with a small table\n%s\nwant\n%s", got, want)
	}
	if st.Passes < 10 {
		t.Errorf("only %d passes with a small table", st.Passes)
	}
}

// Many small segments become few, in commits of a bounded size.
func TestCompactMerges(t *testing.T) {
	r := newCompactRig(t)
	for i := range 500 {
		r.records(t, rec{fmt.Sprint("k", i%7), fmt.Sprint(i), int64(i)})
	}
	r.compact(t)
	if n := len(r.x.all(testTP)); n > 500/MaxReplaced+1 {
		t.Errorf("%d segments are left", n)
	}
	r.records(t, rec{"k0", "x", 1})
	r.compact(t)
	if n := len(r.x.all(testTP)); n != 1 {
		t.Errorf("%d segments are left after another pass", n)
	}
	if got := r.read(t, 0); len(got) != 7 {
		t.Errorf("%d records", len(got))
	}
}

func TestCompactDue(t *testing.T) {
	row := func(base int64, generation, size, ts int64) Segment {
		return Segment{SegmentKey: SegmentKey{TP: testTP, Base: base, Last: base + 9, Generation: generation}, LogSize: size, MinTimestamp: ts, MaxTimestamp: ts + 5}
	}
	none := int64(math.MaxInt64)
	for name, tc := range map[string]struct {
		rows          []Segment
		c             CompactConfig
		dirty, extent int
		due           bool
		next          int64
	}{
		"nothing":               {nil, CompactConfig{MaxLagMs: none}, 0, 0, false, none},
		"all clean":             {[]Segment{row(0, 1, 10, 0)}, CompactConfig{MaxLagMs: none}, 1, 1, false, none},
		"first":                 {[]Segment{row(0, 0, 10, 0)}, CompactConfig{MaxLagMs: none, DirtyRatio: 0.5}, 0, 1, true, none},
		"half is not more":      {[]Segment{row(0, 1, 10, 0), row(10, 0, 10, 0)}, CompactConfig{MaxLagMs: none, DirtyRatio: 0.5}, 1, 2, false, none},
		"more than half":        {[]Segment{row(0, 1, 10, 0), row(10, 0, 11, 0)}, CompactConfig{MaxLagMs: none, DirtyRatio: 0.5}, 1, 2, true, none},
		"never by ratio":        {[]Segment{row(0, 0, 10, 0)}, CompactConfig{MaxLagMs: none, DirtyRatio: 1}, 0, 1, false, none},
		"ratio 0":               {[]Segment{row(0, 1, 1000, 0), row(10, 0, 1, 0)}, CompactConfig{MaxLagMs: none}, 1, 2, true, none},
		"max lag is over":       {[]Segment{row(0, 1, 1000, 0), row(10, 0, 1, 400)}, CompactConfig{MaxLagMs: 600, DirtyRatio: 1}, 1, 2, true, 1000},
		"max lag is not over":   {[]Segment{row(0, 1, 1000, 0), row(10, 0, 1, 401)}, CompactConfig{MaxLagMs: 600, DirtyRatio: 1}, 1, 2, false, 1001},
		"min lag holds it":      {[]Segment{row(0, 0, 10, 900), row(10, 0, 10, 0)}, CompactConfig{MaxLagMs: none, MinLagMs: 200}, 0, 0, false, 1105},
		"min lag holds the end": {[]Segment{row(0, 0, 10, 0), row(10, 0, 10, 900)}, CompactConfig{MaxLagMs: none, MinLagMs: 200}, 0, 1, true, 1105},
		"a hole":                {[]Segment{row(0, 0, 10, 0), row(20, 0, 10, 0)}, CompactConfig{MaxLagMs: none}, 0, 1, true, none},
	} {
		p := planCompaction(tc.rows, tc.c, 1000)
		if p.dirty != tc.dirty || len(p.extents) != tc.extent || p.due != tc.due || p.next != tc.next {
			t.Errorf("%s: dirty from %d of %d, due %v, next %d", name, p.dirty, len(p.extents), p.due, p.next)
		}
	}
}

// The trailer of a rewritten segment keeps what its batches no longer tell.
func TestCompactTrailer(t *testing.T) {
	r := newCompactRig(t)
	r.records(t, rec{"a", "1", 1})
	r.restart(t)
	r.records(t, rec{"a", "2", 2}) // epoch 2, of which nothing stays
	r.restart(t)
	r.records(t, rec{"a", "3", 3}, rec{"b", "1", 3})
	r.compact(t)
	rows := r.x.all(testTP)
	reader := r.reader(t)
	idx, err := reader.Trailer(t.Context(), rows[0])
	if err != nil || len(rows) != 1 {
		t.Fatal(len(rows), err)
	}
	if got := fmt.Sprint(idx.Epochs); got != fmt.Sprint([]segment.EpochStart{{Epoch: 1, Start: 0}, {Epoch: 2, Start: 1}, {Epoch: 3, Start: 2}}) {
		t.Errorf("epochs %s", got)
	}
	if len(idx.Producers) != 1 || idx.Producers[0].ProducerID != 5 || idx.Meta.LastStable != 4 || idx.Meta.Epoch != 3 {
		t.Errorf("producers %+v, meta %+v", idx.Producers, idx.Meta)
	}
	for epoch, end := range map[int32]int64{1: 1, 2: 2, 3: 4} {
		found, got, ok, err := reader.EpochEnd(t.Context(), testTP, epoch, 0)
		if err != nil || !ok || found != epoch || got != end {
			t.Errorf("epoch %d: %d ends at %d, %v, %v", epoch, found, got, ok, err)
		}
	}
	// split: each has the epochs of its own offsets
	r.t.Config.SegmentBytes = 1
	r.records(t, rec{"z", "1", 4})
	r.compact(t)
	if rows = r.x.all(testTP); len(rows) != 2 {
		t.Fatalf("rows\n%s", r.show())
	}
	for epoch, end := range map[int32]int64{1: 1, 2: 2, 3: 5} {
		found, got, ok, err := r.reader(t).EpochEnd(t.Context(), testTP, epoch, 0)
		if err != nil || !ok || found != epoch || got != end {
			t.Errorf("after the split, epoch %d: %d ends at %d, %v, %v", epoch, found, got, ok, err)
		}
	}
}

// Damaged bytes are never rewritten, and nothing is replaced.
func TestCompactDamaged(t *testing.T) {
	r := newCompactRig(t)
	bad := r.records(t, rec{"a", "1", 1})
	r.records(t, rec{"a", "2", 1})
	b, err := getAll(t.Context(), r.b.Bucket, bad.Key(), 0, bad.Size)
	if err != nil {
		t.Fatal(err)
	}
	b[70] ^= 1
	if err := r.b.Delete(t.Context(), bad.Key()); err != nil {
		t.Fatal(err)
	}
	s := &testSegment{object: b}
	s.putAs(t, r.b, nil, bad)
	if _, err := r.c.Compact(t.Context(), r.t); !errors.Is(err, ErrDamaged) {
		t.Errorf("error %v", err)
	}
	if len(r.x.all(testTP)) != 2 || r.c.Stats().Failures != 1 {
		t.Errorf("%+v, rows\n%s", r.c.Stats(), r.show())
	}
}

// BenchmarkCompact is a pass over 20 segments with 20,000 records of 2,000 keys.
func BenchmarkCompact(b *testing.B) {
	for _, codec := range []batch.Codec{batch.CodecNone, batch.CodecLZ4, batch.CodecZstd} {
		b.Run(codec.String(), func(b *testing.B) {
			value := strings.Repeat("0123456789", 10)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				r := newCompactRig(b)
				size := int64(0)
				for s := range 20 {
					var batches [][]byte
					for i := range 10 {
						recs := make([]rec, 100)
						for j := range recs {
							recs[j] = rec{fmt.Sprint("key-", (s*1000+i*100+j)*7919%2000), value, 1}
						}
						batches = append(batches, encodeAt(b, 0, batch.EncodeOptions{Codec: codec}, recs...))
					}
					size += r.segment(b, batches...).LogSize
				}
				b.SetBytes(size)
				b.StartTimer()
				r.compact(b)
			}
		})
	}
}
