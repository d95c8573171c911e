package group

import (
	"errors"
	"fmt"
	"time"
)

// tb is what testing.T and rapid.T have in common, as far as it is used here.
type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// rig drives a coordinator as a broker would: it keeps the log, reports writes
// when told, and sees to it that every ticket is answered once.
type rig struct {
	t       tb
	c       *Coordinator
	cfg     Config
	now     time.Time
	last    Ticket
	waiting map[Ticket]bool
	answers map[Ticket]Response
	log     []Record
	writes  []Write
	hold    bool // writes are reported by flush only
	ids     int
}

func newRig(t tb, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, now: time.UnixMilli(1_700_000_000_000), waiting: map[Ticket]bool{}, answers: map[Ticket]Response{}}
	r.cfg = Config{NewID: func() string { r.ids++; return fmt.Sprintf("id%d", r.ids) }}
	if change != nil {
		change(&r.cfg)
	}
	r.load()
	return r
}

// load makes a new coordinator from the log.
func (r *rig) load() {
	r.t.Helper()
	c, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.c = c
	for _, rec := range r.log {
		if err := c.Apply(rec.Key, rec.Value); err != nil {
			r.t.Fatal(err)
		}
	}
	r.do(c.Loaded(r.now))
}

func (r *rig) ticket() Ticket {
	r.last++
	r.waiting[r.last] = true
	return r.last
}

func (r *rig) do(fx Effects) {
	r.t.Helper()
	for _, a := range fx.Answers {
		if !r.waiting[a.Ticket] {
			r.t.Fatalf("answer %T to ticket %d, which does not wait", a.Response, a.Ticket)
		}
		delete(r.waiting, a.Ticket)
		r.answers[a.Ticket] = a.Response
	}
	r.writes = append(r.writes, fx.Writes...)
	if !r.hold {
		r.flush(nil)
	}
}

// flush reports all writes.
func (r *rig) flush(err error) {
	r.t.Helper()
	for len(r.writes) > 0 {
		w := r.writes[0]
		r.writes = r.writes[1:]
		if err == nil {
			r.log = append(r.log, w.Records...)
		}
		r.do(r.c.Written(w.ID, err, r.now))
	}
}

// pass lets time go by, stopping at every deadline.
func (r *rig) pass(d time.Duration) {
	r.t.Helper()
	end := r.now.Add(d)
	for {
		at, ok := r.c.Deadline()
		if !ok || at.After(end) {
			break
		}
		if at.After(r.now) {
			r.now = at
		}
		r.do(r.c.Tick(r.now))
		if next, ok := r.c.Deadline(); ok && !next.After(r.now) {
			r.t.Fatalf("deadline %v is due after Tick at %v", next, r.now)
		}
	}
	r.now = end
}

func (r *rig) join(req JoinRequest) Ticket {
	r.t.Helper()
	t := r.ticket()
	if req.GroupID == "" {
		req.GroupID = "g"
	}
	if req.Version == 0 {
		req.Version = 9
	}
	if req.ProtocolType == "" {
		req.ProtocolType = ConsumerType
	}
	if req.Protocols == nil {
		req.Protocols = []Protocol{{"range", topics("a")}}
	}
	if req.SessionTimeout == 0 {
		req.SessionTimeout = 10 * time.Second
	}
	if req.RebalanceTimeout == 0 {
		req.RebalanceTimeout = time.Minute
	}
	if req.ClientID == "" {
		req.ClientID = "c"
	}
	r.do(r.c.Join(t, req, r.now))
	return t
}

// newMember joins with the id that the coordinator asks for.
func (r *rig) newMember(req JoinRequest) (string, Ticket) {
	r.t.Helper()
	resp := r.joined(r.join(req))
	if !errors.Is(resp.Err, ErrMemberIDRequired) {
		r.t.Fatalf("first join: %v", resp.Err)
	}
	req.MemberID = resp.MemberID
	return resp.MemberID, r.join(req)
}

func answer[T Response](r *rig, t Ticket) T {
	r.t.Helper()
	a, ok := r.answers[t].(T)
	if !ok {
		r.t.Fatalf("ticket %d: answer is %T", t, r.answers[t])
	}
	return a
}

func (r *rig) joined(t Ticket) *JoinResponse { r.t.Helper(); return answer[*JoinResponse](r, t) }
func (r *rig) synced(t Ticket) *SyncResponse { r.t.Helper(); return answer[*SyncResponse](r, t) }

func (r *rig) sync(id string, generation int32, assignments ...Assignment) Ticket {
	r.t.Helper()
	t := r.ticket()
	r.do(r.c.Sync(t, SyncRequest{GroupID: "g", MemberID: id, Generation: generation, Assignments: assignments}, r.now))
	return t
}

func (r *rig) leave(members ...LeaveMember) *LeaveResponse {
	r.t.Helper()
	t := r.ticket()
	r.do(r.c.Leave(t, LeaveRequest{GroupID: "g", Members: members}, r.now))
	return answer[*LeaveResponse](r, t)
}

func (r *rig) beat(id string, generation int32) error {
	return r.c.Heartbeat(HeartbeatRequest{GroupID: "g", MemberID: id, Generation: generation}, r.now)
}

func (r *rig) commit(req CommitRequest, topic string, partition int32, offset int64) error {
	r.t.Helper()
	t := r.ticket()
	if req.GroupID == "" {
		req.GroupID = "g"
	}
	req.Topics = []CommitTopic{{Name: topic, Partitions: []CommitPartition{{partition, offset, 3, "m"}}}}
	r.do(r.c.Commit(t, req, r.now))
	return answer[*CommitResponse](r, t).Topics[0].Partitions[0].Err
}

func (r *rig) fetch(topic string, partition int32) int64 {
	got := r.c.FetchOffsets(FetchRequest{GroupID: "g", Topics: []TopicPartitions{{Name: topic, Partitions: []int32{partition}}}})
	return got[0].Partitions[0].Offset
}

func (r *rig) state(want State) {
	r.t.Helper()
	if d, _ := r.c.Describe("g"); d.State != want {
		r.t.Fatalf("group is %v, want %v", d.State, want)
	}
}

func (r *rig) want(err, want error) {
	r.t.Helper()
	if !errors.Is(err, want) {
		r.t.Fatalf("error is %v, want %v", err, want)
	}
}

// stable makes a group of n dynamic members and returns their ids, the leader
// first; member i is assigned "a<i>".
func (r *rig) stable(n int, req JoinRequest) (ids []string, generation int32) {
	r.t.Helper()
	var joins []Ticket
	for i := range n {
		var t Ticket
		if req := instance(req, i); req.InstanceID != "" {
			t = r.join(req)
		} else {
			_, t = r.newMember(req)
		}
		joins = append(joins, t)
	}
	// With no initial delay the first member was alone; all others make it
	// join again, and so does whoever was answered.
	for range 2 * n {
		for i, t := range joins {
			if resp, ok := r.answers[t].(*JoinResponse); ok && resp.Generation != r.generation() || r.preparing() && ok {
				again := instance(req, i)
				again.MemberID = resp.MemberID
				joins[i] = r.join(again)
			}
		}
	}
	var all []Assignment
	leader := ""
	for i, t := range joins {
		resp := r.joined(t)
		r.want(resp.Err, nil)
		ids = append(ids, resp.MemberID)
		generation, leader = resp.Generation, resp.Leader
		all = append(all, Assignment{resp.MemberID, fmt.Appendf(nil, "a%d", i)})
	}
	for i, id := range ids {
		if id == leader {
			ids[0], ids[i] = ids[i], ids[0]
		}
	}
	var syncs []Ticket
	for _, id := range ids[1:] {
		syncs = append(syncs, r.sync(id, generation))
	}
	syncs = append(syncs, r.sync(leader, generation, all...))
	for _, t := range syncs {
		r.want(r.synced(t).Err, nil)
	}
	r.state(Stable)
	return ids, generation
}

func instance(req JoinRequest, i int) JoinRequest {
	if req.InstanceID != "" {
		req.InstanceID = fmt.Sprintf("%s%d", req.InstanceID, i)
	}
	return req
}

func (r *rig) generation() int32 {
	d, _ := r.c.Describe("g")
	return d.Generation
}

func (r *rig) preparing() bool {
	d, _ := r.c.Describe("g")
	return d.State == PreparingRebalance
}

// topics is the metadata of a consumer of these topics.
func topics(names ...string) []byte {
	b := []byte{0, 1, 0, 0, 0, byte(len(names))}
	for _, n := range names {
		b = append(append(b, 0, byte(len(n))), n...)
	}
	return append(b, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0)
}
