package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
)

// IncrementalAlterConfigs 0-1 of topics (KIP-339): set, delete, append, subtract.
func (s *Server) apiIncrementalAlterConfigs() api {
	return api{key: 44, min: 0, max: 1, name: "IncrementalAlterConfigs", handle: s.incrementalAlterConfigs}
}

func (s *Server) incrementalAlterConfigs(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.IncrementalAlterConfigsRequest)
	resp := r.ResponseKind().(*kmsg.IncrementalAlterConfigsResponse)
	for i := range r.Resources {
		in := &r.Resources[i]
		out := kmsg.NewIncrementalAlterConfigsResponseResource()
		out.ResourceType, out.ResourceName = in.ResourceType, in.ResourceName
		err := onlyTopics(in.ResourceType)
		ops := make([]metadata.ConfigOp, 0, len(in.Configs))
		for _, c := range in.Configs {
			ops = append(ops, metadata.ConfigOp{Key: c.Name, Value: c.Value, Kind: metadata.OpKind(c.Op)})
		}
		if err == nil {
			err = s.b.AlterTopicConfig(ctx, in.ResourceName, ops, r.ValidateOnly)
		}
		if err != nil {
			out.ErrorCode, out.ErrorMessage = errorCode(err), errorMessage(err)
		}
		resp.Resources = append(resp.Resources, out)
	}
	return resp, nil
}
