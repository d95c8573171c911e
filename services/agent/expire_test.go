package agent

import (
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// A sweeper that is no agent moves the log starts of partitions that nobody serves, and of no others: neither while their
// owner lives, nor when an heir has them whom it does not know of.
func TestExpire(t *testing.T) {
	c := newMoveCluster(t, time.Second)
	a := c.start(true)
	id := c.create(a, "t", 1, "retention.ms", "60000")
	tp := ids.TopicPartition{Topic: id}
	c.write(id, 1, func() { time.Sleep(500 * time.Millisecond) })
	var last metadata.SegmentRow
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		row, ok, err := a.meta.LastSegment(t.Context(), tp)
		if err != nil || time.Now().After(end) {
			t.Fatalf("tiered: %v, %v", ok, err)
		}
		if _, led := c.leader(tp); ok && row.Last+1 == led.Read(t.Context(), broker.ReadOptions{CurrentEpoch: -1, LastFetchedEpoch: -1}).HighWatermark {
			last = row
			break
		}
	}
	open := func() *broker.Sweeper {
		meta, err := metadata.OpenTool(t.Context(), metadata.Options{KV: c.kv, Bucket: c.bucket, Incarnation: ids.NewIncarnation()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = meta.Close() })
		return broker.NewSweeper(broker.SweeperOptions{Meta: meta, Bucket: c.bucket, Now: func() time.Time { return time.Now().Add(time.Hour) }})
	}
	expire := func(s *broker.Sweeper, dry bool) broker.Expired {
		t.Helper()
		r, err := s.Expire(t.Context(), time.Minute, dry)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := expire(open(), false); r.Owned != 1 || r.Partitions != 0 {
		t.Errorf("while the owner lives: %+v", r)
	}
	a.die()
	time.Sleep(1500 * time.Millisecond) // its lease
	stale := open()
	if r := expire(open(), true); r.Partitions != 1 || r.Segments == 0 {
		t.Errorf("dry: %+v", r)
	}
	starts := func() int64 {
		t.Helper()
		all, err := metadata.LogStartsInBucket(t.Context(), c.bucket)
		if err != nil {
			t.Fatal(err)
		}
		return all[tp]
	}
	if got := starts(); got != 0 {
		t.Errorf("a dry run moved the log start to %d", got)
	}
	if r := expire(open(), false); r.Partitions != 1 || starts() != last.Last+1 {
		t.Errorf("%+v, the log start in the bucket is %d, want %d", r, starts(), last.Last+1)
	}
	c.start(true)
	_, led := c.leader(tp)
	if got := led.Read(t.Context(), broker.ReadOptions{Offset: last.Last + 1, CurrentEpoch: -1, LastFetchedEpoch: -1}); got.Err != nil || got.LogStart != last.Last+1 {
		t.Errorf("the heir begins at %d: %v", got.LogStart, got.Err)
	}
	if r := expire(stale, false); r.Owned != 1 || r.Partitions != 0 {
		t.Errorf("when an heir has it: %+v", r)
	}
}
