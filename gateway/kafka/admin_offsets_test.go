package kafka

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
)

func listTopic(name string, partitions ...kmsg.ListOffsetsRequestTopicPartition) kmsg.ListOffsetsRequestTopic {
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic, t.Partitions = name, partitions
	return t
}

func listAt(partition int32, ts int64, epoch int32) kmsg.ListOffsetsRequestTopicPartition {
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Partition, p.Timestamp, p.CurrentLeaderEpoch = partition, ts, epoch
	return p
}

func TestListOffsets(t *testing.T) {
	// from which version on each special timestamp is known
	since := map[int64]int16{-1: 1, -2: 1, -3: 7, -4: 8, -5: 9, -6: 11, -7: 99, -1 << 63: 99, 0: 1, 1234: 1}
	versions(t, 2, 1, 11, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		b.add("logs", 1)
		req := kmsg.NewPtrListOffsetsRequest()
		var asked []int64
		for ts := range since {
			b.part("logs", 0).offsets[ts] = broker.OffsetAt{Offset: 1000 + ts, Timestamp: ts, LeaderEpoch: 4}
			asked = append(asked, ts)
			req.Topics = append(req.Topics, listTopic("logs", listAt(0, ts, -1)))
		}
		resp := roundTrip[*kmsg.ListOffsetsResponse](t, b, req, v)
		if len(resp.Topics) != len(asked) {
			t.Fatalf("%d answers, want %d", len(resp.Topics), len(asked))
		}
		for i, ts := range asked {
			p := resp.Topics[i].Partitions[0]
			if v < since[ts] {
				wantCode(t, "timestamp not yet known", p.ErrorCode, kerr.UnsupportedVersion)
				if p.Offset != -1 || p.Timestamp != -1 {
					t.Errorf("timestamp %d: an error with offset %d", ts, p.Offset)
				}
				continue
			}
			wantCode(t, "timestamp", p.ErrorCode, nil)
			if p.Offset != 1000+ts || p.Timestamp != ts {
				t.Errorf("timestamp %d: %+v", ts, p)
			}
			if v >= 4 && p.LeaderEpoch != 4 {
				t.Errorf("timestamp %d: leader epoch %d", ts, p.LeaderEpoch)
			}
		}
	})
}

func TestListOffsetsErrors(t *testing.T) {
	versions(t, 2, 1, 11, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		b.add("logs", 3)
		b.part("logs", 0).offsets[-1] = broker.OffsetAt{Offset: 100, Timestamp: -1, LeaderEpoch: 5}
		b.part("logs", 1).err = broker.ErrStorage
		req := kmsg.NewPtrListOffsetsRequest()
		req.Topics = append(req.Topics,
			listTopic("logs", listAt(0, -1, 4), listAt(0, -1, 5), listAt(0, -1, 6), listAt(1, -1, -1), listAt(2, 99, -1), listAt(3, -1, -1), listAt(-1, -1, -1)),
			listTopic("missing", listAt(0, -1, -1)))
		want := []*kerr.Error{kerr.FencedLeaderEpoch, nil, kerr.UnknownLeaderEpoch, kerr.KafkaStorageError, nil, kerr.UnknownTopicOrPartition, kerr.UnknownTopicOrPartition}
		if v < 4 { // without epochs in the request
			want[0], want[2] = nil, nil
		}
		resp := roundTrip[*kmsg.ListOffsetsResponse](t, b, req, v)
		ps := resp.Topics[0].Partitions
		if len(ps) != len(want) {
			t.Fatalf("%d answers", len(ps))
		}
		for i, p := range ps {
			if p.Partition != req.Topics[0].Partitions[i].Partition {
				t.Errorf("answer %d is for partition %d", i, p.Partition)
			}
			wantCode(t, "partition", p.ErrorCode, want[i])
			if want[i] != nil && p.Offset != -1 {
				t.Errorf("answer %d: an error with offset %d", i, p.Offset)
			}
		}
		if ps[1].Offset != 100 || ps[4].Offset != -1 {
			t.Errorf("offsets %d and %d, want 100 and none", ps[1].Offset, ps[4].Offset)
		}
		wantCode(t, "missing topic", resp.Topics[1].Partitions[0].ErrorCode, kerr.UnknownTopicOrPartition)
	})
}

// Many lookups in the bucket go on at once, but not all of them.
func TestListOffsetsConcurrency(t *testing.T) {
	const partitions = 3 * concurrentLookups
	b := newAdminBroker(t)
	b.add("logs", partitions)
	running, most, gate := new(atomic.Int32), new(atomic.Int32), make(chan struct{})
	req := kmsg.NewPtrListOffsetsRequest()
	topic := listTopic("logs")
	for i := range int32(partitions) {
		p := b.part("logs", i)
		p.running, p.most, p.gate = running, most, gate
		p.offsets[50] = broker.OffsetAt{Offset: int64(i), Timestamp: 50, LeaderEpoch: 5}
		topic.Partitions = append(topic.Partitions, listAt(i, 50, -1))
	}
	req.Topics = append(req.Topics, topic)
	opener := make(chan struct{})
	go func() {
		defer close(opener)
		for deadline := time.Now().Add(5 * time.Second); running.Load() < concurrentLookups && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond) // more of them would start now
		close(gate)
	}()
	resp := roundTrip[*kmsg.ListOffsetsResponse](t, b, req, 11)
	<-opener
	if n := most.Load(); n != concurrentLookups {
		t.Errorf("%d lookups at once, want %d", n, concurrentLookups)
	}
	for i, p := range resp.Topics[0].Partitions {
		if p.Partition != int32(i) || p.Offset != int64(i) {
			t.Errorf("answer %d: partition %d offset %d", i, p.Partition, p.Offset)
		}
	}
}

// A client that has gone ends its lookups.
func TestListOffsetsCanceled(t *testing.T) {
	b := newAdminBroker(t)
	b.add("logs", 1)
	p := b.part("logs", 0)
	p.running, p.most, p.gate = new(atomic.Int32), new(atomic.Int32), make(chan struct{})
	req := kmsg.NewPtrListOffsetsRequest()
	req.SetVersion(5)
	req.Topics = append(req.Topics, listTopic("logs", listAt(0, 5, -1)))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	resp, err := NewServer(Options{Broker: b}).listOffsets(ctx, nil, req)
	if err != nil {
		t.Fatal(err)
	}
	if out := resp.(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]; out.ErrorCode == 0 || out.Offset != -1 {
		t.Errorf("a canceled lookup found %+v", out)
	}
}

func TestOffsetForLeaderEpoch(t *testing.T) {
	versions(t, 23, 2, 4, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		b.add("logs", 2)
		b.part("logs", 0).ends[3] = broker.EpochEnd{Epoch: 2, EndOffset: 77}
		b.part("logs", 1).err = broker.ErrNotLeader
		req := kmsg.NewPtrOffsetForLeaderEpochRequest()
		rt := kmsg.NewOffsetForLeaderEpochRequestTopic()
		rt.Topic = "logs"
		for _, a := range [][3]int32{{0, -1, 3}, {0, 5, 3}, {0, 4, 3}, {0, 6, 3}, {0, 5, 9}, {1, -1, 3}, {2, -1, 3}} {
			p := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
			p.Partition, p.CurrentLeaderEpoch, p.LeaderEpoch = a[0], a[1], a[2]
			rt.Partitions = append(rt.Partitions, p)
		}
		req.Topics = append(req.Topics, rt)
		want := []struct {
			code  *kerr.Error
			epoch int32
			end   int64
		}{{nil, 2, 77}, {nil, 2, 77}, {kerr.FencedLeaderEpoch, -1, -1}, {kerr.UnknownLeaderEpoch, -1, -1}, {nil, -1, -1},
			{kerr.NotLeaderForPartition, -1, -1}, {kerr.UnknownTopicOrPartition, -1, -1}}
		resp := roundTrip[*kmsg.OffsetForLeaderEpochResponse](t, b, req, v)
		if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != len(want) {
			t.Fatalf("%+v", resp.Topics)
		}
		for i, p := range resp.Topics[0].Partitions {
			wantCode(t, "partition", p.ErrorCode, want[i].code)
			if p.Partition != rt.Partitions[i].Partition || p.LeaderEpoch != want[i].epoch || p.EndOffset != want[i].end {
				t.Errorf("answer %d: %+v, want %+v", i, p, want[i])
			}
		}
	})
}

func TestDeleteRecords(t *testing.T) {
	versions(t, 21, 0, 2, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		b.add("logs", 4)
		b.part("logs", 3).err = metadata.ErrUnavailable
		req := kmsg.NewPtrDeleteRecordsRequest()
		for _, name := range []string{"logs", "missing"} {
			rt := kmsg.NewDeleteRecordsRequestTopic()
			rt.Topic = name
			for p, before := range []int64{40, -1, 101, 5, 0} {
				rp := kmsg.NewDeleteRecordsRequestTopicPartition()
				rp.Partition, rp.Offset = int32(p), before
				rt.Partitions = append(rt.Partitions, rp)
			}
			req.Topics = append(req.Topics, rt)
		}
		want := []*kerr.Error{nil, nil, kerr.OffsetOutOfRange, kerr.RequestTimedOut, kerr.UnknownTopicOrPartition}
		low := []int64{40, 100, -1, -1, -1}
		resp := roundTrip[*kmsg.DeleteRecordsResponse](t, b, req, v)
		if len(resp.Topics) != 2 || len(resp.Topics[0].Partitions) != len(want) || len(resp.Topics[1].Partitions) != len(want) {
			t.Fatalf("%+v", resp.Topics)
		}
		for i, p := range resp.Topics[0].Partitions {
			wantCode(t, "partition", p.ErrorCode, want[i])
			if p.Partition != int32(i) || p.LowWatermark != low[i] {
				t.Errorf("answer %d: %+v", i, p)
			}
			wantCode(t, "missing topic", resp.Topics[1].Partitions[i].ErrorCode, kerr.UnknownTopicOrPartition)
		}
	})
}

func TestInitProducerID(t *testing.T) {
	versions(t, 22, 0, 5, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		seen := map[int64]bool{}
		for i := range 3 {
			req := kmsg.NewPtrInitProducerIDRequest()
			if i > 0 { // bump of the epoch, from v3
				req.ProducerID, req.ProducerEpoch = 1001, 7
			}
			resp := roundTrip[*kmsg.InitProducerIDResponse](t, b, req, v)
			wantCode(t, "idempotent", resp.ErrorCode, nil)
			if resp.ProducerID <= 0 || resp.ProducerEpoch != 0 || seen[resp.ProducerID] {
				t.Errorf("producer id %d, epoch %d", resp.ProducerID, resp.ProducerEpoch)
			}
			seen[resp.ProducerID] = true
		}
		for _, id := range []string{"tx-1", ""} {
			req := kmsg.NewPtrInitProducerIDRequest()
			req.TransactionalID = &id
			resp := roundTrip[*kmsg.InitProducerIDResponse](t, b, req, v)
			wantCode(t, "transactional", resp.ErrorCode, kerr.InvalidRequest)
			if resp.ProducerID != -1 || resp.ProducerEpoch != -1 {
				t.Errorf("refused with producer id %d", resp.ProducerID)
			}
			if kerr.IsRetriable(kerr.ErrorForCode(resp.ErrorCode)) {
				t.Error("clients would try again for ever")
			}
		}
		b.fail["InitProducerID"] = metadata.ErrUnavailable
		resp := roundTrip[*kmsg.InitProducerIDResponse](t, b, kmsg.NewPtrInitProducerIDRequest(), v)
		wantCode(t, "unavailable", resp.ErrorCode, kerr.RequestTimedOut)
		if resp.ProducerID != -1 || resp.ProducerEpoch != -1 {
			t.Errorf("failed with producer id %d", resp.ProducerID)
		}
	})
}
