package group

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// joinAll brings n members into one group and to a stable assignment. It
// returns how many requests it took.
func joinAll(tb testing.TB, c *Coordinator, n int, now time.Time) (requests int) {
	req := JoinRequest{GroupID: "g", Version: 9, ClientID: "client", SessionTimeout: 45 * time.Second, RebalanceTimeout: 5 * time.Minute,
		ProtocolType: ConsumerType, Protocols: []Protocol{{"cooperative-sticky", make([]byte, 200)}, {"range", make([]byte, 200)}}}
	ticket := Ticket(0)
	var joined []*JoinResponse
	take := func(fx Effects) {
		for _, a := range fx.Answers {
			if r, ok := a.Response.(*JoinResponse); ok && r.Err == nil {
				joined = append(joined, r)
			} else if s, ok := a.Response.(*SyncResponse); ok && s.Err != nil {
				tb.Fatal(s.Err)
			}
		}
	}
	for range n {
		ticket += 2
		fx := c.Join(ticket, req, now)
		first := fx.Answers[0].Response.(*JoinResponse)
		if !errors.Is(first.Err, ErrMemberIDRequired) {
			tb.Fatal(first.Err)
		}
		again := req
		again.MemberID = first.MemberID
		take(c.Join(ticket+1, again, now))
	}
	for len(joined) == 0 {
		at, _ := c.Deadline()
		take(c.Tick(at))
		now = at
	}
	if len(joined) != n {
		tb.Fatalf("%d of %d joined", len(joined), n)
	}
	leader := joined[0]
	s := SyncRequest{GroupID: "g", MemberID: leader.MemberID, Generation: leader.Generation}
	for _, m := range leader.Members {
		s.Assignments = append(s.Assignments, Assignment{m.MemberID, make([]byte, 300)})
	}
	for _, m := range joined[1:] {
		ticket += 2
		take(c.Sync(ticket, SyncRequest{GroupID: "g", MemberID: m.MemberID, Generation: m.Generation}, now))
	}
	fx := c.Sync(ticket+1, s, now)
	take(c.Written(fx.Writes[0].ID, nil, now))
	if d, _ := c.Describe("g"); d.State != Stable || len(d.Members) != n {
		tb.Fatalf("%v with %d members", d.State, len(d.Members))
	}
	return 3 * n
}

func benchCoordinator(tb testing.TB) *Coordinator {
	ids := 0
	c, err := New(Config{NewID: func() string { ids++; return fmt.Sprint(ids) }, InitialRebalanceDelay: 3 * time.Second})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func BenchmarkJoin10000Members(b *testing.B) {
	for b.Loop() {
		joinAll(b, benchCoordinator(b), 10_000, time.UnixMilli(1e12))
	}
}

func BenchmarkJoin1000Members(b *testing.B) {
	for b.Loop() {
		joinAll(b, benchCoordinator(b), 1000, time.UnixMilli(1e12))
	}
}

// BenchmarkHeartbeat is one heartbeat in a group of 1,000, with the timers.
func BenchmarkHeartbeat(b *testing.B) {
	c, now := benchCoordinator(b), time.UnixMilli(1e12)
	joinAll(b, c, 1000, now)
	d, _ := c.Describe("g")
	i := 0
	for b.Loop() {
		if i++; i%len(d.Members) == 0 {
			now = now.Add(3 * time.Second) // all send one every three seconds
			c.Tick(now)
		}
		if err := c.Heartbeat(HeartbeatRequest{GroupID: "g", MemberID: d.Members[i%len(d.Members)].MemberID, Generation: d.Generation}, now); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCommit is one commit of ten partitions, with its write.
func BenchmarkCommit(b *testing.B) {
	c, now := benchCoordinator(b), time.UnixMilli(1e12)
	req := CommitRequest{GroupID: "g", Generation: -1, Topics: []CommitTopic{{Name: "topic"}}}
	for p := range int32(10) {
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, CommitPartition{Partition: p, Offset: 7, LeaderEpoch: 1})
	}
	b.ReportAllocs()
	for b.Loop() {
		fx := c.Commit(1, req, now)
		c.Written(fx.Writes[0].ID, nil, now)
	}
}

// offsetLog is a log of n commits of 100 groups.
func offsetLog(n int) (log []Record) {
	for i := range n {
		log = append(log, offsetRecord(fmt.Sprintf("group-%d", i%100), key{fmt.Sprintf("topic-%d", i/100%10), int32(i / 1000)},
			&offset{offset: int64(i), commit: 1e12, expire: -1, metadata: "some metadata"}))
	}
	return log
}

func BenchmarkReplay100000Offsets(b *testing.B) {
	log := offsetLog(100_000)
	b.ReportAllocs()
	for b.Loop() {
		c := benchCoordinator(b)
		for _, rec := range log {
			if err := c.Apply(rec.Key, rec.Value); err != nil {
				b.Fatal(err)
			}
		}
		c.Loaded(time.UnixMilli(1e12))
	}
}

// 10,000 members and 100,000 offsets are handled in a time that nobody waits
// for, though not measured closely.
func TestLargeGroupAndLog(t *testing.T) {
	start := time.Now()
	c := benchCoordinator(t)
	joinAll(t, c, 10_000, time.UnixMilli(1e12))
	d, _ := c.Describe("g")
	for i, m := range d.Members { // all leave, the leader always first
		c.Leave(Ticket(i+1), LeaveRequest{GroupID: "g", Members: []LeaveMember{{MemberID: m.MemberID}}}, time.UnixMilli(1e12))
	}
	if d, _ = c.Describe("g"); d.State != Empty || len(d.Members) != 0 {
		t.Fatalf("%v with %d members", d.State, len(d.Members))
	}
	c = benchCoordinator(t)
	for _, rec := range offsetLog(100_000) {
		if err := c.Apply(rec.Key, rec.Value); err != nil {
			t.Fatal(err)
		}
	}
	if s := c.Stats(); s.Offsets != 100_000 || s.Groups[Empty] != 100 {
		t.Fatalf("%+v", s)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}

// Groups are looked at when they are due, each in its own time.
func TestDeadlinesOfManyGroups(t *testing.T) {
	r := newRig(t, nil)
	if _, ok := r.c.Deadline(); ok {
		t.Fatal("something is due without groups")
	}
	for i := range 50 {
		r.join(JoinRequest{GroupID: fmt.Sprint(i), Version: 3, SessionTimeout: time.Duration(7+i*37%50) * time.Second, RebalanceTimeout: time.Hour})
	}
	for s := range 70 {
		r.now = r.now.Add(time.Second)
		r.do(r.c.Tick(r.now))
		want := 0 // members left: those with a session of more than s+1 seconds
		for i := range 50 {
			if 7+i*37%50 > s+1 {
				want++
			}
		}
		if got := r.c.Stats().Members; got != want {
			t.Fatalf("after %d s: %d members, want %d", s+1, got, want)
		}
	}
	if at, ok := r.c.Deadline(); ok {
		t.Errorf("%v is due in groups without members", at)
	}
}

// vanish lets n ids that were given out, or n members, end each at its own
// time, and returns how often the coordinator was called for it.
func vanish(tb testing.TB, n int, members bool) (ticks int) {
	c, now := benchCoordinator(tb), time.UnixMilli(1e12)
	if members {
		joinAll(tb, c, n, now)
		d, _ := c.Describe("g")
		for i, m := range d.Members { // within a minute, before which no session ends
			at := now.Add(10*time.Second + time.Duration(i)*30*time.Second/time.Duration(n))
			if err := c.Heartbeat(HeartbeatRequest{GroupID: "g", MemberID: m.MemberID, Generation: d.Generation}, at); err != nil {
				tb.Fatal(err)
			}
		}
	} else {
		for i := range n {
			c.Join(Ticket(i+1), JoinRequest{GroupID: "g", Version: 9, SessionTimeout: 45 * time.Second, ProtocolType: ConsumerType, Protocols: []Protocol{{"range", nil}}},
				now.Add(time.Duration(i)*30*time.Second/time.Duration(n)))
		}
	}
	for end := now.Add(10 * time.Minute); ; ticks++ {
		at, ok := c.Deadline()
		if !ok || at.After(end) {
			break
		}
		for _, w := range c.Tick(at).Writes {
			c.Written(w.ID, nil, at)
		}
	}
	if s := c.Stats(); s.Members != 0 || !members && len(s.Groups) != 0 {
		tb.Fatalf("left: %+v", s)
	}
	return ticks
}

// BenchmarkVanish10000 is the end of 10,000 ids or members, each at its own time.
func BenchmarkVanish10000(b *testing.B) {
	for _, c := range []struct {
		name    string
		members bool
	}{{"ids", false}, {"members", true}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				b.ReportMetric(float64(vanish(b, 10_000, c.members)), "ticks")
			}
		})
	}
}
