package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// Files of removed segments are kept for new ones that get large batches: their
// blocks were written before, so that a sync of new bytes in them does not have
// to wait for the journal of the file system. What such a file holds behind
// the new bytes are batches of an old segment, intact ones too. A marker beside
// it tells that: see docs/design/008-recycled-files.md and recover_reused.go.

// ReusedSuffix, behind the name of a segment's .log, makes that of its marker.
const ReusedSuffix = ".reused"

const (
	recycledDir = "recycled"
	// maxRecycled bounds the files that are kept, in bytes. With a disk budget it
	// is an eighth of that at most.
	maxRecycled = 4 << 30
)

// recycler has the files that wait for a new segment.
type recycler struct {
	store *Store
	limit int64
	least int64 // smaller files are not kept

	mu    sync.Mutex
	files []recycledFile
	seq   uint64
	bytes atomic.Int64 // of files
	ready bool         // what an earlier process left is gone
}

type recycledFile struct {
	path string
	size int64
}

// openRecycler makes the directory. What is in it was left by an earlier process:
// after a power loss such a file may have its old name too, so it is removed.
func (s *Store) openRecycler() error {
	r := &s.recycled
	r.store, r.limit, r.least = s, maxRecycled, 4*s.opts.DirectBytes
	if s.diskBudget.Load() > 0 {
		r.limit = min(r.limit, s.diskBudget.Load()/8)
	}
	dir := filepath.Join(s.opts.Dir, recycledDir)
	if err := s.opts.FS.MkdirAll(dir); err != nil {
		return err
	}
	left, err := s.opts.FS.List(dir)
	if err != nil {
		return err
	}
	for _, e := range left {
		n, err := strconv.ParseUint(e.Name(), 10, 64)
		if err != nil {
			return fmt.Errorf("unknown entry %s", filepath.Join(dir, e.Name()))
		}
		r.seq = max(r.seq, n)
	}
	s.wg.Go(func() { // large files take a while
		for _, e := range left {
			r.remove(filepath.Join(dir, e.Name()))
		}
		r.mu.Lock()
		r.ready = true
		r.mu.Unlock()
	})
	return nil
}

func (r *recycler) remove(path string) {
	if err := r.store.opts.FS.Remove(path); err != nil {
		r.store.opts.Logger.Warn("remove recycled file", "path", path, "err", err)
	}
}

// put takes over the file of a removed segment, which nobody has open, if there
// is room for it. dir, if not empty, is the directory that must not bring its old
// name back after a power loss.
func (r *recycler) put(path string, size int64, dir string) bool {
	if size < r.least || r.store.noDirect.Load() {
		return false
	}
	r.mu.Lock()
	s := r.store
	full := !r.ready || r.bytes.Load()+size > r.limit || s.NoSpace() != nil ||
		s.diskBudget.Load() > 0 && s.DiskUsed()+r.bytes.Load() > s.diskBudget.Load()
	if full {
		r.mu.Unlock()
		return false
	}
	r.seq++
	f := recycledFile{filepath.Join(s.opts.Dir, recycledDir, strconv.FormatUint(r.seq, 10)), size}
	r.bytes.Add(size)
	r.mu.Unlock()
	err := s.opts.FS.Rename(path, f.path)
	if err != nil {
		r.bytes.Add(-size)
		return false
	}
	if dir != "" {
		err = s.opts.FS.SyncDir(dir)
	}
	if err != nil { // the old name may come back: its bytes must stay as they are
		r.bytes.Add(-size)
		r.remove(f.path)
		return true
	}
	r.mu.Lock()
	r.files = append(r.files, f)
	r.mu.Unlock()
	return true
}

// take gives a file of at most most bytes away.
func (r *recycler) take(most int64) (f recycledFile, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.files {
		if f = r.files[i]; f.size <= most {
			r.files = append(r.files[:i], r.files[i+1:]...)
			r.bytes.Add(-f.size)
			return f, true
		}
	}
	return f, false
}

// drop removes a file, because its space is needed. It reports whether there was one.
func (r *recycler) drop() bool {
	f, ok := r.take(maxRecycled)
	if ok {
		r.remove(f.path)
	}
	return ok
}

func (l *Log) markerPath(s *seg) string { return l.logPath(s) + ReusedSuffix }

// reuseFile makes a used file that of the new segment s, if there is one. The marker
// is durable before: without it a recovery would take the old batches for new ones.
func (l *Log) reuseFile(s *seg) error {
	l.mu.Lock()
	most := l.cfg.SegmentBytes + vfs.BlockSize
	marked := s.reused
	l.mu.Unlock()
	if marked {
		return nil
	}
	f, ok := l.store.recycled.take(most)
	if !ok {
		return nil
	}
	fsys := l.store.opts.FS
	l.mu.Lock()
	s.reused = true // whatever comes of it: the marker may be there
	l.mu.Unlock()
	marker, err := fsys.Open(l.markerPath(s), vfs.Create)
	if err == nil {
		err = errors.Join(marker.Close(), fsys.SyncDir(l.dir()))
	}
	if err == nil {
		err = fsys.Rename(f.path, l.logPath(s))
	}
	if err != nil {
		l.store.recycled.remove(f.path)
		if errors.Is(err, fs.ErrNotExist) { // somebody tidied up
			return nil
		}
		return fmt.Errorf("reuse file for segment: %w", err)
	}
	s.reserved = f.size
	return nil
}

// unmarkReused removes the marker of a segment that has its .idx.
func (l *Log) unmarkReused(s *seg) {
	if err := l.store.opts.FS.Remove(l.markerPath(s)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.store.opts.Logger.Warn("remove marker of segment", "path", l.markerPath(s), "err", err)
	}
}

// recycleOrRemove gives up the .log of a closed segment that is not open here.
func (l *Log) recycleOrRemove(s *seg) error {
	path := l.logPath(s)
	if !l.store.files.remove(path) && l.store.recycled.put(path, s.size, l.dir()) {
		return nil
	}
	return l.store.opts.FS.Remove(path)
}

// recycleRemoved keeps the files of a removed log: those of the closed segments that
// nobody reads. dir is where they are now; it does not come back.
func (s *Store) recycleRemoved(dir string, files []*seg) {
	for _, g := range files {
		s.recycled.put(filepath.Join(dir, segment.LogName(g.base)), g.size, "")
	}
}
