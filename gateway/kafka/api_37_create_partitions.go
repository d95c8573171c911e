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
	times := map[string]int{}
	for _, t := range r.Topics {
		times[t.Topic]++
	}
	for _, t := range r.Topics {
		if times[t.Topic] == 0 { // answered
			continue
		}
		rt := kmsg.NewCreatePartitionsResponseTopic()
		rt.Topic = t.Topic
		var err error
		if times[t.Topic] > 1 {
			err = errTwice(t.Topic)
		} else if err = checkInternal(t.Topic); err == nil {
			err = s.b.CreatePartitions(ctx, t.Topic, t.Count, r.ValidateOnly)
		}
		times[t.Topic] = 0
		if err != nil {
			rt.ErrorCode, rt.ErrorMessage = errorCode(err), errorMessage(err)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp, nil
}
