package metadata

import (
	"bytes"
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeBucket is a bucket in memory with faults: before keeps a request from
// being carried out, after loses its answer. op is "get", "head", "list", "put"
// or "delete".
type fakeBucket struct {
	mu      sync.Mutex
	objects map[string][]byte
	before  func(op, key string) error
	after   func(op, key string) error
	count   map[string]int
}

func newBucket() *fakeBucket {
	return &fakeBucket{objects: map[string][]byte{}, count: map[string]int{}}
}

// faults sets the faults from now on.
func (b *fakeBucket) faults(before, after func(op, key string) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before, b.after = before, after
}

func (b *fakeBucket) keys(prefix string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, k := range slices.Sorted(maps.Keys(b.objects)) {
		if strings.HasPrefix(k, prefix) {
			out = append(out, k)
		}
	}
	return out
}

func (b *fakeBucket) do(op, key string, f func() error) error {
	b.mu.Lock()
	before, after := b.before, b.after
	b.count[op]++
	b.mu.Unlock()
	if before != nil {
		if err := before(op, key); err != nil {
			return err
		}
	}
	b.mu.Lock()
	err := f()
	b.mu.Unlock()
	if err == nil && after != nil {
		err = after(op, key)
	}
	return err
}

func (b *fakeBucket) Get(_ context.Context, key string, _, _ int64) (io.ReadCloser, objstore.ObjectInfo, error) {
	var body []byte
	err := b.do("get", key, func() error {
		var ok bool
		if body, ok = b.objects[key]; !ok {
			return objstore.ErrNotFound
		}
		return nil
	})
	if err != nil {
		return nil, objstore.ObjectInfo{}, err
	}
	return io.NopCloser(bytes.NewReader(body)), objstore.ObjectInfo{Key: key, Size: int64(len(body))}, nil
}

func (b *fakeBucket) Head(_ context.Context, key string) (info objstore.ObjectInfo, err error) {
	err = b.do("head", key, func() error {
		body, ok := b.objects[key]
		if !ok {
			return objstore.ErrNotFound
		}
		info = objstore.ObjectInfo{Key: key, Size: int64(len(body))}
		return nil
	})
	return info, err
}

func (b *fakeBucket) List(_ context.Context, prefix, after string, limit int) (out []objstore.ObjectInfo, more bool, err error) {
	err = b.do("list", prefix, func() error {
		for _, k := range slices.Sorted(maps.Keys(b.objects)) {
			if !strings.HasPrefix(k, prefix) || k <= after {
				continue
			}
			if len(out) == limit {
				more = true
				break
			}
			out = append(out, objstore.ObjectInfo{Key: k, Size: int64(len(b.objects[k]))})
		}
		return nil
	})
	return out, more, err
}

func (b *fakeBucket) Put(_ context.Context, key string, body objstore.Body, opts objstore.PutOptions) (objstore.ObjectInfo, error) {
	data, err := io.ReadAll(body)
	if err != nil {
		return objstore.ObjectInfo{}, err
	}
	err = b.do("put", key, func() error {
		if _, ok := b.objects[key]; ok && opts.IfNoneMatch {
			return objstore.ErrPrecondition
		}
		b.objects[key] = data
		return nil
	})
	return objstore.ObjectInfo{Key: key, Size: int64(len(data))}, err
}

func (b *fakeBucket) Delete(_ context.Context, key string) error {
	return b.do("delete", key, func() error { delete(b.objects, key); return nil })
}

func (b *fakeBucket) DeleteMany(ctx context.Context, keys []string) (map[string]error, error) {
	for _, k := range keys {
		if err := b.Delete(ctx, k); err != nil {
			return nil, err
		}
	}
	return nil, nil
}
