package storage_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/storage/vfs"
)

// countingFS counts reads and writes of files, and syncs.
type countingFS struct {
	vfs.FS
	reads, writes, syncs atomic.Int64
	logBytes, ringBytes  atomic.Int64 // written to .log files, to the ring
	writeTime            time.Duration
	flipAt               int64 // position in a .log whose byte is read wrong, 0: none
}

func (c *countingFS) Open(name string, flag vfs.Flag) (vfs.File, error) {
	f, err := c.FS.Open(name, flag)
	if err != nil {
		return nil, err
	}
	return &countingFile{File: f, fs: c, log: strings.HasSuffix(name, ".log"), ring: strings.Contains(name, "ring.wal")}, nil
}

type countingFile struct {
	vfs.File
	fs        *countingFS
	log, ring bool
}

func (f *countingFile) ReadAt(b []byte, at int64) (int, error) {
	f.fs.reads.Add(1)
	n, err := f.File.ReadAt(b, at)
	if i := f.fs.flipAt - at; f.fs.flipAt > 0 && f.log && i >= 0 && i < int64(n) {
		b[i] ^= 1
	}
	return n, err
}

func (f *countingFile) WriteAt(b []byte, at int64) (int, error) {
	f.fs.writes.Add(1)
	if f.log {
		f.fs.logBytes.Add(int64(len(b)))
	}
	if f.ring {
		f.fs.ringBytes.Add(int64(len(b)))
	}
	time.Sleep(f.fs.writeTime)
	return f.File.WriteAt(b, at)
}

// WriteAtSync implements vfs.SyncWriter: a write and a sync.
func (f *countingFile) WriteAtSync(b []byte, at int64) (int, error) {
	n, err := f.WriteAt(b, at)
	if err == nil {
		err = f.Sync()
	}
	return n, err
}

func (f *countingFile) Sync() error {
	f.fs.syncs.Add(1)
	return f.File.Sync()
}

// Reserve implements vfs.Reserver, as far as the file does.
func (f *countingFile) Reserve(size int64) error {
	if r, ok := f.File.(vfs.Reserver); ok {
		return r.Reserve(size)
	}
	return errors.ErrUnsupported
}
