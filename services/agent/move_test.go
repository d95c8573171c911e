package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// moveCluster is several agents in one process, of what leadership needs, which can be cut off from
// bucket and metadata store as by death.
type moveCluster struct {
	t      *testing.T
	bucket objstore.Bucket
	kv     kv.Store
	leases bool       // agents answer by their leases
	mu     sync.Mutex // of appends to nodes
	nodes  []*moveNode
	ttl    time.Duration
	dir    string        // made first, so that it is removed last
	rpc    bool          // agents tell each other of moves
	sweep  time.Duration // of SweepInterval
}

type moveNode struct {
	c       *moveCluster
	dead    atomic.Bool
	away    atomic.Bool // the metadata store is, for this agent
	meta    *metadata.Store
	bucket  *objstore.Fault
	stream  *wal.Stream
	store   *storage.Store
	inc     ids.Incarnation
	disk    moveDisk
	local   *localStore
	broker  *broker.Broker
	manager *lead.Manager
	closers []func() error

	abandoned atomic.Pointer[error]

	// Called before and after a release, and before an acceptance, enters the stream.
	beforeRelease, afterRelease, beforeAccept atomic.Pointer[func()]
	beforeKV                                  atomic.Pointer[func(kv.Call)]
	// No release is told by the metadata store.
	releasesLost atomic.Bool
	hints        hints
}

func newMoveCluster(t *testing.T, ttl time.Duration) *moveCluster {
	c := &moveCluster{t: t, dir: t.TempDir(), bucket: objstore.NewMem(), kv: kv.NewMem(kv.MemOptions{}), ttl: ttl}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.close()
		}
		_ = c.kv.Close()
	})
	return c
}

func (c *moveCluster) all() []*moveNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.nodes)
}

func (n *moveNode) die() {
	n.dead.Store(true)
	n.bucket.Add(objstore.FaultRule{Kind: objstore.FaultThrottle, Probability: 1})
}

func (n *moveNode) close() {
	for i := len(n.closers) - 1; i >= 0; i-- {
		if err := n.closers[i](); err != nil && !n.dead.Load() {
			n.c.t.Error(err)
		}
	}
	n.closers = nil
}

// Change implements lead.Stream.
func (n *moveNode) Change(ctx context.Context, ch wal.Change) error {
	if f := n.beforeAccept.Load(); f != nil {
		(*f)()
	}
	return n.stream.Change(ctx, ch)
}

// Release implements lead.Stream.
func (n *moveNode) Release(ctx context.Context, rs []wal.Release) (uint64, error) {
	if f := n.beforeRelease.Load(); f != nil {
		(*f)()
	}
	seq, err := n.stream.Release(ctx, rs)
	if f := n.afterRelease.Load(); f != nil {
		(*f)()
	}
	return seq, err
}

func (c *moveCluster) start(stay bool) *moveNode {
	c.t.Helper()
	return c.startOn(stay, moveDisk{dir: filepath.Join(c.dir, strconv.Itoa(len(c.nodes)))})
}

// moveDisk is a data directory. Without an id the agent can have no partitions of class local.
type moveDisk struct {
	id   ids.DiskID
	dir  string
	node int32
}

func (c *moveCluster) startOn(stay bool, disk moveDisk) *moveNode {
	c.t.Helper()
	n := &moveNode{c: c, disk: disk, bucket: objstore.NewFault(c.bucket, 1)}
	must := func(err error) {
		if err != nil {
			c.t.Helper()
			c.t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("CIRROLOG_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("n", len(c.nodes))
	}
	inc, ctx := ids.NewIncarnation(), c.t.Context()
	n.inc = inc
	defaults, err := metadata.NewClusterDefaults(nil)
	must(err)
	store := kv.WithHooks(c.kv, kv.Hooks{Before: func(call kv.Call) error {
		if f := n.beforeKV.Load(); f != nil {
			(*f)(call)
		}
		if n.dead.Load() || n.away.Load() || n.releasesLost.Load() && call.Method == "Commit" && strings.HasPrefix(call.Keys[0], "released/") {
			return kv.ErrUnavailable
		}
		return nil
	}})
	n.meta, err = metadata.Open(ctx, metadata.Options{KV: store, Bucket: n.bucket, Incarnation: inc, Logger: log, Tries: 2, Defaults: defaults, NodeID: disk.node,
		Place: func(id ids.TopicID, from, to int32) []metadata.Agent { return n.manager.Place(id, from, to) }})
	must(err)
	n.closers = append(n.closers, n.meta.Close)
	cluster, err := ids.ParseTopicID(n.meta.ClusterID())
	must(err)
	closed := func(tp ids.TopicPartition) {
		if n.broker != nil {
			n.broker.Flushed(tp)
		}
	}
	n.store, err = storage.Open(storage.Options{FS: vfs.OS(), Dir: filepath.Join(disk.dir, "object"), TailBytes: 16 << 20, Logger: log, OnClosed: closed,
		Remote: storage.RemoteOptions{TierMinBytes: 1, TierMaxDelay: 300 * time.Millisecond, Open: func(s storage.StreamConfig) (contract.Stream, error) {
			var err error
			n.stream, err = wal.Open(ctx, wal.Options{Bucket: n.bucket, Cluster: cluster, Incarnation: inc, Pool: s.Pool, Announce: s.Announce, OnFull: s.OnFull,
				Linger: 5 * time.Millisecond, CheckpointEvery: 8, CloseTimeout: 100 * time.Millisecond, Logger: log,
				Spare: func(ctx context.Context, tp ids.TopicPartition, base, last int64) (bool, error) {
					return n.broker.Spare(ctx, tp, base, last)
				},
				OnCheckpoint: func() {
					if n.manager != nil {
						n.manager.Checkpoint()
					}
				}})
			return n.stream, err
		}}})
	must(err)
	n.closers = append(n.closers, n.store.Close)
	var local broker.LocalStore
	if !disk.id.IsZero() {
		n.local = &localStore{open: func() (*storage.Store, error) {
			return storage.Open(storage.Options{FS: vfs.OS(), Dir: filepath.Join(disk.dir, "local"), DiskID: disk.id, WALSize: 16 << 20, TailBytes: 16 << 20, Logger: log, OnClosed: closed})
		}}
		n.closers = append(n.closers, n.local.close)
		local = n.local
	}
	r, err := tiering.NewReader(tiering.ReaderOptions{Bucket: n.bucket, Index: broker.NewIndex(n.meta)})
	must(err)
	n.closers = append(n.closers, r.Close)
	live := func() bool { return !c.leases || n.manager == nil || n.manager.Live() }
	n.broker, err = broker.New(ctx, broker.Options{Store: n.store, Local: local, Meta: n.meta, Bucket: n.bucket, Incarnation: inc, Epoch: n.meta.NodeEpoch(),
		Self: broker.Node{ID: n.meta.NodeID(), Host: "h", Port: 1}, Reader: r, Leaders: broker.NewLeaders(n.meta), Live: live, OnTiered: n.stream.Tiered, SweepInterval: c.sweep, Logger: log,
		SetLogStart: func(ctx context.Context, tp ids.TopicPartition, epoch int32, offset int64) error {
			return n.stream.Change(ctx, wal.Change{LogStarts: []wal.LogStart{{TP: tp, Epoch: epoch, Offset: offset}}})
		}})
	must(err)
	n.closers = append(n.closers, n.broker.Close)
	n.manager = lead.New(lead.Options{Peers: n.peers(), Held: n.stream.Held, Warm: n.broker.Warm, Meta: n.meta, Bucket: n.bucket, Stream: n, Host: n.broker, Cluster: cluster, Incarnation: inc, Disk: disk.id, OpenDisk: n.local.ready, OnAbandoned: func(err error) { n.abandoned.Store(&err) }, TTL: c.ttl, Stay: stay, Logger: log})
	must(n.manager.Start(ctx, "h", n.meta.NodeID(), ""))
	n.closers = append(n.closers, n.manager.Close)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = append(c.nodes, n)
	return n
}

func (n *moveNode) incarnation() ids.Incarnation {
	for _, a := range n.meta.Agents() {
		if a.Node == n.meta.NodeID() {
			return a.Incarnation
		}
	}
	return ""
}

func (c *moveCluster) create(n *moveNode, name string, partitions int32, configs ...string) ids.TopicID {
	c.t.Helper()
	set := map[string]*string{}
	for i := 0; i < len(configs); i += 2 {
		set[configs[i]] = &configs[i+1]
	}
	t, err := n.meta.CreateTopic(c.t.Context(), metadata.CreateTopic{Name: name, Partitions: partitions, ReplicationFactor: -1, Configs: set})
	if err != nil {
		c.t.Fatal(err)
	}
	for p := range partitions {
		c.leader(ids.TopicPartition{Topic: t.ID, Partition: p})
	}
	return t.ID
}

// led are the partitions of a topic that the agent leads.
func (n *moveNode) led(id ids.TopicID, partitions int32) (out []ids.TopicPartition) {
	for p := range partitions {
		if _, err := n.broker.Partition(id, p); err == nil {
			out = append(out, ids.TopicPartition{Topic: id, Partition: p})
		}
	}
	return out
}

// leader waits until one living agent leads a partition.
func (c *moveCluster) leader(tp ids.TopicPartition) (*moveNode, *broker.Partition) {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, n := range c.nodes {
			if p, err := n.broker.Partition(tp.Topic, tp.Partition); err == nil && !n.dead.Load() {
				return n, p
			}
		}
	}
	c.t.Fatalf("nobody leads %s", tp)
	return nil, nil
}

var errNoAnswer = errors.New("no answer")

// writer appends numbered records to one partition, as an idempotent producer does, until stop.
type writer struct {
	c     *moveCluster
	tp    ids.TopicPartition
	pid   int64
	acked atomic.Int64 // records
	worst atomic.Int64 // ns between two acks
}

func (w *writer) run(ctx context.Context, wg *sync.WaitGroup) {
	defer wg.Done()
	last := time.Now()
	for ctx.Err() == nil {
		seq := int32(w.acked.Load())
		if base, err := w.once(w.c.all(), seq); err != nil {
			if errors.Is(err, broker.ErrOutOfOrderSequence) || errors.Is(err, broker.ErrDuplicateSequence) {
				w.c.t.Errorf("%s: record %d: %v", w.tp, seq, err)
				return
			}
			time.Sleep(time.Millisecond)
			continue
		} else if base != int64(seq) {
			w.c.t.Errorf("%s: record %d has offset %d", w.tp, seq, base)
			return
		}
		w.acked.Add(1)
		w.worst.Store(max(w.worst.Load(), int64(time.Since(last))))
		last = time.Now()
	}
}

func (w *writer) once(nodes []*moveNode, seq int32) (int64, error) {
	value := binary.BigEndian.AppendUint32(nil, uint32(seq))
	b, err := batch.Encode([]batch.Record{{Timestamp: time.Now().UnixMilli(), Value: append(value, make([]byte, 200)...)}}, batch.EncodeOptions{Producer: &batch.Producer{ID: w.pid, BaseSequence: seq}})
	if err != nil {
		return 0, err
	}
	for _, n := range nodes {
		p, err := n.broker.Partition(w.tp.Topic, w.tp.Partition)
		if err != nil || n.dead.Load() {
			continue
		}
		done := make(chan broker.Produced, 1)
		p.Produce(context.Background(), b, nil, func(r broker.Produced) { done <- r })
		select {
		case r := <-done:
			return r.BaseOffset, r.Err
		case <-time.After(300 * time.Millisecond):
			return 0, errNoAnswer
		}
	}
	return 0, broker.ErrNotLeader
}

// write has records written to all partitions of a topic while do runs, and checks
// that all and only these are there.
func (c *moveCluster) write(id ids.TopicID, partitions int32, do func()) (worst time.Duration) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	var wg sync.WaitGroup
	writers := make([]*writer, partitions)
	for p := range partitions {
		writers[p] = &writer{c: c, tp: ids.TopicPartition{Topic: id, Partition: p}, pid: 1000 + int64(p)}
		wg.Add(1)
		go writers[p].run(ctx, &wg)
	}
	settle := func(what string) {
		for _, w := range writers {
			from := w.acked.Load()
			for end := time.Now().Add(20 * time.Second); w.acked.Load() < from+5; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					c.t.Fatalf("%s: nothing is acknowledged %s", w.tp, what)
				}
			}
		}
	}
	settle("before")
	do()
	settle("after")
	cancel()
	wg.Wait()
	for _, w := range writers {
		c.check(w)
		worst = max(worst, time.Duration(w.worst.Load()))
	}
	return worst
}

// check reads a partition and compares it with what was acknowledged.
func (c *moveCluster) check(w *writer) {
	c.t.Helper()
	_, p := c.leader(w.tp)
	next, want := int64(0), w.acked.Load()
	for end := time.Now().Add(20 * time.Second); next < want; {
		r := p.Read(c.t.Context(), broker.ReadOptions{Offset: next, MaxBytes: 1 << 20, MinOneBatch: true, CurrentEpoch: -1, LastFetchedEpoch: -1})
		if r.Err != nil || time.Now().After(end) {
			c.t.Fatalf("%s: offset %d of %d: %v", w.tp, next, want, r.Err)
		}
		for _, b := range r.Data {
			for len(b) > 0 {
				h, err := batch.Parse(b)
				if err != nil {
					c.t.Fatal(err)
				}
				for rec, err := range batch.Records(b[:h.Size()], batch.Limits{}) {
					if err != nil {
						c.t.Fatal(err)
					}
					if got := int64(binary.BigEndian.Uint32(rec.Value)); got != next || h.BaseOffset != next {
						c.t.Fatalf("%s: offset %d has record %d, want %d", w.tp, h.BaseOffset, got, next)
					}
					next++
				}
				b = b[h.Size():]
			}
		}
		if r.Release != nil {
			r.Release()
		}
	}
	// One record may have been durable when its writer was stopped.
	if hw := p.Read(c.t.Context(), broker.ReadOptions{Offset: next, CurrentEpoch: -1, LastFetchedEpoch: -1}).HighWatermark; hw > want+1 {
		c.t.Errorf("%s ends at %d, acknowledged are %d", w.tp, hw, want)
	}
}

func moveAll(n *moveNode, id ids.TopicID, partitions int32, to *moveNode) error {
	var moves []lead.Move
	for _, tp := range n.led(id, partitions) {
		moves = append(moves, lead.Move{TP: tp, To: to.incarnation()})
	}
	return n.manager.Release(n.c.t.Context(), moves)
}

// Partitions go back and forth under appends; nothing is lost or doubled, and what the
// streams of earlier owners have is kept until it is tiered, and then let go.
func TestMovesBackAndForth(t *testing.T) {
	c := newMoveCluster(t, 3*time.Second)
	a, b := c.start(true), c.start(true)
	const partitions = 6
	id := c.create(a, "t", partitions)
	worst := c.write(id, partitions, func() {
		for i := range 6 {
			for _, m := range [][2]*moveNode{{a, b}, {b, a}} {
				if err := moveAll(m[i%2], id, partitions, m[(i+1)%2]); err != nil {
					t.Error(err)
				}
			}
			time.Sleep(150 * time.Millisecond)
		}
	})
	t.Logf("longest gap between acks: %v", worst)
	for _, n := range c.nodes {
		for end := time.Now().Add(20 * time.Second); len(n.store.Kept()) > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the stream is still kept for others: %v", n.store.Kept())
			}
		}
	}
}

// Whoever dies around a release, and whenever: no acknowledged record is lost or doubled.
func TestDeathAroundRelease(t *testing.T) {
	for _, one := range []struct {
		name string
		plan func(from, to *moveNode, die func(*moveNode) *func())
	}{
		{"releaser before the release is durable", func(from, _ *moveNode, die func(*moveNode) *func()) { from.beforeRelease.Store(die(from)) }},
		{"releaser before it tells", func(from, _ *moveNode, die func(*moveNode) *func()) { from.afterRelease.Store(die(from)) }},
		{"releaser when the receiver accepts", func(from, to *moveNode, die func(*moveNode) *func()) { to.beforeAccept.Store(die(from)) }},
		{"receiver before it accepts", func(_, to *moveNode, die func(*moveNode) *func()) { to.beforeAccept.Store(die(to)) }},
		{"both", func(from, to *moveNode, die func(*moveNode) *func()) {
			to.beforeAccept.Store(die(to))
			from.afterRelease.Store(die(from))
		}},
	} {
		t.Run(one.name, func(t *testing.T) {
			t.Parallel()
			c := newMoveCluster(t, time.Second)
			a, b, third := c.start(true), c.start(true), c.start(true)
			const partitions = 4
			id := c.create(a, "t", partitions)
			if err := moveAll(b, id, partitions, a); err != nil {
				t.Fatal(err)
			}
			if err := moveAll(third, id, partitions, a); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(10 * time.Second); len(a.led(id, partitions)) < partitions && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			died := atomic.Bool{}
			worst := c.write(id, partitions, func() {
				one.plan(a, b, func(n *moveNode) *func() {
					f := func() {
						died.Store(true)
						n.die()
					}
					return &f
				})
				go func() { _ = moveAll(a, id, partitions, b) }()
				for end := time.Now().Add(10 * time.Second); !died.Load() && time.Now().Before(end); {
					time.Sleep(time.Millisecond)
				}
			})
			if !died.Load() {
				t.Error("nobody died")
			}
			t.Logf("longest gap between acks: %v", worst)
		})
	}
}

// A stopping agent gives everything to the others, without waiting for a lease to end.
func TestDrain(t *testing.T) {
	c := newMoveCluster(t, 5*time.Second)
	a, b, third := c.start(true), c.start(true), c.start(true)
	const partitions = 12
	id := c.create(a, "t", partitions)
	inc := a.incarnation()
	worst := c.write(id, partitions, func() {
		if err := a.manager.Drain(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Logf("longest gap between acks: %v", worst)
	if n := len(b.led(id, partitions)) + len(third.led(id, partitions)); n != partitions {
		t.Errorf("the others lead %d of %d partitions", n, partitions)
	}
	if worst > 4*time.Second {
		t.Errorf("gap of %v: a lease had to end", worst)
	}
	for _, r := range b.meta.Released() {
		t.Errorf("release %v is still announced", r)
	}
	if _, ok := b.meta.NodeOf(inc); ok {
		t.Error("the agent is still registered")
	}
}

// An agent that joins gets its share, up to the quarter that nobody moves partitions for: who gives
// second may find that it is even enough.
func TestRebalanceOnJoin(t *testing.T) {
	c := newMoveCluster(t, 500*time.Millisecond)
	a, b := c.start(false), c.start(false)
	const partitions = 12
	id := c.create(a, "t", partitions)
	third := c.start(false)
	c.write(id, partitions, func() {
		for end := time.Now().Add(20 * time.Second); len(third.led(id, partitions)) < 3; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				break
			}
		}
	})
	time.Sleep(2 * time.Second) // it does not go on
	for i, n := range []*moveNode{a, b, third} {
		if got := len(n.led(id, partitions)); got < 3 || got > 5 {
			t.Errorf("agent %d leads %d of %d", i, got, partitions)
		}
	}
}

// The coordinator of a group moves with its partition, and what was committed with it.
func TestGroupsMove(t *testing.T) {
	c := newMoveCluster(t, 3*time.Second)
	a, b := c.start(true), c.start(true)
	ctx := t.Context()
	id := c.create(a, "t", 1)
	topic, err := a.broker.Groups().Ensure(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tp := ids.TopicPartition{Topic: topic.ID, Partition: group.PartitionFor("g", topic.Partitions)}
	try := func(n *moveNode, do func() error) (err error) {
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if err = do(); !errors.Is(err, broker.ErrGroupsLoading) && !errors.Is(err, group.ErrNotCoordinator) {
				return err
			}
		}
		return err
	}
	for i := range int64(4) {
		from, _ := c.leader(tp)
		to := a
		if from == a {
			to = b
		}
		err := try(from, func() error {
			r, err := from.broker.Groups().Commit(ctx, group.CommitRequest{GroupID: "g", Generation: -1, Topics: []group.CommitTopic{
				{Name: "t", ID: group.TopicID(id), Partitions: []group.CommitPartition{{Partition: 0, Offset: 100 + i, LeaderEpoch: -1}}}}})
			if err == nil {
				err = r.Topics[0].Partitions[0].Err
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := from.manager.Release(ctx, []lead.Move{{TP: tp, To: to.incarnation()}}); err != nil {
			t.Fatal(err)
		}
		if err := from.broker.Groups().Heartbeat(ctx, group.HeartbeatRequest{GroupID: "g"}); !errors.Is(err, group.ErrNotCoordinator) {
			t.Errorf("who has released the group answers %v", err)
		}
		if n, err := from.broker.Groups().Find(ctx, "g"); err != nil || n != to.meta.NodeID() {
			t.Errorf("who has released the group names agent %d, %v", n, err)
		}
		var got []group.FetchTopic
		err = try(to, func() (err error) {
			got, err = to.broker.Groups().FetchOffsets(ctx, group.FetchRequest{GroupID: "g"})
			return err
		})
		if err != nil || len(got) != 1 || got[0].Partitions[0].Offset != 100+i {
			t.Fatalf("offsets %+v, %v, want %d", got, err, 100+i)
		}
	}
}

// Every partition of a topic has an owner from the first, also when an agent joins meanwhile.
func TestCreateWhileJoining(t *testing.T) {
	for range 30 {
		c := newMoveCluster(t, 20*time.Second)
		a, _ := c.start(true), c.start(true)
		c.create(a, "t", 4)
	}
}
