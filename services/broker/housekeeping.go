package broker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
)

// TieredReader reads segments that are in the bucket.
type TieredReader interface {
	// Read returns whole batches from the one that holds offset.
	Read(ctx context.Context, tp ids.TopicPartition, offset int64, maxBytes int, minOne bool) (tiering.ReadResult, error)
	// OffsetForTimestamp finds the first record at or after ts, from offset from on.
	OffsetForTimestamp(ctx context.Context, tp ids.TopicPartition, ts, from int64) (tiering.TimeOffset, bool, error)
	// EpochEnd returns the end of the largest tiered epoch not above epoch.
	EpochEnd(ctx context.Context, tp ids.TopicPartition, epoch int32) (found int32, end int64, ok bool, err error)
	// MaxTimestamp returns the greatest timestamp from offset from on, -1 when there is none.
	MaxTimestamp(ctx context.Context, tp ids.TopicPartition, from int64) (int64, error)
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

// KickRetention asks for a retention pass over all partitions now.
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
			b.relieveDisk()
			continue
		case <-b.house.kick:
		}
		touched, removed, all := b.house.take()
		for tp := range removed {
			if err := b.opts.Store.Remove(tp); err != nil {
				b.opts.Logger.Warn("remove partition", "topic_id", tp.Topic.String(), "partition", tp.Partition, "err", err)
			}
		}
		if b.retain(touched, due || all) {
			select {
			case b.house.publish <- struct{}{}:
			default:
			}
		}
		b.relieveDisk()
	}
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

// retain applies retention to the touched partitions, or to all. It reports
// whether log starts are to be published: one has moved, or a former try may
// have failed.
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
		for _, t := range v.sorted {
			for _, p := range v.parts[t.ID] {
				p.log.RollIfOld(false)
				each(p)
			}
		}
	} else {
		for tp := range touched {
			if parts := v.parts[tp.Topic]; int(tp.Partition) < len(parts) {
				each(parts[tp.Partition])
			}
		}
	}
	return moved || all
}

// retainPartition moves the log start and drops local segments as the topic's
// retention says. The log start is durable before it is visible, and visible
// before anything goes.
func (b *Broker) retainPartition(ctx context.Context, p *Partition) (moved bool, err error) {
	off := p.log.Offsets()
	state := tiering.RetentionState{Now: b.opts.Now().UnixMilli(), LogStart: off.Start}
	if state.Tiered, err = b.tieredRows(ctx, p.tp, off.Start); err != nil {
		return false, err
	}
	for _, s := range p.log.Segments() {
		state.Local = append(state.Local, tiering.LocalRange{Base: s.Base, Last: s.Last, Bytes: s.Bytes, MaxTimestamp: s.MaxTimestamp,
			Modified: s.ClosedAt.UnixMilli(), Active: !s.Closed})
	}
	c := p.config()
	plan := tiering.Retain(tiering.RetentionConfig{RetentionMs: c.RetentionMs, RetentionBytes: c.RetentionBytes,
		LocalRetentionMs: c.LocalRetentionMs, LocalRetentionBytes: c.LocalRetentionBytes, Remote: c.RemoteStorage}, state)
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
	drop := map[int64]bool{}
	for _, base := range plan.DropLocal {
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
	return moved, nil
}

// tieredRows reads all index rows of a partition from an offset on.
func (b *Broker) tieredRows(ctx context.Context, tp ids.TopicPartition, from int64) ([]tiering.Segment, error) {
	var out []tiering.Segment
	for {
		rows, err := b.index.Segments(ctx, tp, from, segmentPage)
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

// relieveDisk drops tiered local segments, oldest closed first, when the disk
// budget is nearly used up: local.retention is a wish, the budget is a bound.
func (b *Broker) relieveDisk() {
	budget := b.opts.Store.DiskBudget()
	if budget == 0 || b.opts.Store.DiskUsed() < budget/10*8 {
		return
	}
	v := b.view.Load()
	for b.opts.Store.DiskUsed() > budget/10*7 {
		var oldest *Partition
		var last int64
		var at time.Time
		for _, parts := range v.parts {
			for _, p := range parts {
				segs := p.log.Segments()
				if len(segs) > 0 && segs[0].Closed && segs[0].Tiered && (oldest == nil || segs[0].ClosedAt.Before(at)) {
					oldest, last, at = p, segs[0].Last, segs[0].ClosedAt
				}
			}
		}
		if oldest == nil {
			b.closeLargest(v)
			return
		}
		oldest.log.DropLocal(last + 1)
	}
}

// closeLargest closes the largest active segment early when nothing is closed
// that the uploader could take: else producers would wait for ever once all
// the budget is in active segments.
func (b *Broker) closeLargest(v *view) {
	var largest *Partition
	var size int64
	for id, parts := range v.parts {
		t := b.TopicByID(id)
		if t == nil || !t.Config.RemoteStorage || t.Config.RemoteCopyDisabled {
			continue
		}
		for _, p := range parts {
			for _, s := range p.log.Segments() {
				if s.Closed && !s.Tiered {
					return
				}
				if !s.Closed && s.Bytes > size {
					largest, size = p, s.Bytes
				}
			}
		}
	}
	if largest != nil {
		largest.log.RollIfOld(true)
	}
}

// Sweep runs one sweep of the bucket.
func (b *Broker) Sweep(ctx context.Context, grace time.Duration, dryRun bool) (tiering.SweepReport, error) {
	if err := b.opts.Meta.CheckOwner(ctx); err != nil {
		return tiering.SweepReport{}, err
	}
	proofs, err := b.proofs.read(ctx, b.opts.Meta, b.opts.Now(), grace)
	if err != nil {
		return tiering.SweepReport{}, err
	}
	return tiering.Sweep(ctx, tiering.SweepOptions{Bucket: b.opts.Bucket, Index: b.index, Proofs: proofs, Grace: grace, DryRun: dryRun,
		Now: b.opts.Now, Logger: b.opts.Logger})
}

func (b *Broker) sweepLoop() {
	defer b.wg.Done()
	tick := time.NewTicker(b.opts.SweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-tick.C:
		}
		r, err := b.Sweep(b.ctx, b.opts.SweepGrace, false)
		if err != nil && b.ctx.Err() == nil {
			b.opts.Logger.Warn("sweep failed", "err", err)
			continue
		}
		if r.Deleted.Objects > 0 {
			b.opts.Logger.Info("swept bucket", "objects", r.Deleted.Objects, "bytes", r.Deleted.Bytes)
		}
	}
}
