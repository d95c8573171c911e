package sim

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// ttl is the lease of the agents.
const ttl = time.Second

// agent is one start of an agent: the production packages as services/agent puts them
// together, without listeners.
type agent struct {
	w       *world
	slot    int
	link    *link
	skew    time.Duration // of its wall clock
	log     *slog.Logger
	meta    *metadata.Store
	store   *storage.Store
	stream  *wal.Stream
	broker  *broker.Broker
	manager atomic.Pointer[lead.Manager]
	closed  atomic.Pointer[broker.Broker]
	failed  chan error
	closers []func() error
}

func (a *agent) now() time.Time { return time.Now().Add(a.skew) }

// start opens everything; on an error nothing is left running.
func (w *world) start(ctx context.Context, slot int, remembered *metadata.Store, seed uint64) (*agent, error) {
	a := &agent{w: w, slot: slot, failed: make(chan error, 1), log: slog.New(slog.DiscardHandler)}
	inc := ids.NewIncarnation()
	a.link = w.newLink(slot, inc, seed)
	a.skew = time.Duration(seed%7)*time.Minute - 3*time.Minute
	if os.Getenv("SIM_LOG") != "" {
		a.log = slog.New(traceHandler{w.trace, slot, nil})
	}
	w.slots[slot].link.Store(a.link)
	err := a.openMeta(ctx, inc, remembered)
	if err == nil {
		err = a.openStorage(ctx, inc)
	}
	if err == nil {
		err = a.openBroker(ctx, inc)
	}
	if err == nil {
		err = a.lead(ctx, inc)
	}
	if err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *agent) openMeta(ctx context.Context, inc ids.Incarnation, remembered *metadata.Store) (err error) {
	o := metadata.Options{KV: kvLink{a.link}, Bucket: bucketLink{a.link}, Incarnation: inc, NodeID: int32(a.slot + 1), Logger: a.log, Now: a.now, Tries: 3,
		Place: func(id ids.TopicID, from, to int32) []metadata.Agent {
			if m := a.manager.Load(); m != nil {
				return m.Place(id, from, to)
			}
			return nil
		},
		Agents: func() int { return len(a.meta.Agents()) }}
	if remembered != nil {
		o.ClusterID, o.RememberedNodeID, o.MinEpoch = remembered.ClusterID(), remembered.NodeID(), remembered.NodeEpoch()+1
	}
	if a.meta, err = metadata.Open(ctx, o); err != nil {
		return err
	}
	a.closers = append(a.closers, a.meta.Close)
	id, err := ids.ParseTopicID(a.meta.ClusterID())
	a.w.id.CompareAndSwap(nil, (*[16]byte)(&id))
	return err
}

func (a *agent) openStorage(ctx context.Context, inc ids.Incarnation) error {
	var err error
	a.store, err = storage.Open(storage.Options{FS: vfs.NewMem(), Dir: "disk", TailBytes: 16 << 20, ReadBytes: 16 << 20, Logger: a.log, Now: a.now, OnFailure: a.fail,
		OnClosed: func(tp ids.TopicPartition) {
			if b := a.closed.Load(); b != nil {
				b.Flushed(tp)
			}
		},
		Remote: storage.RemoteOptions{TierMinBytes: a.w.cfg.tierMin, TierMaxDelay: a.w.cfg.tierDelay, MaxObjects: a.w.cfg.maxObjects, Open: func(s storage.StreamConfig) (contract.Stream, error) {
			var err error
			a.stream, err = wal.Open(ctx, wal.Options{Bucket: bucketLink{a.link}, Cluster: a.w.cluster(), Incarnation: inc, Pool: s.Pool, Announce: s.Announce, OnFull: s.OnFull,
				Linger: a.w.cfg.linger, Capacity: a.w.cfg.capacity, MaxInFlight: a.w.cfg.inFlight, CheckpointEvery: a.w.cfg.checkpoint, CloseTimeout: 200 * time.Millisecond, Logger: a.log,
				OnDurable: func(began time.Time) {
					if m := a.manager.Load(); m != nil {
						m.Put(began.Add(a.skew))
					}
				}})
			return a.stream, err
		}}})
	if err != nil {
		return err
	}
	a.closers = append(a.closers, func() error {
		for _, l := range a.store.Logs() { // their memory
			_ = a.store.Remove(l.TP())
		}
		return a.store.Close()
	})
	return nil
}

func (a *agent) openBroker(ctx context.Context, inc ids.Incarnation) error {
	r, err := tiering.NewReader(tiering.ReaderOptions{Bucket: bucketLink{a.link}, Index: broker.NewIndex(a.meta), MemoryBytes: 4 << 20, BlockBytes: 64 << 10, Logger: a.log, Now: a.now})
	if err != nil {
		return err
	}
	a.closers = append(a.closers, r.Close)
	b, err := broker.New(ctx, broker.Options{Store: a.store, Meta: a.meta, Bucket: bucketLink{a.link}, Incarnation: inc, Epoch: a.meta.NodeEpoch(),
		Self: broker.Node{ID: a.meta.NodeID(), Host: "h", Port: 1}, Reader: r, Leaders: broker.NewLeaders(a.meta), OnTiered: a.stream.Tiered,
		SetLogStart: func(ctx context.Context, tp ids.TopicPartition, epoch int32, offset int64) error {
			return a.stream.Change(ctx, wal.Change{LogStarts: []wal.LogStart{{TP: tp, Epoch: epoch, Offset: offset}}})
		},
		Live: func() bool {
			m := a.manager.Load()
			return m != nil && m.Live()
		},
		RetentionInterval: 2 * time.Second, SweepInterval: 7 * time.Second, SweepGrace: 3 * time.Second, CompactInterval: 3 * time.Second,
		Groups: broker.GroupOptions{Partitions: offsetsPartitions}, Logger: a.log, Now: a.now})
	if err != nil {
		return err
	}
	a.broker = b
	a.closed.Store(b)
	b.FindClosed()
	a.closers = append(a.closers, b.Close)
	return nil
}

func (a *agent) lead(ctx context.Context, inc ids.Incarnation) error {
	m := lead.New(lead.Options{Meta: a.meta, Bucket: bucketLink{a.link}, Stream: a.stream, Host: a.broker, Cluster: a.w.cluster(), Incarnation: inc, TTL: ttl,
		OnSealed: func() {
			a.stream.Poison(wal.ErrFenced)
			a.fail(wal.ErrFenced)
		}, Logger: a.log, Now: a.now})
	a.manager.Store(m)
	a.closers = append(a.closers, m.Close)
	return m.Start(ctx, "h", a.meta.NodeID(), "")
}

func (a *agent) fail(err error) {
	select {
	case a.failed <- err:
	default:
	}
}

// close ends everything in reverse order.
func (a *agent) close() {
	if a.stream != nil && a.link.gone() { // its goroutines are those of a process that is gone
		a.stream.Poison(errDead)
	}
	for i := len(a.closers) - 1; i >= 0; i-- {
		_ = a.closers[i]()
	}
	a.closers = nil
}

// shutdown is what services/agent does on SIGTERM.
func (a *agent) shutdown(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { a.stream.Poison(ctx.Err()) })()
	if a.store.Err() == nil {
		if err := a.manager.Load().Drain(ctx); err != nil {
			a.w.trace.add("agent %d: drain: %v", a.slot, err)
		}
	}
	if err := a.broker.Drain(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		a.w.trace.add("agent %d: drain uploads: %v", a.slot, err)
	}
	a.close()
}

// traceHandler puts log lines into the trace.
type traceHandler struct {
	t     *trace
	slot  int
	attrs []slog.Attr
}

func (h traceHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h traceHandler) WithGroup(string) slog.Handler            { return h }
func (h traceHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return traceHandler{h.t, h.slot, append(h.attrs[:len(h.attrs):len(h.attrs)], a...)}
}

func (h traceHandler) Handle(_ context.Context, r slog.Record) error {
	s := ""
	add := func(a slog.Attr) bool {
		s += " " + a.String()
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	h.t.add("agent %d: log %s %s%s", h.slot, r.Level, r.Message, s)
	return nil
}
