package kafka

import (
	"context"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
)

// DescribeConfigs 1-4 of topics and of this agent (read-only), with sources,
// synonyms and documentation.
func (s *Server) apiDescribeConfigs() api {
	return api{key: 32, min: 1, max: 4, name: "DescribeConfigs", handle: s.describeConfigs}
}

func (s *Server) describeConfigs(_ context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.DescribeConfigsRequest)
	resp := r.ResponseKind().(*kmsg.DescribeConfigsResponse)
	for i := range r.Resources {
		in := &r.Resources[i]
		out := kmsg.NewDescribeConfigsResponseResource()
		out.ResourceType, out.ResourceName = in.ResourceType, in.ResourceName
		entries, err := s.configsOf(in.ResourceType, in.ResourceName)
		if err != nil {
			out.ErrorCode, out.ErrorMessage = errorCode(err), errorMessage(err)
		}
		for _, e := range entries {
			if wanted(in.ConfigNames, e.Name) {
				out.Configs = append(out.Configs, describeEntry(r, in.ResourceType, e))
			}
		}
		resp.Resources = append(resp.Resources, out)
	}
	return resp, nil
}

func (s *Server) configsOf(kind kmsg.ConfigResourceType, name string) ([]metadata.ConfigEntry, error) {
	switch kind {
	case kmsg.ConfigResourceTypeTopic:
		if err := metadata.ValidateTopicName(name); err != nil {
			return nil, err
		}
		return s.b.TopicConfigs(name)
	case kmsg.ConfigResourceTypeBroker:
		if name != "" && name != strconv.Itoa(int(s.b.NodeID())) {
			return nil, kerr.InvalidRequest
		}
		return s.b.BrokerConfigs(), nil
	case kmsg.ConfigResourceTypeBrokerLogger:
		return nil, nil
	}
	return nil, kerr.InvalidRequest
}

// wanted tells whether a config was asked for: null and, as in Kafka, an empty
// list ask for all of them.
func wanted(names []string, name string) bool {
	return len(names) == 0 || slices.Contains(names, name)
}

func describeEntry(r *kmsg.DescribeConfigsRequest, kind kmsg.ConfigResourceType, e metadata.ConfigEntry) kmsg.DescribeConfigsResponseResourceConfig {
	c := kmsg.NewDescribeConfigsResponseResourceConfig()
	c.Name, c.Value, c.IsSensitive = e.Name, e.Value, e.Sensitive
	c.ReadOnly = e.ReadOnly || kind == kmsg.ConfigResourceTypeBroker
	c.Source, c.ConfigType = kmsg.ConfigSource(e.Source), kmsg.ConfigType(e.Type)
	c.IsDefault = e.Source == metadata.SourceDefault
	if r.IncludeSynonyms {
		for _, s := range e.Synonyms {
			y := kmsg.NewDescribeConfigsResponseResourceConfigConfigSynonym()
			y.Name, y.Value, y.Source = s.Name, s.Value, kmsg.ConfigSource(s.Source)
			c.ConfigSynonyms = append(c.ConfigSynonyms, y)
		}
	}
	if r.IncludeDocumentation && e.Doc != "" {
		c.Documentation = &e.Doc
	}
	return c
}
