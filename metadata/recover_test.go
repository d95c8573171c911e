package metadata

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// forget empties the key-value store.
func (w *world) forget() {
	w.t.Helper()
	for {
		items, err := w.kv.Range(context.Background(), "", "", 50, false)
		mustNil(w.t, err)
		if len(items) == 0 {
			return
		}
		ops := make([]kv.Op, len(items))
		for i, it := range items {
			ops[i] = kv.Op{Key: it.Key, Delete: true}
		}
		_, err = w.kv.Commit(context.Background(), ops, nil)
		mustNil(w.t, err)
	}
}

func (w *world) recovery(may func(context.Context, *Store) error) (*Store, error) {
	s, err := OpenRecovery(ctxT(w.t), w.options(), may)
	if err == nil {
		w.t.Cleanup(func() { s.Close() })
	}
	return s, err
}

// A store that lost everything is rebuilt while an agent runs on it, in spite of an interruption; nobody
// starts on half of it, and nothing is given twice.
func TestRecovery(t *testing.T) {
	w := newWorld(t)
	live := w.open()
	topic := create(t, live, "t", 3)
	tp := ids.TopicPartition{Topic: topic.ID, Partition: 1}
	mustNil(t, live.SetLogStart(ctxT(t), tp, live.NodeEpoch(), 7))
	mustNil(t, live.PublishLogStarts(ctxT(t)))
	pid, err := live.NextProducerID(ctxT(t))
	mustNil(t, err)
	_, err = w.recovery(nil)
	wantErr(t, "a store that is whole", err, ErrNotLost)

	w.forget()
	no := errors.New("no")
	_, err = w.recovery(func(context.Context, *Store) error { return no })
	wantErr(t, "refused", err, no)
	if n := len(w.bucket.keys(recoveryPrefix)); n != 0 {
		t.Fatalf("a recovery that was refused has left %d objects", n)
	}
	_, err = w.tryOpen()
	wantErr(t, "start on a lost store", err, ErrForeignBucket)
	s, err := w.recovery(nil)
	mustNil(t, err)
	s.Close() // interrupted
	_, err = w.tryOpen()
	wantErr(t, "start on half a store", err, ErrForeignBucket)
	if !strings.Contains(err.Error(), "cirrolog recover") {
		t.Errorf("it does not say what to do: %v", err)
	}
	wantErr(t, "delete on the word of half a store", live.CheckOwner(ctxT(t)), ErrUnavailable)
	s, err = w.recovery(nil)
	mustNil(t, err)
	if s.Generation() != 1 || s.ClusterID() != live.ClusterID() || s.LogStart(tp) != 7 {
		t.Fatalf("generation %d, cluster %s, log start %d", s.Generation(), s.ClusterID(), s.LogStart(tp))
	}
	owner := Owner{Incarnation: ids.NewIncarnation(), Epoch: 5}
	mustNil(t, s.RaiseOwners(ctxT(t), []Owned{{tp, owner}}))
	rows := make([]SegmentRow, 250)
	for i := range rows {
		rows[i] = SegmentRow{TP: tp, SegmentID: SegmentID{Base: int64(i) * 10, Last: int64(i)*10 + 9, Incarnation: owner.Incarnation}, Size: 100, LogSize: 50, Records: 10}
	}
	mustNil(t, s.IndexSegments(ctxT(t), rows))
	mustNil(t, s.IndexSegments(ctxT(t), rows[:3])) // again
	mustNil(t, s.FinishRecovery(ctxT(t)))
	_, err = w.recovery(nil)
	wantErr(t, "a store that was rebuilt", err, ErrNotLost)

	mustNil(t, live.CheckOwner(ctxT(t))) // the agent that runs goes on
	create(t, live, "u", 1)
	next := w.open(func(o *Options) { o.NodeID = 0 })
	got, err := next.Segments(ctxT(t), tp, 0, 1000)
	if err != nil || len(got) != len(rows) || got[249] != rows[249] {
		t.Errorf("%d rows, %v", len(got), err)
	}
	again, err := next.NextProducerID(ctxT(t))
	if err != nil || again <= pid || next.NodeID() == live.NodeID() {
		t.Errorf("producer id %d after %d, node %d beside %d, %v", again, pid, next.NodeID(), live.NodeID(), err)
	}
	if o := next.Owner(next.Snapshot().Topic("t"), 1); o != owner || next.LogStart(tp) != 7 || next.Snapshot().Topic("u") == nil {
		t.Errorf("owner %+v, log start %d, topics %v", o, next.LogStart(tp), next.Snapshot().Topics())
	}
}

// What was recovered into another store is not to be recovered back, nor served from the old one.
func TestRecoveryElsewhere(t *testing.T) {
	w := newWorld(t)
	live := w.open()
	create(t, live, "t", 1)
	fresh := newWorld(t)
	_, err := fresh.recovery(nil)
	wantErr(t, "a bucket without a cluster", err, ErrForeignBucket)
	fresh.bucket = w.bucket
	s, err := fresh.recovery(nil)
	mustNil(t, err)
	mustNil(t, s.FinishRecovery(ctxT(t)))
	wantErr(t, "the old store's agent", live.CheckOwner(ctxT(t)), ErrForeignBucket)
	_, err = w.recovery(nil)
	wantErr(t, "back into the old store", err, ErrForeignBucket)
	_, err = w.tryOpen()
	wantErr(t, "start on the old store", err, ErrForeignBucket)
	fresh.open()
}
