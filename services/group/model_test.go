package group

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// client is one that takes part in the group, more or less as it should.
type client struct {
	instance string
	id       string
	gen      int32
	leader   bool
	members  []JoinMember
}

// generation is what the answers of one generation have in common.
type generation struct {
	leader, protocol string
	roster           []string // the leader's list
	joined           map[string]bool
	sent             map[string]string // the leader's assignments
}

// world is one group with random clients, and what is known of it.
type world struct {
	*rig
	t       *rapid.T
	clients []*client
	fail    bool // writes may fail
	joins   map[Ticket]*client
	syncs   map[Ticket]SyncRequest
	gens    map[int32]*generation
	object  *group // of which the generations are
	highest int32
	commits map[Ticket]bool
}

// identity is the member behind an id: a static member has one after another.
func identity(id string) string {
	if strings.HasPrefix(id, "s") {
		return id[:strings.LastIndex(id, "-")]
	}
	return id
}

func newWorld(t *rapid.T, fail bool) *world {
	delay := rapid.SampledFrom([]time.Duration{0, 3 * time.Second}).Draw(t, "delay")
	size := rapid.SampledFrom([]int{20000, 3}).Draw(t, "max size")
	w := &world{t: t, fail: fail, joins: map[Ticket]*client{}, syncs: map[Ticket]SyncRequest{},
		gens: map[int32]*generation{}, commits: map[Ticket]bool{},
		rig: newRig(t, func(c *Config) { c.InitialRebalanceDelay = delay; c.MaxSize = size })}
	w.hold = true
	for i := range 5 {
		c := &client{gen: -1}
		if i%2 == 0 {
			c.instance = fmt.Sprintf("s%d", i)
		}
		w.clients = append(w.clients, c)
	}
	return w
}

func (w *world) pick() *client { return rapid.SampledFrom(w.clients).Draw(w.t, "client") }

// settle looks at new answers and lets the clients learn from them.
func (w *world) settle() {
	if g := w.c.groups["g"]; g != w.object { // deleted, expired, or made anew
		w.object, w.highest = g, 0
		w.gens = map[int32]*generation{}
	}
	for t, a := range w.answers {
		switch a := a.(type) {
		case *JoinResponse:
			w.learnJoin(w.joins[t], a)
		case *SyncResponse:
			w.learnSync(w.syncs[t], a)
		case *LeaveResponse, *DeleteResponse, *CommitResponse, *OffsetDeleteResponse:
		default:
			w.t.Fatalf("answer %T", a)
		}
		delete(w.answers, t)
	}
	w.invariants()
}

func (w *world) learnJoin(c *client, a *JoinResponse) {
	switch {
	case errors.Is(a.Err, ErrMemberIDRequired):
		if a.MemberID == "" {
			w.t.Fatal("no member id")
		}
		c.id = a.MemberID
	case errors.Is(a.Err, ErrUnknownMemberID), errors.Is(a.Err, ErrFencedInstanceID), errors.Is(a.Err, ErrGroupMaxSizeReached):
		c.id, c.gen = "", -1
	case a.Err != nil:
		if a.Generation != -1 {
			w.t.Fatalf("%+v", a)
		}
	default:
		w.checkJoined(a)
		c.id, c.gen, c.leader, c.members = a.MemberID, a.Generation, len(a.Members) > 0 && !a.SkipAssignment, a.Members
	}
}

// checkJoined compares an answer with the others of its generation.
func (w *world) checkJoined(a *JoinResponse) {
	g := w.gens[a.Generation]
	if g == nil {
		if a.Generation <= w.highest {
			w.t.Fatalf("generation %d after %d", a.Generation, w.highest)
		}
		w.highest = a.Generation
		g = &generation{leader: identity(a.Leader), protocol: a.ProtocolName, joined: map[string]bool{}}
		w.gens[a.Generation] = g
	}
	if identity(a.Leader) != g.leader || a.ProtocolName != g.protocol {
		w.t.Fatalf("two leaders or protocols in generation %d: %+v and %+v", a.Generation, a, g)
	}
	g.joined[identity(a.MemberID)] = true
	if len(a.Members) == 0 {
		return
	}
	if identity(a.MemberID) != g.leader {
		w.t.Fatalf("%q is told the members, but %q leads", a.MemberID, g.leader)
	}
	var roster []string
	for _, m := range a.Members {
		roster = append(roster, identity(m.MemberID))
	}
	if g.roster != nil && !slices.Equal(roster, g.roster) {
		w.t.Fatalf("generation %d has members %v and %v", a.Generation, roster, g.roster)
	}
	g.roster = roster
}

func (w *world) learnSync(c SyncRequest, a *SyncResponse) {
	if a.Err != nil {
		return
	}
	g := w.gens[c.Generation]
	if g == nil {
		w.t.Fatal("an assignment for a generation without a join")
	}
	if want := g.sent[identity(c.MemberID)]; string(a.Assignment) != want {
		w.t.Fatalf("%q got assignment %q, the leader sent %q", c.MemberID, a.Assignment, want)
	}
	for id := range g.joined {
		if g.roster != nil && !slices.Contains(g.roster, id) {
			w.t.Fatalf("%q joined, but the leader knows of %v", id, g.roster)
		}
	}
}

// invariants of the group itself.
func (w *world) invariants() {
	g := w.c.groups["g"]
	if g == nil {
		return
	}
	awaiting, pending, bytes := 0, 0, 0
	supports, statics := map[string]int{}, map[string]*member{}
	for _, m := range g.list() {
		if g.members[m.id] != m || m.join != 0 && m.sync != 0 {
			w.t.Fatalf("member %+v", m)
		}
		if m.sync != 0 && g.state != CompletingRebalance || m.join != 0 && g.state != PreparingRebalance && (g.state != Stable || g.writes == 0) {
			w.t.Fatalf("member %q waits in state %v", m.id, g.state)
		}
		if m.join != 0 {
			awaiting++
		}
		if m.pendingSync {
			pending++
		}
		for _, p := range m.protocols {
			supports[p.Name]++
		}
		if m.instance != "" {
			statics[m.instance] = m
		}
		bytes += m.bytes()
	}
	if awaiting != g.awaiting || pending != g.pendingSync || bytes != g.bytes || len(g.list()) != len(g.members) {
		w.t.Fatalf("counts: %d %d %d, group %+v", awaiting, pending, bytes, g)
	}
	if len(supports)+len(g.supports) != 0 && !reflect.DeepEqual(supports, g.supports) || len(statics)+len(g.statics) != 0 && !reflect.DeepEqual(statics, g.statics) {
		w.t.Fatalf("protocols %v, group %v; static members %v, group %v", supports, g.supports, statics, g.statics)
	}
	if empty := g.state == Empty || g.state == Dead; empty && len(g.members) != 0 || !empty && g.state != PreparingRebalance && len(g.members) == 0 {
		w.t.Fatalf("%d members in state %v", len(g.members), g.state)
	}
	if len(g.members) > 0 && g.members[g.leader] == nil {
		w.t.Fatalf("leader %q is no member", g.leader)
	}
	if at, ok := g.nextWake(time.Time{}); ok && (g.heap < 0 || g.wake.After(at)) {
		w.t.Fatalf("due at %v, but looked at %v (%d)", at, g.wake, g.heap)
	}
}

func (w *world) join(*rapid.T) { w.joinAs(w.pick(), rapid.IntRange(0, 3).Draw(w.t, "restart") == 0) }

// everyone joins, and syncs, as well-behaved clients would.
func (w *world) everyone(*rapid.T) {
	for _, c := range w.clients {
		w.joinAs(c, false)
	}
	for _, c := range w.clients {
		w.syncAs(c)
	}
}

func (w *world) joinAs(c *client, restart bool) {
	first, second := "range", "sticky"
	if rapid.Bool().Draw(w.t, "order") {
		first, second = second, first
	}
	names := []string{"a", "b"}[:rapid.IntRange(1, 2).Draw(w.t, "topics")]
	req := JoinRequest{InstanceID: c.instance, Version: rapid.SampledFrom([]int16{2, 5, 9}).Draw(w.t, "version"),
		MemberID: c.id, Protocols: []Protocol{{first, topics(names...)}, {second, topics(names...)}},
		RebalanceTimeout: rapid.SampledFrom([]time.Duration{5 * time.Second, time.Minute, 10 * time.Minute}).Draw(w.t, "timeout")}
	if restart {
		req.MemberID = "" // its client was started anew
		c.gen = -1
	}
	w.joins[w.last+1] = c
	w.rig.join(req)
	w.settle()
}

func (w *world) sync(*rapid.T) { w.syncAs(w.pick()) }

func (w *world) syncAs(c *client) {
	req := SyncRequest{GroupID: "g", MemberID: c.id, InstanceID: c.instance, Generation: c.gen}
	sent := map[string]string{}
	if c.leader {
		for _, m := range c.members {
			data := fmt.Sprintf("%s-%d", identity(m.MemberID), rapid.IntRange(0, 999).Draw(w.t, "assignment"))
			if rapid.IntRange(0, 9).Draw(w.t, "left out") > 0 {
				req.Assignments = append(req.Assignments, Assignment{m.MemberID, []byte(data)})
				sent[identity(m.MemberID)] = data
			}
		}
	}
	g, t := w.c.groups["g"], w.ticket()
	w.syncs[t] = req
	before := WriteID(0)
	if g != nil {
		before = g.storing
	}
	w.do(w.c.Sync(t, req, w.now))
	if g != nil && g.storing != before {
		w.gens[g.generation].sent = sent
	}
	w.settle()
}

func (w *world) beat(*rapid.T) {
	c := w.pick()
	err := w.c.Heartbeat(HeartbeatRequest{"g", c.id, c.instance, c.gen}, w.now)
	if g := w.c.groups["g"]; err == nil && (g.members[c.id] == nil || g.generation != c.gen) {
		w.t.Fatalf("the heartbeat of %q in generation %d is taken", c.id, c.gen)
	}
	w.invariants()
}

func (w *world) leave(*rapid.T) {
	c := w.pick()
	m := LeaveMember{MemberID: c.id, InstanceID: c.instance}
	if c.instance != "" && rapid.Bool().Draw(w.t, "by instance") {
		m.MemberID = ""
	}
	w.do(w.c.Leave(w.ticket(), LeaveRequest{GroupID: "g", Members: []LeaveMember{m}}, w.now))
	w.settle()
}

func (w *world) commit(*rapid.T) {
	c := w.pick()
	req := CommitRequest{GroupID: "g", MemberID: c.id, Generation: c.gen, Version: 9,
		Topics: []CommitTopic{{Name: rapid.SampledFrom([]string{"a", "b", "z"}).Draw(w.t, "topic"),
			Partitions: []CommitPartition{{rapid.Int32Range(0, 2).Draw(w.t, "partition"), rapid.Int64Range(0, 99).Draw(w.t, "offset"), -1, ""}}}}}
	if rapid.IntRange(0, 4).Draw(w.t, "simple") == 0 {
		req.MemberID, req.Generation = "", -1
	}
	state, generation := Empty, int32(-1)
	if g := w.c.groups["g"]; g != nil {
		state, generation = g.state, g.generation
	}
	fx := w.c.Commit(w.ticket(), req, w.now)
	if simple := req.Generation < 0 && state == Empty; len(fx.Writes) > 0 && !simple && (req.Generation != generation || state == CompletingRebalance || state == Dead) {
		w.t.Fatalf("a commit of generation %d is taken in %d, %v", req.Generation, generation, state)
	}
	w.do(fx)
	w.settle()
}

// written reports one of the writes that are under way.
func (w *world) written(t *rapid.T) {
	if len(w.writes) == 0 {
		t.Skip("no writes")
	}
	var err error
	if w.fail && rapid.IntRange(0, 4).Draw(t, "fails") == 0 {
		err = errors.New("disk full")
	} else {
		w.log = append(w.log, w.writes[0].Records...)
	}
	id := w.writes[0].ID
	w.writes = w.writes[1:]
	w.do(w.c.Written(id, err, w.now))
	w.settle()
	if len(w.writes) == 0 {
		w.compareWithLog()
	}
}

func (w *world) timePasses(t *rapid.T) {
	w.pass(time.Duration(rapid.IntRange(1, 15000).Draw(t, "ms")) * time.Millisecond)
	w.settle()
}

func (w *world) admin(t *rapid.T) {
	switch rapid.IntRange(0, 3).Draw(t, "what") {
	case 0:
		w.do(w.c.Delete(w.ticket(), "g", w.now))
	case 1:
		w.now = w.now.Add(time.Duration(rapid.IntRange(0, 8*24).Draw(t, "hours")) * time.Hour)
		w.do(w.c.ExpireOffsets(w.now))
	case 2:
		w.do(w.c.DeleteOffsets(w.ticket(), OffsetDeleteRequest{"g", []TopicPartitions{{Name: "z", Partitions: []int32{0, 1}}}}, w.now))
	case 3:
		w.do(w.c.DropTopic("z"))
	}
	w.settle()
}

// crash loses what was not written, and some of what was but is not reported.
func (w *world) crash(t *rapid.T) {
	for range rapid.IntRange(0, len(w.writes)).Draw(t, "survive") {
		w.log = append(w.log, w.writes[0].Records...)
		w.writes = w.writes[1:]
	}
	w.writes = nil
	clear(w.waiting)
	old := w.gens
	w.load()
	w.object = w.c.groups["g"]
	w.gens, w.highest = map[int32]*generation{}, 0
	if g := w.object; g != nil && g.generation > 0 {
		w.highest = g.generation
		if o := old[g.generation]; o != nil && g.state == Stable { // as it was written
			w.gens[g.generation] = o
			for _, m := range g.list() {
				if o.sent[identity(m.id)] != string(m.assignment) {
					w.t.Fatalf("loaded %q with assignment %q, sent was %q", m.id, m.assignment, o.sent[identity(m.id)])
				}
			}
		} else if g.state == Stable {
			w.gens[g.generation] = &generation{leader: identity(g.leader), protocol: g.protocol, joined: map[string]bool{}, sent: map[string]string{}}
			for _, m := range g.list() {
				w.gens[g.generation].sent[identity(m.id)] = string(m.assignment)
			}
		}
	}
	w.settle()
}

// compareWithLog makes sure that the log says what is in memory.
func (w *world) compareWithLog() {
	cfg := w.cfg
	cfg.MaxSize = 0 // nobody is to be turned away
	c, _ := New(cfg)
	for _, rec := range w.log {
		if err := c.Apply(rec.Key, rec.Value); err != nil {
			w.t.Fatal(err)
		}
	}
	c.Loaded(w.now)
	mine, its := w.c.FetchOffsets(FetchRequest{GroupID: "g"}), c.FetchOffsets(FetchRequest{GroupID: "g"})
	if !reflect.DeepEqual(mine, its) {
		w.t.Fatalf("offsets %v, in the log %v", mine, its)
	}
	g, h := w.c.groups["g"], c.groups["g"]
	if w.fail || g != nil && (g.state == PreparingRebalance || g.state == CompletingRebalance || !g.stored) {
		return
	}
	if (g == nil) != (h == nil) {
		w.t.Fatalf("group %v, in the log %v", g, h)
	}
	if g == nil {
		return
	}
	a, _ := w.c.Describe("g")
	b, _ := c.Describe("g")
	a.Reason = ""
	if fmt.Sprint(a) != fmt.Sprint(b) || g.state == Empty && g.since.UnixMilli() != h.since.UnixMilli() {
		w.t.Fatalf("group %v, in the log %v", a, b)
	}
}

// end lets everything come to rest: every request is answered.
func (w *world) end() {
	w.hold = false
	w.flush(nil)
	w.settle()
	w.pass(time.Hour)
	w.settle()
	if len(w.waiting) != 0 {
		w.t.Fatalf("requests wait for ever: %v", w.waiting)
	}
	if g := w.c.groups["g"]; g != nil && (g.state != Empty || g.writes != 0 || len(g.flying)+len(g.pending) != 0) {
		w.t.Fatalf("the group does not come to rest: %+v", g)
	}
	if len(w.log) > 0 {
		w.compareWithLog()
	}
}

func TestRandomInterleavings(t *testing.T) {
	for name, fail := range map[string]bool{"writes succeed": false, "writes fail": true} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				w := newWorld(t, fail)
				actions := map[string]func(*rapid.T){
					"join": w.join, "join2": w.join, "join3": w.join, "sync": w.sync, "sync2": w.sync, "sync3": w.sync,
					"beat": w.beat, "leave": w.leave, "commit": w.commit, "commit2": w.commit,
					"written": w.written, "written2": w.written, "written3": w.written,
					"time": w.timePasses, "admin": w.admin, "everyone": w.everyone, "crash": w.crash,
				}
				for range 5 { // times 30 steps
					t.Repeat(actions)
				}
				w.end()
			})
		})
	}
}
