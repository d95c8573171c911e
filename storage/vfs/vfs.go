// Package vfs is the one seam between Cirrolog and local disks. It has three
// implementations: the operating system (OS), an in-memory file system whose
// CrashClone keeps what was synced plus a random part of what was not (Mem),
// and a decorator that injects errors (Fault). All crash tests run on it,
// because kill -9 does not lose the page cache and only Mem can show power loss.
//
// No method takes a context: local disk calls cannot be cancelled.
package vfs

import (
	"errors"
	"io"
	"io/fs"
)

// BlockSize is the alignment, in bytes, of the memory, the offset and the
// length of every write and read on a file opened with Direct.
const BlockSize = 4096

// Flag says how Open opens a file. Files are always readable and writable
// unless ReadOnly is given.
type Flag uint8

const (
	// Create makes the file if it is missing.
	Create Flag = 1 << iota
	// Excl with Create fails with fs.ErrExist if the file is there.
	Excl
	// Truncate empties the file.
	Truncate
	// ReadOnly opens for reading alone.
	ReadOnly
	// Direct bypasses the page cache (O_DIRECT) where the file system can;
	// elsewhere it is ignored. Callers keep to BlockSize alignment of memory
	// (see AlignedBytes), offset and length in both cases.
	Direct
	// Dsync makes every WriteAt durable before it returns (O_DSYNC).
	Dsync
)

// ErrLocked is returned by FS.Lock when another process (or another holder in
// this one) has the lock.
var ErrLocked = errors.New("locked by another process")

// FS is a file system. All names are full paths below the process's view of
// it; errors wrap fs.ErrNotExist, fs.ErrExist and the like. A name (creation,
// link, rename, removal) is durable only after SyncDir of its directory; a
// file's bytes and size only after its Sync (or on return of WriteAt with
// Dsync). Methods may be called from several goroutines.
type FS interface {
	Files
	Dirs
}

// Files are the operations on single files.
type Files interface {
	Open(name string, flag Flag) (File, error)
	Remove(name string) error
	// Rename replaces newname if it is there.
	Rename(oldname, newname string) error
	// Link makes newname another name of oldname and fails with fs.ErrExist
	// if newname is there: the create-only publication of a finished file.
	Link(oldname, newname string) error
	// Stat returns size, mode and modification time.
	Stat(name string) (fs.FileInfo, error)
	// Lock takes an exclusive advisory lock on the named file, creating it,
	// and holds it until Close. It fails with ErrLocked without waiting.
	Lock(name string) (io.Closer, error)
}

// Dirs are the operations on directories.
type Dirs interface {
	MkdirAll(dir string) error
	// List returns the entries sorted by name; a missing directory is fs.ErrNotExist.
	List(dir string) ([]fs.DirEntry, error)
	// SyncDir makes the directory's entries durable.
	SyncDir(dir string) error
	// RemoveAll removes dir and what is in it; a missing dir is no error.
	RemoveAll(dir string) error
	// Usage returns the bytes free for this user and the total bytes of the
	// file system that holds dir.
	Usage(dir string) (free, total int64, err error)
}

// File is an open file. ReadAt follows io.ReaderAt. WriteAt is all or error.
// ReadAt and WriteAt may run concurrently on disjoint ranges. A failed Sync
// must never be retried: the kernel may have dropped the dirty pages.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes bytes and size durable (fdatasync).
	Sync() error
	Truncate(size int64) error
	Size() (int64, error)
}

// Preallocator is implemented by files that can reserve space ahead.
type Preallocator interface {
	// Preallocate reserves size bytes from the start and grows the file to it.
	Preallocate(size int64) error
}

// SyncWriter is implemented by files that can write and sync in one: the bytes, and
// what is needed to find them, are durable when WriteAtSync returns (RWF_DSYNC).
type SyncWriter interface {
	WriteAtSync(b []byte, off int64) (int, error)
}

// Reserver is implemented by files that can reserve space without growing:
// writes there never find the disk full.
type Reserver interface {
	// Reserve reserves the first size bytes; a later Truncate gives back what is
	// behind the new size. Where the file system can't, the error wraps
	// errors.ErrUnsupported.
	Reserve(size int64) error
}
