package storage

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"time"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// AppendOptions say how a batch is stamped.
type AppendOptions struct {
	// Epoch is the leader epoch.
	Epoch int32
	// LogAppendTime stamps the batch with the store's clock
	// (message.timestamp.type=LogAppendTime).
	LogAppendTime bool
	// Room, when not nil, is where the batch is. Append may move it in there.
	Room *Room
}

// Append gives b, one validated batch, the next offsets and puts it into the
// stream. It stamps b in place and copies it, but when it is in a Room. done is called exactly once:
// when the batch is durable, or has failed for good. It is called without
// locks, from any goroutine, and must not block. A returned error means that
// nothing was appended and done is not called. Append waits for memory, stream
// or disk space until ctx ends (ErrBusy).
func (l *Log) Append(ctx context.Context, b []byte, h batch.Header, opts AppendOptions, done func(AppendResult)) error {
	began := time.Now()
	err := l.appendBatch(ctx, b, h, opts, done)
	l.store.waits.note(time.Since(began))
	return err
}

func (l *Log) appendBatch(ctx context.Context, b []byte, h batch.Header, opts AppendOptions, done func(AppendResult)) error {
	if err := l.store.reserve(ctx, int64(len(b))); err != nil {
		return err
	}
	taken := false
	defer func() {
		if !taken { // an error, or a duplicate
			l.store.free(int64(len(b)))
		}
	}()
	l.appendMu.Lock()
	defer l.unlockAppend()
	dup, err := l.producers.check(&h)
	if err != nil {
		return err
	}
	if dup != nil {
		return l.duplicate(dup, opts, done)
	}
	now := l.store.opts.Now()
	r := &record{log: l, size: int32(len(b)), unwritten: int32(len(b)), done: done}
	r.result = AppendResult{LogAppendTime: -1}
	if opts.LogAppendTime {
		r.result.LogAppendTime = now.UnixMilli()
		batch.StampLogAppendTime(b, r.result.LogAppendTime)
	}
	base := l.next.Load()
	if base > math.MaxInt64-int64(h.LastOffsetDelta)-1 {
		return fmt.Errorf("%w: offsets are used up", ErrOutOfRange)
	}
	batch.Stamp(b, base, opts.Epoch)
	if h, err = batch.Parse(b); err != nil {
		return err
	}
	r.Entry = wal.Entry{TP: l.tp, Kind: wal.KindBatch, Epoch: opts.Epoch, Base: base, Last: h.LastOffset(), Data: b, Owner: r}
	r.result.Base, r.result.Last, r.maxTS, r.crc = base, r.Last, h.MaxTimestamp, h.CRC
	for again := true; again; {
		rolled, err := l.place(r, now)
		if err != nil {
			return err
		}
		if rolled { // now: the room that this append may wait for is there when the segment is tiered
			l.store.enqueue(l)
		}
		if again, err = l.enterOrGiveWay(ctx, r, opts.Room); again || err != nil {
			l.unplace()
		}
		if err != nil {
			return appendError(err)
		}
	}
	l.settle(r, h, opts.Room.batch(b), now)
	taken = true
	return nil
}

// enter puts the record into the stream: the batch, or a reference to it.
func (l *Log) enter(ctx context.Context, r *record, room *Room) error {
	if r.direct != nil {
		if err := l.prepareDirect(ctx, r, room); err != nil {
			return err
		}
	}
	d := r.direct
	if d == nil {
		return l.store.stream.Append(ctx, &r.Entry)
	}
	if err := l.store.stream.Append(ctx, &d.entry); err != nil {
		l.cancelDirect(r)
		r.Chunk.Release()
		return err
	}
	l.directs.add(d)
	return nil
}

// duplicate answers a retry: when the original is durable.
func (l *Log) duplicate(dup *segment.BatchRef, opts AppendOptions, done func(AppendResult)) error {
	res := AppendResult{Base: dup.BaseOffset, Last: dup.LastOffset, LogAppendTime: -1, Duplicate: true}
	if opts.LogAppendTime {
		res.LogAppendTime = dup.Timestamp
	}
	l.mu.Lock()
	if dup.LastOffset < l.hw {
		l.mu.Unlock()
		done(res)
		return nil
	}
	for _, r := range l.tail {
		if r.Base == dup.BaseOffset {
			first := r.done
			r.done = func(a AppendResult) {
				if first != nil {
					first(a)
				}
				res.Err = a.Err
				done(res)
			}
			l.mu.Unlock()
			return nil
		}
	}
	l.mu.Unlock()
	return fmt.Errorf("%w: the original of a duplicate at offset %d is gone", ErrFailed, dup.BaseOffset)
}

func appendError(err error) error {
	switch {
	case errors.Is(err, wal.ErrTooLarge):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, wal.ErrClosed):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return fmt.Errorf("%w: %w", ErrFailed, err)
}

// place puts the record at the end of the tail, before the stream can announce
// it, rolling the segment when it is full. l.appendMu is held.
func (l *Log) place(r *record, now time.Time) (rolled bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return false, l.err
	}
	if l.closed || l.frozen {
		return false, ErrClosed
	}
	s := l.activeLocked()
	if s != nil && l.fullLocked(s, r, now) {
		l.closeSegLocked(s, now)
		s, rolled = nil, true
	}
	l.rollWanted.Store(false)
	if s == nil {
		s = l.newSegLocked(r.Base)
	}
	r.seg = s
	r.Segment, r.InSegment = s.base, true
	r.FilePos, r.HasPos = s.size, true
	l.tail = append(l.tail, r)
	l.store.tailRecords.Add(1)
	l.dirtyLocked()
	l.planDirectLocked(r)
	return rolled, nil
}

func (l *Log) fullLocked(s *seg, r *record, now time.Time) bool {
	if s.size == 0 {
		return false
	}
	return l.rollWanted.Load() || s.size+int64(r.size) > l.cfg.SegmentBytes || now.Sub(s.began) >= l.cfg.SegmentAge ||
		r.Last-s.base > math.MaxInt32
}

func (l *Log) newSegLocked(base int64) *seg {
	s := &seg{base: base, last: base - 1, maxTS: -1, builder: segment.NewBuilder(l.tp, base, l.cfg.IndexInterval)}
	l.segs = append(l.segs, s)
	return s
}

// closeSegLocked makes the active segment a closing one; the flusher does the rest.
func (l *Log) closeSegLocked(s *seg, now time.Time) {
	l.rollWanted.Store(false)
	s.state, s.closedAt = segClosing, now
	s.producers = l.producers.snapshot(now.UnixMilli(), l.store.opts.ProducerExpiry)
}

// unplace takes back what place did: the stream did not take the record.
func (l *Log) unplace() {
	l.mu.Lock()
	l.tail[len(l.tail)-1] = nil
	l.tail = l.tail[:len(l.tail)-1]
	l.store.tailRecords.Add(-1)
	l.mu.Unlock()
}

// settle makes the record part of the log: index, end offset, producer state.
func (l *Log) settle(r *record, h batch.Header, b []byte, now time.Time) {
	l.producers.add(&h, now.UnixMilli())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settleLocked(r, h, b, now)
}

func (l *Log) settleLocked(r *record, h batch.Header, b []byte, now time.Time) {
	s := r.seg
	if s.size == 0 {
		s.began = now
	}
	s.builder.Add(h, b)
	s.size += int64(r.size)
	s.last = r.Last
	s.maxTS = max(s.maxTS, h.MaxTimestamp)
	if n := len(l.epochs); n == 0 || l.epochs[n-1].Epoch < r.Epoch {
		l.epochs = append(l.epochs, segment.EpochStart{Epoch: r.Epoch, Start: r.Base})
	}
	l.next.Store(r.Last + 1)
}

// dirtyLocked puts the log among those whose needs bound the trimming. It must
// come before the stream can make the record durable.
func (l *Log) dirtyLocked() {
	if !l.dirty {
		l.dirty = true
		l.store.dirty.add(l)
	}
}

// announce is the stream's Announce: it moves the high watermarks.
func (s *Store) announce(entries []*wal.Entry, err error) {
	if err != nil {
		s.fail(err)
	}
	for _, e := range entries {
		if c, ok := e.Owner.(*carried); ok {
			c.announced(e, err)
			continue
		}
		r := e.Owner.(*record)
		l := r.log
		l.mu.Lock()
		full := false
		if r.direct != nil {
			r.Pos = e.Pos
			e.Chunk.Release()
		}
		if err == nil {
			l.hw = r.Last + 1
			if s.remote() && !l.closed {
				l.noteRunLocked(r)
			}
			l.pending += int64(r.unwritten)
			if r.direct != nil {
				l.wroteDirectLocked(r)
			}
			// A segment that was rolled before its last batch was durable has
			// nothing else to wake the flusher.
			ends := r.seg.state == segClosing && r.Last == r.seg.last
			full = (l.pending >= flushPiece || ends) && !l.queued
		} else {
			l.err = fmt.Errorf("%w: %w", ErrFailed, err)
		}
		done := r.done
		r.done = nil
		chunk := r.Chunk
		if l.closed { // removed meanwhile, with its tail
			chunk.Release()
			r.Chunk, r.Data = nil, nil
		} else {
			s.memoryRecords.Add(1)
		}
		l.wakeLocked()
		closed := l.closed
		l.mu.Unlock()
		if !closed && s.chunks.note(chunk, l, r.Pos) && s.memoryHigh() {
			s.kickCleaner()
		}
		if full {
			s.enqueue(l)
		}
		res := r.result
		if err != nil {
			res.Err = fmt.Errorf("%w: %w", ErrFailed, err)
		}
		if done != nil {
			done(res)
		}
	}
	if n := len(entries); n > 0 && uint64(entries[n-1].Pos) > s.cleanAt.Load() {
		s.kickCleaner()
	}
}

// RollIfOld closes the active segment when it is older than the topic's
// segment.ms, or now when force is set, so that it can be tiered. It reports
// whether it does; the files follow. It does not wait for an append that waits for room in
// the stream, which this may be to make: that one closes the segment, and goes into the next one.
func (l *Log) RollIfOld(force bool) bool {
	if l.appendMu.TryLock() {
		rolled := l.roll(force)
		l.appendMu.Unlock()
		return rolled
	}
	l.mu.Lock()
	due := l.rollDueLocked(l.store.opts.Now(), force)
	if due {
		l.rollWanted.Store(true)
		l.giveWayLocked()
	}
	l.mu.Unlock()
	l.rollAsWanted() // who holds appendMu may have looked before
	return due
}

// roll is RollIfOld with l.appendMu held.
func (l *Log) roll(force bool) bool {
	l.mu.Lock()
	l.rollWanted.Store(false)
	now := l.store.opts.Now()
	due := l.rollDueLocked(now, force)
	if due {
		l.closeSegLocked(l.activeLocked(), now)
	}
	l.mu.Unlock()
	if due {
		l.store.enqueue(l)
	}
	return due
}

func (l *Log) rollDueLocked(now time.Time, force bool) bool {
	s := l.activeLocked()
	return s != nil && s.size > 0 && l.err == nil && !l.closed && (force || now.Sub(s.began) >= l.cfg.SegmentAge)
}

// unlockAppend unlocks appendMu, and closes the segment if that was asked for meanwhile.
func (l *Log) unlockAppend() {
	l.appendMu.Unlock()
	l.rollAsWanted()
}

// rollAsWanted closes the segment if that was asked for while an append was under way. Of those that
// ask or append one at least finds appendMu free after the other has spoken.
func (l *Log) rollAsWanted() {
	for l.rollWanted.Load() && l.appendMu.TryLock() {
		l.roll(l.rollWanted.Load())
		l.appendMu.Unlock()
	}
}

const logsDir = "logs"

func walPath(dir string) string { return filepath.Join(dir, "wal", "ring.wal") }
