package storage

import (
	"container/list"
	"sync"

	"github.com/cirrolog/cirrolog/storage/vfs"
)

// fileCache keeps a bounded number of files open for reading and writing with
// direct I/O. Handles in use are never closed, so the bound may be exceeded by
// the number of concurrent users.
type fileCache struct {
	fs    vfs.FS
	limit int

	mu    sync.Mutex
	files map[string]*openFile
	idle  *list.List // of *openFile, least recently used first
}

type openFile struct {
	vfs.File
	name string
	refs int
	gone bool          // removed: close with the last reference
	elem *list.Element // in idle, when refs is 0
}

func newFileCache(fs vfs.FS, limit int) *fileCache {
	return &fileCache{fs: fs, limit: limit, files: map[string]*openFile{}, idle: list.New()}
}

// get opens name, or finds it open. Give it back with put.
func (c *fileCache) get(name string, create bool) (*openFile, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.files[name]; f != nil {
		c.useLocked(f)
		return f, nil
	}
	flag := vfs.Direct
	if create {
		flag |= vfs.Create
	}
	file, err := c.fs.Open(name, flag)
	if err != nil {
		return nil, err
	}
	f := &openFile{File: file, name: name, refs: 1}
	c.files[name] = f
	for len(c.files) > c.limit && c.idle.Len() > 0 {
		old := c.idle.Remove(c.idle.Front()).(*openFile)
		delete(c.files, old.name)
		old.File.Close() // nothing is buffered behind it: writes are followed by Sync
	}
	return f, nil
}

func (c *fileCache) useLocked(f *openFile) {
	if f.elem != nil {
		c.idle.Remove(f.elem)
		f.elem = nil
	}
	f.refs++
}

func (c *fileCache) put(f *openFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.refs--
	if f.refs > 0 {
		return
	}
	if f.gone {
		f.File.Close()
		return
	}
	f.elem = c.idle.PushBack(f)
}

// remove forgets name, so that a later get opens it anew; users go on with
// their handle. It reports whether there are any.
func (c *fileCache) remove(name string) (busy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.files[name]
	if f == nil {
		return false
	}
	delete(c.files, name)
	f.gone = true
	if f.elem != nil {
		c.idle.Remove(f.elem)
		f.elem = nil
		f.File.Close()
	}
	return f.refs > 0
}

// open returns the number of open files.
func (c *fileCache) open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.files)
}

func (c *fileCache) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, f := range c.files {
		delete(c.files, name)
		f.gone = true
		if f.refs == 0 {
			f.File.Close()
		}
	}
	c.idle.Init()
}
