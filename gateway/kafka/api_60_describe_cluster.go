package kafka

import (
	"context"
	"math"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeCluster 0-2. There are no controller endpoints to describe.
func (s *Server) apiDescribeCluster() api {
	return api{key: 60, min: 0, max: 2, name: "DescribeCluster", handle: s.describeCluster}
}

func (s *Server) describeCluster(_ context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.DescribeClusterRequest)
	resp := r.ResponseKind().(*kmsg.DescribeClusterResponse)
	resp.ClusterID, resp.ControllerID = s.b.ClusterID(), s.b.NodeID()
	resp.ClusterAuthorizedOperations = math.MinInt32
	if r.Version >= 1 && r.EndpointType != 1 {
		resp.ErrorCode = kerr.MismatchedEndpointType.Code
		return resp, nil
	}
	resp.EndpointType = 1
	for _, n := range s.b.Nodes() {
		b := kmsg.NewDescribeClusterResponseBroker()
		b.NodeID, b.Host, b.Port = n.ID, n.Host, n.Port
		if n.Rack != "" {
			b.Rack = &n.Rack
		}
		resp.Brokers = append(resp.Brokers, b)
	}
	return resp, nil
}
