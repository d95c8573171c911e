package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/storage/batch"
)

// rawKafka is one connection that speaks fixed versions, those that Kafka 4 and
// Cirrolog share, and tells how long answers are.
type rawKafka struct {
	nc   net.Conn
	form *kmsg.RequestFormatter
	corr int32
}

func dialKafka(addr string) (*rawKafka, error) {
	nc, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	return &rawKafka{nc: nc, form: kmsg.NewRequestFormatter(kmsg.FormatterClientID("scale"))}, nil
}

func (k *rawKafka) close() { _ = k.nc.Close() }

// rawLimit bounds one request.
const rawLimit = 5 * time.Minute

// call sends a request in the given version and returns its answer, and how
// many bytes that has.
func (k *rawKafka) call(req kmsg.Request, version int16) (kmsg.Response, int, error) {
	req.SetVersion(version)
	k.corr++
	_ = k.nc.SetDeadline(time.Now().Add(rawLimit))
	if _, err := k.nc.Write(k.form.AppendRequest(nil, req, k.corr)); err != nil {
		return nil, 0, err
	}
	var head [4]byte
	if _, err := io.ReadFull(k.nc, head[:]); err != nil {
		return nil, 0, err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(k.nc, b); err != nil {
		return nil, 0, err
	}
	resp := req.ResponseKind()
	body := b[4:]
	if resp.IsFlexible() {
		body = body[1:] // no tags
	}
	return resp, len(b) + 4, resp.ReadFrom(body)
}

// newTopic asks for a topic.
func (k *rawKafka) newTopic(name string, partitions int32) error {
	req, topic := kmsg.NewPtrCreateTopicsRequest(), kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = name, partitions, 1
	req.Topics, req.TimeoutMillis = []kmsg.CreateTopicsRequestTopic{topic}, 120_000
	resp, _, err := k.call(req, 7)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.(*kmsg.CreateTopicsResponse).Topics[0].ErrorCode)
}

// metadata asks for one topic, or with "" for all.
func (k *rawKafka) metadata(topic string) (*kmsg.MetadataResponse, int, error) {
	req := kmsg.NewPtrMetadataRequest()
	if topic != "" {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &topic
		req.Topics = append(req.Topics, t)
	}
	resp, n, err := k.call(req, 12)
	if err != nil {
		return nil, n, err
	}
	return resp.(*kmsg.MetadataResponse), n, nil
}

// place is one partition.
type place struct {
	topic     string
	id        [16]byte
	partition int32
}

var errNoLeader = errors.New("not all partitions have a leader")

// places lists the partitions of some topics, which all must have a leader.
func (k *rawKafka) places(topics []string, each int32) (out []place, err error) {
	want := map[string]bool{}
	for _, t := range topics {
		want[t] = true
	}
	name := ""
	if len(topics) == 1 {
		name = topics[0]
	}
	m, _, err := k.metadata(name)
	if err != nil {
		return nil, err
	}
	for _, t := range m.Topics {
		if t.Topic == nil || !want[*t.Topic] {
			continue
		}
		if t.ErrorCode != 0 || len(t.Partitions) != int(each) {
			return nil, errNoLeader
		}
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 || p.Leader < 0 {
				return nil, errNoLeader
			}
			out = append(out, place{*t.Topic, t.TopicID, p.Partition})
		}
	}
	if len(out) != len(topics)*int(each) {
		return nil, errNoLeader
	}
	return out, nil
}

// oneRecord is a batch of one small record.
func oneRecord(t testing.TB) []byte {
	b, err := batch.Encode([]batch.Record{{Timestamp: time.Now().UnixMilli(), Value: []byte("one record of some 32 bytes, 1234")}}, batch.EncodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// produce sends the batch to each of the places, which are sorted by topic, in
// one request.
func (k *rawKafka) produce(places []place, b []byte) error {
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 60_000
	for _, p := range places {
		if n := len(req.Topics); n == 0 || req.Topics[n-1].Topic != p.topic {
			t := kmsg.NewProduceRequestTopic()
			t.Topic = p.topic
			req.Topics = append(req.Topics, t)
		}
		part := kmsg.NewProduceRequestTopicPartition()
		part.Partition, part.Records = p.partition, b
		t := &req.Topics[len(req.Topics)-1]
		t.Partitions = append(t.Partitions, part)
	}
	resp, _, err := k.call(req, 9)
	if err != nil {
		return err
	}
	for _, t := range resp.(*kmsg.ProduceResponse).Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("produce to %s-%d: %w", t.Topic, p.Partition, err)
			}
		}
	}
	return nil
}

// session is an incremental fetch session over some places.
type session struct {
	k     *rawKafka
	id    int32
	epoch int32
}

// open begins the session with a full fetch from offset 0.
func (k *rawKafka) open(places []place, wait time.Duration) (*session, *kmsg.FetchResponse, int, error) {
	s := &session{k: k}
	resp, n, err := s.poll(places, 0, wait)
	return s, resp, n, err
}

// poll asks for news; places get a new offset.
func (s *session) poll(places []place, offset int64, wait time.Duration) (*kmsg.FetchResponse, int, error) {
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID, req.MaxWaitMillis, req.MinBytes, req.MaxBytes = -1, int32(wait.Milliseconds()), 1, 50<<20
	req.SessionID, req.SessionEpoch = s.id, s.epoch
	for _, p := range places {
		if n := len(req.Topics); n == 0 || req.Topics[n-1].TopicID != p.id {
			t := kmsg.NewFetchRequestTopic()
			t.TopicID = p.id
			req.Topics = append(req.Topics, t)
		}
		part := kmsg.NewFetchRequestTopicPartition()
		part.Partition, part.FetchOffset, part.PartitionMaxBytes, part.CurrentLeaderEpoch = p.partition, offset, 1<<20, -1
		t := &req.Topics[len(req.Topics)-1]
		t.Partitions = append(t.Partitions, part)
	}
	r, n, err := s.k.call(req, 13)
	if err != nil {
		return nil, n, err
	}
	resp := r.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, n, err
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, n, fmt.Errorf("fetch partition %d: %w", p.Partition, err)
			}
		}
	}
	s.id = resp.SessionID
	s.epoch++
	return resp, n, nil
}

// rows counts the partitions in an answer, and those with records.
func rows(r *kmsg.FetchResponse) (all, withRecords int) {
	for _, t := range r.Topics {
		all += len(t.Partitions)
		for _, p := range t.Partitions {
			withRecords += btoi(len(p.RecordBatches) > 0)
		}
	}
	return all, withRecords
}
