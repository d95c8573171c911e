package tiering

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// fakeProofs answers from maps.
type fakeProofs struct {
	topics map[ids.TopicID]TopicState
	starts map[ids.TopicPartition]LogStart
	err    error
}

func (p *fakeProofs) Topic(_ context.Context, id ids.TopicID) (TopicState, error) {
	return p.topics[id], p.err
}

func (p *fakeProofs) LogStart(_ context.Context, tp ids.TopicPartition) (LogStart, error) {
	return p.starts[tp], p.err
}

type sweepRig struct {
	b     *hooks
	x     *memIndex
	p     *fakeProofs
	now   time.Time
	items []SweepItem
	dry   bool
}

func newSweepRig() *sweepRig {
	return &sweepRig{
		b: newHooks(), x: newMemIndex(), now: time.Now().Add(24 * time.Hour),
		p: &fakeProofs{topics: map[ids.TopicID]TopicState{testTopic: {Known: true}}, starts: map[ids.TopicPartition]LogStart{}},
	}
}

func (r *sweepRig) sweep(t *testing.T) SweepReport {
	t.Helper()
	r.items = nil
	rep, err := Sweep(t.Context(), SweepOptions{
		Bucket: r.b, Index: r.x, Proofs: r.p, Grace: time.Hour, DryRun: r.dry, Logger: testLogger(t),
		Now: func() time.Time { return r.now }, OnItem: func(i SweepItem) { r.items = append(r.items, i) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if !rep.Done {
		t.Error("sweep is not done")
	}
	return rep
}

func (r *sweepRig) actions() (out []SweepAction) {
	for _, i := range r.items {
		out = append(out, i.Action)
	}
	return out
}

func (r *sweepRig) want(t *testing.T, objects, rows int, actions ...SweepAction) {
	t.Helper()
	if n := len(r.b.keys(t)); n != objects {
		t.Errorf("%d objects, want %d", n, objects)
	}
	n := 0
	for tp := range r.x.rows {
		n += len(r.x.all(tp))
	}
	if n != rows {
		t.Errorf("%d rows, want %d", n, rows)
	}
	if !slices.Equal(r.actions(), actions) {
		t.Errorf("did %q, want %q", r.actions(), actions)
	}
}

func (r *sweepRig) three(t *testing.T, tp ids.TopicPartition) (rows []Segment) {
	for i := range 3 {
		rows = append(rows, makeSegment(tp, int64(i)*20, 2, 0, 1).put(t, r.b, r.x))
	}
	return rows
}

func TestSweepLeavesTheLiving(t *testing.T) {
	r := newSweepRig()
	r.three(t, testTP)
	rep := r.sweep(t)
	r.want(t, 3, 3)
	if rep.Seen.Objects != 3 || rep.Deleted.Objects != 0 || rep.Last == "" {
		t.Errorf("report %+v", rep)
	}
}

func TestSweepLogStart(t *testing.T) {
	r := newSweepRig()
	rows := r.three(t, testTP)
	r.p.starts[testTP] = LogStart{Offset: 39, Since: r.now.Add(-30 * time.Minute)} // 39 is in the second
	r.sweep(t)
	r.want(t, 3, 2, SweepGrace) // the row goes at once, the bytes after grace
	r.now = r.now.Add(time.Hour)
	r.dry = true
	rep := r.sweep(t)
	r.want(t, 3, 2, SweepDeleteLogStart)
	if rep.Deleted.Objects != 1 || rep.Deleted.Bytes != rows[0].Size {
		t.Errorf("dry run: %+v", rep)
	}
	r.dry = false
	rep = r.sweep(t)
	r.want(t, 2, 2, SweepDeleteLogStart)
	if rep.Deleted.Objects != 1 || rep.Deleted.Bytes != rows[0].Size || rep.By[SweepDeleteLogStart].Objects != 1 {
		t.Errorf("report: %+v", rep)
	}
	r.p.starts[testTP] = LogStart{Offset: 40, Since: r.now.Add(-2 * time.Hour)}
	r.sweep(t)
	r.want(t, 1, 1, SweepDeleteLogStart)
}

func TestSweepDeletedTopic(t *testing.T) {
	r := newSweepRig()
	for p := range 4 {
		r.three(t, ids.TopicPartition{Topic: testTopic, Partition: int32(p)})
	}
	again := ids.TopicPartition{Topic: ids.TopicID{99}} // the same name, another id
	r.p.topics[again.Topic] = TopicState{Known: true}
	r.three(t, again)
	r.p.topics[testTopic] = TopicState{Known: true, Deleted: true, DeletedAt: r.now.Add(-2 * time.Hour)}
	rep := r.sweep(t)
	if len(r.b.keys(t)) != 3 || len(r.x.all(again)) != 3 || rep.Deleted.Objects != 12 || rep.RowsDropped != 12 {
		t.Errorf("%d objects left; %+v", len(r.b.keys(t)), rep)
	}
}

// The index never justifies a delete.
func TestSweepIndexesAgain(t *testing.T) {
	r := newSweepRig()
	rows := r.three(t, testTP)
	if err := r.x.Drop(t.Context(), testTP, []SegmentKey{rows[1].SegmentKey}); err != nil {
		t.Fatal(err)
	}
	r.dry = true
	r.sweep(t)
	r.want(t, 3, 2, SweepReindex)
	r.dry = false
	r.sweep(t)
	r.want(t, 3, 3, SweepReindex)
	got := r.x.all(testTP)[1]
	got.Uploaded = 0
	if got != rows[1] {
		t.Errorf("row %+v, want %+v", got, rows[1])
	}

	// an empty index
	r.x = newMemIndex()
	r.sweep(t)
	r.want(t, 3, 3, SweepReindex, SweepReindex, SweepReindex)

	// too young: between put and index
	r.x = newMemIndex()
	r.now = time.Now()
	r.sweep(t)
	r.want(t, 3, 0)

	// of an older leader
	r.now = r.now.Add(time.Hour)
	r.x.onAdd = func(Segment) error { return fmt.Errorf("no: %w", ErrFenced) }
	r.sweep(t)
	r.want(t, 3, 0, SweepFenced, SweepFenced, SweepFenced)
}

func TestSweepUnknownTopicAndForeignKeys(t *testing.T) {
	r := newSweepRig()
	r.p.topics = nil
	makeSegment(testTP, 0, 2, 0, 1).put(t, r.b, nil)
	if _, err := r.b.Put(t.Context(), "data/README", bytes.NewReader([]byte("x")), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.b.Put(t.Context(), "meta/cluster", bytes.NewReader([]byte("x")), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	r.sweep(t)
	if r.want(t, 3, 0, r.actions()...); len(r.items) != 2 || !slices.Contains(r.actions(), SweepForeign) || !slices.Contains(r.actions(), SweepUnknownTopic) {
		t.Errorf("did %q", r.actions())
	}
}

func TestSweepCovered(t *testing.T) {
	r := newSweepRig()
	r.three(t, testTP)
	whole := makeSegment(testTP, 0, 3, 0, 1) // 0 to 29: the first, half of the second
	row := whole.row()
	row.Generation = 1
	whole.putAs(t, r.b, nil, row)
	r.sweep(t) // a rewrite that is not indexed covers nothing
	r.want(t, 4, 3, SweepRewritten)
	if err := r.x.Add(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	r.sweep(t)
	r.want(t, 3, 3, SweepDeleteCovered)

	second := makeSegment(testTP, 30, 1, 0, 1)
	row = second.row()
	row.Generation = 2
	second.putAs(t, r.b, r.x, row)
	r.sweep(t)
	r.want(t, 3, 3, SweepDeleteCovered) // by two rewrites together

	// where the index has lost the offsets a rewrite is as good as any
	r = newSweepRig()
	whole.putAs(t, r.b, nil, whole.row())
	row = second.row()
	row.Generation = 2
	second.putAs(t, r.b, nil, row)
	r.sweep(t)
	r.want(t, 2, 2, SweepReindex, SweepReindex)

	// an object replaced after the list was made does not come back
	r = newSweepRig()
	gone := r.three(t, testTP)[0]
	row = whole.row()
	row.Generation = 1
	if err := errors.Join(r.x.Drop(t.Context(), testTP, []SegmentKey{gone.SegmentKey}), r.x.Add(t.Context(), row)); err != nil {
		t.Fatal(err)
	}
	r.sweep(t)
	r.want(t, 3, 3, SweepRewritten, SweepMissing)

	// a rewrite that is broken covers nothing
	r = newSweepRig()
	r.three(t, testTP)
	whole.object[len(whole.object)-1] ^= 1
	row = whole.row()
	row.Generation = 1
	whole.putAs(t, r.b, r.x, row)
	r.sweep(t)
	r.want(t, 4, 4, SweepFailed)

	// within grace of the rewrite
	r = newSweepRig()
	r.three(t, testTP)
	whole.object[len(whole.object)-1] ^= 1
	whole.putAs(t, r.b, r.x, row)
	r.now = time.Now()
	r.sweep(t)
	r.want(t, 4, 3, SweepGrace)
}

// A rewrite of the same range and the same size has a name of its own: what it replaced goes, it stays, and so again.
func TestSweepSameRangeAndSize(t *testing.T) {
	r := newSweepRig()
	old := makeSegment(testTP, 0, 3, 0, 1)
	old.put(t, r.b, r.x)
	for generation := range int64(4) {
		again := makeSegment(testTP, 0, 3, 5*generation, 1)
		if len(again.object) != len(old.object) {
			t.Fatal("the two must differ in content alone")
		}
		if generation == 0 { // the first one has none
			continue
		}
		row := again.row()
		row.Generation = generation
		again.putAs(t, r.b, r.x, row)
		r.sweep(t)
		r.want(t, 1, 1, SweepDeleteCovered)
		if keys := r.b.keys(t); !slices.Equal(keys, []string{row.Key()}) || r.x.all(testTP)[0].SegmentKey != row.SegmentKey {
			t.Fatalf("generation %d: %v is left, row %+v", generation, keys, r.x.all(testTP))
		}
		if got, err := getAll(t.Context(), r.b, row.Key(), 0, row.Size); err != nil || !bytes.Equal(got, again.object) {
			t.Fatalf("generation %d: other bytes, %v", generation, err)
		}
	}
}

func TestSweepMissing(t *testing.T) {
	r := newSweepRig()
	rows := r.three(t, testTP)
	for _, i := range []int{0, 2} {
		if err := r.b.Delete(t.Context(), rows[i].Key()); err != nil {
			t.Fatal(err)
		}
	}
	r.p.starts[testTP] = LogStart{Offset: 20, Since: r.now}
	r.sweep(t)
	r.want(t, 1, 2, SweepMissing) // the row below the log start goes, the loss stays on record
}

// Rows before bytes, whatever fails.
func TestSweepOrder(t *testing.T) {
	for _, fault := range []string{"", "drop fails", "drop lies", "delete fails", "delete fails for one", "crash after drop"} {
		t.Run(fault, func(t *testing.T) {
			r := newSweepRig()
			r.three(t, testTP)
			r.p.starts[testTP] = LogStart{Offset: 40, Since: r.now.Add(-2 * time.Hour)}
			b := &deleter{hooks: r.b, x: r.x, t: t}
			switch fault {
			case "drop fails":
				r.x.onDrop = func([]SegmentKey) error { return errors.New("away") }
			case "delete fails":
				b.err = objstore.ErrThrottled
			case "delete fails for one":
				b.one = true
			case "crash after drop":
				b.err = context.Canceled
			}
			var x Index = r.x
			if fault == "drop lies" {
				x = lyingIndex{r.x}
			}
			rep, err := Sweep(t.Context(), SweepOptions{Bucket: b, Index: x, Proofs: r.p, Grace: time.Hour, Now: func() time.Time { return r.now }})
			left := len(r.b.keys(t))
			switch fault {
			case "":
				if err != nil || left != 1 {
					t.Errorf("%v, %d left", err, left)
				}
			case "drop fails", "delete fails", "crash after drop":
				if err == nil || left != 3 || rep.Done {
					t.Errorf("%v, %d left", err, left)
				}
			case "drop lies":
				if err != nil || left != 3 || rep.Deleted.Objects != 0 || rep.By[SweepFailed].Objects != 2 {
					t.Errorf("%v, %d left, %+v", err, left, rep)
				}
			case "delete fails for one":
				if err != nil || left != 2 || rep.Deleted.Objects != 1 || rep.By[SweepFailed].Objects != 1 {
					t.Errorf("%v, %d left, %+v", err, left, rep)
				}
			}
			// the next sweep, without the fault, ends in the same state
			r.x.onDrop = nil
			r.sweep(t)
			if n := len(r.b.keys(t)); n != 1 || len(r.x.all(testTP)) != 1 {
				t.Errorf("%d objects and %d rows after the next sweep", n, len(r.x.all(testTP)))
			}
		})
	}
}

// deleter checks that nothing is deleted that the index lists.
type deleter struct {
	*hooks
	x   *memIndex
	t   *testing.T
	err error
	one bool
}

func (d *deleter) DeleteMany(ctx context.Context, keys []string) (map[string]error, error) {
	for _, k := range keys {
		key, err := ParseSegmentKey(k)
		if err != nil {
			d.t.Error(err)
		}
		if slices.ContainsFunc(d.x.all(key.TP), func(s Segment) bool { return s.SegmentKey == key }) {
			d.t.Errorf("deletes %s, which is indexed", k)
		}
	}
	if d.err != nil {
		return nil, d.err
	}
	if d.one {
		failed, err := d.hooks.DeleteMany(ctx, keys[1:])
		if failed == nil {
			failed = map[string]error{}
		}
		failed[keys[0]] = objstore.ErrThrottled
		return failed, err
	}
	return d.hooks.DeleteMany(ctx, keys)
}

// lyingIndex says that it dropped rows and keeps them.
type lyingIndex struct{ *memIndex }

func (lyingIndex) Drop(context.Context, ids.TopicPartition, []SegmentKey) error { return nil }

func TestSweepProofFails(t *testing.T) {
	r := newSweepRig()
	r.three(t, testTP)
	r.p.err = errors.New("bucket away")
	if _, err := Sweep(t.Context(), SweepOptions{Bucket: r.b, Index: r.x, Proofs: r.p}); err == nil {
		t.Error("no error")
	}
	r.want(t, 3, 3)
	if _, err := Sweep(t.Context(), SweepOptions{}); err == nil {
		t.Error("no error for missing options")
	}
}

// A sweep that was cut off goes on behind the last partition it finished.
func TestSweepResumes(t *testing.T) {
	r := newSweepRig()
	tps := []ids.TopicPartition{{Topic: testTopic, Partition: 1}, {Topic: testTopic, Partition: 2}, {Topic: testTopic, Partition: 3}}
	for _, tp := range tps {
		r.three(t, tp)
		r.p.starts[tp] = LogStart{Offset: 1000, Since: r.now.Add(-2 * time.Hour)}
	}
	o := SweepOptions{Bucket: r.b, Index: r.x, Proofs: r.p, Now: func() time.Time { return r.now }}
	r.x.onDrop = func(k []SegmentKey) error {
		if k[0].TP.Partition == 3 {
			return errors.New("time is up")
		}
		return nil
	}
	rep, err := Sweep(t.Context(), o)
	if err == nil || len(r.b.keys(t)) != 3 {
		t.Fatalf("%v, %d left", err, len(r.b.keys(t)))
	}
	r.x.onDrop = nil
	if o.After = rep.Last; o.After == "" {
		t.Fatal("no place to go on")
	}
	rep, err = Sweep(t.Context(), o)
	if err != nil || len(r.b.keys(t)) != 0 || rep.Seen.Objects != 3 {
		t.Errorf("%v, %d left, %+v", err, len(r.b.keys(t)), rep)
	}
}

// A partition's rows and objects may be many pages.
func TestSweepPages(t *testing.T) {
	r := newSweepRig()
	s := makeSegment(testTP, 0, 1, 0, 1)
	for i := range 1200 {
		row := s.row()
		row.Base, row.Last = int64(i)*10, int64(i)*10+9
		s.putAs(t, r.b, r.x, row)
	}
	r.p.starts[testTP] = LogStart{Offset: 11_000, Since: r.now.Add(-2 * time.Hour)}
	rep := r.sweep(t)
	if rep.Deleted.Objects != 1100 || len(r.b.keys(t)) != 100 || len(r.x.all(testTP)) != 100 {
		t.Errorf("%+v, %d objects, %d rows", rep, len(r.b.keys(t)), len(r.x.all(testTP)))
	}
}
