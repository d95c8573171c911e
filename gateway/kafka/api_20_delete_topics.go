package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
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
			if err = checkInternal(t.Name); err == nil {
				err = s.b.DeleteTopic(ctx, t.ID)
			}
		}
		if err != nil {
			rt.ErrorCode, rt.ErrorMessage = errorCode(err), errorMessage(err)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	twice := duplicates(s.b, r)
	for _, name := range r.TopicNames {
		if twice[name] {
			one(&name, ids.TopicID{}, nil, errTwice(name))
			continue
		}
		one(&name, ids.TopicID{}, s.b.Topic(name), broker.ErrUnknownTopic)
	}
	for i := range r.Topics {
		t := &r.Topics[i]
		id := ids.TopicID(t.TopicID)
		switch {
		case (t.Topic != nil) != id.IsZero():
			one(t.Topic, id, nil, fmt.Errorf("%w: a topic needs either name or id", metadata.ErrInvalidRequest))
		case t.Topic != nil && twice[*t.Topic]:
			one(t.Topic, id, nil, errTwice(*t.Topic))
		case t.Topic != nil:
			one(t.Topic, id, s.b.Topic(*t.Topic), broker.ErrUnknownTopic)
		default:
			found := s.b.TopicByID(id)
			if found != nil && twice[found.Name] {
				one(nil, id, nil, errTwice(id.String()))
				continue
			}
			one(nil, id, found, kerr.UnknownTopicID)
		}
	}
	return resp, nil
}

// duplicates returns the names that a request has more than once, be it by id.
// None of them is deleted.
func duplicates(b Topics, r *kmsg.DeleteTopicsRequest) map[string]bool {
	seen, twice := map[string]bool{}, map[string]bool{}
	add := func(name string) {
		twice[name] = twice[name] || seen[name]
		seen[name] = true
	}
	for _, name := range r.TopicNames {
		add(name)
	}
	for i := range r.Topics {
		t := &r.Topics[i]
		if t.Topic != nil {
			add(*t.Topic)
		} else if found := b.TopicByID(ids.TopicID(t.TopicID)); found != nil {
			add(found.Name)
		}
	}
	return twice
}

func errTwice(topic string) error {
	return fmt.Errorf("%w: topic %s is in the request more than once", metadata.ErrInvalidRequest, topic)
}
