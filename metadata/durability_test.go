package metadata

import (
	"errors"
	"strings"
	"testing"
)

func inCluster(t *testing.T, broker map[string]string) func(*Options) {
	t.Helper()
	d, err := NewClusterDefaults(broker)
	if err != nil {
		t.Fatal(err)
	}
	return func(o *Options) { o.Defaults = d }
}

func described(s *Store, topic *Topic) ConfigEntry {
	for _, e := range s.Defaults().Describe(topic.Configs) {
		if e.Name == durabilityConfig {
			return e
		}
	}
	return ConfigEntry{}
}

// The class of a topic is the cluster's default or what it was created with, and stays,
// whatever another agent has for a default.
func TestDurability(t *testing.T) {
	w := newWorld(t)
	s := w.open(inCluster(t, nil))
	plain, local := create(t, s, "plain", 1), create(t, s, "local", 1, "durability=local")
	if plain.Config.Durability != DurabilityObject || local.Config.Durability != DurabilityLocal {
		t.Fatalf("classes are %s and %s", plain.Config.Durability, local.Config.Durability)
	}
	if e := described(s, plain); *e.Value != "object" || e.Source != SourceDefault {
		t.Errorf("described as %s from %d", *e.Value, e.Source)
	}
	if e := described(s, local); *e.Value != "local" || e.Source != SourceDynamicTopic {
		t.Errorf("described as %s from %d", *e.Value, e.Source)
	}
	for _, c := range []struct {
		topic string
		op    ConfigOp
	}{{"plain", op(OpSet, durabilityConfig, "local")}, {"local", op(OpSet, durabilityConfig, "object")}, {"local", ConfigOp{Key: durabilityConfig, Kind: OpDelete}}} {
		err := s.AlterConfig(t.Context(), c.topic, []ConfigOp{c.op}, false)
		if !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), "fixed when a topic is created") {
			t.Errorf("%s: %v: %v", c.topic, c.op, err)
		}
	}
	mustNil(t, s.AlterConfig(t.Context(), "local", []ConfigOp{op(OpSet, durabilityConfig, "local"), op(OpSet, "retention.ms", "5")}, false))
	wantErr(t, "replace", s.ReplaceConfig(t.Context(), "local", nullable("durability=object"), false), ErrInvalidConfig)
	mustNil(t, s.ReplaceConfig(t.Context(), "local", nullable("retention.ms=6"), false))
	mustNil(t, s.AddPartitions(t.Context(), "plain", 2, false))
	for _, config := range []string{"remote.storage.enable=false", "remote.log.copy.disable=true"} { // nothing would ever free its stream
		name, value, _ := strings.Cut(config, "=")
		wantErr(t, config, s.AlterConfig(t.Context(), "plain", []ConfigOp{op(OpSet, name, value)}, false), ErrInvalidConfig)
		if _, err := s.Defaults().Parse(map[string]string{name: value}); !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), "durability=local") {
			t.Errorf("a topic of class object with %s: %v", config, err)
		}
		if _, err := s.Defaults().Parse(map[string]string{name: value, durabilityConfig: "local"}); err != nil {
			t.Errorf("a topic of class local with %s: %v", config, err)
		}
	}

	other := w.open(inCluster(t, map[string]string{durabilityConfig: "local"}), func(o *Options) { o.ClusterID = s.ClusterID() })
	for name, want := range map[string]Durability{"plain": DurabilityObject, "local": DurabilityLocal} {
		topic := other.Snapshot().Topic(name)
		if topic.Config.Durability != want {
			t.Errorf("%s is %s for an agent with another default", name, topic.Config.Durability)
		}
		if e := described(other, topic); *e.Value != string(want) {
			t.Errorf("%s is described as %s", name, *e.Value)
		}
	}
	if got := create(t, other, "third", 1).Config.Durability; got != DurabilityLocal {
		t.Errorf("a topic of the other agent is %s", got)
	}
	wantErr(t, "reset to this agent's default", other.AlterConfig(t.Context(), "plain", []ConfigOp{{Key: durabilityConfig, Kind: OpDelete}}, false), ErrInvalidConfig)
}

// A topic object of before says nothing of a class, and is what its cluster was, even
// if it has the config, which was without effect then.
func TestDurabilityOfOldTopics(t *testing.T) {
	for _, c := range []struct {
		cluster bool
		configs string
		want    Durability
	}{{true, "", DurabilityObject}, {true, `"configs":{"durability":"local"},`, DurabilityObject}, {false, "", DurabilityLocal}, {false, `"configs":{"durability":"local"},`, DurabilityLocal}} {
		w := newWorld(t)
		change := func(*Options) {}
		if c.cluster {
			change = inCluster(t, nil)
		}
		w.open(change).Close()
		w.bucket.replace(t, topicObject("old", 1), `{"format":1,"version":1,"op":"create","name":"old","id":"AAECAwQFBgcICQoLDA0ODw","partitions":2,`+c.configs+
			`"created_ms":1700000000000,"owners":[{"from":0,"to":2,"node":1,"incarnation":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}],"at_ms":1700000000000,"by":"01ARZ3NDEKTSV4RRFFQ69G5FAV","nonce":"01ARZ3NDEKTSV4RRFFQ69G5FAW"}`)
		s := w.open(change)
		topic := s.Snapshot().Topic("old")
		if topic == nil || topic.Config.Durability != c.want || *described(s, topic).Value != string(c.want) {
			t.Fatalf("%+v: the topic is %+v", c, topic)
		}
		mustNil(t, s.AlterConfig(t.Context(), "old", []ConfigOp{op(OpSet, "retention.ms", "7")}, false))
		if got := s.Snapshot().Topic("old").Config.Durability; got != c.want {
			t.Errorf("%+v: after a change it is %s", c, got)
		}
	}
}
