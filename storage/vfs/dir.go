package vfs

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is an open directory. It reads what a start wants to know of many small
// files with half the system calls that FS takes for it, and without walking the
// whole path for each. It is for one goroutine.
type Dir interface {
	io.Closer
	// Names returns the names of the entries, in no order. It may be called once.
	Names() ([]string, error)
	// Head reads the beginning of the named file into buf and returns how many
	// bytes it got. Fewer than len(buf) are normally the whole file; the caller
	// knows by what it reads whether they are.
	Head(name string, buf []byte) (int, error)
	// Stat returns the size in bytes and the modification time.
	Stat(name string) (size int64, modified time.Time, err error)
}

// DirOpener is implemented by file systems that have a Dir of their own.
type DirOpener interface {
	OpenDir(dir string) (Dir, error)
}

// OpenDir opens a directory of fsys: its own Dir if it is a DirOpener, else one
// that calls the methods of FS. A missing one is fs.ErrNotExist, here or by Names.
func OpenDir(fsys FS, dir string) (Dir, error) {
	if o, ok := fsys.(DirOpener); ok {
		return o.OpenDir(dir)
	}
	return &plainDir{fs: fsys, path: dir}, nil
}

// plainDir is a Dir of any FS.
type plainDir struct {
	fs   FS
	path string
}

func (d *plainDir) Names() ([]string, error) {
	entries, err := d.fs.List(d.path)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

func (d *plainDir) Head(name string, buf []byte) (int, error) {
	f, err := d.fs.Open(filepath.Join(d.path, name), ReadOnly)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := f.ReadAt(buf, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (d *plainDir) Stat(name string) (int64, time.Time, error) {
	info, err := d.fs.Stat(filepath.Join(d.path, name))
	if err != nil {
		return 0, time.Time{}, err
	}
	return info.Size(), info.ModTime(), nil
}

func (d *plainDir) Close() error { return nil }

// OpenDir implements DirOpener.
func (osFS) OpenDir(dir string) (Dir, error) {
	fd, err := openAt(unix.AT_FDCWD, dir, unix.O_DIRECTORY)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &osDir{fd: fd, path: dir}, nil
}

// osDir is a directory of the operating system. Its files are opened without
// package os, which asks each whether it can be polled.
type osDir struct {
	fd   int
	path string
}

func (d *osDir) error(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: filepath.Join(d.path, name), Err: err}
}

func (d *osDir) Names() (names []string, err error) {
	var buf [8192]byte
	for {
		n, err := uninterrupted(func() (int, error) { return unix.ReadDirent(d.fd, buf[:]) })
		if err != nil {
			return nil, d.error("readdirent", "", err)
		}
		if n == 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

func (d *osDir) Head(name string, buf []byte) (int, error) {
	fd, err := openAt(d.fd, name, 0)
	if err != nil {
		return 0, d.error("open", name, err)
	}
	n, err := uninterrupted(func() (int, error) { return unix.Pread(fd, buf, 0) })
	if err != nil {
		n, err = 0, d.error("read", name, err)
	}
	return n, errors.Join(err, unix.Close(fd))
}

func (d *osDir) Stat(name string) (int64, time.Time, error) {
	var st unix.Stat_t
	_, err := uninterrupted(func() (int, error) { return 0, unix.Fstatat(d.fd, name, &st, 0) })
	if err != nil {
		return 0, time.Time{}, d.error("stat", name, err)
	}
	return st.Size, time.Unix(st.Mtim.Unix()), nil
}

func (d *osDir) Close() error {
	if err := unix.Close(d.fd); err != nil {
		return d.error("close", "", err)
	}
	return nil
}

// openAt opens a name below the directory at for reading.
func openAt(at int, name string, mode int) (int, error) {
	return uninterrupted(func() (int, error) { return unix.Openat(at, name, unix.O_RDONLY|unix.O_CLOEXEC|mode, 0) })
}

// uninterrupted makes a system call again that a signal has ended.
func uninterrupted(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
