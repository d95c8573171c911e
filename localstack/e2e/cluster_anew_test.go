package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStartsAnewLater has an agent find out that it was taken for dead while the metadata store is away: it waits
// for that, and leads again.
func TestStartsAnewLater(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, "--lease", "1s")
	c.load(50)
	n, _ := c.victim()
	if err := n.proc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the others have taken over", func() bool {
		for _, addr := range c.leaders(crashTopic) {
			if addr == n.Kafka || addr == "" {
				return false
			}
		}
		return true
	})
	if err := c.redis.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.proc.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "it tries to start anew", func() bool { return strings.Contains(n.Log(), "can't start anew yet") })
	if err := c.redis.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := n.ready(); err != nil {
		t.Fatal(err)
	}
	if !n.Running() {
		t.Error("the process has ended")
	}
	c.load(50)
	c.finish()
}
