package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// FindCoordinator 0. There are no coordinators yet: it is advertised because
// librdkafka takes it for the sign of a broker that knows lz4, and without it
// sends what should be lz4 uncompressed. The answer is INVALID_REQUEST, which
// clients report at once; the codes that speak of coordinators make them retry.
func (s *Server) apiFindCoordinator() api {
	return api{key: 10, min: 0, max: 0, name: "FindCoordinator", handle: s.findCoordinator}
}

func (s *Server) findCoordinator(_ context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	resp := req.ResponseKind().(*kmsg.FindCoordinatorResponse)
	resp.ErrorCode, resp.NodeID = kerr.InvalidRequest.Code, -1
	return resp, nil
}
