package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/lock"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Partition is one partition that this agent leads. Its methods may be called
// from several goroutines.
type Partition struct {
	b       *Broker
	store   *storage.Store
	tp      ids.TopicPartition
	log     *storage.Log
	topic   atomic.Pointer[Topic]
	epoch   int32 // leader epoch
	bound   bool  // to this agent's disk: no other agent can lead it, also when this one's lease has ended
	older   atomic.Pointer[older]
	stale   atomic.Bool // index rows that older goes by were read before the partition was given
	olderMu lock.Mutex  // of those who drop what others have tiered
	// inherited is the idempotence state behind older: not that of the log, which has taken batches
	// since that may never become durable.
	inherited []segment.ProducerState
	// tiered is the end of what is in the bucket and indexed: the offset
	// behind the last tiered record, 0 when nothing is.
	tiered atomic.Int64
	// bucketBytes and lastUpload are for reports.
	bucketBytes atomic.Int64
	bucketCount atomic.Int64
	lastUpload  atomic.Int64  // ms since 1970
	compact     *compactState // of compactLoop; nil until it has looked
	gone        atomic.Bool
	leaving     atomic.Bool // its log is frozen: another agent is to lead it
	moved       atomic.Bool // another agent leads it
	mending     lock.Mutex
	mended      time.Time // when the bucket was searched last; under mending
	check       check
}

// ID names the partition.
func (p *Partition) ID() ids.TopicPartition { return p.tp }

// LeaderEpoch is the epoch that this agent stamps batches with.
func (p *Partition) LeaderEpoch() int32 { return p.epoch }

func (p *Partition) config() metadata.TopicConfig { return p.topic.Load().Config }

func (p *Partition) checkEpoch(epoch int32) error {
	switch {
	case p.gone.Load():
		return ErrUnknownTopic
	case p.moved.Load(), !p.bound && !p.b.live():
		return ErrNotLeader
	case epoch < 0 || epoch == p.LeaderEpoch():
		return nil
	case epoch < p.LeaderEpoch():
		return ErrFencedEpoch
	}
	return ErrUnknownEpoch
}

// Produce validates records, which must be one v2 batch, and appends them. done
// is called exactly once, when they are durable or have failed; it may be
// called before Produce returns, and from another goroutine, and must not
// block. records is stamped in place and may be reused when Produce has
// returned; room is where it lies (see Room), or nil. Produce waits for space until
// ctx ends (ErrThrottled).
func (p *Partition) Produce(ctx context.Context, records []byte, room *Room, done func(Produced)) {
	fail := func(err error) {
		done(Produced{BaseOffset: -1, LogAppendTime: -1, LogStart: p.log.Offsets().Start, Err: err})
	}
	h, err := p.validate(records)
	if err != nil {
		fail(err)
		return
	}
	opts := storage.AppendOptions{Epoch: p.LeaderEpoch(), LogAppendTime: p.config().TimestampType == metadata.LogAppendTime, Room: room}
	err = p.log.Append(ctx, records, h, opts, func(r storage.AppendResult) {
		out := Produced{BaseOffset: r.Base, LogAppendTime: r.LogAppendTime, LogStart: p.log.Offsets().Start}
		if r.Err != nil {
			out.BaseOffset, out.Err = -1, storageError(r.Err)
		}
		done(out)
	})
	if err != nil {
		if err = storageError(err); (errors.Is(err, ErrOutOfOrderSequence) || errors.Is(err, ErrDuplicateSequence)) && !p.b.live() {
			err = fmt.Errorf("%w: %w", ErrNotLeader, err) // who leads by now may have what is missing here
		}
		fail(err)
	}
}

// Room is memory for a request, from which the disk can take a large batch.
type Room = storage.Room

// MinRoom is the least size in bytes of a batch that gets a Room with default options.
const MinRoom = storage.DefaultDirectBytes

// Room returns memory for a request of size bytes, those from head on a batch of n
// bytes for Produce, or nil where such a batch is copied anyway.
func (p *Partition) Room(size, head, n int) *Room { return p.log.Room(size, head, n) }

func (p *Partition) validate(records []byte) (batch.Header, error) {
	if p.gone.Load() {
		return batch.Header{}, ErrUnknownTopic
	}
	cfg := p.config()
	if limit := min(int64(cfg.MaxMessageBytes), int64(p.store.MaxBatch())); int64(len(records)) > limit {
		return batch.Header{}, fmt.Errorf("%w: %d bytes, max.message.bytes is %d", ErrMessageTooLarge, len(records), limit)
	}
	h, err := batch.Validate(records)
	if err != nil {
		return h, err
	}
	if h.Transactional() {
		return h, ErrTransactionalUnsupported
	}
	if cfg.CleanupPolicy.Compact {
		if err := p.checkKeys(&h, records); err != nil {
			return h, err
		}
	}
	return h, p.checkTimestamps(&h, cfg)
}

// checkKeys refuses a record without a key, as Kafka does for compacted topics.
// Few compressed batches are unpacked at once, as each may become large.
func (p *Partition) checkKeys(h *batch.Header, records []byte) error {
	if h.Codec() != batch.CodecNone {
		p.b.compact.unpacking <- struct{}{}
		defer func() { <-p.b.compact.unpacking }()
	}
	null, err := batch.HasNullKey(records, batch.Limits{})
	if err == nil && null {
		err = fmt.Errorf("%w: topic %s is compacted and can't take a record without a key", batch.ErrInvalid, p.topic.Load().Name)
	}
	return err
}

// checkTimestamps applies message.timestamp.before.max.ms and .after.max.ms
// (KIP-937) to the batch's greatest and first timestamps.
func (p *Partition) checkTimestamps(h *batch.Header, cfg metadata.TopicConfig) error {
	if cfg.TimestampType == metadata.LogAppendTime {
		return nil
	}
	now := p.b.opts.Now().UnixMilli()
	if h.BaseTimestamp >= 0 && now-h.BaseTimestamp > cfg.TimestampBeforeMaxMs {
		return fmt.Errorf("%w: timestamp %d is more than message.timestamp.before.max.ms=%d old", ErrInvalidTimestamp, h.BaseTimestamp, cfg.TimestampBeforeMaxMs)
	}
	if h.MaxTimestamp-now > cfg.TimestampAfterMaxMs {
		return fmt.Errorf("%w: timestamp %d is more than message.timestamp.after.max.ms=%d ahead", ErrInvalidTimestamp, h.MaxTimestamp, cfg.TimestampAfterMaxMs)
	}
	return nil
}

// storageError maps storage's errors to the broker's.
func storageError(err error) error {
	for from, to := range map[error]error{
		storage.ErrBusy:                 ErrThrottled,
		storage.ErrClosed:               ErrNotLeader,
		storage.ErrTooLarge:             ErrMessageTooLarge,
		storage.ErrOutOfRange:           ErrOffsetOutOfRange,
		storage.ErrOutOfOrderSequence:   ErrOutOfOrderSequence,
		storage.ErrInvalidProducerEpoch: ErrInvalidProducerEpoch,
		storage.ErrDuplicateSequence:    ErrDuplicateSequence,
		storage.ErrFailed:               ErrStorage,
		storage.ErrDamaged:              ErrStorage,
	} {
		if errors.Is(err, from) {
			return fmt.Errorf("%w: %w", to, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrStorage, err)
}

// Read returns batches from o.Offset on. Hot data never blocks; tiered data may
// until ctx ends, which gives an empty result without error: the read goes on
// and the next one finds it in the cache.
func (p *Partition) Read(ctx context.Context, o ReadOptions) ReadResult {
	off := p.log.Offsets()
	res := ReadResult{HighWatermark: off.HighWatermark, LastStable: off.HighWatermark, LogStart: off.Start}
	if err := p.checkEpoch(o.CurrentEpoch); err != nil {
		res.Err = err
		return res
	}
	if o.LastFetchedEpoch >= 0 {
		if d := p.diverging(ctx, o); d != nil {
			res.Diverging = d
			return res
		}
	}
	if o.Offset < off.Start || o.Offset > off.HighWatermark {
		res.Err = ErrOffsetOutOfRange
		return res
	}
	if o.MaxBytes <= 0 && !o.MinOneBatch {
		return res
	}
	p.readFrom(ctx, o, &res)
	if len(res.Data) > 0 { // it may go beyond what was durable above
		res.HighWatermark = max(res.HighWatermark, p.log.Offsets().HighWatermark)
		res.LastStable = res.HighWatermark
	}
	return res
}

// readFrom reads from this disk or, what is not there, from the bucket. Where
// compaction has emptied the tiered range up to its end, it goes on behind it.
func (p *Partition) readFrom(ctx context.Context, o ReadOptions, res *ReadResult) {
	r, err := p.log.Read(ctx, o.Offset, o.MaxBytes, o.MinOneBatch)
	switch {
	case err == nil:
		res.Data, res.Release = r.Data, r.Release
		p.b.count(r.FromMemory, r.Size)
	case errors.Is(err, storage.ErrNotLocal) && p.older.Load().has(o.Offset):
		p.readOlder(ctx, o, res)
	case errors.Is(err, storage.ErrNotLocal),
		errors.Is(err, storage.ErrDamaged) && o.Offset < p.tiered.Load():
		if next := p.readTiered(ctx, o, res); next > o.Offset && next <= res.HighWatermark {
			o.Offset = next
			p.readFrom(ctx, o, res)
		}
	case errors.Is(err, storage.ErrBusy):
		// no buffer in time: an empty answer, the client asks again
	default:
		res.Err = storageError(err)
	}
}

// readTiered reads from the bucket. It returns a greater offset than the one
// asked for when there is nothing before that.
func (p *Partition) readTiered(ctx context.Context, o ReadOptions, res *ReadResult) (next int64) {
	if o.CacheOnly {
		res.Tiered, res.Indexed = true, o.Offset < p.tiered.Load()
		return o.Offset
	}
	r, err := p.b.opts.Reader.Read(ctx, p.tp, o.Offset, max(o.MaxBytes, 1), o.MinOneBatch)
	switch {
	case err == nil && r.Size == 0 && r.NextOffset > o.Offset:
		r.Release()
		return r.NextOffset
	case err == nil:
		res.Data, res.Release = r.Data, r.Release
		p.b.tieredReads.Add(1)
	case ctx.Err() != nil:
	case p.log.Offsets().Start > o.Offset:
		res.Err = ErrOffsetOutOfRange // retention moved the start meanwhile
	case (errors.Is(err, tiering.ErrNoSegment) || errors.Is(err, objstore.ErrNotFound)) && o.Offset < p.tiered.Load() && p.mend(ctx, o.Offset, o.Offset+1):
		// the client asks again
	default:
		p.b.opts.Logger.Warn("tiered read failed", "topic", p.topic.Load().Name, "partition", p.tp.Partition, "offset", o.Offset, "err", err)
		res.Err = fmt.Errorf("%w: %w", ErrStorage, err)
	}
	return o.Offset
}

// diverging tells a client that has records of a lineage this log does not
// have where to cut (KIP-595).
func (p *Partition) diverging(ctx context.Context, o ReadOptions) *EpochEnd {
	e, err := p.EpochEnd(ctx, o.LastFetchedEpoch)
	// An epoch that nobody knows any more is no reason to cut: what clients have is committed.
	if err != nil || e.Epoch < 0 || e.Epoch == o.LastFetchedEpoch && e.EndOffset >= o.Offset {
		return nil
	}
	return &e
}

// Watch wakes w after the high watermark or the log start moves, the partition
// fails or goes. The returned function ends it.
func (p *Partition) Watch(w Watcher) (cancel func()) { return p.log.Watch(w) }

// DeleteRecords moves the log start offset to before (-1: the high watermark)
// and returns the new one. It is durable when it returns; bytes go later.
func (p *Partition) DeleteRecords(ctx context.Context, before int64) (int64, error) {
	if c := p.config().CleanupPolicy; c.Compact && !c.Delete {
		return -1, fmt.Errorf("%w: records of a compacted topic are deleted by tombstones: its cleanup.policy has no delete", metadata.ErrPolicy)
	}
	off := p.log.Offsets()
	if before == -1 {
		before = off.HighWatermark
	}
	if before < 0 || before > off.HighWatermark {
		return -1, fmt.Errorf("%w: delete records before %d, high watermark is %d", ErrOffsetOutOfRange, before, off.HighWatermark)
	}
	if before > off.Start {
		if err := p.moveStart(ctx, before); err != nil {
			return -1, err
		}
		if err := p.b.opts.Meta.SetLogStart(ctx, p.tp, p.LeaderEpoch(), before); err != nil {
			return -1, err
		}
		p.log.SetStart(before)
		p.b.house.touch(p.tp)
		p.b.house.startMoved()
	}
	return max(before, off.Start), nil
}

// moveStart makes a move of the log start durable, as far as it is this agent's: the metadata store
// may forget it, or take it from one who leads no more.
func (p *Partition) moveStart(ctx context.Context, to int64) error {
	if p.b.opts.SetLogStart == nil {
		return nil
	}
	err := p.b.opts.SetLogStart(ctx, p.tp, p.LeaderEpoch(), to)
	switch {
	case p.leaving.Load() || p.moved.Load(): // it may come behind the release
		return ErrNotLeader
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ErrThrottled, err)
	}
	return storageError(err)
}

// EpochEnd returns the end offset of the largest epoch that is not greater
// than epoch (OffsetForLeaderEpoch, KIP-101/279); Epoch and EndOffset are -1
// when there is none.
func (p *Partition) EpochEnd(ctx context.Context, epoch int32) (EpochEnd, error) {
	if epoch < 0 {
		return EpochEnd{Epoch: -1, EndOffset: -1}, nil
	}
	off := p.log.Offsets()
	if epoch > p.LeaderEpoch() {
		return EpochEnd{Epoch: -1, EndOffset: -1}, nil
	}
	local, next := p.log.Epochs(), off.End
	for _, e := range slices.Backward(local) {
		if e.Epoch <= epoch {
			return EpochEnd{Epoch: e.Epoch, EndOffset: next}, nil
		}
		next = e.Start
	}
	found, next := p.older.Load().epochEnd(epoch, next)
	if found.Epoch >= 0 {
		return found, nil
	}
	if p.tiered.Load() == 0 {
		return EpochEnd{Epoch: -1, EndOffset: -1}, nil
	}
	return p.tieredEpochEnd(ctx, epoch, off.Start, next)
}

// tieredEpochEnd is EpochEnd of a log from start on where all that is behind the tiered range has greater epochs, from next on.
// Epochs whose rows the metadata store has forgotten are looked for in the bucket: a client that is told
// of a wrong end cuts what is committed.
func (p *Partition) tieredEpochEnd(ctx context.Context, epoch int32, start, next int64) (EpochEnd, error) {
	for try := 0; ; try++ {
		tiered := p.tiered.Load() // before: the index has all up to it
		to := min(tiered, next)
		if start >= to { // all of it is deleted
			to = 0
		}
		e, end, ok, err := p.b.opts.Reader.EpochEnd(ctx, p.tp, epoch, to)
		var gap *tiering.GapError
		switch {
		case err == nil && !ok:
			return EpochEnd{Epoch: -1, EndOffset: -1}, nil
		case err == nil && end >= min(tiered, next):
			return EpochEnd{Epoch: e, EndOffset: next}, nil
		case err == nil:
			return EpochEnd{Epoch: e, EndOffset: end}, nil
		case !errors.As(err, &gap) || try > 0 || !p.mend(ctx, max(gap.From, start), gap.To):
			return EpochEnd{}, fmt.Errorf("%w: %w", ErrStorage, err)
		}
	}
}

// timeLimit bounds one search through tiered segments.
const timeLimit = 30 * time.Second
