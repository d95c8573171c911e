package storage

import (
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/lock"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// record is one batch in the tail: in the stream's memory, or in a spill file.
type record struct {
	wal.Entry
	log  *Log
	seg  *seg
	size int32
	// unwritten is how many of its bytes the flusher has to write.
	unwritten int32
	direct    *direct // on its way to the segment file
	maxTS     int64
	crc       uint32    // Kafka's
	spill     *spillRef // where the bytes are safe when the ring no longer has them
	done      func(AppendResult)
	result    AppendResult
}

func (r *record) fileEnd() int64 { return r.FilePos + int64(r.size) }

// inMemory reports whether Data can be read.
func (r *record) inMemory() bool { return r.Chunk != nil }

// segState is where a segment is in its life.
type segState uint8

const (
	segActive  segState = iota // takes appends
	segClosing                 // full; its last bytes are on their way to the file
	segClosed                  // .log and .idx are synced and never change
)

// seg is one local segment. Log.mu guards it.
type seg struct {
	base, last int64  // last is base-1 while empty
	size       int64  // bytes appended
	written    int64  // bytes in the file, a multiple of vfs.BlockSize until closed
	found      int64  // size of the file that a recovery found
	made       bool   // the file is there, and its name durable
	reused     bool   // it may be one of used blocks, see recycle.go
	flushing   bool   // a piece is being written to the file
	directs    int    // batches on their way to the file, see direct.go
	claim      int64  // with directs: where the blocks of the last of them end
	reserved   int64  // space reserved for the file; appendMu guards it
	head       []byte // after recovery: file bytes from written to the first record of the tail
	dirty      bool   // bytes written since the last sync
	state      segState
	builder    *segment.Builder // until closed
	index      *segment.Index   // closed, loaded on first use
	trailer    int64            // bytes of the .idx file, when closed
	maxTS      int64
	crc        uint32 // of the whole object, when closed
	began      time.Time
	closedAt   time.Time
	producers  []segment.ProducerState // as of the end, once closing
	tiered     bool
	users      int  // readers and uploads that need the files
	dropped    bool // files go with the last user
	logGone    bool // the .log is not to be read any more: the .idx is the memory of where the log ends
	logRemoved bool // and is removed
}

// AppendResult tells what became of an append.
type AppendResult struct {
	Base, Last int64
	// LogAppendTime is the timestamp the broker gave, -1 with CreateTime.
	LogAppendTime int64
	Duplicate     bool
	Err           error
}

// Log is one partition. Its methods may be called from several goroutines.
type Log struct {
	store *Store
	tp    ids.TopicPartition

	// appendMu orders appends: sequence check, offsets, place in the stream. Who unlocks it
	// closes the active segment when that is wanted, see RollIfOld.
	appendMu   lock.Mutex
	rollWanted atomic.Bool
	producers  producers

	flushMu sync.Mutex // one writer of segment files at a time
	directs directQueue

	next atomic.Int64 // log end offset, written under appendMu and mu

	mu          sync.Mutex
	cfg         LogConfig
	segs        []*seg    // by base; the last may be active
	tail        []*record // by offset: what is not evicted yet
	written     int       // tail[:written] lie in whole written blocks of their files
	pending     int64     // durable bytes of the tail not yet written
	unsynced    wal.Pos   // oldest position whose file bytes are not synced; with hasUnsynced
	hasUnsynced bool
	hw          int64
	start       int64 // log start offset
	epochs      []segment.EpochStart
	watchers    []*watching
	dirty       bool    // in the store's dirty set
	queued      bool    // in the store's flush queue
	closed      bool    // deleted or store closed
	frozen      bool    // takes no appends, see Freeze
	giveWay     func()  // not nil: an append waits for room, and this interrupts it
	carrying    int     // batches on their way to a newer place in the stream
	runs        []run   // what of it the stream alone has, see remote.go; by offset
	later       []int64 // recovery: bases of open segments behind the one that is read
	reused      []int64 // recovery: bases of segments of used blocks that no entry was found of yet
	err         error
	peeked      peeked // see firstSize
	ahead       readAhead
}

func newLog(s *Store, tp ids.TopicPartition, cfg LogConfig, start int64) *Log {
	l := &Log{store: s, tp: tp, cfg: cfg.withDefaults(), hw: start, start: start}
	l.next.Store(start)
	return l
}

// MaxBatch is that of the log's store.
func (l *Log) MaxBatch() int { return l.store.MaxBatch() }

// TP names the partition.
func (l *Log) TP() ids.TopicPartition { return l.tp }

func (l *Log) dir() string { return filepath.Join(l.store.opts.Dir, logsDir, l.tp.String()) }

func (l *Log) logPath(s *seg) string { return filepath.Join(l.dir(), segment.LogName(s.base)) }
func (l *Log) idxPath(s *seg) string { return filepath.Join(l.dir(), segment.IndexName(s.base)) }

// SetConfig applies a changed topic configuration to later appends.
func (l *Log) SetConfig(cfg LogConfig) {
	l.mu.Lock()
	l.cfg = cfg.withDefaults()
	l.mu.Unlock()
}

// Offsets are a log's borders.
type Offsets struct {
	Start         int64 // log start offset: the first that may be read
	LocalStart    int64 // first offset on this disk or in memory
	HighWatermark int64 // end of the durable prefix; also the last stable offset
	End           int64 // where the next append goes
}

// Offsets returns the log's borders.
func (l *Log) Offsets() Offsets {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Offsets{Start: l.start, LocalStart: l.localStartLocked(), HighWatermark: l.hw, End: l.next.Load()}
}

func (l *Log) localStartLocked() int64 {
	for _, s := range l.segs {
		if !s.logGone {
			return max(s.base, l.start)
		}
	}
	return l.next.Load()
}

// SetStart raises the log start offset: what is below is no longer read. The
// caller has made the move durable before.
func (l *Log) SetStart(offset int64) {
	l.mu.Lock()
	if offset > l.start {
		l.start = offset
		l.dropRunsLocked(offset)
		l.wakeLocked()
	}
	l.mu.Unlock()
}

// Watcher is told of news of a log. Wake is called with the log's lock held: it
// must not block, nor call the log.
type Watcher interface{ Wake() }

// watching is one Watch, and where it is in Log.watchers.
type watching struct {
	w  Watcher
	at int
}

// Watch wakes w whenever the high watermark or the log start moves, or the log
// fails or is closed. The returned function ends it.
func (l *Log) Watch(w Watcher) (cancel func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := &watching{w: w, at: len(l.watchers)}
	l.watchers = append(l.watchers, n)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		last := len(l.watchers) - 1
		if n.at < 0 {
			return // ended already
		}
		l.watchers[n.at] = l.watchers[last]
		l.watchers[n.at].at = n.at
		l.watchers[last] = nil
		l.watchers, n.at = l.watchers[:last], -1
	}
}

// Wake wakes the watchers: something else about the partition has changed.
func (l *Log) Wake() {
	l.mu.Lock()
	l.wakeLocked()
	l.mu.Unlock()
}

func (l *Log) wakeLocked() {
	for _, n := range l.watchers {
		n.w.Wake()
	}
}

// activeLocked returns the segment that takes appends, or nil.
func (l *Log) activeLocked() *seg {
	if n := len(l.segs); n > 0 && l.segs[n-1].state == segActive {
		return l.segs[n-1]
	}
	return nil
}

// segAtLocked returns the segment with files that holds offset, or nil.
func (l *Log) segAtLocked(offset int64) *seg {
	i := sort.Search(len(l.segs), func(i int) bool { return l.segs[i].last >= offset })
	if i == len(l.segs) || l.segs[i].base > offset || l.segs[i].logGone {
		return nil
	}
	return l.segs[i]
}

// Epochs returns the leader epochs of the log's batches on this disk, oldest
// first, each with its first offset.
func (l *Log) Epochs() []segment.EpochStart {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]segment.EpochStart(nil), l.epochs...)
}

// Producers returns the idempotence state, for DescribeProducers and tests.
func (l *Log) Producers() []segment.ProducerState {
	l.appendMu.Lock()
	defer l.unlockAppend()
	return l.producers.snapshot(l.store.opts.Now().UnixMilli(), l.store.opts.ProducerExpiry)
}

// SegmentInfo describes a local segment.
type SegmentInfo struct {
	Base, Last   int64
	Bytes        int64
	MaxTimestamp int64
	Closed       bool
	Tiered       bool
	Began        time.Time // when the first batch came, of an active one
	ClosedAt     time.Time
}

// End is where the next append goes.
func (l *Log) End() int64 { return l.next.Load() }

// Closing tells whether a segment is full and will soon be closed.
func (l *Log) Closing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segs {
		if s.state == segClosing && s.last >= s.base {
			return true
		}
	}
	return false
}

// Segments lists the local segments, oldest first.
func (l *Log) Segments() []SegmentInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]SegmentInfo, 0, len(l.segs))
	for _, s := range l.segs {
		if s.logGone || s.last < s.base {
			continue
		}
		out = append(out, SegmentInfo{Base: s.base, Last: s.last, Bytes: s.size, MaxTimestamp: s.maxTS,
			Closed: s.state == segClosed, Tiered: s.tiered, Began: s.began, ClosedAt: s.closedAt})
	}
	return out
}
