package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// DeleteGroups 0-2.
func (s *Server) apiDeleteGroups() api {
	return api{key: 42, min: 0, max: 2, name: "DeleteGroups", handle: s.deleteGroups}
}

func (s *Server) deleteGroups(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.DeleteGroupsRequest)
	resp := r.ResponseKind().(*kmsg.DeleteGroupsResponse)
	ctx, cancel := context.WithTimeout(ctx, groupsWait)
	defer cancel()
	for _, id := range r.Groups {
		rg := kmsg.NewDeleteGroupsResponseGroup()
		rg.Group, rg.ErrorCode = id, errorCode(s.b.Groups().Delete(ctx, id))
		resp.Groups = append(resp.Groups, rg)
	}
	return resp, nil
}
