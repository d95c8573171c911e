package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/group"
)

// ListGroups 0-5, with filters by state (4) and type (5).
func (s *Server) apiListGroups() api {
	return api{key: 16, min: 0, max: 5, name: "ListGroups", handle: s.listGroups}
}

func (s *Server) listGroups(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.ListGroupsRequest)
	resp := r.ResponseKind().(*kmsg.ListGroupsResponse)
	list, err := s.b.Groups().List(ctx, r.StatesFilter, r.TypesFilter)
	resp.ErrorCode = errorCode(err)
	for _, l := range list {
		g := kmsg.NewListGroupsResponseGroup()
		g.Group, g.ProtocolType, g.GroupState, g.GroupType = l.GroupID, l.ProtocolType, l.State.String(), group.Type
		resp.Groups = append(resp.Groups, g)
	}
	return resp, nil
}
