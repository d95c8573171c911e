package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// CreatePartitions 0-3. Manual assignments are ignored: placement is ours.
func (s *Server) apiCreatePartitions() api {
	return api{key: 37, min: 0, max: 3, name: "CreatePartitions", handle: s.createPartitions}
}

func (s *Server) createPartitions(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.CreatePartitionsRequest)
	resp := r.ResponseKind().(*kmsg.CreatePartitionsResponse)
	for _, t := range r.Topics {
		rt := kmsg.NewCreatePartitionsResponseTopic()
		rt.Topic = t.Topic
		if err := s.b.CreatePartitions(ctx, t.Topic, t.Count, r.ValidateOnly); err != nil {
			rt.ErrorCode, rt.ErrorMessage = errorCode(err), errorMessage(err)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp, nil
}
