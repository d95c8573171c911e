package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// DeleteTopics 1-6, by name or (from 6) by id. The topic is gone when the
// answer is sent; its bytes go from SSD and bucket later.
func (s *Server) apiDeleteTopics() api {
	return api{key: 20, min: 1, max: 6, name: "DeleteTopics", handle: s.deleteTopics}
}

func (s *Server) deleteTopics(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.DeleteTopicsRequest)
	resp := r.ResponseKind().(*kmsg.DeleteTopicsResponse)
	one := func(name *string, id ids.TopicID, t *broker.Topic, missing error) {
		rt := kmsg.NewDeleteTopicsResponseTopic()
		rt.Topic, rt.TopicID = name, id
		err := missing
		if t != nil {
			rt.TopicID = t.ID
			rt.Topic = &t.Name
			err = s.b.DeleteTopic(ctx, t.ID)
		}
		if err != nil {
			rt.ErrorCode, rt.ErrorMessage = errorCode(err), errorMessage(err)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	for _, name := range r.TopicNames {
		one(&name, ids.TopicID{}, s.b.Topic(name), broker.ErrUnknownTopic)
	}
	for i := range r.Topics {
		t := &r.Topics[i]
		id := ids.TopicID(t.TopicID)
		switch {
		case t.Topic != nil && !id.IsZero():
			one(t.Topic, id, nil, kerr.InvalidRequest)
		case t.Topic != nil:
			one(t.Topic, id, s.b.Topic(*t.Topic), broker.ErrUnknownTopic)
		default:
			one(nil, id, s.b.TopicByID(id), kerr.UnknownTopicID)
		}
	}
	return resp, nil
}
