package kafka

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/group"
)

// DescribeGroups 0-6. A group that there is not is Dead, from 6 on with
// GROUP_ID_NOT_FOUND. Authorized operations are never computed.
func (s *Server) apiDescribeGroups() api {
	return api{key: 15, min: 0, max: 6, name: "DescribeGroups", handle: s.describeGroups}
}

// groupsWait bounds how long a request about many groups waits for their loads.
const groupsWait = 10 * time.Second

func (s *Server) describeGroups(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.DescribeGroupsRequest)
	resp := r.ResponseKind().(*kmsg.DescribeGroupsResponse)
	ctx, cancel := context.WithTimeout(ctx, groupsWait)
	defer cancel()
	for _, id := range r.Groups {
		d, err := s.b.Groups().Describe(ctx, id)
		rg := kmsg.NewDescribeGroupsResponseGroup()
		rg.Group, rg.AuthorizedOperations = id, math.MinInt32
		if errors.Is(err, group.ErrGroupIDNotFound) {
			rg.State = group.Dead.String()
			if r.Version < 6 {
				err = nil
			}
		} else if err == nil {
			rg.State, rg.ProtocolType, rg.Protocol = d.State.String(), d.ProtocolType, d.Protocol
		}
		rg.ErrorCode, rg.ErrorMessage = errorCode(err), errorMessage(err)
		for _, m := range d.Members {
			rm := kmsg.NewDescribeGroupsResponseGroupMember()
			rm.MemberID, rm.InstanceID, rm.ClientID, rm.ClientHost = m.MemberID, orNull(m.InstanceID), m.ClientID, m.ClientHost
			rm.ProtocolMetadata, rm.MemberAssignment = m.Metadata, m.Assignment
			rg.Members = append(rg.Members, rm)
		}
		resp.Groups = append(resp.Groups, rg)
	}
	return resp, nil
}
