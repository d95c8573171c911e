// Package dir is the bucket driver on a local directory, for a single node and
// for tests without an object store.
//
// Below the directory, objects/ holds one file per object, tmp/ the files
// being written and lock the mutual exclusion of replacing and removing. The
// key's elements become directories, whose names end in "+" so that objects
// "a" and "a/b" can both be there; bytes other than letters, digits and "._=-"
// are written %XX. An element may have up to 240 bytes when escaped; a longer
// one is objstore.ErrInvalid. Directories once made are kept.
//
// A file is the object's bytes and a trailer of 16 bytes: the magic "CLdo",
// the CRC32C of the bytes (uint32) and their number (uint64), big endian. The
// ETag is made of the latter two, so it depends on the content alone, not on
// the time. A get of a whole object verifies the checksum.
//
// A put is durable when it returns: the file is written under a temporary
// name, synced, then linked (create-only) or renamed to its own name, and the
// directory is synced. Several processes may use one directory.
package dir

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

const (
	magic       = "CLdo"
	trailerSize = 16
	piece       = 1 << 20
	staleTemp   = time.Hour
	lockPause   = time.Millisecond
)

// Bucket is a bucket on a directory. It is safe for concurrent use.
type Bucket struct {
	fs      vfs.FS
	root    string // the directory given
	objects string
	tmp     string
	table   *crc32.Table
	bufs    sync.Pool // *[]byte of a piece and a block, aligned

	replace sync.Mutex // held while an object is replaced or removed

	mu     sync.Mutex
	synced map[string]bool // directories whose own names are durable
}

// New opens the bucket at dir, making it if it is missing, and removes
// temporary files older than an hour.
func New(fsys vfs.FS, dir string) (*Bucket, error) {
	b := &Bucket{
		fs: fsys, root: dir, objects: path.Join(dir, "objects"), tmp: path.Join(dir, "tmp"),
		table: crc32.MakeTable(crc32.Castagnoli), synced: make(map[string]bool),
	}
	b.bufs.New = func() any { s := vfs.AlignedBytes(piece + vfs.BlockSize); return &s }
	for _, d := range []string{b.objects, b.tmp} {
		if err := fsys.MkdirAll(d); err != nil {
			return nil, fmt.Errorf("open bucket %s: %w", dir, err)
		}
	}
	for _, d := range []string{dir, path.Dir(dir)} {
		if err := fsys.SyncDir(d); err != nil {
			return nil, fmt.Errorf("open bucket %s: %w", dir, err)
		}
	}
	b.synced[b.objects] = true
	if err := b.removeStale(time.Now()); err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", dir, err)
	}
	return b, nil
}

func (b *Bucket) removeStale(now time.Time) error {
	entries, err := b.fs.List(b.tmp)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(b.tmp, e.Name())
		st, err := b.fs.Stat(name)
		if err == nil && now.Sub(st.ModTime()) > staleTemp {
			err = b.fs.Remove(name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Put implements objstore.Writer.
func (b *Bucket) Put(ctx context.Context, key string, body objstore.Body, opts objstore.PutOptions) (objstore.ObjectInfo, error) {
	info, err := b.put(ctx, key, body, opts)
	if err != nil {
		return objstore.ObjectInfo{}, fmt.Errorf("put %q: %w", key, err)
	}
	return info, nil
}

func (b *Bucket) put(ctx context.Context, key string, body objstore.Body, opts objstore.PutOptions) (objstore.ObjectInfo, error) {
	var none objstore.ObjectInfo
	sub, file, err := split(key)
	if err = errors.Join(ctx.Err(), objstore.CheckPut(key, opts), err); err != nil {
		return none, err
	}
	target := path.Join(b.objects, sub, file)
	if opts.IfNoneMatch || opts.IfMatch != "" { // refuse before the work
		if err := b.check(target, opts); err != nil {
			return none, err
		}
	}
	temp := path.Join(b.tmp, rand.Text())
	sum, err := b.write(ctx, temp, body, opts.CRC32C)
	if err == nil {
		err = b.makeDir(path.Dir(target))
	}
	if err == nil {
		err = b.publish(ctx, temp, target, opts)
	}
	if rerr := b.fs.Remove(temp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) && err == nil {
		err = fmt.Errorf("%w: %w", objstore.ErrUnknown, rerr)
	}
	if err != nil {
		return none, err
	}
	return objstore.ObjectInfo{Key: key, Size: body.Size(), ETag: etag(body.Size(), sum), Modified: time.Now()}, nil
}

// write makes the synced temporary file, with direct I/O: growing the page
// cache would cost more than everything else.
func (b *Bucket) write(ctx context.Context, name string, body objstore.Body, want *uint32) (sum uint32, err error) {
	f, err := b.fs.Open(name, vfs.Create|vfs.Excl|vfs.Direct)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	bp := b.bufs.Get().(*[]byte)
	defer b.bufs.Put(bp)
	size := body.Size()
	for pos, done := int64(0), false; !done; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		p := (*bp)[:min(piece, size-pos)]
		if n, err := body.ReadAt(p, pos); n < len(p) {
			return 0, fmt.Errorf("read body: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		sum = crc32.Update(sum, b.table, p)
		if done = pos+int64(len(p)) == size; done {
			if want != nil && *want != sum {
				return 0, objstore.ErrChecksum
			}
			p = append(p, magic...)
			p = binary.BigEndian.AppendUint32(p, sum)
			p = binary.BigEndian.AppendUint64(p, uint64(size))
		}
		if err := writeBlocks(f, p, pos); err != nil {
			return 0, err
		}
		pos += int64(len(p))
	}
	if err := f.Truncate(size + trailerSize); err != nil {
		return 0, err
	}
	return sum, f.Sync()
}

// writeBlocks writes p, with room behind it, up to the end of its last block.
func writeBlocks(f vfs.File, p []byte, pos int64) error {
	whole := (len(p) + vfs.BlockSize - 1) &^ (vfs.BlockSize - 1)
	clear(p[len(p):whole])
	_, err := f.WriteAt(p[:whole], pos)
	return err
}

// publish gives the finished file its name and makes that durable. After the
// name is there a failure is ErrUnknown.
func (b *Bucket) publish(ctx context.Context, temp, target string, opts objstore.PutOptions) error {
	if opts.IfNoneMatch {
		err := b.fs.Link(temp, target)
		if errors.Is(err, fs.ErrExist) {
			return objstore.ErrPrecondition
		}
		if err != nil {
			return err
		}
	} else {
		err := b.exclusive(ctx, func() error {
			if err := b.check(target, opts); err != nil {
				return err
			}
			return b.fs.Rename(temp, target)
		})
		if err != nil {
			return err
		}
	}
	if err := b.fs.SyncDir(path.Dir(target)); err != nil {
		return fmt.Errorf("%w: %w", objstore.ErrUnknown, err)
	}
	return nil
}

// check answers the conditions of opts on the file as it is now.
func (b *Bucket) check(target string, opts objstore.PutOptions) error {
	if !opts.IfNoneMatch && opts.IfMatch == "" {
		return nil
	}
	f, info, _, err := b.open(target)
	if errors.Is(err, objstore.ErrNotFound) {
		return objstore.CheckCondition(false, "", opts)
	}
	if err != nil {
		return err
	}
	return errors.Join(objstore.CheckCondition(true, info.ETag, opts), f.Close())
}

// exclusive runs f while nobody else, in this process or another, replaces or
// removes an object.
func (b *Bucket) exclusive(ctx context.Context, f func() error) error {
	b.replace.Lock()
	defer b.replace.Unlock()
	for {
		l, err := b.fs.Lock(path.Join(b.root, "lock"))
		if err == nil {
			return errors.Join(f(), l.Close())
		}
		if !errors.Is(err, vfs.ErrLocked) {
			return err
		}
		if err := objstore.Sleep(ctx, lockPause); err != nil {
			return err
		}
	}
}

// makeDir makes a directory below objects and its ancestors durable.
func (b *Bucket) makeDir(dir string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.synced[dir] {
		return nil
	}
	if err := b.fs.MkdirAll(dir); err != nil {
		return err
	}
	var chain []string
	for d := dir; !b.synced[d]; d = path.Dir(d) {
		if err := b.fs.SyncDir(path.Dir(d)); err != nil {
			return err
		}
		chain = append(chain, d)
	}
	for _, d := range chain {
		b.synced[d] = true
	}
	return nil
}

// Delete implements objstore.Writer.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	failed, err := b.DeleteMany(ctx, []string{key})
	if err == nil {
		err = failed[key]
	}
	if err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	return nil
}

// DeleteMany implements objstore.Writer.
func (b *Bucket) DeleteMany(ctx context.Context, keys []string) (map[string]error, error) {
	if err := errors.Join(ctx.Err(), objstore.CheckDeleteMany(keys)); err != nil {
		return nil, fmt.Errorf("delete many: %w", err)
	}
	failed := make(map[string]error)
	dirs := make(map[string][]string) // directory to sync → keys
	err := b.exclusive(ctx, func() error {
		for _, key := range keys {
			sub, file, err := split(key)
			if err != nil {
				continue // no put takes such a key, so no object has it
			}
			d := path.Join(b.objects, sub)
			switch err := b.fs.Remove(path.Join(d, file)); {
			case err == nil:
				dirs[d] = append(dirs[d], key)
			case !errors.Is(err, fs.ErrNotExist):
				failed[key] = err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("delete many: %w", err)
	}
	for d, keys := range dirs {
		if err := b.fs.SyncDir(d); err != nil {
			for _, key := range keys {
				failed[key] = fmt.Errorf("%w: %w", objstore.ErrUnknown, err)
			}
		}
	}
	return failed, nil
}

func etag(size int64, sum uint32) string { return fmt.Sprintf("%x-%08x", size, sum) }

var _ objstore.Bucket = (*Bucket)(nil)
