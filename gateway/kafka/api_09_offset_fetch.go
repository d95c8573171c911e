package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/group"
)

// OffsetFetch 1-10: one group until 7, many from 8 on; topics by id in 10. A
// group or partition without an offset is -1 without error.
func (s *Server) apiOffsetFetch() api {
	return api{key: 9, min: 1, max: 10, name: "OffsetFetch", handle: s.offsetFetch}
}

func (s *Server) offsetFetch(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.OffsetFetchRequest)
	resp := r.ResponseKind().(*kmsg.OffsetFetchResponse)
	if r.Version < 8 {
		s.offsetFetchOne(ctx, r, resp)
		return resp, nil
	}
	ctx, cancel := context.WithTimeout(ctx, groupsWait)
	defer cancel()
	for i := range r.Groups {
		resp.Groups = append(resp.Groups, s.offsetFetchGroup(ctx, r, &r.Groups[i]))
	}
	return resp, nil
}

// offsetFetchOne answers versions 1 to 7 by way of the form of the later ones.
func (s *Server) offsetFetchOne(ctx context.Context, r *kmsg.OffsetFetchRequest, resp *kmsg.OffsetFetchResponse) {
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = r.Group
	if r.Topics != nil {
		g.Topics = []kmsg.OffsetFetchRequestGroupTopic{}
	}
	for i := range r.Topics {
		t := kmsg.NewOffsetFetchRequestGroupTopic()
		t.Topic, t.Partitions = r.Topics[i].Topic, r.Topics[i].Partitions
		g.Topics = append(g.Topics, t)
	}
	found := s.offsetFetchGroup(ctx, r, &g)
	resp.ErrorCode = found.ErrorCode
	for _, t := range found.Topics {
		rt := kmsg.NewOffsetFetchResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetFetchResponseTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch, rp.Metadata, rp.ErrorCode = p.Partition, p.Offset, p.LeaderEpoch, p.Metadata, p.ErrorCode
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
}

func (s *Server) offsetFetchGroup(ctx context.Context, r *kmsg.OffsetFetchRequest, g *kmsg.OffsetFetchRequestGroup) kmsg.OffsetFetchResponseGroup {
	out := kmsg.NewOffsetFetchResponseGroup()
	out.Group = g.Group
	fetch := group.FetchRequest{GroupID: g.Group, RequireStable: r.RequireStable}
	unknown := map[int]error{} // by place in g.Topics
	if g.Topics != nil {
		fetch.Topics = []group.TopicPartitions{}
	}
	for i := range g.Topics {
		t := &g.Topics[i]
		tp := group.TopicPartitions{Name: t.Topic, ID: t.TopicID, Partitions: t.Partitions}
		topic, err := s.groupTopic(r.Version >= 10, t.TopicID, t.Topic)
		switch {
		case err == nil:
			tp.Name, tp.ID = topic.Name, group.TopicID(topic.ID)
		case r.Version >= 10:
			unknown[i] = err
		}
		fetch.Topics = append(fetch.Topics, tp)
	}
	found, err := s.b.Groups().FetchOffsets(ctx, fetch)
	if err != nil {
		out.ErrorCode = errorCode(err)
		found = nil
		for _, t := range fetch.Topics { // versions before 2 have no other place for it
			found = append(found, failedTopic(t, err))
		}
	}
	for i, t := range found {
		if unknown[i] != nil {
			t = failedTopic(fetch.Topics[i], unknown[i])
		}
		out.Topics = append(out.Topics, fetchedTopic(t))
	}
	return out
}

func failedTopic(t group.TopicPartitions, err error) group.FetchTopic {
	ft := group.FetchTopic{Name: t.Name, ID: t.ID}
	for _, p := range t.Partitions {
		ft.Partitions = append(ft.Partitions, group.FetchPartition{Partition: p, Offset: -1, LeaderEpoch: -1, Err: err})
	}
	return ft
}

func fetchedTopic(t group.FetchTopic) kmsg.OffsetFetchResponseGroupTopic {
	rt := kmsg.NewOffsetFetchResponseGroupTopic()
	rt.Topic, rt.TopicID = t.Name, t.ID
	for _, p := range t.Partitions {
		rp := kmsg.NewOffsetFetchResponseGroupTopicPartition()
		rp.Partition, rp.Offset, rp.LeaderEpoch, rp.Metadata, rp.ErrorCode = p.Partition, p.Offset, p.LeaderEpoch, &p.Metadata, errorCode(p.Err)
		rt.Partitions = append(rt.Partitions, rp)
	}
	return rt
}
