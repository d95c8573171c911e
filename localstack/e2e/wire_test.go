package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/cirrolog/cirrolog/storage/batch"
)

// wire speaks the protocol with requests made by hand, in versions that name
// topics by name. Every call has a connection of its own, so the node may be
// started again in between.
type wire struct {
	t *testing.T
	n *Node
}

// request sends one request to the node and fails the test without an answer.
func (w wire) request(req kmsg.Request) kmsg.Response {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(w.n.Kafka), kgo.MaxVersions(kversion.V3_0_0()))
	if err != nil {
		w.t.Fatal(err)
	}
	defer cl.Close()
	resp, err := cl.SeedBrokers()[0].Request(ctx, req)
	if err != nil {
		w.t.Fatalf("%s: %v", kmsg.NameForKey(req.Key()), err)
	}
	return resp
}

// produce sends one batch, as it is, to partition 0 of a topic with acks=all.
func (w wire) produce(topic string, b []byte) (offset, appendTime int64, err error) {
	w.t.Helper()
	return w.produceWithin(topic, b, 30*time.Second)
}

// produceWithin is produce with a timeout of the request.
func (w wire) produceWithin(topic string, b []byte, timeout time.Duration) (offset, appendTime int64, err error) {
	w.t.Helper()
	part := kmsg.NewProduceRequestTopicPartition()
	part.Records = b
	t := kmsg.NewProduceRequestTopic()
	t.Topic, t.Partitions = topic, []kmsg.ProduceRequestTopicPartition{part}
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis, req.Topics = -1, int32(timeout.Milliseconds()), []kmsg.ProduceRequestTopic{t}
	p := w.request(req).(*kmsg.ProduceResponse).Topics[0].Partitions[0]
	return p.BaseOffset, p.LogAppendTime, kerr.ErrorForCode(p.ErrorCode)
}

// fetch returns the batches of partition 0 of a topic from offset 0 to end,
// byte for byte, each with a right CRC.
func (w wire) fetch(topic string, end int64) (all [][]byte) {
	w.t.Helper()
	limit := time.Now().Add(fetchLimit)
	for at := int64(0); at < end; {
		if time.Now().After(limit) {
			w.t.Fatalf("fetched %s to offset %d of %d in %v", topic, at, end, fetchLimit)
		}
		part := kmsg.NewFetchRequestTopicPartition()
		part.FetchOffset, part.PartitionMaxBytes = at, 8<<20
		t := kmsg.NewFetchRequestTopic()
		t.Topic, t.Partitions = topic, []kmsg.FetchRequestTopicPartition{part}
		req := kmsg.NewPtrFetchRequest()
		req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.Topics = 500, 1, 8<<20, []kmsg.FetchRequestTopic{t}
		got := w.request(req).(*kmsg.FetchResponse).Topics[0].Partitions[0]
		if err := kerr.ErrorForCode(got.ErrorCode); err != nil {
			w.t.Fatalf("fetch %s at %d: %v", topic, at, err)
		}
		for b := got.RecordBatches; len(b) > 0; {
			h, err := batch.Check(b)
			if errors.Is(err, batch.ErrTruncated) {
				break
			}
			if err != nil {
				w.t.Fatalf("fetch %s at %d: %v", topic, at, err)
			}
			if h.LastOffset() >= at {
				all = append(all, b[:h.Size()])
				at = h.LastOffset() + 1
			}
			b = b[h.Size():]
		}
	}
	return all
}

// header parses a batch that was fetched.
func header(t *testing.T, b []byte) batch.Header {
	t.Helper()
	h, err := batch.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// producerID asks for a producer id.
func (w wire) producerID() (id int64, epoch int16) {
	w.t.Helper()
	r := w.request(kmsg.NewPtrInitProducerIDRequest()).(*kmsg.InitProducerIDResponse)
	if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
		w.t.Fatalf("init producer id: %v", err)
	}
	return r.ProducerID, r.ProducerEpoch
}

// listOffset asks for the offset of a time or one of Kafka's special numbers.
func (w wire) listOffset(topic string, at int64) (offset, timestamp int64) {
	w.t.Helper()
	part := kmsg.NewListOffsetsRequestTopicPartition()
	part.Timestamp = at
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic, t.Partitions = topic, []kmsg.ListOffsetsRequestTopicPartition{part}
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID, req.Topics = -1, []kmsg.ListOffsetsRequestTopic{t}
	p := w.request(req).(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
		w.t.Fatalf("list offsets of %s at %d: %v", topic, at, err)
	}
	return p.Offset, p.Timestamp
}

// encode makes a batch of n small records, of a producer if there is one.
func encode(t *testing.T, codec batch.Codec, xerial bool, n int, timestamp int64, p *batch.Producer) []byte {
	t.Helper()
	var records []batch.Record
	for i := range n {
		records = append(records, batch.Record{OffsetDelta: int32(i), Timestamp: timestamp + int64(i), Key: fmt.Appendf(nil, "key %d", i),
			Value: fmt.Appendf(nil, "the same words again and again and again, %d", i), Headers: []batch.RecordHeader{{Key: "h", Value: []byte("v")}, {Key: "null"}}})
	}
	b, err := batch.Encode(records, batch.EncodeOptions{Codec: codec, Xerial: xerial, Producer: p})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tier moves everything of a topic of one partition to the bucket, and waits
// until nothing of it is on the node's own disk.
func tier(t *testing.T, n *Node, topic string) {
	t.Helper()
	n.API("POST", "/v1/topics/"+topic+"/roll", nil)
	eventually(t, time.Minute, topic+" only in the bucket", func() bool {
		s := n.Storage(topic)[0]
		return s.TieredEnd == s.HighWatermark && s.LocalStart == s.HighWatermark && s.LocalBytes == 0
	})
}
