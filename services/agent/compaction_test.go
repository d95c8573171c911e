package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/batch"
)

// compacting makes an agent that cleans and tiers at once, with one partition
// of committed offsets.
func compacting(c *Config) {
	c.Groups.Partitions, c.CompactInterval, c.RetentionInterval = 1, 20*time.Millisecond, 50*time.Millisecond
}

func setConfig(t testing.TB, b *broker.Broker, topic string, configs map[string]string) {
	t.Helper()
	var ops []metadata.ConfigOp
	for k, v := range configs {
		ops = append(ops, metadata.ConfigOp{Key: k, Value: &v})
	}
	if err := b.AlterTopicConfig(t.Context(), topic, ops, false); err != nil {
		t.Fatal(err)
	}
}

// settled closes what is active of a topic and waits until all of it is in the
// bucket and compacted into few segments.
func settled(t testing.TB, b *broker.Broker, topic string, segments int64) broker.PartitionStorage {
	t.Helper()
	if err := b.Roll(topic); err != nil {
		t.Fatal(err)
	}
	var s broker.PartitionStorage
	end := time.Now().Add(60 * time.Second)
	for {
		_, parts, err := b.TopicStorage(topic)
		if err != nil {
			t.Fatal(err)
		}
		if s = parts[0]; s.TieredEnd == s.HighWatermark && s.LocalBytes == 0 && s.BucketSegments <= segments {
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("not settled: %+v, %+v", s, b.CompactStats())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// objects counts the objects of a topic in the agent's own bucket, and their bytes.
func objects(t testing.TB, dir string, topic *broker.Topic) (n int, bytes int64) {
	t.Helper()
	root := filepath.Join(dir, "bucket", "objects", "data+", topic.ID.String()+"+")
	err := filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n, bytes = n+1, bytes+info.Size()-16 // the file's own end
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return n, bytes
}

// 200,000 commits of 1,000 offsets take the room of few more than 1,000, in few
// objects, and all are there after a restart without any closed segment on disk.
func TestOffsetsCompacted(t *testing.T) {
	const groups, partitions, rounds = 10, 100, 200
	dir := t.TempDir()
	a, stop := groupAgent(t, dir, compacting, nil)
	g, b := a.broker.Groups(), a.broker
	topic := newTopic(t, b, "logs", partitions)
	if err := commit(t, g, "g0", topic, 1, 0, ""); err != nil {
		t.Fatal(err)
	}
	setConfig(t, b, broker.OffsetsTopic, map[string]string{"internal.segment.bytes": "200000"})
	for round := range rounds {
		for i := range groups {
			if err := commit(t, g, fmt.Sprint("g", i), topic, partitions, int64(round*groups+i), ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	setConfig(t, b, broker.OffsetsTopic, map[string]string{"min.cleanable.dirty.ratio": "0"}) // up to the last
	s := settled(t, b, broker.OffsetsTopic, 1)
	if _, err := b.Sweeper().Segments(t.Context(), time.Nanosecond, false); err != nil {
		t.Fatal(err)
	}
	st := b.CompactStats()
	n, bytes := objects(t, dir, b.Topic(broker.OffsetsTopic))
	t.Logf("%d offsets: %d objects with %d bytes are left; %d segments replaced by %d, %d records and %d bytes removed in %d passes",
		s.HighWatermark, n, bytes, st.SegmentsReplaced, st.SegmentsWritten, st.RecordsRemoved, st.BytesRemoved, st.Passes)
	if s.HighWatermark < groups*partitions*rounds || int64(n) != s.BucketSegments || bytes != s.BucketBytes || bytes > st.BytesRemoved/4 || st.Failures != 0 {
		t.Errorf("storage %+v, %d objects with %d bytes, %+v", s, n, bytes, st)
	}
	want := map[string]map[int32]int64{}
	for i := range groups {
		id := fmt.Sprint("g", i)
		if want[id] = committedOffsets(t, g, id); len(want[id]) != partitions || want[id][7] != int64((rounds-1)*groups+i) {
			t.Fatalf("%s: %d offsets, %d", id, len(want[id]), want[id][7])
		}
	}
	stop()
	for _, path := range closedLogs(t, dir) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	a, _ = groupAgent(t, dir, compacting, nil)
	for id, offsets := range want {
		if got := committedOffsets(t, a.broker.Groups(), id); !maps.Equal(got, offsets) {
			t.Errorf("%s after the restart: %d offsets, %d", id, len(got), got[7])
		}
	}
	if got := committedOffsets(t, a.broker.Groups(), "none"); len(got) != 0 {
		t.Errorf("an unknown group has %v", got)
	}
}

// closedLogs are the .log files that have an .idx.
func closedLogs(t testing.TB, dir string) (out []string) {
	t.Helper()
	idx, err := filepath.Glob(filepath.Join(dir, "logs", "*", "*.idx"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range idx {
		if log := strings.TrimSuffix(path, ".idx") + ".log"; func() bool { _, err := os.Stat(log); return err == nil }() {
			out = append(out, log)
		}
	}
	return out
}

// How long a start takes to read 100,000 live offsets from the bucket.
func TestOffsetsReload(t *testing.T) {
	const groups, partitions = 200, 500
	dir := t.TempDir()
	a, stop := groupAgent(t, dir, compacting, nil)
	topic := newTopic(t, a.broker, "logs", partitions)
	for i := range groups {
		for at := range 2 {
			if err := commit(t, a.broker.Groups(), fmt.Sprint("g", i), topic, partitions, int64(at), ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := settled(t, a.broker, broker.OffsetsTopic, 1)
	stop()
	a, _ = groupAgent(t, dir, compacting, nil)
	began := time.Now()
	if got := committedOffsets(t, a.broker.Groups(), "g7"); len(got) != partitions || got[3] != 1 {
		t.Errorf("%d offsets", len(got))
	}
	t.Logf("read %d live offsets, %d bytes in the bucket, in %v", groups*partitions, s.BucketBytes, time.Since(began))
	list, err := a.broker.Groups().List(t.Context(), nil, nil)
	if err != nil || len(list) != groups {
		t.Errorf("%d groups, %v", len(list), err)
	}
}

// What clients may set on the topic of committed offsets.
func TestOffsetsTopicConfigs(t *testing.T) {
	a, _ := groupAgent(t, t.TempDir(), nil, nil)
	b := a.broker
	topic := newTopic(t, b, "logs", 1)
	if err := commit(t, b.Groups(), "g", topic, 1, 1, ""); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		configs, word string
	}{
		{"cleanup.policy=delete", "cleanup.policy"},
		{"cleanup.policy=compact,delete", "cleanup.policy"},
		{"cleanup.policy=", "cleanup.policy"},
		{"max.message.bytes=1000", "max.message.bytes"},
		{"message.timestamp.before.max.ms=0", "message.timestamp.before.max.ms"},
		{"message.timestamp.after.max.ms=0", "after.max.ms"},
		{"remote.log.copy.disable=true", "remote.log.copy.disable"},
		{"segment.bytes=2097152", ""},
		{"max.message.bytes=2097152", ""},
		{"min.cleanable.dirty.ratio=0.1", ""},
	} {
		key, value, _ := strings.Cut(tc.configs, "=")
		check := func(how string, err error) {
			t.Helper()
			if tc.word == "" && err != nil || tc.word != "" && (!errors.Is(err, metadata.ErrInvalidConfig) || !strings.Contains(err.Error(), tc.word)) {
				t.Errorf("%s %s: %v", how, tc.configs, err)
			}
		}
		check("alter", b.AlterTopicConfig(t.Context(), broker.OffsetsTopic, []metadata.ConfigOp{{Key: key, Value: &value}}, false))
		compact := "compact"
		all := map[string]*string{"cleanup.policy": &compact}
		all[key] = &value
		check("replace", b.ReplaceTopicConfig(t.Context(), broker.OffsetsTopic, all, false))
	}
	if err := b.ReplaceTopicConfig(t.Context(), broker.OffsetsTopic, nil, false); err == nil {
		t.Error("without configs it would be deleted by age")
	}
	if _, err := b.CreateTopic(t.Context(), metadata.CreateTopic{Name: broker.OffsetsTopic, Partitions: 1, ReplicationFactor: -1}); err == nil {
		t.Error("created without compaction")
	}
	if err := commit(t, b.Groups(), "g", topic, 1, 2, ""); err != nil {
		t.Error(err)
	}
}

// With max.compaction.lag.ms a record is cleaned in time, however little there is:
// its segment is closed for it too.
func TestCompactionLag(t *testing.T) {
	a, _ := groupAgent(t, t.TempDir(), compacting, nil)
	compact, lag, ratio := "compact", "300", "1"
	topic, err := a.broker.CreateTopic(t.Context(), metadata.CreateTopic{Name: "table", Partitions: 1, ReplicationFactor: -1, Configs: map[string]*string{
		"cleanup.policy": &compact, "max.compaction.lag.ms": &lag, "min.cleanable.dirty.ratio": &ratio}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range int32(5) {
		if at, err := appendBatch(t, a.broker, topic, i, []byte("k")); err != nil || at != int64(i) {
			t.Fatal(at, err)
		}
	}
	until(t, "all but one are removed", func() bool { return a.broker.CompactStats().RecordsRemoved == 4 })
	p, err := a.broker.Partition(topic.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.DeleteRecords(t.Context(), 3); !errors.Is(err, metadata.ErrPolicy) {
		t.Errorf("delete records: %v", err)
	}
}

// A compacted topic as clients see it: the latest of each key, reads in gaps up to
// records that are not closed yet, idempotent producers that go on after a
// restart, and no record without a key.
func TestCompactedTopic(t *testing.T) {
	dir := t.TempDir()
	a, stop := groupAgent(t, dir, compacting, nil)
	zero, small := "0", "3000"
	topic, err := a.broker.CreateTopic(t.Context(), metadata.CreateTopic{Name: "table", Partitions: 1, ReplicationFactor: -1, Configs: map[string]*string{
		"delete.retention.ms": &zero, "internal.segment.bytes": &small, "min.cleanable.dirty.ratio": &zero}})
	if err != nil {
		t.Fatal(err)
	}
	client := func(opts ...kgo.Opt) *kgo.Client {
		c, err := kgo.NewClient(append(opts, kgo.SeedBrokers(a.KafkaAddr()), kgo.DefaultProduceTopic("table"), kgo.ProducerLinger(0))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	put := func(c *kgo.Client, key, value []byte) {
		t.Helper()
		if err := c.ProduceSync(t.Context(), &kgo.Record{Key: key, Value: value}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	c := client()
	for i := range 300 {
		put(c, fmt.Append(nil, "k", i%10), fmt.Append(nil, "v", i))
	}
	put(c, []byte("k3"), nil) // 300
	at, err := appendBatch(t, a.broker, topic, 0, nil)
	if err != nil || at != 301 { // 301 and 302 go, so the tiered range ends in a gap
		t.Fatal(at, err)
	}
	put(c, nil, []byte("x"))
	setConfig(t, a.broker, "table", map[string]string{"cleanup.policy": "compact"})
	settled(t, a.broker, "table", 1)
	if err := c.ProduceSync(t.Context(), &kgo.Record{Value: []byte("no key")}).FirstErr(); !errors.Is(err, kerr.InvalidRecord) {
		t.Errorf("a record without a key: %v", err)
	}
	c.Close() // the refused record's sequence is lost to it
	c = client()
	put(c, []byte("k4"), []byte("last")) // 303: in no closed segment
	stop()
	a, _ = groupAgent(t, dir, compacting, nil) // nothing is in memory but that
	want := map[string]string{"k4": "last"}
	for i := range 10 {
		if i != 3 && i != 4 {
			want[fmt.Sprint("k", i)] = fmt.Sprint("v", 290+i)
		}
	}
	for from, keys := range map[int64]map[string]string{0: want, 291: nil, 301: {"k4": "last"}, 302: {"k4": "last"}, 303: {"k4": "last"}} {
		got, n := consumeTable(t, client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"table": {0: kgo.NewOffset().At(from)}})))
		if keys != nil && !maps.Equal(got, keys) || n > 11 {
			t.Errorf("from %d: %d records, %v", from, n, got)
		}
	}
	// The producer is remembered although its batch was removed.
	if at, err := appendBatch(t, a.broker, topic, 0, []byte("k1")); err != nil || at != 301 {
		t.Errorf("the batch sent again is at %d, %v", at, err)
	}
	if at, err := appendBatch(t, a.broker, topic, 2, []byte("k1")); !errors.Is(err, broker.ErrOutOfOrderSequence) {
		t.Errorf("a batch after a gap is at %d, %v", at, err)
	}
	p, err := a.broker.Partition(topic.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	if at, err := p.Offset(t.Context(), broker.TimestampLatest); err != nil || at.Offset != 304 {
		t.Errorf("end %+v, %v", at, err)
	}
}

// appendBatch sends a batch of one record as producer 900 and returns its offset.
func appendBatch(t testing.TB, b *broker.Broker, topic *broker.Topic, sequence int32, key []byte) (int64, error) {
	t.Helper()
	p, err := b.Partition(topic.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := batch.Encode([]batch.Record{{Key: key, Value: []byte("x"), Timestamp: time.Now().UnixMilli()}},
		batch.EncodeOptions{Producer: &batch.Producer{ID: 900, BaseSequence: sequence}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan broker.Produced, 1)
	p.Produce(t.Context(), raw, nil, func(r broker.Produced) { done <- r })
	r := <-done
	return r.BaseOffset, r.Err
}

// consumeTable reads up to the last value of k4 and returns what is in the table
// then, and how many records it took.
func consumeTable(t testing.TB, c *kgo.Client) (map[string]string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got, n := map[string]string{}, 0
	for got["k4"] != "last" {
		f := c.PollFetches(ctx)
		if err := f.Err(); err != nil {
			t.Fatalf("%v, have %v", err, got)
		}
		f.EachRecord(func(r *kgo.Record) {
			n++
			if got[string(r.Key)] = string(r.Value); r.Value == nil {
				delete(got, string(r.Key))
			}
		})
	}
	return got, n
}
