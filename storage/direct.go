package storage

import (
	"context"
	"errors"
	"slices"
	"sync"
	"syscall"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// A large batch is written once: its blocks go to its segment file and are
// synced there, and the stream gets a reference to them (wal.KindRef) with the
// bytes that do not fill a block. See docs/design/007-large-batches.md.

// minDirect is the least size of such a batch, in bytes: some whole blocks.
const minDirect = 2 * vfs.BlockSize

// direct is a batch on its way to its segment file. It covers the blocks
// [from, end) of the file: what earlier batches have in them too.
type direct struct {
	store     *Store
	from, end int64
	claimed   int64 // what the segment's claim was before
	gap       [][]byte
	held      []*wal.Chunk // of gap
	recovered bool         // the block at from may be in the file already
	dirty     bool         // the file has bytes before from that are not synced
	synced    bool         // by the write
	file      *openFile
	data      []byte // the blocks
	entry     wal.Entry
	done      chan struct{}
	err       error
}

// planDirectLocked makes r, the batch placed last, a direct one if it is large
// enough and the file has, or memory gives, everything before it. The flusher
// keeps away from the segment until the batch was announced.
func (l *Log) planDirectLocked(r *record) {
	s := r.seg
	if int64(r.size) < l.store.opts.DirectBytes || s.flushing || l.store.noDirect.Load() {
		return
	}
	for _, o := range l.segs {
		if o != s && o.state != segClosed && !o.made { // a recovery must find it before this one
			return
		}
	}
	d := &direct{store: l.store, from: s.written, end: r.fileEnd() &^ (vfs.BlockSize - 1), claimed: s.claim, dirty: s.dirty}
	if s.directs > 0 {
		d.from = s.claim
	}
	if r.fileEnd()-d.from > wal.ChunkSize || !l.bridgeLocked(r, d) {
		return
	}
	for _, c := range d.held {
		c.Retain()
	}
	s.directs++
	s.claim = d.end
	r.direct, r.unwritten = d, int32(r.fileEnd()-d.end)
}

// bridgeLocked collects the bytes between d.from and r from memory.
func (l *Log) bridgeLocked(r *record, d *direct) bool {
	at := r.FilePos
	for i := len(l.tail) - 1; i >= 0 && at > d.from; i-- {
		q := l.tail[i]
		if q == r {
			continue
		}
		if q.seg != r.seg || q.fileEnd() != at || !q.inMemory() {
			break
		}
		at = q.FilePos
		b := q.Data
		if at < d.from {
			b, at = b[d.from-at:], d.from
		}
		d.gap = append(d.gap, b)
		d.held = append(d.held, q.Chunk)
	}
	if n := int64(len(r.seg.head)); n > 0 && at > d.from && at == d.from+n {
		d.gap = append(d.gap, r.seg.head)
		at, d.recovered = d.from, true
	}
	slices.Reverse(d.gap)
	return at == d.from
}

// prepareDirect gets file, disk space and memory for r's blocks. When the disk has no
// space r becomes an ordinary batch: the stream has some of its own.
func (l *Log) prepareDirect(ctx context.Context, r *record, room *Room) error {
	d := r.direct
	var err error
	if d.file, err = l.openToWrite(r.seg, true); err == nil {
		err = l.directSpace(r.seg, d)
	}
	if err != nil {
		l.cancelDirect(r)
		if errors.Is(err, errors.ErrUnsupported) {
			l.store.noDirect.Store(true)
			return nil
		}
		if err = l.diskError("write segment", err); errors.Is(err, syscall.ENOSPC) {
			return nil
		}
		return err
	}
	if err = l.directBlocks(ctx, r, room); err != nil {
		l.cancelDirect(r)
		return err
	}
	d.done = make(chan struct{})
	ref := wal.Ref{Pos: r.FilePos, From: d.from, Size: int(r.size), Rest: r.Data[d.end-r.FilePos:], BatchCRC: r.crc, HasCRC: true}
	d.entry = r.Entry
	d.entry.Kind, d.entry.Data, d.entry.Chunk = wal.KindRef, ref.Append(nil), nil
	d.entry.Ready = func() error { <-d.done; return d.err }
	return nil
}

// directBlocks puts r's blocks together, in the room or in memory of their own.
func (l *Log) directBlocks(ctx context.Context, r *record, room *Room) error {
	d := r.direct
	blocks := room.place(r.Data, d.gap)
	if blocks != nil {
		r.Chunk = room.chunk
		r.Chunk.Retain()
	} else {
		n := int(r.fileEnd() - d.from)
		c, off, err := l.store.directMem.get(n, func() (*wal.Chunk, error) { return l.store.pool.Get(ctx, n) })
		if err != nil {
			return err
		}
		r.Chunk, blocks = c, c.B[off:off+n]
		copy(blocks[copyAll(blocks, d.gap):], r.Data)
	}
	releaseAll(d.held)
	d.gap, d.held = nil, nil
	n := len(blocks)
	r.Data, d.data = blocks[n-int(r.size):n:n], blocks[:d.end-d.from]
	return nil
}

// Space is reserved ahead of the batches, as much as the segment has already,
// within these bounds in bytes.
const (
	minReserve = 1 << 20
	maxReserve = 64 << 20
)

// directSpace reserves space, so that the write can't find the disk full when
// the stream already refers to it.
func (l *Log) directSpace(s *seg, d *direct) error {
	if d.end <= s.reserved {
		return nil
	}
	f, ok := d.file.File.(vfs.Reserver)
	if !ok {
		return errors.ErrUnsupported
	}
	l.mu.Lock()
	most := l.cfg.SegmentBytes + vfs.BlockSize
	l.mu.Unlock()
	to := max(min(d.end+min(max(d.end, minReserve), maxReserve), most), d.end)
	if err := f.Reserve(to); err != nil {
		return err
	}
	s.reserved = to
	return nil
}

// cancelDirect makes r an ordinary batch again. appendMu is held: it is the last one.
func (l *Log) cancelDirect(r *record) {
	d := r.direct
	if d.file != nil {
		l.store.files.put(d.file)
	}
	releaseAll(d.held)
	l.mu.Lock()
	r.seg.directs--
	r.seg.claim = d.claimed
	r.direct, r.unwritten = nil, r.size
	l.mu.Unlock()
}

// copyAll copies the pieces to b, one behind the other, and returns their size.
func copyAll(b []byte, pieces [][]byte) (n int) {
	for _, p := range pieces {
		n += copy(b[n:], p)
	}
	return n
}

func releaseAll(chunks []*wal.Chunk) {
	for _, c := range chunks {
		c.Release()
	}
}

// directQueue writes the blocks of a log's large batches: one goroutine writes what
// is queued, another one syncs what was written, so that the sync of one batch
// goes on beside the write of the next, and batches share syncs.
type directQueue struct {
	mu               sync.Mutex
	queued, written  []*direct
	writing, syncing bool
	err              error // the first; nothing is written after it
}

// add has d written and synced. The reference in the stream waits for it.
func (q *directQueue) add(d *direct) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queued = append(q.queued, d)
	if !q.writing {
		q.writing = true
		go q.write()
	}
}

func (q *directQueue) write() {
	for {
		q.mu.Lock()
		if len(q.queued) == 0 {
			q.writing = false
			q.mu.Unlock()
			return
		}
		d, err := q.queued[0], q.err
		q.queued = append(q.queued[:0], q.queued[1:]...)
		q.mu.Unlock()
		if err == nil {
			err = d.write()
		}
		q.mu.Lock()
		d.err = err
		if q.err == nil {
			q.err = err
		}
		q.written = append(q.written, d)
		if !q.syncing {
			q.syncing = true
			go q.sync()
		}
		q.mu.Unlock()
	}
}

// write writes the blocks. When no other log is at it they are synced with it: nobody
// is there to share a sync with. As after a sync of the file, everything before them in
// it is durable then.
func (d *direct) write() error {
	n := d.store.writers.Add(1)
	defer d.store.writers.Add(-1)
	write := d.file.WriteAt
	if f, ok := d.file.File.(vfs.SyncWriter); ok && n == 1 && !d.dirty {
		write, d.synced = f.WriteAtSync, true
	}
	return writeBlocks(d.file, write, d.data, d.from, d.recovered)
}

func (q *directQueue) sync() {
	for {
		q.mu.Lock()
		round, err := q.written, q.err
		q.written = nil
		q.syncing = len(round) > 0
		q.mu.Unlock()
		if len(round) == 0 {
			return
		}
		for i, d := range round {
			if err == nil && !d.synced && (i == 0 || round[i-1].file != d.file || round[i-1].synced) {
				err = d.file.Sync()
			}
			if d.err == nil {
				d.err = err
			}
		}
		if err != nil {
			q.mu.Lock()
			q.err = err
			q.mu.Unlock()
		}
		for _, d := range round {
			d.store.files.put(d.file)
			close(d.done)
		}
	}
}

// wroteDirectLocked is called when r's reference is durable.
func (l *Log) wroteDirectLocked(r *record) {
	s, d := r.seg, r.direct
	r.direct = nil
	s.directs--
	if d.from <= s.written && d.end > s.written {
		s.written, s.head = d.end, nil
		l.passLocked(s, d.end)
	}
}
