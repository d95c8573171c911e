package metadata

import (
	"context"
	"io"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeBucket is a bucket in memory with faults decided by a function: before
// keeps a request from being carried out, after loses its answer. op is "get",
// "head", "list", "put" or "delete".
type fakeBucket struct {
	mem    *objstore.Mem
	mu     sync.Mutex
	before func(op, key string) error
	after  func(op, key string) error
}

var _ objstore.Bucket = (*fakeBucket)(nil)

func newBucket() *fakeBucket { return &fakeBucket{mem: objstore.NewMem()} }

// faults sets the faults from now on.
func (b *fakeBucket) faults(before, after func(op, key string) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before, b.after = before, after
}

// keys, body, replace and remove look and work behind the agents' backs.
func (b *fakeBucket) keys(prefix string) []string {
	var out []string
	after := ""
	for {
		objects, more, err := b.mem.List(context.Background(), prefix, after, 1000)
		if err != nil {
			panic(err)
		}
		for _, o := range objects {
			out = append(out, o.Key)
			after = o.Key
		}
		if !more {
			return out
		}
	}
}

func (b *fakeBucket) body(t *testing.T, key string) string {
	t.Helper()
	r, _, err := b.mem.Get(context.Background(), key, 0, -1)
	mustNil(t, err)
	defer r.Close()
	body, err := io.ReadAll(r)
	mustNil(t, err)
	return string(body)
}

func (b *fakeBucket) replace(t *testing.T, key, body string) {
	t.Helper()
	_, err := b.mem.Put(context.Background(), key, strings.NewReader(body), objstore.PutOptions{})
	mustNil(t, err)
}

func (b *fakeBucket) remove(t *testing.T, key string) {
	t.Helper()
	mustNil(t, b.mem.Delete(context.Background(), key))
}

func (b *fakeBucket) do(op, key string, f func() error) error {
	b.mu.Lock()
	before, after := b.before, b.after
	b.mu.Unlock()
	if before != nil {
		if err := before(op, key); err != nil {
			return err
		}
	}
	err := f()
	if err == nil && after != nil {
		err = after(op, key)
	}
	return err
}

func (b *fakeBucket) Get(ctx context.Context, key string, offset, length int64) (r io.ReadCloser, info objstore.ObjectInfo, err error) {
	err = b.do("get", key, func() (err error) { r, info, err = b.mem.Get(ctx, key, offset, length); return err })
	return r, info, err
}

func (b *fakeBucket) Head(ctx context.Context, key string) (info objstore.ObjectInfo, err error) {
	err = b.do("head", key, func() (err error) { info, err = b.mem.Head(ctx, key); return err })
	return info, err
}

func (b *fakeBucket) List(ctx context.Context, prefix, after string, limit int) (out []objstore.ObjectInfo, more bool, err error) {
	err = b.do("list", prefix, func() (err error) { out, more, err = b.mem.List(ctx, prefix, after, limit); return err })
	return out, more, err
}

func (b *fakeBucket) Put(ctx context.Context, key string, body objstore.Body, opts objstore.PutOptions) (info objstore.ObjectInfo, err error) {
	err = b.do("put", key, func() (err error) { info, err = b.mem.Put(ctx, key, body, opts); return err })
	return info, err
}

func (b *fakeBucket) Delete(ctx context.Context, key string) error {
	return b.do("delete", key, func() error { return b.mem.Delete(ctx, key) })
}

func (b *fakeBucket) DeleteMany(ctx context.Context, keys []string) (failed map[string]error, err error) {
	err = b.do("delete", keys[0], func() (err error) { failed, err = b.mem.DeleteMany(ctx, keys); return err })
	return failed, err
}
