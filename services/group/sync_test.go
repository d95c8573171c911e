package group

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestSyncGivesWhatTheLeaderSent(t *testing.T) {
	r := newRig(t, func(c *Config) { c.InitialRebalanceDelay = time.Second })
	var ids []string
	var tks []Ticket
	for range 3 {
		id, tk := r.newMember(JoinRequest{})
		ids, tks = append(ids, id), append(tks, tk)
	}
	r.pass(3 * time.Second)
	gen := r.joined(tks[0]).Generation
	early := r.sync(ids[1], gen)
	r.hold = true
	lead := r.sync(ids[0], gen, Assignment{ids[1], []byte("one")}, Assignment{ids[0], []byte("zero")}, Assignment{"stranger", []byte("x")})
	if len(r.answers) != 6 || r.answers[early] != nil || r.answers[lead] != nil {
		t.Fatal("answered before the assignment was written")
	}
	r.state(CompletingRebalance)
	again := r.sync(ids[0], gen, Assignment{ids[1], []byte("other")})
	r.want(r.synced(lead).Err, ErrRebalanceInProgress) // replaced by a repetition
	if len(r.writes) != 1 {
		t.Fatalf("%d writes for one generation", len(r.writes))
	}
	r.hold = false
	r.flush(nil)
	late := r.sync(ids[2], gen)
	for tk, want := range map[Ticket]string{early: "one", again: "zero", late: ""} {
		got := r.synced(tk)
		if got.Err != nil || string(got.Assignment) != want || got.ProtocolName != "range" || got.ProtocolType != ConsumerType {
			t.Errorf("%+v, want %q", got, want)
		}
	}
	r.state(Stable)
}

func TestSyncAndHeartbeatErrors(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(1, JoinRequest{InstanceID: "i"})
	for name, tc := range map[string]struct {
		req  SyncRequest
		want error
		beat bool // heartbeats are told the same
	}{
		"no group id":         {SyncRequest{}, ErrInvalidGroupID, true},
		"unknown group":       {SyncRequest{GroupID: "h", MemberID: ids[0], Generation: gen}, ErrUnknownMemberID, true},
		"unknown member":      {SyncRequest{GroupID: "g", MemberID: "x", Generation: gen}, ErrUnknownMemberID, true},
		"unknown instance":    {SyncRequest{GroupID: "g", MemberID: ids[0], InstanceID: "j", Generation: gen}, ErrUnknownMemberID, true},
		"fenced instance":     {SyncRequest{GroupID: "g", MemberID: "x", InstanceID: "i0", Generation: gen}, ErrFencedInstanceID, true},
		"old generation":      {SyncRequest{GroupID: "g", MemberID: ids[0], Generation: gen - 1}, ErrIllegalGeneration, true},
		"next generation":     {SyncRequest{GroupID: "g", MemberID: ids[0], Generation: gen + 1}, ErrIllegalGeneration, true},
		"other type":          {SyncRequest{GroupID: "g", MemberID: ids[0], Generation: gen, ProtocolType: "connect"}, ErrInconsistentGroupProtocol, false},
		"other protocol":      {SyncRequest{GroupID: "g", MemberID: ids[0], Generation: gen, ProtocolName: "sticky"}, ErrInconsistentGroupProtocol, false},
		"right protocol":      {SyncRequest{GroupID: "g", MemberID: ids[0], Generation: gen, ProtocolType: ConsumerType, ProtocolName: "range"}, nil, true},
		"without protocol":    {SyncRequest{GroupID: "g", MemberID: ids[0], Generation: gen}, nil, true},
		"by instance as well": {SyncRequest{GroupID: "g", MemberID: ids[0], InstanceID: "i0", Generation: gen}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			tk := r.ticket()
			r.do(r.c.Sync(tk, tc.req, r.now))
			if got := r.synced(tk).Err; !errors.Is(got, tc.want) {
				t.Errorf("sync: %v, want %v", got, tc.want)
			}
			if tc.beat {
				err := r.c.Heartbeat(HeartbeatRequest{tc.req.GroupID, tc.req.MemberID, tc.req.InstanceID, tc.req.Generation}, r.now)
				if !errors.Is(err, tc.want) {
					t.Errorf("heartbeat: %v, want %v", err, tc.want)
				}
			}
		})
	}
	r.leave(LeaveMember{MemberID: ids[0]})
	r.state(Empty)
	r.want(r.synced(r.sync(ids[0], gen)).Err, ErrUnknownMemberID)
	r.want(r.beat(ids[0], gen), ErrUnknownMemberID)
}

func TestSyncTimeout(t *testing.T) {
	r := newRig(t, func(c *Config) { c.InitialRebalanceDelay = time.Second })
	req := JoinRequest{SessionTimeout: 5 * time.Minute, RebalanceTimeout: 20 * time.Second}
	leader, tk := r.newMember(req)
	follower, _ := r.newMember(req)
	r.pass(2 * time.Second)
	gen := r.joined(tk).Generation
	w := r.sync(follower, gen)
	r.pass(17 * time.Second)
	r.want(r.beat(leader, gen), nil)
	r.pass(3 * time.Second) // the leader never syncs
	r.want(r.synced(w).Err, ErrRebalanceInProgress)
	r.want(r.beat(leader, gen), ErrUnknownMemberID)
	req.MemberID = follower
	got := r.joined(r.join(req))
	if got.Err != nil || got.Generation != gen+1 || got.Leader != follower {
		t.Fatalf("%+v", got)
	}
	r.want(r.synced(r.sync(follower, gen+1)).Err, nil)
	r.pass(time.Minute)
	r.state(Stable) // the timer does not fire when all have synced
}

func TestFailedAssignmentWrite(t *testing.T) {
	r := newRig(t, nil)
	id, tk := r.newMember(JoinRequest{})
	r.hold = true
	s := r.sync(id, r.joined(tk).Generation, Assignment{id, []byte("x")})
	r.flush(fmt.Errorf("append: %w", ErrNotCoordinator))
	r.want(r.synced(s).Err, ErrNotCoordinator)
	r.state(PreparingRebalance)
	r.hold = false
	got := r.joined(r.join(JoinRequest{MemberID: id}))
	if got.Err != nil || got.Generation != 2 {
		t.Fatalf("%+v", got)
	}
	r.hold = true
	s = r.sync(id, 2, Assignment{id, []byte("x")})
	r.flush(errors.New("disk on fire"))
	r.want(r.synced(s).Err, ErrCoordinatorNotAvailable)
}

// Assignments that are too large, for this package or for the log, fail all that
// wait for them; then the group rebalances.
func TestTooLargeAssignment(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxRecordBytes = 1000 })
	id, tk := r.newMember(JoinRequest{})
	gen := r.joined(tk).Generation
	r.want(r.synced(r.sync(id, gen, Assignment{id, make([]byte, 1000)})).Err, ErrRecordTooLarge)
	r.state(PreparingRebalance)
	other, tk2 := r.newMember(JoinRequest{})
	gen = r.joined(r.join(JoinRequest{MemberID: id})).Generation
	if r.joined(tk2).Generation != gen {
		t.Fatalf("generations %d and %d", r.joined(tk2).Generation, gen)
	}
	wait := r.sync(other, gen)
	r.want(r.synced(r.sync(id, gen, Assignment{id, make([]byte, 1000)})).Err, ErrRecordTooLarge)
	r.want(r.synced(wait).Err, ErrRecordTooLarge)
	tk = r.join(JoinRequest{MemberID: id})
	r.join(JoinRequest{MemberID: other})
	gen = r.joined(tk).Generation
	r.hold = true
	s := r.sync(id, gen, Assignment{id, []byte("x")})
	r.flush(fmt.Errorf("%w: by the log", ErrRecordTooLarge))
	r.want(r.synced(s).Err, ErrRecordTooLarge)
	r.hold = false
	tk = r.join(JoinRequest{MemberID: id})
	r.join(JoinRequest{MemberID: other})
	r.want(r.synced(r.sync(id, r.joined(tk).Generation, Assignment{id, []byte("x")})).Err, nil)
	r.state(Stable)
}

// A rebalance that begins while an assignment is being written leaves the
// assignment without effect.
func TestRebalanceDuringAssignmentWrite(t *testing.T) {
	r := newRig(t, nil)
	id, tk := r.newMember(JoinRequest{})
	gen := r.joined(tk).Generation
	r.hold = true
	s := r.sync(id, gen, Assignment{id, []byte("old")})
	other, _ := r.newMember(JoinRequest{})
	r.want(r.synced(s).Err, ErrRebalanceInProgress)
	r.join(JoinRequest{MemberID: id})
	r.state(CompletingRebalance)
	r.flush(nil)
	r.state(CompletingRebalance)
	r.hold = false
	s = r.sync(id, gen+1, Assignment{id, []byte("new")}, Assignment{other, []byte("o")})
	if got := r.synced(s); got.Err != nil || string(got.Assignment) != "new" {
		t.Fatalf("%+v", got)
	}
}

// Two generations' assignments are under way at once: each is its own.
func TestTwoAssignmentWrites(t *testing.T) {
	r := newRig(t, nil)
	id, tk := r.newMember(JoinRequest{})
	gen := r.joined(tk).Generation
	r.hold = true
	r.sync(id, gen, Assignment{id, []byte("old")})
	r.join(JoinRequest{MemberID: id, Protocols: []Protocol{{"range", topics("b")}}})
	s := r.sync(id, gen+1, Assignment{id, []byte("new")})
	r.do(r.c.Written(r.writes[0].ID, nil, r.now))
	r.state(CompletingRebalance)
	if r.answers[s] != nil {
		t.Fatal("answered by the wrong write")
	}
	r.do(r.c.Written(r.writes[1].ID, nil, r.now))
	if got := r.synced(s); got.Err != nil || string(got.Assignment) != "new" {
		t.Fatalf("%+v", got)
	}
}

// Who waits for an assignment is alive, and has a whole session when the wait
// ends without one.
func TestWaitingForAnAssignmentKeepsTheSession(t *testing.T) {
	r := newRig(t, func(c *Config) { c.InitialRebalanceDelay = time.Second })
	leader, tk := r.newMember(JoinRequest{})
	follower, _ := r.newMember(JoinRequest{})
	r.pass(2 * time.Second)
	gen := r.joined(tk).Generation
	s := r.sync(follower, gen)
	for range 3 {
		r.pass(8 * time.Second)
		r.want(r.beat(leader, gen), nil)
	}
	r.state(CompletingRebalance)
	r.leave(LeaveMember{MemberID: leader})
	r.want(r.synced(s).Err, ErrRebalanceInProgress)
	r.pass(9 * time.Second)
	r.want(r.beat(follower, gen), ErrRebalanceInProgress)
	r.want(r.joined(r.join(JoinRequest{MemberID: follower})).Err, nil)
	r.sync(follower, gen+1)
	for range 3 { // a sync when all is stable is a sign of life too
		r.pass(8 * time.Second)
		r.want(r.synced(r.sync(follower, gen+1)).Err, nil)
	}
	r.state(Stable)
}

func TestSessionExpiry(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(2, JoinRequest{})
	for range 5 {
		r.pass(8 * time.Second)
		r.want(r.beat(ids[0], gen), nil)
		r.want(r.beat(ids[1], gen), nil)
	}
	r.pass(8 * time.Second)
	r.want(r.beat(ids[0], gen), nil)
	r.pass(1999 * time.Millisecond)
	r.state(Stable)
	r.pass(time.Millisecond)
	r.state(PreparingRebalance)
	r.want(r.beat(ids[1], gen), ErrUnknownMemberID)
	got := r.joined(r.join(JoinRequest{MemberID: ids[0]}))
	if got.Generation != gen+1 || len(got.Members) != 1 {
		t.Fatalf("%+v", got)
	}
	r.sync(ids[0], gen+1)
	r.pass(11 * time.Second)
	r.state(Empty)
	if r.generation() != gen+2 {
		t.Error("an emptied group has no generation of its own")
	}
}

func TestLeave(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(3, JoinRequest{InstanceID: "s"})
	names := map[string]string{} // member id to instance id
	d, _ := r.c.Describe("g")
	for _, m := range d.Members {
		names[m.MemberID] = m.InstanceID
	}
	tk := r.ticket()
	r.do(r.c.Leave(tk, LeaveRequest{GroupID: "h", Members: []LeaveMember{{MemberID: "x"}}}, r.now))
	r.want(answer[*LeaveResponse](r, tk).Err, ErrUnknownMemberID)
	tk = r.ticket()
	r.do(r.c.Leave(tk, LeaveRequest{}, r.now))
	r.want(answer[*LeaveResponse](r, tk).Err, ErrInvalidGroupID)

	got := r.leave(LeaveMember{MemberID: "x"}, LeaveMember{InstanceID: "nobody"}, LeaveMember{},
		LeaveMember{MemberID: ids[0], InstanceID: names[ids[1]]})
	for i, want := range []error{ErrUnknownMemberID, ErrUnknownMemberID, ErrUnknownMemberID, ErrFencedInstanceID} {
		r.want(got.Members[i].Err, want)
	}
	r.state(Stable)
	r.leave(LeaveMember{MemberID: r.joined(r.join(JoinRequest{})).MemberID})
	r.state(Stable) // it was no member yet
	pending := r.joined(r.join(JoinRequest{})).MemberID
	got = r.leave(LeaveMember{MemberID: pending}, LeaveMember{InstanceID: names[ids[0]], Reason: "scaled down"}, LeaveMember{MemberID: ids[1]})
	for _, m := range got.Members {
		r.want(m.Err, nil)
	}
	r.state(PreparingRebalance)
	if d, _ = r.c.Describe("g"); len(d.Members) != 1 || d.Leader != ids[2] {
		t.Fatalf("%+v", d)
	}
	r.want(r.beat(ids[2], gen), ErrRebalanceInProgress)
	r.leave(LeaveMember{MemberID: ids[2]})
	r.state(Empty)
	r.load()
	if g := r.c.groups["g"]; g.protocol != "" || g.leader != "" || g.protocolType != ConsumerType {
		t.Errorf("an empty group has %q, %q, %q", g.protocol, g.leader, g.protocolType)
	}

	// Who leaves while a request of it waits has it answered.
	r = newRig(t, nil)
	ids, _ = r.stable(2, JoinRequest{})
	j := r.join(JoinRequest{MemberID: ids[0]})
	r.leave(LeaveMember{MemberID: ids[0]})
	r.want(r.joined(j).Err, ErrUnknownMemberID)
	r.join(JoinRequest{MemberID: ids[1]})
	r.newMember(JoinRequest{})
	r.join(JoinRequest{MemberID: ids[1]})
	d, _ = r.c.Describe("g")
	s := r.sync(d.Members[1].MemberID, d.Generation)
	r.leave(LeaveMember{MemberID: d.Members[1].MemberID})
	r.want(r.synced(s).Err, ErrUnknownMemberID)
}

// The answer to the last leave waits for the record that says so.
func TestLeaveWaitsForItsRecord(t *testing.T) {
	r := newRig(t, nil)
	ids, _ := r.stable(1, JoinRequest{})
	r.hold = true
	tk := r.ticket()
	r.do(r.c.Leave(tk, LeaveRequest{GroupID: "g", Members: []LeaveMember{{MemberID: ids[0]}}}, r.now))
	if r.answers[tk] != nil {
		t.Fatal("answered at once")
	}
	r.flush(nil)
	r.want(answer[*LeaveResponse](r, tk).Members[0].Err, nil)
	r.load()
	r.state(Empty)
}

func TestUnloadAnswersEveryone(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(2, JoinRequest{})
	r.hold = true
	r.want(r.beat(ids[0], gen), nil)
	ct := r.ticket()
	r.do(r.c.Commit(ct, CommitRequest{GroupID: "g", MemberID: ids[0], Generation: gen,
		Topics: []CommitTopic{{Name: "a", Partitions: []CommitPartition{{0, 1, 1, ""}}}}}, r.now))
	dt := r.ticket()
	r.do(r.c.Commit(r.ticket(), CommitRequest{GroupID: "d", Generation: -1, Topics: []CommitTopic{{Name: "a", Partitions: []CommitPartition{{0, 1, 1, ""}}}}}, r.now))
	r.do(r.c.Delete(dt, "d", r.now))
	jt := r.join(JoinRequest{MemberID: ids[0]})
	solo, lt := r.join(JoinRequest{GroupID: "solo", InstanceID: "i"}), r.ticket()
	r.do(r.c.Leave(lt, LeaveRequest{GroupID: "solo", Members: []LeaveMember{{MemberID: r.joined(solo).MemberID}}}, r.now))
	writes := r.writes
	r.do(Effects{Answers: r.c.Unload()})
	r.want(r.joined(r.join(JoinRequest{})).Err, ErrCoordinatorNotAvailable)
	if len(r.waiting) != 0 {
		t.Fatalf("%d requests wait for ever", len(r.waiting))
	}
	r.want(r.joined(jt).Err, ErrNotCoordinator)
	r.want(answer[*CommitResponse](r, ct).Topics[0].Partitions[0].Err, ErrNotCoordinator)
	r.want(answer[*DeleteResponse](r, dt).Err, ErrNotCoordinator)
	for _, w := range writes {
		r.do(r.c.Written(w.ID, nil, r.now)) // too late
	}
	if _, ok := r.c.Deadline(); ok || len(r.c.groups) != 0 {
		t.Error("something is left")
	}
}
