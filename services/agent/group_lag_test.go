package agent

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/batch"
)

// put appends one batch of n records with these timestamps, a second apart.
func put(t *testing.T, b *broker.Broker, topic *broker.Topic, part int32, n int, at time.Time) {
	t.Helper()
	p, err := b.Partition(topic.ID, part)
	if err != nil {
		t.Fatal(err)
	}
	var recs []batch.Record
	for i := range n {
		recs = append(recs, batch.Record{Timestamp: at.UnixMilli() + int64(i)*1000, Value: []byte(strings.Repeat("v", 1000))})
	}
	data, err := batch.Encode(recs, batch.EncodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	p.Produce(t.Context(), data, nil, func(r broker.Produced) { done <- r.Err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// lag finds a group's lag in a topic; nil if it is not told.
func lag(lags []broker.GroupLag, group, topic string) *broker.GroupLag {
	for i := range lags {
		if lags[i].Group == group && lags[i].Topic == topic {
			return &lags[i]
		}
	}
	return nil
}

// TestGroupLag compares the lag with what was written: in memory, on disk and
// in the bucket, without a request to the bucket.
func TestGroupLag(t *testing.T) {
	g, b, _ := startGroups(t, t.TempDir())
	topic := newTopic(t, b, "orders", 2)
	old, mid, recent := time.UnixMilli(1_700_000_000_000), time.UnixMilli(1_700_001_000_000), time.UnixMilli(1_700_002_000_000)
	put(t, b, topic, 0, 10, old)
	put(t, b, topic, 0, 10, mid)
	put(t, b, topic, 1, 5, recent)
	if err := commit(t, g, "g", topic, 2, 3, ""); err != nil {
		t.Fatal(err)
	}
	m := b.NewLagMeter(100, 100)
	check := func(what string, messages int64, since time.Time) {
		t.Helper()
		lags, out := m.Measure(t.Context())
		l := lag(lags, "g", "orders")
		if l == nil || l.Messages != messages || !l.Since.Equal(since) || out != 0 {
			t.Errorf("%s: lag %+v, left out %d, want %d messages since %v", what, l, out, messages, since)
		}
	}
	check("behind in both partitions", 17+2, old)
	if err := commit(t, g, "g", topic, 1, 12, ""); err != nil {
		t.Fatal(err)
	}
	check("in the second batch", 8+2, mid)
	if err := commit(t, g, "g", topic, 1, 20, ""); err != nil {
		t.Fatal(err)
	}
	check("behind in one", 2, recent)
	if err := commit(t, g, "g", topic, 2, 99, ""); err != nil {
		t.Fatal(err)
	}
	check("at the end, and beyond it", 0, time.Time{})
	if err := b.DeleteTopic(t.Context(), topic.ID); err != nil {
		t.Fatal(err)
	}
	if lags, _ := m.Measure(t.Context()); lag(lags, "g", "orders") != nil {
		t.Error("the lag of a deleted topic is told")
	}
}

// TestGroupLagInBucket measures a group that is behind what is on the disk.
func TestGroupLagInBucket(t *testing.T) {
	g, b, _ := startGroups(t, t.TempDir())
	topic := newTopic(t, b, "orders", 1)
	at := time.UnixMilli(time.Now().Add(-2 * time.Hour).UnixMilli())
	put(t, b, topic, 0, 10, at)
	if err := b.Roll("orders"); err != nil {
		t.Fatal(err)
	}
	put(t, b, topic, 0, 10, at.Add(time.Hour))
	if err := commit(t, g, "g", topic, 1, 5, ""); err != nil {
		t.Fatal(err)
	}
	one := "1"
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, parts, err := b.TopicStorage("orders")
		if err != nil {
			t.Fatal(err)
		}
		if parts[0].TieredEnd >= 10 && parts[0].LocalStart >= 10 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the first segment is not in the bucket only: %+v", parts)
		}
		if err := b.ReplaceTopicConfig(t.Context(), "orders", map[string]*string{"local.retention.bytes": &one}, false); err != nil {
			t.Fatal(err)
		}
		b.KickRetention()
		time.Sleep(20 * time.Millisecond)
	}
	m := b.NewLagMeter(100, 100)
	for range 2 { // the second time from memory
		lags, _ := m.Measure(t.Context())
		if l := lag(lags, "g", "orders"); l == nil || l.Messages != 15 || !l.Since.Equal(at) {
			t.Errorf("lag %+v, want 15 messages since %v", l, at)
		}
	}
}

// TestGroupLagIsBounded sees whole groups left out, always the same ones, and
// none whose name is no label.
func TestGroupLagIsBounded(t *testing.T) {
	g, b, _ := startGroups(t, t.TempDir())
	topics := []*broker.Topic{newTopic(t, b, "a", 1), newTopic(t, b, "b", 1)}
	names := []string{"bad\xff", strings.Repeat("n", 300)}
	for i := range 6 {
		names = append(names, fmt.Sprint("group", i))
	}
	for _, n := range names {
		for _, topic := range topics {
			if err := commit(t, g, n, topic, 1, 0, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct{ groups, series, want, out int }{{100, 100, 12, 2}, {4, 100, 8, 4}, {100, 5, 4, 6}, {3, 5, 4, 6}, {100, 1, 0, 8}} {
		lags, out := b.NewLagMeter(c.groups, c.series).Measure(context.Background())
		if len(lags) != c.want || out != c.out {
			t.Errorf("%d groups, %d series: %d lags, %d left out, want %d and %d", c.groups, c.series, len(lags), out, c.want, c.out)
		}
		for i, l := range lags {
			if want := fmt.Sprint("group", i/2); l.Group != want {
				t.Errorf("lag %d is of %q, want %q", i, l.Group, want)
			}
		}
	}
}
