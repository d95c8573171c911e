package ring

import (
	"fmt"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// checkEntry verifies what the entry's own checksum does not cover: a batch
// behind its first 21 bytes.
func checkEntry(e *wal.Entry) error {
	if e.Kind == wal.KindRef {
		_, err := wal.ParseRef(e.Data)
		return err
	}
	if e.Kind != wal.KindBatch {
		return nil
	}
	h, err := batch.Check(e.Data)
	if err != nil {
		return err
	}
	if h.Size() != len(e.Data) || h.BaseOffset != e.Base || h.LastOffset() != e.Last {
		return fmt.Errorf("%w: entry says offsets %d to %d, its batch %d to %d", batch.ErrCorrupt, e.Base, e.Last, h.BaseOffset, h.LastOffset())
	}
	return nil
}

// run is the committer: the only writer of the ring's data area.
func (r *Ring) run() {
	defer close(r.done)
	stop := r.startPrefill()
	defer stop()
	for range r.kick {
		for {
			c, last := r.take()
			if c == nil {
				if last {
					return
				}
				break
			}
			c.filling.Wait()
			failed := r.State().Err // a trim or the prefill may have failed too
			if failed == nil {
				failed = r.write(c)
			}
			if err := c.ready(); err != nil {
				failed = r.poison(err)
			}
			r.finish(c, failed)
		}
	}
}

// take detaches the next commit to write; last says that none will ever come.
func (r *Ring) take() (c *commit, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == 0 && r.open != nil {
		r.closeOpenLocked()
	}
	if len(r.queue) > 0 {
		c = r.queue[0]
		r.queue = append(r.queue[:0], r.queue[1:]...)
	}
	return c, c == nil && r.closed
}

// ready waits for what the entries refer to, and returns the first error.
func (c *commit) ready() (first error) {
	for _, e := range c.entries {
		if e.Ready == nil {
			continue
		}
		if err := e.Ready(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (r *Ring) write(c *commit) error {
	padded := align(c.length, block)
	b := c.chunk.B[c.off : c.off+padded]
	clear(b[c.length:])
	h := commitHead{pos: c.pos, length: c.length, entries: len(c.entries), prevEnd: c.prevEnd}
	h.encode(b, r.key)
	phys := int64(c.pos) % r.size
	if int64(c.pos) < r.size {
		r.passPrefill(phys + int64(padded))
	}
	if _, err := r.file.WriteAt(b, dataStart+phys); err != nil {
		return r.poison(fmt.Errorf("write commit at %d: %w", c.pos, err))
	}
	return nil
}

// finish announces the commit and recycles it. State counts it as durable only
// when its announcement has returned: whoever trims by State knows its entries then.
func (r *Ring) finish(c *commit, failed error) {
	r.opts.Announce(c.entries, failed)
	end := c.pos + wal.Pos(align(c.length, block))
	clear(c.entries)
	c.entries = c.entries[:0]
	c.chunk.Release()
	c.chunk = nil
	r.mu.Lock()
	if failed == nil {
		r.durable = end
	}
	r.spare = c
	r.mu.Unlock()
}

// poison records the first failure, for ever, and wakes whoever waits for space.
func (r *Ring) poison(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = fmt.Errorf("%w: %w", wal.ErrPoisoned, err)
		close(r.space)
		r.space = make(chan struct{})
	}
	return r.err
}

// Poison fails all pending and later appends, and those that wait for space: the
// disk has failed elsewhere, and nothing will trim the ring any more.
func (r *Ring) Poison(err error) { _ = r.poison(err) }

// Close implements wal.Stream.
func (r *Ring) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return wal.ErrClosed
	}
	r.closed = true
	running := r.running
	close(r.space)
	r.space = make(chan struct{})
	r.mu.Unlock()
	if running {
		select {
		case r.kick <- struct{}{}:
		default:
		}
		<-r.done
	}
	r.mu.Lock()
	if r.chunk != nil {
		r.chunk.Release()
		r.chunk = nil
	}
	err := r.err
	r.mu.Unlock()
	if e := r.file.Close(); err == nil && e != nil {
		err = fmt.Errorf("close wal: %w", e)
	}
	return err
}

// prefillPiece is what the prefill zeroes at once: a commit may have to wait for
// as much. It works in bouts of a quarter of Options.Prefill, so that not every
// commit is followed by a small write of its own.
const prefillPiece = 256 << 10

// passPrefill is called in the first lap before a commit that ends at head, and
// waits for the prefill if that is writing there.
func (r *Ring) passPrefill(head int64) {
	r.fillMu.Lock()
	for r.filling && head > r.filled {
		r.fillDone.Wait()
	}
	r.head = head
	r.filled = max(r.filled, head)
	limit := r.fillLimitLocked()
	behind := limit - r.filled
	r.fillMu.Unlock()
	if behind > 0 && (behind >= r.opts.Prefill/4 || limit == r.size) {
		select {
		case r.fillKick <- struct{}{}:
		default:
		}
	}
}

func (r *Ring) fillLimitLocked() int64 { return min(r.size, r.head+r.opts.Prefill) }

// startPrefill zeroes the ring ahead of the head during its first lap, so that
// commits meet allocated blocks. The returned function stops it and waits.
func (r *Ring) startPrefill() (stop func()) {
	if r.opts.Prefill <= 0 || r.filled >= r.size {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		r.prefill(quit)
	}()
	return func() { close(quit); <-done }
}

func (r *Ring) prefill(quit chan struct{}) {
	zero := vfs.AlignedBytes(int(max(block, min(prefillPiece, r.opts.Prefill/4&^(block-1)))))
	for {
		n, full, err := r.fillPiece(zero)
		if err != nil {
			_ = r.poison(fmt.Errorf("prefill: %w", err))
			return
		}
		if full {
			return
		}
		if n > 0 {
			select {
			case <-quit:
				return
			default:
				continue
			}
		}
		select {
		case <-quit:
			return
		case <-r.fillKick:
		}
	}
}

// fillPiece zeroes the next piece, if the head is near enough. Commits before it
// are written meanwhile.
func (r *Ring) fillPiece(zero []byte) (n int64, full bool, err error) {
	r.fillMu.Lock()
	defer r.fillMu.Unlock()
	from := r.filled
	limit := r.fillLimitLocked()
	n = min(int64(len(zero)), limit-from)
	if n < int64(len(zero)) && limit < r.size { // the rest waits for the next bout
		n = 0
	}
	if n > 0 {
		r.filling = true
		r.fillMu.Unlock()
		_, err = r.file.WriteAt(zero[:n], dataStart+from)
		r.fillMu.Lock()
		r.filling = false
		r.fillDone.Broadcast()
		if err == nil {
			r.filled = from + n
		}
	}
	return n, r.filled >= r.size, err
}
