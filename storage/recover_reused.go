package storage

import (
	"fmt"
	"slices"

	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// An open segment in a file of used blocks can't be scanned for its valid prefix:
// old batches may lie where new ones are expected. Ring or spill file have its last
// batch until it is closed, and each of their entries says where in the file its
// batch belongs. So the file is read exactly up to the first batch that they have:
// what lies before it is durable, or they would have it.

// recoverMarked registers a segment whose file is of used blocks. A marker that
// means nothing any more is removed.
func (l *Log) recoverMarked(f localFiles) error {
	if f.log && !f.idx {
		l.reused = append(l.reused, f.base)
		return nil
	}
	return l.removeDurably(l.markerPath(&seg{base: f.base}))
}

// meetReused is called in a replay with the next batch that ring or spill file
// have of l. It reads the file of e's segment up to it, if that is one of used blocks.
func (l *Log) meetReused(e *wal.Entry) error {
	if !e.HasPos {
		return nil
	}
	if i := slices.Index(l.reused, e.Segment); i >= 0 {
		l.reused = slices.Delete(l.reused, i, i+1)
		return l.openReused(e)
	}
	s := l.activeLocked()
	if s == nil || !s.reused || s.base != e.Segment || e.Base <= l.next.Load() {
		return nil
	}
	// A spill file still had batches that the segment has too, with those behind them.
	l.mu.Lock()
	l.dropSegTailLocked(s)
	l.mu.Unlock()
	l.store.diskUsed.Add(-s.size)
	s.last, s.size, s.maxTS = s.base-1, 0, -1
	s.builder = segment.NewBuilder(l.tp, s.base, l.cfg.IndexInterval)
	return l.readReused(s, e)
}

// openReused adds the segment whose first known batch is e.
func (l *Log) openReused(e *wal.Entry) error {
	if len(l.segs) > 0 && e.Segment != l.next.Load() {
		l.refuse("partition has a hole", fmt.Errorf("%w: open segment begins at %d, the log before it ends at %d", ErrDamaged, e.Segment, l.next.Load()))
		return nil
	}
	now := l.store.opts.Now()
	if s := l.activeLocked(); s != nil {
		l.closeSegLocked(s, now)
	}
	s := l.newSegLocked(e.Segment)
	s.made, s.reused, s.began = true, true, now
	return l.readReused(s, e)
}

// readReused reads the file of s, which is empty, up to the batch e.
func (l *Log) readReused(s *seg, e *wal.Entry) error {
	l.next.Store(s.base)
	if _, err := l.scanOpen(s, e.FilePos); err != nil {
		return err
	}
	if s.size != e.FilePos || s.last+1 != e.Base {
		l.refuse("partition has a hole", fmt.Errorf("%w: %s has offsets up to %d in %d bytes, the batch at %d is to begin behind %d", ErrDamaged, l.logPath(s), s.last, s.size, e.Base, e.FilePos))
		return nil
	}
	l.next.Store(e.Base)
	l.hw = e.Base
	return nil
}
