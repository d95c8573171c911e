package group

import (
	"strings"
	"testing"
	"time"
)

func TestJoinErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		req  JoinRequest
		want error
	}{
		"member id required": {JoinRequest{}, ErrMemberIDRequired},
		"unknown group":      {JoinRequest{MemberID: "x"}, ErrUnknownMemberID},
		"session too short":  {JoinRequest{SessionTimeout: 5999 * time.Millisecond}, ErrInvalidSessionTimeout},
		"session too long":   {JoinRequest{SessionTimeout: 30*time.Minute + 1}, ErrInvalidSessionTimeout},
		"no protocols":       {JoinRequest{Protocols: []Protocol{}}, ErrInconsistentGroupProtocol},
		"group id too long":  {JoinRequest{GroupID: strings.Repeat("g", MaxString+1)}, ErrInvalidGroupID},
		"client id too long": {JoinRequest{ClientID: strings.Repeat("g", MaxString)}, ErrInvalidRequest},
		"metadata too large": {JoinRequest{Protocols: []Protocol{{"p", make([]byte, 1<<20)}}}, ErrInvalidRequest},
		"too many protocols": {JoinRequest{Protocols: make([]Protocol, MaxProtocols+1)}, ErrInvalidRequest},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			resp := r.joined(r.join(tc.req))
			r.want(resp.Err, tc.want)
			if resp.Generation != -1 {
				t.Errorf("generation %d with an error", resp.Generation)
			}
			if tc.want != ErrMemberIDRequired && len(r.c.groups) != 0 {
				t.Error("a refused join left a group")
			}
		})
	}
	r := newRig(t, nil)
	tk := r.ticket()
	r.do(r.c.Join(tk, JoinRequest{SessionTimeout: 10 * time.Second}, r.now))
	r.want(r.joined(tk).Err, ErrInvalidGroupID)
}

func TestPendingMemberExpires(t *testing.T) {
	r := newRig(t, nil)
	id := r.joined(r.join(JoinRequest{})).MemberID
	r.pass(9 * time.Second)
	if len(r.c.groups) != 1 {
		t.Fatal("pending member is gone too early")
	}
	r.pass(2 * time.Second)
	if len(r.c.groups) != 0 {
		t.Error("a group of nobody is kept")
	}
	r.want(r.joined(r.join(JoinRequest{MemberID: id})).Err, ErrUnknownMemberID)
	if len(r.log) != 0 {
		t.Error("records were written for nobody")
	}
}

func TestPendingMemberHoldsRebalance(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(1, JoinRequest{})
	resp := r.joined(r.join(JoinRequest{}))
	again := r.join(JoinRequest{MemberID: ids[0]}) // the leader rejoins
	if r.answers[again] != nil {
		t.Fatal("the join phase ended without the pending member")
	}
	late := r.join(JoinRequest{MemberID: resp.MemberID})
	for _, tk := range []Ticket{again, late} {
		if got := r.joined(tk); got.Err != nil || got.Generation != gen+1 {
			t.Fatalf("%+v", got)
		}
	}
	if n := len(r.joined(again).Members); n != 2 {
		t.Errorf("leader sees %d members", n)
	}
	if n := len(r.joined(late).Members); n != 0 {
		t.Errorf("follower sees %d members", n)
	}
}

func TestPendingMemberThatLeavesIsNotWaitedFor(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(1, JoinRequest{})
	pending := r.joined(r.join(JoinRequest{})).MemberID
	tk := r.join(JoinRequest{MemberID: ids[0]})
	if r.answers[tk] != nil {
		t.Fatal("not waited for")
	}
	r.leave(LeaveMember{MemberID: pending})
	if got := r.joined(tk); got.Err != nil || got.Generation != gen+1 {
		t.Fatalf("%+v", got)
	}
}

// Requests' bytes may be in a buffer that is used again.
func TestRequestsAreCopied(t *testing.T) {
	r := newRig(t, nil)
	meta, data := []byte("metadata"), []byte("data")
	_, tk := r.newMember(JoinRequest{ProtocolType: "connect", Protocols: []Protocol{{"p", meta}}})
	id := r.joined(tk).MemberID
	r.sync(id, 1, Assignment{id, data})
	clear(meta)
	clear(data)
	d, _ := r.c.Describe("g")
	if m := d.Members[0]; string(m.Metadata) != "metadata" || string(m.Assignment) != "data" {
		t.Errorf("%q, %q", m.Metadata, m.Assignment)
	}
}

func TestInitialDelay(t *testing.T) {
	r := newRig(t, func(c *Config) { c.InitialRebalanceDelay = 3 * time.Second })
	_, a := r.newMember(JoinRequest{RebalanceTimeout: 7 * time.Second})
	r.pass(2 * time.Second)
	_, b := r.newMember(JoinRequest{RebalanceTimeout: 7 * time.Second})
	r.pass(2 * time.Second) // 4 s: extended at 3 s
	_, c := r.newMember(JoinRequest{RebalanceTimeout: 7 * time.Second})
	r.pass(1900 * time.Millisecond) // 5.9 s
	if r.answers[a] != nil {
		t.Fatal("the delay was not extended")
	}
	r.pass(time.Second) // 6.9 s: extended at 6 s, by the last second
	if r.answers[a] != nil {
		t.Fatal("the delay was not extended again")
	}
	r.pass(200 * time.Millisecond)
	for _, tk := range []Ticket{a, b, c} {
		if got := r.joined(tk); got.Err != nil || got.Generation != 1 {
			t.Fatalf("%+v", got)
		}
	}
	if len(r.joined(a).Members) != 3 {
		t.Error("the first member does not lead three")
	}
}

func TestProtocolChoice(t *testing.T) {
	p := func(names ...string) (out []Protocol) {
		for _, n := range names {
			out = append(out, Protocol{n, []byte(n)})
		}
		return out
	}
	for name, tc := range map[string]struct {
		members [][]Protocol
		want    string
	}{
		"only common one":      {[][]Protocol{p("a", "b"), p("b", "c")}, "b"},
		"most votes":           {[][]Protocol{p("a", "b"), p("b", "a"), p("b", "a")}, "b"},
		"leader decides":       {[][]Protocol{p("b", "a"), p("a", "b")}, "b"},
		"doubled name":         {[][]Protocol{p("a", "a", "b"), p("b", "a")}, "a"},
		"votes for common one": {[][]Protocol{p("x", "a", "b"), p("b", "a"), p("b", "a")}, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.InitialRebalanceDelay = time.Second })
			var tks []Ticket
			for _, m := range tc.members {
				_, tk := r.newMember(JoinRequest{ProtocolType: "connect", Protocols: m})
				tks = append(tks, tk)
			}
			r.pass(5 * time.Second)
			for _, tk := range tks {
				if got := r.joined(tk); got.ProtocolName != tc.want || got.ProtocolType != "connect" {
					t.Fatalf("%+v", got)
				}
			}
		})
	}
	r := newRig(t, nil)
	r.stable(1, JoinRequest{})
	r.want(r.joined(r.join(JoinRequest{Protocols: p("other")})).Err, ErrInconsistentGroupProtocol)
	r.want(r.joined(r.join(JoinRequest{ProtocolType: "connect"})).Err, ErrInconsistentGroupProtocol)
}

func TestRejoin(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(2, JoinRequest{})
	leader, follower := ids[0], ids[1]

	// A follower with nothing new gets the current generation.
	got := r.joined(r.join(JoinRequest{MemberID: follower}))
	if got.Err != nil || got.Generation != gen || got.Leader != leader || got.Members != nil {
		t.Fatalf("%+v", got)
	}
	r.state(Stable)
	if s := r.synced(r.sync(follower, gen)); s.Err != nil || !strings.HasPrefix(string(s.Assignment), "a") {
		t.Fatalf("%+v", s)
	}

	// With other metadata it starts a rebalance, as does the leader always.
	one := r.join(JoinRequest{MemberID: follower, Protocols: []Protocol{{"range", topics("b")}}})
	r.state(PreparingRebalance)
	r.want(r.beat(leader, gen), ErrRebalanceInProgress)
	r.want(r.synced(r.sync(leader, gen)).Err, ErrRebalanceInProgress)
	two := r.join(JoinRequest{MemberID: leader})
	r.state(CompletingRebalance)
	if r.joined(one).Generation != gen+1 || len(r.joined(two).Members) != 2 {
		t.Fatal("the rebalance did not end with all members")
	}

	// The same join again, its answer was lost: the same answer.
	if got := r.joined(r.join(JoinRequest{MemberID: leader})); got.Generation != gen+1 || len(got.Members) != 2 {
		t.Fatalf("%+v", got)
	}
	// Other metadata now: those who wait for an assignment must join again.
	w := r.sync(follower, gen+1)
	r.join(JoinRequest{MemberID: leader, Protocols: []Protocol{{"range", topics("c")}}})
	r.want(r.synced(w).Err, ErrRebalanceInProgress)
	r.state(PreparingRebalance)
}

func TestRepeatedJoinAnswersTheFirst(t *testing.T) {
	r := newRig(t, nil)
	ids, _ := r.stable(2, JoinRequest{})
	a := r.join(JoinRequest{MemberID: ids[0]})
	b := r.join(JoinRequest{MemberID: ids[0]})
	r.want(r.joined(a).Err, ErrRebalanceInProgress)
	if r.answers[b] != nil {
		t.Fatal("the rebalance ended without the second member")
	}
	r.join(JoinRequest{MemberID: ids[1]})
	r.want(r.joined(b).Err, nil)
}

func TestRebalanceTimeoutDropsWhoDidNotJoin(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(3, JoinRequest{SessionTimeout: 5 * time.Minute})
	tk := r.join(JoinRequest{MemberID: ids[1], SessionTimeout: 5 * time.Minute, Protocols: []Protocol{{"range", topics("z")}}})
	r.pass(59 * time.Second)
	if r.answers[tk] != nil {
		t.Fatal("answered too early")
	}
	r.pass(2 * time.Second)
	got := r.joined(tk)
	if got.Err != nil || got.Generation != gen+1 || got.Leader != ids[1] || len(got.Members) != 1 {
		t.Fatalf("%+v", got)
	}
	r.want(r.beat(ids[0], gen), ErrUnknownMemberID)
}

func TestFirstJoinWaitsNoLongerThanItsLimit(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(1, JoinRequest{RebalanceTimeout: time.Hour})
	_, tk := r.newMember(JoinRequest{RebalanceTimeout: time.Hour})
	for range 5*60 + 1 {
		r.want(r.beat(ids[0], gen), ErrRebalanceInProgress)
		r.pass(time.Second)
	}
	r.want(r.joined(tk).Err, ErrUnknownMemberID)
	// One that is known may wait as long as the rebalance takes.
	r.join(JoinRequest{RebalanceTimeout: time.Hour}) // pending
	tk = r.join(JoinRequest{MemberID: ids[0]})
	r.pass(9 * time.Second)
	if r.answers[tk] != nil {
		t.Fatal("answered while a member was pending")
	}
	r.pass(2 * time.Second)
	r.want(r.joined(tk).Err, nil)
}

func TestGroupSizes(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxSize = 2; c.MaxGroups = 1 })
	ids, _ := r.stable(2, JoinRequest{})
	r.want(r.joined(r.join(JoinRequest{})).Err, ErrGroupMaxSizeReached)
	r.want(r.joined(r.join(JoinRequest{Version: 3})).Err, ErrGroupMaxSizeReached)
	r.want(r.joined(r.join(JoinRequest{GroupID: "other"})).Err, ErrCoordinatorNotAvailable)
	r.want(r.joined(r.join(JoinRequest{MemberID: ids[1]})).Err, nil)
	r.state(Stable)

	// A group that was loaded with more members than allowed: the last goes.
	r.cfg.MaxSize = 1
	r.load()
	r.state(PreparingRebalance)
	tk := r.join(JoinRequest{MemberID: ids[1]})
	r.want(r.joined(r.join(JoinRequest{MemberID: ids[0]})).Err, ErrGroupMaxSizeReached)
	if got := r.joined(tk); got.Err != nil || got.Leader != ids[1] || len(got.Members) != 1 {
		t.Fatalf("%+v", got)
	}

	// A static member finds its place in a full group.
	r = newRig(t, func(c *Config) { c.MaxSize = 2 })
	r.stable(2, JoinRequest{InstanceID: "s"})
	r.want(r.joined(r.join(JoinRequest{InstanceID: "s1"})).Err, nil)
	r.want(r.joined(r.join(JoinRequest{InstanceID: "s2"})).Err, ErrGroupMaxSizeReached)
	r.state(Stable)

	// Pending ids count too, and so do the bytes of metadata.
	r = newRig(t, func(c *Config) { c.MaxSize = 2 })
	r.join(JoinRequest{})
	r.join(JoinRequest{})
	r.want(r.joined(r.join(JoinRequest{})).Err, ErrGroupMaxSizeReached)
	r = newRig(t, func(c *Config) { c.MaxGroupBytes = 2000; c.InitialRebalanceDelay = time.Second })
	r.join(JoinRequest{Version: 3, Protocols: []Protocol{{"p", make([]byte, 1500)}}})
	r.want(r.joined(r.join(JoinRequest{Version: 3, Protocols: []Protocol{{"p", make([]byte, 1500)}}})).Err, ErrGroupMaxSizeReached)
	r.pass(5 * time.Second)
	id := r.leaderID() // its own metadata counts once
	r.want(r.joined(r.join(JoinRequest{MemberID: id, Protocols: []Protocol{{"p", make([]byte, 1900)}}})).Err, nil)
}

// Who is turned away is not waited for.
func TestTurnedAwayMemberIsNotWaitedFor(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxSize = 2 })
	ids, _ := r.stable(1, JoinRequest{})
	a := r.joined(r.join(JoinRequest{})).MemberID
	b := r.joined(r.join(JoinRequest{})).MemberID
	one, two := r.join(JoinRequest{MemberID: a}), r.join(JoinRequest{MemberID: ids[0]})
	if r.answers[one] != nil || r.answers[two] != nil {
		t.Fatal("the join phase ended without the pending member")
	}
	r.want(r.joined(r.join(JoinRequest{MemberID: b})).Err, ErrGroupMaxSizeReached)
	r.want(r.joined(one).Err, nil)
	r.want(r.joined(two).Err, nil)
}

func TestTimeoutsOfTheLastJoinCount(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(1, JoinRequest{})
	r.join(JoinRequest{MemberID: ids[0], SessionTimeout: time.Minute})
	r.sync(ids[0], gen+1)
	r.pass(59 * time.Second)
	r.state(Stable)
	r.pass(2 * time.Second)
	r.state(Empty)
}
