package agent

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/group"
)

// settledPeer is a peer with an assignment; it is closed with the test.
func settledPeer(t *testing.T, a *Agent, id, instance string) *peer {
	t.Helper()
	p, err := newPeer(a.KafkaAddr(), id, instance)
	if err == nil {
		t.Cleanup(p.close)
		err = p.settle(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Commits of those who are no members any more, or never were, change nothing.
func TestGroupsCommitRefused(t *testing.T) {
	a, _ := groupAgent(t, t.TempDir(), nil, nil)
	newTopic(t, a.broker, "logs", 1)
	first := settledPeer(t, a, "g", "one")
	if err := first.commit("logs", 7); err != nil {
		t.Fatal(err)
	}
	now := settledPeer(t, a, "g", "one") // takes the place of the first
	stranger, old, simple, dynamic := *now, *now, *now, *now
	stranger.id, stranger.instance = "nobody", ""
	old.generation--
	simple.id, simple.instance, simple.generation = "", "", -1
	dynamic.instance = "" // the right id without the instance's
	fresh := *now
	fresh.group = "nothing"
	for _, c := range []struct {
		what string
		peer *peer
		want error
	}{
		{"a fenced static member", first, kerr.FencedInstanceID},
		{"a member that there is not", &stranger, kerr.UnknownMemberID},
		{"a member of an earlier generation", &old, kerr.IllegalGeneration},
		{"a client without membership, to a group with members", &simple, kerr.UnknownMemberID},
		{"a group that there is not", &fresh, kerr.GroupIDNotFound},
	} {
		if err := c.peer.commit("logs", 99); !errors.Is(err, c.want) {
			t.Errorf("commit of %s: %v, want %v", c.what, err, c.want)
		}
	}
	if err := first.heartbeat(); !errors.Is(err, kerr.FencedInstanceID) {
		t.Errorf("heartbeat of a fenced member: %v", err)
	}
	if got := committedOffsets(t, a.broker.Groups(), "g"); len(got) != 1 || got[0] != 7 {
		t.Errorf("offsets %v", got)
	}
	if err := now.commit("logs", 8); err != nil || committedOffsets(t, a.broker.Groups(), "g")[0] != 8 {
		t.Errorf("commit of the member: %v", err)
	}
}

// A full group turns new members away and keeps those that it has.
func TestGroupsMaxSize(t *testing.T) {
	a, _ := groupAgent(t, t.TempDir(), func(c *Config) { c.Groups.Config.MaxSize = 1 }, nil)
	member := settledPeer(t, a, "g", "")
	other, err := newPeer(a.KafkaAddr(), "g", "")
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	if err := other.join(); !errors.Is(err, kerr.GroupMaxSizeReached) {
		t.Errorf("join of a full group: %v", err)
	}
	if err := member.heartbeat(); err != nil {
		t.Errorf("the member of the full group: %v", err)
	}
	if err := errors.Join(member.leave(), other.settle(t.Context())); err != nil {
		t.Errorf("after the member has left: %v", err)
	}
}

// Metadata and assignments that are too large fail for those who send them; the
// group, and others in its partition, go on.
func TestGroupsOversized(t *testing.T) {
	dir := t.TempDir()
	a, stop := groupAgent(t, dir, func(c *Config) { c.Groups.Partitions = 1 }, nil)
	newTopic(t, a.broker, "logs", 1)
	neighbour := settledPeer(t, a, "neighbour", "")
	member := settledPeer(t, a, "g", "")
	fat, err := newPeer(a.KafkaAddr(), "g", "")
	if err != nil {
		t.Fatal(err)
	}
	defer fat.close()
	fat.metadata = make([]byte, 2<<20)
	if err := fat.join(); !errors.Is(err, kerr.InvalidRequest) {
		t.Errorf("join with 2 MiB of metadata: %v", err)
	}
	if err := member.heartbeat(); err != nil {
		t.Errorf("the other member: %v", err)
	}
	big, err := newPeer(a.KafkaAddr(), "big", "")
	if err != nil {
		t.Fatal(err)
	}
	defer big.close()
	if err := big.join(); err != nil {
		t.Fatal(err)
	}
	if err := big.sync(3 << 20); err != nil { // fits
		t.Errorf("3 MiB of assignment: %v", err)
	}
	if err := big.sync(8 << 20); err == nil { // more than a request may have
		t.Error("8 MiB of assignment were taken")
	}
	if err := errors.Join(neighbour.commit("logs", 3), neighbour.heartbeat(), member.heartbeat()); err != nil {
		t.Errorf("others afterwards: %v", err)
	}
	stop()
	g, _, _ := startGroups(t, dir)
	if d, err := g.Describe(t.Context(), "big"); err != nil || len(d.Members) != 1 || committedOffsets(t, g, "neighbour")[0] != 3 {
		t.Errorf("after a restart: %+v, %v", d.State, err)
	}
}

// Ids of groups are any bytes up to 32,767.
func TestGroupsAnyID(t *testing.T) {
	dir := t.TempDir()
	a, stop := groupAgent(t, dir, nil, nil)
	newTopic(t, a.broker, "logs", 1)
	good := []string{"\xff\xfe\x80", "a\x00b\n\"", " ", "☃", strings.Repeat("g", 32767)}
	for _, id := range good {
		p := settledPeer(t, a, id, "")
		if err := p.commit("logs", 5); err != nil {
			t.Errorf("%.20q: commit: %v", id, err)
		}
		if err := errors.Join(p.heartbeat(), p.leave()); err != nil {
			t.Errorf("%.20q: %v", id, err)
		}
	}
	for id, want := range map[string]struct{ join, commit error }{
		"":                         {kerr.InvalidGroupID, nil}, // an old consumer's, as in Kafka
		strings.Repeat("g", 32768): {kerr.InvalidGroupID, kerr.InvalidGroupID},
	} {
		p, err := newPeer(a.KafkaAddr(), id, "")
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		if err := p.join(); !errors.Is(err, want.join) {
			t.Errorf("join of a group id of %d bytes: %v", len(id), err)
		}
		p.generation = -1
		if err := p.commit("logs", 5); !errors.Is(err, want.commit) {
			t.Errorf("commit for a group id of %d bytes: %v", len(id), err)
		}
	}
	stop()
	g, _, _ := startGroups(t, dir)
	for _, id := range append(good, "") {
		if got := committedOffsets(t, g, id); len(got) != 1 || got[0] != 5 {
			t.Errorf("%.20q after a restart: %v", id, got)
		}
		if err := g.Delete(t.Context(), id); err != nil {
			t.Errorf("%.20q: delete: %v", id, err)
		}
	}
	if list, err := g.List(t.Context(), nil, nil); err != nil || len(list) != 0 {
		t.Errorf("groups in the end: %d, %v", len(list), err)
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // pools need two
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Clients that join and vanish leave nothing behind: neither ids that were given
// out, nor members whose join waits.
func TestGroupsClientsVanish(t *testing.T) {
	a, _ := groupAgent(t, t.TempDir(), nil, nil)
	settledPeer(t, a, "warm", "") // the topic is made
	before := heap()
	const each, workers = 5000, 20
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range 2 * each / workers {
				p, err := newPeer(a.KafkaAddr(), "given", "")
				if err != nil {
					t.Error(err)
					return
				}
				p.session, p.rebalance, p.metadata = 2*time.Second, 2*time.Second, make([]byte, 1000)
				req := kmsg.NewPtrJoinGroupRequest()
				req.Version, req.Group, req.ProtocolType, req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 4, p.group, "consumer", 2000, 2000
				req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: p.metadata}}
				if (i+w)%2 == 0 { // an id is given out
					_, err = p.ask(req)
				} else { // it waits
					req.Version, req.Group = 3, "waits"
					err = p.send(req)
				}
				if err != nil {
					t.Error(err)
				}
				p.close()
			}
		})
	}
	wg.Wait()
	peak := a.broker.Groups().Stats()
	t.Logf("%d clients: at most %d members of %v groups, %d KiB more on the heap", 2*each, peak.Members, peak.Groups, (heap()-before)>>10)
	var s group.Stats
	until(t, "all are forgotten", func() bool {
		s = a.broker.Groups().Stats()
		d, _ := a.broker.Groups().Describe(t.Context(), "waits")
		_, err := a.broker.Groups().Describe(t.Context(), "given")
		return s.Members == 1 && d.State != group.PreparingRebalance && errors.Is(err, group.ErrGroupIDNotFound)
	})
	until(t, "memory comes back", func() bool { return heap()-before < 8<<20 })
	t.Logf("%d rebalances, %d KiB more on the heap in the end", s.Rebalances, (heap()-before)>>10)
}
