package agent

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// snapshot returns the rows under a prefix.
func (c *moveCluster) snapshot(prefix string) []kv.Item {
	c.t.Helper()
	items, err := c.kv.Range(c.t.Context(), prefix, "", kv.MaxRangeItems, false)
	if err != nil {
		c.t.Fatal(err)
	}
	return items
}

// asBefore has the metadata store hold again what it held under a prefix, as after a failover.
func (c *moveCluster) asBefore(prefix string, before []kv.Item) {
	c.t.Helper()
	var ops []kv.Op
	for _, it := range c.snapshot(prefix) {
		ops = append(ops, kv.Op{Key: it.Key, Delete: true})
	}
	for _, it := range before {
		for i := range ops {
			if ops[i].Key == it.Key {
				ops[i] = kv.Op{Key: it.Key, Value: it.Value}
			}
		}
	}
	if _, err := c.kv.Commit(c.t.Context(), ops, nil); err != nil {
		c.t.Fatal(err)
	}
}

// What was deleted by DeleteRecords stays so when the metadata store forgets it and the owner dies:
// the owner's stream has it.
func TestHeirKnowsLogStart(t *testing.T) {
	c := newMoveCluster(t, 500*time.Millisecond)
	a, b := c.start(true), c.start(true)
	tp := ids.TopicPartition{Topic: c.create(a, "t", 1)}
	owner, p := c.leader(tp)
	c.write(tp.Topic, 1, func() {})
	before := c.snapshot("part/")
	if _, err := p.DeleteRecords(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	c.asBefore("part/", before)
	heir := a
	if owner == a {
		heir = b
	}
	owner.die()
	n, p := c.leader(tp)
	if n != heir {
		t.Fatal("the dead one leads")
	}
	if at, err := p.Offset(t.Context(), broker.TimestampEarliest); err != nil || at.Offset != 7 {
		t.Errorf("the log starts at %d, %v, want 7", at.Offset, err)
	}
}

// An heir finds segments in the bucket that the metadata store has forgotten, after the stream was
// trimmed for them.
func TestHeirFindsForgottenSegments(t *testing.T) {
	c := newMoveCluster(t, 500*time.Millisecond)
	tp, owner, p, end := c.tieredPartition()
	rows := c.snapshot("seg/")
	c.asBefore("seg/", nil)
	owner.die()
	_, p = c.leader(tp)
	readAll(t, p, end)
	there := map[string]bool{}
	for _, it := range c.snapshot("seg/") {
		there[it.Key] = true
	}
	for _, it := range rows {
		if !there[it.Key] && strings.HasPrefix(it.Key, "seg/") {
			t.Errorf("row %s is not there again", it.Key)
		}
	}
}

// tieredPartition starts two agents, and returns a partition of theirs, all of which is tiered up to end.
func (c *moveCluster) tieredPartition() (tp ids.TopicPartition, owner *moveNode, p *broker.Partition, end int64) {
	c.t.Helper()
	a := c.start(true)
	c.start(true)
	tp = ids.TopicPartition{Topic: c.create(a, "t", 1)}
	c.write(tp.Topic, 1, func() { time.Sleep(2500 * time.Millisecond) })
	owner, p = c.leader(tp)
	return tp, owner, p, c.allTiered(owner, p)
}

// allTiered waits until all of a partition is tiered and the stream trimmed, and returns its end.
func (c *moveCluster) allTiered(owner *moveNode, p *broker.Partition) int64 {
	c.t.Helper()
	end, err := p.Offset(c.t.Context(), broker.TimestampLatest)
	if err != nil {
		c.t.Fatal(err)
	}
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		tiered, err := p.Offset(c.t.Context(), broker.TimestampLatestTiered)
		if present, _ := owner.stream.Objects(); err == nil && tiered.Offset+1 == end.Offset && present <= 2*8 {
			break
		}
		if time.Now().After(limit) {
			c.t.Fatal("not everything is tiered and trimmed")
		}
	}
	return end.Offset
}

// readAll reads a partition from its begin to its end.
func readAll(t *testing.T, p *broker.Partition, end int64) {
	t.Helper()
	for next := int64(0); next < end; {
		r := p.Read(t.Context(), broker.ReadOptions{Offset: next, MaxBytes: 1 << 20, MinOneBatch: true, CurrentEpoch: -1, LastFetchedEpoch: -1})
		if r.Err != nil || len(r.Data) == 0 {
			t.Fatalf("offset %d of %d: %v", next, end, r.Err)
		}
		for _, d := range r.Data {
			_, after, err := broker.FindTimestamp(d, 0, 1<<62)
			if err != nil {
				t.Fatal(err)
			}
			next = after
		}
		if r.Release != nil {
			r.Release()
		}
	}
}

// An heir finds what replaced segments when the metadata store names those again, whose objects are gone.
func TestHeirFindsReplacedSegments(t *testing.T) {
	c := newMoveCluster(t, 500*time.Millisecond)
	tp, owner, p, end := c.tieredPartition()
	rows := len(c.snapshot("seg/"))
	if n := c.replaceObjects(tp); n == 0 || n != rows {
		t.Fatalf("%d objects of %d rows replaced", n, rows)
	}
	owner.die()
	_, p = c.leader(tp)
	readAll(t, p, end)
	for _, it := range c.snapshot("seg/") {
		if !strings.HasSuffix(it.Key, "-77") {
			t.Errorf("row %s names an object that is gone", it.Key)
		}
	}
}

// replaceObjects has each segment of a partition under another name, as a compaction would.
func (c *moveCluster) replaceObjects(tp ids.TopicPartition) (n int) {
	c.t.Helper()
	ctx := c.t.Context()
	list, _, err := c.bucket.List(ctx, tiering.PartitionPrefix(tp), "", 1000)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, o := range list {
		k, err := tiering.ParseSegmentKey(o.Key)
		if err != nil {
			c.t.Fatal(err)
		}
		r, _, err := c.bucket.Get(ctx, o.Key, 0, -1)
		if err != nil {
			c.t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err == nil {
			k.Generation = 77
			_, err = c.bucket.Put(ctx, k.Key(), bytes.NewReader(data), objstore.PutOptions{})
		}
		if err == nil {
			err = c.bucket.Delete(ctx, o.Key)
		}
		if err != nil {
			c.t.Fatal(err)
		}
		n++
	}
	return n
}

// Rows of deleted segments, which the metadata store has back, don't keep an heir from leading.
func TestHeirDropsDeletedSegments(t *testing.T) {
	c := newMoveCluster(t, 500*time.Millisecond)
	tp, owner, p, end := c.tieredPartition()
	if _, err := p.DeleteRecords(t.Context(), end); err != nil {
		t.Fatal(err)
	}
	objects, _, err := c.bucket.List(t.Context(), tiering.PartitionPrefix(tp), "", 1000)
	if err != nil || len(objects) == 0 || len(c.snapshot("seg/")) == 0 {
		t.Fatalf("%d objects, %v", len(objects), err)
	}
	for _, o := range objects { // a sweep did, and dropped their rows, which are back
		if err := c.bucket.Delete(t.Context(), o.Key); err != nil {
			t.Fatal(err)
		}
	}
	owner.die()
	_, p = c.leader(tp)
	if at, err := p.Offset(t.Context(), broker.TimestampEarliest); err != nil || at.Offset != end {
		t.Errorf("the log starts at %d, %v, want %d", at.Offset, err, end)
	}
	if rows := c.snapshot("seg/"); len(rows) > 0 {
		t.Errorf("%d rows name objects that are gone", len(rows))
	}
}
