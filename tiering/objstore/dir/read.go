package dir

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"sort"
	"strings"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// open opens an object's file and reads its trailer; the info lacks key and
// time.
func (b *Bucket) open(name string) (f vfs.File, info objstore.ObjectInfo, sum uint32, err error) {
	f, err = b.fs.Open(name, vfs.ReadOnly)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, info, 0, objstore.ErrNotFound
	}
	if err != nil {
		return nil, info, 0, err
	}
	size, sum, err := readTrailer(f)
	if err != nil {
		return nil, info, 0, errors.Join(err, f.Close())
	}
	return f, objstore.ObjectInfo{Size: size, ETag: etag(size, sum)}, sum, nil
}

func readTrailer(f vfs.File) (size int64, sum uint32, err error) {
	total, err := f.Size()
	if err != nil {
		return 0, 0, err
	}
	size = total - trailerSize
	if size < 0 {
		return 0, 0, fmt.Errorf("file of %d bytes: %w", total, objstore.ErrChecksum)
	}
	var t [trailerSize]byte
	if n, err := f.ReadAt(t[:], size); n < len(t) {
		return 0, 0, fmt.Errorf("read trailer: %w", err)
	}
	if string(t[:4]) != magic || binary.BigEndian.Uint64(t[8:]) != uint64(size) {
		return 0, 0, fmt.Errorf("trailer: %w", objstore.ErrChecksum)
	}
	return size, binary.BigEndian.Uint32(t[4:8]), nil
}

func (b *Bucket) openKey(ctx context.Context, key string) (vfs.File, objstore.ObjectInfo, uint32, error) {
	var none objstore.ObjectInfo
	sub, file, err := split(key)
	if err = errors.Join(ctx.Err(), err); err != nil {
		return nil, none, 0, err
	}
	name := path.Join(b.objects, sub, file)
	f, info, sum, err := b.open(name)
	if err != nil {
		return nil, none, 0, err
	}
	info.Key = key
	if st, err := b.fs.Stat(name); err == nil { // replaced or removed meanwhile: no time
		info.Modified = st.ModTime()
	}
	return f, info, sum, nil
}

// Head implements objstore.Reader.
func (b *Bucket) Head(ctx context.Context, key string) (objstore.ObjectInfo, error) {
	f, info, _, err := b.openKey(ctx, key)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return objstore.ObjectInfo{}, fmt.Errorf("head %q: %w", key, err)
	}
	return info, nil
}

// Get implements objstore.Reader. A body read from the first byte to the last
// ends in objstore.ErrChecksum if the bytes are not those that were put.
func (b *Bucket) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, objstore.ObjectInfo, error) {
	f, info, sum, err := b.openKey(ctx, key)
	if err != nil {
		return nil, objstore.ObjectInfo{}, fmt.Errorf("get %q: %w", key, err)
	}
	end, err := objstore.ClipRange(info.Size, offset, length)
	if err != nil {
		return nil, objstore.ObjectInfo{}, fmt.Errorf("get %q: %w", key, errors.Join(err, f.Close()))
	}
	r := &reader{ctx: ctx, f: f, pos: offset, end: end}
	if offset == 0 && end == info.Size {
		r.table, r.want = b.table, sum
	}
	return r, info, nil
}

type reader struct {
	ctx      context.Context
	f        vfs.File
	pos, end int64
	table    *crc32.Table // nil: part of an object, not verified
	sum      uint32
	want     uint32
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.pos == r.end {
		if r.table != nil && r.sum != r.want {
			return 0, fmt.Errorf("read object: %w", objstore.ErrChecksum)
		}
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.end-r.pos, piece)]
	n, err := r.f.ReadAt(p, r.pos)
	r.pos += int64(n)
	if r.table != nil {
		r.sum = crc32.Update(r.sum, r.table, p[:n])
	}
	switch {
	case n == len(p):
		return n, nil
	case errors.Is(err, io.EOF):
		return n, fmt.Errorf("read object: %w", io.ErrUnexpectedEOF)
	}
	return n, fmt.Errorf("read object: %w", err)
}

func (r *reader) Close() error { return r.f.Close() }

// List implements objstore.Reader. Files that are not objects are passed over.
func (b *Bucket) List(ctx context.Context, prefix, after string, limit int) ([]objstore.ObjectInfo, bool, error) {
	if err := objstore.CheckList(limit); err != nil {
		return nil, false, fmt.Errorf("list %q: %w", prefix, err)
	}
	w := walker{b: b, ctx: ctx, prefix: prefix, after: after, limit: limit}
	start, dir := "", b.objects
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		start = prefix[:i+1]
		for _, e := range strings.Split(prefix[:i], "/") {
			name := escape(e) + dirSuffix
			if len(name) > maxElement+1 {
				return nil, false, nil // no object has such a key
			}
			dir = path.Join(dir, name)
		}
	}
	if err := w.walk(dir, start); err != nil {
		return nil, false, fmt.Errorf("list %q: %w", prefix, err)
	}
	return w.out, w.more, nil
}

type walker struct {
	b             *Bucket
	ctx           context.Context
	prefix, after string
	limit         int
	out           []objstore.ObjectInfo
	more          bool
}

type entry struct {
	key  string // of the object, or ending in "/"
	name string
	dir  bool
}

// walk visits, in byte order of the keys, the objects of dir, whose keys start
// with base.
func (w *walker) walk(dir, base string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	entries, err := w.entries(dir, base)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if w.more {
			return nil
		}
		full := path.Join(dir, e.name)
		if e.dir {
			err = w.walk(full, e.key)
		} else {
			err = w.visit(full, e.key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entries returns what of dir may be in the answer, sorted.
func (w *walker) entries(dir, base string) ([]entry, error) {
	list, err := w.b.fs.List(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []entry
	for _, d := range list {
		name, isDir := d.Name(), d.IsDir()
		if isDir != strings.HasSuffix(name, dirSuffix) {
			continue
		}
		element, ok := unescape(strings.TrimSuffix(name, dirSuffix))
		if !ok {
			continue
		}
		key := base + element
		if isDir {
			key += "/"
		}
		inside := strings.HasPrefix(key, w.prefix) || isDir && strings.HasPrefix(w.prefix, key)
		later := key > w.after || isDir && strings.HasPrefix(w.after, key)
		if inside && later {
			out = append(out, entry{key: key, name: name, dir: isDir})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].key < out[j].key })
	return out, nil
}

func (w *walker) visit(name, key string) error {
	f, info, _, err := w.b.open(name)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil // removed meanwhile
	}
	if err != nil {
		return fmt.Errorf("object %q: %w", key, err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	if len(w.out) == w.limit {
		w.more = true
		return nil
	}
	if st, err := w.b.fs.Stat(name); err == nil {
		info.Modified = st.ModTime()
	}
	info.Key = key
	w.out = append(w.out, info)
	return nil
}
