package ring

import (
	"errors"
	"fmt"
	"io"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// window reads the ring forward in large aligned pieces.
type window struct {
	file vfs.File
	size int64
	buf  []byte
	pos  wal.Pos
	n    int
}

// at returns n bytes at pos, which is a multiple of block and at least n
// before the ring's end.
func (w *window) at(pos wal.Pos, n int) ([]byte, error) {
	if pos < w.pos || pos+wal.Pos(n) > w.pos+wal.Pos(w.n) {
		phys := int64(pos) % w.size
		want := int(min(int64(max(align(n, block), 1<<20)), w.size-phys))
		if len(w.buf) < want {
			w.buf = vfs.AlignedBytes(want)
		}
		got, err := w.file.ReadAt(w.buf[:want], dataStart+phys)
		if got < want {
			return nil, fmt.Errorf("read wal at %d: %d of %d bytes: %w", dataStart+phys, got, want, errors.Join(err, io.ErrUnexpectedEOF))
		}
		w.pos, w.n = pos, want
	}
	o := int(pos - w.pos)
	return w.buf[o : o+n], nil
}

// Replay implements wal.Stream. It ends at the first commit that is not whole,
// provided that nothing follows it: a whole commit behind a broken one means
// that acknowledged bytes were damaged.
func (r *Ring) Replay(fn func(*wal.Entry) error) error {
	w := &window{file: r.file, size: r.size}
	pos := r.trimmed
	for {
		h, ok, err := r.commitAt(w, pos)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		body, err := w.at(h.pos, min(align(h.length, block), int(r.size-int64(h.pos)%r.size)))
		if err != nil {
			return err
		}
		entries, err := r.entriesOf(h, body)
		if err != nil {
			if next, more, e := r.commitAt(w, h.end()); e == nil && more && next.prevEnd == h.end() {
				return fmt.Errorf("%w: commit at position %d (file offset %d of %s) is broken (%v) but the one after it is whole", wal.ErrDamaged, h.pos, dataStart+int64(h.pos)%r.size, r.opts.Path, err)
			}
			break // torn: its write never finished, nothing in it was acknowledged
		}
		for i := range entries {
			if err := fn(&entries[i]); err != nil {
				return err
			}
		}
		pos = h.end()
	}
	if err := r.noneBehind(w, pos); err != nil {
		return err
	}
	r.mu.Lock()
	r.end, r.durable, r.running = pos, pos, true
	r.mu.Unlock()
	r.filled = min(int64(pos), r.size)
	r.head = r.filled
	go r.run()
	return nil
}

// commitAt finds the commit that follows position pos: there, or at the next
// lap's start.
func (r *Ring) commitAt(w *window, pos wal.Pos) (h commitHead, ok bool, err error) {
	lap := pos + wal.Pos(r.size-int64(pos)%r.size)
	for _, p := range []wal.Pos{pos, lap} {
		b, err := w.at(p, block)
		if err != nil {
			return h, false, err
		}
		h, ok := decodeCommit(b, r.key)
		if ok && h.pos == p && (h.prevEnd == pos || (p == pos && pos == r.trimmed)) && r.contiguous(p, h.length) {
			return h, true, nil
		}
	}
	return h, false, nil
}

func (r *Ring) entriesOf(h commitHead, body []byte) ([]wal.Entry, error) {
	b := body[commitHeader:min(h.length, len(body))]
	entries := make([]wal.Entry, h.entries)
	for i := range entries {
		e := &entries[i]
		e.Pos = h.pos
		n, err := wal.DecodeEntry(b, e)
		if err != nil {
			return nil, err
		}
		if err := checkEntry(e); err != nil {
			return nil, err
		}
		b = b[n:]
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%d bytes behind the last entry", len(b))
	}
	return entries, nil
}

// noneBehind looks for a whole commit shortly behind the end of the replay. With
// one commit in flight there can be none, unless one before it was damaged.
func (r *Ring) noneBehind(w *window, end wal.Pos) error {
	for p := end + block; p < end+wal.ChunkSize+block && int64(p-end) < r.size && r.contiguous(p, block); p += block {
		b, err := w.at(p, block)
		if err != nil {
			return err
		}
		if h, ok := decodeCommit(b, r.key); ok && h.pos == p {
			return fmt.Errorf("%w: no whole commit at position %d (file offset %d of %s) but one at %d", wal.ErrDamaged, end, dataStart+int64(end)%r.size, r.opts.Path, p)
		}
	}
	return nil
}
