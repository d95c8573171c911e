package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/storage/batch"
)

const (
	maxTimestamp = -3 // of ListOffsets
	longAgo      = int64(1_000_000_000_000)
)

// stamped is a batch with the append time that its answer told.
type stamped struct {
	codec  batch.Codec
	base   int64
	time   int64
	bytes  []byte // as sent
	number int
}

// TestAppendTime produces to a topic with message.timestamp.type=LogAppendTime:
// whatever the producer says, records have the time of the append.
func TestAppendTime(t *testing.T) {
	const topic = "append-time"
	n := NewNode(t, NodeOptions{Args: []string{"--bucket", "dir://" + filepath.Join(t.TempDir(), "bucket"), "--retention-interval", "100ms"}})
	createTopic(t, n, topic, 1, map[string]string{"message.timestamp.type": "LogAppendTime", "local.retention.bytes": "0"})
	w := wire{t, n}
	id, epoch := w.producerID()
	var all []stamped
	seq := 0
	for _, codec := range codecs {
		s := stamped{codec: codec, number: 5 + seq}
		s.bytes = encode(t, codec, false, s.number, longAgo, &batch.Producer{ID: id, Epoch: epoch, BaseSequence: int32(seq)})
		seq += s.number
		before := time.Now().UnixMilli()
		var err error
		if s.base, s.time, err = w.produce(topic, s.bytes); err != nil {
			t.Fatal(err)
		}
		if after := time.Now().UnixMilli(); s.time < before || s.time > after {
			t.Errorf("%v: append time %d, produced between %d and %d", codec, s.time, before, after)
		}
		all = append(all, s)
		time.Sleep(5 * time.Millisecond) // so that each batch has a time of its own
	}
	check := func(where string) {
		t.Helper()
		for i, s := range all[len(all)-remembered:] {
			base, at, err := w.produce(topic, s.bytes)
			if err != nil || base != s.base || at != s.time {
				t.Errorf("%s: batch %d again: offset %d, append time %d, %v; want %d, %d", where, i, base, at, err, s.base, s.time)
			}
		}
		checkAppendTimes(t, w, topic, all, where)
	}
	check("on this node")
	tier(t, n, topic)
	check("in the bucket")
	n.Kill()
	n.Start()
	check("after a kill")
	n.Stop()
}

func checkAppendTimes(t *testing.T, w wire, topic string, all []stamped, where string) {
	t.Helper()
	last := all[len(all)-1]
	end := last.base + int64(last.number)
	got := w.fetch(topic, end) // checks the CRCs
	if len(got) != len(all) {
		t.Fatalf("%s: %d batches, want %d", where, len(got), len(all))
	}
	for i, s := range all {
		h := header(t, got[i])
		if !h.LogAppendTime() || h.MaxTimestamp != s.time || h.BaseTimestamp != longAgo || h.Codec() != s.codec || h.BaseOffset != s.base {
			t.Errorf("%s: batch %d is %+v, want append time %d", where, i, h, s.time)
		}
		if offset, at := w.listOffset(topic, s.time); offset != s.base || at != s.time {
			t.Errorf("%s: the first record since %d is %d at %d, want %d", where, s.time, offset, at, s.base)
		}
	}
	if offset, at := w.listOffset(topic, maxTimestamp); at != last.time || offset < last.base || offset >= end {
		t.Errorf("%s: the greatest timestamp is %d at offset %d, want %d in [%d, %d)", where, at, offset, last.time, last.base, end)
	}
	if err := seesAppendTimes(w.n.Kafka, topic, end, all); err != nil {
		t.Errorf("%s: %v", where, err)
	}
}

// seesAppendTimes reads as a consumer.
func seesAppendTimes(addr, topic string, end int64, all []stamped) error {
	return eachRecord(addr, topic, 0, 0, end, func(r *kgo.Record) error {
		s := all[0]
		for _, o := range all {
			if o.base <= r.Offset {
				s = o
			}
		}
		if r.Timestamp.UnixMilli() != s.time || r.Attrs.TimestampType() != 1 {
			return fmt.Errorf("offset %d: a consumer sees time %d of type %d, want %d", r.Offset, r.Timestamp.UnixMilli(), r.Attrs.TimestampType(), s.time)
		}
		return nil
	})
}
