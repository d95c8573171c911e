package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// Store is the storage of one agent: one stream, one Log per partition.
type Store struct {
	opts     Options
	stream   wal.Stream
	capacity int64     // of the ring, in bytes
	pool     *wal.Pool // the memory tail
	readPool *wal.Pool // buffers of reads from disk
	files    *fileCache
	recycled recycler
	// directMem is where large batches are put together.
	directMem directMem
	writers   atomic.Int32 // logs that write a large batch now
	rooms     atomic.Int64 // that are not released
	noDirect  atomic.Bool  // the stream or the file system can't
	blocks    sync.Pool    // *[]byte of two blocks, to peek at headers
	chunks    chunkQueue
	dirty     dirtySet
	kept      keptRuns
	// roomWanted: an append waits for room since the stream, which is not on this disk, was trimmed to here, plus one.
	roomWanted atomic.Uint64
	aheads     aheadSet
	ticks      atomic.Uint64 // seconds of the cleaner

	waits      waits
	tailBytes  atomic.Int64 // bounds, see Options
	diskBudget atomic.Int64
	diskUsed   atomic.Int64 // bytes of segments, also those still to be written, and spill files
	spillSeq   atomic.Uint64
	// tailRecords counts the batches in the tails of all logs.
	tailRecords atomic.Int64
	// memoryRecords counts those that are durable and in memory.
	memoryRecords atomic.Int64
	cleanAt       atomic.Uint64 // stream position from which the cleaner is woken

	// mu is taken last: no other lock is taken under it.
	mu     sync.Mutex
	logs   map[ids.TopicPartition]*Log
	spills map[uint64]*spillFile
	queue  []*Log // to be written behind
	wake   *sync.Cond
	freed  chan struct{} // closed and replaced when disk space was freed
	closed bool
	err    error

	noSpace atomic.Pointer[noSpace] // the last one

	cleanKick chan struct{}
	quit      chan struct{}
	wg        sync.WaitGroup
	failOnce  sync.Once
}

// Open opens the storage in opts.Dir and recovers what is there: closed
// segments, the valid prefix of open ones, spill files and the stream.
func Open(opts Options) (*Store, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	s := &Store{
		opts: opts, pool: wal.NewPool(opts.TailBytes), readPool: wal.NewPool(opts.ReadBytes),
		files: newFileCache(opts.FS, opts.MaxFiles), logs: map[ids.TopicPartition]*Log{}, spills: map[uint64]*spillFile{},
		freed: make(chan struct{}), cleanKick: make(chan struct{}, 1), quit: make(chan struct{}),
	}
	s.tailBytes.Store(opts.TailBytes)
	s.diskBudget.Store(opts.DiskBudget)
	s.dirty.logs = map[*Log]struct{}{}
	s.wake = sync.NewCond(&s.mu)
	s.pool.OnPressure(s.kickCleaner)
	s.readPool.OnPressure(func() { s.dropAheads(math.MaxUint64) })
	if s.remote() {
		if err := s.removeLocal(); err != nil {
			return nil, err
		}
	}
	for _, dir := range []string{filepath.Join(opts.Dir, "wal"), filepath.Join(opts.Dir, logsDir)} {
		if err := opts.FS.MkdirAll(dir); err != nil {
			return nil, fmt.Errorf("open storage: %w", err)
		}
	}
	// What a process before this one did not come to sync is built upon from here on.
	for _, dir := range []string{opts.Dir, filepath.Join(opts.Dir, "wal"), filepath.Join(opts.Dir, logsDir)} {
		if err := opts.FS.SyncDir(dir); err != nil {
			return nil, fmt.Errorf("open storage: %w", err)
		}
	}
	stream, err := s.openStream()
	if err != nil {
		return nil, err
	}
	st := stream.State()
	s.stream = stream
	if !s.remote() {
		s.capacity = st.Capacity
	}
	s.noDirect.Store(!st.Refs)
	if err = s.recover(); err == nil {
		err = s.openRecycler()
	}
	if err != nil {
		stream.Close()
		s.files.closeAll()
		return nil, err
	}
	s.wg.Add(flushers + 1)
	for range flushers {
		go s.flushLoop()
	}
	go s.cleanLoop()
	return s, nil
}

// MaxBatch is the largest batch, in bytes, that an Append can take.
func (s *Store) MaxBatch() int { return s.stream.MaxAppend() }

// Create returns the partition's log, making an empty one that starts at
// offset start if there is none. Nothing is written until the first append.
func (s *Store) Create(tp ids.TopicPartition, cfg LogConfig, start int64) (*Log, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	l, ok := s.logs[tp]
	if !ok {
		l = newLog(s, tp, cfg, start)
		s.logs[tp] = l
	}
	s.mu.Unlock()
	if ok {
		l.SetConfig(cfg)
		l.SetStart(start)
	}
	return l, nil
}

// Log returns the partition's log, or nil.
func (s *Store) Log(tp ids.TopicPartition) *Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logs[tp]
}

// Logs returns all logs, by topic id and partition.
func (s *Store) Logs() []*Log {
	s.mu.Lock()
	out := make([]*Log, 0, len(s.logs))
	for _, l := range s.logs {
		out = append(out, l)
	}
	s.mu.Unlock()
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i].tp, out[j].tp
		if a.Topic != b.Topic {
			return bytes.Compare(a.Topic[:], b.Topic[:]) < 0
		}
		return a.Partition < b.Partition
	})
	return out
}

// Remove deletes a partition's local bytes; readers and appenders of it get
// ErrClosed from now on. A missing log is no error.
func (s *Store) Remove(tp ids.TopicPartition) error { return s.remove(tp, false) }

func (s *Store) remove(tp ids.TopicPartition, keep bool) error {
	s.mu.Lock()
	l := s.logs[tp]
	delete(s.logs, tp)
	s.mu.Unlock()
	if l == nil {
		return nil
	}
	l.takeNoMore()
	l.appendMu.Lock()
	l.flushMu.Lock()
	l.mu.Lock()
	l.closed = true
	l.dropAheadLocked(math.MaxUint64)
	freed := int64(0)
	var unused []*seg
	for _, g := range l.segs {
		freed += g.trailer
		busy := s.files.remove(l.logPath(g))
		if g.logGone { // given back when it was dropped
			continue
		}
		freed += g.size
		if !busy && g.users == 0 && g.state == segClosed {
			unused = append(unused, g)
		}
	}
	l.dropTailLocked(0)
	if keep {
		s.kept.add(tp, l.runs)
	}
	l.runs = nil
	l.hasUnsynced, l.pending = false, 0
	l.wakeLocked()
	l.mu.Unlock()
	err := s.removeDir(l.dir(), unused)
	l.flushMu.Unlock()
	l.appendMu.Unlock()
	s.free(freed)
	if err != nil {
		return fmt.Errorf("remove log %s: %w", tp, err)
	}
	return nil
}

// removedSuffix marks a log's directory that is being removed.
const removedSuffix = ".removed"

// removeDir removes a log's directory. It is renamed first, so that a crash
// leaves nothing that looks like a damaged log. The files of unused may be kept.
func (s *Store) removeDir(dir string, unused []*seg) error {
	if err := s.opts.FS.RemoveAll(dir + removedSuffix); err != nil {
		return err
	}
	err := s.opts.FS.Rename(dir, dir+removedSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was written yet
	}
	if err != nil {
		return err
	}
	if err := s.opts.FS.SyncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	s.recycleRemoved(dir+removedSuffix, unused)
	return s.opts.FS.RemoveAll(dir + removedSuffix)
}

// dropTailLocked gives up the batches of the tail from index i on.
func (l *Log) dropTailLocked(i int) {
	for _, r := range l.tail[i:] {
		if r.inMemory() && r.Last < l.hw {
			r.Chunk.Release()
			r.Chunk, r.Data = nil, nil
			l.store.memoryRecords.Add(-1)
		}
		if r.spill != nil {
			r.spill.file.unref(l.store)
			r.spill = nil
		}
	}
	l.store.tailRecords.Add(int64(i - len(l.tail)))
	clear(l.tail[i:])
	l.tail, l.written = l.tail[:i], min(l.written, i)
}

// dropSegTailLocked gives up the batches of the last segment.
func (l *Log) dropSegTailLocked(s *seg) {
	i := len(l.tail)
	for i > 0 && l.tail[i-1].seg == s {
		i--
		if i >= l.written {
			l.pending -= int64(l.tail[i].unwritten)
		}
	}
	l.dropTailLocked(i)
}

func (s *Store) enqueue(l *Log) {
	l.mu.Lock()
	if l.queued || l.closed {
		l.mu.Unlock()
		return
	}
	l.queued = true
	l.mu.Unlock()
	s.mu.Lock()
	s.queue = append(s.queue, l)
	s.mu.Unlock()
	s.wake.Signal()
}

func (s *Store) dequeue() *Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == 0 && !s.closed {
		s.wake.Wait()
	}
	if s.closed {
		return nil
	}
	l := s.queue[0]
	s.queue = append(s.queue[:0], s.queue[1:]...)
	return l
}

func (s *Store) kickCleaner() {
	select {
	case s.cleanKick <- struct{}{}:
	default:
	}
}

func (s *Store) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.quit:
	}
}

// fail records that the disk has failed; the store takes no more appends.
func (s *Store) fail(err error) {
	if errors.Is(err, wal.ErrClosed) {
		return
	}
	s.failOnce.Do(func() {
		s.mu.Lock()
		s.err = fmt.Errorf("%w: %w", ErrFailed, err)
		s.mu.Unlock()
		if p, ok := s.stream.(interface{ Poison(error) }); ok {
			p.Poison(err)
		}
		s.opts.Logger.Error("disk failed, no more appends are taken", "err", err)
		if s.opts.OnFailure != nil {
			go s.opts.OnFailure(err)
		}
	})
}

// Err returns the failure that stopped the store, or nil.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// reserve waits until the disk budget has room for n more bytes of segments,
// and takes it: what is appended will be written, whether or not there is room
// then. The caller gives back what it does not append.
func (s *Store) reserve(ctx context.Context, n int64) error {
	for {
		if err := s.Err(); err != nil {
			return err
		}
		if s.diskBudget.Load() == 0 {
			s.diskUsed.Add(n)
			return nil
		}
		s.mu.Lock()
		freed := s.freed // before the look at what is used, so that no change is missed
		s.mu.Unlock()
		used := s.diskUsed.Load()
		if used+s.recycled.bytes.Load()+s.capacity+n <= s.diskBudget.Load() {
			if s.diskUsed.CompareAndSwap(used, used+n) {
				return nil
			}
			continue
		}
		if s.recycled.drop() {
			continue
		}
		select {
		case <-freed:
		case <-s.quit:
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("%w: disk budget of %d bytes is used up: %w", ErrBusy, s.diskBudget.Load(), context.Cause(ctx))
		}
	}
}

// DiskUsed returns the bytes of ring, segments and spill files, with what is
// appended and not yet in its segment's file. Files that wait for a new segment
// are not among them: they go when their space is needed.
func (s *Store) DiskUsed() int64 { return s.diskUsed.Load() + s.capacity }

// fullMargin is the room, in bytes, below which the disk counts as full: a
// batch of the usual limit does not fit any more.
const fullMargin = 1 << 20

// DiskFull reports whether appends wait, or soon will, for the disk budget.
func (s *Store) DiskFull() bool {
	return s.diskBudget.Load() > 0 && s.DiskUsed()+fullMargin > s.diskBudget.Load()
}

// noSpaceFor is how long a write that found no space counts: those that failed
// are tried again every second.
const noSpaceFor = 3 * time.Second

// NoSpace returns the error of a write that the file system had no space for
// within the last seconds, else nil. Appends wait when ring and memory are full.
func (s *Store) NoSpace() error {
	if f := s.noSpace.Load(); f != nil && time.Since(f.at) < noSpaceFor {
		return f.err
	}
	return nil
}

// noSpace is a write that failed with ENOSPC.
type noSpace struct {
	at  time.Time
	err error
}

// Limits are bounds of a Store that may change; see Options.
type Limits struct{ TailBytes, ReadBytes, DiskBudget int64 }

// SetLimits changes the bounds. What is used beyond lower ones is given back as it can be.
func (s *Store) SetLimits(l Limits) {
	s.tailBytes.Store(l.TailBytes)
	s.pool.SetLimit(l.TailBytes)
	s.readPool.SetLimit(l.ReadBytes)
	s.diskBudget.Store(l.DiskBudget)
	s.free(0) // who waits for space looks again
	s.kickCleaner()
}

// DiskBudget returns the configured bound, 0 for none.
func (s *Store) DiskBudget() int64 { return s.diskBudget.Load() }

func (s *Store) free(n int64) {
	s.diskUsed.Add(-n)
	s.mu.Lock()
	close(s.freed)
	s.freed = make(chan struct{})
	s.mu.Unlock()
}

// Stats are figures for metrics.
type Stats struct {
	Logs, OpenFiles, SpillFiles      int
	DiskUsed, DiskBudget             int64
	Recycled                         int64 // bytes of files that wait for a new segment
	TailInUse, TailMapped, TailLimit int64
	TailBatches                      int64 // batches that are not read from their segments alone yet
	ReadInUse, ReadLimit             int64
	WALUsed, WALSize                 int64
	WALBacklog                       int64 // bytes appended and not yet durable

	// Waits counts the appends that took 1 ms or longer to find their place,
	// and WaitTime the time they took together.
	Waits    int64
	WaitTime time.Duration
}

// Stats returns current figures.
func (s *Store) Stats() Stats {
	st := s.stream.State()
	out := Stats{OpenFiles: s.files.open(), DiskUsed: s.DiskUsed(), DiskBudget: s.diskBudget.Load(),
		WALUsed: int64(st.End - st.Trimmed), WALSize: st.Capacity, WALBacklog: int64(st.End - st.Durable),
		Waits: s.waits.n.Load(), WaitTime: time.Duration(s.waits.nanos.Load())}
	out.TailBatches = s.tailRecords.Load()
	out.Recycled = s.recycled.bytes.Load()
	out.TailInUse, out.TailMapped, out.TailLimit = s.pool.Usage()
	out.ReadInUse, _, out.ReadLimit = s.readPool.Usage()
	s.mu.Lock()
	out.Logs, out.SpillFiles = len(s.logs), len(s.spills)
	s.mu.Unlock()
	return out
}

// Close commits what is pending and stops. Nothing needs to be flushed: the
// ring has it.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.closed = true
	s.mu.Unlock()
	close(s.quit)
	s.wake.Broadcast()
	s.wg.Wait()
	err := s.stream.Close()
	s.directMem.drop()
	for _, l := range s.Logs() {
		l.mu.Lock()
		l.closed = true
		l.dropAheadLocked(math.MaxUint64)
		l.wakeLocked()
		l.mu.Unlock()
	}
	s.files.closeAll()
	s.pool.Close()
	s.readPool.Close()
	return err
}
