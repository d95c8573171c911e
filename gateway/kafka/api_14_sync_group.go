package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/group"
)

// SyncGroup 0-5. The answer comes when the leader has brought the assignments
// and they are durable; until then no other request of the connection is
// handled, as in Kafka.
func (s *Server) apiSyncGroup() api {
	return api{key: 14, min: 0, max: 5, name: "SyncGroup", handle: s.syncGroup}
}

func (s *Server) syncGroup(_ context.Context, c *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.SyncGroupRequest)
	resp := r.ResponseKind().(*kmsg.SyncGroupResponse)
	sync := group.SyncRequest{GroupID: r.Group, MemberID: r.MemberID, InstanceID: orEmpty(r.InstanceID), Generation: r.Generation,
		ProtocolType: orEmpty(r.ProtocolType), ProtocolName: orEmpty(r.Protocol)}
	for i := range r.GroupAssignment {
		a := &r.GroupAssignment[i]
		sync.Assignments = append(sync.Assignments, group.Assignment{MemberID: a.MemberID, Data: bytes.Clone(a.MemberAssignment)})
	}
	out, err := waitFor(c, func(ctx context.Context) (*group.SyncResponse, error) { return s.b.Groups().Sync(ctx, sync) })
	if errors.Is(err, errGone) {
		return nil, err
	}
	if err != nil {
		out = &group.SyncResponse{Err: err}
	}
	resp.ErrorCode, resp.MemberAssignment = errorCode(out.Err), out.Assignment
	resp.ProtocolType, resp.Protocol = orNull(out.ProtocolType), orNull(out.ProtocolName)
	return resp, nil
}

var errGone = errors.New("the client has gone, or the server is stopping")

// waitFor is conn.waiting for calls with an answer; errGone when it was given up.
func waitFor[R any](c *conn, call func(ctx context.Context) (R, error)) (out R, err error) {
	c.waiting(func(ctx context.Context) {
		if out, err = call(ctx); err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", errGone, err)
		}
	})
	return out, err
}
