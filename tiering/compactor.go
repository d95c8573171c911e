package tiering

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/lock"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Scanner reads segments without the caches; Reader is one.
type Scanner interface {
	// Trailer returns a segment's trailer.
	Trailer(ctx context.Context, row Segment) (*segment.Index, error)
	Scan(ctx context.Context, row Segment, from, to int64, fn func(h batch.Header, raw []byte) error) error
}

// CompactIndex is the segment index as a Compactor changes it.
type CompactIndex interface {
	// Segments is that of Index.
	Segments(ctx context.Context, tp ids.TopicPartition, from int64, limit int) ([]Segment, error)
	// Replace indexes a segment as Index.Add does and removes the rows of
	// others, at most MaxReplaced, in one step.
	Replace(ctx context.Context, s Segment, replaced []SegmentKey) error
	// Drop is that of Index.
	Drop(ctx context.Context, tp ids.TopicPartition, keys []SegmentKey) error
}

// MaxReplaced is how many segments one rewritten segment replaces at most.
const MaxReplaced = 80

// CompactorOptions are what a Compactor needs. Reader, Bucket, Index and
// Incarnation are required; the zero value of the others is their default.
type CompactorOptions struct {
	Reader      Scanner
	Bucket      objstore.Bucket
	Index       CompactIndex
	Incarnation ids.Incarnation
	Logger      *slog.Logger     // default: discard
	Now         func() time.Time // default: time.Now

	// MapBytes bounds the table of keys. What does not fit is cleaned by
	// further passes. Default 64 MiB: 2 million keys.
	MapBytes int64
	// OutputBytes bounds a rewritten segment, which is made in memory, unless
	// its only batch is larger. Default 64 MiB.
	OutputBytes int64
	// BytesPerSecond bounds how fast segments are read. Default 64 MiB.
	BytesPerSecond int64
}

// Compactor cleans compacted partitions in the bucket: it keeps the latest
// record of each key. One call runs at a time.
type Compactor struct {
	o       CompactorOptions
	passes  atomic.Int64 // counter in generations
	running lock.Mutex

	mu    sync.Mutex
	stats CompactStats
}

// CompactStats are counters since the start.
type CompactStats struct {
	Passes, Failures int64
	SegmentsReplaced int64
	SegmentsWritten  int64
	BytesRead        int64 // of batches, those of the table of keys too
	BytesWritten     int64 // of batches
	BytesRemoved     int64 // of batches: replaced less written
	RecordsRemoved   int64
	LastEnd          time.Time     // of the last pass that succeeded
	LastTook         time.Duration // it took
}

// NewCompactor returns a Compactor.
func NewCompactor(o CompactorOptions) (*Compactor, error) {
	if o.Reader == nil || o.Bucket == nil || o.Index == nil || o.Incarnation == "" {
		return nil, errors.New("create compactor: reader, bucket, index and incarnation are required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.MapBytes = orDefault(o.MapBytes, 64<<20)
	o.OutputBytes = orDefault(o.OutputBytes, 64<<20)
	o.BytesPerSecond = orDefault(o.BytesPerSecond, 64<<20)
	return &Compactor{o: o}, nil
}

// Stats returns the counters.
func (c *Compactor) Stats() CompactStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

func (c *Compactor) count(f func(*CompactStats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.stats)
}

// CompactTarget is a partition to clean, by its leader.
type CompactTarget struct {
	TP       ids.TopicPartition
	Epoch    int32 // that the caller leads the partition with
	LogStart int64
	Config   CompactConfig
	// Replaced, if set, is told of every change of the index.
	Replaced func(s Segment, replaced []Segment)
}

// CompactResult tells what a Compact did.
type CompactResult struct {
	Passes int
	// Next is from when the partition has to be looked at again although no
	// segment has been added; zero: there is no such time.
	Next time.Time
}

// Compact cleans a partition if it is due. What is done when it ends with an
// error stays; the next call goes on.
func (c *Compactor) Compact(ctx context.Context, t CompactTarget) (res CompactResult, err error) {
	c.running.Lock()
	defer c.running.Unlock()
	defer func() {
		if err != nil && ctx.Err() == nil {
			c.count(func(s *CompactStats) { s.Failures++ })
		}
	}()
	goal := int64(-1) // where the passes of this call end
	for {
		rows, err := rowsFrom(ctx, c.o.Index, t.TP, t.LogStart)
		if err != nil {
			return res, fmt.Errorf("compact %s: read segment index: %w", t.TP, err)
		}
		p := planCompaction(rows, t.Config, c.o.Now().UnixMilli())
		if p.next < math.MaxInt64 {
			res.Next = time.UnixMilli(p.next)
		}
		if p.dirty == len(p.extents) || goal < 0 && !p.due || goal >= 0 && p.extents[p.dirty].from >= goal {
			return res, nil
		}
		if goal < 0 {
			goal = p.end()
		}
		began := c.o.Now()
		if err := c.pass(ctx, t, rows, p); err != nil {
			return res, fmt.Errorf("compact %s: %w", t.TP, err)
		}
		res.Passes++
		c.count(func(s *CompactStats) {
			s.Passes++
			s.LastEnd = c.o.Now()
			s.LastTook = s.LastEnd.Sub(began)
		})
	}
}

// rowsFrom reads all rows of a partition that hold an offset from from on.
func rowsFrom(ctx context.Context, index CompactIndex, tp ids.TopicPartition, from int64) ([]Segment, error) {
	const page = 1000
	var rows []Segment
	for {
		got, err := index.Segments(ctx, tp, from, page)
		if err != nil {
			return nil, err
		}
		rows = append(rows, got...)
		if len(got) < page {
			return rows, nil
		}
		from = got[len(got)-1].Last + 1
	}
}

// pass cleans once: it notes the keys of as much as the table takes of what was
// never cleaned, and then rewrites everything from the first segment up to there.
// Nothing is left out because it would not change: every object of a former
// pass, also one that a crash left without a row, is outranked by this one's.
func (c *Compactor) pass(ctx context.Context, t CompactTarget, rows []Segment, p compactPlan) error {
	f := &recordFilter{keys: newKeyMap(c.o.MapBytes), now: c.o.Now().UnixMilli(), deleteRetention: t.Config.DeleteRetentionMs}
	end, err := c.noteKeys(ctx, f, p.extents[p.dirty:])
	if err != nil {
		return err
	}
	w := &rewriter{c: c, t: t, f: f, rows: rows, begin: p.extents[0].from, next: p.extents[0].from,
		generation: int64(t.Epoch)<<32 | c.passes.Add(1), target: min(t.Config.SegmentBytes, c.o.OutputBytes)}
	for _, x := range p.extents {
		if x.from >= end {
			break
		}
		x.to = min(x.to, end-1)
		if err := w.extent(ctx, x); err != nil {
			return err
		}
	}
	return w.flush(ctx)
}

// errFull ends a scan.
var errFull = errors.New("table of keys is full")

// noteKeys fills the table of keys and returns the offset up to which it knows
// them all: where the extents end, or the beginning of the one at which it was
// full, or in the first one the batch.
func (c *Compactor) noteKeys(ctx context.Context, f *recordFilter, dirty []extent) (int64, error) {
	pace := c.pacer()
	end := dirty[0].from
	for i, x := range dirty {
		err := c.o.Reader.Scan(ctx, x.row, x.from, x.to, func(h batch.Header, raw []byte) error {
			if h.BaseOffset < x.from || h.LastOffset() > x.to {
				return fmt.Errorf("%w: batch %d-%d reaches out of %d-%d", ErrDamaged, h.BaseOffset, h.LastOffset(), x.from, x.to)
			}
			ok, err := f.note(&h, raw)
			if err == nil && !ok {
				err = errFull
			}
			if err != nil {
				return err
			}
			if i == 0 {
				end = h.LastOffset() + 1
			}
			return pace(ctx, len(raw))
		})
		switch {
		case errors.Is(err, errFull):
			return end, nil
		case err != nil:
			return 0, fmt.Errorf("read %s: %w", x.row.Key(), err)
		}
		end = x.to + 1
	}
	return end, nil
}

// pacer returns a function that counts bytes read and sleeps as the rate wants it.
func (c *Compactor) pacer() func(ctx context.Context, n int) error {
	due := 0
	return func(ctx context.Context, n int) error {
		c.count(func(s *CompactStats) { s.BytesRead += int64(n) })
		if due += n; due < 1<<20 {
			return nil
		}
		d := time.Duration(float64(due) / float64(c.o.BytesPerSecond) * float64(time.Second))
		due = 0
		return sleep(ctx, d)
	}
}

// rewriter writes the cleaned segments of one pass, oldest first.
type rewriter struct {
	c          *Compactor
	t          CompactTarget
	f          *recordFilter
	rows       []Segment // of the partition, ordered by Last
	begin      int64     // of the pass
	generation int64
	target     int64 // bytes of a rewritten segment

	next    int64 // first offset that is not in a segment of this pass
	builder *segment.Builder
	buf     []byte
	in      segment.Inherited
	before  int64 // records that came in since the last flush
	read    int64 // their bytes
}

// extent cleans a range of one segment. A rewritten segment ends when it is
// large enough, wherever that is.
func (w *rewriter) extent(ctx context.Context, x extent) error {
	if w.builder != nil && len(w.covered(x.to)) > MaxReplaced {
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
	idx, err := w.c.o.Reader.Trailer(ctx, x.row)
	if err != nil {
		return fmt.Errorf("clean %s: %w", x.row.Key(), err)
	}
	pace := w.c.pacer()
	err = w.c.o.Reader.Scan(ctx, x.row, x.from, x.to, func(h batch.Header, raw []byte) error {
		if h.BaseOffset < x.from || h.LastOffset() > x.to {
			return fmt.Errorf("%w: batch %d-%d reaches out of %d-%d", ErrDamaged, h.BaseOffset, h.LastOffset(), x.from, x.to)
		}
		out, _, err := w.f.apply(&h, raw)
		if err != nil {
			return err
		}
		if w.builder != nil && len(w.buf) > 0 && int64(len(w.buf)+len(out)) > w.target {
			w.inherit(idx, x, w.in.Last)
			if err := w.flush(ctx); err != nil {
				return err
			}
		}
		w.start()
		w.before += int64(h.NumRecords)
		w.read += int64(len(raw))
		if err := w.add(out); err != nil {
			return err
		}
		w.in.Last = h.LastOffset()
		return pace(ctx, len(raw))
	})
	if err != nil {
		return fmt.Errorf("clean %s: %w", x.row.Key(), err)
	}
	w.start()
	w.inherit(idx, x, x.to)
	if x.to == x.row.Last {
		w.in.Producers = idx.Producers
	}
	w.in.Last = x.to
	return nil
}

// start begins a rewritten segment unless one is begun.
func (w *rewriter) start() {
	if w.builder == nil {
		w.builder = segment.NewBuilder(w.t.TP, w.next, w.t.Config.IndexInterval)
		w.in.Epochs, w.in.Aborted, w.in.LastStable = nil, nil, 0
	}
}

func (w *rewriter) add(out []byte) error {
	if out == nil {
		return nil
	}
	h, err := batch.Parse(out)
	if err != nil {
		return err
	}
	w.builder.Add(h, out)
	w.buf = append(w.buf, out...)
	return nil
}

// inherit takes over what a segment says of the offsets from the extent's first
// to last.
func (w *rewriter) inherit(idx *segment.Index, x extent, last int64) {
	from := max(x.from, w.builder.Meta().Base)
	w.in.Epochs = addEpochs(w.in.Epochs, idx.Epochs, from, last)
	w.in.Aborted = append(w.in.Aborted, idx.Aborted(from, last+1)...)
	w.in.LastStable = max(w.in.LastStable, min(idx.Meta.LastStable, last+1))
}

// covered returns the segments that are wholly replaced once this pass has
// written everything up to end.
func (w *rewriter) covered(end int64) (out []Segment) {
	for _, r := range w.rows {
		if r.Last > end {
			break
		}
		if r.Generation < w.generation && max(r.Base, w.t.LogStart) >= w.begin {
			out = append(out, r)
		}
	}
	return out
}

// putTime is what a put may take, beside a second for each MiB.
const putTime = 30 * time.Second

// flush puts the rewritten segment into the bucket and then, in one step, into
// the index in place of those it replaces (bytes before references). Without a
// segment it does nothing. The name is of this pass alone, so an object that an
// unknown outcome or a crash leaves behind is never taken for another.
func (w *rewriter) flush(ctx context.Context) error {
	if w.builder == nil {
		return nil
	}
	trailer := w.builder.RewriteTrailer(w.in)
	m := w.builder.Meta()
	row := Segment{
		SegmentKey: SegmentKey{TP: m.TP, Base: m.Base, Last: m.Last, Epoch: w.t.Epoch, Incarnation: w.c.o.Incarnation, Generation: w.generation},
		Size:       m.LogSize + int64(len(trailer)), LogSize: m.LogSize, Records: m.Records, MinTimestamp: m.MinTimestamp, MaxTimestamp: m.MaxTimestamp,
		LastStable: w.in.LastStable, Uploaded: w.c.o.Now().UnixMilli(),
	}
	crc := w.builder.ObjectCRC(trailer)
	w.buf = append(w.buf, trailer...)
	if err := w.put(ctx, row, crc); err != nil {
		return err
	}
	replaced := w.covered(m.Last)
	if err := w.replace(ctx, row, replaced); err != nil {
		return err
	}
	w.c.count(func(s *CompactStats) {
		s.SegmentsWritten++
		s.SegmentsReplaced += int64(len(replaced))
		s.BytesWritten += m.LogSize
		s.BytesRemoved += w.read - m.LogSize
		s.RecordsRemoved += w.before - m.Records
	})
	w.c.o.Logger.Debug("rewrote segments", "key", row.Key(), "replaced", len(replaced), "records", m.Records, "removed", w.before-m.Records, "bytes", m.LogSize)
	if w.t.Replaced != nil {
		w.t.Replaced(row, replaced)
	}
	done := map[SegmentKey]bool{}
	for _, r := range replaced {
		done[r.SegmentKey] = true
	}
	rest := make([]Segment, 0, len(w.rows))
	for _, r := range w.rows {
		if !done[r.SegmentKey] {
			rest = append(rest, r)
		}
	}
	w.rows = rest
	w.next, w.builder, w.buf, w.before, w.read = m.Last+1, nil, w.buf[:0], 0, 0
	return nil
}

func (w *rewriter) put(ctx context.Context, row Segment, crc uint32) error {
	limit := putTime + time.Duration(row.Size>>20)*time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("put took longer than %v", limit))
	defer cancel()
	if _, err := objstore.PutCreateOnly(ctx, w.c.o.Bucket, row.Key(), bytes.NewReader(w.buf), objstore.PutOptions{CRC32C: &crc}); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	// A store may say yes and keep nothing: look before anything relies on it.
	info, err := w.c.o.Bucket.Head(ctx, row.Key())
	if err != nil {
		return fmt.Errorf("look for %s: %w", row.Key(), err)
	}
	if info.Size != row.Size {
		return fmt.Errorf("look for %s: %d bytes, want %d: %w", row.Key(), info.Size, row.Size, errConflict)
	}
	return nil
}

func (w *rewriter) replace(ctx context.Context, row Segment, replaced []Segment) error {
	keys := make([]SegmentKey, len(replaced))
	for i, r := range replaced {
		keys[i] = r.SegmentKey
	}
	n := min(len(keys), MaxReplaced)
	if err := w.c.o.Index.Replace(ctx, row, keys[:n]); err != nil {
		return fmt.Errorf("index %s: %w", row.Key(), err)
	}
	if n < len(keys) { // outranked already; one segment had more behind it than a commit takes
		if err := w.c.o.Index.Drop(ctx, row.TP, keys[n:]); err != nil {
			return fmt.Errorf("drop rows behind %s: %w", row.Key(), err)
		}
	}
	return nil
}
