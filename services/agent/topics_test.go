package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// produce sends a record to partition 0 of a topic and returns its offset; the error is Kafka's.
func (w *wire) produce(id ids.TopicID, value string, timestamp int64) (int64, error) {
	b, err := batch.Encode([]batch.Record{{Timestamp: timestamp, Value: []byte(value)}}, batch.EncodeOptions{})
	if err != nil {
		return 0, err
	}
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks, req.TimeoutMillis = 13, -1, 5000
	topic, part := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
	topic.TopicID, part.Records = id, b
	topic.Partitions = append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	resp, err := w.ask(req)
	if err != nil {
		return 0, err
	}
	p := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
	return p.BaseOffset, kerr.ErrorForCode(p.ErrorCode)
}

// fetch returns the values of partition 0 of a topic from an offset on, as many as an answer has.
func (w *wire) fetch(id ids.TopicID, offset int64) (values []string, err error) {
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.MaxBytes = 13, 1<<20
	topic, part := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
	topic.TopicID, part.FetchOffset, part.PartitionMaxBytes = id, offset, 1<<20
	topic.Partitions = append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	resp, err := w.ask(req)
	if err != nil {
		return nil, err
	}
	p := resp.(*kmsg.FetchResponse).Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
		return nil, err
	}
	for b := p.RecordBatches; len(b) > 0; {
		h, err := batch.Check(b)
		if err != nil {
			return nil, err
		}
		for r, err := range batch.Records(b[:h.Size()], batch.Limits{}) {
			if err != nil {
				return nil, err
			}
			if h.BaseOffset+int64(r.OffsetDelta) >= offset {
				values = append(values, string(r.Value))
			}
		}
		b = b[h.Size():]
	}
	return values, nil
}

func testWire(t *testing.T, a *Agent) *wire {
	t.Helper()
	w, err := dialWire(a.KafkaAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.nc.Close() })
	return w
}

// A topic that is deleted and made anew under its name is another one: who goes on with the former one's id is
// told so, the new one has its own records alone from offset 0 on, and of the former one no file is left.
func TestTopicMadeAnew(t *testing.T) {
	dir := t.TempDir()
	a, _ := groupAgent(t, dir, nil, nil)
	var now atomic.Pointer[broker.Topic]
	now.Store(newTopic(t, a.broker, "same", 1))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var sent, late atomic.Int64
	for i := range 3 {
		w := testWire(t, a)
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				id := now.Load().ID
				switch _, err := w.produce(id, id.String(), time.Now().UnixMilli()); {
				case err == nil:
					sent.Add(1)
				case errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.NotLeaderForPartition):
					late.Add(1)
				default:
					t.Errorf("producer %d: %v", i, err)
					return
				}
			}
		})
	}
	w := testWire(t, a)
	for range 25 {
		old := now.Load()
		from := sent.Load()
		until(t, "records", func() bool { return sent.Load() > from+20 || t.Failed() })
		if values, err := w.fetch(old.ID, 0); err != nil || len(values) < 10 {
			t.Fatalf("%d records, %v", len(values), err)
		}
		if err := a.broker.DeleteTopic(t.Context(), old.ID); err != nil {
			t.Fatal(err)
		}
		next := newTopic(t, a.broker, "same", 1)
		if _, err := w.produce(old.ID, "late", time.Now().UnixMilli()); !errors.Is(err, kerr.UnknownTopicID) {
			t.Errorf("produce to the former topic: %v", err)
		}
		if values, err := w.fetch(old.ID, 0); !errors.Is(err, kerr.UnknownTopicID) {
			t.Errorf("fetch of the former topic: %d records, %v", len(values), err)
		}
		if values, err := w.fetch(next.ID, 0); err != nil || len(values) > 0 {
			t.Errorf("the new topic begins with %q, %v", values, err)
		}
		now.Store(next)
	}
	close(stop)
	wg.Wait()
	for at := int64(0); ; {
		values, err := w.fetch(now.Load().ID, at)
		if err != nil || len(values) == 0 {
			break
		}
		for i, v := range values {
			if v != now.Load().ID.String() {
				t.Errorf("offset %d of %s has %q", at+int64(i), now.Load().ID, v)
			}
		}
		at += int64(len(values))
	}
	t.Logf("%d records, %d were refused", sent.Load(), late.Load())
	var left []string
	until(t, "the files of former topics are gone", func() bool {
		left = left[:0]
		err := filepath.WalkDir(filepath.Join(dir, "logs"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !strings.Contains(path, now.Load().ID.String()) && !strings.Contains(path, "/recycled") {
				left = append(left, path)
			}
			return nil
		})
		return err == nil && len(left) == 0
	})
}

// Records that are further from now than the topic allows are refused, by default an hour ahead: one of the far future
// would keep its segment for ever.
func TestTimestampBounds(t *testing.T) {
	a, _ := groupAgent(t, t.TempDir(), nil, nil)
	w := testWire(t, a)
	topic := func(name string, configs ...string) ids.TopicID {
		set := map[string]*string{}
		for i := 0; i < len(configs); i += 2 {
			set[configs[i]] = &configs[i+1]
		}
		topic, err := a.broker.CreateTopic(t.Context(), metadata.CreateTopic{Name: name, Partitions: 1, ReplicationFactor: -1, Configs: set})
		if err != nil {
			t.Fatal(err)
		}
		return topic.ID
	}
	usual, strict := topic("usual"), topic("strict", "message.timestamp.before.max.ms", "60000", "message.timestamp.after.max.ms", "60000")
	stamped := topic("stamped", "message.timestamp.type", "LogAppendTime", "message.timestamp.after.max.ms", "60000")
	for _, c := range []struct {
		topic ids.TopicID
		ahead time.Duration
		want  error
	}{
		{usual, 0, nil}, {usual, 55 * time.Minute, nil}, {usual, 65 * time.Minute, kerr.InvalidTimestamp}, {usual, 200 * 365 * 24 * time.Hour, kerr.InvalidTimestamp},
		{usual, -50 * 365 * 24 * time.Hour, nil},
		{strict, 30 * time.Second, nil}, {strict, 2 * time.Minute, kerr.InvalidTimestamp}, {strict, -30 * time.Second, nil}, {strict, -2 * time.Minute, kerr.InvalidTimestamp},
		{stamped, time.Hour, nil},
	} {
		if _, err := w.produce(c.topic, "x", time.Now().Add(c.ahead).UnixMilli()); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("a record %v ahead: %v, want %v", c.ahead, err, c.want)
		}
	}
}

// Damage to a closed segment's file is not served: what is in the bucket is read from there, and for the rest the
// client is told that the storage has failed, while what precedes it is served.
func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	a, stop := groupAgent(t, dir, nil, nil)
	w := testWire(t, a)
	var topics []*broker.Topic
	for _, remote := range []string{"true", "false"} {
		topic, err := a.broker.CreateTopic(t.Context(), metadata.CreateTopic{Name: "remote-" + remote, Partitions: 1, ReplicationFactor: -1, Configs: map[string]*string{"remote.storage.enable": &remote}})
		if err != nil {
			t.Fatal(err)
		}
		topics = append(topics, topic)
	}
	const records = 50
	for i := range records {
		for _, topic := range topics {
			if _, err := w.produce(topic.ID, fmt.Sprint(i, strings.Repeat(".", 1000)), time.Now().UnixMilli()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, topic := range topics {
		if err := a.broker.Roll(topic.Name); err != nil {
			t.Fatal(err)
		}
	}
	p, err := a.broker.Partition(topics[0].ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the segment is in the bucket", func() bool {
		at, err := p.Offset(t.Context(), broker.TimestampLatestTiered)
		return err == nil && at.Offset == records-1
	})
	stop()
	for _, topic := range topics {
		logs, err := filepath.Glob(filepath.Join(dir, "logs", topic.ID.String()+"*", "00000000000000000000.log"))
		if err != nil || len(logs) != 1 {
			t.Fatalf("%v, %v", logs, err)
		}
		b, err := os.ReadFile(logs[0])
		if err != nil {
			t.Fatal(err)
		}
		b[bytes.Index(b, []byte("30....."))+100] ^= 1
		if err := os.WriteFile(logs[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, _ = groupAgent(t, dir, nil, nil)
	w = testWire(t, a)
	for i, topic := range topics {
		at := int64(0)
		var err error
		for at < records && err == nil {
			var values []string
			if values, err = w.fetch(topic.ID, at); err == nil && len(values) == 0 {
				t.Fatalf("nothing at offset %d", at)
			}
			for _, v := range values {
				if !strings.HasPrefix(v, fmt.Sprint(at, ".")) || strings.Count(v, ".") != 1000 {
					t.Fatalf("offset %d has %.20q", at, v)
				}
				at++
			}
		}
		if i == 0 && err != nil {
			t.Errorf("with the segment in the bucket: %v at offset %d", err, at)
		}
		if i == 1 && (!errors.Is(err, kerr.KafkaStorageError) || at > 30 || at == 0) {
			t.Errorf("with no other copy: %v at offset %d", err, at)
		}
	}
}
