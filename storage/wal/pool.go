package wal

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ChunkSize is the size in bytes of a pooled chunk: large enough for several
// 1 MiB batches in one commit, small enough that the pool has many.
const ChunkSize = 4 << 20

// hugeFrom is the limit, in bytes, from which a pool asks for huge pages, and makes
// a chunk ready ahead: in a smaller one most chunks are never filled.
const hugeFrom = 64 << 20

// MaxJumbo bounds a single chunk made for one oversized append.
const MaxJumbo = 256 << 20

// Chunk is page-aligned memory outside the Go heap, counted by references. It
// is written by its stream alone; holders of a reference read what was handed
// to them. The last Release gives it back to its pool.
type Chunk struct {
	B    []byte
	refs atomic.Int32
	pool *Pool
}

// Retain adds a reference; the caller must hold one already.
func (c *Chunk) Retain() {
	if c.refs.Add(1) <= 1 {
		panic("wal: Retain of a released chunk")
	}
}

// Release drops one reference.
func (c *Chunk) Release() {
	switch n := c.refs.Add(-1); {
	case n == 0:
		c.pool.put(c)
	case n < 0:
		panic("wal: Release of a released chunk")
	}
}

// Pool is a bounded, recycled pool of chunks: the memory tail of all
// partitions. Chunks are mapped on first need and kept, because first touch of
// fresh memory costs more CPU than everything else a broker does with a byte.
type Pool struct {
	limit int64

	mu     sync.Mutex
	free   []*Chunk
	mapped int64 // bytes mapped, free ones included
	inUse  int64
	wait   chan struct{} // closed and replaced when memory comes back
	want   func()        // called without mu when a Get has to wait
	ahead  bool          // a goroutine makes a chunk ready
	closed bool
	wg     sync.WaitGroup
}

// NewPool returns a pool of at most limit bytes, at least four chunks.
func NewPool(limit int64) *Pool {
	return &Pool{limit: max(limit, 4*ChunkSize), wait: make(chan struct{})}
}

// OnPressure sets a function that is called whenever a Get finds the pool
// exhausted, so that the owner can give chunks back. Set it before use.
func (p *Pool) OnPressure(f func()) { p.want = f }

// SetLimit changes the bound, to at least four chunks. Chunks in use beyond a lower one go when
// they are released.
func (p *Pool) SetLimit(limit int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = max(limit, 4*ChunkSize)
	for p.mapped > p.limit && len(p.free) > 0 {
		p.unmapLocked(p.free[len(p.free)-1])
		p.free = p.free[:len(p.free)-1]
	}
	p.wakeLocked()
}

func (p *Pool) wakeLocked() {
	close(p.wait)
	p.wait = make(chan struct{})
}

// Get returns a chunk of at least size bytes with one reference. It waits
// while the pool is exhausted, until ctx ends.
func (p *Pool) Get(ctx context.Context, size int) (*Chunk, error) {
	if size > MaxJumbo {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, size, MaxJumbo)
	}
	need := (max(size, ChunkSize) + ChunkSize - 1) / ChunkSize * ChunkSize
	for {
		c, wait, err := p.try(need)
		if c != nil || err != nil {
			return c, err
		}
		if p.want != nil {
			p.want()
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for memory tail: %w", context.Cause(ctx))
		}
	}
}

// TryGet is Get that returns nil instead of waiting.
func (p *Pool) TryGet(size int) *Chunk {
	c, _, _ := p.try((max(size, ChunkSize) + ChunkSize - 1) / ChunkSize * ChunkSize)
	return c
}

func (p *Pool) try(need int) (*Chunk, chan struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if need == ChunkSize && len(p.free) > 0 {
		c := p.free[len(p.free)-1]
		p.free = p.free[:len(p.free)-1]
		p.inUse += int64(len(c.B))
		c.refs.Store(1)
		p.aheadLocked()
		return c, nil, nil
	}
	for p.mapped+int64(need) > p.limit && len(p.free) > 0 { // make room for a jumbo
		c := p.free[len(p.free)-1]
		p.free = p.free[:len(p.free)-1]
		p.unmapLocked(c)
	}
	// One jumbo may exceed the limit when nothing else is in use, so that a
	// batch larger than the pool can still pass.
	if p.mapped+int64(need) > p.limit && p.inUse > 0 {
		return nil, p.wait, nil
	}
	c, err := p.mapLocked(need)
	if err != nil {
		return nil, nil, err
	}
	p.inUse += int64(need)
	c.refs.Store(1)
	p.aheadLocked()
	return c, nil, nil
}

func (p *Pool) mapLocked(size int) (*Chunk, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes for the memory tail: %w", size, err)
	}
	if size == ChunkSize && p.limit >= hugeFrom {
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // only a hint
	}
	p.mapped += int64(size)
	return &Chunk{B: b, pool: p}, nil
}

// aheadLocked has another chunk mapped and touched when none is free: on a virtual
// machine the first touch of 4 MiB takes up to 10 ms, which an append need not wait.
func (p *Pool) aheadLocked() {
	if p.ahead || p.closed || len(p.free) > 0 || p.limit < hugeFrom || p.mapped+ChunkSize > p.limit {
		return
	}
	p.ahead = true
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		p.mu.Lock()
		c, err := p.mapLocked(ChunkSize)
		p.mu.Unlock()
		if err == nil {
			touch(c.B)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ahead = false
		switch {
		case err != nil: // whoever needs one will be told
		case p.closed, p.mapped > p.limit: // the bound may be a lower one by now
			p.unmapLocked(c)
		default:
			p.freeLocked(c)
		}
	}()
}

// touch makes the kernel give memory for all of b.
func touch(b []byte) {
	if unix.Madvise(b, unix.MADV_POPULATE_WRITE) == nil { // since Linux 5.14
		return
	}
	for i := 0; i < len(b); i += unix.Getpagesize() {
		b[i] = 0
	}
}

func (p *Pool) unmapLocked(c *Chunk) {
	p.mapped -= int64(len(c.B))
	_ = unix.Munmap(c.B) // can only fail for a bad address
	c.B = nil
}

func (p *Pool) put(c *Chunk) {
	p.mu.Lock()
	p.inUse -= int64(len(c.B))
	if len(c.B) != ChunkSize || p.mapped > p.limit {
		p.unmapLocked(c)
		p.wakeLocked()
	} else {
		p.freeLocked(c)
	}
	p.mu.Unlock()
}

func (p *Pool) freeLocked(c *Chunk) {
	p.free = append(p.free, c)
	p.wakeLocked()
}

// Usage returns the bytes in use, the bytes mapped and the limit.
func (p *Pool) Usage() (inUse, mapped, limit int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inUse, p.mapped, p.limit
}

// Close unmaps the free chunks; those in use are unmapped never.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.free {
		p.unmapLocked(c)
	}
	p.free = nil
}
