package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
)

// AlterConfigs 0-2 of topics: the given configs replace all that the topic set
// (kafkajs and sarama use it). The agent's own configs come from its command
// line and cannot be altered.
func (s *Server) apiAlterConfigs() api {
	return api{key: 33, min: 0, max: 2, name: "AlterConfigs", handle: s.alterConfigs}
}

func (s *Server) alterConfigs(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.AlterConfigsRequest)
	resp := r.ResponseKind().(*kmsg.AlterConfigsResponse)
	for i := range r.Resources {
		in := &r.Resources[i]
		out := kmsg.NewAlterConfigsResponseResource()
		out.ResourceType, out.ResourceName = in.ResourceType, in.ResourceName
		err := onlyTopics(in.ResourceType)
		configs := make(map[string]*string, len(in.Configs))
		for _, c := range in.Configs {
			if _, twice := configs[c.Name]; twice && err == nil {
				err = fmt.Errorf("%w: config %q is given twice", metadata.ErrInvalidRequest, c.Name)
			}
			configs[c.Name] = c.Value
		}
		if err == nil {
			err = s.b.ReplaceTopicConfig(ctx, in.ResourceName, configs, r.ValidateOnly)
		}
		if err != nil {
			out.ErrorCode, out.ErrorMessage = errorCode(err), errorMessage(err)
		}
		resp.Resources = append(resp.Resources, out)
	}
	return resp, nil
}

func onlyTopics(kind kmsg.ConfigResourceType) error {
	if kind != kmsg.ConfigResourceTypeTopic {
		return fmt.Errorf("%w: configs of a %s can't be altered at run time, start the agent with other settings", metadata.ErrInvalidRequest, kind)
	}
	return nil
}
