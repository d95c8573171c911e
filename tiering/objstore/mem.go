package objstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrInvalid is returned for a request that no store would take: an empty or
// too long key, both conditions at once, a limit outside 1 to 1000.
var ErrInvalid = errors.New("objstore: invalid request")

// MaxKeys is the largest List page and the largest DeleteMany, in keys.
const MaxKeys = 1000

// CheckKey returns ErrInvalid unless key is 1 to MaxKeyLen bytes without NUL.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKeyLen || strings.IndexByte(key, 0) >= 0 {
		return fmt.Errorf("key of %d bytes: %w", len(key), ErrInvalid)
	}
	return nil
}

// CheckPut returns ErrInvalid for a key or options no driver takes.
func CheckPut(key string, opts PutOptions) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if opts.IfNoneMatch && opts.IfMatch != "" {
		return fmt.Errorf("put %q with both conditions: %w", key, ErrInvalid)
	}
	return nil
}

// CheckList returns ErrInvalid for a limit outside 1 to MaxKeys.
func CheckList(limit int) error {
	if limit < 1 || limit > MaxKeys {
		return fmt.Errorf("list limit %d: %w", limit, ErrInvalid)
	}
	return nil
}

// CheckDeleteMany returns ErrInvalid for more than MaxKeys keys or a bad one.
func CheckDeleteMany(keys []string) error {
	if len(keys) > MaxKeys {
		return fmt.Errorf("delete of %d keys: %w", len(keys), ErrInvalid)
	}
	for _, k := range keys {
		if err := CheckKey(k); err != nil {
			return err
		}
	}
	return nil
}

// ClipRange returns the end of the range that starts at offset of an object
// of size bytes; length < 0 means to the end. It returns ErrRange when the
// range begins at or behind the end, except for the whole of an empty object,
// and ErrInvalid for a negative offset.
func ClipRange(size, offset, length int64) (end int64, err error) {
	switch {
	case offset < 0:
		return 0, fmt.Errorf("offset %d: %w", offset, ErrInvalid)
	case offset == 0 && length < 0:
		return size, nil
	case offset >= size:
		return 0, fmt.Errorf("offset %d of %d bytes: %w", offset, size, ErrRange)
	case length < 0 || length > size-offset:
		return size, nil
	}
	return offset + length, nil
}

type memObject struct {
	data []byte // never changed after it was stored
	info ObjectInfo
}

// Mem is a bucket in memory with the conditional semantics of Amazon S3, for
// tests and for trying things out. It is safe for concurrent use.
type Mem struct {
	mu      sync.RWMutex
	objects map[string]memObject
	keys    []string // sorted
	version uint64
}

// NewMem returns an empty bucket.
func NewMem() *Mem { return &Mem{objects: make(map[string]memObject)} }

// Get implements Reader.
func (m *Mem) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, ObjectInfo, error) {
	o, err := m.find(ctx, key)
	if err != nil {
		return nil, ObjectInfo{}, fmt.Errorf("get %q: %w", key, err)
	}
	end, err := ClipRange(o.info.Size, offset, length)
	if err != nil {
		return nil, ObjectInfo{}, fmt.Errorf("get %q: %w", key, err)
	}
	return io.NopCloser(bytes.NewReader(o.data[offset:end])), o.info, nil
}

// Head implements Reader.
func (m *Mem) Head(ctx context.Context, key string) (ObjectInfo, error) {
	o, err := m.find(ctx, key)
	if err != nil {
		return ObjectInfo{}, fmt.Errorf("head %q: %w", key, err)
	}
	return o.info, nil
}

func (m *Mem) find(ctx context.Context, key string) (memObject, error) {
	if err := errors.Join(ctx.Err(), CheckKey(key)); err != nil {
		return memObject{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects[key]
	if !ok {
		return memObject{}, ErrNotFound
	}
	return o, nil
}

// List implements Reader.
func (m *Mem) List(ctx context.Context, prefix, after string, limit int) ([]ObjectInfo, bool, error) {
	if err := errors.Join(ctx.Err(), CheckList(limit)); err != nil {
		return nil, false, fmt.Errorf("list %q: %w", prefix, err)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	i := sort.SearchStrings(m.keys, max(prefix, after))
	var out []ObjectInfo
	for ; i < len(m.keys) && strings.HasPrefix(m.keys[i], prefix); i++ {
		if m.keys[i] == after {
			continue
		}
		if len(out) == limit {
			return out, true, nil
		}
		out = append(out, m.objects[m.keys[i]].info)
	}
	return out, false, nil
}

// Put implements Writer.
func (m *Mem) Put(ctx context.Context, key string, body Body, opts PutOptions) (ObjectInfo, error) {
	if err := errors.Join(ctx.Err(), CheckPut(key, opts)); err != nil {
		return ObjectInfo{}, fmt.Errorf("put %q: %w", key, err)
	}
	data, err := io.ReadAll(io.NewSectionReader(body, 0, body.Size()))
	if err != nil {
		return ObjectInfo{}, fmt.Errorf("put %q: read body: %w", key, err)
	}
	if int64(len(data)) != body.Size() {
		return ObjectInfo{}, fmt.Errorf("put %q: read body: %w", key, io.ErrUnexpectedEOF)
	}
	if opts.CRC32C != nil && *opts.CRC32C != crc32.Checksum(data, castagnoli()) {
		return ObjectInfo{}, fmt.Errorf("put %q: %w", key, ErrChecksum)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old, found := m.objects[key]
	if err := CheckCondition(found, old.info.ETag, opts); err != nil {
		return ObjectInfo{}, fmt.Errorf("put %q: %w", key, err)
	}
	m.version++
	info := ObjectInfo{Key: key, Size: int64(len(data)), ETag: strconv.FormatUint(m.version, 16), Modified: time.Now()}
	if !found {
		i, _ := slices.BinarySearch(m.keys, key)
		m.keys = slices.Insert(m.keys, i, key)
	}
	m.objects[key] = memObject{data: data, info: info}
	return info, nil
}

// CheckCondition answers the conditions of a put on a key that has, or has
// not, an object with the given ETag.
func CheckCondition(found bool, etag string, opts PutOptions) error {
	switch {
	case opts.IfNoneMatch && found:
		return ErrPrecondition
	case opts.IfMatch != "" && !found:
		return ErrNotFound
	case opts.IfMatch != "" && opts.IfMatch != etag:
		return ErrPrecondition
	}
	return nil
}

// Delete implements Writer.
func (m *Mem) Delete(ctx context.Context, key string) error {
	if err := errors.Join(ctx.Err(), CheckKey(key)); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(key)
	return nil
}

func (m *Mem) remove(key string) {
	if _, ok := m.objects[key]; !ok {
		return
	}
	delete(m.objects, key)
	i, _ := slices.BinarySearch(m.keys, key)
	m.keys = slices.Delete(m.keys, i, i+1)
}

// DeleteMany implements Writer.
func (m *Mem) DeleteMany(ctx context.Context, keys []string) (map[string]error, error) {
	if err := errors.Join(ctx.Err(), CheckDeleteMany(keys)); err != nil {
		return nil, fmt.Errorf("delete many: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range keys {
		m.remove(k)
	}
	return nil, nil
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

var _ Bucket = (*Mem)(nil)
