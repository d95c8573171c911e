package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/group"
)

// Heartbeat 0-4.
func (s *Server) apiHeartbeat() api {
	return api{key: 12, min: 0, max: 4, name: "Heartbeat", handle: s.heartbeat}
}

func (s *Server) heartbeat(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.HeartbeatRequest)
	resp := r.ResponseKind().(*kmsg.HeartbeatResponse)
	resp.ErrorCode = errorCode(s.b.Groups().Heartbeat(ctx, group.HeartbeatRequest{GroupID: r.Group, MemberID: r.MemberID,
		InstanceID: orEmpty(r.InstanceID), Generation: r.Generation}))
	return resp, nil
}
