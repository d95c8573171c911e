package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// DeleteRecords 0-2. The new log start is durable when the answer is sent;
// -1 means the high watermark.
func (s *Server) apiDeleteRecords() api {
	return api{key: 21, min: 0, max: 2, name: "DeleteRecords", handle: s.deleteRecords}
}

func (s *Server) deleteRecords(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.DeleteRecordsRequest)
	resp := r.ResponseKind().(*kmsg.DeleteRecordsResponse)
	for _, t := range r.Topics {
		rt := kmsg.NewDeleteRecordsResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewDeleteRecordsResponseTopicPartition()
			rp.Partition, rp.LowWatermark = p.Partition, -1
			part, err := s.partition(t.Topic, p.Partition)
			if err == nil {
				err = checkInternal(t.Topic)
			}
			if err == nil {
				rp.LowWatermark, err = part.DeleteRecords(ctx, p.Offset)
			}
			if err != nil {
				rp.ErrorCode, rp.LowWatermark = errorCode(err), -1
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp, nil
}
