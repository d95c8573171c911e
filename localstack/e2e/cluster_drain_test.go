package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/services/agent"
)

// TestDrainVerb drains an agent under load: it leads nothing then, is given no partitions of new topics, and goes on
// to answer; nobody sees an error, and after undo it leads again.
func TestDrainVerb(t *testing.T) {
	c := newCluster(t, 2, "--lease", "1s")
	c.load(100)
	n, _ := c.victim()
	node := int32(slices.Index(c.nodes, n) + 1)
	state := func() (s agent.ClusterState) {
		var out bytes.Buffer
		if err := c.nodes[0].CLI(&out, "cluster", "info", "-o", "json"); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out.Bytes(), &s); err != nil {
			t.Fatalf("%v: %s", err, out.String())
		}
		return s
	}
	leads := func() (led int32) {
		for _, a := range state().Agents {
			if a.Node == node {
				led = a.State.Partitions
			}
		}
		return led
	}
	var out strings.Builder
	if err := c.nodes[0].CLI(&out, "cluster", "drain", fmt.Sprint(node)); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	t.Log(strings.TrimSpace(out.String()))
	eventually(t, 10*time.Second, "it leads nothing", func() bool { return leads() == 0 })
	c.load(100)
	createTopic(t, n, "later", 30, nil)
	for p, addr := range c.leaders("later") {
		if addr == n.Kafka || addr == "" {
			t.Errorf("partition %d of a new topic is led at %q", p, addr)
		}
	}
	s := state()
	for _, a := range s.Agents {
		if a.Drained != (a.Node == node) || a.State == nil {
			t.Errorf("agent %+v", a)
		}
	}
	if s.Leaderless > 0 || s.Metadata != "redis" || s.Bucket == "" || s.Partitions != crashPartitions+30 || s.Topics != 2 {
		t.Errorf("%+v", s)
	}
	out.Reset()
	if err := n.CLI(&out, "cluster", "agents"); err != nil || strings.Count(out.String(), "drained") != 1 {
		t.Errorf("%v: %s", err, out.String())
	}
	out.Reset()
	if err := n.CLI(&out, "cluster", "leases"); err != nil || strings.Count(out.String(), "held") != clusterAgents || strings.Count(out.String(), " live ") != clusterAgents {
		t.Errorf("%v: %s", err, out.String())
	}
	if err := n.CLI(&out, "cluster", "drain", "--undo", fmt.Sprint(node)); err != nil {
		t.Error(err)
	}
	eventually(t, time.Minute, "it leads again", func() bool { return leads() >= 8 })
	c.load(100)
	c.finish()
}

// TestDrainRefused asks for what can't be: the error names it, and nothing moves.
func TestDrainRefused(t *testing.T) {
	c := newCluster(t, 1, "--lease", "1s")
	drain := func(node, want string) {
		t.Helper()
		var out bytes.Buffer
		if err := c.nodes[0].CLI(&out, "cluster", "drain", "--wait", "20s", node); err == nil && want != "" || err != nil && (want == "" || !strings.Contains(err.Error(), want)) {
			t.Errorf("drain %s: %v, want %q: %s", node, err, want, out.String())
		}
	}
	drain("7", "unknown node: 7")
	drain("first", "want a node id")
	drain("3", "")
	drain("2", "")
	drain("1", "node 1 is the only one that lives, is no reader and is not drained")
	c.load(100)
	for p, addr := range c.leaders(crashTopic) {
		if addr != c.nodes[0].Kafka {
			t.Errorf("partition %d is led at %q", p, addr)
		}
	}
	c.nodes[0].Kill() // only drained ones are left: better they than nobody
	c.load(100)
	c.finish()
}
