package kafka

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
)

func joinReq(version int16) *kmsg.JoinGroupRequest {
	req := kmsg.NewPtrJoinGroupRequest()
	req.Version, req.Group, req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = version, "g", 10_000, 20_000
	req.ProtocolType = "consumer"
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name, p.Metadata = "range", []byte("what I want")
	req.Protocols = append(req.Protocols, p)
	return req
}

// A join keeps later requests of its connection waiting, and no others; when it
// is answered they are, in order.
func TestJoinGroupWaits(t *testing.T) {
	h := serve(t, Limits{})
	asked, answer := make(chan group.JoinRequest, 1), make(chan *group.JoinResponse)
	h.b.groups.join = func(_ context.Context, req group.JoinRequest) (*group.JoinResponse, error) {
		asked <- req
		return <-answer, nil
	}
	w := h.dial()
	beat := kmsg.NewPtrHeartbeatRequest()
	beat.Version = 4
	w.send(append(append(frameOf(joinReq(9), 1), frameOf(beat, 2)...), frameOf(beat, 3)...))
	got := <-asked
	if got.ClientID != "test" || got.ClientHost != "/127.0.0.1" || got.SessionTimeout != 10*time.Second || got.RebalanceTimeout != 20*time.Second {
		t.Errorf("asked to join as %+v", got)
	}
	md := kmsg.NewPtrApiVersionsRequest()
	if resp := ask[*kmsg.ApiVersionsResponse](h.dial(), md); resp.ErrorCode != 0 {
		t.Errorf("another connection: code %d", resp.ErrorCode)
	}
	answer <- &group.JoinResponse{Generation: 3, ProtocolType: "consumer", ProtocolName: "range", Leader: "a", MemberID: "a",
		Members: []group.JoinMember{{MemberID: "a", InstanceID: "i", Metadata: got.Protocols[0].Metadata}, {MemberID: "b"}}}
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.Version = 9
	if corr := w.answer(resp); corr != 1 {
		t.Fatalf("answer to %d first", corr)
	}
	m := resp.Members
	if resp.Generation != 3 || *resp.Protocol != "range" || *resp.ProtocolType != "consumer" || len(m) != 2 || *m[0].InstanceID != "i" ||
		string(m[0].ProtocolMetadata) != "what I want" || m[1].InstanceID != nil {
		t.Errorf("answered %+v", resp)
	}
	for _, want := range []int32{2, 3} {
		r := kmsg.NewPtrHeartbeatResponse()
		r.Version = 4
		if corr := w.answer(r); corr != want {
			t.Fatalf("answer to %d, want %d", corr, want)
		}
	}
	if resp := ask[*kmsg.HeartbeatResponse](w, beat); resp.ErrorCode != 0 { // the connection is as before
		t.Errorf("code %d", resp.ErrorCode)
	}
}

// A join that waits ends when its client goes, also one that has sent more,
// and when the server stops.
func TestJoinGroupGivenUp(t *testing.T) {
	for _, how := range []string{"client closes", "client closes, more was sent", "server stops"} {
		t.Run(how, func(t *testing.T) {
			h := serve(t, Limits{})
			asked, ended := make(chan struct{}), make(chan struct{})
			h.b.groups.join = func(ctx context.Context, _ group.JoinRequest) (*group.JoinResponse, error) {
				close(asked)
				<-ctx.Done()
				close(ended)
				return nil, context.Cause(ctx)
			}
			w := h.dial()
			b := frameOf(joinReq(9), 1)
			if how == "client closes, more was sent" {
				b = append(b, frameOf(kmsg.NewPtrHeartbeatRequest(), 2)...)
			}
			w.send(b)
			<-asked
			if how == "server stops" {
				go h.s.Shutdown(context.Background())
			} else {
				w.nc.Close()
			}
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Fatal("still waiting")
			}
		})
	}
}

// What members offer is not in the frame, which others will use.
func TestGroupBytesAreCopies(t *testing.T) {
	h := serve(t, Limits{})
	joins, syncs := make(chan group.JoinRequest, 30), make(chan group.SyncRequest, 1)
	h.b.groups.join = func(_ context.Context, req group.JoinRequest) (*group.JoinResponse, error) {
		joins <- req
		return &group.JoinResponse{}, nil
	}
	h.b.groups.sync = func(_ context.Context, req group.SyncRequest) (*group.SyncResponse, error) {
		syncs <- req
		return &group.SyncResponse{Assignment: []byte("yours")}, nil
	}
	w := h.dial()
	ask[*kmsg.JoinGroupResponse](w, joinReq(5))
	sync := kmsg.NewPtrSyncGroupRequest()
	a := kmsg.NewSyncGroupRequestGroupAssignment()
	a.MemberID, a.MemberAssignment = "a", []byte("what I want")
	sync.GroupAssignment = append(sync.GroupAssignment, a)
	if resp := ask[*kmsg.SyncGroupResponse](w, sync); string(resp.MemberAssignment) != "yours" {
		t.Errorf("assignment %q", resp.MemberAssignment)
	}
	other := joinReq(5)
	other.Protocols[0].Metadata = slices.Repeat([]byte("x"), 1000)
	first, data := (<-joins).Protocols[0].Metadata, (<-syncs).Assignments[0].Data
	for range 20 {
		ask[*kmsg.JoinGroupResponse](w, other)
	}
	if string(first) != "what I want" || string(data) != "what I want" {
		t.Errorf("changed to %q and %q", first, data)
	}
}

func TestJoinGroupVersions(t *testing.T) {
	h := serve(t, Limits{})
	joins, fail := make(chan group.JoinRequest, 1), make(chan error, 1)
	h.b.groups.join = func(_ context.Context, req group.JoinRequest) (*group.JoinResponse, error) {
		select {
		case err := <-fail:
			return nil, err
		case joins <- req:
			return &group.JoinResponse{Err: group.ErrMemberIDRequired, Generation: -1, MemberID: "new"}, nil
		}
	}
	w := h.dial()
	for v := int16(0); v <= 9; v++ {
		resp := ask[*kmsg.JoinGroupResponse](w, joinReq(v))
		got := <-joins
		wantCode(t, "join", resp.ErrorCode, kerr.MemberIDRequired)
		if (got.RebalanceTimeout < 0) != (v == 0) || got.Version != v {
			t.Errorf("v%d: asked with %+v", v, got)
		}
		if (resp.Protocol == nil) != (v >= 7) || resp.ProtocolType != nil || resp.MemberID != "new" || resp.Generation != -1 {
			t.Errorf("v%d: answered %+v", v, resp)
		}
	}
	joins <- group.JoinRequest{} // full: now all fail
	for e, want := range map[error]*kerr.Error{broker.ErrGroupsLoading: kerr.CoordinatorLoadInProgress, group.ErrNotCoordinator: kerr.NotCoordinator,
		group.ErrCoordinatorNotAvailable: kerr.CoordinatorNotAvailable} {
		fail <- e
		resp := ask[*kmsg.JoinGroupResponse](w, joinReq(9))
		wantCode(t, "join", resp.ErrorCode, want)
	}
}

func TestLeaveGroupVersions(t *testing.T) {
	b := newAdminBroker(t)
	b.groups.leave = &group.LeaveResponse{Members: []group.LeaveResult{{MemberID: "m", Err: group.ErrUnknownMemberID}}}
	for v := int16(0); v <= 5; v++ {
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Group, req.MemberID = "g", "m"
		m := kmsg.NewLeaveGroupRequestMember()
		m.MemberID = "m"
		req.Members = append(req.Members, m)
		resp := roundTrip[*kmsg.LeaveGroupResponse](t, b, req, v)
		if v < 3 {
			wantCode(t, "the only member", resp.ErrorCode, kerr.UnknownMemberID)
		} else {
			wantCode(t, "request", resp.ErrorCode, nil)
			wantCode(t, "member", resp.Members[0].ErrorCode, kerr.UnknownMemberID)
		}
		if got := b.groups.leaves[v].Members; len(got) != 1 || got[0].MemberID != "m" {
			t.Errorf("v%d: asked for %+v", v, got)
		}
	}
}

func TestDescribeGroupsVersions(t *testing.T) {
	b := newAdminBroker(t)
	b.groups.describe = map[string]group.Description{"g": {GroupID: "g", ProtocolType: "consumer", Protocol: "range", State: group.Stable,
		Members: []group.DescribedMember{{MemberID: "m", ClientID: "c", ClientHost: "/1.2.3.4", Metadata: []byte("md"), Assignment: []byte("as")}}}}
	for v := int16(0); v <= 6; v++ {
		req := kmsg.NewPtrDescribeGroupsRequest()
		req.Groups = []string{"g", "none"}
		resp := roundTrip[*kmsg.DescribeGroupsResponse](t, b, req, v)
		g, none := resp.Groups[0], resp.Groups[1]
		if m := g.Members[0]; g.State != "Stable" || m.ClientHost != "/1.2.3.4" || string(m.ProtocolMetadata) != "md" || string(m.MemberAssignment) != "as" {
			t.Errorf("v%d: %+v", v, g)
		}
		want := kerr.GroupIDNotFound
		if v < 6 {
			want = nil
		}
		wantCode(t, "group that is not", none.ErrorCode, want)
		if none.State != "Dead" || none.Group != "none" {
			t.Errorf("v%d: %+v", v, none)
		}
	}
}

func TestFindCoordinator(t *testing.T) {
	b := newAdminBroker(t)
	for v := int16(0); v <= 6; v++ {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorKey, req.CoordinatorKeys = "g", []string{"g", "h"}
		find := func() (code int16, node int32, host string) {
			resp := roundTrip[*kmsg.FindCoordinatorResponse](t, b, req, v)
			if v < 4 {
				return resp.ErrorCode, resp.NodeID, resp.Host
			}
			if len(resp.Coordinators) != 2 || resp.Coordinators[1].Key != "h" {
				t.Fatalf("v%d: %+v", v, resp)
			}
			c := resp.Coordinators[0]
			return c.ErrorCode, c.NodeID, c.Host
		}
		if code, node, host := find(); code != 0 || node != 1 || host != "one" {
			t.Errorf("v%d: code %d, node %d at %q", v, code, node, host)
		}
		b.groups.err = group.ErrCoordinatorNotAvailable
		code, _, _ := find()
		wantCode(t, "no topic", code, kerr.CoordinatorNotAvailable)
		b.groups.err = nil
		if v > 0 {
			req.CoordinatorType = 1
			code, node, _ := find()
			wantCode(t, "transaction", code, kerr.InvalidRequest)
			if node != -1 {
				t.Errorf("v%d: node %d", v, node)
			}
		}
	}
}

func TestOffsetCommit(t *testing.T) {
	b := newAdminBroker(t)
	topic := b.add("logs", 2)
	for v := int16(2); v <= 10; v++ {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation, req.RetentionTimeMillis = "g", 4, 60_000
		long := "far too long"
		for _, name := range []string{"gone", "logs"} {
			rt := kmsg.NewOffsetCommitRequestTopic()
			rt.Topic = name
			if name == "logs" {
				rt.TopicID = topic.ID
			} else {
				rt.TopicID = [16]byte{9}
			}
			for i := range 2 {
				p := kmsg.NewOffsetCommitRequestTopicPartition()
				p.Partition, p.Offset, p.LeaderEpoch = int32(i), 10, 3
				if i == 1 {
					p.Metadata = &long
				}
				rt.Partitions = append(rt.Partitions, p)
			}
			req.Topics = append(req.Topics, rt)
		}
		resp := roundTrip[*kmsg.OffsetCommitResponse](t, b, req, v)
		want := kerr.UnknownTopicOrPartition
		if v >= 10 {
			want = kerr.UnknownTopicID
		}
		wantCode(t, "topic that is not", resp.Topics[0].Partitions[0].ErrorCode, want)
		wantCode(t, "good one", resp.Topics[1].Partitions[0].ErrorCode, nil)
		wantCode(t, "long metadata", resp.Topics[1].Partitions[1].ErrorCode, kerr.OffsetMetadataTooLarge)
		got := b.groups.commits[len(b.groups.commits)-1]
		if len(got.Topics) != 1 || got.Topics[0].Name != "logs" || got.Topics[0].ID != group.TopicID(topic.ID) || got.Generation != 4 || got.Version != v {
			t.Errorf("v%d: committed %+v", v, got)
		}
		if (got.Retention == time.Minute) != (v <= 4) || (got.Topics[0].Partitions[0].LeaderEpoch == 3) != (v >= 6) {
			t.Errorf("v%d: committed %+v", v, got)
		}
		b.groups.err = broker.ErrGroupsLoading
		resp = roundTrip[*kmsg.OffsetCommitResponse](t, b, req, v)
		wantCode(t, "loading", resp.Topics[1].Partitions[0].ErrorCode, kerr.CoordinatorLoadInProgress)
		b.groups.err = nil
	}
}

func TestOffsetFetch(t *testing.T) {
	b := newAdminBroker(t)
	topic := b.add("logs", 2)
	b.groups.offsets = map[string]map[string]map[int32]group.FetchPartition{"g": {"logs": {0: {Offset: 7, LeaderEpoch: 2, Metadata: "md"}}}}
	for v := int16(1); v <= 10; v++ {
		req := kmsg.NewPtrOffsetFetchRequest()
		fetch := func(id string, all bool) kmsg.OffsetFetchResponseGroup {
			t.Helper()
			g, rt := kmsg.NewOffsetFetchRequestGroup(), kmsg.NewOffsetFetchRequestGroupTopic()
			rt.Topic, rt.TopicID, rt.Partitions = "logs", topic.ID, []int32{0, 1}
			old := kmsg.NewOffsetFetchRequestTopic()
			old.Topic, old.Partitions = rt.Topic, rt.Partitions
			g.Group, req.Group = id, id
			g.Topics, req.Topics = nil, nil
			if !all {
				g.Topics, req.Topics = append(g.Topics, rt), append(req.Topics, old)
			}
			req.Groups = []kmsg.OffsetFetchRequestGroup{g}
			resp := roundTrip[*kmsg.OffsetFetchResponse](t, b, req, v)
			if v >= 8 {
				return resp.Groups[0]
			}
			out := kmsg.OffsetFetchResponseGroup{ErrorCode: resp.ErrorCode}
			for _, t := range resp.Topics {
				ot := kmsg.OffsetFetchResponseGroupTopic{Topic: t.Topic}
				for _, p := range t.Partitions {
					ot.Partitions = append(ot.Partitions, kmsg.OffsetFetchResponseGroupTopicPartition{Partition: p.Partition, Offset: p.Offset,
						LeaderEpoch: p.LeaderEpoch, Metadata: p.Metadata, ErrorCode: p.ErrorCode})
				}
				out.Topics = append(out.Topics, ot)
			}
			return out
		}
		p := fetch("g", false).Topics[0].Partitions
		if p[0].Offset != 7 || *p[0].Metadata != "md" || p[1].Offset != -1 || p[1].ErrorCode != 0 || v >= 5 && p[0].LeaderEpoch != 2 {
			t.Errorf("v%d: %+v", v, p)
		}
		if g := fetch("nobody", false); g.ErrorCode != 0 || g.Topics[0].Partitions[0].Offset != -1 || g.Topics[0].Partitions[0].ErrorCode != 0 {
			t.Errorf("v%d: unknown group: %+v", v, g)
		}
		if v >= 2 {
			if g := fetch("g", true); len(g.Topics) != 1 || len(g.Topics[0].Partitions) != 1 {
				t.Errorf("v%d: all: %+v", v, g)
			}
		}
		b.groups.err = broker.ErrGroupsLoading
		g := fetch("g", false)
		if v >= 2 {
			wantCode(t, "loading", g.ErrorCode, kerr.CoordinatorLoadInProgress)
		}
		wantCode(t, "loading", g.Topics[0].Partitions[1].ErrorCode, kerr.CoordinatorLoadInProgress)
		b.groups.err = nil
	}
	req := kmsg.NewPtrOffsetFetchRequest()
	g, rt := kmsg.NewOffsetFetchRequestGroup(), kmsg.NewOffsetFetchRequestGroupTopic()
	rt.TopicID, rt.Partitions = [16]byte{9}, []int32{0}
	g.Group, g.Topics = "g", append(g.Topics, rt)
	req.Groups = append(req.Groups, g)
	resp := roundTrip[*kmsg.OffsetFetchResponse](t, b, req, 10)
	wantCode(t, "unknown id", resp.Groups[0].Topics[0].Partitions[0].ErrorCode, kerr.UnknownTopicID)
}

func TestGroupsAdmin(t *testing.T) {
	b := newAdminBroker(t)
	b.add("logs", 1)
	b.groups.describe = map[string]group.Description{"g": {}}
	b.groups.listed = []group.Listed{{GroupID: "g", ProtocolType: "consumer", State: group.Empty}}
	list := kmsg.NewPtrListGroupsRequest()
	list.StatesFilter, list.TypesFilter = []string{"Empty"}, []string{"classic"}
	for v := int16(0); v <= 5; v++ {
		resp := roundTrip[*kmsg.ListGroupsResponse](t, b, list, v)
		if g := resp.Groups[0]; g.Group != "g" || v >= 4 && g.GroupState != "Empty" || v >= 5 && g.GroupType != "classic" {
			t.Errorf("v%d: %+v", v, g)
		}
	}
	if f := b.groups.filtered; len(f[0])+len(f[1]) != 0 || !slices.Equal(f[10], []string{"Empty"}) || !slices.Equal(f[11], []string{"classic"}) {
		t.Errorf("filters %v", f)
	}
	del := kmsg.NewPtrDeleteGroupsRequest()
	del.Groups = []string{"g", "none"}
	for v := int16(0); v <= 2; v++ {
		resp := roundTrip[*kmsg.DeleteGroupsResponse](t, b, del, v)
		wantCode(t, "delete", resp.Groups[0].ErrorCode, nil)
		wantCode(t, "delete what is not", resp.Groups[1].ErrorCode, kerr.GroupIDNotFound)
	}
	od := kmsg.NewPtrOffsetDeleteRequest()
	od.Group = "g"
	for _, name := range []string{"logs", "gone"} {
		rt := kmsg.NewOffsetDeleteRequestTopic()
		rt.Topic = name
		for i := range 2 {
			p := kmsg.NewOffsetDeleteRequestTopicPartition()
			p.Partition = int32(i)
			rt.Partitions = append(rt.Partitions, p)
		}
		od.Topics = append(od.Topics, rt)
	}
	resp := roundTrip[*kmsg.OffsetDeleteResponse](t, b, od, 0)
	wantCode(t, "offset", resp.Topics[0].Partitions[0].ErrorCode, nil)
	wantCode(t, "partition that is not", resp.Topics[0].Partitions[1].ErrorCode, kerr.UnknownTopicOrPartition)
	wantCode(t, "topic that is not", resp.Topics[1].Partitions[0].ErrorCode, kerr.UnknownTopicOrPartition)
	b.groups.err = group.ErrNonEmptyGroup
	wantCode(t, "refused", roundTrip[*kmsg.OffsetDeleteResponse](t, b, od, 0).ErrorCode, kerr.NonEmptyGroup)
}

// Clients neither make nor change the internal topic.
func TestInternalTopic(t *testing.T) {
	h := serve(t, Limits{})
	internal := h.b.topic(broker.OffsetsTopic, 2)
	w := h.dial()
	for _, v := range []int16{3, 9, 13} {
		resp := ask[*kmsg.ProduceResponse](w, produceReq(v, -1, internal, 0, batchOf(1, 10)))
		wantCode(t, "produce", resp.Topics[0].Partitions[0].ErrorCode, kerr.InvalidTopicException)
	}
	dr := kmsg.NewPtrDeleteRecordsRequest()
	rt, rp := kmsg.NewDeleteRecordsRequestTopic(), kmsg.NewDeleteRecordsRequestTopicPartition()
	rt.Topic, rt.Partitions = internal.Name, append(rt.Partitions, rp)
	dr.Topics = append(dr.Topics, rt)
	wantCode(t, "delete records", ask[*kmsg.DeleteRecordsResponse](w, dr).Topics[0].Partitions[0].ErrorCode, kerr.InvalidTopicException)
	dt := kmsg.NewPtrDeleteTopicsRequest()
	dt.Version = 6
	dt.Topics = append(dt.Topics, kmsg.DeleteTopicsRequestTopic{TopicID: internal.ID})
	wantCode(t, "delete", ask[*kmsg.DeleteTopicsResponse](w, dt).Topics[0].ErrorCode, kerr.InvalidTopicException)
	for _, name := range []string{broker.OffsetsTopic, "__transaction_state"} {
		if err := checkInternal(name); !errors.Is(err, metadata.ErrInvalidTopic) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := checkInternal("__other"); err != nil {
		t.Errorf("a topic whose name begins with __: %v", err)
	}
	md := kmsg.NewPtrMetadataRequest()
	md.Version = 1
	name := broker.OffsetsTopic
	h.b.mu.Lock()
	delete(h.b.topics, name)
	h.b.mu.Unlock()
	md.Topics = append(md.Topics, kmsg.MetadataRequestTopic{Topic: &name})
	ask[*kmsg.MetadataResponse](w, md)
	name = "__transaction_state"
	wantCode(t, "metadata of a topic that there is not yet", ask[*kmsg.MetadataResponse](w, md).Topics[0].ErrorCode, kerr.UnknownTopicOrPartition)
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	if h.b.groups.ensured.Load() != 1 || len(h.b.created) != 0 {
		t.Errorf("auto-created %v, by the groups %d times", h.b.created, h.b.groups.ensured.Load())
	}
}
