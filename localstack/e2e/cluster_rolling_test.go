package e2e

import (
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/services/broker"
)

// TestRollingUpgrade stops one agent after the other with SIGTERM and starts it again at once, as an upgrade does, under
// load: no producer and no group member sees an error, nothing is lost, and each agent leads again.
func TestRollingUpgrade(t *testing.T) {
	c := newCluster(t, 3, "--lease", "1s")
	c.members = startMembers(c.addr(), c.fail)
	createTopic(t, c.nodes[0], "more", 24, nil) // to have something to even out
	leads := func(n *Node) (led int) {
		for _, topic := range []string{"more", crashTopic, broker.OffsetsTopic} { // what is evened out is the sum
			for _, addr := range c.leaders(topic) {
				if addr == n.Kafka {
					led++
				}
			}
		}
		return led
	}
	c.load(100)
	stop, longest := make(chan struct{}), make(chan time.Duration, 1)
	go func() { longest <- c.l.gaps(stop) }()
	for i, n := range c.nodes {
		began := time.Now()
		n.Stop()
		stopped := time.Since(began)
		n.Start()
		t.Logf("agent %d: stopped in %v, ready after %v", i+1, stopped.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		c.load(50)
		eventually(t, time.Minute, "the agent leads again", func() bool { return leads(n) >= 4 })
		c.load(50)
	}
	close(stop)
	t.Logf("longest time without an acknowledgement of a partition: %v", (<-longest).Round(time.Millisecond))
	c.members.stop()
	c.members = nil
	c.finish()
}
