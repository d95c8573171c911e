package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// live tells whether this agent may answer as a leader without a put of its own.
func (b *Broker) live() bool { return b.opts.Live == nil || b.opts.Live() }

// older are the batches of a partition that earlier owners' streams have and
// that are not tiered. They are read from there until they are on this disk.
type older struct{ batches []wal.Placed }

// has tells whether one of the batches holds offset.
func (o *older) has(offset int64) bool {
	return o != nil && offset >= o.batches[0].Base && offset <= o.batches[len(o.batches)-1].Last
}

// epochEnd is that of the greatest epoch of the batches that is not greater than epoch, Epoch -1 when there is none.
// next is where greater epochs begin: behind the batches, and before those of them that have such.
func (o *older) epochEnd(epoch int32, next int64) (EpochEnd, int64) {
	if o != nil {
		for _, b := range slices.Backward(o.batches) {
			if b.Epoch <= epoch {
				return EpochEnd{Epoch: b.Epoch, EndOffset: next}, next
			}
			next = min(next, b.Base) // it may be on this disk by now
		}
	}
	return EpochEnd{Epoch: -1, EndOffset: -1}, next
}

// leadsAtOnce is how many partitions are prepared at the same time.
const leadsAtOnce = 16

// topicWait bounds the wait for the notice of a topic that metadata has already.
const topicWait = 5 * time.Second

var _ lead.Host = (*Broker)(nil)

// Lead begins to serve partitions. What is not tiered of them is read from the
// streams of earlier owners, and brought to this disk in the background.
func (b *Broker) Lead(ctx context.Context, leads []lead.Lead) error {
	parts := make([]*Partition, len(leads))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(leadsAtOnce)
	for i, l := range leads {
		g.Go(func() (err error) {
			parts[i], err = b.prepare(gctx, l)
			if errors.Is(err, ErrUnknownTopic) {
				b.opts.Logger.Info("a partition was given to this agent whose topic is deleted", "topic_id", l.TP.Topic.String(), "partition", l.TP.Partition)
				err = nil
			}
			if errors.Is(err, errNotThisDisk) {
				b.opts.Logger.Error("a partition of class local is not served: start with the data directory that wrote it, or give up with `cirrolog cluster abandon-disk` what was not tiered", "topic_id", l.TP.Topic.String(), "partition", l.TP.Partition, "err", err)
				err = nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		for _, p := range parts { // so that it can be tried again
			if p != nil && !p.bound {
				err = errors.Join(err, p.store.Remove(p.tp))
			}
		}
		return fmt.Errorf("lead partitions: %w", err)
	}
	b.show(parts)
	var behind []*Partition
	for _, p := range parts {
		if p != nil && p.older.Load() != nil {
			behind = append(behind, p)
		}
	}
	if len(behind) > 0 {
		b.wg.Go(func() { b.fetchOlder(behind) })
	}
	b.FindClosed()
	return nil
}

// prepare makes a partition and its log; nobody sees it yet.
func (b *Broker) prepare(ctx context.Context, l lead.Lead) (*Partition, error) {
	t, err := b.awaitTopic(ctx, l.TP.Topic)
	if err != nil {
		return nil, err
	}
	p := &Partition{b: b, tp: l.TP, epoch: l.Epoch, bound: b.onDisk(t.Config.Durability)}
	if p.store, err = b.storeOf(t.Config.Durability); err != nil {
		return nil, err
	}
	p.topic.Store(t)
	rows, stale, err := b.rowsToLead(ctx, l, t)
	if err != nil {
		return nil, err
	}
	begin := storage.Begin{Start: max(l.LogStart, b.opts.Meta.LogStart(l.TP)), End: l.End}
	switch {
	case !p.bound:
		rows, err = b.complete(ctx, l, t.Name, begin.Start, rows)
	case !l.Kept && l.Epoch > 0: // else the rest is on this disk, or there is none
		rows, err = b.completeAbandoned(ctx, l, begin.Start, rows)
	}
	if err != nil {
		return nil, err
	}
	if len(rows) > 0 {
		if rows, begin.Producers, err = b.lastProducers(ctx, l, begin.Start, rows); err != nil {
			return nil, err
		}
	}
	tiered := tieredEnd(rows)
	begin.End = max(begin.End, tiered)
	begin.Start = min(begin.Start, begin.End)
	left := notTiered(l.Batches, max(tiered, begin.Start))
	begin.Producers = producersAfter(begin.Producers, l.Batches)
	begin.Epochs = epochsOf(left)
	if p.bound {
		err = p.openLog(t, l, rows, begin)
	} else {
		p.log, err = p.store.CreateAt(l.TP, logConfig(t), begin)
	}
	if err != nil {
		return nil, err
	}
	if len(left) > 0 {
		p.older.Store(&older{left})
		p.stale.Store(stale)
		p.inherited = begin.Producers
	}
	for _, r := range rows {
		p.addTiered(r)
	}
	return p, nil
}

func (b *Broker) awaitTopic(ctx context.Context, id ids.TopicID) (*Topic, error) {
	for end := time.Now().Add(topicWait); ; {
		if t := b.TopicByID(id); t != nil {
			return t, nil
		}
		if b.opts.Meta.Snapshot().TopicByID(id) == nil || time.Now().After(end) {
			return nil, ErrUnknownTopic
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
}

// notTiered are the batches that reach beyond offset from.
func notTiered(batches []wal.Placed, from int64) []wal.Placed {
	i := 0
	for i < len(batches) && batches[i].Last < from {
		i++
	}
	return batches[i:]
}

// producersAfter adds what batches say to the idempotence state before them.
func producersAfter(state []segment.ProducerState, batches []wal.Placed) []segment.ProducerState {
	hs := make([]batch.Header, 0, len(batches))
	for _, b := range batches {
		hs = append(hs, batch.Header{BaseOffset: b.Base, LastOffsetDelta: int32(b.Last - b.Base), ProducerID: b.ProducerID,
			ProducerEpoch: b.ProducerEpoch, BaseSequence: b.BaseSequence, MaxTimestamp: b.MaxTimestamp, Attributes: b.Attributes})
	}
	return storage.AddProducers(state, hs, time.Now())
}

func epochsOf(batches []wal.Placed) (out []segment.EpochStart) {
	for _, b := range batches {
		if n := len(out); n == 0 || out[n-1].Epoch < b.Epoch {
			out = append(out, segment.EpochStart{Epoch: b.Epoch, Start: b.Base})
		}
	}
	return out
}

// show puts partitions into the view.
func (b *Broker) show(parts []*Partition) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loadedLocked()
	old := b.view.Load()
	v := newView(len(old.sorted))
	for _, t := range old.sorted {
		v.add(t, slices.Clone(old.parts[t.ID]))
	}
	for _, p := range parts {
		if p == nil {
			continue
		}
		known, ok := v.parts[p.tp.Topic]
		if !ok || int(p.tp.Partition) >= len(known) { // deleted meanwhile
			b.house.remove(p.tp)
			continue
		}
		p.topic.Store(v.byID[p.tp.Topic])
		known[p.tp.Partition] = p
	}
	b.view.Store(v)
	b.noteShown()
}

// readOlder reads from the streams of earlier owners.
func (p *Partition) readOlder(ctx context.Context, o ReadOptions, res *ReadResult) {
	if o.CacheOnly {
		res.Tiered = true
		return
	}
	some := p.older.Load().from(o.Offset, o.MaxBytes, o.MinOneBatch)
	if len(some) == 0 {
		return
	}
	data, err := wal.ReadBatches(ctx, p.b.opts.Bucket, some[0].Stream, some[0].Seq, entries(some))
	switch {
	case err == nil:
		res.Data = [][]byte{data}
		p.b.tieredReads.Add(1)
	case ctx.Err() != nil:
	case errors.Is(err, objstore.ErrNotFound) && p.dropOlder(ctx) == nil: // the client asks again
	default:
		p.b.opts.Logger.Warn("read from the stream of an earlier owner failed", "topic", p.topic.Load().Name, "partition", p.tp.Partition, "offset", o.Offset, "err", err)
		res.Err = fmt.Errorf("%w: %w", ErrStorage, err)
	}
}

// from returns the batches from offset on that lie next to each other in one object,
// of at most limit bytes; with minOne the first may be larger.
func (o *older) from(offset int64, limit int, minOne bool) []wal.Placed {
	if o == nil {
		return nil
	}
	i, _ := slices.BinarySearchFunc(o.batches, offset, func(b wal.Placed, offset int64) int {
		if b.Last < offset {
			return -1
		}
		return 1
	})
	n, size := i, int64(0)
	for n < len(o.batches) && (n == i || next(o.batches[n-1], o.batches[n])) && (n == i && minOne || size+o.batches[n].Length <= int64(limit)) {
		size += o.batches[n].Length
		n++
	}
	return o.batches[i:n]
}

// next tells that b lies behind a in the same object.
func next(a, b wal.Placed) bool {
	return a.Stream == b.Stream && a.Seq == b.Seq && a.Pos+a.Length == b.Pos
}

func entries(in []wal.Placed) []wal.Batch {
	out := make([]wal.Batch, len(in))
	for i, b := range in {
		out[i] = b.Batch
	}
	return out
}

// fetchers is how many partitions are fetched from older streams at the same time.
const fetchers = 8

// fetchOlder brings what the streams of earlier owners have to this disk, where it is tiered from.
func (b *Broker) fetchOlder(parts []*Partition) {
	began := b.opts.Now()
	b.refreshAll(parts)
	shared := newSpans(b.opts.Bucket, parts)
	g, ctx := errgroup.WithContext(b.ctx)
	g.SetLimit(fetchers)
	for _, p := range parts {
		g.Go(func() error {
			for try := 0; ; try++ {
				err := p.fetchOlder(ctx, shared)
				if err == nil || ctx.Err() != nil || p.gone.Load() || p.moved.Load() {
					return ctx.Err()
				}
				if errors.Is(err, objstore.ErrNotFound) {
					err = errors.Join(err, p.dropOlder(ctx))
				}
				b.opts.Logger.Warn("could not fetch what earlier owners have not tiered; trying again", "topic", p.topic.Load().Name, "partition", p.tp.Partition, "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(min(100*time.Millisecond<<min(try, 10), 10*time.Second)):
				}
			}
		})
	}
	if g.Wait() == nil {
		b.opts.Logger.Info("fetched what earlier owners have not tiered", "partitions", len(parts), "took", b.opts.Now().Sub(began).Round(time.Millisecond))
	}
	b.FindClosed()
}

// fetchPiece is how much is fetched before it is put into a segment, at least.
const fetchPiece = 64 << 20

// fetchRun bounds what is fetched at once.
const fetchRun = 16 << 20

// dropOlder gives up what an earlier owner has tiered in the very moment in which this agent took
// over: streams have it no longer, the index has it, or the bucket alone where the metadata store has forgotten it.
func (p *Partition) dropOlder(ctx context.Context) error {
	p.olderMu.Lock()
	defer p.olderMu.Unlock()
	o := p.older.Load()
	if o == nil {
		return nil
	}
	from := o.batches[0].Base
	rows, err := p.b.tieredRows(ctx, p.tp, from)
	if err == nil && coveredTo(rows, from) <= from && p.mend(ctx, from, o.batches[len(o.batches)-1].Last+1) {
		rows, err = p.b.tieredRows(ctx, p.tp, from)
	}
	if err != nil {
		return err
	}
	to := max(coveredTo(rows, from), p.b.opts.Meta.LogStart(p.tp))
	for _, r := range rows {
		if r.Last >= p.tiered.Load() && r.Last < to {
			p.addTiered(r)
		}
	}
	if p.keepOlder(o, to) == o {
		return fmt.Errorf("offset %d of %s is neither indexed nor in the streams of earlier owners", from, p.tp)
	}
	return nil
}

// keepOlder gives up the batches before offset from, with olderMu held, and returns what is left; nil: nothing.
func (p *Partition) keepOlder(o *older, from int64) *older {
	left := notTiered(o.batches, from)
	switch len(left) {
	case len(o.batches):
		return o
	case 0:
		o = nil
	default:
		o = &older{left}
	}
	p.older.Store(o)
	if o == nil {
		p.log.Wake()
	}
	return o
}

func (p *Partition) fetchOlder(ctx context.Context, shared *spans) error {
	o, err := p.refreshOlder(ctx)
	if err != nil || o == nil {
		return err
	}
	var batches [][]byte
	size := 0
	for at := 0; at < len(o.batches); {
		some := o.from(o.batches[at].Base, fetchRun, true)
		data, err := shared.read(ctx, some)
		if err != nil {
			return err
		}
		for _, s := range some {
			batches = append(batches, data[:s.Length:s.Length])
			data = data[s.Length:]
			size += int(s.Length)
		}
		if at += len(some); size >= fetchPiece && at < len(o.batches) {
			if err := p.log.Install(batches, p.inherited); err != nil {
				return err
			}
			o = &older{o.batches[at:]}
			p.older.Store(o)
			batches, size, at = nil, 0, 0
		}
	}
	if err := p.log.Install(batches, p.inherited); err != nil {
		return err
	}
	p.older.Store(nil)
	p.log.Wake()
	return nil
}
