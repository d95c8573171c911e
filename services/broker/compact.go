package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/tiering"
)

// compaction is the broker's cleaner of compacted topics.
type compaction struct {
	cleaner *tiering.Compactor
	// unpacking bounds how many batches are unpacked at once to look for keys.
	unpacking chan struct{}
}

// maxUnpacking batches are unpacked at once, each to 128 MiB at most.
const maxUnpacking = 4

func (c *compaction) init(b *Broker) (err error) {
	c.unpacking = make(chan struct{}, maxUnpacking)
	c.cleaner, err = tiering.NewCompactor(tiering.CompactorOptions{Reader: b.opts.Reader, Bucket: b.opts.Bucket, Index: b.index,
		Incarnation: b.opts.Incarnation, Logger: b.opts.Logger, Now: b.opts.Now})
	return err
}

// compactState is what compactLoop remembers of a partition, so that it need
// not read rows of which it knows that they say nothing new.
type compactState struct {
	topic    *Topic    // whose config was used
	tiered   int64     // end of the tiered range that was looked at
	next     time.Time // when to look again all the same; zero: never
	failures int
}

// maxCompactPause bounds the time between tries of a partition whose cleaning
// fails.
const maxCompactPause = 10 * time.Minute

// compactLoop cleans compacted partitions, one after the other.
func (b *Broker) compactLoop() {
	defer b.wg.Done()
	every(b.ctx, b.opts.CompactInterval, func() {
		v := b.view.Load()
		for _, t := range v.sorted {
			if !compactable(t) {
				continue
			}
			for p := range led(v.parts[t.ID]) {
				if b.ctx.Err() != nil {
					return
				}
				b.compactPartition(b.ctx, p, t)
			}
		}
	})
}

// compactable tells whether a topic is cleaned: that needs its segments to be
// in the bucket.
func compactable(t *Topic) bool {
	return t.Config.CleanupPolicy.Compact && t.Config.RemoteStorage && !t.Config.RemoteCopyDisabled
}

// compactPartition cleans one partition if there may be something to clean.
func (b *Broker) compactPartition(ctx context.Context, p *Partition, t *Topic) {
	end, now := p.tiered.Load(), b.opts.Now()
	if p.compact == nil {
		if end == 0 {
			return
		}
		p.compact = &compactState{}
	}
	s := p.compact
	due := !s.next.IsZero() && !now.Before(s.next)
	if fresh := s.topic == t && s.tiered == end; p.gone.Load() || fresh && !due || s.failures > 0 && !due {
		return
	}
	c := t.Config
	res, err := b.compact.cleaner.Compact(ctx, tiering.CompactTarget{TP: p.tp, Epoch: p.LeaderEpoch(), LogStart: p.log.Offsets().Start,
		Config: tiering.CompactConfig{DeleteRetentionMs: c.DeleteRetentionMs, MinLagMs: c.MinCompactionLagMs, MaxLagMs: c.MaxCompactionLagMs,
			DirtyRatio: c.MinCleanableDirtyRatio, SegmentBytes: c.SegmentBytes, IndexInterval: int(max(c.IndexIntervalBytes, 1))},
		Replaced: p.replaceTiered})
	if err != nil {
		if ctx.Err() == nil {
			s.failures++
			s.next = now.Add(min(b.opts.CompactInterval<<min(s.failures, 10), maxCompactPause))
			b.opts.Logger.Warn("compaction failed", "topic", t.Name, "partition", p.tp.Partition, "err", err)
		}
		return
	}
	*s = compactState{topic: t, tiered: end, next: res.Next}
	if res.Passes > 0 {
		b.opts.Logger.Info("compacted", "topic", t.Name, "partition", p.tp.Partition, "passes", res.Passes,
			"segments", p.bucketCount.Load(), "bytes", p.bucketBytes.Load())
	}
}

// replaceTiered notes a rewritten segment and those it replaced.
func (p *Partition) replaceTiered(s tiering.Segment, replaced []tiering.Segment) {
	p.addTiered(s)
	for _, r := range replaced {
		p.bucketBytes.Add(-r.Size)
		p.bucketCount.Add(-1)
	}
}

// CompactStats returns the cleaner's figures.
func (b *Broker) CompactStats() tiering.CompactStats { return b.compact.cleaner.Stats() }

// leastOffsetsMessage is the least max.message.bytes of OffsetsTopic: one
// member's subscription and assignment must fit a record.
const leastOffsetsMessage = 1 << 20

// checkOffsetsTopic refuses configs that would take committed offsets from
// OffsetsTopic, or keep the coordinators from writing them.
func (b *Broker) checkOffsetsTopic(name string, configs map[string]string) error {
	if name != OffsetsTopic {
		return nil
	}
	c, err := b.opts.Meta.Defaults().Parse(configs)
	if err != nil {
		return err
	}
	refuse := func(key, want string) error {
		return fmt.Errorf("%w: %s of %s must be %s: consumer groups depend on it", metadata.ErrInvalidConfig, key, OffsetsTopic, want)
	}
	store, err := b.storeOf(c.Durability)
	if err != nil {
		return err
	}
	least := int64(min(leastOffsetsMessage, store.MaxBatch()))
	switch {
	case !c.CleanupPolicy.Compact || c.CleanupPolicy.Delete:
		return refuse("cleanup.policy", "compact")
	case c.MaxMessageBytes < least:
		return refuse("max.message.bytes", fmt.Sprintf("at least %d", least))
	case c.TimestampBeforeMaxMs < leastOffsetsLag || c.TimestampAfterMaxMs < leastOffsetsLag:
		return refuse("message.timestamp.before.max.ms and .after.max.ms", fmt.Sprintf("at least %d", leastOffsetsLag))
	}
	return nil
}

// leastOffsetsLag is by how much, in ms, the time of a record of OffsetsTopic
// must be allowed to differ from that of its append.
const leastOffsetsLag = 3_600_000
