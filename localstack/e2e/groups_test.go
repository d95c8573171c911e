package e2e

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// groupArgs make groups quick.
func groupArgs(more ...string) []string {
	return append([]string{"--offsets-topic-partitions", "5", "--group-initial-rebalance-delay", "0s", "--group-min-session-timeout", "1s"}, more...)
}

// numbers produces from, from+1 … to-1, each to the partition it gives modulo
// their number.
func numbers(t *testing.T, n *Node, topic string, partitions, from, to int) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.AllowAutoTopicCreation())
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var records []*kgo.Record
	for i := from; i < to; i++ {
		records = append(records, &kgo.Record{Topic: topic, Partition: int32(i % partitions), Value: []byte(strconv.Itoa(i))})
	}
	if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// lines are the numbers from, from+1 … to-1 as a client prints them.
func lines(from, to int) (out []string) {
	for i := from; i < to; i++ {
		out = append(out, strconv.Itoa(i))
	}
	return out
}

// kcat consumes in a group and goes on where it was, also after the node was
// killed.
func TestGroupKcat(t *testing.T) {
	kcat := testenv.Need(t, "kcat")
	n := NewNode(t, NodeOptions{Args: groupArgs()})
	numbers(t, n, "counted", 1, 0, 100)
	read := func(count int) []string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, kcat, "-q", "-b", n.Kafka, "-G", "kcats", "-c", strconv.Itoa(count), "-X", "auto.offset.reset=earliest", "counted").Output()
		if err != nil {
			t.Fatalf("kcat -G: %v", err)
		}
		return strings.Fields(string(out))
	}
	if got := read(60); !slices.Equal(got, lines(0, 60)) {
		t.Fatalf("first run read %v", got)
	}
	n.Kill()
	n.Start()
	numbers(t, n, "counted", 1, 100, 120)
	if got := read(60); !slices.Equal(got, lines(60, 120)) {
		t.Fatalf("after the restart read %v", got)
	}
}

// cutter gives a client connections that can all be cut: then the client is as
// good as killed, it can't say goodbye.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn
	cut   bool
}

func (c *cutter) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		nc.Close()
		return nil, errors.New("cut")
	}
	c.conns = append(c.conns, nc)
	return nc, nil
}

func (c *cutter) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	for _, nc := range c.conns {
		nc.Close()
	}
}

// reader is a member of a group that commits what it has read, after it has
// noted it.
type reader struct {
	cl   *kgo.Client
	cut  cutter
	stop context.CancelFunc
	done chan struct{}

	mu        sync.Mutex
	got       []*kgo.Record
	committed map[int32]int64 // by partition: what the node has acknowledged
}

func newReader(t *testing.T, n *Node, group, topic string) *reader {
	t.Helper()
	r := &reader{done: make(chan struct{}), committed: map[int32]int64{}}
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(), kgo.Dialer(r.cut.dial), kgo.SessionTimeout(2*time.Second), kgo.HeartbeatInterval(300*time.Millisecond),
		kgo.FetchMaxWait(200*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	r.cl = cl
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go r.run(ctx)
	t.Cleanup(func() {
		cancel()
		<-r.done
		cl.CloseAllowingRebalance()
	})
	return r
}

func (r *reader) run(ctx context.Context) {
	defer close(r.done)
	for ctx.Err() == nil {
		poll, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		records := r.cl.PollRecords(poll, 20).Records()
		cancel()
		r.mu.Lock()
		r.got = append(r.got, records...)
		r.mu.Unlock()
		commit, cancel := context.WithTimeout(ctx, time.Second)
		err := r.cl.CommitRecords(commit, records...)
		cancel()
		if err == nil {
			r.mu.Lock()
			for _, rec := range records {
				r.committed[rec.Partition] = max(r.committed[rec.Partition], rec.Offset+1)
			}
			r.mu.Unlock()
		}
		r.cl.AllowRebalance()
	}
}

func (r *reader) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

// seen is what the readers have, by number.
func seen(readers ...*reader) map[string]int {
	out := map[string]int{}
	for _, r := range readers {
		r.mu.Lock()
		for _, rec := range r.got {
			out[string(rec.Value)]++
		}
		r.mu.Unlock()
	}
	return out
}

// Two members share the partitions. When one dies, the other takes over where
// it had committed: nothing is lost, and nothing that was committed comes again.
// The same holds when the node is killed.
func TestGroupTakeover(t *testing.T) {
	const partitions = 4
	n := NewNode(t, NodeOptions{Args: groupArgs("--num-partitions", strconv.Itoa(partitions))})
	numbers(t, n, "shared", partitions, 0, 400)
	a := newReader(t, n, "pair", "shared")
	eventually(t, 30*time.Second, "first member reads", func() bool { return a.count() > 0 })
	b := newReader(t, n, "pair", "shared")
	total := 400
	eventually(t, 30*time.Second, "both members read", func() bool {
		numbers(t, n, "shared", partitions, total, total+40)
		total += 40
		return b.count() > 0
	})

	b.cut.kill()
	b.stop()
	<-b.done
	from := a.count()
	numbers(t, n, "shared", partitions, total, total+200)
	total += 200
	eventually(t, 40*time.Second, "the other member takes over", func() bool { return len(seen(a, b)) == total })
	b.mu.Lock()
	a.mu.Lock()
	for _, rec := range a.got[from:] {
		if rec.Offset < b.committed[rec.Partition] {
			t.Errorf("partition %d: offset %d came again, %d was committed", rec.Partition, rec.Offset, b.committed[rec.Partition])
		}
	}
	a.mu.Unlock()
	b.mu.Unlock()

	n.Kill()
	n.Start()
	numbers(t, n, "shared", partitions, total, total+200)
	total += 200
	eventually(t, 40*time.Second, "reading goes on after the restart", func() bool { return len(seen(a, b)) == total })
	for i := range total {
		if seen(a, b)[strconv.Itoa(i)] == 0 {
			t.Fatalf("%d is lost", i)
		}
	}
	checkOffsets(t, n, a, total/partitions)
}

// checkOffsets compares the committed offsets with what the member was told,
// and the end of the partitions.
func checkOffsets(t *testing.T, n *Node, r *reader, end int) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	eventually(t, 20*time.Second, "all is committed", func() bool {
		offsets, err := adm.FetchOffsets(t.Context(), "pair")
		sum := int64(0)
		offsets.Each(func(o kadm.OffsetResponse) { sum += o.At })
		return err == nil && sum == int64(4*end)
	})
	if _, err := adm.DeleteGroup(t.Context(), "pair"); !errors.Is(err, kerr.NonEmptyGroup) {
		t.Errorf("deletion of a group with a member: %v", err)
	}
	r.stop()
	<-r.done
	r.cl.LeaveGroup()
	if _, err := adm.DeleteGroup(t.Context(), "pair"); err != nil {
		t.Errorf("deletion of an empty group: %v", err)
	}
	if offsets, err := adm.FetchOffsets(t.Context(), "pair"); err != nil || len(offsets) != 0 {
		t.Errorf("offsets of a deleted group: %v, %v", offsets, err)
	}
}

// The internal topic is told as such, and clients can't write, make, change or
// delete it. Offsets of a topic go with it.
func TestGroupInternals(t *testing.T) {
	n := NewNode(t, NodeOptions{Args: groupArgs()})
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, adm := t.Context(), kadm.NewClient(cl)
	const internal = "__consumer_offsets"
	if r, err := adm.CreateTopic(ctx, 1, 1, nil, internal); !errors.Is(errors.Join(err, r.Err), kerr.InvalidTopicException) {
		t.Errorf("creation: %v, %v", err, r.Err)
	}
	numbers(t, n, "__mine", 1, 0, 10) // Kafka keeps two names for itself, not the prefix
	numbers(t, n, "short", 1, 0, 10)
	commit := func() {
		t.Helper()
		var o kadm.Offsets
		o.Add(kadm.Offset{Topic: "short", Partition: 0, At: 7, LeaderEpoch: -1, Metadata: "note"})
		fresh, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka)) // a client remembers the ids of topics
		if err != nil {
			t.Fatal(err)
		}
		defer fresh.Close()
		if err := kadm.NewClient(fresh).CommitAllOffsets(ctx, "simple", o); err != nil {
			t.Fatal(err)
		}
	}
	commit()
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: internal, Value: []byte("x")}).FirstErr(); !errors.Is(err, kerr.InvalidTopicException) {
		t.Errorf("produce: %v", err)
	}
	if r, err := adm.DeleteTopic(ctx, internal); !errors.Is(errors.Join(err, r.Err), kerr.InvalidTopicException) {
		t.Errorf("deletion: %v, %v", err, r.Err)
	}
	if r, err := adm.UpdatePartitions(ctx, 50, internal); !errors.Is(errors.Join(err, r[internal].Err), kerr.InvalidTopicException) {
		t.Errorf("more partitions: %v, %v", err, r)
	}
	all, err := adm.ListTopicsWithInternal(ctx)
	if d := all[internal]; err != nil || !d.IsInternal || len(d.Partitions) != 5 {
		t.Errorf("the internal topic is told as %+v, %v", d, err)
	}
	if d := all["__mine"]; d.IsInternal || len(d.Partitions) != 1 {
		t.Errorf("a topic of a client is told as %+v", d)
	}
	at := func(group string) int64 {
		t.Helper()
		fresh, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka))
		if err != nil {
			t.Fatal(err)
		}
		defer fresh.Close()
		got, err := kadm.NewClient(fresh).FetchOffsetsForTopics(ctx, group, "short")
		o, ok := got.Lookup("short", 0)
		if err != nil || o.Err != nil || !ok {
			t.Fatalf("fetch offsets: %v, %+v", err, got)
		}
		return o.At
	}
	if got := []int64{at("simple"), at("nobody")}; !slices.Equal(got, []int64{7, -1}) {
		t.Errorf("offsets %v", got)
	}
	for _, restart := range []bool{false, true} { // with the group loaded, and not
		if restart {
			n.Stop()
			n.Start()
		}
		if r, err := adm.DeleteTopic(ctx, "short"); errors.Join(err, r.Err) != nil {
			t.Fatal(err, r.Err)
		}
		numbers(t, n, "short", 1, 0, 1)
		if got := at("simple"); got != -1 {
			t.Errorf("restarted %v: offset %d of a topic that was deleted", restart, got)
		}
		commit()
		if got := at("simple"); got != 7 {
			t.Errorf("restarted %v: offset %d of the new topic", restart, got)
		}
	}
}

// javaTool runs one of Kafka's command-line tools.
func javaTool(t *testing.T, class string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	script := filepath.Join(testenv.Root(), "localstack", "bench", "kafka", "kafka.sh")
	cmd := exec.CommandContext(ctx, "bash", append([]string{script, "tool", class}, args...)...)
	cmd.WaitDelay = time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s\n%s", class, args, err, out, stderr.String())
	}
	return string(out)
}

// Kafka's own consumer and its tool for groups.
func TestGroupJava(t *testing.T) {
	testenv.Need(t, "java")
	testenv.Need(t, "mvn")
	n := NewNode(t, NodeOptions{Args: groupArgs()})
	numbers(t, n, "counted", 1, 0, 30)
	consume := func(count int) []string {
		t.Helper()
		return strings.Fields(javaTool(t, "org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", n.Kafka, "--topic", "counted", "--group", "javas",
			"--max-messages", strconv.Itoa(count), "--timeout-ms", "30000", "--from-beginning"))
	}
	groups := func(args ...string) string {
		t.Helper()
		return javaTool(t, "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", append([]string{"--bootstrap-server", n.Kafka}, args...)...)
	}
	if got := consume(20); !slices.Equal(got, lines(0, 20)) {
		t.Fatalf("read %v", got)
	}
	if got := strings.Fields(groups("--list")); !slices.Contains(got, "javas") {
		t.Errorf("listed: %v", got)
	}
	row := func(group, topic string) []string {
		t.Helper()
		for l := range strings.Lines(groups("--describe", "--group", group)) {
			if f := strings.Fields(l); len(f) > 5 && f[0] == group && f[1] == topic {
				return f[2:6] // partition, current offset, end offset, lag
			}
		}
		return nil
	}
	if got, want := row("javas", "counted"), []string{"0", "20", "30", "10"}; !slices.Equal(got, want) {
		t.Errorf("described as %v, want %v", got, want)
	}
	n.Kill()
	n.Start()
	if got := consume(10); !slices.Equal(got, lines(20, 30)) {
		t.Errorf("after the restart read %v", got)
	}
	reset := groups("--group", "javas", "--topic", "counted", "--reset-offsets", "--to-offset", "25", "--execute")
	if f := strings.Fields(reset); !slices.Contains(f, "25") {
		t.Errorf("reset: %s", reset)
	}
	if got := consume(5); !slices.Equal(got, lines(25, 30)) {
		t.Errorf("after the reset read %v", got)
	}
	if out := groups("--delete", "--group", "javas"); !strings.Contains(out, "successful") {
		t.Errorf("deletion: %s", out)
	}
}
