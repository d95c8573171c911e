package tiering

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// ErrClosed is returned by a Reader after Close.
var ErrClosed = errors.New("tiering: reader is closed")

// ReaderOptions are what a Reader needs. Bucket and Index are required; the
// zero value of the others is their default.
type ReaderOptions struct {
	Bucket objstore.Reader
	Index  Index
	// FS and CacheDir say where blocks are kept on disk; without them only
	// memory is used. The directory belongs to one Reader.
	FS         vfs.FS
	CacheDir   string
	CacheBytes int64 // of the files in CacheDir. Default 10 GiB
	// MemoryBytes bounds everything the reader holds: an eighth for trailers,
	// three eighths for results that are not yet released, half for blocks.
	// Only a single batch larger than the share of results exceeds it.
	// Default 256 MiB; at least 32 blocks.
	MemoryBytes int64
	BlockBytes  int64 // unit of reading and caching. Default 4 MiB
	Concurrency int   // GETs in flight. Default 16
	// ReadAhead is how far reading ahead of a sequential reader may grow, in
	// bytes. Default 32 MiB; negative: no read-ahead.
	ReadAhead int64
	// AttemptTimeout bounds one GET, Timeout all tries of one. Defaults 20 s
	// and 2 min.
	AttemptTimeout, Timeout time.Duration
	Logger                  *slog.Logger     // default: discard
	Now                     func() time.Time // default: time.Now
}

func (o *ReaderOptions) setDefaults() error {
	if o.Bucket == nil || o.Index == nil {
		return errors.New("create tiered reader: bucket and index are required")
	}
	o.CacheBytes = orDefault(o.CacheBytes, 10<<30)
	o.MemoryBytes = orDefault(o.MemoryBytes, 256<<20)
	o.BlockBytes = orDefault(o.BlockBytes, 4<<20)
	if o.MemoryBytes < 32*o.BlockBytes {
		return fmt.Errorf("create tiered reader: %d bytes of memory, want at least 32 blocks of %d", o.MemoryBytes, o.BlockBytes)
	}
	o.Concurrency = orDefault(o.Concurrency, 16)
	if o.ReadAhead == 0 {
		o.ReadAhead = 32 << 20
	}
	o.AttemptTimeout = orDefault(o.AttemptTimeout, 20*time.Second)
	o.Timeout = orDefault(o.Timeout, 2*time.Minute)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return nil
}

// Reader serves tiered offsets of any partition. A read outlives the call that
// asked for it: when ctx ends first, the block arrives in the cache all the
// same, and the next call finds it. Its methods may be called concurrently.
type Reader struct {
	o        ReaderOptions
	ctx      context.Context // of everything that outlives a call
	cancel   context.CancelFunc
	wg       sync.WaitGroup // calls and loads
	fetcher  *fetcher
	disk     *diskCache // nil: none
	blocks   *blockCache
	trailers *memo[SegmentKey, *segment.Index]
	results  *semaphore.Weighted
	resultsN int64
	buffers  bufferPool
	streams  streams
	work     chan struct{} // see atWork

	mu     sync.Mutex
	closed bool
	rows   map[ids.TopicPartition]*list.Element // of *rowWindow
	order  *list.List
	stats  ReaderStats
}

// rowWindow is a run of a partition's rows, kept for a moment: sequential
// reads ask for the same ones again and again.
type rowWindow struct {
	tp   ids.TopicPartition
	from int64 // offset that the rows begin with
	rows []Segment
	at   time.Time
}

const (
	rowsAtOnce    = 256
	rowWindows    = 256 // partitions
	rowsAge       = 5 * time.Second
	maxTrailer    = 64 << 20 // bytes; a row that says more is wrong
	trailerFactor = 6        // a parsed trailer against its bytes
)

// ReaderStats are counters since the start and what is in use now.
type ReaderStats struct {
	Reads, BytesServed int64
	Gets, BytesFetched int64
	GetFailures        int64 // attempts
	Damaged            int64 // spans that did not match and were fetched again
	BlockHits          int64 // in memory
	BlockJoins         int64 // found in flight
	BlockLoads         int64 // from disk or bucket, read-ahead included
	DiskHits           int64
	AheadLoads         int64 // begun by read-ahead
	Memory             int64 // bytes of blocks, trailers and results
	CacheBytes         int64 // on disk
	CacheFiles         int
	CacheEvicted       int64
}

// NewReader opens the cache and returns a reader; Close ends it.
func NewReader(o ReaderOptions) (*Reader, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	r := &Reader{o: o, rows: map[ids.TopicPartition]*list.Element{}, order: list.New(), streams: newStreams(), work: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
	if o.FS != nil && o.CacheDir != "" {
		var err error
		if r.disk, err = openDiskCache(o.FS, o.CacheDir, o.CacheBytes, o.BlockBytes, o.Logger, o.Now); err != nil {
			return nil, err
		}
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	wait := backoff{100 * time.Millisecond, 5 * time.Second}
	r.fetcher = &fetcher{
		bucket: o.Bucket, slots: make(chan struct{}, o.Concurrency), gate: newGate(o.Concurrency, wait, o.Now),
		backoff: wait, attempt: o.AttemptTimeout, total: o.Timeout,
	}
	slots := int(o.MemoryBytes / 2 / o.BlockBytes)
	r.blocks = &blockCache{
		load: r.loadBlock, ctx: r.ctx, wg: &r.wg, blockSize: int(o.BlockBytes), slots: slots,
		maxAhead: max(1, min(o.Concurrency*3/4, slots/2)),
		blocks:   map[blockID]*block{}, flights: map[blockID]*flight{}, idle: list.New(),
		suspect: map[blockID]struct{}{},
	}
	r.trailers = newMemo(r.ctx, &r.wg, o.MemoryBytes/8, r.loadTrailer)
	r.resultsN = o.MemoryBytes * 3 / 8
	r.results = semaphore.NewWeighted(r.resultsN)
	return r, nil
}

// enter begins a call; leave ends it.
func (r *Reader) enter() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	r.wg.Add(1)
	return nil
}

func (r *Reader) leave() { r.wg.Done() }

// Close cancels what is in flight and returns when it has ended. Results not
// yet released stay valid.
func (r *Reader) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
	return nil
}

// Stats returns the counters.
func (r *Reader) Stats() ReaderStats {
	r.mu.Lock()
	s := r.stats
	r.mu.Unlock()
	b := r.blocks.snapshot()
	s.BlockHits, s.BlockJoins, s.BlockLoads, s.AheadLoads = b.hits, b.joins, b.loads, b.ahead
	s.Gets, s.BytesFetched, s.GetFailures = r.fetcher.gets.Load(), r.fetcher.bytes.Load(), r.fetcher.failures.Load()
	s.Memory += r.blocks.memory() + r.trailers.size()
	if r.disk != nil {
		s.CacheBytes, s.CacheFiles, s.CacheEvicted = r.disk.size()
	}
	return s
}

func (r *Reader) count(f func(*ReaderStats)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.stats)
}

// find returns the row to read offset from, none of those in bad, the offset
// at which to stop, and the rows around it.
func (r *Reader) find(ctx context.Context, tp ids.TopicPartition, offset int64, bad []SegmentKey) (row Segment, until int64, rows []Segment, err error) {
	if rows = without(r.knownRows(tp, offset), bad); rows != nil {
		if row, until, ok := choose(rows, offset); ok {
			return row, until, rows, nil
		}
	}
	if rows, err = r.o.Index.Segments(ctx, tp, offset, rowsAtOnce); err != nil {
		return row, 0, nil, fmt.Errorf("find segment of %s at %d: %w", tp, offset, err)
	}
	r.keepRows(tp, offset, rows)
	rows = without(rows, bad)
	row, until, ok := choose(rows, offset)
	if !ok {
		return row, 0, nil, fmt.Errorf("%w: %s at %d", ErrNoSegment, tp, offset)
	}
	return row, until, rows, nil
}

// without returns rows but for those of the keys in bad.
func without(rows []Segment, bad []SegmentKey) []Segment {
	if len(bad) == 0 {
		return rows
	}
	return slices.DeleteFunc(slices.Clone(rows), func(s Segment) bool { return slices.Contains(bad, s.SegmentKey) })
}

func (r *Reader) knownRows(tp ids.TopicPartition, offset int64) []Segment {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.rows[tp]
	if e == nil {
		return nil
	}
	w := e.Value.(*rowWindow)
	if offset < w.from || r.o.Now().Sub(w.at) > rowsAge {
		return nil
	}
	return w.rows
}

func (r *Reader) keepRows(tp ids.TopicPartition, from int64, rows []Segment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.rows[tp]; e != nil {
		r.order.Remove(e)
	}
	r.rows[tp] = r.order.PushFront(&rowWindow{tp, from, rows, r.o.Now()})
	if r.order.Len() > rowWindows {
		w := r.order.Remove(r.order.Back()).(*rowWindow)
		delete(r.rows, w.tp)
	}
}

func (r *Reader) forgetRows(tp ids.TopicPartition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.rows[tp]; e != nil {
		r.order.Remove(e)
		delete(r.rows, tp)
	}
}

// loadTrailer gets and parses the trailer of a row's object.
func (r *Reader) loadTrailer(ctx context.Context, k SegmentKey, arg any) (*segment.Index, int64, error) {
	row := arg.(Segment)
	n := row.Size - row.LogSize
	if row.LogSize < 0 || n < segment.FooterSize || n > maxTrailer {
		return nil, 0, fmt.Errorf("%w: row of %s says %d bytes of which %d are log", ErrDamaged, k.Key(), row.Size, row.LogSize)
	}
	buf := make([]byte, n)
	var idx *segment.Index
	for attempt := 1; ; attempt++ {
		if err := r.fetcher.fetch(ctx, k.Key(), row.LogSize, buf); err != nil {
			return nil, 0, err
		}
		var err error
		if idx, err = segment.ParseTrailer(buf); err == nil {
			err = matches(row, idx.Meta)
		}
		switch {
		case err == nil:
			return idx, n * trailerFactor, nil
		case attempt == 1: // on the way, perhaps; a flipped version bit too
		case errors.Is(err, segment.ErrVersion):
			return nil, 0, fmt.Errorf("read trailer of %s: %w", k.Key(), err)
		default:
			return nil, 0, fmt.Errorf("read trailer of %s: %w: %w", k.Key(), ErrDamaged, err)
		}
		r.count(func(s *ReaderStats) { s.Damaged++ })
	}
}

// loadBlock fills buf from the disk cache, unless fresh, or else from the
// bucket; keep then puts it into the disk cache and unkeep takes it out. What a
// sequential reader reads for the first time is not kept.
func (r *Reader) loadBlock(ctx context.Context, id blockID, buf []byte, fresh, once bool) (keep, unkeep func(), err error) {
	if r.disk != nil && !fresh && r.disk.get(id, buf) {
		r.count(func(s *ReaderStats) { s.DiskHits++ })
		return nil, nil, nil
	}
	if err := r.fetcher.fetch(ctx, id.key, id.block*r.o.BlockBytes, buf); err != nil {
		return nil, nil, err
	}
	if r.disk == nil || once && !r.disk.secondTime(id) {
		return nil, nil, nil
	}
	return func() { r.disk.put(id, buf) }, func() { r.disk.drop(id) }, nil
}

// blockLen is the length of block n of a row's log.
func (r *Reader) blockLen(row Segment, n int64) int {
	return int(min(r.o.BlockBytes, row.LogSize-n*r.o.BlockBytes))
}
