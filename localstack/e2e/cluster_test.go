package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/localstack/redis"
	"github.com/cirrolog/cirrolog/services/agent"
)

// cluster is three agents on one bucket and one metadata store, under load.
type cluster struct {
	failures
	nodes  []*Node
	bucket string
	redis  *redis.Server // nil: the metadata store is another one
	rand   *rand.Rand
	l      *ledger

	loaders []*loader
	members *members
}

const clusterAgents = 3

// newCluster starts the agents, a topic of six partitions, producers and a consumer group.
func newCluster(t *testing.T, loaders int, args ...string) *cluster {
	r := redis.Start(t, "--appendonly", "yes")
	c := newClusterOn(t, minio.Start(t), r.URL("e2e"), loaders, args...)
	c.redis = r
	return c
}

// newClusterOn is newCluster on a metadata store that runs.
func newClusterOn(t *testing.T, e minio.Endpoint, store string, loaders int, args ...string) *cluster {
	return newClusterVia(t, e, func() minio.Endpoint { return e }, store, loaders, args...)
}

// newClusterVia is newClusterOn with agents that reach the bucket as via says.
func newClusterVia(t *testing.T, e minio.Endpoint, via func() minio.Endpoint, store string, loaders int, args ...string) *cluster {
	bucket, env := bucketOn(e, "s3")
	c := &cluster{failures: failures{t: t}, bucket: bucket, rand: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1)), l: &ledger{partitions: crashPartitions}}
	for range clusterAgents {
		bucket, _ := bucketOn(via(), "s3")
		c.nodes = append(c.nodes, NewNode(t, NodeOptions{Metadata: store, Env: env,
			Args: append([]string{"--bucket", bucket, "--retention-interval", "500ms", "--group-initial-rebalance-delay", "0s"}, args...)}))
	}
	createTopic(t, c.nodes[0], crashTopic, crashPartitions, map[string]string{"segment.bytes": "1048576", "local.retention.bytes": "2097152", "retention.ms": "-1"})
	t.Cleanup(func() {
		for _, p := range c.loaders {
			p.abandon()
		}
		if c.members != nil {
			c.members.stop()
		}
	})
	for range loaders {
		p, err := c.l.startLoader(c.addr(), crashTopic, rand.New(rand.NewPCG(c.rand.Uint64(), 2)), c.fail)
		if err != nil {
			t.Fatal(err)
		}
		c.loaders = append(c.loaders, p)
	}
	return c
}

func (c *cluster) addr() string {
	var all []string
	for _, n := range c.nodes {
		all = append(all, n.Kafka)
	}
	return strings.Join(all, ",")
}

// acked counts the acknowledged records of each partition.
func (l *ledger) acked() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]int, l.partitions)
	for _, lanes := range l.lanes {
		for p := range lanes {
			out[p] += len(lanes[p].acked)
		}
	}
	return out
}

// atWork tells whether every producer has had a record acknowledged. Before, a client whose first request on a connection is
// cut takes that for wrong TLS or SASL, and gives up.
func (l *ledger) atWork() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !slices.ContainsFunc(l.lanes, func(of []lane) bool {
		return !slices.ContainsFunc(of, func(one lane) bool { return len(one.acked) > 0 })
	})
}

// load waits until every partition has more records acknowledged, and every producer has some.
func (c *cluster) load(more int) time.Duration {
	c.t.Helper()
	before, began := c.l.acked(), time.Now()
	for {
		c.check()
		least := more
		for p, n := range c.l.acked() {
			least = min(least, n-before[p])
		}
		if least >= more && c.l.atWork() {
			return time.Since(began)
		}
		if time.Since(began) > loadLimit {
			c.t.Fatalf("acknowledged %v, then %v in %v", before, c.l.acked(), loadLimit)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// metadataOf asks an agent about a topic; hosts are the addresses of the agents that it names, by node.
func metadataOf(t *testing.T, addr, topic string) (resp *kmsg.MetadataResponse, hosts map[int32]string) {
	t.Helper()
	cl := newClient(t, addr)
	defer cl.Close()
	req := kmsg.NewPtrMetadataRequest()
	rt := kmsg.NewMetadataRequestTopic()
	rt.Topic = &topic
	req.Topics = append(req.Topics, rt)
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		t.Fatal(err)
	}
	hosts = map[int32]string{}
	for _, b := range resp.Brokers {
		hosts[b.NodeID] = fmt.Sprintf("%s:%d", b.Host, b.Port)
	}
	return resp, hosts
}

// leaders asks an agent that runs which agent leads each partition of the topic.
func (c *cluster) leaders(topic string) map[int32]string {
	c.t.Helper()
	resp, hosts := metadataOf(c.t, c.addr(), topic)
	out := map[int32]string{}
	for _, p := range resp.Topics[0].Partitions {
		out[p.Partition] = hosts[p.Leader]
	}
	return out
}

// victim is an agent that leads a partition.
func (c *cluster) victim() (n *Node, led []int32) {
	c.t.Helper()
	by := c.leaders(crashTopic)
	for _, i := range c.rand.Perm(len(c.nodes)) {
		for p, addr := range by {
			if addr == c.nodes[i].Kafka {
				led = append(led, p)
			}
		}
		if len(led) > 0 {
			slices.Sort(led)
			return c.nodes[i], led
		}
	}
	c.t.Fatalf("nobody leads: %v", by)
	return nil, nil
}

// finish stops the producers and compares every partition with what was acknowledged,
// read from each agent's point of view.
func (c *cluster) finish() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), loadLimit)
	defer cancel()
	for _, p := range c.loaders {
		if err := p.finish(ctx); err != nil {
			c.t.Error(err)
		}
	}
	c.loaders = nil
	c.check()
	total := 0
	for p := range crashPartitions {
		a := c.l.audit(p)
		end := int64(0)
		for _, lane := range a.must {
			end += int64(lane)
		}
		err := eachRecord(c.addr(), crashTopic, int32(p), 0, end, func(r *kgo.Record) error { return a.add(r.Offset, r.Value) })
		if err == nil {
			err = a.end()
		}
		if err != nil {
			c.t.Error(err)
		}
		total += int(end)
	}
	c.t.Logf("%d records acknowledged, all there once", total)
}

// TestClusterKills kills leaders under load, wipes their disks and starts them again: nothing that
// was acknowledged is lost or there twice, no producer sees an error, and the same producers
// go on within the lease and a second. CLUSTER_KILLS says how often (3).
func TestClusterKills(t *testing.T) {
	kills := 3
	if s := os.Getenv("CLUSTER_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	c := newCluster(t, 3)
	c.members = startMembers(c.addr(), c.fail)
	var gaps []time.Duration
	for i := range kills {
		c.load(200)
		n, led := c.victim()
		began := time.Now()
		n.Kill()
		if err := os.RemoveAll(n.Dir); err != nil {
			t.Fatal(err)
		}
		c.load(1)
		gap := time.Since(began)
		gaps = append(gaps, gap)
		t.Logf("kill %d: the leader of %v, next acknowledgements after %v", i+1, led, gap.Round(time.Millisecond))
		n.Start()
	}
	c.load(200)
	c.members.stop()
	c.members = nil
	c.finish()
	slices.Sort(gaps)
	t.Logf("until the next acknowledgement of every partition: median %v, max %v", gaps[len(gaps)/2].Round(time.Millisecond), gaps[len(gaps)-1].Round(time.Millisecond))
}

// TestClusterAllKilled kills all agents at once under load and starts them again in another order, first with their disks
// and then without: nothing that was acknowledged is lost or there twice, and no producer or group member sees an error.
func TestClusterAllKilled(t *testing.T) {
	c := newCluster(t, 3, "--lease", "1s")
	c.members = startMembers(c.addr(), c.fail)
	for _, wipe := range []bool{false, true} {
		c.load(200)
		for _, n := range c.nodes {
			n.Kill()
		}
		for _, i := range c.rand.Perm(len(c.nodes)) {
			if wipe {
				if err := os.RemoveAll(c.nodes[i].Dir); err != nil {
					t.Fatal(err)
				}
			}
			c.nodes[i].Start()
		}
		began := time.Now()
		c.load(1)
		t.Logf("disks wiped: %v; next acknowledgements of every partition %v after the last one was ready", wipe, time.Since(began).Round(time.Millisecond))
	}
	c.load(200)
	c.members.stop()
	c.members = nil
	c.finish()
}

// TestClusterMetadataAway takes the metadata store away for three leases under load: nobody takes over,
// no producer sees an error, acknowledgements go on.
func TestClusterMetadataAway(t *testing.T) {
	const lease = time.Second
	c := newCluster(t, 2, "--lease", lease.String())
	c.load(100)
	before := c.leaders(crashTopic)
	if err := c.redis.Kill(); err != nil {
		t.Fatal(err)
	}
	longest := time.Duration(0)
	for began := time.Now(); time.Since(began) < 3*lease; {
		longest = max(longest, c.load(1))
	}
	if err := c.redis.Restart(); err != nil {
		t.Fatal(err)
	}
	c.load(100)
	time.Sleep(2 * lease) // whoever is to be taken for dead is by now
	c.load(100)
	if after := c.leaders(crashTopic); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("leaders were %v, are %v", before, after)
	}
	t.Logf("longest wait for an acknowledgement of every partition while the metadata store was away: %v", longest.Round(time.Millisecond))
	c.finish()
}

// gaps watches how long each partition goes without an acknowledgement, until stop is closed,
// and returns the longest time.
func (l *ledger) gaps(stop <-chan struct{}) (longest time.Duration) {
	last := l.acked()
	since := make([]time.Time, len(last))
	for p := range since {
		since[p] = time.Now()
	}
	for {
		select {
		case <-stop:
			return longest
		case <-time.After(time.Millisecond):
		}
		now := time.Now()
		for p, n := range l.acked() {
			longest = max(longest, now.Sub(since[p]))
			if n != last[p] {
				last[p], since[p] = n, now
			}
		}
	}
}

// trickleRate is how many records a second a trickle has.
const trickleRate = 1000

// trickle writes a record to one partition of a topic after the other, until the test ends.
func (c *cluster) trickle(topic string, partitions int) {
	c.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(c.addr(), ",")...), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.UnknownTopicRetries(-1), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	c.t.Cleanup(func() {
		cancel()
		<-done
		cl.Close()
	})
	one := func(p int) {
		cl.Produce(ctx, &kgo.Record{Partition: int32(p), Value: make([]byte, 100)}, func(r *kgo.Record, err error) {
			if err != nil && ctx.Err() == nil {
				c.fail(fmt.Errorf("partition %d of %s: %w", p, topic, err))
			}
		})
	}
	for p := range partitions { // each has something to be taken over
		one(p)
	}
	if err := cl.Flush(ctx); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second / trickleRate)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				one(i % partitions)
			}
		}
	}()
}

// TestClusterDrain stops an agent with SIGTERM under load and starts it again: its partitions go to
// others at once and some come back, no producer sees an error, and nothing is lost.
func TestClusterDrain(t *testing.T) { testDrain(t, 24) }

// TestClusterDrainMany is TestClusterDrain with 1,000 partitions that are written to.
func TestClusterDrainMany(t *testing.T) { testDrain(t, 1000) }

// testDrain has a second topic of so many partitions, to have something to even out.
func testDrain(t *testing.T, partitions int) {
	c := newCluster(t, 3, "--lease", "1s")
	createTopic(t, c.nodes[0], "more", int32(partitions), nil)
	c.trickle("more", partitions)
	c.load(200)
	watch := func(f func()) time.Duration {
		stop, out := make(chan struct{}), make(chan time.Duration, 1)
		go func() { out <- c.l.gaps(stop) }()
		f()
		close(stop)
		return <-out
	}
	calm := watch(func() { c.load(200) })
	n, led := c.victim()
	drained := watch(func() {
		n.Stop()
		c.load(20)
	})
	for p, addr := range c.leaders(crashTopic) {
		if addr == n.Kafka {
			t.Errorf("partition %d is still led by the agent that stopped", p)
		}
	}
	n.Start()
	back := watch(func() {
		eventually(t, time.Minute, "the agent leads again", func() bool {
			led := 0
			for _, addr := range c.leaders("more") {
				if addr == n.Kafka {
					led++
				}
			}
			return led >= partitions/6
		})
		c.load(50)
	})
	t.Logf("longest time without an acknowledgement of a partition: %v; while the leader of %v was drained %v; while partitions came back %v",
		calm.Round(time.Millisecond), led, drained.Round(time.Millisecond), back.Round(time.Millisecond))
	c.finish()
}

// TestClusterPause stops an agent's process for longer than its lease and lets it go on: the others have taken its
// partitions over, and it begins anew without having acknowledged or served anything as their leader.
func TestClusterPause(t *testing.T) {
	const lease = time.Second
	c := newCluster(t, 2, "--lease", lease.String())
	for range 2 {
		c.load(100)
		n, led := c.victim()
		if err := n.proc.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		time.Sleep(5 * lease / 2) // the clients wait for its answers
		if err := n.proc.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		c.load(1)
		gap := time.Since(began)
		eventually(t, 30*time.Second, "the agent begins anew", func() bool { return strings.Contains(n.Log(), "starting anew") })
		if err := n.ready(); err != nil {
			t.Fatal(err)
		}
		c.load(100)
		t.Logf("an agent that led %v stood still: next acknowledgements after %v", led, gap.Round(time.Millisecond))
	}
	c.finish()
}

// TestClusterState asks one agent for all: who lives tells of itself, who stands still or is dead is shown as such.
func TestClusterState(t *testing.T) {
	c := newCluster(t, 1, "--lease", "3s")
	c.load(50)
	state := func() (s agent.ClusterState, err error) {
		var out bytes.Buffer
		err = c.nodes[0].CLI(&out, "cluster", "state", "-o", "json")
		if jerr := json.Unmarshal(out.Bytes(), &s); jerr != nil {
			t.Fatalf("%v: %s", errors.Join(err, jerr), out.String())
		}
		return s, err
	}
	s, err := state()
	if err != nil || len(s.Agents) != clusterAgents {
		t.Fatalf("%d agents, %v", len(s.Agents), err)
	}
	led := int32(0)
	for _, a := range s.Agents {
		if a.State == nil || a.State.Stream.Next == 0 || !a.State.LeaseLive || a.State.Cluster != s.Cluster || a.Lease != "held" || len(a.State.Agents) != clusterAgents || a.State.Partitions != a.Leads {
			t.Errorf("agent %+v, state %+v", a.Agent, a.State)
		}
		led += a.Leads
	}
	if led != crashPartitions {
		t.Errorf("%d partitions are led of %d", led, crashPartitions)
	}
	var parts agent.ClusterPartitions
	c.nodes[1].API(http.MethodGet, "/v1/cluster/partitions?topic="+crashTopic, &parts)
	leaders := c.leaders(crashTopic)
	for i, p := range parts.Partitions {
		if p.Partition.Partition != int32(i) || p.HighWatermark == 0 || leaders[int32(i)] == "" {
			t.Errorf("partition %+v", p)
		}
	}
	if len(parts.Partitions) != crashPartitions || len(parts.Silent) > 0 {
		t.Errorf("%d partitions, silent %v", len(parts.Partitions), parts.Silent)
	}
	if err := c.nodes[1].proc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s, err = state()
	if err := c.nodes[1].proc.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	silent := 0
	for _, a := range s.Agents {
		if a.State == nil && strings.Contains(a.Error, "no answer in time") && a.Host != "" {
			silent++
		}
	}
	if silent != 1 || err == nil || !strings.Contains(err.Error(), "1 of 3 agents did not answer") {
		t.Errorf("%d agents are said to be silent, %v", silent, err)
	}
	var table strings.Builder
	if err := c.nodes[2].CLI(&table, "cluster", "partitions", "-t", crashTopic); err != nil || strings.Count(table.String(), "\n") != crashPartitions+1 {
		t.Errorf("%v: %s", err, table.String())
	}
}
