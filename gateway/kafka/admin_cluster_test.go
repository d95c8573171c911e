package kafka

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

func TestDescribeCluster(t *testing.T) {
	versions(t, 60, 0, 2, func(t *testing.T, v int16) {
		resp := roundTrip[*kmsg.DescribeClusterResponse](t, newAdminBroker(t), kmsg.NewPtrDescribeClusterRequest(), v)
		wantCode(t, "cluster", resp.ErrorCode, nil)
		if resp.ClusterID != "cluster-1" || resp.ControllerID != 1 || len(resp.Brokers) != 2 {
			t.Fatalf("%+v", resp)
		}
		one, two := resp.Brokers[0], resp.Brokers[1]
		if one.NodeID != 1 || one.Host != "one" || one.Port != 9092 || text(one.Rack) != "a" || one.IsFenced {
			t.Errorf("%+v", one)
		}
		if two.NodeID != 2 || two.Host != "two" || two.Port != 9093 || two.Rack != nil {
			t.Errorf("%+v", two)
		}
		if resp.ClusterAuthorizedOperations != math.MinInt32 {
			t.Errorf("authorized operations %d although there is no authorization", resp.ClusterAuthorizedOperations)
		}
	})
}

func TestDescribeClusterControllers(t *testing.T) {
	for v := int16(1); v <= 2; v++ {
		req := kmsg.NewPtrDescribeClusterRequest()
		req.EndpointType = 2
		resp := roundTrip[*kmsg.DescribeClusterResponse](t, newAdminBroker(t), req, v)
		wantCode(t, "controllers", resp.ErrorCode, kerr.MismatchedEndpointType)
		if len(resp.Brokers) != 0 {
			t.Errorf("v%d: %d controllers", v, len(resp.Brokers))
		}
	}
}

func TestDescribeLogDirs(t *testing.T) {
	versions(t, 35, 1, 5, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		logs, other := b.add("logs", 3), b.add("other", 1)
		tp := func(t *broker.Topic, p int32) ids.TopicPartition {
			return ids.TopicPartition{Topic: t.ID, Partition: p}
		}
		b.dirs = []broker.LogDir{
			{Path: "/data", Total: 1000, Usable: 400, Partitions: map[ids.TopicPartition]int64{tp(logs, 2): 30, tp(logs, 0): 10, tp(other, 0): 5,
				{Topic: ids.TopicID{1: 9}}: 99}}, // a topic that was deleted meanwhile
			{Path: "s3://bucket", Total: -1, Usable: -1, Partitions: map[ids.TopicPartition]int64{tp(logs, 0): 700}}}
		all := kmsg.NewPtrDescribeLogDirsRequest()
		all.Topics = nil
		some := kmsg.NewPtrDescribeLogDirsRequest()
		rt := kmsg.NewDescribeLogDirsRequestTopic()
		rt.Topic, rt.Partitions = "logs", []int32{2, 0, 9}
		missing := kmsg.NewDescribeLogDirsRequestTopic()
		missing.Topic, missing.Partitions = "missing", []int32{0}
		some.Topics = append(some.Topics, rt, missing)
		want := map[*kmsg.DescribeLogDirsRequest][]string{
			all:  {"/data logs-0 10", "/data logs-2 30", "/data other-0 5", "s3://bucket logs-0 700"},
			some: {"/data logs-0 10", "/data logs-2 30", "s3://bucket logs-0 700"},
		}
		for req, lines := range want {
			resp := roundTrip[*kmsg.DescribeLogDirsResponse](t, b, req, v)
			wantCode(t, "log dirs", resp.ErrorCode, nil)
			var got []string
			for _, d := range resp.Dirs {
				wantCode(t, d.Dir, d.ErrorCode, nil)
				for _, rt := range d.Topics {
					if len(rt.Partitions) == 0 {
						t.Errorf("%s lists %s without partitions", d.Dir, rt.Topic)
					}
					for _, p := range rt.Partitions {
						got = append(got, fmt.Sprintf("%s %s-%d %d", d.Dir, rt.Topic, p.Partition, p.Size))
					}
				}
			}
			if !slices.Equal(got, lines) {
				t.Errorf("got %q, want %q", got, lines)
			}
			if v >= 4 && (resp.Dirs[0].TotalBytes != 1000 || resp.Dirs[0].UsableBytes != 400 || resp.Dirs[1].TotalBytes != -1) {
				t.Errorf("sizes %+v", resp.Dirs)
			}
		}
	})
}

// pages reads everything by pages of limit and returns "topic-partition" of all.
func pages(t *testing.T, b Broker, limit int32, topics ...string) (got []string, count int) {
	t.Helper()
	var cursor *kmsg.DescribeTopicPartitionsRequestCursor
	for count < 100 {
		req := kmsg.NewPtrDescribeTopicPartitionsRequest()
		req.ResponsePartitionLimit, req.Cursor = limit, cursor
		for _, name := range topics {
			rt := kmsg.NewDescribeTopicPartitionsRequestTopic()
			rt.Topic = name
			req.Topics = append(req.Topics, rt)
		}
		resp := roundTrip[*kmsg.DescribeTopicPartitionsResponse](t, b, req, 0)
		count++
		n := 0
		for _, rt := range resp.Topics {
			wantCode(t, text(rt.Topic), rt.ErrorCode, nil)
			for _, p := range rt.Partitions {
				n++
				got = append(got, fmt.Sprintf("%s-%d", text(rt.Topic), p.Partition))
			}
		}
		if limit > 0 && n > int(limit) {
			t.Errorf("%d partitions in a page, limit %d", n, limit)
		}
		if resp.NextCursor == nil {
			return got, count
		}
		c := kmsg.NewDescribeTopicPartitionsRequestCursor()
		c.Topic, c.Partition = resp.NextCursor.Topic, resp.NextCursor.Partition
		cursor = &c
	}
	t.Fatalf("no end after %d pages", count)
	return nil, 0
}

func TestDescribeTopicPartitionsPages(t *testing.T) {
	b := newAdminBroker(t)
	b.add("b", 3)
	b.add("a", 2)
	b.add("c", 1)
	all := []string{"a-0", "a-1", "b-0", "b-1", "b-2", "c-0"}
	for limit, wantPages := range map[int32]int{0: 1, 1: 6, 2: 3, 3: 2, 4: 2, 5: 2, 6: 1, 100: 1} {
		got, n := pages(t, b, limit)
		if !slices.Equal(got, all) || n != wantPages {
			t.Errorf("limit %d: %d pages with %v", limit, n, got)
		}
	}
	if got, _ := pages(t, b, 2, "c", "a"); !slices.Equal(got, []string{"a-0", "a-1", "c-0"}) {
		t.Errorf("of two topics: %v", got)
	}
	b.add("big", maxPartitionsPage+1)
	if got, n := pages(t, b, math.MaxInt32, "big"); len(got) != maxPartitionsPage+1 || n != 2 {
		t.Errorf("%d partitions in %d pages", len(got), n)
	}
}

func TestDescribeTopicPartitions(t *testing.T) {
	versions(t, 75, 0, 0, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		logs := b.add("logs", 1)
		req := kmsg.NewPtrDescribeTopicPartitionsRequest()
		for _, name := range []string{"logs", "missing", "bad/name"} {
			rt := kmsg.NewDescribeTopicPartitionsRequestTopic()
			rt.Topic = name
			req.Topics = append(req.Topics, rt)
		}
		resp := roundTrip[*kmsg.DescribeTopicPartitionsResponse](t, b, req, v)
		want := map[string]*kerr.Error{"missing": kerr.UnknownTopicOrPartition, "bad/name": kerr.InvalidTopicException}
		if len(resp.Topics) != 3 || resp.NextCursor != nil {
			t.Fatalf("%+v", resp)
		}
		for _, rt := range resp.Topics {
			name := text(rt.Topic)
			wantCode(t, name, rt.ErrorCode, want[name])
			if name != "logs" {
				continue
			}
			if ids.TopicID(rt.TopicID) != logs.ID || len(rt.Partitions) != 1 {
				t.Fatalf("%+v", rt)
			}
			p := rt.Partitions[0]
			if p.LeaderID != 1 || p.LeaderEpoch != 5 || !slices.Equal(p.Replicas, []int32{1}) || !slices.Equal(p.ISR, []int32{1}) {
				t.Errorf("%+v", p)
			}
			if p.EligibleLeaderReplicas == nil || p.LastKnownELR == nil {
				t.Error("null lists, which kafka-topics.sh --describe does not survive")
			}
		}
	})
}

// A partition that can't be reached has no leader, and a topic that is asked
// for twice is described once.
func TestDescribeTopicPartitionsWithoutLeader(t *testing.T) {
	b := newAdminBroker(t)
	logs := b.add("logs", 2)
	delete(b.parts, ids.TopicPartition{Topic: logs.ID, Partition: 1})
	req := kmsg.NewPtrDescribeTopicPartitionsRequest()
	for range 2 {
		rt := kmsg.NewDescribeTopicPartitionsRequestTopic()
		rt.Topic = "logs"
		req.Topics = append(req.Topics, rt)
	}
	resp := roundTrip[*kmsg.DescribeTopicPartitionsResponse](t, b, req, 0)
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 2 {
		t.Fatalf("%+v", resp.Topics)
	}
	wantCode(t, "reached", resp.Topics[0].Partitions[0].ErrorCode, nil)
	p := resp.Topics[0].Partitions[1]
	wantCode(t, "not reached", p.ErrorCode, kerr.LeaderNotAvailable)
	if p.LeaderID != -1 {
		t.Errorf("leader %d", p.LeaderID)
	}
}

// A deleted topic that a cursor points to must not hide what comes behind it.
func TestDescribeTopicPartitionsCursorOfDeletedTopic(t *testing.T) {
	b := newAdminBroker(t)
	b.add("a", 1)
	b.add("c", 1)
	req := kmsg.NewPtrDescribeTopicPartitionsRequest()
	c := kmsg.NewDescribeTopicPartitionsRequestCursor()
	c.Topic, c.Partition = "b", 3
	req.Cursor = &c
	resp := roundTrip[*kmsg.DescribeTopicPartitionsResponse](t, b, req, 0)
	if len(resp.Topics) != 1 || text(resp.Topics[0].Topic) != "c" || len(resp.Topics[0].Partitions) != 1 {
		t.Errorf("%+v", resp.Topics)
	}
}

// adminKeys are the APIs of which any decodable request may be handled
// without a connection.
func adminKeys() []int16 { return []int16{2, 19, 20, 21, 22, 23, 32, 33, 35, 37, 44, 60, 75} }

// FuzzAdminRequest: whatever bytes decode as a request get an answer that
// encodes at the request's version, without a panic.
func FuzzAdminRequest(f *testing.F) {
	f.Add(uint8(0), uint8(0), []byte{})
	for i, key := range adminKeys() {
		req := kmsg.RequestForKey(key)
		for v := range req.MaxVersion() + 1 {
			req.SetVersion(v)
			f.Add(uint8(i), uint8(v), req.AppendTo(nil))
		}
	}
	f.Fuzz(func(t *testing.T, k, version uint8, body []byte) {
		keys := adminKeys()
		b := newAdminBroker(t)
		b.add("logs", 2)
		s := NewServer(Options{Broker: b})
		a := s.apis[keys[int(k)%len(keys)]]
		v := a.min + int16(version)%(a.max-a.min+1)
		req := kmsg.RequestForKey(a.key)
		req.SetVersion(v)
		if len(body) > 4096 {
			return
		}
		if _, err := check(body, a.schema, v, req.IsFlexible()); err != nil || req.ReadFrom(body) != nil {
			return
		}
		resp, err := a.handle(context.Background(), nil, req)
		if err != nil {
			return
		}
		out := req.ResponseKind()
		out.SetVersion(v)
		if err := out.ReadFrom(resp.AppendTo(nil)); err != nil {
			t.Fatalf("%s v%d: response does not decode: %v", a.name, v, err)
		}
	})
}
