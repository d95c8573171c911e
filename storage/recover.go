package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// recovery rebuilds the logs of a store.
type recovery struct {
	s       *Store
	staging []byte     // once memory runs full
	chunk   *wal.Chunk // memory for replayed batches
	used    int
}

// recover reads segment files, spill files and stream, in this order: each
// goes on where the one before ends.
func (s *Store) recover() error {
	r := &recovery{s: s}
	entries, err := s.opts.FS.List(filepath.Join(s.opts.Dir, logsDir))
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	var dirs []*Log
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), removedSuffix) {
			if err := s.opts.FS.RemoveAll(filepath.Join(s.opts.Dir, logsDir, e.Name())); err != nil {
				return fmt.Errorf("recover: %w", err)
			}
			continue
		}
		tp, err := ids.ParseTopicPartition(e.Name())
		if err != nil {
			return fmt.Errorf("recover: unknown entry in %s: %w", filepath.Join(s.opts.Dir, logsDir), err)
		}
		s.logs[tp] = newLog(s, tp, LogConfig{}, 0)
		dirs = append(dirs, s.logs[tp])
	}
	if err := recoverLogs(dirs); err != nil {
		return err
	}
	if err := r.spills(); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	err = s.stream.Replay(func(e *wal.Entry) error { return r.entry(e, nil) })
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if r.chunk != nil {
		r.chunk.Release()
	}
	for _, l := range s.logs {
		if err := l.cutGarbage(); err != nil {
			return fmt.Errorf("recover %s: %w", l.tp, err)
		}
		l.producersReady()
	}
	return nil
}

const (
	// recoverers read so many logs' files at the same time, if there are more
	// than fewLogs: most of it is waiting for the disk and the kernel.
	recoverers = 8
	fewLogs    = 64
)

// recoverLogs reads the files of the logs.
func recoverLogs(logs []*Log) error {
	var g errgroup.Group
	n := recoverers
	if len(logs) <= fewLogs {
		n = 1
	}
	piece := max(len(logs)/(recoverers*8), 1)
	pieces := make(chan []*Log, len(logs)/piece+1)
	for part := range slices.Chunk(logs, piece) {
		pieces <- part
	}
	close(pieces)
	for range n {
		g.Go(func() error {
			buf := make([]byte, headBytes)
			for part := range pieces {
				for _, l := range part {
					if err := l.recoverFiles(buf); err != nil {
						return fmt.Errorf("recover %s: %w", l.tp, err)
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// headBytes is the size of the buffer that an .idx is read into at a start:
// enough for those of segments of the usual sizes.
const headBytes = 256 << 10

// localFiles are the files of one segment.
type localFiles struct {
	base     int64
	log, idx bool
	marked   bool // its .log is of used blocks, see recover_reused.go
}

// recoverFiles reads the log's directory: closed segments by their .idx, the
// others by scanning for their valid prefix. buf is for its use.
func (l *Log) recoverFiles(buf []byte) error {
	dir, err := vfs.OpenDir(l.store.opts.FS, l.dir())
	if err != nil {
		return err
	}
	err = l.recoverDir(dir, buf)
	return errors.Join(err, dir.Close())
}

func (l *Log) recoverDir(dir vfs.Dir, buf []byte) error {
	files, err := l.listFiles(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.marked {
			if err := l.recoverMarked(f); err != nil {
				return err
			}
		}
		switch {
		case f.idx:
			err = l.recoverClosed(dir, f, buf)
		case f.marked: // the stream tells how far to read, if there is a file
		case len(l.later) > 0 || len(l.reused) > 0 || l.activeLocked() != nil && f.base > l.next.Load():
			l.later = append(l.later, f.base) // the stream has what lies between
		default:
			err = l.recoverOpen(f.base)
		}
		if err != nil {
			return err
		}
	}
	l.hw = l.next.Load()
	return nil
}

// listFiles returns the segments that have files, by base, and removes
// unfinished files.
func (l *Log) listFiles(dir vfs.Dir) ([]localFiles, error) {
	names, err := dir.Names()
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	files := make([]localFiles, 0, len(names))
	for _, name := range names {
		if strings.HasSuffix(name, ".tmp") {
			if err := l.store.opts.FS.Remove(filepath.Join(l.dir(), name)); err != nil {
				return nil, err
			}
			continue
		}
		name, marker := strings.CutSuffix(name, ReusedSuffix)
		base, isIndex, err := segment.ParseName(name)
		if err != nil {
			return nil, err
		}
		if n := len(files); n == 0 || files[n-1].base != base {
			files = append(files, localFiles{base: base})
		}
		f := &files[len(files)-1]
		f.idx, f.log, f.marked = f.idx || isIndex, f.log || !isIndex && !marker, f.marked || marker
	}
	return files, nil
}

// recoverClosed adds a segment that has an .idx.
func (l *Log) recoverClosed(dir vfs.Dir, f localFiles, buf []byte) error {
	s := &seg{base: f.base, state: segClosed, logGone: !f.log, logRemoved: !f.log}
	idx, n, err := l.readIndexIn(dir, s, buf)
	if err != nil {
		return err
	}
	if n := len(l.segs); n > 0 && l.segs[n-1].state != segClosed || len(l.later) > 0 || len(l.reused) > 0 {
		return fmt.Errorf("%w: closed segment %d follows an open segment", ErrDamaged, f.base)
	}
	m := idx.Meta
	if m.TP != l.tp || m.Base != f.base {
		return fmt.Errorf("%w: %s is of %s, base %d", ErrDamaged, l.idxPath(s), m.TP, m.Base)
	}
	s.last, s.size, s.written, s.maxTS, s.trailer = m.Last, m.LogSize, m.LogSize, m.MaxTimestamp, n
	s.crc = idx.ObjectCRC()
	if f.log {
		size, modified, err := dir.Stat(segment.LogName(f.base))
		if err != nil {
			return err
		}
		if size != s.size {
			return fmt.Errorf("%w: %s has %d bytes, its index says %d", ErrDamaged, l.logPath(s), size, s.size)
		}
		s.closedAt = modified
		l.store.diskUsed.Add(s.size)
	}
	l.store.diskUsed.Add(n)
	l.segs = append(l.segs, s)
	l.next.Store(m.Last + 1)
	for _, e := range idx.Epochs {
		l.addEpoch(e)
	}
	l.producers.restore(idx.Producers)
	return nil
}

// readIndexIn is readIndex by one read into buf. Its checksums tell whether that
// was all of the file; if it was not, or is damaged, it is read as usual.
func (l *Log) readIndexIn(dir vfs.Dir, s *seg, buf []byte) (*segment.Index, int64, error) {
	n, err := dir.Head(segment.IndexName(s.base), buf)
	if err == nil && n < len(buf) {
		if idx, err := segment.ParseTrailer(buf[:n]); err == nil {
			return idx, int64(n), nil
		}
	}
	return l.readIndex(s)
}

// producerTime is the time of an append that is found after a start. When it
// was is not known: timestamps are the client's and may lie in the past, so
// that a producer would be forgotten whose retry may still come. Hence now.
func (l *Log) producerTime(h batch.Header) int64 {
	return max(h.MaxTimestamp, l.store.opts.Now().UnixMilli())
}

func (l *Log) addEpoch(e segment.EpochStart) {
	if n := len(l.epochs); n == 0 || l.epochs[n-1].Epoch < e.Epoch {
		l.epochs = append(l.epochs, e)
	}
}

// recoverOpen scans a segment without .idx for its valid prefix. What follows
// the prefix was never synced, or the ring still has it.
func (l *Log) recoverOpen(base int64) error {
	if n := len(l.segs); n > 0 && base != l.next.Load() {
		return fmt.Errorf("%w: open segment begins at %d, the log before it ends at %d", ErrDamaged, base, l.next.Load())
	}
	if s := l.activeLocked(); s != nil {
		l.closeSegLocked(s, l.store.opts.Now())
	}
	l.next.Store(base)
	s := l.newSegLocked(base)
	s.made, s.began = true, l.store.opts.Now()
	size, err := l.scanOpen(s, -1)
	if err != nil {
		return err
	}
	s.found = size
	l.next.Store(s.last + 1)
	return nil
}

// scanOpen takes the valid prefix of the file of s, which is empty, up to limit if
// that is not negative. It returns the size of the file.
func (l *Log) scanOpen(s *seg, limit int64) (size int64, err error) {
	f, err := l.store.opts.FS.Open(l.logPath(s), vfs.ReadOnly)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// A killed process may have left bytes that are not synced. What is found
	// here is not taken from the ring again, so it must be durable.
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("sync %s: %w", l.logPath(s), err)
	}
	if err := l.store.opts.FS.SyncDir(l.dir()); err != nil {
		return 0, err
	}
	if size, err = f.Size(); err != nil {
		return 0, err
	}
	if limit < 0 {
		limit = size
	}
	end, err := segment.ScanLog(f, limit, 0, s.base, func(h batch.Header, raw []byte, _ int64) error {
		s.builder.Add(h, raw)
		s.last, s.maxTS = h.LastOffset(), max(s.maxTS, h.MaxTimestamp)
		l.addEpoch(segment.EpochStart{Epoch: h.LeaderEpoch, Start: h.BaseOffset})
		l.producers.add(&h, l.producerTime(h))
		return nil
	})
	if err != nil && !errors.Is(err, segment.ErrTorn) {
		return 0, err
	}
	s.builder.EndSpan()
	s.size, s.written, s.dirty, s.head = end, end&^(vfs.BlockSize-1), true, nil
	if end > s.written {
		s.head = make([]byte, end-s.written)
		if n, err := f.ReadAt(s.head, s.written); n < len(s.head) {
			return 0, fmt.Errorf("read %s: %w", l.logPath(s), err)
		}
	}
	l.store.diskUsed.Add(end)
	return size, nil
}

// readIndex reads and checks a segment's .idx file.
func (l *Log) readIndex(s *seg) (*segment.Index, int64, error) {
	path := l.idxPath(s)
	b, err := readFile(l.store.opts.FS, path, segment.MaxTrailer)
	if err != nil {
		return nil, 0, err
	}
	idx, err := segment.ParseTrailer(b)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", path, err)
	}
	return idx, int64(len(b)), nil
}

// readFile reads a whole file of at most limit bytes.
func readFile(fsys vfs.FS, path string, limit int64) ([]byte, error) {
	f, err := fsys.Open(path, vfs.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, limit %d", ErrDamaged, path, size, limit)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); int64(n) < size {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// spilled is a batch found in a spill file.
type spilled struct {
	wal.Entry // without its data
	ref       spillRef
	size      int
}

// spills replays the spill files. Each log's batches come by offset, whatever
// file they are in: a power loss while merged files are removed may leave an
// old file beside the new one, which begins before it.
func (r *recovery) spills() error {
	files, err := r.openSpills()
	if err != nil {
		return err
	}
	var all []spilled
	for _, f := range files {
		b, err := readFile(r.s.opts.FS, f.path, 2*wal.MaxJumbo)
		if err != nil {
			return err
		}
		err = decodeSpill(b, func(e *wal.Entry, pos int64) error {
			all = append(all, spilled{Entry: *e, ref: spillRef{file: f, pos: pos}, size: len(e.Data)})
			all[len(all)-1].Data = nil // not the whole file for one batch of it
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].Base < all[j].Base })
	open := openSpills{}
	defer open.close()
	for i := range all {
		e := &all[i]
		if e.Data, err = r.s.readSpill(open, &e.ref, e.Base, e.size); err != nil {
			return err
		}
		if err := r.entry(&e.Entry, &e.ref); err != nil {
			return err
		}
		e.Data = nil
	}
	for _, f := range files {
		f.unref(r.s)
	}
	return nil
}

// openSpills lists the spill files, oldest first, with one reference to each.
func (r *recovery) openSpills() (out []*spillFile, err error) {
	dir := filepath.Join(r.s.opts.Dir, "wal")
	files, err := r.s.opts.FS.List(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range files {
		seq, ok := parseSpillName(e.Name())
		if !ok {
			if strings.HasSuffix(e.Name(), ".tmp") {
				err = r.s.opts.FS.Remove(filepath.Join(dir, e.Name()))
			}
			if err != nil {
				return nil, err
			}
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		f := &spillFile{path: filepath.Join(dir, e.Name()), seq: seq, size: info.Size()}
		f.refs.Store(1)
		r.s.spillSeq.Store(max(r.s.spillSeq.Load(), seq))
		r.s.spills[seq] = f
		r.s.diskUsed.Add(f.size)
		out = append(out, f)
	}
	return out, nil
}

// entry appends one replayed batch to its log, unless the log has it already.
func (r *recovery) entry(e *wal.Entry, ref *spillRef) error {
	if e.Kind != wal.KindBatch && e.Kind != wal.KindRef {
		return nil
	}
	l := r.s.logs[e.TP]
	if l == nil {
		l = newLog(r.s, e.TP, LogConfig{}, 0)
		l.next.Store(e.Base)
		r.s.logs[e.TP] = l
	}
	if l.err != nil || e.Last < l.next.Load() {
		return nil
	}
	if err := l.meetReused(e); err != nil || l.err != nil {
		return err
	}
	if e.Base != l.next.Load() {
		l.refuse("partition has a hole", fmt.Errorf("%w: %s ends at offset %d but the stream goes on at %d", ErrDamaged, l.tp, l.next.Load(), e.Base))
		return nil
	}
	s := l.segmentOf(e)
	rec := &record{log: l, spill: ref}
	rec.Entry = *e
	var at wal.Ref
	if e.Kind == wal.KindRef {
		var err error
		if at, rec.Data, err = l.readRef(s, e); err != nil {
			l.refuse("partition has a batch that is not in its segment", err)
			return nil
		}
		rec.Kind = wal.KindBatch
	}
	if err := r.add(l, s, rec); err != nil {
		return err
	}
	if e.Kind == wal.KindRef && !e.Newest {
		l.mu.Lock()
		l.foundLocked(s, &at)
		l.mu.Unlock()
	}
	if !e.InSegment {
		l.rollReplayed(s)
	}
	return l.recoverLater()
}

// add appends the record to segment s of its log.
func (r *recovery) add(l *Log, s *seg, rec *record) error {
	h, err := batch.Parse(rec.Data)
	if err != nil {
		return err
	}
	rec.size, rec.unwritten, rec.maxTS = int32(len(rec.Data)), int32(len(rec.Data)), h.MaxTimestamp
	if err := r.keep(rec); err != nil {
		return err
	}
	if rec.spill != nil {
		rec.spill.file.refs.Add(1)
	}
	l.mu.Lock()
	rec.seg = s
	rec.Segment, rec.InSegment, rec.FilePos, rec.HasPos = s.base, true, s.size, true
	l.tail = append(l.tail, rec)
	r.s.tailRecords.Add(1)
	l.dirtyLocked()
	l.producers.add(&h, l.producerTime(h))
	l.settleLocked(rec, h, rec.Data, r.s.opts.Now())
	l.hw = l.next.Load()
	l.pending += int64(rec.unwritten)
	l.mu.Unlock()
	r.s.diskUsed.Add(int64(rec.size))
	r.s.memoryRecords.Add(1)
	r.s.chunks.note(rec.Chunk, l, rec.Pos)
	return nil
}

// refuse fails this partition alone: it may be one that was being deleted.
func (l *Log) refuse(what string, err error) {
	l.err = err
	l.store.opts.Logger.Error(what, "topic_id", l.tp.Topic.String(), "partition", l.tp.Partition, "err", err)
}

// rollReplayed closes a replayed segment that has reached its size, so that a
// ring larger than a segment does not make an oversized one.
func (l *Log) rollReplayed(s *seg) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.state == segActive && s.size >= l.cfg.SegmentBytes {
		l.closeSegLocked(s, l.store.opts.Now())
	}
}

// keep copies the batch into pool memory, evicting older batches to disk when
// the pool runs full.
func (r *recovery) keep(rec *record) error {
	n := len(rec.Data)
	if r.chunk == nil || r.used+n > len(r.chunk.B) {
		if r.chunk != nil {
			r.chunk.Release()
			r.chunk = nil
		}
		for r.s.memoryHigh() {
			if r.staging == nil {
				r.staging = vfs.AlignedBytes(stagingSize)
			}
			if more, err := r.s.evictOldest(r.staging, true); err != nil {
				return err
			} else if !more {
				break
			}
		}
		c, err := r.s.pool.Get(context.Background(), n)
		if err != nil {
			return err
		}
		r.chunk, r.used = c, 0
	}
	dst := r.chunk.B[r.used : r.used+n : r.used+n]
	copy(dst, rec.Data)
	r.used += n
	rec.Data, rec.Chunk, rec.Owner = dst, r.chunk, rec
	r.chunk.Retain()
	return nil
}

// producersReady sets the stable offsets after the replay.
func (l *Log) producersReady() {
	l.mu.Lock()
	l.hw = l.next.Load()
	full := l.pending >= flushPiece
	for _, s := range l.segs {
		full = full || s.state == segClosing
	}
	l.mu.Unlock()
	if full {
		l.store.enqueue(l)
	}
}
