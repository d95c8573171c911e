package metadata

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Options of Open. KV, Bucket and Incarnation are required; elsewhere the zero
// value is the default.
type Options struct {
	KV          kv.Store
	Bucket      objstore.Bucket
	Incarnation ids.Incarnation // this start of the agent

	// What the data directory remembers of earlier starts.
	ClusterID        string // "": first start
	RememberedNodeID int32  // 0: first start
	// MinEpoch is the least NodeEpoch to take: one more than the last one this
	// directory remembers.
	MinEpoch int32

	// Advertised is where clients are to reach this agent, HOST:PORT. With it Open returns ErrTaken
	// while another agent lives that has this one's node id or address; "": no others are looked for.
	Advertised string
	Lease      time.Duration // of the agents, by which their life is judged; 0: 3 s

	Reader             bool       // this agent is to lead no partitions
	RPC                string     // HOST:PORT at which other agents reach this one; "": not at all
	NodeID             int32      // asked for by the operator, from 1; 0: the remembered or next free one
	Defaults           *Defaults  // of topic configs; nil: the built-in ones
	DefaultPartitions  int32      // for partitions = -1; 0: 1
	MaxTotalPartitions int        // of all topics, beyond which creating is ErrPolicy; 0: 1,000,000
	Agents             func() int // live agents, the greatest replication factor; nil: 1
	// Place chooses the first owners of the partitions from to to-1 of a topic, one
	// for each; nil: this agent gets them all.
	Place  func(id ids.TopicID, from, to int32) []Agent
	Logger *slog.Logger // nil: slog.Default()
	Now    func() time.Time
	Tries  int // of each request to KV and bucket; 0: 8 (about 2 s of pauses)
}

func (o *Options) setDefaults() error {
	if o.KV == nil || o.Bucket == nil || o.Incarnation == "" {
		return fmt.Errorf("open metadata: KV, Bucket and Incarnation are required")
	}
	if o.NodeID < 0 || o.RememberedNodeID < 0 || o.MinEpoch < 0 {
		return fmt.Errorf("open metadata: %w: node ids start at 1, epochs at 0", ErrNodeID)
	}
	if o.Defaults == nil {
		d, err := NewDefaults(nil)
		if err != nil {
			return err
		}
		o.Defaults = d
	}
	if o.Lease <= 0 {
		o.Lease = defaultLease
	}
	if o.DefaultPartitions <= 0 {
		o.DefaultPartitions = 1
	}
	if o.MaxTotalPartitions <= 0 {
		o.MaxTotalPartitions = 1_000_000
	}
	if o.Agents == nil {
		o.Agents = func() int { return 1 }
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Tries <= 0 {
		o.Tries = 8
	}
	return nil
}

// Store is the metadata of one cluster as one agent sees it. Its methods may be
// called from several goroutines. Reads of topics are lock-free and local;
// changes go to the bucket, then to the key-value store, then into the snapshot
// and to the subscribers, and only then return.
type Store struct {
	opts       Options
	clusterID  string
	generation atomic.Int64 // of recoveries of the bucket
	nodeID     int32
	epoch      int32

	names    keyedLocks // one change at a time of a topic name and those it collides with
	snap     atomic.Pointer[Snapshot]
	applyMu  sync.Mutex       // one change of the snapshot at a time
	versions map[string]int64 // by topic name, the newest version applied, deletes too; under applyMu
	subs     map[int]func(Change)
	nextSub  int

	pid       pidBlock
	parts     partitionTable
	starts    keyedLocks // PublishLogStarts
	deletedMu sync.Mutex
	deleted   map[string]*DeletedTopic // by object key; nil: not a delete
	deadIDs   map[ids.TopicID]struct{} // of topics known to be deleted

	predecessor ids.Incarnation // the start of this node before this one

	agents      agentTable
	sealedMu    sync.Mutex
	sealed      map[ids.Incarnation]struct{}
	released    map[Released]struct{}   // under sealedMu
	abandoned   map[ids.DiskID]struct{} // under sealedMu
	changed     atomic.Pointer[func()]  // see WatchCluster
	reconnected atomic.Pointer[func()]  // see OnReconnect

	background context.Context
	cancel     context.CancelFunc
	wg         sync.WaitGroup // watches
}

// Open agrees on the cluster id, claims the node id, raises the node's epoch,
// and completes the key-value store from the bucket where a crash left it
// behind. ErrForeignBucket means that bucket, key-value store and data
// directory do not belong together. Open does not take over opts.KV: the caller
// closes it after Close.
func Open(ctx context.Context, opts Options) (*Store, error) {
	s, err := open(ctx, opts, "open metadata", func(s *Store) []step {
		return []step{
			{"agree on cluster id", s.openCluster},
			{"look for other agents", func(ctx context.Context) error {
				if s.opts.Advertised == "" {
					return nil
				}
				return s.refuseTwins(ctx)
			}},
			{"claim node id", s.claimNode},
			{"raise epoch", s.raiseNodeEpoch},
		}
	})
	if err == nil {
		s.wg.Go(func() { s.watchForever(s.background, topicRow(""), s.applyTopicRow) })
	}
	return s, err
}

// step is a part of opening a Store.
type step struct {
	what string
	do   func(context.Context) error
}

// open makes a Store: first what is special, then topics and partitions are loaded.
func open(ctx context.Context, opts Options, what string, first func(*Store) []step) (*Store, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	s := newStore(opts)
	for _, step := range append(first(s), step{"load topics", s.completeTopics}, step{"load partitions", s.loadPartitions}) {
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", what, unavailable(step.what, err))
		}
	}
	s.background, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

func newStore(opts Options) *Store {
	s := &Store{opts: opts, versions: map[string]int64{}, subs: map[int]func(Change){}, deleted: map[string]*DeletedTopic{}, deadIDs: map[ids.TopicID]struct{}{}}
	s.snap.Store(&Snapshot{})
	return s
}

// Close stops the watches. Calls under way end with their own contexts.
func (s *Store) Close() error {
	s.cancel()
	s.wg.Wait()
	return nil
}

// ClusterID is the id of the cluster, the same for every agent for ever.
func (s *Store) ClusterID() string { return s.clusterID }

// NodeID is this agent's node id, 1 or greater.
func (s *Store) NodeID() int32 { return s.nodeID }

// NodeEpoch is greater than that of every earlier start of this node. It serves
// as the leader epoch of the partitions that this start leads.
func (s *Store) NodeEpoch() int32 { return s.epoch }

// Defaults are the topic configs in force where a topic sets none.
func (s *Store) Defaults() *Defaults { return s.opts.Defaults }

func (s *Store) nowMs() int64 { return s.opts.Now().UnixMilli() }

// keyedLocks are mutexes by key that can be waited for with a context.
type keyedLocks struct {
	mu sync.Mutex
	m  map[string]*keyedLock
}

type keyedLock struct {
	held  chan struct{}
	users int
}

// lock waits for the lock of key; unlock must be called once.
func (k *keyedLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.m == nil {
		k.m = map[string]*keyedLock{}
	}
	l := k.m[key]
	if l == nil {
		l = &keyedLock{held: make(chan struct{}, 1)}
		k.m[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.m, key)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
