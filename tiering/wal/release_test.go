package wal

import (
	"context"
	"reflect"
	"testing"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// A release says all that its receiver needs: where the partition ends, its log start, and where its
// batches lie, those of earlier owners and the stream's own. That stays so when the
// object is trimmed, and in the seal's state when the releaser has died.
func TestReleaseSaysWhereAllLies(t *testing.T) {
	ctx, b, to := context.Background(), objstore.NewMem(), ids.NewIncarnation()
	w := newOwner(t, b, Options{CheckpointEvery: 4})
	earlier := OlderRange{Stream: to, From: 3, To: 9, Base: 0, End: 5}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w.next[part(0)] = 7
	must(w.Change(ctx, Change{Acceptances: []Acceptance{{TP: part(0), Epoch: 3, LogStart: 2, End: 7, Giver: "x", Older: []OlderRange{earlier}}}}))
	w.accept(part(1))
	for range 10 {
		must(w.append(part(0), 100))
		must(w.append(part(1), 100))
		w.settle()
	}
	seq, err := w.Release(ctx, []Release{{TP: part(0), Epoch: 4, End: 17, To: to}})
	must(err)
	want := Release{TP: part(0), Epoch: 4, LogStart: 2, End: 17, To: to, Older: []OlderRange{earlier, {Stream: w.inc, From: 0, To: seq, Base: 7, End: 17}}}
	read := func(when string) {
		t.Helper()
		got, err := ReadReleases(ctx, b, [16]byte{}, w.inc, seq)
		if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], want) {
			t.Fatalf("%s: %v\n got %+v\nwant %+v", when, err, got, want)
		}
	}
	read("at once")
	older := Older{Bucket: b}
	batches, err := older.Batches(ctx, part(0), want.Older[1:])
	must(err)
	if len(batches) != 10 || batches[0].Base != 7 || batches[9].Last != 16 {
		t.Errorf("%d batches: %+v", len(batches), batches)
	}
	for range 12 {
		must(w.append(part(1), 100))
		w.settle()
	}
	must(w.Trim(w.State().Durable))
	for { // until the object with the release is deleted
		if _, err := ReadFooter(ctx, b, w.inc, seq, -1); err != nil {
			break
		}
		must(w.append(part(1), 100))
		w.settle()
	}
	read("when it is trimmed")
	s, err := SealStream(ctx, b, [16]byte{}, w.inc, ids.NewIncarnation(), heirsOf(to))
	must(err)
	if got := s.Released[part(0)]; !reflect.DeepEqual(got, want) || s.Tails[part(0)] != nil {
		t.Errorf("the sealed stream says %+v, %+v", got, s.Tails[part(0)])
	}
	_ = w.Close() // fenced
}

// What is tiered before a release, the release does not name.
func TestReleaseOfWhatIsTiered(t *testing.T) {
	ctx, b := context.Background(), objstore.NewMem()
	w := newOwner(t, b, Options{})
	w.accept(part(0), part(1))
	for range 4 {
		if err := w.append(part(0), 100); err != nil {
			t.Fatal(err)
		}
		w.settle()
	}
	w.Tiered(part(0), 4)
	to := ids.NewIncarnation()
	seq, err := w.Release(ctx, []Release{{TP: part(0), Epoch: 4, End: 4, To: to}, {TP: part(1), Epoch: 4, End: 0, To: to}})
	if err != nil {
		t.Fatal(err)
	}
	rs, err := ReadReleases(ctx, b, [16]byte{}, w.inc, seq)
	if err != nil || len(rs) != 2 || rs[0].Older != nil || rs[1].Older != nil {
		t.Errorf("%v, %+v", err, rs)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}
