package kafka

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
)

func describe(kind kmsg.ConfigResourceType, name string, configs ...string) kmsg.DescribeConfigsRequestResource {
	r := kmsg.NewDescribeConfigsRequestResource()
	r.ResourceType, r.ResourceName, r.ConfigNames = kind, name, configs
	return r
}

func config(t *testing.T, r *kmsg.DescribeConfigsResponseResource, name string) kmsg.DescribeConfigsResponseResourceConfig {
	t.Helper()
	for _, c := range r.Configs {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("%s of %q is not among %d configs", name, r.ResourceName, len(r.Configs))
	return kmsg.DescribeConfigsResponseResourceConfig{}
}

func TestDescribeConfigsOfTopic(t *testing.T) {
	for _, more := range []bool{false, true} {
		versions(t, 32, 1, 4, func(t *testing.T, v int16) {
			b := newAdminBroker(t)
			b.add("logs", 1).Configs["retention.ms"] = "5000"
			req := kmsg.NewPtrDescribeConfigsRequest()
			req.IncludeSynonyms, req.IncludeDocumentation = more, more
			req.Resources = append(req.Resources, describe(kmsg.ConfigResourceTypeTopic, "logs"))
			resp := roundTrip[*kmsg.DescribeConfigsResponse](t, b, req, v)
			r := &resp.Resources[0]
			wantCode(t, "logs", r.ErrorCode, nil)
			all, _ := b.TopicConfigs("logs")
			if len(r.Configs) != len(all) || len(all) < 20 {
				t.Errorf("%d configs, want %d", len(r.Configs), len(all))
			}
			set, def := config(t, r, "retention.ms"), config(t, r, "delete.retention.ms")
			if text(set.Value) != "5000" || set.Source != kmsg.ConfigSource(metadata.SourceDynamicTopic) || set.ReadOnly {
				t.Errorf("retention.ms: %+v", set)
			}
			if text(def.Value) != "86400000" || def.Source != kmsg.ConfigSource(metadata.SourceDefault) {
				t.Errorf("delete.retention.ms: %+v", def)
			}
			if more != (len(set.ConfigSynonyms) > 0) {
				t.Errorf("asked for synonyms: %v, got %d", more, len(set.ConfigSynonyms))
			}
			if more && (text(set.ConfigSynonyms[0].Value) != "5000" || len(set.ConfigSynonyms) < 2) {
				t.Errorf("synonyms %+v", set.ConfigSynonyms)
			}
			if v >= 3 && set.ConfigType != kmsg.ConfigType(metadata.TypeLong) {
				t.Errorf("type %v", set.ConfigType)
			}
			if v >= 3 && more != (text(set.Documentation) != "") {
				t.Errorf("asked for documentation: %v, got %q", more, text(set.Documentation))
			}
		})
	}
}

func TestDescribeConfigsFilter(t *testing.T) {
	versions(t, 32, 1, 4, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		b.add("logs", 1)
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.Resources = append(req.Resources, describe(kmsg.ConfigResourceTypeTopic, "logs", "cleanup.policy", "no.such.key", "retention.ms"))
		resp := roundTrip[*kmsg.DescribeConfigsResponse](t, b, req, v)
		var names []string
		for _, c := range resp.Resources[0].Configs {
			names = append(names, c.Name)
		}
		if strings.Join(names, " ") != "cleanup.policy retention.ms" {
			t.Errorf("got %v", names)
		}
	})
}

// Null and an empty list of names both ask for everything.
func TestDescribeConfigsEmptyFilter(t *testing.T) {
	b := newAdminBroker(t)
	b.add("logs", 1)
	all, _ := b.TopicConfigs("logs")
	for _, names := range [][]string{nil, {}} {
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.Resources = append(req.Resources, describe(kmsg.ConfigResourceTypeTopic, "logs", names...))
		resp := roundTrip[*kmsg.DescribeConfigsResponse](t, b, req, 4)
		if n := len(resp.Resources[0].Configs); n != len(all) {
			t.Errorf("names %#v: %d configs, want %d", names, n, len(all))
		}
	}
}

func TestDescribeConfigsOfBroker(t *testing.T) {
	versions(t, 32, 1, 4, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.Resources = append(req.Resources, describe(kmsg.ConfigResourceTypeBroker, "1"))
		resp := roundTrip[*kmsg.DescribeConfigsResponse](t, b, req, v)
		r := &resp.Resources[0]
		wantCode(t, "broker", r.ErrorCode, nil)
		if id := config(t, r, "node.id"); text(id.Value) != "1" {
			t.Errorf("node.id: %+v", id)
		}
		for _, c := range r.Configs {
			if !c.ReadOnly {
				t.Errorf("%s of the broker is not read-only", c.Name)
			}
		}
	})
}

func TestDescribeConfigsErrors(t *testing.T) {
	versions(t, 32, 1, 4, func(t *testing.T, v int16) {
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.Resources = append(req.Resources,
			describe(kmsg.ConfigResourceTypeTopic, "missing"),
			describe(kmsg.ConfigResourceTypeTopic, "bad/name"),
			describe(kmsg.ConfigResourceTypeBroker, "2"),
			describe(kmsg.ConfigResourceTypeBroker, "one"),
			describe(kmsg.ConfigResourceTypeUnknown, "x"),
			describe(kmsg.ConfigResourceTypeBrokerLogger, "1"))
		want := []*kerr.Error{kerr.UnknownTopicOrPartition, kerr.InvalidTopicException, kerr.InvalidRequest, kerr.InvalidRequest, kerr.InvalidRequest, nil}
		resp := roundTrip[*kmsg.DescribeConfigsResponse](t, newAdminBroker(t), req, v)
		if len(resp.Resources) != len(want) {
			t.Fatalf("%d answers", len(resp.Resources))
		}
		for i, r := range resp.Resources {
			wantCode(t, r.ResourceType.String()+" "+r.ResourceName, r.ErrorCode, want[i])
			if (r.ErrorMessage == nil) != (want[i] == nil) || len(r.Configs) != 0 {
				t.Errorf("%s: message %q, %d configs", r.ResourceName, text(r.ErrorMessage), len(r.Configs))
			}
			if r.ResourceType != req.Resources[i].ResourceType || r.ResourceName != req.Resources[i].ResourceName {
				t.Errorf("answer %d is for %v %q", i, r.ResourceType, r.ResourceName)
			}
		}
	})
}

func replace(kind kmsg.ConfigResourceType, name string, pairs ...string) kmsg.AlterConfigsRequestResource {
	r := kmsg.NewAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = kind, name
	for i := 0; i < len(pairs); i += 2 {
		c := kmsg.NewAlterConfigsRequestResourceConfig()
		c.Name, c.Value = pairs[i], &pairs[i+1]
		r.Configs = append(r.Configs, c)
	}
	return r
}

func TestAlterConfigs(t *testing.T) {
	for _, validate := range []bool{false, true} {
		versions(t, 33, 0, 2, func(t *testing.T, v int16) {
			b := newAdminBroker(t)
			b.add("logs", 1).Configs = map[string]string{"retention.ms": "5000", "segment.ms": "7000"}
			b.add("keep", 1).Configs["retention.ms"] = "1"
			req := kmsg.NewPtrAlterConfigsRequest()
			req.ValidateOnly = validate
			req.Resources = append(req.Resources,
				replace(kmsg.ConfigResourceTypeTopic, "logs", "retention.ms", "6000"),
				replace(kmsg.ConfigResourceTypeTopic, "keep", "retention.ms", "soon"),
				replace(kmsg.ConfigResourceTypeTopic, "keep", "retention.ms", "2", "retention.ms", "3"),
				replace(kmsg.ConfigResourceTypeTopic, "missing", "retention.ms", "2"),
				replace(kmsg.ConfigResourceTypeBroker, "1", "log.retention.ms", "2"))
			resp := roundTrip[*kmsg.AlterConfigsResponse](t, b, req, v)
			want := []*kerr.Error{nil, kerr.InvalidConfig, kerr.InvalidRequest, kerr.UnknownTopicOrPartition, kerr.InvalidRequest}
			if len(resp.Resources) != len(want) {
				t.Fatalf("%d answers", len(resp.Resources))
			}
			for i, r := range resp.Resources {
				wantCode(t, r.ResourceName, r.ErrorCode, want[i])
				if (r.ErrorMessage == nil) != (want[i] == nil) || r.ResourceName != req.Resources[i].ResourceName {
					t.Errorf("%s: message %q", r.ResourceName, text(r.ErrorMessage))
				}
			}
			got := b.topics["logs"].Configs
			if validate && (len(got) != 2 || got["retention.ms"] != "5000") || !validate && (len(got) != 1 || got["retention.ms"] != "6000") {
				t.Errorf("validate only: %v, configs %v", validate, got)
			}
			if b.topics["keep"].Configs["retention.ms"] != "1" {
				t.Errorf("refused changes were made: %v", b.topics["keep"].Configs)
			}
		})
	}
}

type change struct {
	key   string
	value *string
	op    kmsg.IncrementalAlterConfigOp
}

func incremental(kind kmsg.ConfigResourceType, name string, changes ...change) kmsg.IncrementalAlterConfigsRequestResource {
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = kind, name
	for _, ch := range changes {
		c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		c.Name, c.Value, c.Op = ch.key, ch.value, ch.op
		r.Configs = append(r.Configs, c)
	}
	return r
}

func TestIncrementalAlterConfigs(t *testing.T) {
	for _, validate := range []bool{false, true} {
		versions(t, 44, 0, 1, func(t *testing.T, v int16) {
			b := newAdminBroker(t)
			b.add("logs", 1).Configs = map[string]string{"retention.ms": "5000", "segment.ms": "7000"}
			b.add("keep", 1)
			req := kmsg.NewPtrIncrementalAlterConfigsRequest()
			req.ValidateOnly = validate
			topic := kmsg.ConfigResourceTypeTopic
			req.Resources = append(req.Resources,
				incremental(topic, "logs", change{"retention.ms", nil, 1}, change{"segment.bytes", ptr("2097152"), 0}, change{"cleanup.policy", ptr("compact"), 2}),
				incremental(topic, "keep", change{"retention.ms", ptr("soon"), 0}),
				incremental(topic, "keep", change{"retention.ms", ptr("1"), 2}),
				incremental(topic, "keep", change{"retention.ms", ptr("1"), 9}),
				incremental(topic, "keep", change{"retention.ms", ptr("1"), 0}, change{"retention.ms", ptr("2"), 0}),
				incremental(topic, "keep", change{"retention.ms", nil, 0}),
				incremental(topic, "missing", change{"retention.ms", ptr("1"), 0}),
				incremental(kmsg.ConfigResourceTypeBroker, "1", change{"log.retention.ms", ptr("1"), 0}))
			resp := roundTrip[*kmsg.IncrementalAlterConfigsResponse](t, b, req, v)
			want := []*kerr.Error{nil, kerr.InvalidConfig, kerr.InvalidConfig, kerr.InvalidRequest, kerr.InvalidRequest,
				kerr.InvalidRequest, kerr.UnknownTopicOrPartition, kerr.InvalidRequest}
			if len(resp.Resources) != len(want) {
				t.Fatalf("%d answers", len(resp.Resources))
			}
			for i, r := range resp.Resources {
				wantCode(t, r.ResourceName+" "+text(r.ErrorMessage), r.ErrorCode, want[i])
			}
			got := b.topics["logs"].Configs
			_, kept := got["retention.ms"]
			changed := !kept && got["segment.bytes"] == "2097152" && got["cleanup.policy"] == "delete,compact" && got["segment.ms"] == "7000"
			if changed == validate {
				t.Errorf("validate only: %v, configs %v", validate, got)
			}
			if len(b.topics["keep"].Configs) != 0 {
				t.Errorf("refused changes were made: %v", b.topics["keep"].Configs)
			}
		})
	}
}
