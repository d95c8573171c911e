package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/metadata/kv/bolt"
	"github.com/cirrolog/cirrolog/metadata/kv/kvurl"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// clustered tells that this is one of several agents, or may be.
func (a *Agent) clustered() bool { return a.cfg.Metadata != "" }

// openKV opens the metadata store and says what it is.
func (a *Agent) openKV(ctx context.Context) (kv.Store, string, error) {
	log := a.component("metadata")
	if !a.clustered() {
		s, err := bolt.Open(filepath.Join(a.cfg.DataDir, "meta.db"), bolt.Options{Logger: log})
		return s, "bolt", err
	}
	return OpenMetadata(ctx, a.cfg.Metadata, log)
}

// OpenMetadata opens a metadata store that several agents share, and says what kind it is.
func OpenMetadata(ctx context.Context, raw string, log *slog.Logger) (kv.Store, string, error) {
	s, kind, err := kvurl.Open(ctx, raw, log)
	if errors.Is(err, kvurl.ErrURL) {
		err = fmt.Errorf("%w: --metadata %w", ErrConfig, err)
	}
	return s, kind, err
}

// remoteStream makes a store write ahead into the bucket.
func (a *Agent) remoteStream() storage.RemoteOptions {
	return storage.RemoteOptions{TierMaxDelay: a.cfg.TierMaxDelay, MaxObjects: streamObjects(a.cfg.WALLinger), Open: func(c storage.StreamConfig) (contract.Stream, error) {
		cluster, err := a.clusterBytes()
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), probeTime)
		defer cancel()
		a.stream, err = wal.Open(ctx, wal.Options{Bucket: a.bucket, Cluster: cluster, Incarnation: a.incarnation, Pool: c.Pool,
			Announce: c.Announce, OnFull: c.OnFull, Linger: a.cfg.WALLinger, Logger: a.component("wal"),
			Now: a.clock.Now, Spare: a.spare, OnCheckpoint: a.checkpoint, OnPut: func(bytes int64, took time.Duration) {
				a.metrics.walSeconds.WithLabelValues().Observe(took.Seconds())
				a.metrics.walBytes.WithLabelValues().Add(float64(bytes))
			}, OnDurable: func(began time.Time) {
				if m := a.leading.Load(); m != nil {
					m.Put(began)
				}
			}})
		return a.stream, err
	}}
}

// streamObjects is how many objects the stream should have at most: those of 50 s at the pace of linger, so that
// what is small has time to become larger before it is carried forward; an heir reads a footer of each.
func streamObjects(linger time.Duration) int {
	const least, most, span = 512, 1024, 50 * time.Second
	if linger <= 0 {
		linger = wal.DefaultLinger
	}
	return int(min(max(span/linger, least), most))
}

// errStarting: the broker is not there yet.
var errStarting = errors.New("the agent starts")

// spare tells whether offsets in the agent's stream are needed there; see wal.Options.
func (a *Agent) spare(ctx context.Context, tp ids.TopicPartition, base, last int64) (bool, error) {
	b := a.closed.Load()
	if b == nil {
		return false, errStarting
	}
	return b.Spare(ctx, tp, base, last)
}

// checkpoint is told of the stream's checkpoints.
func (a *Agent) checkpoint() {
	if m := a.leading.Load(); m != nil {
		m.Checkpoint()
	}
}

// clusterBytes is the cluster's id as streams carry it.
func (a *Agent) clusterBytes() ([16]byte, error) {
	id, err := ids.ParseTopicID(a.meta.ClusterID())
	if err != nil {
		return id, fmt.Errorf("cluster id: %w", err)
	}
	return id, nil
}

// place chooses the first owners of new partitions; nil: this agent.
func (a *Agent) place() func(id ids.TopicID, from, to int32) []metadata.Agent {
	if !a.clustered() {
		return nil
	}
	return func(id ids.TopicID, from, to int32) []metadata.Agent {
		m := a.leading.Load()
		if m == nil {
			return nil
		}
		return m.Place(id, from, to)
	}
}

// agents counts the live agents, for metadata.
func (a *Agent) agents() func() int {
	if !a.clustered() {
		return nil
	}
	return func() int { return len(a.meta.Agents()) }
}

// setLogStart makes moves of log starts durable in the agent's stream.
func (a *Agent) setLogStart() func(ctx context.Context, tp ids.TopicPartition, epoch int32, offset int64) error {
	if !a.clustered() {
		return nil
	}
	return func(ctx context.Context, tp ids.TopicPartition, epoch int32, offset int64) error {
		return a.stream.Change(ctx, wal.Change{LogStarts: []wal.LogStart{{TP: tp, Epoch: epoch, Offset: offset}}})
	}
}

func (a *Agent) onTiered() func(tp ids.TopicPartition, end int64) {
	if !a.clustered() {
		return nil
	}
	return a.stream.Tiered
}

// live tells whether the others do not take this agent for dead yet; nil: there are no others.
func (a *Agent) live() func() bool {
	if !a.clustered() {
		return nil
	}
	return func() bool {
		m := a.leading.Load()
		return m != nil && m.Live()
	}
}

// sealed stops an agent whose stream the others have sealed.
func (a *Agent) sealed() {
	a.stream.Poison(wal.ErrFenced)
	a.fail(wal.ErrFenced)
}

// errReplaced: another process runs under this agent's node id.
var errReplaced = errors.New("another agent runs with the same node id: stop one of them, or give it another --node-id and data directory")

// replaced returns errReplaced if the node was started again elsewhere: whoever began anew would take
// over from the other, which would begin anew in its turn.
func (a *Agent) replaced() error {
	for _, o := range a.meta.Agents() {
		if o.Node == a.meta.NodeID() && o.Incarnation != a.incarnation {
			return fmt.Errorf("node %d at %s:%d: %w", o.Node, o.Host, o.Port, errReplaced)
		}
	}
	return nil
}

// startLeading takes the lease, tells the others of this agent, and begins to lead.
func (a *Agent) startLeading(ctx context.Context) error {
	if !a.clustered() {
		return nil
	}
	cluster, err := a.clusterBytes()
	if err != nil {
		return err
	}
	self, err := a.self()
	if err != nil {
		return err
	}
	m := lead.New(lead.Options{Meta: a.meta, Bucket: a.bucket, Stream: a.stream, Host: a.broker, Cluster: cluster,
		Peers: a.openPeers(), Held: a.stream.Held, Warm: a.broker.Warm,
		Incarnation: a.incarnation, Disk: a.disk.ID(), OnSealed: a.sealed, OnAbandoned: a.fail, OpenDisk: a.local.ready, TTL: a.cfg.Lease, LeaseNow: a.clock.Now, Reader: a.cfg.Role == RoleReader, Logger: a.component("lead")})
	a.leading.Store(m)
	a.onClose(m.Close)
	a.serveRPC(m)
	a.watchBucket()
	return m.Start(ctx, self.Host, self.Port, self.Rack)
}

// leaders tells the broker who leads what; nil: this agent everything.
func (a *Agent) leaders() broker.Leaders {
	if !a.clustered() {
		return nil
	}
	return broker.NewLeaders(a.meta)
}
