package ring

import (
	"errors"
	"fmt"
	"io"
	"slices"

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
// before the ring's end. They are valid until the next call.
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
	end, err := r.walk(func(entries []wal.Entry) error {
		for i := range entries {
			if err := fn(&entries[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && r.torn != nil {
		err = r.wipe(*r.torn)
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.end, r.durable, r.running = end, end, true
	r.mu.Unlock()
	r.filled = min(int64(end), r.size)
	r.head = r.filled
	go r.run()
	return nil
}

// walk calls fn with the entries of every whole commit from the trim position
// on and returns where the last of them ends.
func (r *Ring) walk(fn func(entries []wal.Entry) error) (wal.Pos, error) {
	w := &window{file: r.file, size: r.size}
	pos := r.trimmed
	for {
		h, entries, err := r.following(w, pos)
		if err != nil {
			return pos, err
		}
		if entries == nil {
			return pos, r.noneBehind(w, pos)
		}
		if err := fn(entries); err != nil {
			return pos, err
		}
		pos = h.end()
	}
}

// following finds the whole commit that follows position pos: there, or at the
// next lap's start. Without one entries is nil. Both places must be looked at:
// a torn commit may have left a good header at pos, and the next one, made after
// a restart, may have been too long to be put over it.
func (r *Ring) following(w *window, pos wal.Pos) (h commitHead, entries []wal.Entry, err error) {
	for _, p := range []wal.Pos{pos, r.lapAfter(pos)} {
		h, ok, err := r.headAt(w, p)
		if err != nil {
			return h, nil, err
		}
		if !ok || h.prevEnd != pos && !(p == pos && pos == r.trimmed) {
			continue
		}
		body, err := w.at(p, align(h.length, block))
		if err != nil {
			return h, nil, err
		}
		entries, broken := r.entriesOf(h, body)
		refs := broken == nil && r.hasRefs(entries)
		if broken == nil && !refs {
			return h, entries, nil
		}
		more, err := r.continues(w, h.end())
		if err != nil {
			return h, nil, err
		}
		if refs {
			if body, err = w.at(p, align(h.length, block)); err != nil {
				return h, nil, err
			}
			if entries, broken = r.entriesOf(h, body); broken == nil && (more || r.checkRefs(entries)) {
				for i := range entries {
					entries[i].Newest = !more
				}
				return h, entries, nil
			}
			if !more {
				r.torn = &p
			}
		}
		if more {
			return h, nil, fmt.Errorf("%w: commit at position %d (file offset %d of %s) is broken (%w) but the one after it is there", wal.ErrDamaged, p, r.fileOffset(p), r.opts.Path, broken)
		}
		// Torn: its write never finished, nothing in it was acknowledged.
	}
	return h, nil, nil
}

func (r *Ring) hasRefs(entries []wal.Entry) bool {
	return r.opts.CheckRef != nil && slices.ContainsFunc(entries, func(e wal.Entry) bool { return e.Kind == wal.KindRef })
}

// wipe takes a commit back whose references lead nowhere: what they refer to may
// be removed now, and the next replay would not know that they were torn.
func (r *Ring) wipe(p wal.Pos) error {
	if _, err := r.file.WriteAt(vfs.AlignedBytes(block), r.fileOffset(p)); err != nil {
		return fmt.Errorf("take back the torn commit at %d of %s: %w", p, r.opts.Path, err)
	}
	return nil
}

// checkRefs reports whether what the entries of the last commit refer to is there.
func (r *Ring) checkRefs(entries []wal.Entry) bool {
	for i := range entries {
		if entries[i].Kind == wal.KindRef && r.opts.CheckRef(&entries[i]) != nil {
			return false
		}
	}
	return true
}

func (r *Ring) fileOffset(p wal.Pos) int64 { return dataStart + int64(p)%r.size }

// lapAfter is the first position of the lap after that of pos.
func (r *Ring) lapAfter(pos wal.Pos) wal.Pos { return pos + wal.Pos(r.size-int64(pos)%r.size) }

// headAt reads the header of the commit at p; ok is false when there is none.
func (r *Ring) headAt(w *window, p wal.Pos) (h commitHead, ok bool, err error) {
	b, err := w.at(p, block)
	if err != nil {
		return h, false, err
	}
	h, ok = decodeCommit(b, r.key)
	return h, ok && h.pos == p && r.contiguous(p, align(h.length, block)), nil
}

// continues reports whether a commit was written behind one that ended at end.
func (r *Ring) continues(w *window, end wal.Pos) (bool, error) {
	for _, p := range []wal.Pos{end, r.lapAfter(end)} {
		if h, ok, err := r.headAt(w, p); err != nil || ok && h.prevEnd == end {
			return err == nil, err
		}
	}
	return false, nil
}

// entriesOf returns the entries of a commit; there is at least one.
func (r *Ring) entriesOf(h commitHead, body []byte) ([]wal.Entry, error) {
	b := body[commitHeader:h.length]
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
	if len(b) != 0 || len(entries) == 0 {
		return nil, fmt.Errorf("%d bytes behind the last of %d entries", len(b), len(entries))
	}
	return entries, nil
}

// noneBehind looks for a commit shortly behind the end of the replay, around the
// ring's end too. With one commit in flight there can be none, unless one before
// it was damaged. A header from before end is the rest of a torn commit. When
// a trim slot is damaged, the replay may have begun too early, where newer
// commits lie now: then the whole ring is looked at.
func (r *Ring) noneBehind(w *window, end wal.Pos) error {
	limit := min(wal.ChunkSize+block, r.size)
	if r.slotLost {
		limit = r.size
	}
	for p := end; p < end+wal.Pos(limit); p += block {
		b, err := w.at(p, block)
		if err != nil {
			return err
		}
		h, ok := decodeCommit(b, r.key)
		if !ok || h.prevEnd <= end || h.pos < p || int64(h.pos-p)%r.size != 0 {
			continue
		}
		if r.slotLost {
			return fmt.Errorf("%w: a trim slot of %s is broken, and the other one is too old: no commit at position %d, but one at %d", wal.ErrDamaged, r.opts.Path, end, h.pos)
		}
		return fmt.Errorf("%w: no whole commit at position %d (file offset %d of %s) but one at %d", wal.ErrDamaged, end, r.fileOffset(end), r.opts.Path, h.pos)
	}
	return nil
}
