package storage

import (
	"context"
	"sort"
	"sync"

	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// A consumer that reads a log's segment files from one offset to the next finds
// the bytes in memory: while it takes one piece, the following one is read and
// verified. Pieces live in the buffers of reads from disk and are the first to
// go when those are wanted.
const (
	// aheadPieces is how many pieces a log keeps at most: two for each of two consumers.
	aheadPieces = 4
	// aheadSeconds is how long a piece that nobody reads is kept.
	aheadSeconds = 5
)

// piece ahead: verified spans of one segment.
type aheadPiece struct {
	seg   *seg
	spans []segment.Span
	base  int64         // first offset
	done  chan struct{} // closed when it was read; what follows is set before
	chunk *wal.Chunk    // nil when the read failed
	bytes []byte
	next  int64  // offset behind the last batch
	used  uint64 // Store.ticks when it was last read from; Log.mu guards it
}

// readAhead is a Log's. Log.mu guards it.
type readAhead struct {
	pieces []*aheadPiece // least recently used first
	ends   [4]int64      // where the last reads from files ended
	turn   int
}

// ended notes that a read ended before next, and reports whether it began where
// an earlier one had ended.
func (a *readAhead) ended(from, next int64) (follows bool) {
	for i, e := range a.ends {
		if e == from && e > 0 {
			a.ends[i] = next
			return true
		}
	}
	a.ends[a.turn] = next
	a.turn = (a.turn + 1) % len(a.ends)
	return false
}

// find returns the piece of s that holds offset, and makes it the last to go.
func (a *readAhead) find(s *seg, offset int64) *aheadPiece {
	for i, p := range a.pieces {
		if p.seg == s && p.base <= offset && (offset == p.base || p.ready() && offset < p.next) {
			copy(a.pieces[i:], a.pieces[i+1:])
			a.pieces[len(a.pieces)-1] = p
			return p
		}
	}
	return nil
}

func (p *aheadPiece) ready() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// drop gives the i-th piece up; one that is still being read goes when it was.
func (a *readAhead) drop(i int) {
	p := a.pieces[i]
	a.pieces = append(a.pieces[:i], a.pieces[i+1:]...)
	if p.ready() && p.chunk != nil {
		p.chunk.Release()
		p.chunk = nil
	}
}

// readPiece answers from pieces read ahead, with several when they are there;
// ok is false when there is none for offset.
func (l *Log) readPiece(ctx context.Context, s *seg, offset int64, maxBytes int, minOne bool) (res ReadResult, ok bool) {
	l.mu.Lock()
	p := l.ahead.find(s, offset)
	l.mu.Unlock()
	if p == nil {
		return res, false
	}
	if !p.ready() { // ctx may start a timer when it is waited on
		select {
		case <-p.done:
		case <-ctx.Done():
			return res, false // reading it once more ends as soon
		}
	}
	next := offset
	for p != nil {
		b, end, ok := l.takePiece(p, next, maxBytes-res.Size, minOne && res.Size == 0, &res)
		if !ok || len(b) == 0 {
			break
		}
		res.Data = append(res.Data, b)
		res.Size += len(b)
		next = end
		l.mu.Lock()
		if p = l.ahead.find(s, next); p != nil && (!p.ready() || next != p.base) {
			p = nil
		}
		l.mu.Unlock()
	}
	if len(res.held) == 0 {
		return res, false
	}
	l.follow(offset, next)
	return res, true
}

// takePiece cuts the batches from offset on out of p and holds its memory; ok is
// false when p could not be read, or is gone.
func (l *Log) takePiece(p *aheadPiece, offset int64, maxBytes int, minOne bool, res *ReadResult) (b []byte, next int64, ok bool) {
	l.mu.Lock()
	if p.chunk == nil {
		l.mu.Unlock()
		return nil, offset, false
	}
	res.hold(p.chunk)
	p.used = l.store.ticks.Load()
	l.mu.Unlock()
	i := max(sort.Search(len(p.spans), func(i int) bool { return p.spans[i].Base > offset })-1, 0)
	b, next = segment.Cut(p.bytes[p.spans[i].Pos-p.spans[0].Pos:], offset, maxBytes, minOne)
	return b, next, true
}

// follow is called after batches [from, next) were read from a file: when that
// went on where an earlier read had ended, what comes next is read ahead.
func (l *Log) follow(from, next int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ahead.ended(from, next) {
		return
	}
	s := l.segAtLocked(next)
	if s != nil { // behind what is there or under way
		if p := l.ahead.find(s, next); p != nil {
			if !p.ready() || p.chunk == nil {
				return
			}
			next = p.next
			s = l.segAtLocked(next)
		}
	}
	if s == nil || next >= l.hw || l.closed || l.ahead.find(s, next) != nil {
		return
	}
	if i, ok := l.tailAtLocked(next); ok && l.tail[i].inMemory() {
		return // memory has it
	}
	l.startAheadLocked(s, next)
}

// startAheadLocked reads the piece from offset on in the background, if there is
// memory to spare.
func (l *Log) startAheadLocked(s *seg, offset int64) {
	inUse, _, limit := l.store.readPool.Usage()
	if inUse+wal.ChunkSize > limit/2 || !l.store.goAhead() {
		return
	}
	if len(l.ahead.pieces) == aheadPieces {
		l.ahead.drop(0)
	}
	p := &aheadPiece{seg: s, base: offset, done: make(chan struct{}), used: l.store.ticks.Load()}
	l.ahead.pieces = append(l.ahead.pieces, p)
	l.store.aheads.add(l)
	s.users++
	go func() {
		defer l.store.wg.Done()
		defer l.unuse(s)
		c, b := l.fillPiece(p)
		l.mu.Lock()
		defer l.mu.Unlock()
		p.chunk, p.bytes = c, b
		close(p.done)
		for _, q := range l.ahead.pieces {
			if q == p {
				return
			}
		}
		if c != nil { // dropped meanwhile
			p.chunk = nil
			c.Release()
		}
	}()
}

// fillPiece reads and verifies p's bytes; without memory to spare, or after an
// error, which the read that asks for it will meet itself, it returns nil.
func (l *Log) fillPiece(p *aheadPiece) (*wal.Chunk, []byte) {
	spans, from, to, err := l.spansFor(p.seg, p.base, maxRead)
	if err != nil {
		return nil, nil
	}
	for n := len(spans) - 1; n > 0 && blocksOf(from, to) > wal.ChunkSize; n-- {
		to, spans = spans[n].Pos, spans[:n]
	}
	if to == from || blocksOf(from, to) > wal.ChunkSize {
		return nil, nil
	}
	c := l.store.readPool.TryGet(wal.ChunkSize)
	if c == nil {
		return nil, nil
	}
	b, err := l.readSpans(p.seg, spans, to, c)
	if err != nil {
		c.Release()
		return nil, nil
	}
	p.spans = spans
	_, p.next = segment.Cut(b[spans[len(spans)-1].Pos-from:], spans[len(spans)-1].Base, len(b), false)
	return c, b
}

// dropAhead gives up the pieces that were not read from since tick since.
func (l *Log) dropAhead(since uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropAheadLocked(since)
}

func (l *Log) dropAheadLocked(since uint64) {
	for i := len(l.ahead.pieces) - 1; i >= 0; i-- {
		if l.ahead.pieces[i].used < since {
			l.ahead.drop(i)
		}
	}
	if len(l.ahead.pieces) == 0 {
		l.store.aheads.remove(l)
	}
}

// aheadSet holds the logs that have pieces.
type aheadSet struct {
	mu   sync.Mutex
	logs map[*Log]struct{}
}

func (a *aheadSet) add(l *Log) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.logs == nil {
		a.logs = map[*Log]struct{}{}
	}
	a.logs[l] = struct{}{}
}

func (a *aheadSet) remove(l *Log) {
	a.mu.Lock()
	delete(a.logs, l)
	a.mu.Unlock()
}

func (a *aheadSet) all() []*Log {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*Log, 0, len(a.logs))
	for l := range a.logs {
		out = append(out, l)
	}
	return out
}

// dropAheads gives up what was read ahead and not wanted since tick since. With
// the greatest value that is everything: reads wait for the memory.
func (s *Store) dropAheads(since uint64) {
	for _, l := range s.aheads.all() {
		l.dropAhead(since)
	}
}

// goAhead counts a goroutine that the store waits for when it closes.
func (s *Store) goAhead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}
