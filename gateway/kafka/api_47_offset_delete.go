package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
)

// OffsetDelete 0. Partitions that there are not are refused one by one.
func (s *Server) apiOffsetDelete() api {
	return api{key: 47, min: 0, max: 0, name: "OffsetDelete", handle: s.offsetDelete}
}

func (s *Server) offsetDelete(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.OffsetDeleteRequest)
	resp := r.ResponseKind().(*kmsg.OffsetDeleteResponse)
	del := group.OffsetDeleteRequest{GroupID: r.Group}
	for i := range r.Topics {
		t := &r.Topics[i]
		tp := group.TopicPartitions{Name: t.Topic, Partitions: make([]int32, len(t.Partitions))}
		for j := range t.Partitions {
			tp.Partitions[j] = t.Partitions[j].Partition
		}
		del.Topics = append(del.Topics, tp)
	}
	out, err := s.b.Groups().DeleteOffsets(ctx, del)
	if err == nil {
		err = out.Err
	}
	if err != nil {
		resp.ErrorCode = errorCode(err)
		return resp, nil
	}
	for _, t := range out.Topics {
		rt := kmsg.NewOffsetDeleteResponseTopic()
		rt.Topic = t.Name
		topic := s.b.Topic(t.Name)
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetDeleteResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p.Partition, errorCode(p.Err)
			if topic == nil || p.Partition < 0 || p.Partition >= topic.Partitions {
				rp.ErrorCode = errorCode(broker.ErrUnknownPartition)
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp, nil
}
