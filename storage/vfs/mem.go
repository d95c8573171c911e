package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Mem is a file system in memory that knows what a power loss may take away;
// see CrashClone. It refuses what the disk would refuse: unaligned access to
// files opened with Direct, and writes beyond its limit. All its names are
// below one root: "a/b" and "/a/b" are the same. The root is durable; the
// names in it are so after SyncDir("/").
type Mem struct {
	mu    sync.Mutex
	root  *node
	limit int64 // 0: none
	used  int64
	locks map[string]bool
	onOp  func(Event)
}

var _ FS = (*Mem)(nil)

// NewMem returns an empty file system.
func NewMem() *Mem {
	return &Mem{root: newDir(), locks: map[string]bool{}}
}

// SetLimit bounds the bytes of all files together; what would grow beyond it
// fails with ENOSPC and changes nothing. 0 means no limit.
func (m *Mem) SetLimit(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = bytes
}

// OnOp sets a function that is called before and after every operation that
// changes files, directories or what of them is durable; nil for none. It is
// called without locks, on the goroutine of the operation, so it may call
// CrashClone. A failed operation has no After.
func (m *Mem) OnOp(f func(e Event)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onOp = f
}

// do runs f with the lock, between the two calls of the hook.
func (m *Mem) do(op Event, f func() error) error {
	m.mu.Lock()
	if m.onOp != nil {
		m.tellLocked(op, Before)
	}
	err := f()
	if m.onOp != nil && err == nil {
		m.tellLocked(op, After)
	}
	m.mu.Unlock()
	return err
}

// tellLocked calls the hook; it gives up the lock meanwhile.
func (m *Mem) tellLocked(op Event, phase Phase) {
	hook := m.onOp
	m.mu.Unlock()
	op.Phase = phase
	hook(op)
	m.mu.Lock()
}

func split(name string) []string {
	name = strings.Trim(path.Clean("/"+name), "/")
	if name == "" {
		return nil
	}
	return strings.Split(name, "/")
}

func clean(name string) string { return path.Clean("/" + name) }

func pathErr(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// findLocked returns the node of a name.
func (m *Mem) findLocked(op, name string) (*node, error) {
	n := m.root
	for _, part := range split(name) {
		if !n.dir {
			return nil, pathErr(op, name, syscall.ENOTDIR)
		}
		if n = n.names[part]; n == nil {
			return nil, pathErr(op, name, fs.ErrNotExist)
		}
	}
	return n, nil
}

// parentLocked returns the directory of a name and its last part.
func (m *Mem) parentLocked(op, name string) (*node, string, error) {
	parts := split(name)
	if len(parts) == 0 {
		return nil, "", pathErr(op, name, syscall.EBUSY)
	}
	d, err := m.findLocked(op, path.Dir(clean(name)))
	if err != nil {
		return nil, "", pathErr(op, name, errors.Unwrap(err))
	}
	if !d.dir {
		return nil, "", pathErr(op, name, syscall.ENOTDIR)
	}
	return d, parts[len(parts)-1], nil
}

func (m *Mem) dirLocked(op, name string) (*node, error) {
	n, err := m.findLocked(op, name)
	if err == nil && !n.dir {
		err = pathErr(op, name, syscall.ENOTDIR)
	}
	return n, err
}

// Open implements Files.
func (m *Mem) Open(name string, flag Flag) (File, error) {
	m.mu.Lock()
	n, err := m.findLocked("open", name)
	m.mu.Unlock()
	var out *memFile
	open := func() error {
		n, err = m.openLocked(name, flag)
		if err != nil {
			return err
		}
		n.handles++
		out = &memFile{fs: m, node: n, name: name, flag: flag}
		return nil
	}
	if flag&Create != 0 && err != nil || flag&Truncate != 0 {
		err = m.do(Event{Kind: EventCreate, Path: clean(name)}, open)
	} else {
		m.mu.Lock()
		err = open()
		m.mu.Unlock()
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (m *Mem) openLocked(name string, flag Flag) (*node, error) {
	d, base, err := m.parentLocked("open", name)
	if err != nil {
		return nil, err
	}
	n := d.names[base]
	switch {
	case n == nil && flag&Create == 0:
		return nil, pathErr("open", name, fs.ErrNotExist)
	case n == nil:
		n = &node{modTime: time.Now()}
		d.change(nil, change{base, n})
	case flag&Create != 0 && flag&Excl != 0:
		return nil, pathErr("open", name, fs.ErrExist)
	case n.dir:
		return nil, pathErr("open", name, syscall.EISDIR)
	case flag&Truncate != 0 && n.now.size > 0:
		m.resizeLocked(n, 0)
	}
	return n, nil
}

func (m *Mem) resizeLocked(n *node, size int64) {
	before := n.charged()
	n.now.resize(size)
	n.reserved = 0
	m.used += size - before
	n.pending = append(n.pending, &fileOp{size: size})
	n.modTime = time.Now()
}

// roomLocked fails when the files may not grow by n bytes.
func (m *Mem) roomLocked(n int64) error {
	if m.limit > 0 && n > 0 && m.used+n > m.limit {
		return fmt.Errorf("%d bytes used, %d more wanted, limit %d: %w", m.used, n, m.limit, syscall.ENOSPC)
	}
	return nil
}

// releaseLocked gives back the space of a file without names and handles.
func (m *Mem) releaseLocked(n *node) {
	if n != nil && !n.dir && n.links == 0 && n.handles == 0 {
		m.used -= n.charged()
		n.now, n.pending, n.reserved = content{}, nil, 0
	}
}

// Remove implements Files. An empty directory can be removed too.
func (m *Mem) Remove(name string) error {
	return m.do(Event{Kind: EventRemove, Path: clean(name)}, func() error {
		d, base, err := m.parentLocked("remove", name)
		if err != nil {
			return err
		}
		n := d.names[base]
		if n == nil {
			return pathErr("remove", name, fs.ErrNotExist)
		}
		if len(n.names) > 0 {
			return pathErr("remove", name, syscall.ENOTEMPTY)
		}
		d.change(nil, change{base, nil})
		m.releaseLocked(n)
		return nil
	})
}

// Rename implements Files.
func (m *Mem) Rename(oldname, newname string) error {
	return m.do(Event{Kind: EventRename, Path: clean(oldname), NewPath: clean(newname)}, func() error {
		from, a, err := m.parentLocked("rename", oldname)
		if err != nil {
			return err
		}
		to, b, err := m.parentLocked("rename", newname)
		if err != nil {
			return err
		}
		n, old := from.names[a], to.names[b]
		switch {
		case n == nil:
			return pathErr("rename", oldname, fs.ErrNotExist)
		case n == old:
			return nil
		case old != nil && old.dir && !n.dir:
			return pathErr("rename", newname, syscall.EISDIR)
		case old != nil && n.dir:
			return pathErr("rename", newname, fs.ErrExist)
		case n.dir && strings.HasPrefix(clean(newname)+"/", clean(oldname)+"/"):
			return pathErr("rename", newname, syscall.EINVAL)
		}
		if from == to {
			from.change(nil, change{b, n}, change{a, nil})
		} else {
			from.change(to.change(nil, change{b, n}), change{a, nil})
		}
		m.releaseLocked(old)
		return nil
	})
}

// Link implements Files.
func (m *Mem) Link(oldname, newname string) error {
	return m.do(Event{Kind: EventLink, Path: clean(oldname), NewPath: clean(newname)}, func() error {
		n, err := m.findLocked("link", oldname)
		if err != nil {
			return err
		}
		d, base, err := m.parentLocked("link", newname)
		switch {
		case err != nil:
			return err
		case n.dir:
			return pathErr("link", oldname, syscall.EPERM)
		case d.names[base] != nil:
			return pathErr("link", newname, fs.ErrExist)
		}
		d.change(nil, change{base, n})
		return nil
	})
}

// Stat implements Files.
func (m *Mem) Stat(name string) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.findLocked("stat", name)
	if err != nil {
		return nil, err
	}
	return infoOf(path.Base(clean(name)), n), nil
}

// Lock implements Files.
func (m *Mem) Lock(name string) (io.Closer, error) {
	f, err := m.Open(name, Create)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	held := m.locks[clean(name)]
	m.locks[clean(name)] = true
	m.mu.Unlock()
	if held {
		f.Close() // cannot fail: it was just opened
		return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
	}
	return &memLock{fs: m, name: clean(name), file: f}, nil
}

type memLock struct {
	fs   *Mem
	name string
	file File
}

func (l *memLock) Close() error {
	if err := l.file.Close(); err != nil {
		return err
	}
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	delete(l.fs.locks, l.name)
	return nil
}

// MkdirAll implements Dirs.
func (m *Mem) MkdirAll(dir string) error {
	m.mu.Lock()
	n, err := m.findLocked("mkdir", dir)
	m.mu.Unlock()
	if err == nil && n.dir {
		return nil
	}
	return m.do(Event{Kind: EventMkdir, Path: clean(dir)}, func() error {
		n := m.root
		for _, part := range split(dir) {
			next := n.names[part]
			if next == nil {
				next = newDir()
				n.change(nil, change{part, next})
			}
			if !next.dir {
				return pathErr("mkdir", dir, syscall.ENOTDIR)
			}
			n = next
		}
		return nil
	})
}

// List implements Dirs.
func (m *Mem) List(dir string) ([]fs.DirEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dirLocked("open", dir)
	if err != nil {
		return nil, err
	}
	out := make([]fs.DirEntry, 0, len(d.names))
	for _, name := range sortedNames(d.names) {
		out = append(out, fs.FileInfoToDirEntry(infoOf(name, d.names[name])))
	}
	return out, nil
}

// SyncDir implements Dirs.
func (m *Mem) SyncDir(dir string) error {
	return m.do(Event{Kind: EventSyncDir, Path: clean(dir)}, func() error {
		d, err := m.dirLocked("open", dir)
		if err != nil {
			return err
		}
		d.commit(nil)
		return nil
	})
}

// RemoveAll implements Dirs.
func (m *Mem) RemoveAll(dir string) error {
	return m.do(Event{Kind: EventRemoveAll, Path: clean(dir)}, func() error {
		d, base, err := m.parentLocked("removeall", dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if n := d.names[base]; n != nil {
			m.removeTreeLocked(d, base, n)
		}
		return nil
	})
}

func (m *Mem) removeTreeLocked(d *node, name string, n *node) {
	for _, child := range sortedNames(n.names) {
		m.removeTreeLocked(n, child, n.names[child])
	}
	d.change(nil, change{name, nil})
	m.releaseLocked(n)
}

// Usage implements Dirs: without a limit the total is 1 PiB.
func (m *Mem) Usage(dir string) (free, total int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.findLocked("statfs", dir); err != nil {
		return 0, 0, err
	}
	total = m.limit
	if total == 0 {
		total = 1 << 50
	}
	return max(total-m.used, 0), total, nil
}

type memInfo struct {
	name    string
	size    int64
	dir     bool
	modTime time.Time
}

func infoOf(name string, n *node) fs.FileInfo {
	return memInfo{name: name, size: n.now.size, dir: n.dir, modTime: n.modTime}
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) ModTime() time.Time { return i.modTime }
func (i memInfo) IsDir() bool        { return i.dir }
func (i memInfo) Sys() any           { return nil }

func (i memInfo) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o755
	}
	return 0o644
}

// memFile is an open file of a Mem.
type memFile struct {
	fs     *Mem
	node   *node
	name   string
	flag   Flag
	closed bool // guarded by fs.mu
}

var (
	_ Preallocator = (*memFile)(nil)
	_ Reserver     = (*memFile)(nil)
	_ SyncWriter   = (*memFile)(nil)
)

// checkLocked refuses what an open file does not allow.
func (f *memFile) checkLocked(op string, write bool) error {
	if f.closed {
		return pathErr(op, f.name, fs.ErrClosed)
	}
	if write && f.flag&ReadOnly != 0 {
		return pathErr(op, f.name, syscall.EBADF)
	}
	return nil
}

// aligned refuses what O_DIRECT refuses.
func (f *memFile) aligned(op string, b []byte, off int64) error {
	if off < 0 {
		return pathErr(op, f.name, syscall.EINVAL)
	}
	if f.flag&Direct == 0 || len(b) == 0 {
		return nil
	}
	if off%BlockSize != 0 || len(b)%BlockSize != 0 || misalignment(b) != 0 {
		return pathErr(op, f.name, fmt.Errorf("not aligned to %d: offset %d, length %d, memory off by %d: %w",
			BlockSize, off, len(b), misalignment(b), syscall.EINVAL))
	}
	return nil
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.aligned("read", b, off); err != nil {
		return 0, err
	}
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.checkLocked("read", false); err != nil {
		return 0, err
	}
	n := f.node.now.read(b, off)
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	return f.write(b, off, f.flag&Dsync != 0)
}

// WriteAtSync implements SyncWriter.
func (f *memFile) WriteAtSync(b []byte, off int64) (int, error) { return f.write(b, off, true) }

func (f *memFile) write(b []byte, off int64, dsync bool) (int, error) {
	if err := f.aligned("write", b, off); err != nil {
		return 0, err
	}
	if off > math.MaxInt64-int64(len(b)) {
		return 0, pathErr("write", f.name, syscall.EFBIG)
	}
	op := Event{Kind: EventWrite, Path: clean(f.name), Off: off, Len: int64(len(b))}
	err := f.fs.do(op, func() error {
		if err := f.checkLocked("write", true); err != nil {
			return err
		}
		n := f.node
		grown := max(off+int64(len(b))-n.charged(), 0)
		if len(b) == 0 {
			return nil
		}
		if err := f.fs.roomLocked(grown); err != nil {
			return pathErr("write", f.name, err)
		}
		f.fs.used += grown
		n.now.write(b, off)
		n.modTime = time.Now()
		w := &fileOp{off: off, data: append([]byte(nil), b...)}
		n.pending = append(n.pending, w)
		if !dsync {
			return nil
		}
		if f.fs.onOp != nil {
			f.fs.tellLocked(op, Middle)
		}
		w.sure = true
		n.settle()
		return nil
	})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

func (f *memFile) Sync() error {
	return f.fs.do(Event{Kind: EventSync, Path: clean(f.name)}, func() error {
		if err := f.checkLocked("fdatasync", false); err != nil {
			return err
		}
		f.node.sync()
		return nil
	})
}

func (f *memFile) Truncate(size int64) error { return f.resize(EventTruncate, size) }

// Preallocate implements Preallocator. As on a disk, it never shrinks a file.
func (f *memFile) Preallocate(size int64) error { return f.resize(EventPreallocate, size) }

func (f *memFile) resize(kind EventKind, size int64) error {
	return f.fs.do(Event{Kind: kind, Path: clean(f.name), Off: size}, func() error {
		if err := f.checkLocked(string(kind), true); err != nil {
			return err
		}
		if size < 0 || kind == EventPreallocate && size == 0 {
			return pathErr(string(kind), f.name, syscall.EINVAL)
		}
		if kind == EventPreallocate && size <= f.node.now.size {
			return nil
		}
		if err := f.fs.roomLocked(size - f.node.now.size); err != nil {
			return pathErr(string(kind), f.name, err)
		}
		f.fs.resizeLocked(f.node, size)
		return nil
	})
}

func (f *memFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.checkLocked("stat", false); err != nil {
		return 0, err
	}
	return f.node.now.size, nil
}

func (f *memFile) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.checkLocked("close", false); err != nil {
		return err
	}
	f.closed = true
	f.node.handles--
	f.fs.releaseLocked(f.node)
	return nil
}
