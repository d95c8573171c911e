package tiering

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// compactModel is what a compacted partition must hold.
type compactModel struct {
	*compactRig
	t       testing.TB
	written map[int64]batch.Record
	latest  map[string]int64 // of each key, its greatest offset
	kept    map[int64]int64  // of each tombstone, until when it must stay at least, ms
	batches [][]byte
	records int64
	seq     int32
}

func newCompactModel(t testing.TB) *compactModel {
	return &compactModel{compactRig: newCompactRig(t), t: t, written: map[int64]batch.Record{}, latest: map[string]int64{}, kept: map[int64]int64{}}
}

// produce adds a batch to the next segment.
func (m *compactModel) produce(rng *rand.Rand) {
	n := 1 + rng.IntN(6)
	var recs []rec
	at := m.end + m.records
	for i := range n {
		r := rec{fmt.Sprint("k", rng.IntN(12)), fmt.Sprint("v", at+int64(i)), m.now.UnixMilli() - int64(rng.IntN(50))}
		switch rng.IntN(10) {
		case 0, 1:
			r.value = ""
		case 2:
			r.key = "-"
		}
		recs = append(recs, r)
		o := at + int64(i)
		m.written[o] = r.record()
		if r.key == "-" {
			continue
		}
		m.latest[r.key] = o
		if r.value == "" {
			m.kept[o] = m.now.UnixMilli() + m.compactRig.t.Config.DeleteRetentionMs
		}
	}
	o := batch.EncodeOptions{Codec: []batch.Codec{batch.CodecNone, batch.CodecSnappy}[rng.IntN(2)]}
	if rng.IntN(2) == 0 {
		o.Producer = &batch.Producer{ID: 1, BaseSequence: m.seq}
		m.seq += int32(n)
	}
	m.batches = append(m.batches, encodeAt(m.t, 0, o, recs...))
	m.records += int64(n)
}

func (m *compactModel) closeSegment() {
	if len(m.batches) > 0 {
		m.segment(m.t, m.batches...)
		m.batches, m.records = nil, 0
	}
}

// check compares what a reader sees with what was written.
func (m *compactModel) check(from int64) {
	m.t.Helper()
	from = max(from, m.compactRig.t.LogStart)
	now := m.now.UnixMilli()
	found := m.compactRig.read(m.t, from)
	have := map[int64]bool{}
	last := map[string]int64{} // of each key that is there
	for _, s := range found {
		have[s.offset] = true
		if w, ok := m.written[s.offset]; !ok || !sameRecord(w, s.Record) {
			m.t.Fatalf("record at %d is %v, was %v\n%s", s.offset, s.Record, w, m.show())
		}
		if s.Key != nil {
			last[string(s.Key)] = s.offset
		}
	}
	latest := maps.Clone(m.latest)
	for o := m.end; o < m.end+m.records; o++ { // not in a segment yet: what they hide is still there
		delete(latest, string(m.written[o].Key))
	}
	for key, o := range latest {
		switch {
		case o < from:
		case have[o]:
		case m.written[o].Value != nil:
			m.t.Fatalf("key %s: its last record at %d is gone\n%s", key, o, m.show())
		case now < m.kept[o]:
			m.t.Fatalf("key %s: its tombstone at %d is gone at %d, before %d\n%s", key, o, now, m.kept[o], m.show())
		case last[key] > 0 || from == 0 && have[0] && string(m.written[0].Key) == key:
			m.t.Fatalf("key %s: its tombstone at %d is gone, the record at %d before it is not\n%s", key, o, last[key], m.show())
		}
	}
	if from == m.compactRig.t.LogStart {
		m.checkClean(found)
	}
}

// checkBucket looks at the log as the bucket alone tells it, objects without a row
// among them.
func (m *compactModel) checkBucket() {
	m.t.Helper()
	own, o := m.own, m.ro
	o.Index = NewBucketIndex(m.b)
	reader, err := NewReader(o)
	if err != nil {
		m.t.Fatal(err)
	}
	defer reader.Close()
	m.own = reader
	defer func() { m.own = own }()
	m.check(1) // not what is clean by the index
}

// checkClean: what is clean has each key once.
func (m *compactModel) checkClean(found []seen) {
	m.t.Helper()
	end := int64(0)
	rows, err := rowsFrom(context.Background(), m.x, testTP, m.compactRig.t.LogStart)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, x := range layout(rows) {
		if x.row.Generation == 0 {
			break
		}
		end = x.to + 1
	}
	keys := map[string]int64{}
	for _, s := range found {
		if s.offset >= end {
			return
		}
		if o, ok := keys[string(s.Key)]; ok || s.Key == nil {
			m.t.Fatalf("below %d, key %q is at %d and %d\n%s", end, s.Key, o, s.offset, m.show())
		}
		keys[string(s.Key)] = s.offset
	}
}

// Random produces, closes, cleanings, restarts, sweeps, faults of the bucket and
// of the index, and settings: nothing that counts is lost, nothing comes back,
// nothing is left where it was cleaned.
func TestCompactModel(t *testing.T) {
	for n := range 60 {
		seed := rand.Uint64()
		if n > 0 { // the first is another one each time
			seed = uint64(n)
		}
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { compactRandomly(t, rand.New(rand.NewPCG(seed, 1))) }) {
			return
		}
	}
}

func compactRandomly(t *testing.T, rng *rand.Rand) {
	m := newCompactModel(t)
	defer m.close()
	fault := errors.New("fault")
	for range 45 {
		switch rng.IntN(10) {
		case 0, 1, 2:
			for range 1 + rng.IntN(4) {
				m.produce(rng)
			}
		case 3, 4:
			m.closeSegment()
		case 5:
			m.now = m.now.Add(time.Duration(rng.IntN(700)) * time.Millisecond)
		case 6:
			m.sweep(t)
		case 9:
			if rng.IntN(3) == 0 { // retention
				m.compactRig.t.LogStart += rng.Int64N(m.end - m.compactRig.t.LogStart + 1)
			}
		case 7:
			m.o.MapBytes, m.o.OutputBytes = int64(1+rng.IntN(4000)), int64(1+rng.IntN(4000))
			m.restart(t)
		case 8:
			c := &m.compactRig.t.Config
			c.DirtyRatio, c.MinLagMs, c.SegmentBytes = []float64{0, 0.5}[rng.IntN(2)], []int64{0, 0, 300}[rng.IntN(3)], int64(1+rng.IntN(3000))
			at, n := rng.IntN(6), 0
			fail := func(kind int) func() error {
				return func() error {
					if n++; n == at && rng.IntN(3) == kind {
						return fault
					}
					return nil
				}
			}
			m.x.before, m.x.after = fail(0), fail(1)
			m.b.put = func(_ context.Context, _ string, next func() error) error {
				if err := fail(2)(); err != nil {
					_ = next()
					return fmt.Errorf("%w: %w", objstore.ErrDenied, err)
				}
				return next()
			}
			if _, err := m.c.Compact(t.Context(), m.compactRig.t); err != nil && !errors.Is(err, fault) {
				t.Fatal(err)
			}
			m.x.before, m.x.after, m.b.put = nil, nil, nil
		}
		m.check(0)
		if m.end > 0 {
			m.check(rng.Int64N(m.end))
		}
	}
	m.compactRig.t.Config.DirtyRatio, m.compactRig.t.Config.MinLagMs = 0, 0
	m.closeSegment()
	m.compact(t)
	m.check(0)
	m.verify(t)
}

// A crash at every request to bucket and index, each with and without its
// effect: a new leader finds a log that is right, and cleans it.
func TestCompactCrashes(t *testing.T) {
	crash := errors.New("crash")
	for _, done := range []bool{false, true} {
		for at := 1; ; at++ {
			m := newCompactModel(t)
			rng := rand.New(rand.NewPCG(7, 7))
			fill := func() {
				for range 4 {
					for range 5 {
						m.produce(rng)
					}
					m.closeSegment()
				}
			}
			m.compactRig.t.Config.SegmentBytes = 400
			m.restart(t)
			fill()
			m.compact(t)
			m.now = m.now.Add(2 * time.Second) // tombstones may go
			fill()
			n := 0
			step := func(next func() error) error {
				if n++; n > at || n == at && !done {
					return crash
				}
				err := next()
				if n == at {
					err = crash
				}
				return err
			}
			nothing := func() error { return nil }
			m.b.put = func(_ context.Context, _ string, next func() error) error {
				if err := step(next); errors.Is(err, crash) {
					return fmt.Errorf("%w: %w", objstore.ErrDenied, err)
				} else if err != nil {
					return err
				}
				return nil
			}
			m.b.head = func(string) error { return step(nothing) }
			m.b.get = func(_ context.Context, _ string, _ int64, body []byte) ([]byte, error) {
				if err := step(nothing); err != nil {
					return nil, fmt.Errorf("%w: %w", objstore.ErrNotFound, err) // not waited for
				}
				return body, nil
			}
			if done {
				m.x.after = func() error { return step(nothing) }
			} else {
				m.x.before = func() error { return step(nothing) }
			}
			_, err := m.c.Compact(t.Context(), m.compactRig.t)
			m.b.put, m.b.head, m.b.get, m.x.after, m.x.before = nil, nil, nil, nil, nil
			m.check(0)
			m.checkBucket()
			m.sweep(t)
			m.check(0)
			m.checkBucket()
			m.restart(t)
			m.compact(t)
			m.check(0)
			m.sweep(t)
			m.check(0)
			m.verify(t)
			if got, want := len(m.b.keys(t)), len(m.x.all(testTP)); got != want {
				t.Fatalf("crash at %d: %d objects for %d rows\n%s", at, got, want, m.show())
			}
			m.close()
			if t.Failed() || err == nil && n < at {
				if at < 10 {
					t.Errorf("only %d requests", at)
				}
				break
			}
		}
	}
}

// A bucket that throttles, loses answers and puts, cuts and flips bytes: cleaning
// succeeds in the end, and at no moment is the log wrong.
func TestCompactFaultyBucket(t *testing.T) {
	failures := 0
	for seed := range uint64(4) {
		m := newCompactModel(t)
		faulty := objstore.NewFault(m.b.Bucket, seed)
		m.b.Bucket = faulty
		rng := rand.New(rand.NewPCG(seed, 3))
		m.compactRig.t.Config.SegmentBytes = 300
		for range 4 {
			for range 6 {
				for range 1 + rng.IntN(4) {
					m.produce(rng)
				}
				m.closeSegment()
			}
			m.now = m.now.Add(600 * time.Millisecond)
			for _, kind := range []objstore.FaultKind{objstore.FaultThrottle, objstore.FaultUnknownBefore, objstore.FaultUnknownAfter, objstore.FaultSwallowPut} {
				faulty.Add(objstore.FaultRule{Method: objstore.MethodPut, Kind: kind, Probability: 0.15})
			}
			for _, kind := range []objstore.FaultKind{objstore.FaultCutBody, objstore.FaultWrongBytes} {
				faulty.Add(objstore.FaultRule{Method: objstore.MethodGet, Kind: kind, Probability: 0.05})
			}
			for tries := 0; ; tries++ {
				_, err := m.c.Compact(t.Context(), m.compactRig.t)
				if err == nil {
					break
				}
				if failures++; tries > 100 {
					t.Fatal(err)
				}
			}
			faulty.Clear()
			m.check(0)
			m.sweep(t)
			m.check(0)
			m.verify(t)
		}
		m.close()
	}
	if failures == 0 {
		t.Error("no fault made a pass fail")
	}
}
