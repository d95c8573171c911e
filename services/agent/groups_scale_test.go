package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
)

// cpu is the processor time of this process.
func cpu() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// settleAll brings peers into their group at once, in rounds: those that were
// told of a rebalance join again, until all have an assignment of the same
// generation.
func settleAll(t *testing.T, peers []*peer) {
	t.Helper()
	each := func(call func(p *peer) error) {
		var wg sync.WaitGroup
		for _, p := range peers {
			wg.Go(func() {
				if err := call(p); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	each(func(p *peer) error { return p.settle(t.Context()) })
	for again := true; again && !t.Failed(); {
		var behind atomic.Bool
		each(func(p *peer) error {
			err := p.heartbeat()
			if errors.Is(err, kerr.RebalanceInProgress) || errors.Is(err, kerr.IllegalGeneration) {
				behind.Store(true)
				err = p.settle(t.Context())
			}
			return err
		})
		again = behind.Load()
	}
}

// 1,000 members on as many connections come to an assignment, each to its own.
func TestGroupsThousandMembers(t *testing.T) {
	const members = 1000
	a, _ := groupAgent(t, t.TempDir(), func(c *Config) { c.Groups.Config.InitialRebalanceDelay = time.Second }, nil)
	settledPeer(t, a, "warm", "").close() // the topic is made
	peers := make([]*peer, members)
	for i := range peers {
		p, err := newPeer(a.KafkaAddr(), "g", "")
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		peers[i], p.metadata = p, make([]byte, 200)
	}
	rebalances, began, used := a.broker.Groups().Stats().Rebalances, time.Now(), cpu()
	settleAll(t, peers)
	t.Logf("%d members on connections: %v to a stable assignment, %d rebalances, %v of processor time, both ends", members,
		time.Since(began).Round(time.Millisecond), a.broker.Groups().Stats().Rebalances-rebalances, (cpu() - used).Round(time.Millisecond))
	d, err := a.broker.Groups().Describe(t.Context(), "g")
	if err != nil || d.State != group.Stable || len(d.Members) != members {
		t.Fatalf("%v with %d members, %v", d.State, len(d.Members), err)
	}
	for _, p := range peers {
		if p.generation != d.Generation || string(p.assigned) != p.id {
			t.Fatalf("member %s of generation %d (now %d) has the assignment of %q", p.id, p.generation, d.Generation, p.assigned)
		}
	}
}

// Static members that are restarted one after the other keep their places: there
// is no rebalance.
func TestGroupsRollingRestart(t *testing.T) {
	const members = 100
	a, _ := groupAgent(t, t.TempDir(), func(c *Config) { c.Groups.Config.InitialRebalanceDelay = 500 * time.Millisecond }, nil)
	peers := make([]*peer, members)
	for i := range peers {
		p, err := newPeer(a.KafkaAddr(), "g", fmt.Sprint("instance-", i))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { peers[i].close() }()
		peers[i] = p
	}
	settleAll(t, peers)
	before, err := a.broker.Groups().Describe(t.Context(), "g")
	rebalances, began := a.broker.Groups().Stats().Rebalances, time.Now()
	if err != nil || before.State != group.Stable {
		t.Fatal(before.State, err)
	}
	for i, old := range peers {
		old.close() // without a LeaveGroup, as static members end
		p := settledPeer(t, a, "g", old.instance)
		if p.generation != before.Generation || string(p.assigned) != string(old.assigned) || p.id == old.id {
			t.Fatalf("%s came back as %s in generation %d with %q, was %s in %d with %q", p.instance, p.id, p.generation, p.assigned, old.id, before.Generation, old.assigned)
		}
		peers[i] = p
	}
	after, err := a.broker.Groups().Describe(t.Context(), "g")
	if n := a.broker.Groups().Stats().Rebalances - rebalances; err != nil || n != 0 || after.Generation != before.Generation || after.State != group.Stable || len(after.Members) != members {
		t.Errorf("%d rebalances; generation %d, was %d; %v with %d members, %v", n, after.Generation, before.Generation, after.State, len(after.Members), err)
	}
	t.Logf("%d static members restarted in %v: 0 rebalances", members, time.Since(began).Round(time.Millisecond))
}

// TestGroupsTenThousandMembers measures a group that is as large as it gets,
// without connections.
func TestGroupsTenThousandMembers(t *testing.T) {
	const members = 10_000
	a, _ := groupAgent(t, t.TempDir(), func(c *Config) { c.Groups.Config.InitialRebalanceDelay = time.Second }, nil)
	g := a.broker.Groups()
	settledPeer(t, a, "warm", "").close()
	before, began, used, rebalances := heap(), time.Now(), cpu(), g.Stats().Rebalances
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for i := range members {
		wg.Go(func() {
			if err := settleDirect(ctx, g, fmt.Sprint("client-", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	took, cost := time.Since(began), cpu()-used
	bytes := heap() - before
	s := g.Stats()
	if s.Members < members || s.Groups[group.Stable] < 1 {
		t.Fatalf("%+v", s)
	}
	t.Logf("%d members: %v to a stable assignment, %d rebalances, %v of processor time, %d bytes of memory per member", members,
		took.Round(time.Millisecond), s.Rebalances-rebalances, cost.Round(time.Millisecond), bytes/members)
}

// settleDirect is peer.settle without a connection.
func settleDirect(ctx context.Context, g *broker.Groups, client string) error {
	join := group.JoinRequest{Version: 9, GroupID: "g", ClientID: client, ClientHost: "/127.0.0.1", SessionTimeout: 2 * time.Minute, RebalanceTimeout: 2 * time.Minute,
		ProtocolType: "consumer", Protocols: []group.Protocol{{Name: "range", Metadata: make([]byte, 100)}}}
	for {
		j, err := g.Join(ctx, join)
		if err != nil {
			return err
		}
		if errors.Is(j.Err, group.ErrMemberIDRequired) {
			join.MemberID = j.MemberID
			continue
		}
		if j.Err != nil {
			return j.Err
		}
		sync := group.SyncRequest{GroupID: "g", MemberID: j.MemberID, Generation: j.Generation}
		for _, m := range j.Members {
			sync.Assignments = append(sync.Assignments, group.Assignment{MemberID: m.MemberID, Data: make([]byte, 100)})
		}
		s, err := g.Sync(ctx, sync)
		if err == nil {
			err = s.Err
		}
		if !errors.Is(err, group.ErrRebalanceInProgress) {
			return err
		}
	}
}

// TestGroupsReload measures how soon 100,000 committed offsets are there again.
func TestGroupsReload(t *testing.T) {
	dir := t.TempDir()
	one := func(c *Config) { c.Groups.Partitions = 1 }
	a, stop := groupAgent(t, dir, one, nil)
	topic := newTopic(t, a.broker, "logs", 1000)
	for i := range 100 {
		if err := commit(t, a.broker.Groups(), fmt.Sprint("g", i), topic, 1000, int64(i), ""); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	a, _ = groupAgent(t, dir, one, nil)
	began, used := time.Now(), cpu()
	got := committedOffsets(t, a.broker.Groups(), "g7")
	t.Logf("first answer after a restart with 100,000 offsets: %v, %v of processor time", time.Since(began).Round(time.Millisecond), (cpu() - used).Round(time.Millisecond))
	if s := a.broker.Groups().Stats(); s.Offsets != 100_000 || len(got) != 1000 || got[999] != 7 {
		t.Errorf("%d offsets, %d of one group", s.Offsets, len(got))
	}
}

// BenchmarkGroupCommit commits one offset at a time with 64 in flight, durably.
func BenchmarkGroupCommit(b *testing.B) {
	a, _ := groupAgent(b, b.TempDir(), func(c *Config) { c.Groups.Partitions = 50; c.WALSize = 64 << 20 }, nil)
	g := a.broker.Groups()
	topic := newTopic(b, a.broker, "logs", 64)
	const flying = 64
	commitOne := func(w int, at int64) {
		r, err := g.Commit(b.Context(), group.CommitRequest{Version: 9, GroupID: fmt.Sprint("g", w%16), Generation: -1, Topics: []group.CommitTopic{{Name: "logs",
			ID: group.TopicID(topic.ID), Partitions: []group.CommitPartition{{Partition: int32(w), Offset: at, LeaderEpoch: -1}}}}})
		if err != nil || r.Topics[0].Partitions[0].Err != nil {
			b.Error(err, r)
		}
	}
	for w := range flying {
		commitOne(w, 0)
	}
	var next atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for w := range flying {
		wg.Go(func() {
			for at := next.Add(1); at <= int64(b.N); at = next.Add(1) {
				commitOne(w, at)
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
}
