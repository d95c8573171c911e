package lead

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/lock"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// Lead is a partition that this agent begins to lead.
type Lead struct {
	TP            ids.TopicPartition
	Epoch         int32
	LogStart, End int64
	// Kept: an earlier start of this agent led it, on this disk, which has its log if it has records.
	Kept bool
	// Batches are those that streams of earlier owners have, by offset; some may be tiered.
	Batches []wal.Placed
}

// Frozen is a partition that takes no appends any more, and where it ends.
type Frozen struct {
	TP  ids.TopicPartition
	End int64
}

// Host serves the partitions that this agent leads.
type Host interface {
	// Lead begins to serve partitions. Their acceptance is durable. After an error none is
	// served, and it may be called again.
	Lead(ctx context.Context, leads []Lead) error
	// Freeze makes partitions refuse appends. All before are in the stream when it returns, if
	// not durable yet. Those that are deleted are left out. After an error they take appends again.
	Freeze(ctx context.Context, tps []ids.TopicPartition) ([]Frozen, error)
	// Thaw ends a freeze.
	Thaw(tps []ids.TopicPartition)
	// Resign ends the serving of frozen partitions, whose release is durable.
	Resign(tps []ids.TopicPartition) error
	// Reassert writes again what the metadata store has forgotten of the index of partitions.
	Reassert(ctx context.Context) error
}

// Stream is the agent's own stream as far as leadership needs it.
type Stream interface {
	Change(ctx context.Context, ch wal.Change) error
	Release(ctx context.Context, rs []wal.Release) (seq uint64, err error)
}

// DefaultTTL is how long a lease lives.
const DefaultTTL = 3 * time.Second

// Options of a Manager. Meta, Bucket, Stream, Host, Cluster and Incarnation are required.
type Options struct {
	Meta        *metadata.Store
	Bucket      objstore.Bucket
	Stream      Stream
	Host        Host
	Cluster     [16]byte
	Incarnation ids.Incarnation
	Disk        ids.DiskID    // of this agent, for partitions of class local; zero: it has none
	TTL         time.Duration // of leases; 0: 3 s
	Reader      bool          // this agent leads nothing, and leaves the streams of the dead to those who can inherit
	Stay        bool          // partitions move only when an agent stops
	// Peers, if not nil, tells other agents of partitions that move.
	Peers Peers
	// Held, if not nil, lists what the agent's stream owns; Peers are told which streams to read by it.
	Held func() []wal.Held
	// Warm, if not nil, reads ahead what the host needs to serve partitions.
	Warm func(ctx context.Context, tps []ids.TopicPartition) error
	// OnSealed, if not nil, is called when the others have sealed this agent's stream: it
	// may have nothing to put by which it would find out. So it is when the agent's node was started
	// again elsewhere.
	OnSealed func()
	// OnAbandoned, if not nil, is told that this agent's disk was abandoned: it must stop.
	OnAbandoned func(error)
	// OpenDisk makes the disk ready for partitions of class local; required with Disk.
	OpenDisk func() error
	Logger   *slog.Logger
	Now      func() time.Time
	// LeaseNow is the clock of this agent's own lease, and of Put; nil: Now. It must go on while the machine is
	// suspended. That by which it judges the leases of others need not: one that stands still waits longer, and
	// agents that were all suspended together don't take each other for dead.
	LeaseNow func() time.Time
}

// Manager keeps this agent's lease, watches those of others, and takes over what
// they leave behind.
type Manager struct {
	o    Options
	kick chan struct{} // one token: something has changed
	// assert takes one token: the metadata store may have forgotten what it knew; true: it was away.
	assert chan bool
	seen   atomic.Uint64 // changes so far
	// watched tells since when leases of others are seen unchanged.
	watched atomic.Pointer[map[ids.Incarnation]time.Time]

	mu       sync.Mutex
	lease    *Own
	draining bool

	// work serialises what changes who leads; the fields down to the next line belong to it.
	work      lock.Mutex
	led       map[ids.TopicPartition]int32 // accepted and not released: epochs
	accepted  map[ids.TopicPartition]int32 // the greatest epochs that were ever accepted
	bound     map[ids.TopicPartition]bool  // those of led that are of class local: they stay with the disk
	disk      disk
	abandoned map[ids.DiskID]bool                 // disks that were looked at
	unserved  []*taken                            // accepted, and not served yet
	sealed    map[ids.Incarnation]bool            // whose heirs were looked at
	released  map[metadata.Released]bool          // that were looked at
	hints     map[metadata.Released][]wal.Release // that others have told of, which are durable: what they give
	own       []ownRelease                        // whose rows are there, or to be written

	givenMu sync.Mutex
	given   map[ids.TopicPartition]gift // what seals, releases and claims give on, as far as this agent has read

	claims atomic.Uint64
	at     address // of this agent

	aheadMu   sync.Mutex
	ahead     *wal.Older // has read older streams; nil: none
	aheadMade time.Time
	aheadEnd  *time.Timer

	background context.Context // ends with Close
	cancel     func()
	wg         sync.WaitGroup
}

// New returns a manager that does nothing yet.
func New(o Options) *Manager {
	if o.TTL <= 0 {
		o.TTL = DefaultTTL
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.LeaseNow == nil {
		o.LeaseNow = o.Now
	}
	background, cancel := context.WithCancel(context.Background())
	return &Manager{o: o, kick: make(chan struct{}, 1), assert: make(chan bool, 1), lease: NewOwn(o.TTL, o.TTL/10), background: background, cancel: cancel, hints: map[metadata.Released][]wal.Release{},
		led: map[ids.TopicPartition]int32{}, accepted: map[ids.TopicPartition]int32{}, sealed: map[ids.Incarnation]bool{},
		bound: map[ids.TopicPartition]bool{}, abandoned: map[ids.DiskID]bool{},
		released: map[metadata.Released]bool{}, given: map[ids.TopicPartition]gift{}}
}

// Start takes the lease, registers the agent as reached at host and port, and begins to lead.
// The agent's stream must have its object 0. Close ends it.
func (m *Manager) Start(ctx context.Context, host string, port int32, rack string) error {
	if err := m.renew(ctx); err != nil {
		return fmt.Errorf("take lease: %w", err)
	}
	if err := m.o.Meta.Register(ctx, host, port, rack); err != nil {
		return err
	}
	if err := m.o.Meta.WatchCluster(ctx, m.Kick); err != nil {
		return err
	}
	m.o.Meta.OnReconnect(func() { m.reassertSoon(true) })
	m.at = address{host, port, rack}
	background, cancel := m.background, m.cancel
	unsubscribe := m.o.Meta.Subscribe(func(metadata.Change) { m.Kick() }) // new topics give partitions
	m.cancel = func() {
		unsubscribe()
		cancel()
	}
	m.wg.Go(func() { m.renewLoop(background) })
	if !m.o.Reader {
		m.wg.Go(func() { m.observeLoop(background) })
	}
	m.wg.Go(func() { m.leadLoop(background) })
	m.wg.Go(func() { m.reassertLoop(background) })
	if !m.o.Stay {
		m.wg.Go(func() { m.rebalanceLoop(background) })
	}
	return nil
}

// Close ends the manager; its lease runs out by itself.
func (m *Manager) Close() error {
	m.stop()
	return nil
}

func (m *Manager) stop() {
	m.cancel()
	m.wg.Wait()
}

// Kick says that something may have changed.
func (m *Manager) Kick() {
	m.seen.Add(1)
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Live reports whether this agent may answer, without a put, as the leader of its partitions.
func (m *Manager) Live() bool {
	if m.o.Meta.IsSealed(m.o.Incarnation) { // whatever keeps it from its own end
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lease.Live(m.o.LeaseNow())
}

// Put notes that an object of the agent's stream was put, begun at began by LeaseNow.
func (m *Manager) Put(began time.Time) {
	m.mu.Lock()
	m.lease.Put(began)
	m.mu.Unlock()
}

// Place chooses first owners for partitions of a new topic; for metadata.Options.
func (m *Manager) Place(id ids.TopicID, from, to int32) []metadata.Agent {
	tps := make([]ids.TopicPartition, 0, to-from)
	for p := from; p < to; p++ {
		tps = append(tps, ids.TopicPartition{Topic: id, Partition: p})
	}
	out := make([]metadata.Agent, 0, len(tps))
	m.mu.Lock()
	leaving := map[ids.Incarnation]bool{m.o.Incarnation: m.draining}
	m.mu.Unlock()
	candidates := m.candidates(leaving)
	if len(candidates) == 0 {
		candidates = m.candidates(nil)
	}
	byInc := map[ids.Incarnation]metadata.Agent{} // of the candidates: an agent may join, or go, at any time
	for _, c := range candidates {
		byInc[c.Incarnation] = metadata.Agent{Node: c.Node, Incarnation: c.Incarnation}
	}
	for _, inc := range Place(tps, candidates) {
		out = append(out, byInc[inc])
	}
	return out
}

// candidates are the agents that are registered, their stream not sealed, with their loads. Those that
// are drained are among them only when there are no others.
func (m *Manager) candidates(but map[ids.Incarnation]bool) []Candidate {
	if out := m.willing(but, false); len(out) > 0 {
		return out
	}
	return m.willing(but, true)
}

// willing are the candidates that are not drained, or those that are.
func (m *Manager) willing(but map[ids.Incarnation]bool, drained bool) (out []Candidate) {
	sealed := m.o.Meta.Sealed()
	load := map[ids.Incarnation]int{}
	for _, t := range m.o.Meta.Snapshot().Topics() {
		for p := range t.Partitions {
			load[m.o.Meta.Owner(t, p).Incarnation]++
		}
	}
	for _, a := range m.o.Meta.Agents() {
		if !a.Reader && a.Drained == drained && !but[a.Incarnation] && !slices.Contains(sealed, a.Incarnation) {
			out = append(out, Candidate{a.Incarnation, a.Node, load[a.Incarnation]})
		}
	}
	return out
}

// inTime bounds a call about leases: who renews one must get another try before it ends.
func (m *Manager) inTime(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, m.o.TTL/2)
}

func (m *Manager) renew(ctx context.Context) error {
	ctx, cancel := m.inTime(ctx)
	defer cancel()
	began := m.o.LeaseNow()
	m.mu.Lock()
	lapsed := m.lease.Lapsed(began)
	m.mu.Unlock()
	if err := m.o.Meta.RenewLease(ctx, m.o.TTL); err != nil {
		return err
	}
	if lapsed { // an object of its own shows that nobody has taken over
		if err := m.o.Stream.Change(ctx, wal.Change{}); err != nil {
			return err
		}
	}
	m.mu.Lock()
	m.lease.Renewed(began)
	m.mu.Unlock()
	return nil
}

func (m *Manager) renewLoop(ctx context.Context) {
	failing := false
	m.every(ctx, m.o.TTL/3, func() {
		err := m.renew(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			m.o.Logger.Warn("the lease can't be renewed; serving goes on while the stream's objects can be put", "err", err)
		}
		if err == nil && failing {
			m.reassertSoon(true)
		}
		failing = err != nil
	})
}

func (m *Manager) every(ctx context.Context, d time.Duration, f func()) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

// observeLoop watches the leases of those who lead, and seals the streams of the dead.
func (m *Manager) observeLoop(ctx context.Context) {
	o := NewObserver(m.o.TTL)
	var others []ids.Incarnation
	seen, first := uint64(0), true
	m.every(ctx, m.o.TTL/10, func() {
		if n := m.seen.Load(); first || n != seen { // it looks at every partition
			others, seen, first = m.others(), n, false
		}
		defer func() { m.watched.Store(o.since()) }()
		for _, inc := range others {
			began := m.o.Now()
			counter, held, err := m.leaseCounter(ctx, inc)
			if err != nil {
				if ctx.Err() == nil {
					o.Lost()
				}
				return
			}
			if o.Seen(inc, counter, held, began) || inc == m.o.Meta.Predecessor() {
				o.Forget(inc)
				m.takeOver(ctx, inc)
			}
		}
	})
}

// leaseCounter reads another agent's lease, in the time that a renewal has: where it takes longer, nobody could
// renew meanwhile, and an answer in the end would make dead of all.
func (m *Manager) leaseCounter(ctx context.Context, inc ids.Incarnation) (counter uint64, held bool, err error) {
	ctx, cancel := m.inTime(ctx)
	defer cancel()
	return m.o.Meta.LeaseCounter(ctx, inc)
}

// Unchanged tells how long the lease of another agent is seen unchanged; false: it is not watched.
func (m *Manager) Unchanged(inc ids.Incarnation) (time.Duration, bool) {
	if w := m.watched.Load(); w != nil {
		if since, ok := (*w)[inc]; ok {
			return m.o.Now().Sub(since), true
		}
	}
	return 0, false
}

// others are the incarnations but this one that lead partitions, or may be given some, and are not sealed.
// An earlier start of this very node is one of them: its process is gone, or must not go on.
func (m *Manager) others() (out []ids.Incarnation) {
	seen := map[ids.Incarnation]bool{m.o.Incarnation: true, "": true}
	for _, inc := range m.o.Meta.Sealed() {
		seen[inc] = true
	}
	add := func(inc ids.Incarnation) {
		if !seen[inc] {
			seen[inc] = true
			out = append(out, inc)
		}
	}
	for _, a := range m.o.Meta.Agents() {
		add(a.Incarnation)
	}
	for _, r := range m.o.Meta.Released() { // of one that is gone: its seal tells what nobody has taken yet
		add(r.Incarnation)
	}
	for _, t := range m.o.Meta.Snapshot().Topics() {
		for p := range t.Partitions {
			add(m.o.Meta.Owner(t, p).Incarnation)
		}
	}
	return out
}

// leadLoop accepts what this agent is given.
func (m *Manager) leadLoop(ctx context.Context) {
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.kick:
		case <-retry.C:
		}
		m.work.Lock()
		err := m.step(ctx)
		m.work.Unlock()
		if err != nil && ctx.Err() == nil {
			m.o.Logger.Warn("could not take partitions over; trying again", "err", err)
			retry.Reset(m.o.TTL / 10)
		} else {
			retry.Reset(m.o.TTL * 10) // what a lost notice may have left
		}
	}
}

// step accepts everything that this agent was given and does not lead yet. m.work is held.
func (m *Manager) step(ctx context.Context) error {
	if m.o.Meta.IsSealed(m.o.Incarnation) || m.replaced() {
		if m.o.OnSealed != nil {
			m.o.OnSealed()
		}
		return nil
	}
	if err := m.publish(ctx); err != nil {
		return err
	}
	if err := m.serve(ctx); err != nil {
		return err
	}
	t := takeover{m: m, chain: newChain(m), leads: map[ids.TopicPartition]*taken{}}
	if err := t.fromReleases(ctx); err != nil {
		return err
	}
	if err := t.fromSeals(ctx); err != nil {
		return err
	}
	if err := t.fromDisk(ctx); err != nil {
		return err
	}
	if err := t.fromAbandoned(ctx); err != nil {
		return err
	}
	t.fromTopics()
	if err := t.fromClaims(ctx); err != nil {
		return err
	}
	if len(t.leads) > 0 {
		if err := m.accept(ctx, t.leads); err != nil {
			return err
		}
	}
	for _, inc := range t.sealed {
		m.sealed[inc] = true
	}
	for _, r := range t.released {
		m.released[r] = true
	}
	for _, d := range t.abandoned {
		m.abandoned[d] = true
	}
	return m.serve(ctx)
}

// replaced tells that this agent's node was started again: clients are sent to the new start, and
// whoever leads under a node id that is another's can't be found.
func (m *Manager) replaced() bool {
	for _, a := range m.o.Meta.Agents() {
		if a.Node == m.o.Meta.NodeID() && a.Incarnation != m.o.Incarnation && a.Epoch > m.o.Meta.NodeEpoch() {
			return true
		}
	}
	return false
}

// accept makes this agent the owner of partitions. Meanwhile it reads where their batches lie,
// which nobody needs to know before they are served.
func (m *Manager) accept(ctx context.Context, leads map[ids.TopicPartition]*taken) error {
	var ch wal.Change
	ts := make([]*taken, 0, len(leads))
	for _, t := range leads {
		ts = append(ts, t)
	}
	slices.SortFunc(ts, func(a, b *taken) int { return wal.CompareTP(a.acceptance.TP, b.acceptance.TP) })
	ts, unbound := m.bind(ctx, ts)
	if len(ts) == 0 {
		return unbound
	}
	for _, t := range ts {
		ch.Acceptances = append(ch.Acceptances, t.acceptance)
	}
	done := make(chan error, 1)
	go func() { done <- m.o.Stream.Change(ctx, ch) }()
	failed := m.readBatches(ctx, ts)
	if err := <-done; err != nil {
		return fmt.Errorf("accept %d partitions: %w", len(ts), err)
	}
	var owned []metadata.Owned
	for _, a := range ch.Acceptances {
		m.led[a.TP], m.accepted[a.TP] = a.Epoch, a.Epoch
		if !a.Disk.IsZero() {
			m.bound[a.TP] = true
		}
		m.unserved = append(m.unserved, leads[a.TP])
		owned = append(owned, metadata.Owned{TP: a.TP, Owner: metadata.Owner{Incarnation: m.o.Incarnation, Epoch: a.Epoch}})
	}
	m.o.Meta.NoteOwners(owned)
	return errors.Join(unbound, failed) // the next step tries again
}

// serve has the host serve what was accepted, and tells everyone.
func (m *Manager) serve(ctx context.Context) error {
	if len(m.unserved) == 0 {
		return nil
	}
	began := m.o.Now()
	if err := m.readBatches(ctx, m.unserved); err != nil {
		return err
	}
	leads := make([]Lead, len(m.unserved))
	for i, t := range m.unserved {
		leads[i] = t.lead()
	}
	if err := m.o.Host.Lead(ctx, leads); err != nil {
		return err
	}
	m.o.Logger.Info("lead partitions", "partitions", len(m.unserved), "took", m.o.Now().Sub(began).Round(time.Millisecond))
	owned := make([]metadata.Owned, len(m.unserved))
	for i, l := range leads {
		owned[i] = metadata.Owned{TP: l.TP, Owner: metadata.Owner{Incarnation: m.o.Incarnation, Epoch: l.Epoch}}
	}
	m.unserved = nil
	return m.o.Meta.RaiseOwners(ctx, owned)
}
