package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// segmentOf returns the segment that takes e. It is the one that e was appended
// to: large batches lie at known places of it.
func (l *Log) segmentOf(e *wal.Entry) *seg {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.activeLocked()
	if s != nil && e.InSegment && e.Segment == e.Base && s.base != e.Base {
		l.closeSegLocked(s, l.store.opts.Now())
		s = nil
	}
	if s == nil {
		s = l.newSegLocked(e.Base)
	}
	return s
}

// readRef reads the batch that e refers to, which goes on at the end of s.
func (l *Log) readRef(s *seg, e *wal.Entry) (ref wal.Ref, b []byte, err error) {
	if ref, err = wal.ParseRef(e.Data); err != nil {
		return ref, nil, fmt.Errorf("%w: offset %d: %w", ErrDamaged, e.Base, err)
	}
	if e.Segment != s.base || ref.Pos != s.size {
		return ref, nil, fmt.Errorf("%w: batch %d is in segment %d at %d, but segment %d ends at %d", ErrDamaged, e.Base, e.Segment, ref.Pos, s.base, s.size)
	}
	b, size, err := refBytes(l.store.opts.FS, l.store.opts.Dir, e, &ref)
	s.found, s.made = max(s.found, size), true
	return ref, b, err
}

// refBytes reads and checks the batch that e, with data ref, refers to. size is that
// of the file.
func refBytes(fsys vfs.FS, dir string, e *wal.Entry, ref *wal.Ref) (b []byte, size int64, err error) {
	path := filepath.Join(dir, logsDir, e.TP.String(), segment.LogName(e.Segment))
	if !e.InSegment || ref.Size > wal.MaxJumbo {
		return nil, 0, fmt.Errorf("%w: reference to %d bytes of batch %d of %s", ErrDamaged, ref.Size, e.Base, e.TP)
	}
	f, err := fsys.Open(path, vfs.ReadOnly)
	if err != nil {
		return nil, 0, fmt.Errorf("batch %d: %w", e.Base, err)
	}
	defer f.Close()
	if size, err = f.Size(); err != nil {
		return nil, 0, err
	}
	b = make([]byte, ref.Size)
	in := ref.Size - len(ref.Rest)
	if n, err := f.ReadAt(b[:in], ref.Pos); n < in {
		return nil, size, fmt.Errorf("%w: batch %d: %s has %d of %d bytes at %d: %w", ErrDamaged, e.Base, path, n, in, ref.Pos, err)
	}
	copy(b[in:], ref.Rest)
	err = checkBatch(&wal.Entry{Kind: wal.KindBatch, Base: e.Base, Last: e.Last, Data: b})
	if h, perr := batch.Parse(b); err == nil && perr == nil && ref.HasCRC && (h.CRC != ref.BatchCRC || h.LeaderEpoch != e.Epoch) {
		err = errors.New("another batch of the same offsets is there")
	}
	if err != nil {
		return nil, size, fmt.Errorf("%w: batch %d of %s at %d: %w", ErrDamaged, e.Base, path, ref.Pos, err)
	}
	if e.Newest { // a killed process may not have synced it
		err = f.Sync()
	}
	return b, size, err
}

// checkRef tells the stream whether a batch in its last commit came to its
// segment file. The file had its name before: without it the log was removed, or
// the segment dropped, and the reference is of no use to anybody.
func (s *Store) checkRef(e *wal.Entry) error {
	if _, err := ReadRef(s.opts.FS, s.opts.Dir, e); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ReadRef returns the batch that e, an entry of the ring of the data directory
// dir, refers to. The error wraps fs.ErrNotExist when its segment was removed,
// ErrDamaged when it does not have the batch.
func ReadRef(fsys vfs.FS, dir string, e *wal.Entry) ([]byte, error) {
	ref, err := wal.ParseRef(e.Data)
	if err != nil {
		return nil, fmt.Errorf("%w: offset %d: %w", ErrDamaged, e.Base, err)
	}
	b, _, err := refBytes(fsys, dir, e, &ref)
	return b, err
}

// foundLocked marks as written what lies in s's file with the batch added last.
// Of the newest one that is not known for the bytes before the batch.
func (l *Log) foundLocked(s *seg, ref *wal.Ref) {
	end := ref.Pos + int64(ref.Size-len(ref.Rest))
	if s.written < ref.From || s.written >= end {
		return
	}
	rec := l.tail[len(l.tail)-1]
	l.pending += int64(len(ref.Rest)) - int64(rec.unwritten)
	rec.unwritten = int32(len(ref.Rest))
	s.written, s.head = end, nil
	l.passLocked(s, end)
}

// recoverLater reads the open segment whose base the log has come to.
func (l *Log) recoverLater() error {
	for len(l.later) > 0 && l.later[0] <= l.next.Load() {
		base := l.later[0]
		l.later = l.later[1:]
		if base < l.next.Load() {
			l.refuse("partition has segments that overlap", fmt.Errorf("%w: open segment begins at %d, the log before it ends at %d", ErrDamaged, base, l.next.Load()))
			return nil
		}
		if err := l.recoverOpen(base); err != nil {
			return fmt.Errorf("%s: %w", l.tp, err)
		}
		l.hw = l.next.Load()
	}
	return nil
}

// cutGarbage removes what files hold behind the end of the log: blocks of large
// batches whose reference is not durable. Later batches of the same sizes would
// make them look like a part of the log.
func (l *Log) cutGarbage() error {
	if l.err != nil {
		return nil // somebody will want to look at it
	}
	for _, s := range l.segs {
		if s.state == segClosed || s.reused || s.found <= s.size {
			continue
		}
		f, err := l.store.opts.FS.Open(l.logPath(s), vfs.Direct)
		if err != nil {
			return err
		}
		err = f.Truncate(s.size)
		if err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("cut %s: %w", l.logPath(s), err)
		}
		s.found = s.size
	}
	return l.removeUnmet()
}

// removeUnmet removes the files of segments of which no batch is durable, the newest
// first: one that is left by a power loss must not have lost those before it.
func (l *Log) removeUnmet() error {
	bases := append(l.later, l.reused...)
	slices.Sort(bases)
	for _, base := range slices.Backward(bases) {
		s := &seg{base: base}
		if err := l.removeDurably(l.logPath(s)); err != nil {
			return err
		}
		if !slices.Contains(l.reused, base) {
			continue
		}
		if err := l.removeDurably(l.markerPath(s)); err != nil { // not before the file, which needs it
			return err
		}
	}
	l.later, l.reused = nil, nil
	return nil
}

func (l *Log) removeDurably(path string) error {
	if err := l.store.opts.FS.Remove(path); err != nil {
		return err
	}
	return l.store.opts.FS.SyncDir(l.dir())
}
