package storage

import (
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// chunkQueue remembers which logs have batches in which chunk of the stream's
// memory, oldest chunk first, and holds a reference to each.
type chunkQueue struct {
	mu    sync.Mutex
	queue []*chunkUse
}

type chunkUse struct {
	chunk *wal.Chunk
	logs  []*Log
	last  wal.Pos // of its batches
}

// note is called in stream order, with the position of a batch of l in c. It
// reports whether the chunk is a new one.
func (q *chunkQueue) note(c *wal.Chunk, l *Log, pos wal.Pos) (first bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var u *chunkUse
	for i := len(q.queue) - 1; i >= max(len(q.queue)-2, 0); i-- { // of the stream, of large batches
		if q.queue[i].chunk == c {
			u = q.queue[i]
			break
		}
	}
	if u == nil {
		c.Retain()
		u = &chunkUse{chunk: c}
		q.queue = append(q.queue, u)
		first = true
	}
	u.last = max(u.last, pos)
	if k := len(u.logs); k == 0 || u.logs[k-1] != l {
		u.logs = append(u.logs, l)
	}
	return first
}

// oldest takes the oldest chunk out of the queue, unless it is the only one:
// that one is still being filled.
func (q *chunkQueue) oldest(all bool) *chunkUse {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) == 0 || len(q.queue) == 1 && !all {
		return nil
	}
	u := q.queue[0]
	q.queue = append(q.queue[:0], q.queue[1:]...)
	return u
}

// pushBack returns a chunk that could not be evicted to the front.
func (q *chunkQueue) putBack(u *chunkUse) {
	q.mu.Lock()
	q.queue = append([]*chunkUse{u}, q.queue...)
	q.mu.Unlock()
}

// dirtySet holds the logs that may have batches which are only in the stream.
type dirtySet struct {
	mu   sync.Mutex
	logs map[*Log]struct{}
}

func (d *dirtySet) add(l *Log) {
	d.mu.Lock()
	d.logs[l] = struct{}{}
	d.mu.Unlock()
}

func (d *dirtySet) all() []*Log {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]*Log, 0, len(d.logs))
	for l := range d.logs {
		out = append(out, l)
	}
	return out
}

// lowLocked returns the oldest stream position that the log still needs.
func (l *Log) lowLocked() (wal.Pos, bool) {
	low, need := l.unsynced, l.hasUnsynced
	for _, r := range l.tail[l.written:] {
		if r.Last >= l.hw {
			break // not durable yet: behind everything that can be trimmed
		}
		if r.spill == nil {
			if !need || r.Pos < low {
				low, need = r.Pos, true
			}
			break // later ones have greater positions
		}
	}
	return low, need
}

// cleaner trims the ring and evicts memory.
func (s *Store) cleanLoop() {
	defer s.wg.Done()
	var staging []byte
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-s.quit:
			return
		case <-s.cleanKick:
		case <-tick.C:
			if now := s.ticks.Add(1); now > aheadSeconds {
				s.dropAheads(now - aheadSeconds)
			}
		}
		if staging == nil {
			staging = vfs.AlignedBytes(stagingSize)
		}
		if err := s.clean(staging); err != nil {
			s.opts.Logger.Warn("trim failed", "err", err)
			if errors.Is(err, syscall.ENOSPC) {
				s.pause(time.Second)
			}
		}
	}
}

// clean brings ring and memory below their marks.
func (s *Store) clean(staging []byte) error {
	if err := s.stream.State().Err; err != nil {
		s.fail(err) // of a write in the background, which no append met
	}
	if s.Err() != nil {
		return nil
	}
	for s.memoryHigh() {
		more, err := s.evictOldest(staging, false)
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	if s.remote() {
		return s.cleanRemote()
	}
	st := s.stream.State()
	used := int64(st.End - st.Trimmed)
	if st.Err == nil && used > st.Capacity/4 {
		if err := s.trim(st.Trimmed+wal.Pos(used/4*3), st.Durable, staging); err != nil {
			return err
		}
		st = s.stream.State()
	}
	s.cleanAt.Store(uint64(st.Trimmed) + uint64(st.Capacity/2))
	return st.Err
}

// memoryHigh reports whether memory must be given back: there is to be room for
// what comes meanwhile, and no more batches than the heap has room for.
func (s *Store) memoryHigh() bool {
	inUse, _, limit := s.pool.Usage()
	return inUse > limit-min(limit/4, maxHeadroom) || s.memoryRecords.Load() > maxRecords/2
}

// maxHeadroom bounds what is kept free of the memory tail, in bytes.
const maxHeadroom = 128 << 20

// trim makes everything before target durable outside the ring, then gives
// back what no log needs, at most up to durable. Both a durable end and a
// log's oldest entry are borders of commits, which target is not.
func (s *Store) trim(target, durable wal.Pos, staging []byte) error {
	var quiet []*record
	var held []*Log
	unlock := func() {
		for _, l := range held {
			l.flushMu.Unlock()
		}
		held = nil
	}
	defer unlock()
	least := int64(minSegmentFlush)
	if s.tailRecords.Load() > min(s.tailBytes.Load()/recordMemory, maxRecords) {
		least = vfs.BlockSize
	}
	for _, l := range s.dirty.all() {
		if !l.holds(target) {
			continue
		}
		if l.pendingBefore(target) >= least {
			if err := l.flush(flushBlocks, staging); err != nil {
				return err
			}
		}
		l.flushMu.Lock()
		if err := l.syncFlushed(); err != nil {
			l.flushMu.Unlock()
			return err
		}
		if q := l.unspilled(target); len(q) > 0 {
			quiet = append(quiet, q...)
			held = append(held, l)
		} else {
			l.flushMu.Unlock()
		}
	}
	if err := s.spill(quiet); err != nil {
		return err
	}
	unlock()
	if err := s.stream.Trim(s.lowest(durable)); err != nil {
		s.fail(err)
		return err
	}
	return s.compactSpills()
}

// lowest returns the oldest position that any log needs, at most durable, and
// forgets the logs that need nothing.
func (s *Store) lowest(durable wal.Pos) wal.Pos {
	for _, l := range s.dirty.all() {
		l.mu.Lock()
		low, need := l.lowLocked()
		idle := l.written == len(l.tail)
		if s.remote() {
			low, need = l.lowRunLocked()
			idle = l.idleLocked()
		}
		if need {
			durable = min(durable, low)
		} else if idle {
			s.dirty.mu.Lock()
			delete(s.dirty.logs, l)
			l.dirty = false
			s.dirty.mu.Unlock()
		}
		l.mu.Unlock()
	}
	// After the logs: what a log keeps no longer is here already.
	return min(durable, s.kept.lowest(durable))
}

func (l *Log) holds(before wal.Pos) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	low, need := l.lowLocked()
	return need && low < before && !l.closed
}

// pendingBefore returns the unwritten durable bytes that lie before pos.
func (l *Log) pendingBefore(pos wal.Pos) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n int64
	for _, r := range l.tail[l.written:] {
		if r.Last >= l.hw || r.Pos >= pos { // the stream sets Pos: looked at when durable
			break
		}
		n += int64(r.unwritten)
	}
	return n
}

// unspilled returns the records before pos that only the stream has.
func (l *Log) unspilled(pos wal.Pos) []*record {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*record
	for _, r := range l.tail[l.written:] {
		if r.Last >= l.hw || r.Pos >= pos || l.closed {
			break
		}
		if r.spill == nil {
			out = append(out, r)
		}
	}
	return out
}

// evictOldest takes the oldest chunk's batches out of memory: those whose span
// of the segment file is written are read from there, others go to a spill
// file. It reports whether there was a chunk.
func (s *Store) evictOldest(staging []byte, all bool) (bool, error) {
	u := s.chunks.oldest(all)
	if u == nil {
		return false, nil
	}
	seen := map[*Log]bool{}
	for _, l := range u.logs {
		if seen[l] {
			continue
		}
		seen[l] = true
		if err := l.flush(flushBlocks, staging); err != nil {
			s.chunks.putBack(u)
			return false, err
		}
	}
	if err := s.evictChunk(u, seen); err != nil {
		s.chunks.putBack(u)
		return false, err
	}
	u.chunk.Release()
	return true, nil
}

func (s *Store) evictChunk(u *chunkUse, logs map[*Log]bool) error {
	var quiet []*record
	ends := map[*Log]int64{} // u.last's commit may still be announced: what becomes durable meanwhile stays
	for l := range logs {
		l.flushMu.Lock()
		defer l.flushMu.Unlock()
		q, end := l.notInFiles(u)
		ends[l] = end
		if len(q) > 0 { // what comes before them must not be lost when they are found
			if err := l.syncFlushed(); err != nil {
				return err
			}
		}
		quiet = append(quiet, q...)
	}
	if err := s.spill(quiet); err != nil {
		return err
	}
	for l := range logs {
		l.mu.Lock()
		for _, r := range l.tail {
			if r.Last >= ends[l] || r.Pos > u.last {
				break
			}
			if r.Chunk == u.chunk {
				r.Chunk, r.Data = nil, nil
				u.chunk.Release()
				s.memoryRecords.Add(-1)
			}
		}
		l.popLocked()
		l.mu.Unlock()
	}
	return nil
}

// notInFiles returns the batches of the chunk that neither segment nor spill file
// has, with those before them: a recovery reads spill files before the stream.
// Batches from offset end on were not durable yet.
func (l *Log) notInFiles(u *chunkUse) (out []*record, end int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := 0
	for i, r := range l.tail {
		if r.Last >= l.hw || r.Pos > u.last {
			break // the stream is putting it into a later chunk
		}
		if !r.inMemory() || r.spill != nil || i < l.written && l.readableLocked(r) {
			continue
		}
		out = append(out, r)
		if r.Chunk == u.chunk {
			last = len(out)
		}
	}
	return out[:last], l.hw
}

// readableLocked reports whether the record's batch can be read from its
// segment file with its span's checksum: the whole span must be there.
func (l *Log) readableLocked(r *record) bool {
	if r.seg.state == segClosed {
		return true
	}
	_, end := r.seg.builder.Lookup(r.Base)
	return end <= r.seg.written && end < r.seg.size
}

// popLocked drops the records at the front of the tail that are neither in
// memory nor in a spill file: they are read from their segment.
func (l *Log) popLocked() {
	n := 0
	for n < l.written && !l.tail[n].inMemory() && l.tail[n].spill == nil {
		n++
	}
	if n == 0 {
		return
	}
	l.store.tailRecords.Add(int64(-n))
	clear(l.tail[:n])
	l.tail = l.tail[n:]
	l.written -= n
	if len(l.tail) == 0 {
		l.tail, l.written = nil, 0
	}
}

// compactSpills merges the spill files when there are many, so that one
// batch cannot keep a large file for ever.
func (s *Store) compactSpills() error {
	s.mu.Lock()
	many := len(s.spills) > maxSpills
	s.mu.Unlock()
	if !many {
		return nil
	}
	var all []*record
	var held []*Log
	defer func() {
		for _, l := range held {
			l.flushMu.Unlock()
		}
	}()
	for _, l := range s.Logs() {
		l.flushMu.Lock()
		held = append(held, l)
		l.mu.Lock()
		for _, r := range l.tail {
			if r.spill != nil {
				all = append(all, r)
			}
		}
		l.mu.Unlock()
	}
	return s.spill(all)
}

// recordMemory is about what a batch in the tail takes, in bytes, beside its own
// bytes. When that is more than the memory tail, batches that wait in spill
// files for the rest of their 64 KiB are written by whole blocks instead.
const recordMemory = 512

// maxRecords bounds the batches in the tails: they take 256 MiB beside their bytes.
const maxRecords = 512 << 10

// maxSpills is how many spill files there may be before they are merged.
const maxSpills = 8
