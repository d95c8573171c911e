package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
)

// chaos is what the clients of TestGroupsRandom share.
type chaos struct {
	t    *testing.T
	a    *Agent
	ctx  context.Context
	mu   sync.Mutex
	lead map[string]string // group and generation: who leads
	did  map[string]int    // what: how often it went well
}

func (c *chaos) done(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.did[what]++
}

// worker is a client that commits offsets of its own partition, ever greater
// ones.
type worker struct {
	*chaos
	r    *rand.Rand
	n    int32
	p    *peer // nil: none
	next int64
	// kept is what each group has acknowledged, open what a connection that was
	// cut may have left there.
	kept map[string]int64
	open map[string]map[int64]bool
}

// check reports whatever is not an answer of Kafka's protocol that may come.
func (w *worker) check(what string, err error) bool {
	if err == nil {
		w.done(what)
		return true
	}
	for _, allowed := range []error{kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.RebalanceInProgress, kerr.FencedInstanceID, kerr.CoordinatorLoadInProgress} {
		if errors.Is(err, allowed) {
			return false
		}
	}
	w.t.Errorf("worker %d: %s: %v", w.n, what, err)
	return false
}

// step does something at random.
func (w *worker) step() {
	if w.p == nil || w.r.IntN(12) == 0 {
		w.fresh()
	}
	switch w.r.IntN(9) {
	case 0, 1:
		w.settle()
	case 2:
		w.check("heartbeat", w.p.heartbeat())
	case 3:
		if w.check("leave", w.p.leave()) {
			w.p.id = ""
		}
	case 4, 5:
		w.commit(w.p)
	case 6:
		w.cut()
	case 7:
		w.simple()
	case 8:
		w.look(w.p.group)
	}
}

// fresh begins with a new connection; the old one is cut.
func (w *worker) fresh() {
	if w.p != nil {
		w.p.close()
	}
	instance := ""
	if w.r.IntN(3) == 0 {
		instance = fmt.Sprint("i", w.r.IntN(4)) // others use it too
	}
	p, err := newPeer(w.a.KafkaAddr(), fmt.Sprint("g", w.r.IntN(6)), instance)
	if err != nil {
		w.t.Error(err)
		return
	}
	p.session, p.rebalance = time.Duration(200+w.r.IntN(800))*time.Millisecond, time.Duration(20+w.r.IntN(200))*time.Millisecond
	p.version = int16(3 + w.r.IntN(7))
	if w.r.IntN(2) == 0 && instance == "" || p.version >= 5 {
		p.metadata = make([]byte, w.r.IntN(1000))
	}
	if instance != "" {
		p.version = max(p.version, 5)
	}
	w.p = p
}

// settle joins and syncs: who leads a generation leads it alone, and a member
// gets what was meant for it.
func (w *worker) settle() {
	p := w.p
	if !w.check("join", p.join()) {
		if p.id = ""; w.r.IntN(2) == 0 {
			w.fresh()
		}
		return
	}
	if p.leader && len(p.members) > 0 {
		w.mu.Lock()
		key := fmt.Sprint(p.group, "/", p.generation)
		if other, ok := w.lead[key]; ok && other != p.id {
			w.t.Errorf("%s is led by %s and %s", key, other, p.id)
		}
		w.lead[key] = p.id
		w.mu.Unlock()
	}
	if w.r.IntN(8) == 0 {
		return // it never syncs
	}
	ok := w.check("sync", p.sync(w.r.IntN(200)))
	if ok && (len(p.assigned) < len(p.id) || p.instance == "" && string(p.assigned[:len(p.id)]) != p.id) {
		w.t.Errorf("%s, instance %q, has the assignment %q", p.id, p.instance, p.assigned)
	}
	for range w.r.IntN(10) {
		if ok = ok && w.check("heartbeat", p.heartbeat()); ok {
			w.commit(p)
		}
	}
}

func (w *worker) commit(p *peer) {
	w.next++
	if w.commitAt(p, w.next) {
		w.kept[p.group] = w.next
	}
}

func (w *worker) commitAt(p *peer, at int64) bool {
	r, err := p.ask(w.commitRequest(p, at))
	if err == nil {
		err = kerr.ErrorForCode(r.(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode)
	}
	if errors.Is(err, kerr.GroupIDNotFound) {
		return false
	}
	return w.check("commit", err)
}

func (w *worker) commitRequest(p *peer, at int64) kmsg.Request {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Version, req.Group, req.MemberID, req.InstanceID, req.Generation = 9, p.group, p.id, p.instanceID(), p.generation
	rp := kmsg.NewOffsetCommitRequestTopicPartition()
	rp.Partition, rp.Offset = w.n, at
	req.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: "logs", Partitions: []kmsg.OffsetCommitRequestTopicPartition{rp}}}
	return req
}

// cut sends a request and closes the connection without waiting for its answer.
func (w *worker) cut() {
	p := w.p
	if w.r.IntN(2) == 0 {
		w.next++
		if w.open[p.group] == nil {
			w.open[p.group] = map[int64]bool{}
		}
		w.open[p.group][w.next] = true
		_ = p.send(w.commitRequest(p, w.next))
	} else {
		req := kmsg.NewPtrJoinGroupRequest()
		req.Version, req.Group, req.MemberID, req.ProtocolType, req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = p.version, p.group, p.id, "consumer", 300, 300
		req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range"}}
		_ = p.send(req)
	}
	w.done("cut")
	w.fresh()
}

// simple commits to a group that is this worker's alone, and perhaps deletes it.
func (w *worker) simple() {
	p := *w.p
	p.group, p.id, p.instance, p.generation = fmt.Sprint("s", w.n), "", "", -1
	w.commit(&p)
	w.p.corr = p.corr
	if w.r.IntN(3) == 0 && w.check("delete", w.a.broker.Groups().Delete(w.ctx, p.group)) {
		w.kept[p.group] = -1
	}
	w.look(p.group)
}

// look compares a group's offset of this worker's partition with what it may be.
func (w *worker) look(id string) {
	got, err := offsetAt(w.ctx, w.a.broker.Groups(), id, w.n)
	kept, ok := w.kept[id]
	if !ok {
		kept = -1
	}
	if w.check("fetch", err) && got != kept && !w.open[id][got] {
		w.t.Errorf("group %s, partition %d: offset %d, want %d or one of %v", id, w.n, got, kept, w.open[id])
	}
	if _, err := w.a.broker.Groups().Describe(w.ctx, id); err != nil && !errors.Is(err, group.ErrGroupIDNotFound) {
		w.t.Error(err)
	}
}

func offsetAt(ctx context.Context, g *broker.Groups, id string, p int32) (int64, error) {
	f, err := g.FetchOffsets(ctx, group.FetchRequest{GroupID: id, Topics: []group.TopicPartitions{{Name: "logs", Partitions: []int32{p}}}})
	if err != nil {
		return 0, err
	}
	return f[0].Partitions[0].Offset, nil
}

// Many clients do what they like with a few groups: what was acknowledged is
// there, a generation has one leader, nothing hangs, and in the end nothing is
// left but the offsets. CIRROLOG_TEST_GROUPS_TIME says how long; 3 s if not set.
func TestGroupsRandom(t *testing.T) {
	took := 3 * time.Second
	if s := os.Getenv("CIRROLOG_TEST_GROUPS_TIME"); s != "" {
		var err error
		if took, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	const workers = 24
	dir, seed := t.TempDir(), rand.Uint64()
	a, stop := groupAgent(t, dir, nil, nil)
	newTopic(t, a.broker, "logs", workers)
	settledPeer(t, a, "warm", "").close()
	before := runtime.NumGoroutine()
	c := &chaos{t: t, a: a, ctx: t.Context(), lead: map[string]string{}, did: map[string]int{}}
	all := make([]*worker, workers)
	var wg sync.WaitGroup
	for n := range all {
		w := &worker{chaos: c, r: rand.New(rand.NewPCG(seed, uint64(n))), n: int32(n), kept: map[string]int64{}, open: map[string]map[int64]bool{}}
		all[n] = w
		wg.Go(func() {
			for end := time.Now().Add(took); time.Now().Before(end) && !t.Failed(); {
				w.step()
			}
			w.p.close()
		})
	}
	wg.Wait()
	t.Logf("seed %d: %v, %d generations with a leader", seed, c.did, len(c.lead))
	for _, what := range []string{"join", "sync", "commit", "heartbeat", "leave", "cut", "delete"} {
		if c.did[what] == 0 {
			t.Errorf("no %s went well", what)
		}
	}
	until(t, "all members are gone", func() bool { return a.broker.Groups().Stats().Members <= 1 }) // but the first one
	until(t, "their goroutines too", func() bool { return runtime.NumGoroutine() <= before+5 })
	stop()
	g, _, _ := startGroups(t, dir)
	for _, w := range all {
		for id, kept := range w.kept {
			if got, err := offsetAt(t.Context(), g, id, w.n); err != nil || got != kept && !w.open[id][got] {
				t.Errorf("after a restart: group %s, partition %d: offset %d, want %d or one of %v; %v", id, w.n, got, kept, w.open[id], err)
			}
		}
	}
}
