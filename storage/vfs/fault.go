package vfs

import (
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"
	"time"
)

// Op is a kind of operation that Fault can break.
type Op string

// Operations.
const (
	OpOpen     Op = "open"
	OpRead     Op = "read"
	OpWrite    Op = "write"
	OpSync     Op = "sync"
	OpTruncate Op = "truncate"
	OpReserve  Op = "reserve"
	OpRename   Op = "rename"
	OpRemove   Op = "remove"
	OpLink     Op = "link"
	OpSyncDir  Op = "syncdir"
	OpMkdir    Op = "mkdir"
	OpList     Op = "list"
)

// Rule breaks operations of one kind whose path contains Path.
type Rule struct {
	Op   Op
	Path string // substring of the name; "" matches all
	// Skip is how many matching operations pass first, Count how many are
	// broken then; 0 means all.
	Skip, Count int
	// Err is returned instead of doing the operation; nil does it.
	Err error
	// Delay comes before the operation.
	Delay time.Duration

	hits int
}

// Fault is an FS that breaks operations of another one by rules. It is safe
// for concurrent use.
type Fault struct {
	FS
	mu    sync.Mutex
	rules []*Rule
	fired map[Op]int
}

// NewFault wraps fsys; without rules nothing changes.
func NewFault(fsys FS) *Fault { return &Fault{FS: fsys, fired: map[Op]int{}} }

// Add adds a rule. The first that matches counts.
func (f *Fault) Add(r Rule) {
	f.mu.Lock()
	f.rules = append(f.rules, &r)
	f.mu.Unlock()
}

// Clear removes all rules.
func (f *Fault) Clear() {
	f.mu.Lock()
	f.rules = nil
	f.mu.Unlock()
}

// Fired returns how many operations of a kind were broken or delayed: the
// proof that an injected fault was met.
func (f *Fault) Fired(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired[op]
}

func (f *Fault) check(op Op, name string) error {
	f.mu.Lock()
	var delay time.Duration
	var err error
	for _, r := range f.rules {
		if r.Op != op || !strings.Contains(name, r.Path) {
			continue
		}
		r.hits++
		if r.hits <= r.Skip || r.Count > 0 && r.hits > r.Skip+r.Count {
			continue
		}
		f.fired[op]++
		delay = r.Delay
		if r.Err != nil {
			err = &fs.PathError{Op: string(op), Path: name, Err: r.Err}
		}
		break
	}
	f.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	return err
}

// Open implements Files.
func (f *Fault) Open(name string, flag Flag) (File, error) {
	if err := f.check(OpOpen, name); err != nil {
		return nil, err
	}
	file, err := f.FS.Open(name, flag)
	if err != nil {
		return nil, err
	}
	return &faultFile{File: file, f: f, name: name}, nil
}

// Remove implements Files.
func (f *Fault) Remove(name string) error {
	if err := f.check(OpRemove, name); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

// Rename implements Files.
func (f *Fault) Rename(oldname, newname string) error {
	if err := f.check(OpRename, newname); err != nil {
		return err
	}
	return f.FS.Rename(oldname, newname)
}

// Link implements Files.
func (f *Fault) Link(oldname, newname string) error {
	if err := f.check(OpLink, newname); err != nil {
		return err
	}
	return f.FS.Link(oldname, newname)
}

// SyncDir implements Dirs.
func (f *Fault) SyncDir(dir string) error {
	if err := f.check(OpSyncDir, dir); err != nil {
		return err
	}
	return f.FS.SyncDir(dir)
}

// MkdirAll implements Dirs.
func (f *Fault) MkdirAll(dir string) error {
	if err := f.check(OpMkdir, dir); err != nil {
		return err
	}
	return f.FS.MkdirAll(dir)
}

// List implements Dirs.
func (f *Fault) List(dir string) ([]fs.DirEntry, error) {
	if err := f.check(OpList, dir); err != nil {
		return nil, err
	}
	return f.FS.List(dir)
}

type faultFile struct {
	File
	f    *Fault
	name string
}

var _ io.ReaderAt = (*faultFile)(nil)

func (f *faultFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.f.check(OpRead, f.name); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}

func (f *faultFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.f.check(OpWrite, f.name); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

// WriteAtSync implements SyncWriter, by a write and a sync where the file can't.
func (f *faultFile) WriteAtSync(b []byte, off int64) (int, error) {
	w, ok := f.File.(SyncWriter)
	if !ok {
		n, err := f.WriteAt(b, off)
		if err == nil {
			err = f.Sync()
		}
		return n, err
	}
	for _, op := range []Op{OpWrite, OpSync} {
		if err := f.f.check(op, f.name); err != nil {
			return 0, err
		}
	}
	return w.WriteAtSync(b, off)
}

// Reserve implements Reserver, as far as the file does.
func (f *faultFile) Reserve(size int64) error {
	if err := f.f.check(OpReserve, f.name); err != nil {
		return err
	}
	if r, ok := f.File.(Reserver); ok {
		return r.Reserve(size)
	}
	return &fs.PathError{Op: string(OpReserve), Path: f.name, Err: errors.ErrUnsupported}
}

func (f *faultFile) Sync() error {
	if err := f.f.check(OpSync, f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *faultFile) Truncate(size int64) error {
	if err := f.f.check(OpTruncate, f.name); err != nil {
		return err
	}
	return f.File.Truncate(size)
}
