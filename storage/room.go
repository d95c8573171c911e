package storage

import (
	"sync"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// A Room is memory that a request with one large batch is read into, such that
// the disk can take the batch from where it lies: a direct write wants memory
// that begins at a block border, and blocks of the segment file do not begin where
// batches do. It is placed for the batch that would be appended now; when another
// one comes before, the batch is moved. B is the caller's until Release.
type Room struct {
	B []byte // for the request

	store *Store
	chunk *wal.Chunk
	piece []byte // of chunk, from a block border on
	at    int    // where in the piece the batch is
	moved []byte // the batch, when Append has moved it
}

// roomShare is the part of the memory tail that rooms may hold. Their senders may be slow,
// and each of them holds its whole chunk.
const roomShare = 16

// Room returns memory for a request of size bytes whose bytes from head on are a
// batch of n bytes, to be handed to Append (AppendOptions.Room). It is nil when such a
// batch would not be written to its segment file at once, and when there is no
// memory now: then it is to be appended from memory of the caller's. It doesn't wait.
func (l *Log) Room(size, head, n int) *Room {
	s := l.store
	if int64(n) < s.opts.DirectBytes || s.noDirect.Load() || head < 0 || head+n > size || size > wal.ChunkSize {
		return nil
	}
	need := size + 2*vfs.BlockSize // any place in a block, and a block before it
	if need > wal.ChunkSize || s.rooms.Add(1) > s.tailBytes.Load()/roomShare/wal.ChunkSize {
		s.rooms.Add(-1)
		return nil
	}
	chunk, off, err := s.directMem.get(need, func() (*wal.Chunk, error) { return s.pool.TryGet(need), nil })
	if chunk == nil || err != nil {
		s.rooms.Add(-1)
		return nil
	}
	r := &Room{store: s, chunk: chunk, piece: chunk.B[off : off+need : off+need]}
	r.at = l.blockOffset(n)
	for r.at < max(head, vfs.BlockSize) {
		r.at += vfs.BlockSize
	}
	r.B = r.piece[r.at-head:][:size:size]
	return r
}

// blockOffset tells where in a block of its file a batch of n bytes would begin
// that was appended now.
func (l *Log) blockOffset(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.activeLocked(); s != nil && s.size+int64(n) <= l.cfg.SegmentBytes {
		return int(s.size % vfs.BlockSize)
	}
	return 0
}

// place moves the batch b to where its blocks can be written from, behind gap, the
// bytes that are before it in them. It overwrites what the room has before the batch. It
// returns gap and batch, or nil when b is not in the room or the room too small.
func (r *Room) place(b []byte, gap [][]byte) []byte {
	if r == nil || len(b) == 0 || len(r.piece)-r.at < len(b) || &r.piece[r.at] != &b[0] {
		return nil
	}
	n := 0
	for _, g := range gap {
		n += len(g)
	}
	from := (r.at - n) &^ (vfs.BlockSize - 1)
	if r.at < n || from+n+len(b) > len(r.piece) {
		return nil
	}
	at := from + n
	if at != r.at {
		copy(r.piece[at:], b)
		r.at, r.moved = at, r.piece[at:at+len(b)]
	}
	copyAll(r.piece[from:], gap)
	return r.piece[from : at+len(b)]
}

// batch returns the batch that was b before Append.
func (r *Room) batch(b []byte) []byte {
	if r == nil || r.moved == nil {
		return b
	}
	return r.moved
}

// Release ends the caller's use of B. What was appended stays.
func (r *Room) Release() {
	r.store.rooms.Add(-1)
	r.chunk.Release()
	r.B, r.piece, r.chunk = nil, nil, nil
}

// directMem hands out pieces of pool memory that begin at block borders.
type directMem struct {
	mu    sync.Mutex
	chunk *wal.Chunk
	used  int
}

// get returns n bytes at off of a chunk, with a reference to it. A new chunk comes
// from more, which may wait, and return nil for none.
func (m *directMem) get(n int, more func() (*wal.Chunk, error)) (c *wal.Chunk, off int, err error) {
	if c, off = m.take(n, nil); c != nil {
		return c, off, nil
	}
	if c, err = more(); c == nil || err != nil {
		return nil, 0, err
	}
	c, off = m.take(n, c)
	return c, off, nil
}

// take takes n bytes of the chunk at hand, or else of next, which takes its place.
func (m *directMem) take(n int, next *wal.Chunk) (c *wal.Chunk, off int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.chunk == nil || m.used+n > len(m.chunk.B) {
		m.dropLocked() // also before a wait for memory: it may be this that is waited for
		if next == nil {
			return nil, 0
		}
		m.chunk, next = next, nil
	}
	if next != nil { // another one was faster
		next.Release()
	}
	off = m.used
	m.used += (n + vfs.BlockSize - 1) &^ (vfs.BlockSize - 1)
	m.chunk.Retain()
	return m.chunk, off
}

func (m *directMem) dropLocked() {
	if m.chunk != nil {
		m.chunk.Release()
	}
	m.chunk, m.used = nil, 0
}

func (m *directMem) drop() {
	m.mu.Lock()
	m.dropLocked()
	m.mu.Unlock()
}
