package clients

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/localstack/e2e"
)

// TestClientsCooperative: members with cooperative-sticky assignment go on
// reading what they keep while a rebalance is under way. It is held open by a
// member that is stopped (SIGSTOP), so that there is time to look. Members that
// join and leave lose nothing, and nothing is read twice that a client could commit.
func TestClientsCooperative(t *testing.T) {
	n := e2e.NewNode(t, e2e.NodeOptions{Args: []string{"--offsets-topic-partitions", "5", "--group-initial-rebalance-delay", "0s"}})
	for _, lib := range libraries() {
		switch lib.name {
		case "franz-go", "confluent-kafka", "Kafka's console tools":
			t.Run(lib.id(), func(t *testing.T) {
				r := newRun(t, n, lib)
				r.cooperative, r.session = true, 30*time.Second
				r.joinAndLeave()
			})
		}
	}
}

// joinAndLeave is what TestClientsCooperative says, for one client.
func (r *run) joinAndLeave() {
	t := r.t
	sent := 0
	send := func() {
		t.Helper()
		r.trickle(sent)
		sent += partitions
	}
	a := r.join()
	r.stable(1)
	slow := r.join()
	r.stable(2)
	send()
	r.until("both members read", func() bool { return len(r.seen) == sent && len(slow.seen) > 0 }, a, slow, nil)
	if err := slow.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b := r.join()
	r.during("PreparingRebalance", func() {
		time.Sleep(3 * time.Second) // three heartbeats: the member knows, and an eager one has stopped
		r.mu.Lock()
		before := len(a.seen)
		r.mu.Unlock()
		send()
		r.until("a member reads during the rebalance", func() bool { return len(a.seen) > before }, a, b, nil)
	})
	if err := slow.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	r.stable(3)
	all := func() bool { return len(r.seen) == sent }
	send()
	r.until("three members read all", all, a, b, nil)
	for i, m := range []*member{slow, b} {
		if err := m.stop(limit); err != nil {
			t.Fatal(err)
		}
		send()
		r.stable(2 - i)
		r.until("those that stay read all", all, a, nil, nil)
	}
	r.leave(a)
	r.mu.Lock()
	defer r.mu.Unlock()
	// Java's automatic commit comes before the rebalance: what a member reads during
	// it, from partitions that it then gives up, comes again.
	again := 0
	if _, auto := r.make.(java); auto {
		again = partitions
	}
	if len(r.wrong) > 0 || r.duplicates > again {
		t.Errorf("%d records were read twice; faults: %q", r.duplicates, r.wrong)
	}
}

// during waits until the group is in a state, does something, and fails if the
// group has left the state meanwhile.
func (r *run) during(state string, f func()) {
	r.t.Helper()
	for end := time.Now().Add(limit); r.describe().State != state; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("the group is not %s in %v but %s", state, limit, r.describe().State)
		}
	}
	f()
	if got := r.describe().State; got != state {
		r.t.Fatalf("the group became %s, it was to be %s until the members had read", got, state)
	}
}

// trickle sends one record to each partition.
func (r *run) trickle(from int) {
	r.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.n.Kafka), kgo.DefaultProduceTopic(r.topic), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		r.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(r.t.Context(), limit)
	defer cancel()
	var all []*kgo.Record
	for i := range partitions {
		m := makeRecord(from + i)
		all = append(all, &kgo.Record{Partition: int32(i), Key: m.key, Value: m.value, Headers: m.headers})
	}
	if err := cl.ProduceSync(ctx, all...).FirstErr(); err != nil {
		r.t.Fatal(err)
	}
}
