package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cirrolog/cirrolog/storage/vfs"
)

const (
	// flushPiece is how much must be pending before a log is written behind.
	flushPiece = 1 << 20
	// stagingSize is the most that one write takes.
	stagingSize = 4 << 20
	flushers    = 2
)

// flushMode says how much of the pending bytes to write.
type flushMode uint8

const (
	flushFull   flushMode = iota // pieces of flushPiece and more, closing segments wholly
	flushBlocks                  // every whole block
)

// flush writes the log's pending durable bytes to its segment files. Only
// whole blocks are written until a segment closes, so a block that was synced
// is never written again; what is left of a block waits in memory, ring or
// spill file.
func (l *Log) flush(mode flushMode, staging []byte) error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	for {
		// What a failed write or sync was to make durable may be lost by now: a
		// second sync would report success.
		if err := l.store.Err(); err != nil {
			return err
		}
		p := l.nextPiece(mode, len(staging))
		if p == nil {
			return nil
		}
		err := l.flushPiece(p, staging)
		l.mu.Lock()
		p.seg.flushing = false
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (l *Log) flushPiece(p *piece, staging []byte) error {
	if len(p.records) > 0 { // a recovered head alone is in the file already
		if err := l.writePiece(p, staging); err != nil {
			return err
		}
	}
	if p.closes {
		return l.finishSegment(p.seg)
	}
	return nil
}

// piece is one write: records of one segment from file position at.
type piece struct {
	seg     *seg
	head    []byte // bytes before the first record, from a recovered file
	records []*record
	at      int64 // block-aligned file position
	end     int64 // where the records end
	closes  bool  // the segment is complete with this piece
}

// nextPiece picks what to write next. The caller holds flushMu, without which
// no record loses its memory before it is written.
func (l *Log) nextPiece(mode flushMode, room int) *piece {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queued = false
	if l.err != nil || l.closed {
		return nil
	}
	s := l.flushSegLocked()
	if s == nil || s.directs > 0 { // the last of them queues the log again
		return nil
	}
	p := &piece{seg: s, head: s.head, at: s.written, end: s.written + int64(len(s.head))}
	for _, r := range l.tail[l.written:] {
		if r.seg != s || r.Last >= l.hw || r.fileEnd()-p.at > int64(room) && len(p.records) > 0 {
			break
		}
		p.records = append(p.records, r)
		p.end = r.fileEnd()
	}
	p.closes = s.state == segClosing && p.end == s.size && l.hw > s.last
	n := p.end - p.at
	if !p.closes && (n < vfs.BlockSize || mode == flushFull && n < flushPiece && s.state == segActive) {
		return nil
	}
	s.flushing = true
	return p
}

// flushSegLocked returns the oldest segment that is not wholly written.
func (l *Log) flushSegLocked() *seg {
	if l.written < len(l.tail) {
		if s := l.tail[l.written].seg; s.state != segClosed {
			// An older closing segment may have all its records written but its end.
			for _, o := range l.segs {
				if o.state == segClosing {
					return o
				}
			}
			return s
		}
	}
	for _, o := range l.segs {
		if o.state == segClosing {
			return o
		}
	}
	return nil
}

// writePiece gathers the records into staging and writes it. A record larger
// than staging is written in several parts.
func (l *Log) writePiece(p *piece, staging []byte) error {
	f, err := l.openToWrite(p.seg, false)
	if err != nil {
		return l.diskError("open segment", err)
	}
	defer l.store.files.put(f)
	w := &pieceWriter{log: l, seg: p.seg, file: f, staging: staging, at: p.at, limit: p.end, recovered: len(p.head) > 0}
	w.fill = copy(staging, p.head)
	open := openSpills{}
	defer open.close()
	for _, r := range p.records {
		data, err := l.store.bytesOf(r, open)
		if err != nil {
			return err
		}
		if skip := w.at + int64(w.fill) - r.FilePos; skip > 0 {
			data = data[min(skip, int64(len(data))):]
		}
		if err := w.add(data); err != nil {
			return err
		}
	}
	return w.finish(p.closes)
}

// pieceWriter writes bytes to a segment file by whole blocks.
type pieceWriter struct {
	log       *Log
	seg       *seg
	file      *openFile
	staging   []byte
	at        int64 // file position of staging[0]
	fill      int
	limit     int64
	recovered bool // the block at at may be in the file already
}

func (w *pieceWriter) add(data []byte) error {
	for len(data) > 0 {
		n := copy(w.staging[w.fill:], data)
		w.fill, data = w.fill+n, data[n:]
		if w.fill == len(w.staging) {
			if err := w.write(w.fill); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish writes what is left by whole blocks; with closes the last one is padded.
func (w *pieceWriter) finish(closes bool) error {
	whole := w.fill &^ (vfs.BlockSize - 1)
	if closes && whole < w.fill {
		clear(w.staging[w.fill : whole+vfs.BlockSize])
		whole += vfs.BlockSize
	}
	if whole == 0 {
		return nil
	}
	return w.write(whole)
}

// writeBlocks writes whole blocks of f by write. After a recovery the first one may stand in the
// file already, synced, with the ring no longer having all of its bytes: it is
// then the same, and is left alone.
func writeBlocks(f io.ReaderAt, write func([]byte, int64) (int, error), b []byte, at int64, recovered bool) error {
	if recovered {
		old := vfs.AlignedBytes(vfs.BlockSize)
		if got, _ := f.ReadAt(old, at); got == len(old) && bytes.Equal(old, b[:len(old)]) {
			b, at = b[len(old):], at+int64(len(old))
		}
	}
	if len(b) == 0 {
		return nil
	}
	_, err := write(b, at)
	return err
}

// write writes staging[:n].
func (w *pieceWriter) write(n int) error {
	if err := writeBlocks(w.file, w.file.WriteAt, w.staging[:n], w.at, w.recovered); err != nil {
		return w.log.diskError("write segment", err)
	}
	w.recovered = false
	w.at += int64(n)
	w.fill = 0
	w.log.advance(w.seg, min(w.at, w.limit))
	return nil
}

// advance records that the segment's file holds bytes up to to.
func (l *Log) advance(s *seg, to int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.written, s.dirty, s.head = to, true, nil
	l.passLocked(s, to)
}

// passLocked moves the written mark over the records that lie wholly before to.
func (l *Log) passLocked(s *seg, to int64) {
	for l.written < len(l.tail) {
		r := l.tail[l.written]
		// The last batch of an active segment stays unwritten by this count, so
		// that ring or spill file always tell how far the log must reach. That of
		// one of used blocks does so until the file has its size.
		if r.seg != s || r.fileEnd() > to || r.fileEnd() == to && (s.state == segActive || s.reused && s.state == segClosing) {
			return
		}
		if r.spill == nil && (!l.hasUnsynced || r.Pos < l.unsynced) {
			l.unsynced, l.hasUnsynced = r.Pos, true
		}
		l.pending -= int64(r.unwritten)
		l.written++
	}
}

// openToWrite opens the segment's file; the first time it makes it, of used blocks
// if there are any and much is to come, and its name durable. Give it back with files.put.
func (l *Log) openToWrite(s *seg, much bool) (*openFile, error) {
	l.mu.Lock()
	made := s.made
	l.mu.Unlock()
	if !made {
		if err := l.makeDir(); err != nil {
			return nil, err
		}
		if much {
			if err := l.reuseFile(s); err != nil {
				return nil, err
			}
		}
	}
	f, err := l.store.files.get(l.logPath(s), true)
	if err != nil || made {
		return f, err
	}
	if err := l.store.opts.FS.SyncDir(l.dir()); err != nil {
		l.store.files.put(f)
		return nil, fmt.Errorf("sync directory of segment: %w", err)
	}
	l.mu.Lock()
	s.made = true
	l.mu.Unlock()
	return f, nil
}

func (l *Log) makeDir() error {
	dir := l.dir()
	if _, err := l.store.opts.FS.Stat(dir); err == nil {
		return nil
	}
	if err := l.store.opts.FS.MkdirAll(dir); err != nil {
		return l.diskError("make log directory", err)
	}
	if err := l.store.opts.FS.SyncDir(filepath.Dir(dir)); err != nil {
		return l.diskError("sync logs directory", err)
	}
	return nil
}

func (l *Log) diskError(what string, err error) error {
	return l.store.diskError(fmt.Errorf("%s of %s: %w", what, l.tp, err))
}

// diskError tells a full disk, which passes, from a failed one, which does not.
func (s *Store) diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		s.noSpace.Store(&noSpace{time.Now(), err})
		for s.recycled.drop() {
		}
	} else {
		s.fail(err)
	}
	return err
}

// syncFlushed makes what was written to the log's segment files durable. The
// caller holds flushMu: nothing is written meanwhile.
func (l *Log) syncFlushed() error {
	if err := l.store.Err(); err != nil {
		return err // see flush
	}
	l.mu.Lock()
	var dirty []*seg
	for _, s := range l.segs {
		if s.dirty && !s.dropped {
			dirty = append(dirty, s)
		}
	}
	l.mu.Unlock()
	for _, s := range dirty {
		if err := l.syncSeg(s); err != nil {
			return err
		}
	}
	l.mu.Lock()
	l.hasUnsynced = false
	l.releaseSpilledLocked()
	l.mu.Unlock()
	return nil
}

func (l *Log) syncSeg(s *seg) error {
	f, err := l.store.files.get(l.logPath(s), false)
	if err != nil {
		return l.diskError("open segment", err)
	}
	defer l.store.files.put(f)
	if err := f.Sync(); err != nil {
		return l.diskError("sync segment", err)
	}
	l.mu.Lock()
	s.dirty = false
	l.mu.Unlock()
	return nil
}

// finishSegment gives the .log its exact size, writes the .idx and makes both
// durable, in this order: an .idx exists only for a whole .log.
func (l *Log) finishSegment(s *seg) error {
	path := l.logPath(s)
	f, err := l.store.files.get(path, false)
	if err != nil {
		return l.diskError("open segment", err)
	}
	err = f.Truncate(s.size)
	if err == nil {
		err = f.Sync()
	}
	l.store.files.put(f)
	if err != nil {
		return l.diskError("finish segment", err)
	}
	l.mu.Lock()
	trailer := s.builder.Trailer(s.last+1, nil, s.producers)
	l.mu.Unlock()
	if err := writeFile(l.store.opts.FS, l.idxPath(s), trailer); err != nil {
		return l.diskError("write index", err)
	}
	if s.reused {
		l.unmarkReused(s)
	}
	l.mu.Lock()
	l.store.diskUsed.Add(int64(len(trailer)))
	s.written, s.dirty, s.state, s.head = s.size, false, segClosed, nil
	l.passLocked(s, s.size)
	for _, o := range l.segs { // what later ones have in their files waited for this one
		if o.state != segClosed {
			l.passLocked(o, o.written)
		}
	}
	s.trailer = int64(len(trailer))
	s.crc = s.builder.ObjectCRC(trailer)
	s.builder, s.producers = nil, nil
	s.closedAt = l.store.opts.Now()
	l.hasUnsynced = false // segments are written in order: nothing of a later one is
	l.releaseSpilledLocked()
	l.mu.Unlock()
	l.dropOldIndex()
	if l.store.opts.OnClosed != nil {
		l.store.opts.OnClosed(l.tp)
	}
	return nil
}

// releaseSpilledLocked gives up spill files for records whose segment bytes
// are synced, and can be read: a small batch shares its span, and the span's
// checksum, with those behind it, of which the file may not have all yet.
func (l *Log) releaseSpilledLocked() {
	for _, r := range l.tail[:l.written] {
		if r.spill != nil && (!r.seg.dirty || l.store.remote()) && l.readableLocked(r) {
			r.spill.file.unref(l.store)
			r.spill = nil
		}
	}
	l.popLocked()
}

// writeFile publishes a small file whole or not at all.
func writeFile(fs vfs.FS, path string, b []byte) error {
	tmp := path + ".tmp"
	f, err := fs.Open(tmp, vfs.Create|vfs.Truncate)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fs.Rename(tmp, path)
	}
	if err == nil {
		err = fs.SyncDir(filepath.Dir(path))
	}
	return err
}

// flushLoop writes behind what is queued.
func (s *Store) flushLoop() {
	defer s.wg.Done()
	var staging []byte
	for {
		l := s.dequeue()
		if l == nil {
			return
		}
		if staging == nil {
			staging = vfs.AlignedBytes(stagingSize)
		}
		if err := l.flush(flushFull, staging); err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrFailed) {
			s.opts.Logger.Warn("write behind failed", "topic_id", l.tp.Topic.String(), "partition", l.tp.Partition, "err", err)
			if errors.Is(err, syscall.ENOSPC) {
				s.pause(time.Second)
				s.enqueue(l)
			}
		}
	}
}
