package group

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestCommitRules(t *testing.T) {
	// Groups: "g" is stable with a static and a dynamic member; "e" is empty.
	setup := func(t *testing.T) (r *rig, ids []string, gen int32) {
		r = newRig(t, nil)
		ids, gen = r.stable(2, JoinRequest{InstanceID: "s"})
		r.want(r.commit(CommitRequest{GroupID: "e", Generation: -1}, "a", 0, 1), nil)
		return r, ids, gen
	}
	for name, tc := range map[string]struct {
		req  func(ids []string, gen int32) CommitRequest
		want error
	}{
		"member": {func(ids []string, gen int32) CommitRequest { return CommitRequest{MemberID: ids[0], Generation: gen} }, nil},
		"old generation": {func(ids []string, gen int32) CommitRequest {
			return CommitRequest{MemberID: ids[0], Generation: gen - 1}
		}, ErrIllegalGeneration},
		"later generation": {func(ids []string, gen int32) CommitRequest {
			return CommitRequest{MemberID: ids[0], Generation: gen + 1}
		}, ErrIllegalGeneration},
		"member, generation -1": {func(ids []string, gen int32) CommitRequest { return CommitRequest{MemberID: ids[0], Generation: -1} }, ErrIllegalGeneration},
		"unknown member":        {func(_ []string, gen int32) CommitRequest { return CommitRequest{MemberID: "x", Generation: gen} }, ErrUnknownMemberID},
		"unknown instance": {func(ids []string, gen int32) CommitRequest {
			return CommitRequest{MemberID: ids[0], InstanceID: "x", Generation: gen}
		}, ErrUnknownMemberID},
		"fenced instance": {func(_ []string, gen int32) CommitRequest {
			return CommitRequest{MemberID: "x", InstanceID: "s0", Generation: gen}
		}, ErrFencedInstanceID},
		"simple, not empty": {func([]string, int32) CommitRequest { return CommitRequest{Generation: -1} }, ErrUnknownMemberID},
		"simple, empty":     {func([]string, int32) CommitRequest { return CommitRequest{GroupID: "e", Generation: -1} }, nil},
		"simple, new":       {func([]string, int32) CommitRequest { return CommitRequest{GroupID: "n", Generation: -1} }, nil},
		"member of empty":   {func([]string, int32) CommitRequest { return CommitRequest{GroupID: "e", MemberID: "x", Generation: 1} }, ErrUnknownMemberID},
		"member of none, v8": {func([]string, int32) CommitRequest {
			return CommitRequest{Version: 8, GroupID: "n", MemberID: "x", Generation: 1}
		}, ErrIllegalGeneration},
		"member of none, v9": {func([]string, int32) CommitRequest {
			return CommitRequest{Version: 9, GroupID: "n", MemberID: "x", Generation: 1}
		}, ErrGroupIDNotFound},
		"group id too long": {func([]string, int32) CommitRequest {
			return CommitRequest{GroupID: strings.Repeat("x", MaxString+1), Generation: -1}
		}, ErrInvalidGroupID},
	} {
		t.Run(name, func(t *testing.T) {
			r, ids, gen := setup(t)
			groups, records := len(r.c.groups), len(r.log)
			err := r.commit(tc.req(ids, gen), "a", 0, 7)
			if !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			if err != nil && (len(r.c.groups) != groups || len(r.log) != records) {
				t.Error("a refused commit left something")
			}
		})
	}
	r, ids, gen := setup(t)
	r.want(r.commit(CommitRequest{MemberID: ids[0], Generation: gen}, "", 0, 1), ErrInvalidTopic)
	r.want(r.commit(CommitRequest{MemberID: ids[0], Generation: gen}, strings.Repeat("t", 250), 0, 1), ErrInvalidTopic)
	// While the leader assigns nobody may commit; before that everybody may.
	for _, id := range ids {
		r.want(r.commit(CommitRequest{MemberID: id, Generation: gen}, "a", 0, 7), nil)
		r.join(JoinRequest{MemberID: id, InstanceID: r.instanceOf(id)})
	}
	r.state(CompletingRebalance)
	r.want(r.commit(CommitRequest{MemberID: ids[0], Generation: gen}, "a", 0, 8), ErrIllegalGeneration)
	r.want(r.commit(CommitRequest{MemberID: ids[0], Generation: gen + 1}, "a", 0, 8), ErrRebalanceInProgress)
	if got := r.fetch("a", 0); got != 7 {
		t.Errorf("offset %d", got)
	}
}

func TestCommitMetadataAndOrder(t *testing.T) {
	r := newRig(t, nil)
	tk := r.ticket()
	r.do(r.c.Commit(tk, CommitRequest{GroupID: "g", Generation: -1, Topics: []CommitTopic{
		{Name: "b", Partitions: []CommitPartition{{1, 10, -1, ""}, {0, 11, 4, strings.Repeat("m", 4096)}}},
		{Name: "a", Partitions: []CommitPartition{{2, 12, -1, strings.Repeat("m", 4097)}}},
	}}, r.now))
	want := []TopicResult{
		{Name: "b", Partitions: []PartitionResult{{1, nil}, {0, nil}}},
		{Name: "a", Partitions: []PartitionResult{{2, ErrOffsetMetadataTooLarge}}},
	}
	if got := answer[*CommitResponse](r, tk).Topics; !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v", got)
	}
	all := r.c.FetchOffsets(FetchRequest{GroupID: "g"})
	at := time.UnixMilli(r.now.UnixMilli())
	if want := []FetchTopic{{Name: "b", Partitions: []FetchPartition{
		{0, 11, 4, strings.Repeat("m", 4096), at, nil}, {1, 10, -1, "", at, nil}}}}; !reflect.DeepEqual(all, want) {
		t.Fatalf("%+v", all)
	}
}

func TestFetchOffsets(t *testing.T) {
	r := newRig(t, nil)
	none := FetchPartition{Partition: 4, Offset: -1, LeaderEpoch: -1}
	for _, req := range []FetchRequest{
		{GroupID: "g", Topics: []TopicPartitions{{Name: "a", Partitions: []int32{4}}}},
		{GroupID: "g", Topics: []TopicPartitions{{Name: "a", Partitions: []int32{4}}}, RequireStable: true},
	} {
		got := r.c.FetchOffsets(req)
		if len(got) != 1 || got[0].Name != "a" || got[0].Partitions[0] != none {
			t.Fatalf("%+v", got)
		}
	}
	if got := r.c.FetchOffsets(FetchRequest{GroupID: "g"}); len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	if len(r.c.groups) != 0 {
		t.Error("a fetch made a group")
	}
	one, two := TopicID{1}, TopicID{2}
	tk := r.ticket()
	r.do(r.c.Commit(tk, CommitRequest{GroupID: "g", Generation: -1, Topics: []CommitTopic{
		{"a", one, []CommitPartition{{0, 5, 1, ""}}}}}, r.now))
	for id, want := range map[TopicID]int64{one: 5, {}: 5, two: -1} {
		got := r.c.FetchOffsets(FetchRequest{GroupID: "g", Topics: []TopicPartitions{{"a", id, []int32{0}}}})
		if got[0].Partitions[0].Offset != want {
			t.Errorf("topic id %v: %+v", id, got)
		}
	}
	r.want(r.commit(CommitRequest{Generation: -1}, "b", 0, 6), nil) // by an old client, without an id
	if got := r.c.FetchOffsets(FetchRequest{GroupID: "g", Topics: []TopicPartitions{{"b", one, []int32{0}}}}); got[0].Partitions[0].Offset != 6 {
		t.Errorf("%+v", got)
	}
}

// A commit is seen when it is written, in the order of the log, and not if it
// fails.
func TestCommitIsVisibleWhenWritten(t *testing.T) {
	r := newRig(t, nil)
	r.hold = true
	commit := func(offset int64) Ticket {
		tk := r.ticket()
		r.do(r.c.Commit(tk, CommitRequest{GroupID: "g", Generation: -1, Topics: []CommitTopic{{Name: "a", Partitions: []CommitPartition{{0, offset, 1, ""}}}}}, r.now))
		return tk
	}
	a, b, c := commit(1), commit(2), commit(3)
	stable := FetchRequest{GroupID: "g", RequireStable: true}
	if got := r.fetch("a", 0); got != -1 || r.c.FetchOffsets(stable)[0].Partitions[0].Err != ErrUnstableOffsetCommit {
		t.Fatal("visible before it was written")
	}
	w := r.writes
	r.do(r.c.Written(w[1].ID, nil, r.now)) // reported out of order
	if r.answers[b] != nil || r.fetch("a", 0) != -1 {
		t.Fatal("a write overtook another")
	}
	r.do(r.c.Written(w[0].ID, nil, r.now))
	r.do(r.c.Written(w[0].ID, nil, r.now)) // twice
	if r.answers[a] == nil || r.answers[b] == nil || r.fetch("a", 0) != 2 {
		t.Fatalf("offset %d", r.fetch("a", 0))
	}
	r.do(r.c.Written(w[2].ID, errors.New("no"), r.now))
	r.want(answer[*CommitResponse](r, c).Topics[0].Partitions[0].Err, ErrCoordinatorNotAvailable)
	if got := r.c.FetchOffsets(stable)[0].Partitions[0]; got.Offset != 2 || got.Err != nil {
		t.Fatalf("%+v", got)
	}
	// A failed first commit leaves no group.
	tk := r.ticket()
	r.do(r.c.Commit(tk, CommitRequest{GroupID: "h", Generation: -1, Topics: []CommitTopic{{Name: "a", Partitions: []CommitPartition{{0, 1, 1, ""}}}}}, r.now))
	r.do(r.c.Written(r.c.lastID, errors.New("no"), r.now))
	if r.c.groups["h"] != nil {
		t.Error("a group of nothing is kept")
	}
}

func TestCommitKeepsTheSession(t *testing.T) {
	r := newRig(t, nil)
	ids, gen := r.stable(1, JoinRequest{})
	for range 4 {
		r.pass(9 * time.Second)
		r.want(r.commit(CommitRequest{MemberID: ids[0], Generation: gen}, "a", 0, 1), nil)
	}
	r.state(Stable)
}

func TestDeleteOffsets(t *testing.T) {
	r := newRig(t, nil)
	del := func(topic string) (error, error) {
		tk := r.ticket()
		r.do(r.c.DeleteOffsets(tk, OffsetDeleteRequest{GroupID: "g", Topics: []TopicPartitions{{Name: topic, Partitions: []int32{0}}}}, r.now))
		a := answer[*OffsetDeleteResponse](r, tk)
		if a.Err != nil {
			return a.Err, nil
		}
		return nil, a.Topics[0].Partitions[0].Err
	}
	top, _ := del("a")
	r.want(top, ErrGroupIDNotFound)
	for _, topic := range []string{"a", "b"} {
		r.want(r.commit(CommitRequest{Generation: -1}, topic, 0, 5), nil)
	}
	ids, _ := r.stable(1, JoinRequest{}) // consumes a
	_, err := del("a")
	r.want(err, ErrGroupSubscribedToTopic)
	records := len(r.log)
	_, err = del("b")
	r.want(err, nil)
	_, err = del("nothing")
	r.want(err, nil)
	if r.fetch("a", 0) != 5 || r.fetch("b", 0) != -1 || len(r.log) != records+1 {
		t.Errorf("offsets %d and %d, %d records", r.fetch("a", 0), r.fetch("b", 0), len(r.log)-records)
	}
	r.leave(LeaveMember{MemberID: ids[0]})
	_, err = del("a")
	r.want(err, nil)
	r.load()
	if r.fetch("a", 0) != -1 {
		t.Error("the deletion is not in the log")
	}
	r.hold = true // a commit that is still being written goes as well
	r.do(r.c.Commit(r.ticket(), CommitRequest{GroupID: "g", Generation: -1, Topics: []CommitTopic{{Name: "b", Partitions: []CommitPartition{{0, 1, 1, ""}}}}}, r.now))
	r.do(r.c.DeleteOffsets(r.ticket(), OffsetDeleteRequest{GroupID: "g", Topics: []TopicPartitions{{Name: "b", Partitions: []int32{0}}}}, r.now))
	r.hold = false
	r.flush(nil)
	if r.fetch("b", 0) != -1 {
		t.Error("a commit outlived its deletion")
	}

	r = newRig(t, nil)
	r.stable(1, JoinRequest{ProtocolType: "connect"})
	top, _ = del("a")
	r.want(top, ErrNonEmptyGroup)
	r = newRig(t, nil)
	r.stable(1, JoinRequest{Protocols: []Protocol{{"p", []byte("not a subscription")}}})
	_, err = del("a")
	r.want(err, ErrGroupSubscribedToTopic) // it cannot be known
}

func TestDeleteGroup(t *testing.T) {
	r := newRig(t, nil)
	del := func() Ticket {
		tk := r.ticket()
		r.do(r.c.Delete(tk, "g", r.now))
		return tk
	}
	failure := func(tk Ticket) error { r.t.Helper(); return answer[*DeleteResponse](r, tk).Err }
	r.want(failure(del()), ErrGroupIDNotFound)
	ids, gen := r.stable(1, JoinRequest{})
	r.want(r.commit(CommitRequest{MemberID: ids[0], Generation: gen}, "a", 0, 5), nil)
	r.want(failure(del()), ErrNonEmptyGroup)
	r.leave(LeaveMember{MemberID: ids[0]})

	// While the deletion is being written the group is dead.
	r.hold = true
	ct := r.ticket()
	r.do(r.c.Commit(ct, CommitRequest{GroupID: "g", Generation: -1, Topics: []CommitTopic{{Name: "b", Partitions: []CommitPartition{{0, 1, 1, ""}}}}}, r.now))
	tk := del()
	r.state(Dead)
	r.want(failure(del()), ErrGroupIDNotFound)
	r.want(r.joined(r.join(JoinRequest{})).Err, ErrCoordinatorNotAvailable)
	r.want(r.commit(CommitRequest{Generation: -1}, "a", 0, 6), ErrCoordinatorNotAvailable)
	r.want(r.beat("x", 1), ErrCoordinatorNotAvailable)
	lt := r.ticket()
	r.do(r.c.Leave(lt, LeaveRequest{GroupID: "g"}, r.now))
	r.want(answer[*LeaveResponse](r, lt).Err, ErrCoordinatorNotAvailable)
	commit, deletion := r.writes[0], r.writes[1]
	r.do(r.c.Written(commit.ID, nil, r.now))
	r.do(r.c.Written(deletion.ID, errors.New("no"), r.now))
	r.want(failure(tk), ErrCoordinatorNotAvailable)
	r.state(Empty) // and nothing is lost
	if r.fetch("a", 0) != 5 || r.fetch("b", 0) != 1 {
		t.Error("offsets are lost")
	}
	r.log = append(r.log, commit.Records...)
	r.writes, r.hold = nil, false
	r.want(failure(del()), nil)
	if _, err := r.c.Describe("g"); !errors.Is(err, ErrGroupIDNotFound) || r.fetch("a", 0) != -1 {
		t.Error("the group is still there")
	}
	r.load()
	if len(r.c.groups) != 0 {
		t.Errorf("loaded %v", r.c.sorted())
	}
	r.join(JoinRequest{}) // only an id was given out
	records := len(r.log)
	r.want(failure(del()), nil)
	if len(r.c.groups) != 0 || len(r.log) != records {
		t.Error("a pending member is left, or records were written for it")
	}
}

func TestExpireOffsets(t *testing.T) {
	const day = 24 * time.Hour
	has := func(r *rig, topic string) bool { return r.fetch(topic, 0) >= 0 }
	t.Run("empty group", func(t *testing.T) {
		r := newRig(t, nil)
		ids, gen := r.stable(1, JoinRequest{})
		r.want(r.commit(CommitRequest{MemberID: ids[0], Generation: gen}, "a", 0, 5), nil)
		for range 10 * 24 * 2 { // ten days stable: subscribed topics stay
			for range 360 {
				r.now = r.now.Add(5 * time.Second)
				r.want(r.beat(ids[0], gen), nil)
			}
			r.do(r.c.ExpireOffsets(r.now))
		}
		if !has(r, "a") {
			t.Fatal("expired while it was consumed")
		}
		r.leave(LeaveMember{MemberID: ids[0]})
		r.pass(7*day - time.Second)
		r.do(r.c.ExpireOffsets(r.now))
		if !has(r, "a") {
			t.Fatal("expired too early after the group was empty")
		}
		r.load() // the time since when it is empty is in the log
		r.pass(time.Second)
		r.do(r.c.ExpireOffsets(r.now))
		if has(r, "a") || len(r.c.groups) != 0 {
			t.Fatal("not expired")
		}
		r.load()
		if len(r.c.groups) != 0 {
			t.Error("the expiry is not in the log")
		}
	})
	t.Run("simple consumer", func(t *testing.T) {
		r := newRig(t, nil)
		r.want(r.commit(CommitRequest{Generation: -1}, "a", 0, 5), nil)
		r.pass(3 * day)
		r.want(r.commit(CommitRequest{Generation: -1}, "b", 0, 5), nil)
		r.pass(4 * day)
		r.do(r.c.ExpireOffsets(r.now))
		if has(r, "a") || !has(r, "b") {
			t.Fatalf("a %v, b %v", has(r, "a"), has(r, "b"))
		}
		r.pass(3 * day)
		r.do(r.c.ExpireOffsets(r.now))
		if len(r.c.groups) != 0 {
			t.Fatal("b has not expired")
		}
	})
	t.Run("unsubscribed topic", func(t *testing.T) {
		r := newRig(t, nil)
		r.want(r.commit(CommitRequest{Generation: -1}, "b", 0, 5), nil)
		r.stable(1, JoinRequest{})
		r.now = r.now.Add(7 * day)
		r.do(r.c.ExpireOffsets(r.now))
		if has(r, "b") {
			t.Error("not expired")
		}
		r.state(Stable)
	})
	t.Run("other protocol type", func(t *testing.T) {
		r := newRig(t, nil)
		r.want(r.commit(CommitRequest{Generation: -1}, "b", 0, 5), nil)
		r.stable(1, JoinRequest{ProtocolType: "connect"})
		r.now = r.now.Add(70 * day)
		r.do(r.c.ExpireOffsets(r.now))
		if !has(r, "b") {
			t.Error("expired in a group with members")
		}
	})
	t.Run("own retention", func(t *testing.T) {
		r := newRig(t, nil)
		r.want(r.commit(CommitRequest{Generation: -1, Retention: time.Hour}, "a", 0, 5), nil)
		r.want(r.commit(CommitRequest{Generation: -1, Retention: 30 * day}, "b", 0, 5), nil)
		r.load()
		r.pass(time.Hour)
		r.do(r.c.ExpireOffsets(r.now))
		r.now = r.now.Add(29 * day)
		r.do(r.c.ExpireOffsets(r.now))
		if has(r, "a") || !has(r, "b") {
			t.Errorf("a %v, b %v", has(r, "a"), has(r, "b"))
		}
	})
	t.Run("commit in flight", func(t *testing.T) {
		r := newRig(t, nil)
		r.want(r.commit(CommitRequest{Generation: -1}, "a", 0, 5), nil)
		r.pass(7 * day)
		r.hold = true
		r.do(r.c.Commit(r.ticket(), CommitRequest{GroupID: "g", Generation: -1, Topics: []CommitTopic{{Name: "a", Partitions: []CommitPartition{{0, 6, 1, ""}}}}}, r.now))
		r.do(r.c.ExpireOffsets(r.now))
		r.flush(nil)
		if r.fetch("a", 0) != 6 {
			t.Error("a fresh commit has expired")
		}
	})
	t.Run("pending member", func(t *testing.T) {
		r := newRig(t, nil)
		id := r.joined(r.join(JoinRequest{})).MemberID
		r.do(r.c.ExpireOffsets(r.now))
		r.want(r.joined(r.join(JoinRequest{MemberID: id})).Err, nil)
	})
}

func TestDropTopic(t *testing.T) {
	r := newRig(t, nil)
	for i := range 3 {
		r.want(r.commit(CommitRequest{GroupID: fmt.Sprint(i), Generation: -1}, "a", int32(i), 5), nil)
		r.want(r.commit(CommitRequest{GroupID: fmt.Sprint(i), Generation: -1}, fmt.Sprint("b", i), 0, 5), nil)
	}
	r.hold = true
	r.do(r.c.Commit(r.ticket(), CommitRequest{GroupID: "0", Generation: -1, Topics: []CommitTopic{{Name: "a", Partitions: []CommitPartition{{9, 6, 1, ""}}}}}, r.now))
	r.do(r.c.DropTopic("a"))
	r.flush(nil)
	for range 2 {
		if n := r.c.Stats().Offsets; n != 3 {
			t.Errorf("%d offsets are left", n)
		}
		r.load()
	}
}

func TestListAndDescribe(t *testing.T) {
	r := newRig(t, nil)
	r.want(r.commit(CommitRequest{GroupID: "e", Generation: -1}, "a", 0, 5), nil)
	ids, gen := r.stable(1, JoinRequest{ClientID: "me", ClientHost: "/1.2.3.4"})
	e, g := Listed{"e", "", Empty}, Listed{"g", ConsumerType, Stable}
	for _, tc := range []struct {
		states, types []string
		want          []Listed
	}{
		{nil, nil, []Listed{e, g}},
		{[]string{"stable"}, nil, []Listed{g}},
		{[]string{"Empty", "Stable"}, []string{"Classic"}, []Listed{e, g}},
		{[]string{"Dead", "nonsense"}, nil, nil},
		{nil, []string{"consumer"}, nil},
	} {
		if got := r.c.List(tc.states, tc.types); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("list %v %v: %+v", tc.states, tc.types, got)
		}
	}
	d, err := r.c.Describe("g")
	want := Description{"g", ConsumerType, "range", Stable, gen, ids[0], d.Reason,
		[]DescribedMember{{ids[0], "", "me", "/1.2.3.4", topics("a"), []byte("a0")}}}
	if err != nil || !reflect.DeepEqual(d, want) {
		t.Errorf("%+v", d)
	}
	r.join(JoinRequest{MemberID: ids[0], ClientID: "me"})
	d, _ = r.c.Describe("g")
	if d.State != CompletingRebalance || d.Protocol != "" || d.Members[0].Metadata != nil {
		t.Errorf("%+v", d)
	}
	d, err = r.c.Describe("x")
	if d.State != Dead || !errors.Is(err, ErrGroupIDNotFound) {
		t.Errorf("%+v, %v", d, err)
	}
	s := r.c.Stats()
	if s.Members != 1 || s.Offsets != 1 || s.Groups[Empty] != 1 || s.Writes != 0 || s.Rebalances != 2 {
		t.Errorf("%+v", s)
	}
	for state, name := range map[State]string{Empty: "Empty", PreparingRebalance: "PreparingRebalance",
		CompletingRebalance: "CompletingRebalance", Stable: "Stable", Dead: "Dead"} {
		if state.String() != name {
			t.Errorf("%v", state)
		}
	}
}

func TestConfig(t *testing.T) {
	id := func() string { return "" }
	for _, cfg := range []Config{{}, {NewID: id, MinSessionTimeout: -1}, {NewID: id, MaxSessionTimeout: time.Second},
		{NewID: id, InitialRebalanceDelay: -1}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("accepted %+v", cfg)
		}
	}
}
