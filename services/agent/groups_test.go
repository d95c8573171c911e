package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
)

// startGroups starts an agent with quick groups in a directory; stop it before
// the next.
func startGroups(t *testing.T, dir string) (g *broker.Groups, b *broker.Broker, stop func()) {
	t.Helper()
	a, stop := groupAgent(t, dir, nil, nil)
	return a.broker.Groups(), a.broker, stop
}

// groupAgent is startGroups with other settings and a log.
func groupAgent(t testing.TB, dir string, change func(*Config), log io.Writer) (a *Agent, stop func()) {
	t.Helper()
	cfg := testConfig(t)
	cfg.DataDir = dir
	cfg.Groups.Partitions, cfg.Groups.Config.InitialRebalanceDelay, cfg.Groups.Config.MinSessionTimeout = 3, 0, 100*time.Millisecond
	if change != nil {
		change(&cfg)
	}
	logger := slog.New(slog.DiscardHandler)
	if log != nil {
		logger = slog.New(slog.NewTextHandler(log, nil))
	}
	a, err := Start(t.Context(), cfg, logger)
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := a.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	t.Cleanup(stop)
	return a, stop
}

// commit commits offset at for partitions 0 to n-1 of the topic.
func commit(t *testing.T, g *broker.Groups, id string, topic *broker.Topic, n int, at int64, note string) error {
	t.Helper()
	ct := group.CommitTopic{Name: topic.Name, ID: group.TopicID(topic.ID)}
	for p := range n {
		ct.Partitions = append(ct.Partitions, group.CommitPartition{Partition: int32(p), Offset: at, LeaderEpoch: -1, Metadata: note})
	}
	r, err := g.Commit(t.Context(), group.CommitRequest{Version: 9, GroupID: id, Generation: -1, Topics: []group.CommitTopic{ct}})
	if err != nil {
		return err
	}
	for _, p := range r.Topics[0].Partitions {
		if p.Err != nil {
			return p.Err
		}
	}
	return nil
}

// committedOffsets are all that a group has, by partition.
func committedOffsets(t *testing.T, g *broker.Groups, id string) map[int32]int64 {
	t.Helper()
	topics, err := g.FetchOffsets(t.Context(), group.FetchRequest{GroupID: id})
	if err != nil {
		t.Fatal(err)
	}
	out := map[int32]int64{}
	for _, ft := range topics {
		for _, p := range ft.Partitions {
			out[p.Partition] = p.Offset
		}
	}
	return out
}

func newTopic(t testing.TB, b *broker.Broker, name string, partitions int32) *broker.Topic {
	t.Helper()
	topic, err := b.CreateTopic(t.Context(), metadata.CreateTopic{Name: name, Partitions: partitions, ReplicationFactor: -1})
	if err != nil {
		t.Fatal(err)
	}
	return topic
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in 20 s", what)
		}
	}
}

// What was committed is there after a restart: of many groups at once, and of a
// commit that is larger than a batch.
func TestGroupsAreKept(t *testing.T) {
	dir := t.TempDir()
	g, b, stop := startGroups(t, dir)
	topic := newTopic(t, b, "logs", 1000)
	if err := commit(t, g, "large", topic, 1000, 5, strings.Repeat("x", 1000)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for at := range 20 {
				if err := commit(t, g, fmt.Sprint("g", i), topic, 3, int64(at*100+i), ""); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	stop()
	if err := commit(t, g, "large", topic, 1, 9, ""); !errors.Is(err, group.ErrNotCoordinator) {
		t.Errorf("commit after the end: %v", err)
	}
	g, _, _ = startGroups(t, dir)
	got := committedOffsets(t, g, "large")
	if len(got) != 1000 || got[0] != 5 || got[999] != 5 {
		t.Errorf("%d offsets are left, %d and %d", len(got), got[0], got[999])
	}
	for i := range 20 {
		if got := committedOffsets(t, g, fmt.Sprint("g", i)); len(got) != 3 || got[2] != int64(1900+i) {
			t.Errorf("group %d: %v", i, got)
		}
	}
	list, err := g.List(t.Context(), nil, nil)
	if err != nil || len(list) != 21 {
		t.Errorf("listed %d groups, %v", len(list), err)
	}
	sum, first := map[string]int64{}, 0
	g.Committed(func(o group.Committed) bool {
		if o.Topic != "logs" || o.TopicID != group.TopicID(topic.ID) || o.CommitTime.IsZero() {
			t.Errorf("committed: %+v", o)
		}
		sum[o.GroupID] += o.Offset
		return true
	})
	g.Committed(func(group.Committed) bool { first++; return false })
	if s := g.Stats(); s.Offsets != 1060 || s.Groups[group.Empty] != 21 || len(sum) != 21 || sum["large"] != 5000 || sum["g7"] != 3*1907 || first != 1 {
		t.Errorf("offsets of all groups: %+v, %v, %d yielded to one that wants one", s, sum, first)
	}
}

// What the topic does not take fails as in Kafka: an assignment for all members,
// who join again, and a commit. Nothing else is lost, and it works again when
// the topic takes more.
func TestGroupsTooLarge(t *testing.T) {
	a, _ := groupAgent(t, t.TempDir(), nil, nil)
	g, b := a.broker.Groups(), a.broker
	topic := newTopic(t, b, "logs", 3)
	if err := commit(t, g, "g", topic, 3, 5, ""); err != nil {
		t.Fatal(err)
	}
	limit := func(v *string, kind metadata.OpKind) {
		t.Helper()
		ops := []metadata.ConfigOp{{Key: "max.message.bytes", Value: v, Kind: kind}}
		// Clients may not set this; the metadata store does not know better.
		if err := a.meta.AlterConfig(t.Context(), broker.OffsetsTopic, ops, false); err != nil {
			t.Fatal(err)
		}
	}
	// A member waits for its leader's assignment while a write fails.
	joined := func(member string) *group.JoinResponse {
		r, err := g.Join(t.Context(), group.JoinRequest{Version: 3, GroupID: "g", MemberID: member, ClientID: "c", SessionTimeout: 30 * time.Second,
			RebalanceTimeout: 30 * time.Second, ProtocolType: "consumer", Protocols: []group.Protocol{{Name: "range"}}})
		if err != nil || r.Err != nil {
			t.Errorf("join: %v, %+v", err, r)
			return &group.JoinResponse{}
		}
		return r
	}
	first := joined("")
	second := make(chan *group.JoinResponse, 1)
	go func() { second <- joined("") }()
	until(t, "the second joins", func() bool {
		d, _ := g.Describe(t.Context(), "g")
		return len(d.Members) == 2
	})
	first = joined(first.MemberID)
	follower := <-second
	if first.Leader != first.MemberID {
		t.Fatalf("leader is %q", first.Leader)
	}
	synced := make(chan error, 1)
	go func() {
		r, err := g.Sync(t.Context(), group.SyncRequest{GroupID: "g", MemberID: follower.MemberID, Generation: follower.Generation})
		if err == nil {
			err = r.Err
		}
		synced <- err
	}()
	tiny := "100"
	limit(&tiny, metadata.OpSet)
	r, err := g.Sync(t.Context(), group.SyncRequest{GroupID: "g", MemberID: first.MemberID, Generation: first.Generation,
		Assignments: []group.Assignment{{MemberID: first.MemberID, Data: []byte("mine")}, {MemberID: follower.MemberID, Data: []byte("yours")}}})
	if err != nil || !errors.Is(r.Err, group.ErrRecordTooLarge) {
		t.Errorf("the leader's sync, which can't be written: %v, %+v", err, r)
	}
	if err := <-synced; !errors.Is(err, group.ErrRecordTooLarge) && !errors.Is(err, group.ErrRebalanceInProgress) { // as it came before or after
		t.Errorf("the follower's sync: %v", err)
	}
	if err := commit(t, g, "g2", topic, 1, 1, ""); !errors.Is(err, group.ErrInvalidCommitOffsetSize) {
		t.Errorf("commit of what can't be written: %v", err)
	}
	limit(nil, metadata.OpDelete)
	if err := commit(t, g, "g2", topic, 1, 1, ""); err != nil {
		t.Errorf("commit when there is room again: %v", err)
	}
	if d, err := g.Describe(t.Context(), "g"); err != nil || d.State != group.PreparingRebalance || len(d.Members) != 2 {
		t.Errorf("the group: %v, %+v", err, d)
	}
	if got := committedOffsets(t, g, "g"); len(got) != 3 || got[0] != 5 {
		t.Errorf("offsets after the failure: %v", got)
	}
}

// A member that says nothing is dropped when its session ends; one whose client
// has gone does not hold the request.
func TestGroupsSessionEnds(t *testing.T) {
	g, _, _ := startGroups(t, t.TempDir())
	req := group.JoinRequest{Version: 3, GroupID: "g", ClientID: "c", SessionTimeout: 300 * time.Millisecond, RebalanceTimeout: time.Minute,
		ProtocolType: "consumer", Protocols: []group.Protocol{{Name: "range"}}}
	r, err := g.Join(t.Context(), req)
	if err != nil || r.Err != nil {
		t.Fatalf("join: %v, %+v", err, r)
	}
	beat := group.HeartbeatRequest{GroupID: "g", MemberID: r.MemberID, Generation: r.Generation}
	until(t, "the session ends", func() bool {
		d, _ := g.Describe(t.Context(), "g")
		return len(d.Members) == 0
	})
	if err := g.Heartbeat(t.Context(), beat); !errors.Is(err, group.ErrUnknownMemberID) && !errors.Is(err, group.ErrGroupIDNotFound) {
		t.Errorf("heartbeat of a dropped member: %v", err)
	}
	req.SessionTimeout = time.Minute
	if _, err := g.Join(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := g.Join(ctx, req) // waits for the first to join again
		gone <- err
	}()
	until(t, "the second waits", func() bool {
		d, _ := g.Describe(t.Context(), "g")
		return len(d.Members) == 2
	})
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("join given up: %v", err)
	}
}
