package agent

import (
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/services/lead"
)

// A lease ends while the machine is suspended, though Go's clock stands still meanwhile.
func TestLeaseClock(t *testing.T) {
	before := sinceBoot()
	time.Sleep(20 * time.Millisecond)
	if d := sinceBoot() - before; d < 20*time.Millisecond || d > time.Minute {
		t.Errorf("%v have passed", d)
	}
	at := time.Hour
	c := newLeaseClock(func() time.Duration { return at })
	lease := lead.NewOwn(3*time.Second, 300*time.Millisecond)
	lease.Renewed(c.Now())
	lease.Put(c.Now())
	if !lease.Live(c.Now()) {
		t.Error("a fresh lease is dead")
	}
	at += 3 * time.Second // suspended
	if lease.Live(c.Now()) || !lease.Lapsed(c.Now()) {
		t.Error("the lease outlives a suspension")
	}
	lease.Put(c.Now())
	if !lease.Live(c.Now()) {
		t.Error("a put does not bring it back")
	}
}
