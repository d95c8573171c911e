package group

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// lookup finds the member id of an instance.
func (r *rig) lookup(instance string) string {
	d, _ := r.c.Describe("g")
	for _, m := range d.Members {
		if m.InstanceID == instance {
			return m.MemberID
		}
	}
	return ""
}

func TestStaticReturnDoesNotRebalance(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(3, JoinRequest{InstanceID: "s"})
	before := r.c.Stats().Rebalances
	d, _ := r.c.Describe("g")
	for _, m := range d.Members {
		for _, version := range []int16{9, 5} {
			old, leader := r.lookup(m.InstanceID), r.leaderID()
			r.hold = true
			tk := r.join(JoinRequest{InstanceID: m.InstanceID, Version: version})
			if r.answers[tk] != nil {
				t.Fatal("answered before the new id was written")
			}
			r.hold = false
			r.flush(nil)
			got := r.joined(tk)
			if got.Err != nil || got.Generation != gen || got.MemberID == old {
				t.Fatalf("%+v", got)
			}
			leads := old == leader
			if version == 9 && (got.SkipAssignment != leads || leads != (len(got.Members) == 3) || got.Leader != r.leaderID()) {
				t.Errorf("leads %v: %+v", leads, got)
			}
			if version == 5 && (got.SkipAssignment || got.Members != nil || got.Leader != leader) {
				t.Errorf("version 5, leads %v: %+v", leads, got)
			}
			if s := r.synced(r.sync(got.MemberID, gen)); s.Err != nil || string(s.Assignment) != string(m.Assignment) {
				t.Errorf("%+v, want assignment %q", s, m.Assignment)
			}
			err := r.c.Heartbeat(HeartbeatRequest{"g", old, m.InstanceID, gen}, r.now)
			r.want(err, ErrFencedInstanceID)
			r.want(r.beat(old, gen), ErrUnknownMemberID)
			r.state(Stable)
		}
	}
	if n := r.c.Stats().Rebalances - before; n != 0 {
		t.Errorf("%d rebalances", n)
	}
	_ = ids
	r.load()
	if after, _ := r.c.Describe("g"); fmt.Sprint(after.Members) == fmt.Sprint(d.Members) || len(after.Members) != 3 {
		t.Errorf("the new ids are not in the log: %+v", after)
	}
}

func (r *rig) leaderID() string {
	d, _ := r.c.Describe("g")
	return d.Leader
}

func TestStaticReturnWithOtherMetadata(t *testing.T) {
	two := func(first, second string) []Protocol {
		return []Protocol{{first, topics("a")}, {second, topics("a")}}
	}
	for name, tc := range map[string]struct {
		first, back []Protocol
		rebalance   bool
	}{
		"same":           {two("x", "y"), two("x", "y"), false},
		"other order":    {two("x", "y"), two("y", "x"), true},
		"other topics":   {[]Protocol{{"x", topics("a")}}, []Protocol{{"x", topics("a", "b")}}, true},
		"same topics":    {[]Protocol{{"x", topics("a", "b")}}, []Protocol{{"x", append(topics("b", "a"), "user data"...)}}, false},
		"not parseable":  {[]Protocol{{"x", []byte("?")}}, []Protocol{{"x", []byte("!")}}, false},
		"fewer of those": {two("x", "y"), two("x", "y")[:1], false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.stable(1, JoinRequest{InstanceID: "s", Protocols: tc.first})
			before := r.c.Stats().Rebalances
			got := r.joined(r.join(JoinRequest{InstanceID: "s0", Protocols: tc.back}))
			r.want(got.Err, nil)
			if rebalanced := r.c.Stats().Rebalances != before; rebalanced != tc.rebalance {
				t.Errorf("rebalanced: %v", rebalanced)
			}
		})
	}
}

func TestStaticFencing(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(2, JoinRequest{InstanceID: "s"})
	d, _ := r.c.Describe("g")
	mine := map[string]string{}
	for _, m := range d.Members {
		mine[m.MemberID] = m.InstanceID
	}
	// Joins with ids that do not belong together.
	r.want(r.joined(r.join(JoinRequest{MemberID: "x", InstanceID: mine[ids[0]]})).Err, ErrFencedInstanceID)
	r.want(r.joined(r.join(JoinRequest{MemberID: ids[0], InstanceID: "nobody"})).Err, ErrUnknownMemberID)
	r.want(r.joined(r.join(JoinRequest{MemberID: "x"})).Err, ErrUnknownMemberID)

	// A waiting join and a waiting sync of the old run are fenced.
	j := r.join(JoinRequest{MemberID: ids[0], InstanceID: mine[ids[0]]})
	second := r.join(JoinRequest{InstanceID: mine[ids[0]]})
	r.want(r.joined(j).Err, ErrFencedInstanceID)
	third := r.join(JoinRequest{MemberID: ids[1], InstanceID: mine[ids[1]]})
	r.want(r.joined(second).Err, nil)
	r.want(r.joined(third).Err, nil)
	follower := r.joined(third)
	if follower.Leader == follower.MemberID {
		follower = r.joined(second)
	}
	s := r.sync(follower.MemberID, gen+1)
	r.join(JoinRequest{InstanceID: r.instanceOf(follower.MemberID)})
	r.want(r.synced(s).Err, ErrFencedInstanceID)
	r.state(PreparingRebalance) // the leader may have assigned to the old id
}

func (r *rig) instanceOf(id string) string {
	d, _ := r.c.Describe("g")
	for _, m := range d.Members {
		if m.MemberID == id {
			return m.InstanceID
		}
	}
	return ""
}

func TestStaticReturnFailsToBeWritten(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(1, JoinRequest{InstanceID: "s"})
	r.hold = true
	tk := r.join(JoinRequest{InstanceID: "s0"})
	r.flush(errors.New("no disk"))
	r.want(r.joined(tk).Err, ErrCoordinatorNotAvailable)
	r.state(Stable)
	r.want(r.beat(ids[0], gen), nil) // the old run holds the place
	if r.leaderID() != ids[0] {
		t.Error("the leader is somebody else now")
	}
}

// After a long wait for the write there is a whole session, and no more.
func TestStaticReturnThatIsWrittenLate(t *testing.T) {
	for _, err := range []error{errors.New("no disk"), nil} {
		r := newRig(t, nil)
		r.stable(1, JoinRequest{InstanceID: "s"})
		r.hold = true
		tk := r.join(JoinRequest{InstanceID: "s0"})
		r.pass(15 * time.Second)
		r.flush(err)
		if got := r.joined(tk); (got.Err == nil) != (err == nil) {
			t.Fatalf("%+v", got)
		}
		r.hold = false
		r.pass(9 * time.Second)
		r.state(Stable)
		r.pass(2 * time.Second)
		r.state(Empty)
	}
}

// A static member that is away during a rebalance keeps its place until its
// session ends; the others go on without it.
func TestStaticMemberAwayDuringRebalance(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(2, JoinRequest{InstanceID: "s", SessionTimeout: 10 * time.Minute, RebalanceTimeout: 20 * time.Second})
	here := r.instanceOf(ids[1])
	again := JoinRequest{MemberID: ids[1], InstanceID: here, SessionTimeout: 10 * time.Minute, RebalanceTimeout: 20 * time.Second,
		Protocols: []Protocol{{"range", topics("a", "b")}}}
	tk := r.join(again)
	r.pass(21 * time.Second)
	got := r.joined(tk)
	if got.Err != nil || got.Generation != gen+1 || got.Leader != ids[1] || len(got.Members) != 2 {
		t.Fatalf("%+v", got)
	}
}

// The second run of a static member may wait as long as the rebalance takes,
// though the first was new.
func TestStaticReturnDuringItsFirstJoin(t *testing.T) {
	r := newRig(t, func(c *Config) { c.InitialRebalanceDelay = 30 * time.Second })
	first := r.join(JoinRequest{InstanceID: "s"})
	second := r.join(JoinRequest{InstanceID: "s"})
	r.want(r.joined(first).Err, ErrFencedInstanceID)
	r.pass(31 * time.Second)
	r.want(r.joined(second).Err, nil)
}

func TestNobodyOfStaticMembersRejoins(t *testing.T) {
	r := newRig(t, nil)
	ids, _ := r.stable(2, JoinRequest{InstanceID: "s", SessionTimeout: time.Minute, RebalanceTimeout: 10 * time.Second})
	_, tk := r.newMember(JoinRequest{})
	r.leave(LeaveMember{MemberID: r.joinedOrWaiting(tk)})
	r.pass(45 * time.Second)
	r.state(PreparingRebalance)
	r.pass(30 * time.Second)
	r.state(Empty)
	r.want(r.beat(ids[0], 1), ErrUnknownMemberID)
}

// joinedOrWaiting is the id of the only dynamic member.
func (r *rig) joinedOrWaiting(Ticket) string { return r.lookup("") }

func TestRollingRestartOf100StaticMembers(t *testing.T) {
	r := newRig(t, func(c *Config) { c.InitialRebalanceDelay = time.Second })
	var tks []Ticket
	req := func(i int) JoinRequest {
		return JoinRequest{InstanceID: fmt.Sprintf("s%d", i), SessionTimeout: 45 * time.Second}
	}
	for i := range 100 {
		tks = append(tks, r.join(req(i)))
	}
	r.pass(2 * time.Second)
	gen := r.joined(tks[0]).Generation
	ids := make([]string, 100)
	var all []Assignment
	for i, tk := range tks {
		ids[i] = r.joined(tk).MemberID
		all = append(all, Assignment{ids[i], fmt.Appendf(nil, "p%d", i)})
	}
	for i := 99; i >= 0; i-- {
		r.sync(ids[i], gen, all...)
	}
	r.state(Stable)
	before := r.c.Stats().Rebalances
	for i := range 100 {
		got := r.joined(r.join(req(i)))
		r.want(got.Err, nil)
		ids[i] = got.MemberID
		if s := r.synced(r.sync(ids[i], gen)); string(s.Assignment) != fmt.Sprintf("p%d", i) {
			t.Fatalf("member %d got %q", i, s.Assignment)
		}
		r.pass(3 * time.Second)
		for _, id := range ids {
			r.want(r.beat(id, gen), nil)
		}
	}
	if n := r.c.Stats().Rebalances - before; n != 0 || r.generation() != gen {
		t.Errorf("%d rebalances, generation %d to %d", n, gen, r.generation())
	}
}
