package recovery

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// world is a bucket with a cluster, whose metadata store is about to be lost.
type world struct {
	t      *testing.T
	bucket *objstore.Mem
	meta   *metadata.Store
	topic  *metadata.Topic
	inc    ids.Incarnation
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, bucket: objstore.NewMem(), inc: ids.NewIncarnation()}
	store := kv.NewMem(kv.MemOptions{})
	meta, err := metadata.Open(t.Context(), metadata.Options{KV: store, Bucket: w.bucket, Incarnation: w.inc, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = meta.Close(); _ = store.Close() })
	w.meta = meta
	if w.topic, err = meta.CreateTopic(t.Context(), metadata.CreateTopic{Name: "t", Partitions: 2, ReplicationFactor: 1}); err != nil {
		t.Fatal(err)
	}
	return w
}

// segment puts a segment with the offsets from base to base+9.
func (w *world) segment(base int64) string {
	w.t.Helper()
	tp := ids.TopicPartition{Topic: w.topic.ID}
	rs := make([]batch.Record, 10)
	for i := range rs {
		rs[i] = batch.Record{Value: []byte("value")}
	}
	raw, err := batch.Encode(rs, batch.EncodeOptions{BaseOffset: base})
	if err != nil {
		w.t.Fatal(err)
	}
	h, err := batch.Check(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	b := segment.NewBuilder(tp, base, 4096)
	b.Add(h, raw)
	trailer := b.Trailer(base+10, nil, nil)
	key := tiering.SegmentKey{TP: tp, Base: base, Last: base + 9, Incarnation: w.inc}.Key()
	w.put(key, append(raw, trailer...))
	return key
}

func (w *world) put(key string, b []byte) {
	w.t.Helper()
	if _, err := w.bucket.Put(w.t.Context(), key, bytes.NewReader(b), objstore.PutOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// stream puts a stream that has accepted the topic's second partition.
func (w *world) stream() ids.Incarnation {
	w.t.Helper()
	cluster, err := ids.ParseTopicID(w.meta.ClusterID())
	if err != nil {
		w.t.Fatal(err)
	}
	inc := ids.NewIncarnation()
	pool := contract.NewPool(4 << 20)
	s, err := wal.Open(w.t.Context(), wal.Options{Bucket: w.bucket, Cluster: cluster, Incarnation: inc, Pool: pool, Announce: func([]*contract.Entry, error) {}, Linger: time.Millisecond})
	if err != nil {
		w.t.Fatal(err)
	}
	tp := ids.TopicPartition{Topic: w.topic.ID, Partition: 1}
	if err := s.Change(w.t.Context(), wal.Change{Acceptances: []wal.Acceptance{{TP: tp, Epoch: 3, LogStart: 5, End: 8, Giver: w.topic.Object()}}}); err != nil {
		w.t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		w.t.Fatal(err)
	}
	return inc
}

func (w *world) recover(takeOver bool) (*Report, kv.Store, error) {
	store := kv.NewMem(kv.MemOptions{})
	w.t.Cleanup(func() { _ = store.Close() })
	r, err := Run(w.t.Context(), Options{Bucket: w.bucket, KV: store, TakeOver: takeOver, Wait: 300 * time.Millisecond})
	return r, store, err
}

// What is damaged or missing is named with its offsets, and does not keep the rest from being recovered.
func TestDamagedBucket(t *testing.T) {
	w := newWorld(t)
	w.segment(0)
	damaged := w.segment(10)
	w.segment(30) // 20 to 29 are missing
	w.put(damaged, []byte("not a segment"))
	owner, broken := w.stream(), w.stream()
	w.put(wal.Key(broken, 1), []byte("no footer"))
	r, store, err := w.recover(true)
	if err != nil {
		t.Fatal(err)
	}
	if r.Topics != 1 || r.Partitions != 2 || r.Owned != 1 || r.Streams != 2 || r.Segments != 2 || r.ClusterID != w.meta.ClusterID() || r.Generation != 1 {
		t.Errorf("report %+v", r)
	}
	var said []string
	for _, l := range r.Lost {
		said = append(said, l.Object+" "+l.Error)
		switch {
		case l.Object == damaged && (l.From != 10 || l.To != 20), l.Object == "" && (l.From != 10 || l.To != 30 || l.Topic != "t"):
			t.Errorf("lost %+v", l)
		}
	}
	all := strings.Join(said, "\n")
	for _, want := range []string{damaged, string(broken), "no segment has these offsets"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not named: %s", want, all)
		}
	}
	if len(r.Lost) != 3 {
		t.Errorf("lost %s", all)
	}
	meta, err := metadata.Open(t.Context(), metadata.Options{KV: store, Bucket: w.bucket, Incarnation: ids.NewIncarnation(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer meta.Close()
	topic := meta.Snapshot().Topic("t")
	if o := meta.Owner(topic, 1); o != (metadata.Owner{Incarnation: owner, Epoch: 3}) || meta.LogStart(ids.TopicPartition{Topic: topic.ID, Partition: 1}) != 5 {
		t.Errorf("owner %+v", o)
	}
	rows, err := meta.Segments(t.Context(), ids.TopicPartition{Topic: topic.ID}, 0, 10)
	if err != nil || len(rows) != 2 || rows[0].Base != 0 || rows[1].Base != 30 || rows[1].Records != 10 {
		t.Errorf("rows %+v, %v", rows, err)
	}
}

// A bucket that somebody writes to, whose lease is elsewhere, is left as it is.
func TestBucketInUse(t *testing.T) {
	w := newWorld(t)
	inc := w.stream()
	_, _, err := w.recover(false)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), string(inc)) {
		t.Errorf("a bucket in use: %v", err)
	}
	if err := w.meta.CheckOwner(t.Context()); err != nil {
		t.Errorf("it was taken over: %v", err)
	}
}
