package objstore

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// Observe returns b with f called once after each request: op is "get",
// "head", "list", "put", "delete" or "delete_many", dur the time until the
// answer was complete (for "get" until the body was closed), bytes the payload
// moved (objects for "list", keys for "delete_many"), err its error or nil. f
// is called from the requester's goroutine, concurrently.
func Observe(b Bucket, f func(op string, dur time.Duration, bytes int64, err error)) Bucket {
	return &observed{b: b, f: f}
}

type observed struct {
	b Bucket
	f func(op string, dur time.Duration, bytes int64, err error)
}

func (o *observed) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, ObjectInfo, error) {
	start := time.Now()
	r, info, err := o.b.Get(ctx, key, offset, length)
	if err != nil {
		o.f("get", time.Since(start), 0, err)
		return nil, info, err
	}
	return &observedBody{r: r, f: o.f, start: start}, info, nil
}

type observedBody struct {
	r     io.ReadCloser
	f     func(op string, dur time.Duration, bytes int64, err error)
	start time.Time
	n     int64
	err   error
	once  sync.Once
}

func (b *observedBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

func (b *observedBody) Close() error {
	err := b.r.Close()
	b.once.Do(func() { b.f("get", time.Since(b.start), b.n, errors.Join(b.err, err)) })
	return err
}

func (o *observed) Head(ctx context.Context, key string) (ObjectInfo, error) {
	start := time.Now()
	info, err := o.b.Head(ctx, key)
	o.f("head", time.Since(start), 0, err)
	return info, err
}

func (o *observed) List(ctx context.Context, prefix, after string, limit int) ([]ObjectInfo, bool, error) {
	start := time.Now()
	list, more, err := o.b.List(ctx, prefix, after, limit)
	o.f("list", time.Since(start), int64(len(list)), err)
	return list, more, err
}

func (o *observed) Put(ctx context.Context, key string, body Body, opts PutOptions) (ObjectInfo, error) {
	start, size := time.Now(), body.Size()
	info, err := o.b.Put(ctx, key, body, opts)
	o.f("put", time.Since(start), size, err)
	return info, err
}

func (o *observed) Delete(ctx context.Context, key string) error {
	start := time.Now()
	err := o.b.Delete(ctx, key)
	o.f("delete", time.Since(start), 0, err)
	return err
}

func (o *observed) DeleteMany(ctx context.Context, keys []string) (map[string]error, error) {
	start := time.Now()
	failed, err := o.b.DeleteMany(ctx, keys)
	o.f("delete_many", time.Since(start), int64(len(keys)), err)
	return failed, err
}
