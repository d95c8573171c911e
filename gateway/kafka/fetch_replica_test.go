package kafka

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// tiered is a topic with remote storage and one partition of four records, and
// three nodes in as many racks; this one is 1.
func tieredTopic(h *harness) (*broker.Topic, *memLog) {
	t := h.b.topic("a", 1)
	t.Config = metadata.TopicConfig{RemoteStorage: true}
	h.b.setNodes(broker.Node{ID: 1, Rack: "r1"}, broker.Node{ID: 2, Rack: "r2"}, broker.Node{ID: 3, Rack: "r3"}, broker.Node{ID: 4, Rack: "r1"})
	l := h.b.log(t.ID, 0)
	l.append(4, 10)
	return t, l
}

func rackReq(version int16, rack string, parts ...*fetchPart) *kmsg.FetchRequest {
	req := fetchReq(version, 2*time.Second, parts...)
	req.Rack = rack
	return req
}

// sight is one partition of an answer: preferred replica, error, bytes.
func sight(r *kmsg.FetchResponse) string {
	if len(r.Topics) != 1 || len(r.Topics[0].Partitions) != 1 {
		return fmt.Sprint(r.Topics)
	}
	p := r.Topics[0].Partitions[0]
	if len(p.RecordBatches) > 0 {
		return fmt.Sprintf("%d %d data", p.PreferredReadReplica, p.ErrorCode)
	}
	return fmt.Sprintf("%d %d", p.PreferredReadReplica, p.ErrorCode)
}

// The leader sends a consumer with a rack to the replica there, at once and
// without records, for what only the bucket has and others can serve; and not for
// anything else.
func TestFetchSendsAway(t *testing.T) {
	for _, c := range []struct {
		name    string
		version int16
		rack    string
		offset  int64
		indexed int64
		hot     bool
		last    int32
		want    string
	}{
		{name: "in another rack", version: 11, rack: "r2", indexed: 4, last: -1, want: "2 0"},
		{name: "by topic id", version: 13, rack: "r3", offset: 3, indexed: 4, last: -1, want: "3 0"},
		{name: "in the leader's rack", version: 11, rack: "r1", indexed: 4, last: -1, want: "4 0"},
		{name: "no rack", version: 11, indexed: 4, last: -1, want: "-1 0 data"},
		{name: "nobody there", version: 11, rack: "r9", indexed: 4, last: -1, want: "-1 0 data"},
		{name: "old client", version: 10, rack: "r2", indexed: 4, last: -1, want: "-1 0 data"},
		{name: "not indexed", version: 11, rack: "r2", offset: 2, indexed: 2, last: -1, want: "-1 0 data"},
		{name: "on disk", version: 11, rack: "r2", indexed: 4, hot: true, last: -1, want: "-1 0 data"},
		{name: "with a lineage to check", version: 12, rack: "r2", indexed: 4, last: 5, want: "-1 0 data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := serve(t, Limits{})
			a, l := tieredTopic(h)
			if l.indexed.Store(c.indexed); !c.hot {
				l.cold.Store(int64(time.Millisecond))
			}
			part := want(a, 0, c.offset)
			part.lastEpoch = c.last
			began := time.Now()
			got := sight(ask[*kmsg.FetchResponse](h.dial(), rackReq(c.version, c.rack, part)))
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("took %v: the answer waited", took)
			}
			if reads := l.reads.Load(); c.want[0] != '-' && reads != 1 {
				t.Errorf("the leader read %d times", reads)
			}
		})
	}
}

// A consumer that comes back is served by the leader for a while, in a session too.
func TestFetchSentAwayOnce(t *testing.T) {
	for _, session := range []bool{false, true} {
		h := serve(t, Limits{})
		a, l := tieredTopic(h)
		l.cold.Store(int64(time.Millisecond))
		l.indexed.Store(4)
		w := h.dial()
		req := rackReq(11, "r2", want(a, 0, 0))
		if session {
			req.SessionEpoch = 0
		}
		resp := ask[*kmsg.FetchResponse](w, req)
		if got := sight(resp); got != "2 0" {
			t.Fatalf("session %v: first answer is %q", session, got)
		}
		if session {
			req = rackReq(11, "r2")
			req.SessionID, req.SessionEpoch = resp.SessionID, 1
		}
		if got := sight(ask[*kmsg.FetchResponse](w, req)); got != "-1 0 data" {
			t.Errorf("session %v: second answer is %q", session, got)
		}
		if got := sight(ask[*kmsg.FetchResponse](h.dial(), rackReq(11, "r2", want(a, 0, 0)))); got != "2 0" {
			t.Errorf("session %v: another client is told %q", session, got)
		}
	}
}

func TestAwayList(t *testing.T) {
	var l awayList
	now := time.Now()
	tp := func(i int32) ids.TopicPartition { return ids.TopicPartition{Partition: i} }
	if !l.send(tp(0), now) || l.send(tp(0), now.Add(awayPause-1)) || !l.send(tp(0), now.Add(awayPause)) {
		t.Error("sent twice within a minute, or never again")
	}
	for i := range int32(2 * awayMax) {
		l.send(tp(i), now.Add(awayPause))
	}
	if len(l) > awayMax {
		t.Errorf("%d are kept", len(l))
	}
	if !l.send(tp(3*awayMax), now.Add(3*awayPause)) {
		t.Error("a full list never empties")
	}
}

// A replica serves what it has and then names the leader, at once. A client
// without a rack, or an old one, gets the error alone.
func TestFetchFromFollower(t *testing.T) {
	h := serve(t, Limits{})
	a, l := tieredTopic(h)
	h.b.lead(a, 0, 3)
	w := h.dial()
	notLeader := kerr.NotLeaderForPartition.Code
	for _, c := range []struct {
		rack    string
		version int16
		offset  int64
		want    string
	}{
		{"r1", 11, 0, "-1 0 data"},
		{"", 12, 2, "-1 0 data"},
		{"r1", 11, 4, fmt.Sprintf("3 %d", notLeader)},
		{"r1", 17, 9, fmt.Sprintf("3 %d", notLeader)},
		{"", 11, 4, fmt.Sprintf("-1 %d", notLeader)},
		{"r1", 10, 4, fmt.Sprintf("-1 %d", notLeader)},
	} {
		began := time.Now()
		part := want(a, 0, c.offset)
		part.epoch = 6 // older than the leader's: no matter here
		got := sight(ask[*kmsg.FetchResponse](w, rackReq(c.version, c.rack, part)))
		if got != c.want {
			t.Errorf("v%d of rack %q at %d: got %q, want %q", c.version, c.rack, c.offset, got, c.want)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("v%d of rack %q at %d: took %v", c.version, c.rack, c.offset, took)
		}
	}
	if got := h.b.logs[ids.TopicPartition{Topic: a.ID}]; got != l || l.open.Load() > 0 {
		t.Error("results are kept")
	}
}

// A partition of a session that this agent begins to lead is then read as such.
func TestFetchFollowerLeads(t *testing.T) {
	h := serve(t, Limits{})
	a, l := tieredTopic(h)
	h.b.lead(a, 0, 3)
	w := h.dial()
	req := rackReq(11, "r1", want(a, 0, 4))
	req.SessionEpoch = 0
	resp := ask[*kmsg.FetchResponse](w, req)
	if got := sight(resp); got != fmt.Sprintf("3 %d", kerr.NotLeaderForPartition.Code) {
		t.Fatalf("got %q", got)
	}
	h.b.lead(a, 0, 1)
	go func() {
		time.Sleep(50 * time.Millisecond)
		l.append(1, 10)
	}()
	req = rackReq(11, "r1")
	req.SessionID, req.SessionEpoch, req.MaxWaitMillis = resp.SessionID, 1, 10_000
	began := time.Now()
	if got := sight(ask[*kmsg.FetchResponse](w, req)); got != "-1 0 data" || time.Since(began) > 5*time.Second {
		t.Errorf("got %q after %v", got, time.Since(began))
	}
}

// What only the leader answers is not asked of others.
func TestFollowerRefuses(t *testing.T) {
	h := serve(t, Limits{})
	a, _ := tieredTopic(h)
	h.b.lead(a, 0, 3)
	w := h.dial()
	code := kerr.NotLeaderForPartition.Code
	if r := ask[*kmsg.ProduceResponse](w, produceReq(9, -1, a, 0, batchOf(1, 1))); r.Topics[0].Partitions[0].ErrorCode != code {
		t.Errorf("produce: %+v", r)
	}
	list := kmsg.NewPtrListOffsetsRequest()
	list.Version = 7
	list.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: a.Name, Partitions: []kmsg.ListOffsetsRequestTopicPartition{{CurrentLeaderEpoch: -1, Timestamp: -1}}}}
	if r := ask[*kmsg.ListOffsetsResponse](w, list); r.Topics[0].Partitions[0].ErrorCode != code {
		t.Errorf("list offsets: %+v", r)
	}
	end := kmsg.NewPtrOffsetForLeaderEpochRequest()
	end.Version = 3
	end.Topics = []kmsg.OffsetForLeaderEpochRequestTopic{{Topic: a.Name, Partitions: []kmsg.OffsetForLeaderEpochRequestTopicPartition{{CurrentLeaderEpoch: -1, LeaderEpoch: 1}}}}
	if r := ask[*kmsg.OffsetForLeaderEpochResponse](w, end); r.Topics[0].Partitions[0].ErrorCode != code {
		t.Errorf("offset for leader epoch: %+v", r)
	}
	del := kmsg.NewPtrDeleteRecordsRequest()
	del.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: a.Name, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Offset: 1}}}}
	if r := ask[*kmsg.DeleteRecordsResponse](w, del); r.Topics[0].Partitions[0].ErrorCode != code {
		t.Errorf("delete records: %+v", r)
	}
}

// Clients are told the leader first, then one agent of each rack; the same by
// both requests that tell.
func TestReplicasTold(t *testing.T) {
	h := serve(t, Limits{})
	a, _ := tieredTopic(h)
	plain := h.b.topic("b", 1)
	w := h.dial()
	req := kmsg.NewPtrMetadataRequest()
	req.Version = 12
	for _, topic := range []*broker.Topic{a, plain} {
		want := map[string][]int32{"a": {1, 2, 3, 4}, "b": {1}}[topic.Name]
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = &topic.Name
		req.Topics = []kmsg.MetadataRequestTopic{rt}
		p := ask[*kmsg.MetadataResponse](w, req).Topics[0].Partitions[0]
		if !slices.Equal(p.Replicas, want) || !slices.Equal(p.ISR, want) || p.Leader != 1 {
			t.Errorf("%s: metadata says %+v, want %v", topic.Name, p, want)
		}
		desc := kmsg.NewPtrDescribeTopicPartitionsRequest()
		desc.ResponsePartitionLimit = 10
		desc.Topics = []kmsg.DescribeTopicPartitionsRequestTopic{{Topic: topic.Name}}
		d := ask[*kmsg.DescribeTopicPartitionsResponse](w, desc).Topics[0].Partitions[0]
		if !slices.Equal(d.Replicas, want) || !slices.Equal(d.ISR, want) {
			t.Errorf("%s: describe says %+v, want %v", topic.Name, d, want)
		}
	}
}

// In a session the client is sent away too when nothing else of the partition is new.
func TestFetchSendsAwayInSession(t *testing.T) {
	h := serve(t, Limits{})
	a, l := tieredTopic(h)
	w := h.dial()
	req := rackReq(11, "r2", want(a, 0, 4))
	req.SessionEpoch, req.MaxWaitMillis = 0, 0
	resp := ask[*kmsg.FetchResponse](w, req)
	if got := sight(resp); got != "-1 0" {
		t.Fatalf("at the end: %q", got)
	}
	l.cold.Store(int64(time.Millisecond))
	l.indexed.Store(4)
	req = rackReq(11, "r2", want(a, 0, 0))
	req.SessionID, req.SessionEpoch = resp.SessionID, 1
	if got := sight(ask[*kmsg.FetchResponse](w, req)); got != "2 0" {
		t.Errorf("sought back: %q", got)
	}
}
