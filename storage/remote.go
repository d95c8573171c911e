package storage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/storage/wal/ring"
)

// StreamConfig is what Options.OpenStream makes a stream with.
type StreamConfig struct {
	Pool     *wal.Pool
	Announce wal.Announce
	OnFull   func()
}

// RemoteOptions are those of a store whose stream is not on this disk (class
// object). Zero values mean the defaults.
type RemoteOptions struct {
	// Open opens the stream; nil: the store has the ring in Dir. With it, what is in Dir
	// at the start is removed, as the stream has it, and the stream is trimmed
	// when segments are tiered, not when they are on this disk.
	Open func(StreamConfig) (wal.Stream, error)
	// TierMinBytes is the least size of an open segment, in bytes, that is closed
	// so that the stream can be trimmed; smaller ones are carried forward in the stream.
	TierMinBytes int64 // default 1 MiB
	// TierMaxDelay is how long a batch may stay in an open segment of TierMinBytes or more.
	TierMaxDelay time.Duration // default 10 min
	// MaxObjects is how many objects the stream should have at most.
	MaxObjects int // default 512
}

// Defaults of RemoteOptions.
const (
	DefaultTierMinBytes = 1 << 20
	DefaultTierMaxDelay = 10 * time.Minute
)

func (o *RemoteOptions) setDefaults() {
	if o.TierMinBytes <= 0 {
		o.TierMinBytes = DefaultTierMinBytes
	}
	if o.TierMaxDelay <= 0 {
		o.TierMaxDelay = DefaultTierMaxDelay
	}
	if o.MaxObjects <= 0 {
		o.MaxObjects = 512
	}
}

// remote tells that the stream is not on this disk.
func (s *Store) remote() bool { return s.opts.Remote.Open != nil }

// openStream opens the ring, or the stream that takes its place.
func (s *Store) openStream() (wal.Stream, error) {
	if s.remote() {
		return s.opts.Remote.Open(StreamConfig{Pool: s.pool, Announce: s.announce, OnFull: s.wantRoom})
	}
	return ring.Open(ring.Options{FS: s.opts.FS, Path: walPath(s.opts.Dir), Size: s.opts.WALSize, DiskID: s.opts.DiskID,
		Pool: s.pool, Announce: s.announce, OnFull: s.kickCleaner, CheckRef: s.checkRef, Prefill: s.opts.Prefill})
}

// removeLocal removes what an earlier start has left on the disk.
func (s *Store) removeLocal() error {
	for _, dir := range []string{"wal", logsDir} {
		if err := s.opts.FS.RemoveAll(filepath.Join(s.opts.Dir, dir)); err != nil {
			return fmt.Errorf("open storage: %w", err)
		}
	}
	return nil
}

// Begin is what a log begins with that others have written before.
type Begin struct {
	Start     int64 // log start
	End       int64 // where the next append goes: what is before it lies elsewhere
	Producers []segment.ProducerState
	Epochs    []segment.EpochStart
}

// CreateAt makes the partition's log; it must not be there.
func (s *Store) CreateAt(tp ids.TopicPartition, cfg LogConfig, b Begin) (*Log, error) {
	if b.Start < 0 || b.End < b.Start {
		return nil, fmt.Errorf("%w: log %s from %d to %d", ErrOutOfRange, tp, b.Start, b.End)
	}
	l := newLog(s, tp, cfg, b.Start)
	l.hw = b.End
	l.next.Store(b.End)
	l.epochs = slices.Clone(b.Epochs)
	l.producers.restore(b.Producers)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, ErrClosed
	case s.logs[tp] != nil:
		return nil, fmt.Errorf("log %s is there already", tp)
	}
	s.logs[tp] = l
	return l, nil
}

// Freeze makes the log refuse appends (ErrClosed) and returns where it ends. Everything before is
// in the stream, and may not be durable yet: what enters the stream from now on comes behind it.
func (l *Log) Freeze() (end int64, err error) {
	l.takeNoMore()
	l.appendMu.Lock() // for the append that is under way
	defer l.unlockAppend()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return 0, l.err
	case l.closed:
		return 0, ErrClosed
	}
	return l.next.Load(), nil
}

// takeNoMore makes appends fail with ErrClosed, those too that wait for room in the stream.
func (l *Log) takeNoMore() {
	l.mu.Lock()
	l.frozen = true
	l.giveWayLocked()
	l.mu.Unlock()
}

// Thaw makes a frozen log take appends again.
func (l *Log) Thaw() {
	l.appendMu.Lock()
	l.mu.Lock()
	l.frozen = false
	l.mu.Unlock()
	l.unlockAppend()
}

// run is what one commit of the stream has of a log that is not tiered: the
// offsets from base to last.
type run struct {
	base, last int64
	pos        wal.Pos
	since      time.Time
}

// noteRunLocked notes a batch that has become durable.
func (l *Log) noteRunLocked(r *record) {
	if n := len(l.runs); n > 0 && l.runs[n-1].pos == r.Pos {
		l.runs[n-1].last = r.Last
		return
	}
	l.runs = append(l.runs, run{r.Base, r.Last, r.Pos, l.store.opts.Now()})
}

// dropRunsLocked gives up what the stream has below offset end: it is tiered, or below the log start.
func (l *Log) dropRunsLocked(end int64) {
	n := 0
	for n < len(l.runs) && l.runs[n].last < end {
		n++
	}
	if n > 0 {
		l.runs = slices.Delete(l.runs, 0, n)
		l.store.kickCleaner()
	}
	if len(l.runs) > 0 {
		l.runs[0].base = max(l.runs[0].base, end)
	}
}

// moveRunLocked notes that the offsets from base to last, which are whole batches, are in
// the commit at pos too.
func (l *Log) moveRunLocked(base, last int64, pos wal.Pos) {
	var out []run
	moved := run{base, last, pos, time.Time{}}
	for _, r := range l.runs {
		if r.last < base || r.base > last {
			out = append(out, r)
			continue
		}
		if moved.since.IsZero() || r.since.Before(moved.since) {
			moved.since = r.since
		}
		if r.base < base {
			out = append(out, run{r.base, base - 1, r.pos, r.since})
		}
		if r.last > last {
			out = append(out, run{last + 1, r.last, r.pos, r.since})
		}
	}
	if moved.since.IsZero() { // tiered meanwhile
		return
	}
	at, _ := slices.BinarySearchFunc(out, base, func(r run, base int64) int { return int(min(max(r.base-base, -1), 1)) })
	l.runs = slices.Insert(out, at, moved)
}

// lowRunLocked returns the oldest stream position that the log needs.
func (l *Log) lowRunLocked() (low wal.Pos, need bool) {
	for _, r := range l.runs {
		if !need || r.pos < low {
			low, need = r.pos, true
		}
	}
	return low, need
}

// idleLocked tells that nothing of the log is on its way to the stream.
func (l *Log) idleLocked() bool {
	n := len(l.tail)
	return len(l.runs) == 0 && (n == 0 || l.tail[n-1].Last < l.hw)
}

// objects is what a stream of objects tells beside its State.
type objects interface {
	// Objects returns how many objects there are, and how many are not trimmed.
	Objects() (present, needed int)
	// Oldest returns the end of the n-th oldest object that is not trimmed.
	Oldest(n int) wal.Pos
}

// cleanRemote trims a stream that is not on this disk.
func (s *Store) cleanRemote() error {
	st := s.stream.State()
	if st.Err != nil {
		return st.Err
	}
	target, hard := s.pressure(st)
	var carry []carried
	now := s.opts.Now()
	for _, l := range s.dirty.all() {
		if l.tierOld(target, now, hard) {
			continue
		}
		if base, last, ok := l.toCarry(target); ok {
			carry = append(carry, carried{l, base, last})
		}
	}
	if len(carry) > 0 { // what can go leaves room for it
		if err := s.stream.Trim(s.lowest(st.Durable)); err != nil {
			return err
		}
	}
	if err := s.carry(carry); err != nil && !errors.Is(err, ErrClosed) {
		s.opts.Logger.Warn("could not carry forward what quiet partitions have in old objects of the stream", "err", err)
	}
	return s.stream.Trim(s.lowest(st.Durable))
}

// wantRoom says that an append waits for room in the stream, however full that is.
func (s *Store) wantRoom() {
	s.roomWanted.Store(uint64(s.stream.State().Trimmed) + 1)
	s.kickCleaner()
}

// pressure returns the position before which nothing should be needed any more,
// and whether that is urgent.
func (s *Store) pressure(st wal.State) (target wal.Pos, hard bool) {
	if o, ok := s.stream.(objects); ok {
		if _, needed := o.Objects(); needed > s.opts.Remote.MaxObjects {
			target = o.Oldest(needed / 4)
		}
	}
	used := st.End - st.Trimmed
	wanted := s.roomWanted.Load() == uint64(st.Trimmed)+1
	if wanted || st.Capacity > 0 && int64(used) > st.Capacity/2 {
		target = max(target, st.Trimmed+used/4)
		hard = wanted || int64(used) > st.Capacity/4*3
	}
	return target, hard
}

// tierOld closes the open segment, so that it is tiered, when it is large enough and holds the
// stream before target, or does so for too long; with hard a small one too.
func (l *Log) tierOld(target wal.Pos, now time.Time, hard bool) bool {
	l.mu.Lock()
	s := l.activeLocked()
	due := false
	if s != nil && (hard || s.size >= l.store.opts.Remote.TierMinBytes) {
		for _, r := range l.runs {
			if r.last >= s.base && (r.pos < target || now.Sub(r.since) >= l.store.opts.Remote.TierMaxDelay) {
				due = true
				break
			}
		}
	}
	l.mu.Unlock()
	return due && l.RollIfOld(true)
}

// noWait is the context of an append that does not wait for room.
var noWait = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

var errGiveWay = errors.New("the open segment is to be closed first, or the log takes no more appends")

// giveWayLocked makes an append that waits for room in the stream look at the log again.
func (l *Log) giveWayLocked() {
	if l.giveWay != nil {
		l.giveWay()
	}
}

// enterOrGiveWay puts the placed record into the stream. again: it waited for room, and has to be placed
// anew, as the segment is to be closed or the log refuses appends. l.appendMu is held.
func (l *Log) enterOrGiveWay(ctx context.Context, r *record, room *Room) (again bool, err error) {
	if !l.store.remote() {
		return false, l.enter(ctx, r, room)
	}
	if err := l.enter(noWait, r, room); err == nil || !errors.Is(err, context.Canceled) {
		return false, err
	}
	wait, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.mu.Lock()
	l.giveWay = func() { cancel(errGiveWay) }
	if l.rollWanted.Load() || l.frozen {
		l.giveWay()
	}
	l.mu.Unlock()
	err = l.enter(wait, r, room)
	l.mu.Lock()
	l.giveWay = nil
	l.mu.Unlock()
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(wait), errGiveWay) {
		return true, nil
	}
	return false, err
}

// toCarry returns the offsets of the open segment that the stream has before target.
func (l *Log) toCarry(target wal.Pos) (base, last int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.activeLocked()
	if s == nil || l.closed || l.frozen { // who takes a frozen log over looks where it lies now
		return 0, 0, false
	}
	if l.carrying > 0 { // it is on its way
		return 0, 0, false
	}
	for _, r := range l.runs {
		if r.pos >= target || r.last < s.base {
			if ok {
				break
			}
			continue
		}
		if !ok {
			base, ok = r.base, true
		}
		last = r.last
	}
	return base, last, ok
}

// carried are batches of a log on their way to a newer place in the stream; the Owner of
// their entries.
type carried struct {
	log        *Log
	base, last int64
}

const (
	// carryBytes is how much is carried forward in one commit.
	carryBytes = 4 << 20
	// carryTime bounds the wait for room in the stream.
	carryTime = time.Second
)

// carry appends the batches of the ranges to the stream once more.
func (s *Store) carry(ranges []carried) error {
	var entries []*wal.Entry
	var held []ReadResult
	size := 0
	flush := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), carryTime)
		defer cancel()
		var err error
		if len(entries) > 0 {
			begun(entries, 1)
			if err = s.stream.Append(ctx, entries...); err != nil {
				begun(entries, -1)
			}
		}
		for i := range held {
			held[i].Release()
		}
		entries, held, size = nil, nil, 0
		return err
	}
	for _, c := range ranges {
		for at := c.base; at <= c.last; {
			res, err := c.log.Read(noWait, at, carryBytes, true)
			if errors.Is(err, ErrBusy) { // small batches of many logs hold a buffer each: those held here may be all there are
				if err := flush(); err != nil {
					return err
				}
				res, err = c.log.Read(context.Background(), at, carryBytes, true) // those of others come back
			}
			if err != nil || res.Size == 0 {
				break // removed, or tiered, meanwhile
			}
			held = append(held, res)
			next := c.cut(at, res.Data, &entries)
			if next == at {
				break
			}
			at, size = next, size+res.Size
			if size >= carryBytes {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

// begun counts carried batches as on their way, or with -1 as not any more.
func begun(entries []*wal.Entry, n int) {
	for _, e := range entries {
		l := e.Owner.(*carried).log
		l.mu.Lock()
		l.carrying += n
		l.mu.Unlock()
	}
}

// cut makes entries of the batches in data from offset at up to c.last, and returns the
// offset behind them.
func (c carried) cut(at int64, data [][]byte, entries *[]*wal.Entry) (next int64) {
	next = at
	for _, b := range data {
		for len(b) > 0 {
			h, err := batch.Parse(b)
			if err != nil || h.BaseOffset > c.last {
				return next
			}
			if h.LastOffset() >= at {
				*entries = append(*entries, &wal.Entry{TP: c.log.tp, Kind: wal.KindBatch, Epoch: h.LeaderEpoch, Base: h.BaseOffset, Last: h.LastOffset(),
					Data: b[:h.Size()], Owner: &carried{c.log, h.BaseOffset, h.LastOffset()}})
			}
			next = h.LastOffset() + 1
			b = b[h.Size():]
		}
	}
	return next
}

// announced notes where carried batches are now.
func (c *carried) announced(e *wal.Entry, err error) {
	e.Chunk.Release()
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	c.log.carrying--
	if err == nil && !c.log.frozen {
		c.log.moveRunLocked(c.base, c.last, e.Pos)
	}
}

// Install puts batches that lie elsewhere, whole ones in order of their offsets and all before
// the log's own, into closed segments on this disk, so that they are tiered and read as
// any others. producers is the idempotence state behind them.
func (l *Log) Install(batches [][]byte, producers []segment.ProducerState) error {
	l.mu.Lock()
	limit, interval := l.cfg.SegmentBytes, l.cfg.IndexInterval
	l.mu.Unlock()
	for len(batches) > 0 {
		n, size, next := 0, int64(0), int64(0)
		for n < len(batches) && (n == 0 || size+int64(len(batches[n])) <= limit) {
			h, err := batch.Parse(batches[n])
			if err != nil {
				return fmt.Errorf("install segment of %s: %w", l.tp, err)
			}
			if n > 0 && h.BaseOffset != next { // a segment has no holes: what is missing may lie elsewhere
				break
			}
			size, next = size+int64(len(batches[n])), h.LastOffset()+1
			n++
		}
		if err := l.installSegment(batches[:n], interval, producers); err != nil {
			return err
		}
		batches = batches[n:]
	}
	return nil
}

func (l *Log) installSegment(batches [][]byte, interval int, producers []segment.ProducerState) error {
	first, err := batch.Parse(batches[0])
	if err != nil {
		return fmt.Errorf("install segment of %s: %w", l.tp, err)
	}
	s := &seg{base: first.BaseOffset, state: segClosed, made: true, maxTS: -1, began: l.store.opts.Now(), closedAt: l.store.opts.Now()}
	b := segment.NewBuilder(l.tp, s.base, interval)
	var raw []byte
	for _, one := range batches {
		h, err := batch.Check(one)
		if err != nil {
			return fmt.Errorf("install segment %d of %s: %w", s.base, l.tp, err)
		}
		b.Add(h, one)
		raw = append(raw, one...)
		s.last, s.maxTS = h.LastOffset(), max(s.maxTS, h.MaxTimestamp)
	}
	s.size, s.written = int64(len(raw)), int64(len(raw))
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if closed { // removed meanwhile: another log may have the directory
		return ErrClosed
	}
	if err := l.makeDir(); err != nil {
		return err
	}
	if err := writeFile(l.store.opts.FS, l.logPath(s), raw); err != nil {
		return l.diskError("install segment", err)
	}
	trailer := b.Trailer(s.last+1, nil, producers)
	if err := writeFile(l.store.opts.FS, l.idxPath(s), trailer); err != nil {
		return l.diskError("install segment", err)
	}
	s.trailer, s.crc = int64(len(trailer)), b.ObjectCRC(trailer)
	l.store.diskUsed.Add(s.size + s.trailer)
	l.mu.Lock()
	at := 0
	for at < len(l.segs) && l.segs[at].base < s.base {
		at++
	}
	l.segs = slices.Insert(l.segs, at, s)
	l.mu.Unlock()
	if l.store.opts.OnClosed != nil {
		l.store.opts.OnClosed(l.tp)
	}
	return nil
}
