package tiering

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Layout of a cached block; little-endian. docs/format/cache.md.
const (
	cacheMagic   = "CLGB"
	cacheVersion = 1
	cacheHeader  = 4096
	cacheKeyAt   = 32
	cacheCRCAt   = cacheHeader - 4
	cacheSuffix  = ".blk"
	cacheTemp    = "tmp-"
)

// blockID names one block of one object.
type blockID struct {
	key   string
	block int64
}

// file is the name of the block's file: two blocks have the same name only if
// SHA-256 collides, and the header has the full key.
func (id blockID) file() string {
	sum := sha256.Sum256([]byte(id.key))
	return hex.EncodeToString(sum[:16]) + "-" + strconv.FormatInt(id.block, 10) + cacheSuffix
}

// diskCache keeps blocks as files in one directory, at most capacity bytes of
// them. Files are checked when read; nothing is synced, because what a power
// failure damages is fetched again. Methods may be called concurrently.
type diskCache struct {
	fs        vfs.FS
	dir       string
	capacity  int64
	blockSize int64
	log       *slog.Logger
	now       func() time.Time

	mu    sync.Mutex
	files map[string]*list.Element // by file name, of *cacheFile
	order *list.List               // most recently used first
	used  int64
	tmp   uint64
	muted time.Time // no warning before
	evict int64     // files removed to make room
	once  ghosts
}

// ghosts are the blocks that were read ahead lately and not kept, by a hash of
// their names: the oldest is forgotten when there are too many.
type ghosts struct {
	ring []uint64
	next int
	set  map[uint64]struct{}
}

// ghostFactor is how many times what the cache holds is remembered.
const ghostFactor = 4

func newGhosts(blocks int64) ghosts {
	return ghosts{ring: make([]uint64, max(1024, blocks*ghostFactor)), set: map[uint64]struct{}{}}
}

// again reports whether h was seen before, and forgets it then.
func (g *ghosts) again(h uint64) bool {
	if _, ok := g.set[h]; ok {
		delete(g.set, h)
		return true
	}
	delete(g.set, g.ring[g.next])
	g.ring[g.next] = h
	g.set[h] = struct{}{}
	g.next = (g.next + 1) % len(g.ring)
	return false
}

type cacheFile struct {
	name string
	size int64
}

// openDiskCache takes over what an earlier process left in dir, the most
// recently written first, and removes what is unfinished or too much.
func openDiskCache(fsys vfs.FS, dir string, capacity, blockSize int64, log *slog.Logger, now func() time.Time) (*diskCache, error) {
	c := &diskCache{fs: fsys, dir: dir, capacity: capacity, blockSize: blockSize, log: log, now: now, files: map[string]*list.Element{}, order: list.New(), once: newGhosts(capacity / blockSize)}
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("open block cache: %w", err)
	}
	entries, err := fsys.List(dir)
	if err != nil {
		return nil, fmt.Errorf("open block cache: %w", err)
	}
	type found struct {
		cacheFile
		mod time.Time
	}
	var have []found
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, cacheTemp) {
			if err := fsys.Remove(path.Join(dir, name)); err != nil {
				return nil, fmt.Errorf("open block cache: %w", err)
			}
			continue
		}
		info, err := e.Info()
		if err != nil || !strings.HasSuffix(name, cacheSuffix) {
			continue
		}
		have = append(have, found{cacheFile{name, charge(info.Size())}, info.ModTime()})
	}
	slices.SortStableFunc(have, func(a, b found) int { return b.mod.Compare(a.mod) })
	for _, f := range have {
		c.files[f.name] = c.order.PushBack(&cacheFile{f.name, f.size})
		c.used += f.size
	}
	c.makeRoom(0)
	return c, nil
}

// charge is what a file of n bytes counts against the capacity: whole file
// system blocks and something for its names, here and on the disk.
func charge(n int64) int64 { return (n+4095)/4096*4096 + 4096 }

// makeRoom removes the least recently used files until need bytes fit, and
// takes them. It reports whether it could.
func (c *diskCache) makeRoom(need int64) bool {
	c.mu.Lock()
	var victims []string
	for c.used+need > c.capacity && c.order.Len() > 0 {
		f := c.order.Remove(c.order.Back()).(*cacheFile)
		delete(c.files, f.name)
		c.used -= f.size
		c.evict++
		victims = append(victims, f.name)
	}
	fits := c.used+need <= c.capacity
	if fits {
		c.used += need
	}
	c.mu.Unlock()
	for _, name := range victims {
		c.removeFile(name)
	}
	return fits
}

func (c *diskCache) removeFile(name string) {
	if err := c.fs.Remove(path.Join(c.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.warn("remove cached block", err)
	}
}

// warn logs at most one warning a minute: a full disk makes many.
func (c *diskCache) warn(what string, err error) {
	c.mu.Lock()
	now := c.now()
	quiet := now.Before(c.muted)
	if !quiet {
		c.muted = now.Add(time.Minute)
	}
	c.mu.Unlock()
	if !quiet {
		c.log.Warn("block cache: "+what, "dir", c.dir, "err", err)
	}
}

// get fills buf, whose length must be the block's, from the cache. It reports
// whether it could; a damaged file is removed.
func (c *diskCache) get(id blockID, buf []byte) bool {
	name := id.file()
	c.mu.Lock()
	e, ok := c.files[name]
	if ok {
		c.order.MoveToFront(e)
	}
	c.mu.Unlock()
	if !ok {
		return false
	}
	if err := c.read(id, name, buf); err != nil {
		c.drop(id)
		c.warn("drop damaged block", err)
		return false
	}
	return true
}

func (c *diskCache) read(id blockID, name string, buf []byte) error {
	f, err := c.fs.Open(path.Join(c.dir, name), vfs.ReadOnly)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, cacheHeader)
	if _, err := f.ReadAt(head, 0); err != nil {
		return fmt.Errorf("read header of %s: %w", name, err)
	}
	crc, err := c.checkHeader(head, id, len(buf))
	if err != nil {
		return fmt.Errorf("check %s: %w", name, err)
	}
	if size, err := f.Size(); err != nil || size != cacheHeader+int64(len(buf)) {
		return fmt.Errorf("check %s: %d bytes, want %d: %w", name, size, cacheHeader+len(buf), err)
	}
	if n, err := f.ReadAt(buf, cacheHeader); n != len(buf) {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if got := crc32.Checksum(buf, castagnoli()); got != crc {
		return fmt.Errorf("check %s: data crc %08x, want %08x", name, got, crc)
	}
	return nil
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// header encodes the header of a block's file.
func (c *diskCache) header(id blockID, data []byte) []byte {
	h := make([]byte, cacheHeader)
	copy(h, cacheMagic)
	binary.LittleEndian.PutUint16(h[4:], cacheVersion)
	binary.LittleEndian.PutUint16(h[6:], uint16(len(id.key)))
	binary.LittleEndian.PutUint64(h[8:], uint64(id.block))
	binary.LittleEndian.PutUint64(h[16:], uint64(c.blockSize))
	binary.LittleEndian.PutUint32(h[24:], uint32(len(data)))
	binary.LittleEndian.PutUint32(h[28:], crc32.Checksum(data, castagnoli()))
	copy(h[cacheKeyAt:], id.key)
	binary.LittleEndian.PutUint32(h[cacheCRCAt:], crc32.Checksum(h[:cacheCRCAt], castagnoli()))
	return h
}

// checkHeader compares a header with the one the block must have and returns
// the checksum of its data.
func (c *diskCache) checkHeader(h []byte, id blockID, length int) (crc uint32, err error) {
	if got, want := binary.LittleEndian.Uint32(h[cacheCRCAt:]), crc32.Checksum(h[:cacheCRCAt], castagnoli()); got != want {
		return 0, fmt.Errorf("header crc %08x, want %08x", got, want)
	}
	if string(h[:4]) != cacheMagic || binary.LittleEndian.Uint16(h[4:]) != cacheVersion {
		return 0, errors.New("not a block of this version")
	}
	key := h[cacheKeyAt : cacheKeyAt+len(id.key)]
	if int(binary.LittleEndian.Uint16(h[6:])) != len(id.key) || !bytes.Equal(key, []byte(id.key)) ||
		binary.LittleEndian.Uint64(h[8:]) != uint64(id.block) ||
		binary.LittleEndian.Uint64(h[16:]) != uint64(c.blockSize) ||
		binary.LittleEndian.Uint32(h[24:]) != uint32(length) {
		return 0, errors.New("another block")
	}
	return binary.LittleEndian.Uint32(h[28:]), nil
}

// secondTime reports whether a block that was read ahead shall be kept: a replay
// reads each block once, and writing it all to the disk costs more than it saves
// and takes the disk's time from the log. A block that is read ahead again soon
// has more than one reader.
func (c *diskCache) secondTime(id blockID) bool {
	sum := sha256.Sum256([]byte(id.key))
	h := binary.LittleEndian.Uint64(sum[:]) + uint64(id.block)*0x9e3779b97f4a7c15
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.once.again(h)
}

// put stores a block. Failing to is no error: the block is fetched again.
func (c *diskCache) put(id blockID, data []byte) {
	size := charge(cacheHeader + int64(len(data)))
	if len(id.key) > objstore.MaxKeyLen || !c.makeRoom(size) {
		return
	}
	name := id.file()
	c.mu.Lock()
	c.tmp++
	tmp := path.Join(c.dir, cacheTemp+strconv.FormatUint(c.tmp, 10))
	c.mu.Unlock()
	if err := c.write(tmp, path.Join(c.dir, name), c.header(id, data), data); err != nil {
		c.warn("write block", err)
		c.mu.Lock()
		c.used -= size
		c.mu.Unlock()
		if err := c.fs.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.warn("remove unfinished block", err)
		}
		return
	}
	c.mu.Lock()
	if e, ok := c.files[name]; ok {
		f := c.order.Remove(e).(*cacheFile)
		c.used -= f.size
	}
	c.files[name] = c.order.PushFront(&cacheFile{name, size})
	c.mu.Unlock()
}

func (c *diskCache) write(tmp, name string, head, data []byte) (err error) {
	f, err := c.fs.Open(tmp, vfs.Create|vfs.Truncate)
	if err != nil {
		return err
	}
	_, err1 := f.WriteAt(head, 0)
	_, err2 := f.WriteAt(data, cacheHeader)
	if err := errors.Join(err1, err2, f.Close()); err != nil {
		return err
	}
	return c.fs.Rename(tmp, name)
}

// drop removes a block.
func (c *diskCache) drop(id blockID) {
	name := id.file()
	c.mu.Lock()
	e, ok := c.files[name]
	if ok {
		delete(c.files, name)
		c.used -= c.order.Remove(e).(*cacheFile).size
	}
	c.mu.Unlock()
	if ok {
		c.removeFile(name)
	}
}

// size returns the bytes in use, the number of files, and how many were
// removed to make room.
func (c *diskCache) size() (used int64, files int, evicted int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used, len(c.files), c.evict
}
