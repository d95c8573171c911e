package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

const (
	agents            = 4
	offsetsPartitions = 2
)

// config is what a seed runs with: small everywhere, so that checkpoints, carrying, trimming and
// tiering happen all the time.
type config struct {
	ops, faults          int
	span                 time.Duration // in which operations and faults happen
	partitions           int32
	linger               time.Duration
	capacity             int64
	inFlight, maxObjects int
	checkpoint           uint64
	tierMin              int64
	tierDelay            time.Duration
	segment              string
}

func newConfig(seed uint64, ops, faults int) config {
	rng := rand.New(rand.NewPCG(seed, 1))
	return config{ops: ops, faults: faults, span: 40 * time.Second, partitions: 4 + rng.Int32N(5), linger: time.Duration(5+rng.IntN(40)) * time.Millisecond,
		capacity: 64<<10 + rng.Int64N(256<<10), inFlight: 1 + rng.IntN(6), maxObjects: 8 + rng.IntN(60), checkpoint: uint64(3 + rng.IntN(14)),
		tierMin: 1<<10 + rng.Int64N(12<<10), tierDelay: time.Duration(300+rng.IntN(3000)) * time.Millisecond, segment: fmt.Sprint(2<<10 + rng.IntN(20<<10))}
}

// world is one seed.
type world struct {
	seed    uint64
	cfg     config
	trace   *trace
	ledger  *ledger
	vault   *vault
	kv      *store
	weather weather // everywhere
	slots   [agents]*slot
	id      atomic.Pointer[[16]byte]
	stop    chan struct{}
	late    sync.WaitGroup // what goes on for a while
	keepers sync.WaitGroup
	faults  map[string]int
	faultMu sync.Mutex
	ops     atomic.Int64
	done    map[string]*atomic.Int64 // operations by kind
	acked   atomic.Int64             // records
	stale   atomic.Int64             // answers to sequences by those who led before
	topic   *broker.Topic
}

// slot is a place where an agent runs.
type slot struct {
	weather weather
	agent   atomic.Pointer[agent]
	zombie  atomic.Pointer[agent] // an earlier start that nobody has told of the new one
	link    atomic.Pointer[link]  // of the newest start
	orders  chan order
}

// order tells a slot's keeper what to do.
type order struct {
	kind string        // kill, drain, leave
	wait time.Duration // until the next start
	wipe bool          // it remembers nothing
}

func newWorld(seed uint64, cfg config) *world {
	w := &world{seed: seed, cfg: cfg, trace: &trace{began: time.Now()}, ledger: newLedger(), kv: newStore(), stop: make(chan struct{}), faults: map[string]int{}, done: map[string]*atomic.Int64{}}
	w.vault = newVault(w)
	for i := range w.slots {
		w.slots[i] = &slot{orders: make(chan order, 64)}
	}
	return w
}

// cluster is the id of the cluster.
func (w *world) cluster() [16]byte {
	if id := w.id.Load(); id != nil {
		return *id
	}
	return [16]byte{}
}

// keep runs the agents of a slot, one start after the other.
func (w *world) keep(i int) {
	rng := rand.New(rand.NewPCG(w.seed, 100+uint64(i)))
	s := w.slots[i]
	var remembered *metadata.Store
	for {
		select {
		case <-w.stop:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		a, err := w.start(ctx, i, remembered, rng.Uint64())
		cancel()
		if err != nil {
			w.trace.add("agent %d: start: %v", i, err)
			wait := 200 * time.Millisecond
			for len(s.orders) > 0 {
				o := <-s.orders
				wait = max(wait, o.wait)
			}
			time.Sleep(wait)
			continue
		}
		remembered = a.meta
		w.trace.add("agent %d: started as %s, epoch %d", i, a.link.inc, a.meta.NodeEpoch())
		s.agent.Store(a)
		o := w.watch(a, s)
		if o.wipe {
			remembered = nil
		}
		if o.kind == "end" {
			return
		}
		time.Sleep(o.wait)
	}
}

// watch waits for the end of a start, and ends it.
func (w *world) watch(a *agent, s *slot) order {
	var o order
	select {
	case <-w.stop:
		o = order{kind: "end"}
	case err := <-a.failed:
		w.trace.add("agent %d: fails: %v", a.slot, err)
		o = order{kind: "fenced"}
	case o = <-s.orders:
		w.trace.add("agent %d: %s, back in %v, wiped %v", a.slot, o.kind, o.wait, o.wipe)
	}
	stop := func(d time.Duration) {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		a.shutdown(ctx)
	}
	switch o.kind {
	case "kill":
		a.link.kill()
		s.agent.Store(nil)
		w.late.Go(a.close)
	case "leave":
		s.agent.Store(nil)
		s.zombie.Store(a)
		w.late.Go(func() {
			select {
			case <-a.failed:
			case <-a.link.dead:
			case <-w.stop:
			}
			a.link.kill()
			a.close()
		})
	case "fenced":
		stop(time.Second)
		s.agent.Store(nil)
	default:
		stop(5 * time.Second)
		s.agent.Store(nil)
	}
	return o
}

// any is an agent that runs, or nil.
func (w *world) any(rng *rand.Rand) *agent {
	for _, i := range rng.Perm(agents) {
		if a := w.slots[i].agent.Load(); a != nil {
			return a
		}
	}
	return nil
}

// leader is the agent that another one names as the leader of a partition.
func (w *world) leader(rng *rand.Rand, id ids.TopicID, p int32) *agent {
	a := w.any(rng)
	if a == nil {
		return nil
	}
	t := a.broker.TopicByID(id)
	if t == nil {
		return nil
	}
	node, _ := a.broker.Leader(t, p)
	return w.node(rng, node)
}

// node is the agent that a client reaches as a node: now and then an earlier start.
func (w *world) node(rng *rand.Rand, node int32) *agent {
	if node < 1 || int(node) > agents {
		return nil
	}
	s := w.slots[node-1]
	if z := s.zombie.Load(); z != nil && !z.link.gone() && rng.IntN(4) == 0 {
		return z
	}
	return s.agent.Load()
}

var errNobody = fmt.Errorf("nobody is there")

// callTime bounds a client's call.
const callTime = 1500 * time.Millisecond

// call asks an agent something, as over a connection: an agent that is paused answers late, a dead
// one never.
func (a *agent) call(ctx context.Context, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := a.reach(ctx); err != nil {
		return err
	}
	err := f(ctx)
	if rerr := a.reach(ctx); rerr != nil {
		return rerr
	}
	return err
}

func (a *agent) reach(ctx context.Context) error {
	if err := a.w.slots[a.slot].weather.pause(ctx); err != nil {
		return err
	}
	return a.link.sleep(ctx, a.link.ms(1))
}

// create makes the topics that clients use.
func (w *world) create(ctx context.Context) error {
	text := func(s string) *string { return &s }
	var err error
	for range 100 {
		a := w.slots[0].agent.Load()
		if a == nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if w.topic, err = a.broker.CreateTopic(ctx, metadata.CreateTopic{Name: "t", Partitions: w.cfg.partitions, ReplicationFactor: -1,
			Configs: map[string]*string{"internal.segment.bytes": text(w.cfg.segment), "local.retention.ms": text("1500"), "segment.ms": text("20000")}}); err != nil {
			return err
		}
		for p := range w.cfg.partitions {
			w.ledger.open(ids.TopicPartition{Topic: w.topic.ID, Partition: p}, "t")
		}
		_, err = a.broker.Groups().Ensure(ctx)
		return err
	}
	return errNobody
}

// run plays the seed and checks it.
func (w *world) run(t *testing.T) {
	for i := range w.slots {
		w.keepers.Go(func() { w.keep(i) })
	}
	ctx, cancel := context.WithCancel(context.Background())
	for w.running() < agents {
		time.Sleep(10 * time.Millisecond)
	}
	if err := w.create(ctx); err != nil {
		w.trace.violate("create topics: %v", err)
	} else {
		w.kv.settle()
		w.play(ctx)
		w.final(ctx)
	}
	cancel()
	close(w.stop)
	w.keepers.Wait()
	w.late.Wait()
	_ = w.kv.Close()
}

func (w *world) running() (n int) {
	for _, s := range w.slots {
		if s.agent.Load() != nil {
			n++
		}
	}
	return n
}

// stacks puts all goroutines into the trace: what is late shows what it waits for, while it may still come in time.
func (w *world) stacks() {
	all := make([]byte, 16<<20)
	w.trace.add("late: %s", all[:runtime.Stack(all, true)])
}

// play has clients and faults at work until all operations are done.
func (w *world) play(ctx context.Context) {
	plan := drawFaults(w)
	for _, f := range plan {
		w.trace.add("plan: at %v %s, agent %d, for %v, n %d", f.at, f.kind, f.slot, f.dur, f.n)
	}
	var wg, storms sync.WaitGroup
	storms.Go(func() { w.storm(plan) })
	ctx, cancel := context.WithTimeout(ctx, w.cfg.span+live)
	defer cancel()
	defer time.AfterFunc(w.cfg.span+live/2, w.stacks).Stop()
	for _, c := range w.clients() {
		wg.Go(func() {
			c.run(ctx)
			if ctx.Err() != nil {
				w.trace.violate("liveness: %s is not done %v after the faults ended: %v", c.name, live, c.last)
			}
		})
	}
	wg.Wait()
	storms.Wait()
}

// live is how long after the last fault everything must work again.
const live = 60 * time.Second
