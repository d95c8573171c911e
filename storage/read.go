package storage

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// ReadResult is what a Read found: whole batches, the first of which holds the
// asked offset.
type ReadResult struct {
	Data [][]byte
	Size int // bytes of Data
	// FromMemory tells a tail read from one of the segment files.
	FromMemory bool
	held       []*wal.Chunk
}

// Release gives the memory of Data back; call it once Data was used.
func (r *ReadResult) Release() {
	for _, c := range r.held {
		c.Release()
	}
	r.held, r.Data = nil, nil
}

func (r *ReadResult) hold(c *wal.Chunk) {
	if n := len(r.held); n > 0 && r.held[n-1] == c {
		return
	}
	c.Retain()
	r.held = append(r.held, c)
}

// Read returns batches from offset on, below the high watermark, of at most
// maxBytes together; with minOne the first batch may be larger. An offset equal
// to the high watermark gives an empty result. ErrOutOfRange and ErrNotLocal
// say where else to look. It waits for buffer memory until ctx ends.
func (l *Log) Read(ctx context.Context, offset int64, maxBytes int, minOne bool) (ReadResult, error) {
	l.mu.Lock()
	if l.closed || l.err != nil {
		err := l.err
		l.mu.Unlock()
		if err == nil {
			err = ErrClosed
		}
		return ReadResult{}, err
	}
	if offset < l.start || offset > l.hw {
		err := fmt.Errorf("%w: %d, log has %d to %d", ErrOutOfRange, offset, l.start, l.hw)
		l.mu.Unlock()
		return ReadResult{}, err
	}
	if offset == l.hw {
		l.mu.Unlock()
		return ReadResult{FromMemory: true}, nil
	}
	if i, ok := l.tailAtLocked(offset); ok && (l.tail[i].inMemory() || l.tail[i].spill != nil) {
		return l.readTail(i, maxBytes, minOne)
	}
	s := l.segAtLocked(offset)
	if s == nil {
		l.mu.Unlock()
		return ReadResult{}, fmt.Errorf("%w: %d", ErrNotLocal, offset)
	}
	s.users++
	l.mu.Unlock()
	defer l.unuse(s)
	return l.readSegment(ctx, s, offset, maxBytes, minOne)
}

// tailAtLocked finds the tail record that holds offset.
func (l *Log) tailAtLocked(offset int64) (int, bool) {
	i := sort.Search(len(l.tail), func(i int) bool { return l.tail[i].Last >= offset })
	return i, i < len(l.tail) && l.tail[i].Base <= offset
}

// readTail collects records from memory; a spilled one is read from its file,
// alone. It is called with l.mu, and unlocks it.
func (l *Log) readTail(i, maxBytes int, minOne bool) (ReadResult, error) {
	res := ReadResult{FromMemory: true}
	for first := i; i < len(l.tail); i++ {
		r := l.tail[i]
		if r.Last >= l.hw || !r.inMemory() || i > first && r.Base != l.tail[i-1].Last+1 { // after a recovery files have what lies between
			break
		}
		if res.Size+int(r.size) > maxBytes && !(minOne && res.Size == 0) {
			break
		}
		res.hold(r.Chunk)
		res.Data = append(res.Data, r.Data)
		res.Size += int(r.size)
	}
	if res.Size > 0 || i >= len(l.tail) || l.tail[i].inMemory() || l.tail[i].spill == nil ||
		int(l.tail[i].size) > maxBytes && !minOne {
		l.mu.Unlock()
		return res, nil
	}
	r := l.tail[i]
	ref := *r.spill
	ref.file.refs.Add(1)
	l.mu.Unlock()
	defer ref.file.unref(l.store)
	open := openSpills{}
	defer open.close()
	b, err := l.store.readSpill(open, &ref, r.Base, int(r.size))
	if err != nil {
		return ReadResult{}, err
	}
	return ReadResult{Data: [][]byte{b}, Size: len(b)}, nil
}

// readSegment reads whole spans from the segment's file, verifies them and
// returns the batches asked for.
func (l *Log) readSegment(ctx context.Context, s *seg, offset int64, maxBytes int, minOne bool) (ReadResult, error) {
	if res, ok := l.readPiece(ctx, s, offset, maxBytes, minOne); ok {
		return res, nil
	}
	spans, from, to, err := l.spansFor(s, offset, maxBytes)
	if err != nil || to == from {
		return ReadResult{}, err
	}
	if !minOne && offset == spans[0].Base && firstEnd(spans, to)-from > int64(maxBytes) {
		if size, err := l.firstSize(s, from); err != nil || size > maxBytes {
			return ReadResult{}, err
		}
	}
	c, err := l.store.readPool.Get(ctx, blocksOf(from, to))
	if err != nil {
		return ReadResult{}, fmt.Errorf("%w: %w", ErrBusy, err)
	}
	defer c.Release()
	b, err := l.readSpans(s, spans, to, c)
	if errors.Is(err, ErrDamaged) && len(spans) > 1 { // what precedes the damage is served
		b, err = l.readSpans(s, spans[:1], spans[1].Pos, c)
	}
	if err != nil {
		return ReadResult{}, err
	}
	b, next := segment.Cut(b, offset, maxBytes, minOne)
	if len(b) == 0 {
		return ReadResult{}, nil
	}
	l.follow(offset, next)
	res := ReadResult{Data: [][]byte{b}, Size: len(b)}
	res.hold(c)
	return res, nil
}

// blocksOf is the size of the whole blocks that hold [from, to).
func blocksOf(from, to int64) int {
	return int((to+vfs.BlockSize-1)&^(vfs.BlockSize-1) - from&^(vfs.BlockSize-1))
}

// readSpans reads the spans, which end at position to, into c and verifies them.
func (l *Log) readSpans(s *seg, spans []segment.Span, to int64, c *wal.Chunk) ([]byte, error) {
	from := spans[0].Pos
	lo := from &^ (vfs.BlockSize - 1)
	f, err := l.store.files.get(l.logPath(s), false)
	if err != nil {
		return nil, fmt.Errorf("read segment %d of %s: %w", s.base, l.tp, err)
	}
	n, err := f.ReadAt(c.B[:blocksOf(from, to)], lo)
	l.store.files.put(f)
	if int64(n) < to-lo {
		return nil, fmt.Errorf("read segment %d of %s: %d of %d bytes at %d: %w", s.base, l.tp, n, to-lo, lo, err)
	}
	b := c.B[from-lo : to-lo]
	if err := segment.VerifySpan(b, spans, to); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, l.logPath(s), err)
	}
	return b, nil
}

// firstEnd is where the first span ends.
func firstEnd(spans []segment.Span, to int64) int64 {
	if len(spans) > 1 {
		return spans[1].Pos
	}
	return to
}

// peeked is the batch whose size was looked at last: a consumer with a smaller
// limit asks for it until the other partitions let it through.
type peeked struct {
	base, pos int64 // of the segment, in its file
	size      int
}

// firstSize reads the header of the batch at pos, to find out for the price of
// a block whether it is larger than was asked for.
func (l *Log) firstSize(s *seg, pos int64) (int, error) {
	l.mu.Lock()
	last := l.peeked
	l.mu.Unlock()
	if last.size > 0 && last.base == s.base && last.pos == pos {
		return last.size, nil
	}
	block, _ := l.store.blocks.Get().(*[]byte)
	if block == nil {
		b := vfs.AlignedBytes(2 * vfs.BlockSize)
		block = &b
	}
	defer l.store.blocks.Put(block)
	f, err := l.store.files.get(l.logPath(s), false)
	if err != nil {
		return 0, fmt.Errorf("read segment %d of %s: %w", s.base, l.tp, err)
	}
	defer l.store.files.put(f)
	lo := pos &^ (vfs.BlockSize - 1)
	n, err := f.ReadAt(*block, lo)
	if int(pos-lo)+batch.HeaderSize > n {
		return 0, fmt.Errorf("read segment %d of %s at %d: %w", s.base, l.tp, pos, err)
	}
	h, err := batch.Parse((*block)[pos-lo:])
	if err != nil {
		return 0, fmt.Errorf("%w: %s at %d: %w", ErrDamaged, l.logPath(s), pos, err)
	}
	l.mu.Lock()
	l.peeked = peeked{base: s.base, pos: pos, size: h.Size()}
	l.mu.Unlock()
	return h.Size(), nil
}

// maxRead bounds one read from a segment file, in bytes, unless a single span is larger.
const maxRead = 4<<20 - vfs.BlockSize

// spansFor returns the spans from the one that holds offset, of about maxBytes.
func (l *Log) spansFor(s *seg, offset int64, maxBytes int) (spans []segment.Span, from, to int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := int64(max(min(maxBytes, maxRead), 1))
	if s.builder != nil {
		spans, to = s.builder.SpansFrom(offset, limit, s.written+int64(len(s.head)))
	} else {
		if s.index == nil {
			l.mu.Unlock()
			idx, _, rerr := l.readIndex(s)
			l.mu.Lock()
			if rerr != nil {
				return nil, 0, 0, rerr
			}
			s.index = idx
		}
		spans, to = s.index.SpansFrom(offset, limit)
	}
	if len(spans) == 0 {
		return nil, 0, 0, fmt.Errorf("%w: segment %d of %s has no span for offset %d", ErrDamaged, s.base, l.tp, offset)
	}
	return spans, spans[0].Pos, to, nil
}

func (l *Log) unuse(s *seg) {
	l.mu.Lock()
	s.users--
	gone := s.dropped && s.users == 0
	l.mu.Unlock()
	if gone {
		l.removeFiles(s)
	}
}
