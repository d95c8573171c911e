package kafka

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/group"
)

// JoinGroup 0-9. The answer comes when the join phase ends; until then no other
// request of the connection is handled, as in Kafka.
func (s *Server) apiJoinGroup() api {
	return api{key: 11, min: 0, max: 9, name: "JoinGroup", handle: s.joinGroup}
}

func (s *Server) joinGroup(_ context.Context, c *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.JoinGroupRequest)
	resp := r.ResponseKind().(*kmsg.JoinGroupResponse)
	join := group.JoinRequest{Version: r.Version, GroupID: r.Group, MemberID: r.MemberID, InstanceID: orEmpty(r.InstanceID),
		ClientID: string(c.client), ClientHost: c.clientHost(), SessionTimeout: millis(r.SessionTimeoutMillis),
		RebalanceTimeout: -1, ProtocolType: r.ProtocolType, Reason: orEmpty(r.Reason)}
	if r.Version >= 1 {
		join.RebalanceTimeout = millis(r.RebalanceTimeoutMillis)
	}
	for i := range r.Protocols {
		p := &r.Protocols[i]
		join.Protocols = append(join.Protocols, group.Protocol{Name: p.Name, Metadata: bytes.Clone(p.Metadata)})
	}
	out, err := waitFor(c, func(ctx context.Context) (*group.JoinResponse, error) { return s.b.Groups().Join(ctx, join) })
	if errors.Is(err, errGone) {
		return nil, err
	}
	if err != nil {
		out = &group.JoinResponse{Err: err, Generation: -1, MemberID: r.MemberID}
	}
	resp.ErrorCode, resp.Generation, resp.LeaderID, resp.MemberID, resp.SkipAssignment = errorCode(out.Err), out.Generation, out.Leader, out.MemberID, out.SkipAssignment
	resp.ProtocolType, resp.Protocol = orNull(out.ProtocolType), orNull(out.ProtocolName)
	if resp.Protocol == nil && r.Version < 7 {
		resp.Protocol = new(string)
	}
	for _, m := range out.Members {
		rm := kmsg.NewJoinGroupResponseMember()
		rm.MemberID, rm.InstanceID, rm.ProtocolMetadata = m.MemberID, orNull(m.InstanceID), m.Metadata
		resp.Members = append(resp.Members, rm)
	}
	return resp, nil
}

func millis(ms int32) time.Duration { return time.Duration(ms) * time.Millisecond }
