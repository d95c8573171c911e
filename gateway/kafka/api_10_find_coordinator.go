package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// FindCoordinator 0-6: one key until 3, many from 4 on. Consumer groups have
// their coordinator where their partition of the internal topic is led; the first request makes it. There are
// no coordinators of transactions and share groups yet: those keys are answered
// INVALID_REQUEST, which clients report at once; the codes that speak of
// coordinators make them retry.
func (s *Server) apiFindCoordinator() api {
	return api{key: 10, min: 0, max: 6, name: "FindCoordinator", handle: s.findCoordinator}
}

// groupKey is the key type of consumer groups.
const groupKey = 0

func (s *Server) findCoordinator(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.FindCoordinatorRequest)
	resp := r.ResponseKind().(*kmsg.FindCoordinatorResponse)
	if r.Version >= 4 {
		for _, key := range r.CoordinatorKeys {
			resp.Coordinators = append(resp.Coordinators, s.coordinator(ctx, r, key))
		}
		return resp, nil
	}
	found := s.coordinator(ctx, r, r.CoordinatorKey)
	resp.ErrorCode, resp.ErrorMessage, resp.NodeID, resp.Host, resp.Port = found.ErrorCode, found.ErrorMessage, found.NodeID, found.Host, found.Port
	return resp, nil
}

func (s *Server) coordinator(ctx context.Context, r *kmsg.FindCoordinatorRequest, key string) kmsg.FindCoordinatorResponseCoordinator {
	out := kmsg.NewFindCoordinatorResponseCoordinator()
	out.Key, out.NodeID, out.Port = key, -1, -1
	var err error = kerr.InvalidRequest
	node := int32(-1)
	if r.Version == 0 || r.CoordinatorType == groupKey {
		node, err = s.b.Groups().Find(ctx, key)
	}
	if err != nil {
		out.ErrorCode, out.ErrorMessage = errorCode(err), errorMessage(err)
		return out
	}
	out.ErrorCode, out.ErrorMessage = kerr.CoordinatorNotAvailable.Code, errorMessage(kerr.CoordinatorNotAvailable)
	for _, n := range s.b.Nodes() {
		if n.ID == node {
			out.ErrorCode, out.ErrorMessage, out.NodeID, out.Host, out.Port = 0, nil, n.ID, n.Host, n.Port
		}
	}
	return out
}
