package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// OS returns the operating system's file system.
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) Open(name string, flag Flag) (File, error) {
	mode := os.O_RDWR
	if flag&ReadOnly != 0 {
		mode = os.O_RDONLY
	}
	if flag&Create != 0 {
		mode |= os.O_CREATE
	}
	if flag&Excl != 0 {
		mode |= os.O_EXCL
	}
	if flag&Truncate != 0 {
		mode |= os.O_TRUNC
	}
	if flag&Dsync != 0 {
		mode |= unix.O_DSYNC
	}
	if flag&Direct != 0 {
		f, err := os.OpenFile(name, mode|unix.O_DIRECT, 0o644)
		if err == nil {
			return &osFile{f}, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return nil, err
		}
		mode &^= os.O_EXCL // the refused open may have made the file
	}
	f, err := os.OpenFile(name, mode, 0o644)
	if err != nil {
		return nil, err
	}
	return &osFile{f}, nil
}

func (osFS) Remove(name string) error               { return os.Remove(name) }
func (osFS) Rename(oldname, newname string) error   { return os.Rename(oldname, newname) }
func (osFS) Link(oldname, newname string) error     { return os.Link(oldname, newname) }
func (osFS) Stat(name string) (fs.FileInfo, error)  { return os.Stat(name) }
func (osFS) MkdirAll(dir string) error              { return os.MkdirAll(dir, 0o755) }
func (osFS) List(dir string) ([]fs.DirEntry, error) { return os.ReadDir(dir) }
func (osFS) RemoveAll(dir string) error             { return os.RemoveAll(dir) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

func (osFS) Usage(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
		}
		return nil, &fs.PathError{Op: "flock", Path: name, Err: err}
	}
	return f, nil
}

type osFile struct{ *os.File }

func (f *osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}

// WriteAtSync implements SyncWriter, by a write and a sync where the system has no
// RWF_DSYNC (gVisor).
func (f *osFile) WriteAtSync(b []byte, off int64) (done int, err error) {
	for done < len(b) {
		n, err := unix.Pwritev2(int(f.Fd()), [][]byte{b[done:]}, off+int64(done), unix.RWF_DSYNC)
		if n > 0 {
			done += n
		}
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
			if n, err := f.WriteAt(b[done:], off+int64(done)); err != nil {
				return done + n, err
			}
			return len(b), f.Sync()
		case err != nil:
			return done, &fs.PathError{Op: "pwritev2", Path: f.Name(), Err: err}
		case n == 0:
			return done, &fs.PathError{Op: "pwritev2", Path: f.Name(), Err: io.ErrShortWrite}
		}
	}
	return done, nil
}

func (f *osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Preallocate implements Preallocator; where the file system can't, the size
// alone is set.
func (f *osFile) Preallocate(size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(size)
	}
	if err != nil {
		return &fs.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
	return nil
}

// Reserve implements Reserver.
func (f *osFile) Reserve(size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "fallocate", Path: f.Name(), Err: err}
		}
	}
}
