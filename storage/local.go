package storage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// DropLocal removes the closed segments from this disk whose offsets are all
// below before, oldest first. The caller has made sure that nobody needs them
// here: they are tiered and indexed, or below the log start. Files in use go
// with their last user. It returns the bytes given up.
func (l *Log) DropLocal(before int64) int64 {
	var gone []*seg
	var n int64
	l.flushMu.Lock()
	l.mu.Lock()
	for _, s := range l.segs {
		if s.state != segClosed || s.last >= before {
			break
		}
		if s.logGone {
			continue
		}
		n += s.size
		s.dropped, s.logGone = true, true
		if s.users == 0 {
			gone = append(gone, s)
		}
	}
	l.popLocked()
	l.mu.Unlock()
	l.flushMu.Unlock()
	for _, s := range gone {
		l.removeFiles(s)
	}
	l.dropOldIndex()
	return n
}

// removeFiles removes a dropped segment's .log; its .idx goes when a newer one
// tells where the log ends.
func (l *Log) removeFiles(s *seg) {
	if err := l.recycleOrRemove(s); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.store.opts.Logger.Warn("remove segment", "path", l.logPath(s), "err", err)
	} else {
		l.mu.Lock()
		s.logRemoved = true
		l.mu.Unlock()
	}
	l.store.free(s.size)
}

// dropOldIndex removes the .idx files of dropped segments but the newest one
// of the log, which remembers the end offset and the producers.
func (l *Log) dropOldIndex() {
	l.mu.Lock()
	newest := -1
	for i, s := range l.segs {
		if s.state == segClosed {
			newest = i
		}
	}
	var gone []*seg
	keep := l.segs[:0:0]
	for i, s := range l.segs {
		if s.logRemoved && i < newest {
			gone = append(gone, s)
		} else {
			keep = append(keep, s)
		}
	}
	l.segs = keep
	l.mu.Unlock()
	if len(gone) == 0 {
		return
	}
	// The .log must not come back by a power loss when the .idx has gone: it
	// would look like an open segment in front of closed ones.
	if err := l.store.opts.FS.SyncDir(l.dir()); err != nil {
		l.mu.Lock()
		removed := l.closed && errors.Is(err, fs.ErrNotExist)
		l.mu.Unlock()
		if !removed { // with its directory, meanwhile
			_ = l.diskError("sync directory", err) // tells it
		}
		return
	}
	for _, s := range gone {
		if err := l.store.opts.FS.Remove(l.idxPath(s)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.store.opts.Logger.Warn("remove index", "path", l.idxPath(s), "err", err)
		}
		l.store.free(s.trailer)
	}
}

// MarkTiered says that offsets up to last are in the bucket and indexed.
func (l *Log) MarkTiered(last int64) {
	l.mu.Lock()
	for _, s := range l.segs {
		if s.state == segClosed && s.last <= last {
			s.tiered = true
		}
	}
	l.dropRunsLocked(last + 1)
	l.mu.Unlock()
}

// ClosedSegment describes a closed segment that is still on disk.
type ClosedSegment struct {
	Meta     segment.Meta
	Bytes    int64 // of the object: log and trailer
	CRC32C   uint32
	ClosedAt time.Time
	Tiered   bool
}

// ClosedSegments lists the closed segments on this disk, oldest first.
func (l *Log) ClosedSegments() []ClosedSegment {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []ClosedSegment
	for _, s := range l.segs {
		if s.state != segClosed || s.logGone {
			continue
		}
		out = append(out, l.closedLocked(s))
	}
	return out
}

// ClosedSince returns the oldest closed segment on this disk that is not tiered
// and reaches offset from, with how many such segments there are and the bytes
// of their objects. Without one n is 0.
func (l *Log) ClosedSince(from int64) (first ClosedSegment, n int, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segs {
		if s.state != segClosed || s.logGone || s.tiered || s.last < from {
			continue
		}
		if n == 0 {
			first = l.closedLocked(s)
		}
		n++
		bytes += s.size + s.trailer
	}
	return first, n, bytes
}

func (l *Log) closedLocked(s *seg) ClosedSegment {
	return ClosedSegment{
		Meta:  segment.Meta{TP: l.tp, Base: s.base, Last: s.last, LogSize: s.size, MaxTimestamp: s.maxTS},
		Bytes: s.size + s.trailer, CRC32C: s.crc, ClosedAt: s.closedAt, Tiered: s.tiered,
	}
}

// SegmentReader reads a closed segment as the object that the bucket will
// hold: the bytes of the .log, then those of the .idx. Its files stay until Close.
type SegmentReader struct {
	log     *Log
	seg     *seg
	file    vfs.File
	trailer []byte
	index   *segment.Index
	crc     uint32
	size    int64

	mu  sync.Mutex
	buf []byte // of the log, from at on, read with direct I/O
	at  int64
	n   int
}

// readWindow is how much of a .log is read at once.
const readWindow = 1 << 20

// OpenSegment opens the closed segment that begins at base.
func (l *Log) OpenSegment(base int64) (*SegmentReader, error) {
	l.mu.Lock()
	var s *seg
	for _, g := range l.segs {
		if g.base == base && g.state == segClosed && !g.logGone {
			s = g
			s.users++
		}
	}
	closed := l.closed
	l.mu.Unlock()
	if s == nil || closed {
		return nil, fmt.Errorf("%w: closed segment %d of %s", ErrNotLocal, base, l.tp)
	}
	r := &SegmentReader{log: l, seg: s, size: s.size, crc: s.crc}
	var err error
	if r.trailer, err = readFile(l.store.opts.FS, l.idxPath(s), segment.MaxTrailer); err == nil {
		r.index, err = segment.ParseTrailer(r.trailer)
	}
	if err == nil {
		r.file, err = l.store.opts.FS.Open(l.logPath(s), vfs.ReadOnly|vfs.Direct)
	}
	if err != nil {
		l.unuse(s)
		return nil, fmt.Errorf("open segment %d of %s: %w", base, l.tp, err)
	}
	return r, nil
}

// Index is the segment's parsed trailer.
func (r *SegmentReader) Index() *segment.Index { return r.index }

// Size is the object's size in bytes.
func (r *SegmentReader) Size() int64 { return r.size + int64(len(r.trailer)) }

// CRC32C is the object's checksum as the append path computed it.
func (r *SegmentReader) CRC32C() uint32 { return r.crc }

// ReadAt reads the object's bytes.
func (r *SegmentReader) ReadAt(b []byte, off int64) (int, error) {
	n := 0
	if off < r.size {
		want := b[:min(int64(len(b)), r.size-off)]
		if err := r.readLog(want, off); err != nil {
			return 0, fmt.Errorf("read segment %d of %s at %d: %w", r.seg.base, r.log.tp, off, err)
		}
		n = len(want)
	}
	if n < len(b) {
		at := off + int64(n) - r.size
		if at > int64(len(r.trailer)) {
			return n, io.EOF
		}
		n += copy(b[n:], r.trailer[at:])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// readLog reads bytes of the .log through an aligned window: uploads read it
// once from front to back, which would only push hot pages out of the cache.
func (r *SegmentReader) readLog(b []byte, off int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.buf == nil {
		r.buf = vfs.AlignedBytes(int(min(readWindow, (r.size+vfs.BlockSize-1)&^(vfs.BlockSize-1))))
	}
	for len(b) > 0 {
		if off < r.at || off >= r.at+int64(r.n) {
			at := off &^ (vfs.BlockSize - 1)
			n, err := r.file.ReadAt(r.buf, at)
			if at+int64(n) <= off {
				return errors.Join(err, io.ErrUnexpectedEOF)
			}
			r.at, r.n = at, n
		}
		n := copy(b, r.buf[off-r.at:r.n])
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// Close lets the files go.
func (r *SegmentReader) Close() error {
	err := r.file.Close()
	r.log.unuse(r.seg)
	return err
}

// TimeOffset is a record's place and time.
type TimeOffset struct {
	Offset, Timestamp int64
	Epoch             int32
}

// FirstSpanSince returns where the first record at or after offset from with a
// timestamp >= ts may be on this disk: the offsets [base, end) of the first span
// that reaches beyond from and has such a timestamp. It need not be of a record
// beyond from: then the search goes on from end. ok is false when there is none.
func (l *Log) FirstSpanSince(ts, from int64) (base, end int64, ok bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segs {
		if s.logGone || s.last < s.base || s.maxTS < ts || s.last < from {
			continue
		}
		if s.builder != nil {
			if base, end, ok = s.builder.LookupTime(ts, from); ok {
				return base, end, true, nil
			}
			continue
		}
		if s.index == nil {
			if s.index, _, err = l.readIndex(s); err != nil {
				return 0, 0, false, err
			}
		}
		if base, end, ok = s.index.LookupTime(ts, from); ok {
			return base, end, true, nil
		}
	}
	return 0, 0, false, nil
}

// MaxTimestamp returns the greatest batch timestamp of the segments on this
// disk that reach beyond the log start, -1 when there is none. It may be that
// of a record below the log start.
func (l *Log) MaxTimestamp() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	ts := int64(-1)
	for _, s := range l.segs {
		if !s.logGone && s.last >= s.base && s.last >= l.start {
			ts = max(ts, s.maxTS)
		}
	}
	return ts
}
