package kafka

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
)

func newTopic(name string, partitions int32, replicas int16) kmsg.CreateTopicsRequestTopic {
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = name, partitions, replicas
	return t
}

func withConfig(t kmsg.CreateTopicsRequestTopic, name string, value *string) kmsg.CreateTopicsRequestTopic {
	c := kmsg.NewCreateTopicsRequestTopicConfig()
	c.Name, c.Value = name, value
	t.Configs = append(t.Configs, c)
	return t
}

func assign(t kmsg.CreateTopicsRequestTopic, partition int32, replicas ...int32) kmsg.CreateTopicsRequestTopic {
	a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
	a.Partition, a.Replicas = partition, replicas
	t.ReplicaAssignment = append(t.ReplicaAssignment, a)
	return t
}

func TestCreateTopics(t *testing.T) {
	versions(t, 19, 2, 7, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		req := kmsg.NewPtrCreateTopicsRequest()
		req.Topics = append(req.Topics, withConfig(newTopic("logs", 4, 1), "retention.ms", ptr("5000")), newTopic("defaults", -1, -1))
		resp := roundTrip[*kmsg.CreateTopicsResponse](t, b, req, v)
		if len(resp.Topics) != 2 {
			t.Fatalf("%d answers", len(resp.Topics))
		}
		for _, rt := range resp.Topics {
			wantCode(t, rt.Topic, rt.ErrorCode, nil)
		}
		made := b.topics["logs"]
		if made == nil || made.Partitions != 4 || made.Configs["retention.ms"] != "5000" || b.topics["defaults"].Partitions != 3 {
			t.Fatalf("created %+v, %+v", made, b.topics["defaults"])
		}
		rt := resp.Topics[0]
		if v >= 7 && ids.TopicID(rt.TopicID) != made.ID {
			t.Errorf("topic id %v, want %v", rt.TopicID, made.ID)
		}
		if v < 5 {
			return
		}
		if rt.NumPartitions != 4 || rt.ReplicationFactor != 1 {
			t.Errorf("%d partitions, %d replicas", rt.NumPartitions, rt.ReplicationFactor)
		}
		found := false
		for _, c := range rt.Configs {
			if c.Name == "retention.ms" {
				found = text(c.Value) == "5000" && c.Source == int8(metadata.SourceDynamicTopic)
			}
		}
		if !found {
			t.Errorf("retention.ms is not in the %d configs as it was set", len(rt.Configs))
		}
	})
}

func TestCreateTopicsErrors(t *testing.T) {
	both := assign(newTopic("both", 1, -1), 0, 1)
	cases := []struct {
		topic kmsg.CreateTopicsRequestTopic
		want  *kerr.Error
		text  string
	}{
		{newTopic("there", 1, 1), kerr.TopicAlreadyExists, "there"},
		{newTopic("bad/name", 1, 1), kerr.InvalidTopicException, ""},
		{newTopic("none", 0, 1), kerr.InvalidPartitions, ""},
		{newTopic("copies", 1, 3), kerr.InvalidReplicationFactor, ""},
		{withConfig(newTopic("config", 1, 1), "retention.ms", ptr("soon")), kerr.InvalidConfig, "retention.ms"},
		{withConfig(newTopic("unknown", 1, 1), "no.such.key", ptr("1")), kerr.InvalidConfig, "no.such.key"},
		{withConfig(withConfig(newTopic("twice", 1, 1), "retention.ms", ptr("1")), "retention.ms", ptr("2")), kerr.InvalidRequest, "retention.ms"},
		{both, kerr.InvalidRequest, ""},
		{assign(newTopic("stranger", -1, -1), 0, 9), kerr.InvalidReplicaAssignment, "9"},
		{assign(newTopic("gap", -1, -1), 1, 1), kerr.InvalidReplicaAssignment, ""},
		{assign(newTopic("negative", -1, -1), -1, 1), kerr.InvalidReplicaAssignment, ""},
		{assign(assign(newTopic("again", -1, -1), 0, 1), 0, 1), kerr.InvalidReplicaAssignment, ""},
		{assign(newTopic("nobody", -1, -1), 0), kerr.InvalidReplicaAssignment, ""},
		{assign(newTopic("same", -1, -1), 0, 1, 1), kerr.InvalidReplicaAssignment, ""},
		{assign(assign(newTopic("unlike", -1, -1), 0, 1, 2), 1, 1), kerr.InvalidReplicaAssignment, ""},
		{assign(assign(newTopic("good", -1, -1), 1, 2), 0, 1), nil, ""},
	}
	versions(t, 19, 2, 7, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		b.add("there", 1)
		req := kmsg.NewPtrCreateTopicsRequest()
		for _, c := range cases {
			req.Topics = append(req.Topics, c.topic)
		}
		req.Topics = append(req.Topics, newTopic("dup", 1, 1), newTopic("dup", 2, 1))
		resp := roundTrip[*kmsg.CreateTopicsResponse](t, b, req, v)
		if len(resp.Topics) != len(cases)+1 {
			t.Fatalf("%d answers, want %d", len(resp.Topics), len(cases)+1)
		}
		for i, c := range cases {
			rt := resp.Topics[i]
			wantCode(t, rt.Topic, rt.ErrorCode, c.want)
			if c.want != nil && (rt.ErrorMessage == nil || !strings.Contains(*rt.ErrorMessage, c.text)) {
				t.Errorf("%s: message %q does not name %q", rt.Topic, text(rt.ErrorMessage), c.text)
			}
			if c.want != nil && c.topic.Topic != "there" && b.topics[c.topic.Topic] != nil {
				t.Errorf("%s was created", c.topic.Topic)
			}
		}
		dup := resp.Topics[len(cases)]
		wantCode(t, "dup", dup.ErrorCode, kerr.InvalidRequest)
		if dup.Topic != "dup" || b.topics["dup"] != nil {
			t.Errorf("a topic that is twice in the request: %+v", b.topics["dup"])
		}
		if good := b.topics["good"]; good == nil || good.Partitions != 2 {
			t.Errorf("assigned topic: %+v", good)
		}
	})
}

func TestCreateTopicsValidateOnly(t *testing.T) {
	versions(t, 19, 2, 7, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		req := kmsg.NewPtrCreateTopicsRequest()
		req.ValidateOnly = true
		req.Topics = append(req.Topics, newTopic("maybe", -1, -1), withConfig(newTopic("bad", 1, 1), "cleanup.policy", ptr("burn")))
		resp := roundTrip[*kmsg.CreateTopicsResponse](t, b, req, v)
		wantCode(t, "maybe", resp.Topics[0].ErrorCode, nil)
		wantCode(t, "bad", resp.Topics[1].ErrorCode, kerr.InvalidConfig)
		if len(b.topics) != 0 {
			t.Errorf("validation created %d topics", len(b.topics))
		}
		if n := resp.Topics[0].NumPartitions; v >= 5 && n != 3 {
			t.Errorf("%d partitions, want the default", n)
		}
		if v >= 5 && resp.Topics[0].Configs == nil {
			t.Error("null configs, which Java's admin client does not survive")
		}
		if resp.Topics[0].TopicID != [16]byte{} {
			t.Errorf("topic id %x of a topic that is not there", resp.Topics[0].TopicID)
		}
	})
}

func TestDeleteTopics(t *testing.T) {
	versions(t, 20, 1, 6, func(t *testing.T, v int16) {
		b := newAdminBroker(t)
		a, c := b.add("a", 1), b.add("c", 1)
		b.add("stays", 1)
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.TopicNames = []string{"a", "missing"}
		want := []*kerr.Error{nil, kerr.UnknownTopicOrPartition}
		if v >= 6 {
			add := func(name *string, id [16]byte, code *kerr.Error) {
				rt := kmsg.NewDeleteTopicsRequestTopic()
				rt.Topic, rt.TopicID = name, id
				req.Topics = append(req.Topics, rt)
				want = append(want, code)
			}
			want = nil
			add(ptr("a"), [16]byte{}, nil)
			add(ptr("missing"), [16]byte{}, kerr.UnknownTopicOrPartition)
			add(nil, c.ID, nil)
			add(nil, [16]byte{1: 9}, kerr.UnknownTopicID)
			add(ptr("stays"), b.topics["stays"].ID, kerr.InvalidRequest)
		}
		resp := roundTrip[*kmsg.DeleteTopicsResponse](t, b, req, v)
		if len(resp.Topics) != len(want) {
			t.Fatalf("%d answers, want %d", len(resp.Topics), len(want))
		}
		for i, rt := range resp.Topics {
			wantCode(t, text(rt.Topic), rt.ErrorCode, want[i])
			if v >= 5 && (rt.ErrorMessage == nil) != (want[i] == nil) {
				t.Errorf("%s: message %q", text(rt.Topic), text(rt.ErrorMessage))
			}
		}
		if b.topics["a"] != nil || b.topics["stays"] == nil {
			t.Errorf("left: %v", b.topics)
		}
		if v < 6 {
			return
		}
		if b.topics["c"] != nil || text(resp.Topics[2].Topic) != "c" || resp.Topics[0].TopicID != a.ID {
			t.Errorf("deletion by id: %+v", resp.Topics)
		}
		if resp.Topics[3].Topic != nil {
			t.Errorf("an unknown id got the name %q", *resp.Topics[3].Topic)
		}
	})
}

func TestDeleteTopicsFailure(t *testing.T) {
	b := newAdminBroker(t)
	b.add("a", 1)
	b.fail["DeleteTopic"] = metadata.ErrUnavailable
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TopicNames = []string{"a"}
	resp := roundTrip[*kmsg.DeleteTopicsResponse](t, b, req, 5)
	wantCode(t, "a", resp.Topics[0].ErrorCode, kerr.RequestTimedOut)
}

// A topic that is in the request twice, by whatever, is not deleted.
func TestDeleteTopicsTwice(t *testing.T) {
	for v := int16(1); v <= 6; v++ {
		b := newAdminBroker(t)
		a := b.add("a", 1)
		b.add("c", 1)
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.TopicNames = []string{"a", "c", "a"}
		for i := range 4 {
			rt := kmsg.NewDeleteTopicsRequestTopic()
			switch i {
			case 0:
				rt.Topic = ptr("a")
			case 1:
				rt.Topic = ptr("c")
			case 2:
				rt.TopicID = a.ID
			}
			req.Topics = append(req.Topics, rt)
		}
		resp := roundTrip[*kmsg.DeleteTopicsResponse](t, b, req, v)
		for i, rt := range resp.Topics {
			want := kerr.InvalidRequest
			if i == 1 {
				want = nil
			}
			wantCode(t, text(rt.Topic), rt.ErrorCode, want)
		}
		if b.topics["a"] == nil || b.topics["c"] != nil {
			t.Errorf("v%d left %v", v, b.topics)
		}
	}
}

func TestCreatePartitionsTwice(t *testing.T) {
	b := newAdminBroker(t)
	b.add("a", 1)
	req := kmsg.NewPtrCreatePartitionsRequest()
	for _, n := range []int32{2, 3} {
		rt := kmsg.NewCreatePartitionsRequestTopic()
		rt.Topic, rt.Count = "a", n
		req.Topics = append(req.Topics, rt)
	}
	resp := roundTrip[*kmsg.CreatePartitionsResponse](t, b, req, 3)
	if len(resp.Topics) != 1 {
		t.Fatalf("%d answers", len(resp.Topics))
	}
	wantCode(t, "a", resp.Topics[0].ErrorCode, kerr.InvalidRequest)
	if n := b.topics["a"].Partitions; n != 1 {
		t.Errorf("%d partitions", n)
	}
}

func TestCreatePartitions(t *testing.T) {
	for _, validate := range []bool{false, true} {
		versions(t, 37, 0, 3, func(t *testing.T, v int16) {
			b := newAdminBroker(t)
			b.add("grow", 2)
			b.add("same", 2)
			req := kmsg.NewPtrCreatePartitionsRequest()
			req.ValidateOnly = validate
			for name, n := range map[string]int32{"grow": 5, "same": 2, "missing": 1} {
				rt := kmsg.NewCreatePartitionsRequestTopic()
				rt.Topic, rt.Count = name, n
				req.Topics = append(req.Topics, rt)
			}
			resp := roundTrip[*kmsg.CreatePartitionsResponse](t, b, req, v)
			want := map[string]*kerr.Error{"same": kerr.InvalidPartitions, "missing": kerr.UnknownTopicOrPartition}
			if len(resp.Topics) != 3 {
				t.Fatalf("%d answers", len(resp.Topics))
			}
			for _, rt := range resp.Topics {
				wantCode(t, rt.Topic, rt.ErrorCode, want[rt.Topic])
				if (rt.ErrorMessage == nil) != (want[rt.Topic] == nil) {
					t.Errorf("%s: message %q", rt.Topic, text(rt.ErrorMessage))
				}
			}
			total := int32(5)
			if validate {
				total = 2
			}
			if n := b.topics["grow"].Partitions; n != total {
				t.Errorf("%d partitions, want %d", n, total)
			}
		})
	}
}
