package broker

import (
	"context"
	"fmt"
	"hash/crc32"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering"
)

// TieredReader reads segments that are in the bucket.
type TieredReader interface {
	// Read returns whole batches from the one that holds offset.
	Read(ctx context.Context, tp ids.TopicPartition, offset int64, maxBytes int, minOne bool) (tiering.ReadResult, error)
	// OffsetForTimestamp finds the first record at or after ts, from offset from on.
	OffsetForTimestamp(ctx context.Context, tp ids.TopicPartition, ts, from int64) (tiering.TimeOffset, bool, error)
	// EpochEnd returns the end of the largest tiered epoch not above epoch; the index should reach to offset to.
	EpochEnd(ctx context.Context, tp ids.TopicPartition, epoch int32, to int64) (found int32, end int64, ok bool, err error)
	// MaxTimestamp returns the greatest timestamp from offset from on, -1 when there is none.
	MaxTimestamp(ctx context.Context, tp ids.TopicPartition, from int64) (int64, error)
	// Producers returns the idempotence state at the end of a segment.
	Producers(ctx context.Context, s tiering.Segment) ([]segment.ProducerState, error)
	// What the cleaner of compacted topics reads with.
	tiering.Scanner
}

// housekeeper collects what the background loop has to look at.
type housekeeper struct {
	mu      sync.Mutex
	touched map[ids.TopicPartition]bool
	removed map[ids.TopicPartition]bool
	all     bool
	kick    chan struct{}
	publish chan struct{} // log starts have moved
}

func (h *housekeeper) init() {
	h.touched, h.removed = map[ids.TopicPartition]bool{}, map[ids.TopicPartition]bool{}
	h.kick, h.publish = make(chan struct{}, 1), make(chan struct{}, 1)
}

func (h *housekeeper) note(f func()) {
	h.mu.Lock()
	f()
	h.mu.Unlock()
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

func (h *housekeeper) touch(tp ids.TopicPartition)  { h.note(func() { h.touched[tp] = true }) }
func (h *housekeeper) remove(tp ids.TopicPartition) { h.note(func() { h.removed[tp] = true }) }

func (h *housekeeper) take() (touched, removed map[ids.TopicPartition]bool, all bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	touched, removed, all = h.touched, h.removed, h.all
	h.touched, h.removed, h.all = map[ids.TopicPartition]bool{}, map[ids.TopicPartition]bool{}, false
	return touched, removed, all
}

// startMoved asks for the log starts to be put into the bucket.
func (h *housekeeper) startMoved() {
	select {
	case h.publish <- struct{}{}:
	default:
	}
}

// KickRetention asks for a retention pass now, as if its interval were over.
func (b *Broker) KickRetention() { b.house.note(func() { b.house.all = true }) }

// housekeepLoop removes deleted partitions, rolls old segments and applies retention.
func (b *Broker) housekeepLoop() {
	defer b.wg.Done()
	tick := time.NewTicker(b.opts.RetentionInterval)
	defer tick.Stop()
	pressure := time.NewTicker(time.Second)
	defer pressure.Stop()
	for {
		due := false
		select {
		case <-b.ctx.Done():
			return
		case <-tick.C:
			due = true
		case <-pressure.C:
			b.relieveDisks()
			continue
		case <-b.house.kick:
		}
		touched, removed, all := b.house.take()
		for tp := range removed {
			if err := b.remove(tp); err != nil {
				b.opts.Logger.Warn("remove partition", "topic_id", tp.Topic.String(), "partition", tp.Partition, "err", err)
			}
		}
		if b.retain(touched, due || all) {
			b.house.startMoved()
		}
		b.relieveDisks()
	}
}

// every calls f each d, until ctx ends.
func every(ctx context.Context, d time.Duration, f func()) {
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

// keptLoop lets the stream be trimmed of what others have tiered. It is apart from the housekeeping: who waits for
// room in the stream is not to wait for that, too.
func (b *Broker) keptLoop() {
	defer b.wg.Done()
	every(b.ctx, time.Second, b.dropKept)
}

// publishLoop puts the log starts into the bucket. It is apart from the
// housekeeping, which must go on while the bucket hangs.
func (b *Broker) publishLoop() {
	defer b.wg.Done()
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-b.house.publish:
		}
		if err := b.opts.Meta.PublishLogStarts(b.ctx); err != nil && b.ctx.Err() == nil {
			b.opts.Logger.Warn("publish log starts", "err", err)
		}
	}
}

// retain applies retention to the touched partitions, or to all that are due. It
// reports whether log starts are to be published: one has moved, or a former try
// may have failed.
func (b *Broker) retain(touched map[ids.TopicPartition]bool, all bool) (publish bool) {
	v := b.view.Load()
	moved := false
	each := func(p *Partition) {
		if b.ctx.Err() != nil {
			return
		}
		m, err := b.retainPartition(b.ctx, p)
		if err != nil && b.ctx.Err() == nil {
			b.opts.Logger.Warn("retention failed", "topic", p.topic.Load().Name, "partition", p.tp.Partition, "err", err)
		}
		moved = moved || m
	}
	if all {
		b.waiting.find(v)
		now, rolls := b.opts.Now().UnixMilli(), maxWaiting-b.waiting.len()
		for _, t := range v.sorted {
			for p := range led(v.parts[t.ID]) {
				if !p.check.due(p, now) && !touched[p.tp] {
					continue
				}
				if rolls > 0 || !uploads(t) {
					if p.log.RollIfOld(false) {
						rolls--
					}
				}
				each(p)
			}
		}
	} else {
		for tp := range touched {
			if parts := v.parts[tp.Topic]; int(tp.Partition) < len(parts) && parts[tp.Partition] != nil {
				each(parts[tp.Partition])
			}
		}
	}
	return moved || all
}

// maxWaiting is how many partitions may wait for the uploader before no more
// segments are closed because of their age: a hundred thousand partitions that
// were written at the same time are not to become as many objects at once.
const maxWaiting = 1000

// recheck is after what time retention looks at a partition again at the
// latest, whatever it expects; half of it to once and a half, by partition.
const recheck = time.Hour

// check is what retention remembers of a partition, so that it looks only at
// those where something may have changed. The housekeeping's goroutine has it.
type check struct {
	at    int64 // ms since 1970, when to look again
	end   int64 // of the log, when it was looked at
	topic *Topic
	stir  atomic.Bool // a segment was closed meanwhile

	// What the last reading of the rows has shown: with this log start and topic nothing of the bucket goes until then.
	rowsStart, rowsUntil int64
	rowsTopic            *Topic
}

// rowsRead notes what was read of the index.
func (c *check) rowsRead(p *Partition, cfg tiering.RetentionConfig, state *tiering.RetentionState) {
	c.rowsStart, c.rowsTopic = state.LogStart, c.topic
	c.rowsUntil = min(tiering.TieredUntil(cfg, *state), state.Now+recheckAfter(p.tp))
}

// sparesRows tells that the rows need not be read: they are most of what retention costs.
func (c *check) sparesRows(cfg tiering.RetentionConfig, state *tiering.RetentionState) bool {
	return c.rowsTopic == c.topic && c.rowsStart == state.LogStart && state.Now <= c.rowsUntil && tiering.KeepsLocal(cfg, *state)
}

// recheckAfter spreads recheck over the partitions.
func recheckAfter(tp ids.TopicPartition) int64 {
	jitter := int64(crc32.ChecksumIEEE(fmt.Appendf(nil, "%s", tp))) % recheck.Milliseconds()
	return recheck.Milliseconds()/2 + jitter
}

// due tells whether retention may have something to do.
func (c *check) due(p *Partition, now int64) bool {
	return now >= c.at || c.end != p.log.End() || c.topic != p.topic.Load() || c.stir.Load()
}

// next finds out when time alone makes retention look again: when a segment
// grows too old for one of the limits, or is to be closed. What is too old
// already waits for something else, and is looked at each time.
func (c *check) next(p *Partition, state *tiering.RetentionState, cfg *metadata.TopicConfig, began int64) {
	c.at = state.Now + recheckAfter(p.tp)
	if c.rowsTopic == c.topic && c.rowsUntil >= 0 { // whether they were read this time or not
		c.at = min(c.at, c.rowsUntil+1)
	}
	consider := func(ts, limit int64) {
		if limit >= 0 {
			c.at = min(c.at, max(ts+limit+1, 0))
		}
	}
	known := func(ts, otherwise int64) int64 {
		if ts >= 0 {
			return ts
		}
		return otherwise
	}
	for i := range state.Tiered {
		consider(known(state.Tiered[i].MaxTimestamp, state.Tiered[i].Uploaded), cfg.RetentionMs)
	}
	for _, l := range state.Local {
		ts := known(l.MaxTimestamp, l.Modified)
		consider(ts, cfg.RetentionMs)
		if l.Active {
			consider(began, logConfig(c.topic).SegmentAge.Milliseconds())
		} else if cfg.RemoteStorage {
			consider(ts, cfg.LocalRetentionMs)
		}
	}
}

// retainPartition moves the log start and drops local segments as the topic's
// retention says. The log start is durable before it is visible, and visible
// before anything goes.
func (b *Broker) retainPartition(ctx context.Context, p *Partition) (moved bool, err error) {
	p.check.stir.Store(false)
	p.check.at, p.check.end, p.check.topic = 0, p.log.End(), p.topic.Load()
	c := p.check.topic.Config
	off := p.log.Offsets()
	state := tiering.RetentionState{Now: b.opts.Now().UnixMilli(), LogStart: off.Start}
	cfg := tiering.RetentionConfig{RetentionMs: c.RetentionMs, RetentionBytes: c.RetentionBytes,
		LocalRetentionMs: c.LocalRetentionMs, LocalRetentionBytes: c.LocalRetentionBytes, Remote: c.RemoteStorage}
	began := int64(0)
	for _, s := range p.log.Segments() {
		began = s.Began.UnixMilli()
		state.Local = append(state.Local, tiering.LocalRange{Base: s.Base, Last: s.Last, Bytes: s.Bytes, MaxTimestamp: s.MaxTimestamp,
			Modified: s.ClosedAt.UnixMilli(), Active: !s.Closed})
	}
	if p.bucketCount.Load() > 0 {
		if p.check.sparesRows(cfg, &state) {
			p.check.next(p, &state, &c, began)
			return false, nil
		}
		if state.Tiered, err = b.tieredRows(ctx, p.tp, off.Start); err != nil {
			return false, err
		}
		p.check.rowsRead(p, cfg, &state)
	}
	plan := tiering.Retain(cfg, state)
	if plan.Roll {
		p.log.RollIfOld(true) // it goes with one of the next passes
	}
	if plan.LogStart > off.Start {
		plan.LogStart = min(plan.LogStart, off.HighWatermark)
		if err := b.opts.Meta.SetLogStart(ctx, p.tp, p.LeaderEpoch(), plan.LogStart); err != nil {
			return false, fmt.Errorf("move log start to %d: %w", plan.LogStart, err)
		}
		p.log.SetStart(plan.LogStart)
		moved = true
	}
	dropped := b.dropLocal(p, plan.DropLocal)
	if !moved && !dropped && !plan.Roll {
		p.check.next(p, &state, &c, began)
	}
	return moved, nil
}

// dropLocal drops the closed segments at the front whose bases are listed.
func (b *Broker) dropLocal(p *Partition, bases []int64) bool {
	if len(bases) == 0 {
		return false
	}
	drop := map[int64]bool{}
	for _, base := range bases {
		drop[base] = true
	}
	before := int64(-1)
	for _, s := range p.log.Segments() {
		if !drop[s.Base] || !s.Closed {
			break
		}
		before = s.Last + 1
	}
	if before > 0 {
		p.log.DropLocal(before)
	}
	return true
}

// tieredRows reads all index rows of a partition from an offset on.
func (b *Broker) tieredRows(ctx context.Context, tp ids.TopicPartition, from int64) ([]tiering.Segment, error) {
	return tieredRows(ctx, b.index, tp, from)
}

func tieredRows(ctx context.Context, index tiering.Index, tp ids.TopicPartition, from int64) ([]tiering.Segment, error) {
	var out []tiering.Segment
	for {
		rows, err := index.Segments(ctx, tp, from, segmentPage)
		if err != nil {
			return nil, fmt.Errorf("read segment index: %w", err)
		}
		out = append(out, rows...)
		if len(rows) < segmentPage {
			return out, nil
		}
		from = rows[len(rows)-1].Last + 1
	}
}

func (b *Broker) relieveDisks() {
	for _, s := range b.stores() {
		b.relieveDisk(s)
	}
}

// relieveDisk drops tiered segments of a store, oldest closed first, when its disk
// budget is nearly used up: local.retention is a wish, the budget is a bound.
func (b *Broker) relieveDisk(store *storage.Store) {
	budget := store.DiskBudget()
	if budget == 0 || store.DiskUsed() < budget/10*8 {
		return
	}
	type candidate struct {
		p    *Partition
		last int64
		at   time.Time
	}
	var all []candidate
	v := b.view.Load()
	for _, parts := range v.parts {
		for p := range led(parts) {
			if p.store != store {
				continue
			}
			for _, s := range p.log.Segments() {
				if !s.Closed || !s.Tiered {
					break
				}
				all = append(all, candidate{p, s.Last, s.ClosedAt})
			}
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].at.Before(all[j].at) })
	for _, c := range all {
		if store.DiskUsed() <= budget/10*7 {
			return
		}
		c.p.log.DropLocal(c.last + 1)
	}
	if store.DiskUsed() > budget/10*7 {
		b.closeLargest(v, store, budget/20)
	}
}

// closeLargest closes the largest active segments of a store early, of so many bytes
// together, when nothing is closed that the uploader could take: else producers
// would wait for ever once all the budget is in active segments.
func (b *Broker) closeLargest(v *view, store *storage.Store, enough int64) {
	if b.waiting.len() > 0 {
		return
	}
	type candidate struct {
		p    *Partition
		size int64
	}
	var all []candidate
	for id, parts := range v.parts {
		if t := b.TopicByID(id); t == nil || !uploads(t) {
			continue
		}
		for p := range led(parts) {
			if p.store != store {
				continue
			}
			for _, s := range p.log.Segments() {
				if s.Closed && !s.Tiered {
					return
				}
				if !s.Closed {
					all = append(all, candidate{p, s.Bytes})
				}
			}
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].size > all[j].size })
	for _, c := range all {
		if enough <= 0 {
			return
		}
		c.p.log.RollIfOld(true)
		enough -= c.size
	}
}

func (b *Broker) sweepLoop() {
	defer b.wg.Done()
	every(b.ctx, b.opts.SweepInterval, func() {
		b.sweepStreams()
		b.sweepSegments()
	})
}

// sweepSegments sweeps data/ for all agents, when no other does: the one that has done it keeps the right to, as only it
// knows for how long log starts have been known.
func (b *Broker) sweepSegments() {
	mine, err := b.opts.Meta.TryDuty(b.ctx, metadata.SweepSegments, 3*b.opts.SweepInterval)
	var r tiering.SweepReport
	if mine {
		r, err = b.sweeper.Segments(b.ctx, b.opts.SweepGrace, false)
	}
	if err != nil && b.ctx.Err() == nil {
		b.opts.Logger.Warn("sweep failed", "err", err)
		return
	}
	if r.Deleted.Objects > 0 {
		b.opts.Logger.Info("swept bucket", "objects", r.Deleted.Objects, "bytes", r.Deleted.Bytes)
	}
}
