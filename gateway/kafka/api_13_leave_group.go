package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/group"
)

// LeaveGroup 0-5: one member until 2, many from 3 on.
func (s *Server) apiLeaveGroup() api {
	return api{key: 13, min: 0, max: 5, name: "LeaveGroup", handle: s.leaveGroup}
}

func (s *Server) leaveGroup(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.LeaveGroupRequest)
	resp := r.ResponseKind().(*kmsg.LeaveGroupResponse)
	leave := group.LeaveRequest{GroupID: r.Group}
	if r.Version < 3 {
		leave.Members = []group.LeaveMember{{MemberID: r.MemberID}}
	}
	for i := range r.Members {
		m := &r.Members[i]
		leave.Members = append(leave.Members, group.LeaveMember{MemberID: m.MemberID, InstanceID: orEmpty(m.InstanceID), Reason: orEmpty(m.Reason)})
	}
	out, err := s.b.Groups().Leave(ctx, leave)
	if err == nil {
		err = out.Err
	}
	if r.Version < 3 && err == nil && len(out.Members) == 1 {
		err = out.Members[0].Err
	}
	resp.ErrorCode = errorCode(err)
	if r.Version < 3 || err != nil {
		return resp, nil
	}
	for _, m := range out.Members {
		rm := kmsg.NewLeaveGroupResponseMember()
		rm.MemberID, rm.InstanceID, rm.ErrorCode = m.MemberID, orNull(m.InstanceID), errorCode(m.Err)
		resp.Members = append(resp.Members, rm)
	}
	return resp, nil
}
