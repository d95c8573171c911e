package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
)

// OffsetForLeaderEpoch 2-4: where a leader epoch ends, through all tiers
// (KIP-101, KIP-279, KIP-320).
func (s *Server) apiOffsetForLeaderEpoch() api {
	return api{key: 23, min: 2, max: 4, name: "OffsetForLeaderEpoch", handle: s.offsetForLeaderEpoch}
}

func (s *Server) offsetForLeaderEpoch(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.OffsetForLeaderEpochRequest)
	resp := r.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
	for _, t := range r.Topics {
		rt := kmsg.NewOffsetForLeaderEpochResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
			rp.Partition, rp.LeaderEpoch, rp.EndOffset = p.Partition, -1, -1
			part, err := s.partition(t.Topic, p.Partition)
			if err == nil {
				err = checkEpoch(part, p.CurrentLeaderEpoch)
			}
			var end broker.EpochEnd
			if err == nil {
				end, err = part.EpochEnd(ctx, p.LeaderEpoch)
			}
			if err != nil {
				rp.ErrorCode = errorCode(err)
			} else {
				rp.LeaderEpoch, rp.EndOffset = end.Epoch, end.EndOffset
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp, nil
}
