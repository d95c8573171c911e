package ring

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// Options of a ring. FS, Path, Pool and Announce are required.
type Options struct {
	FS   vfs.FS
	Path string
	// Size of the ring in bytes, rounded up to 4096; 0 means 512 MiB. An
	// existing ring keeps the size it was made with.
	Size int64
	// DiskID is the identity of the disk that holds the ring; another one in
	// the file is wal.ErrForeign.
	DiskID [16]byte
	// Pool gives the memory that entries live in.
	Pool *wal.Pool
	// Announce gets durable entries; see wal.Announce.
	Announce wal.Announce
	// OnFull is called, without locks, when an Append has to wait for Trim.
	OnFull func()
	// CheckRef, if not nil, tells whether a KindRef entry refers to what is not
	// there. Replay asks for those of the last commit: it may have become durable
	// before what it refers to, and counts as torn then.
	CheckRef func(*wal.Entry) error
	// Prefill is how many bytes ahead of the head are zeroed in the background
	// in the first lap, so that commits never pay for block allocation. 0: none.
	Prefill int64
}

// commit is what is written together.
type commit struct {
	chunk   *wal.Chunk
	off     int // of the header in chunk
	length  int // header and entries
	pos     wal.Pos
	prevEnd wal.Pos
	entries []*wal.Entry
	filling sync.WaitGroup // copies under way
}

// Ring is a wal.Stream on one file.
type Ring struct {
	opts Options
	file vfs.File
	key  uint64
	size int64
	refs bool     // takes wal.KindRef
	torn *wal.Pos // Replay: a last commit that refers to what is not there

	mu       sync.Mutex
	open     *commit // takes appends; nil when nothing is pending
	queue    []*commit
	chunk    *wal.Chunk // memory for the next commit; the ring holds a reference
	used     int        // bytes of chunk given away
	end      wal.Pos    // end of what was appended, padded at commit borders
	durable  wal.Pos    // end of what was announced
	trimmed  wal.Pos
	slots    uint64     // counter of the newest trim slot
	slotLost bool       // a trim slot is neither valid nor unused
	trimming sync.Mutex // serialises Trim's writes; taken before mu; guards slotBuf
	slotBuf  []byte
	running  bool
	space    chan struct{} // closed and replaced when trimmed moves
	err      error
	closed   bool
	spare    *commit

	kick chan struct{}
	done chan struct{}

	fillMu   sync.Mutex // lets prefill and committer agree on what is written
	fillDone *sync.Cond // a piece was filled
	filling  bool       // the piece from filled on is being zeroed
	filled   int64      // first lap: bytes of the ring written at least once
	head     int64      // first lap: where the last commit ended
	fillKick chan struct{}
}

var _ wal.Stream = (*Ring)(nil)

// Open opens the ring at opts.Path, or makes it. Call Replay before Append.
func Open(opts Options) (*Ring, error) {
	if opts.Size == 0 {
		opts.Size = 512 << 20
	}
	opts.Size = int64(align(int(max(opts.Size, MinSize)), block))
	r := &Ring{opts: opts, slotBuf: vfs.AlignedBytes(block), space: make(chan struct{}),
		kick: make(chan struct{}, 1), done: make(chan struct{}), fillKick: make(chan struct{}, 1)}
	r.fillDone = sync.NewCond(&r.fillMu)
	_, err := opts.FS.Stat(opts.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = r.create()
	case err == nil:
		err = r.load()
	}
	if err != nil {
		if r.file != nil {
			r.file.Close()
		}
		return nil, fmt.Errorf("open wal %s: %w", opts.Path, err)
	}
	return r, nil
}

// create makes the file under a temporary name, so that a crash half way
// leaves nothing that looks like a ring.
func (r *Ring) create() error {
	tmp := r.opts.Path + ".tmp"
	f, err := r.opts.FS.Open(tmp, vfs.Create|vfs.Truncate|vfs.Direct|vfs.Dsync)
	if err != nil {
		return err
	}
	r.file = f
	if p, ok := f.(vfs.Preallocator); ok {
		err = p.Preallocate(dataStart + r.opts.Size)
	} else {
		err = f.Truncate(dataStart + r.opts.Size)
	}
	if err != nil {
		return fmt.Errorf("reserve %d bytes: %w", dataStart+r.opts.Size, err)
	}
	var key [8]byte
	rand.Read(key[:])
	r.key, r.size, r.refs = binary.LittleEndian.Uint64(key[:]), r.opts.Size, true
	sb := superblock{diskID: r.opts.DiskID, key: r.key, size: r.size}
	b := vfs.AlignedBytes(dataStart)
	sb.encode(b)
	encodeSlot(b[block:], 1, 0)
	r.slots = 1
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := r.opts.FS.Rename(tmp, r.opts.Path); err != nil {
		return err
	}
	return r.opts.FS.SyncDir(filepath.Dir(r.opts.Path))
}

func (r *Ring) load() error {
	f, err := r.opts.FS.Open(r.opts.Path, vfs.Direct|vfs.Dsync)
	if err != nil {
		return err
	}
	r.file = f
	b := vfs.AlignedBytes(dataStart)
	if n, err := f.ReadAt(b, 0); n < dataStart {
		return fmt.Errorf("%w: file of %d bytes has no superblock: %w", wal.ErrDamaged, n, err)
	}
	return r.loadHead(b)
}

// loadHead reads superblock and trim slots from the first blocks of the file.
func (r *Ring) loadHead(b []byte) error {
	sb, err := decodeSuper(b)
	if err != nil {
		return err
	}
	if sb.diskID != r.opts.DiskID {
		return fmt.Errorf("%w: ring of disk %x, this is disk %x", wal.ErrForeign, sb.diskID, r.opts.DiskID)
	}
	if size, err := r.file.Size(); err != nil || size < dataStart+sb.size {
		return errors.Join(fmt.Errorf("%w: file has %d bytes, the ring needs %d", wal.ErrDamaged, size, dataStart+sb.size), err)
	}
	r.key, r.size, r.refs = sb.key, sb.size, sb.version >= formatVersion
	for i := 1; i <= 2; i++ {
		slot := b[i*block : i*block+slotSize]
		n, trim, ok := decodeSlot(slot)
		if ok && n > r.slots {
			r.slots, r.trimmed = n, trim
		}
		r.slotLost = r.slotLost || !ok && !zero(slot)
	}
	if r.slots == 0 || r.trimmed%block != 0 {
		return fmt.Errorf("%w: no valid trim slot", wal.ErrDamaged)
	}
	return nil
}

func zero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// MaxAppend is the most data bytes one Append can take: a commit must fit in a
// quarter of the ring, so that trimming can keep up.
func (r *Ring) MaxAppend() int {
	return int(min(r.size/4, wal.MaxJumbo)) - commitHeader - 4*wal.EntryHeader
}

// State tells the ring's bounds.
func (r *Ring) State() wal.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return wal.State{Trimmed: r.trimmed, Durable: r.durable, End: r.end, Capacity: r.size, Refs: r.refs, Err: r.err}
}

// Append implements wal.Stream. The bytes are copied outside the lock.
func (r *Ring) Append(ctx context.Context, entries ...*wal.Entry) error {
	need := 0
	for _, e := range entries {
		need += wal.EntrySize(len(e.Data))
	}
	if need > r.MaxAppend()+4*wal.EntryHeader {
		return fmt.Errorf("%w: %d bytes, limit %d", wal.ErrTooLarge, need, r.MaxAppend())
	}
	r.mu.Lock()
	c, err := r.reserveLocked(ctx, need)
	if err != nil {
		r.mu.Unlock()
		return err
	}
	at := c.off + c.length
	c.length += need
	r.end = c.pos + wal.Pos(align(c.length, block))
	c.filling.Add(1)
	for _, e := range entries {
		e.Chunk, e.Pos = c.chunk, c.pos
		c.chunk.Retain()
	}
	c.entries = append(c.entries, entries...)
	r.mu.Unlock()

	for _, e := range entries {
		n := len(e.Data)
		dst := c.chunk.B[at+wal.EntryHeader : at+wal.EntryHeader+n : at+wal.EntryHeader+n]
		copy(dst, e.Data)
		e.Data = dst
		wal.EncodeEntry(c.chunk.B[at:], e, n)
		at += wal.EntrySize(n)
	}
	c.filling.Done()
	select {
	case r.kick <- struct{}{}:
	default:
	}
	return nil
}

// reserveLocked returns an open commit with room for need bytes of entries. It
// gives up r.mu while it waits and has it again when it returns.
func (r *Ring) reserveLocked(ctx context.Context, need int) (*commit, error) {
	for {
		if err := r.failedLocked(); err != nil {
			return nil, err
		}
		if c := r.open; c != nil {
			if grown := c.length + need; c.off+grown <= len(c.chunk.B) && r.fitsLocked(c.pos, align(grown, block)) {
				return c, nil
			}
			if c.off+c.length+need > len(c.chunk.B) || !r.contiguous(c.pos, align(c.length+need, block)) {
				r.closeOpenLocked() // full: the next entries go into another commit
				continue
			}
		}
		total := align(commitHeader+need, block)
		if r.open == nil {
			if r.chunk == nil || r.used+total > len(r.chunk.B) {
				if err := r.nextChunkLocked(ctx, total); err != nil {
					return nil, err
				}
				continue
			}
			if r.startLocked(total) {
				return r.open, nil
			}
		}
		if err := r.waitSpaceLocked(ctx); err != nil {
			return nil, err
		}
	}
}

func (r *Ring) failedLocked() error {
	if r.err != nil {
		return r.err
	}
	if r.closed {
		return wal.ErrClosed
	}
	return nil
}

// contiguous reports whether n bytes from pos lie before the ring's end.
func (r *Ring) contiguous(pos wal.Pos, n int) bool {
	return int64(pos)%r.size+int64(n) <= r.size
}

// fitsLocked reports whether [pos, pos+n) is contiguous and free.
func (r *Ring) fitsLocked(pos wal.Pos, n int) bool {
	return r.contiguous(pos, n) && int64(pos)+int64(n)-int64(r.trimmed) <= r.size
}

// startLocked opens a commit of at least total bytes at the end of the ring,
// or at the next lap's start when it would wrap. False means no space.
func (r *Ring) startLocked(total int) bool {
	pos := r.end
	if !r.contiguous(pos, total) {
		pos += wal.Pos(r.size - int64(pos)%r.size)
	}
	if !r.fitsLocked(pos, total) {
		return false
	}
	c := r.spare
	r.spare = nil
	if c == nil {
		c = &commit{}
	}
	r.chunk.Retain()
	c.chunk, c.off, c.length = r.chunk, r.used, commitHeader
	c.pos, c.prevEnd = pos, r.end
	r.open = c
	return true
}

// closeOpenLocked moves the open commit to the write queue.
func (r *Ring) closeOpenLocked() {
	c := r.open
	r.open = nil
	r.used = c.off + align(c.length, block)
	r.queue = append(r.queue, c)
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// nextChunkLocked replaces the current chunk by one with room for total bytes.
func (r *Ring) nextChunkLocked(ctx context.Context, total int) error {
	if r.chunk != nil {
		r.chunk.Release()
		r.chunk, r.used = nil, 0
	}
	r.mu.Unlock()
	c, err := r.opts.Pool.Get(ctx, total)
	r.mu.Lock()
	if err != nil {
		return err
	}
	if r.chunk != nil || r.open != nil || r.failedLocked() != nil { // another Append was faster
		c.Release()
		return nil
	}
	r.chunk, r.used = c, 0
	return nil
}

func (r *Ring) waitSpaceLocked(ctx context.Context) error {
	space := r.space
	r.mu.Unlock()
	if r.opts.OnFull != nil {
		r.opts.OnFull()
	}
	var err error
	select {
	case <-space:
	case <-ctx.Done():
		err = fmt.Errorf("wait for wal space: %w", context.Cause(ctx))
	}
	r.mu.Lock()
	return err
}

// Trim implements wal.Stream: the slot is durable before the space is reused.
func (r *Ring) Trim(to wal.Pos) error {
	r.trimming.Lock()
	defer r.trimming.Unlock()
	r.mu.Lock()
	to = min(to, r.durable)
	if to <= r.trimmed || r.err != nil {
		err := r.err
		r.mu.Unlock()
		return err
	}
	if to%block != 0 {
		r.mu.Unlock()
		return fmt.Errorf("trim wal to %d: no commit begins there", to)
	}
	n := r.slots + 1
	r.mu.Unlock()
	clear(r.slotBuf)
	encodeSlot(r.slotBuf, n, to)
	if _, err := r.file.WriteAt(r.slotBuf, int64(1+(n+1)%2)*block); err != nil {
		return r.poison(fmt.Errorf("write trim slot: %w", err))
	}
	r.mu.Lock()
	r.slots, r.trimmed = n, to
	close(r.space)
	r.space = make(chan struct{})
	r.mu.Unlock()
	return nil
}
