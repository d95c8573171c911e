package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/localstack/e2e/faultproxy"
	"github.com/cirrolog/cirrolog/localstack/minio"
)

const (
	mostAgents  = 5 // when it is scaled out
	usualAgents = 3
)

// cluster is the agents, what they stand on, and their clients.
type cluster struct {
	t    testing.TB
	dir  string
	rec  *recorder
	seed uint64

	members []*member // those that are not wanted do not run
	s3      *faultproxy.Proxy
	bucket  minio.Endpoint
	store   store
	adm     *kadm.Client

	ctx    context.Context // of what goes on in the background
	cancel context.CancelFunc
	wg     sync.WaitGroup

	producers []*producer
	consumers []*consumer // churn exchanges them
	drivesMu  sync.Mutex
	drivers   []*driver     // the first one produces and stays; drivesMu guards the others
	leaving   bool          // the others are not replaced any more
	started   int           // of them
	hung      int           // of them
	whos      atomic.Uint32 // numbers given to consumers
}

// store is the metadata store of a run.
type store interface {
	addr() string           // HOST:PORT
	url(addr string) string // of it by way of another address
	faults() []fault
}

// bucketURL is the bucket by way of an address.
func (c *cluster) bucketURL(addr string) string {
	return fmt.Sprintf("s3://%s/chaos?endpoint=http://%s&region=us-east-1&driver=s3", c.bucket.Bucket, addr)
}

// env are the credentials of bucket and metadata store.
func (c *cluster) env() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + c.bucket.AccessKey, "AWS_SECRET_ACCESS_KEY=" + c.bucket.SecretKey}
}

// newCluster starts the agents and makes the topic.
func newCluster(t testing.TB, dir string, seed uint64, open func(testing.TB) store) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: dir, seed: seed, bucket: minio.Start(t), store: open(t)}
	var err error
	if c.rec, err = newRecorder(dir, partitions); err != nil {
		t.Fatal(err)
	}
	proxy := freeAddr(t)
	if c.s3, err = faultproxy.New(proxy, c.bucket.URL); err != nil {
		t.Fatal(err)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for i := range mostAgents {
		c.members = append(c.members, c.newMember(i, proxy))
	}
	t.Cleanup(c.stop) // before the disk of a member is unmounted
	for _, m := range c.members[:usualAgents] {
		if err := m.start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.members[:usualAgents] {
		if err := m.awaitReady(readyWait); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.members {
		c.wg.Go(func() { m.supervise(c.ctx) })
	}
	c.prepare()
	return c
}

// newMember is an agent that does not run yet. The first one has a small disk, where there is the right to mount one.
func (c *cluster) newMember(i int, bucket string) *member {
	t := c.t
	m := &member{name: fmt.Sprintf("agent-%d", i+1), dir: filepath.Join(c.dir, fmt.Sprintf("agent-%d", i+1)), kafka: freeAddr(t), admin: freeAddr(t), rpc: freeAddr(t), binary: testenv.Binary(t), rec: c.rec, env: c.env()}
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if i == 0 {
		m.disk = smallDisk(t, filepath.Join(m.dir, "disk"))
	}
	for _, p := range []struct {
		to     **tcpProxy
		target string
	}{{&m.meta, c.store.addr()}, {&m.bucket, bucket}, {&m.peers, m.rpc}} {
		proxy, err := newTCPProxy(freeAddr(t), p.target)
		if err != nil {
			t.Fatal(err)
		}
		*p.to = proxy
	}
	m.args = []string{"--metadata", c.store.url(m.meta.addr), "--bucket", c.bucketURL(m.bucket.addr), "--lease", lease.String(), "--memory-tail", "32MiB", "--cache-memory", "128MiB", "--cache-size", "64MiB",
		"--retention-interval", "1s", "--tier-max-delay", "20s", "--sweep-interval", "1m", "--sweep-grace", "5m", "--offsets-topic-partitions", "10", "--group-initial-rebalance-delay", "0s"}
	return m
}

// prepare makes the topic, and has both groups begin at offset 0: without a commit a consumer could only
// begin somewhere by itself, and a lost commit would not be seen.
func (c *cluster) prepare() {
	t := c.t
	cl, err := kgo.NewClient(common(c.addrs())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	adm := kadm.NewClient(cl)
	c.adm = adm
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	value := func(s string) *string { return &s }
	if _, err := adm.CreateTopic(ctx, partitions, 1, map[string]*string{"segment.bytes": value("1048576"), "internal.segment.bytes": value("262144"), "local.retention.bytes": value("1048576"), "retention.ms": value("-1")}, chaosTopic); err != nil {
		t.Fatal(err)
	}
	zero := kadm.Offsets{}
	for p := range int32(partitions) {
		zero.AddOffset(chaosTopic, p, 0, -1)
	}
	for _, group := range groupNames {
		done := false
		for !done {
			answer, err := adm.CommitOffsets(ctx, group, zero)
			if done = err == nil && answer.Error() == nil; !done {
				if ctx.Err() != nil {
					t.Fatalf("commit of %s: %v, %v", group, err, answer.Error())
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
	}
}

// addrs are the Kafka addresses of all agents, those that do not run too.
func (c *cluster) addrs() (all []string) {
	for _, m := range c.members {
		all = append(all, m.kafka)
	}
	return all
}

// load starts the clients, which produce rate records a second together.
func (c *cluster) load(rate int) {
	t := c.t
	for i := range 2 {
		p, err := startProducer(c.rec, c.addrs(), float64(rate)/4, c.seed+uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		c.producers = append(c.producers, p)
	}
	for range 2 {
		c.addConsumer()
	}
	d, err := startDriver(t, c.rec, c.dir, "librdkafka-producer", 0, "produce", seeds(c.addrs()), chaosTopic, itoa(partitions), itoa(rate/2))
	if err != nil {
		t.Fatal(err)
	}
	c.drivers = append(c.drivers, d)
	for range 2 {
		d, err := c.consumingDriver()
		if err != nil {
			t.Fatal(err)
		}
		c.drivers = append(c.drivers, d)
	}
	c.wg.Go(c.watchCommits)
	c.wg.Go(c.replaceHung)
}

// consumingDriver starts a consumer of librdkafka.
func (c *cluster) consumingDriver() (*driver, error) {
	c.started++
	return startDriver(c.t, c.rec, c.dir, fmt.Sprintf("librdkafka-consumer-%d", c.started), c.nextWho(), "consume", seeds(c.addrs()), chaosTopic, groupNames[Librdkafka])
}

// replaceHung kills consumers of librdkafka that stand still and starts others in their place, until they are to leave.
func (c *cluster) replaceHung() {
	for c.ctx.Err() == nil {
		sleep(c.ctx, time.Second)
		c.drivesMu.Lock()
		for i, d := range c.drivers {
			if i == 0 || c.leaving || !d.hung() {
				continue
			}
			c.rec.say("%s stands still, and is killed: librdkafka's issue 5476?", d.name)
			c.hung++
			d.kill()
			if next, err := c.consumingDriver(); err != nil {
				c.rec.wrong("start a consumer: %v", err)
			} else {
				c.drivers[i] = next
			}
		}
		c.drivesMu.Unlock()
	}
}

func (c *cluster) nextWho() uint16 { return uint16(c.whos.Add(1)) }

func (c *cluster) addConsumer() {
	k, err := startConsumer(c.rec, c.addrs(), c.nextWho())
	if err != nil {
		c.rec.wrong("start a consumer: %v", err)
		return
	}
	c.consumers = append(c.consumers, k)
}

// watchCommits asks for what the groups have committed, until the run ends.
func (c *cluster) watchCommits() {
	for c.ctx.Err() == nil {
		for lib := range libraries {
			_ = ask(c.ctx, c.rec, c.adm, lib) // who gets no answer has learnt nothing
		}
		sleep(c.ctx, time.Second)
	}
}

// churn exchanges clients now and then: a producer that gives up what is outstanding, a consumer that leaves.
func (c *cluster) churn(ctx context.Context) {
	r := rand.New(rand.NewPCG(c.seed, 4))
	for n := 1; ; n++ {
		if sleep(ctx, 15*time.Second); ctx.Err() != nil {
			return
		}
		var err error
		switch i := r.IntN(len(c.producers) + 1); {
		case n%4 == 0:
			c.consumers[0].finish()
			c.consumers = c.consumers[1:]
			c.addConsumer()
		case i < len(c.producers):
			err = c.producers[i].recycle()
		default:
			err = c.drivers[0].recycle()
		}
		if err != nil {
			c.rec.wrong("exchange a client: %v", err)
		}
	}
}

// clients are the producing clients of now.
func (c *cluster) clients() (out []uint32) {
	for _, p := range c.producers {
		out = append(out, p.current())
	}
	return append(out, c.drivers[0].current())
}

// healLimit is what every client has to go on after a fault is over.
const healLimit = 30 * time.Second

// healed waits until every client goes on and every agent is ready, and tells how long that took.
func (c *cluster) healed(what string) error {
	before, began, late := c.rec.far(), time.Now(), false
	for {
		now := c.rec.far()
		behind := now.behind(&before, c.clients())
		for _, m := range c.members {
			if m.isWanted() {
				if err := m.ready(c.ctx); err != nil {
					behind = append(behind, err.Error())
				}
			}
		}
		took := time.Since(began)
		if len(behind) == 0 {
			c.rec.say("healed %.1f s after %s", took.Seconds(), what)
			return nil
		}
		if took > healLimit && !late {
			late = true
			c.rec.wrong("%v after %s there is no progress of: %v", healLimit, what, behind)
		}
		if took > 4*healLimit {
			return fmt.Errorf("%v after %s there is no progress of: %v", took.Round(time.Second), what, behind)
		}
		sleep(c.ctx, 100*time.Millisecond)
	}
}

func (m *member) isWanted() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wanted
}

// finish ends the load, lets the consumers come to the end, and reads the log.
func (c *cluster) finish() error {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	flush, stop := context.WithTimeout(ctx, 3*time.Minute)
	defer stop()
	var errs []error
	for _, p := range c.producers {
		errs = append(errs, p.finish(flush))
	}
	errs = append(errs, c.drivers[0].finish(flush))
	listed, err := c.adm.ListEndOffsets(ctx, chaosTopic)
	if err = errors.Join(err, listed.Error()); err != nil {
		return errors.Join(append(errs, fmt.Errorf("list end offsets: %w", err))...)
	}
	ends := make([]int64, partitions)
	listed.Each(func(o kadm.ListedOffset) { ends[o.Partition] = o.Offset })
	errs = append(errs, c.atEnd(ends))
	for _, k := range c.consumers {
		k.finish()
	}
	c.drivesMu.Lock()
	c.leaving = true
	c.drivesMu.Unlock()
	for _, d := range c.drivers[1:] {
		errs = append(errs, d.leave(ctx))
	}
	for lib := range libraries {
		errs = append(errs, ask(ctx, c.rec, c.adm, lib))
	}
	return errors.Join(append(errs, readAll(ctx, c.rec, c.addrs(), ends))...)
}

// atEnd waits until the consumers of both libraries are at the end of every partition.
func (c *cluster) atEnd(ends []int64) error {
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		now, late := c.rec.far(), ""
		for lib := range libraries {
			for p, end := range ends {
				if at := now.positions[lib][p]; at < end {
					late = fmt.Sprintf("consumers of %s are at offset %d of %d in partition %d", libraryNames[lib], at, end, p)
				}
			}
		}
		if late == "" {
			return nil
		}
		if time.Since(began) > 2*time.Minute {
			return errors.New(late)
		}
	}
}

// stop ends whatever runs.
func (c *cluster) stop() {
	c.cancel()
	c.wg.Wait()
	for _, d := range c.drivers {
		d.kill()
	}
	for _, m := range c.members {
		if err := m.kill(); err != nil {
			c.t.Error(err)
		}
		for _, p := range []*tcpProxy{m.meta, m.bucket, m.peers} {
			p.close()
		}
	}
	if err := c.s3.Close(); err != nil {
		c.t.Error(err)
	}
}

// take gives an agent that runs to a fault, which gives it back: mostly one that leads partitions, as one
// that has just come back with an empty disk may not.
func (c *cluster) take(r *rand.Rand) (*member, func()) {
	order, leading := r.Perm(len(c.members)), r.IntN(5) > 0
	for tries := 0; ; tries++ {
		var leads map[string]int
		if leading && tries < 40 {
			leads = c.leads()
		}
		for _, i := range order {
			if m := c.members[i]; (leads == nil || leads[m.kafka] > 0) && m.taken() {
				c.rec.say("%s leads %d partitions of %v", m.name, leads[m.kafka], leads)
				return m, m.free
			}
		}
		sleep(c.ctx, 50*time.Millisecond)
	}
}

// leads counts the partitions that the agents lead, by Kafka address, as one of them says; nil when nobody does.
func (c *cluster) leads() map[string]int {
	ctx, cancel := context.WithTimeout(c.ctx, 2*time.Second)
	defer cancel()
	meta, err := c.adm.Metadata(ctx, chaosTopic)
	if err != nil {
		return nil
	}
	at := map[int32]string{}
	for _, b := range meta.Brokers {
		at[b.NodeID] = net.JoinHostPort(b.Host, itoa(int(b.Port)))
	}
	out := map[string]int{}
	meta.Topics.EachPartition(func(p kadm.PartitionDetail) { out[at[p.Leader]]++ })
	return out
}

func (m *member) taken() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy || !m.wanted {
		return false
	}
	m.busy = true
	return true
}

func (m *member) free() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy = false
}

// wanted are the agents that are to run.
func (c *cluster) wanted() []*member {
	return slices.DeleteFunc(slices.Clone(c.members), func(m *member) bool { return !m.isWanted() })
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
