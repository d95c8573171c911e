package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Patient returns b with requests that the store refuses because it is busy (ErrThrottled, which says that
// nothing was done) sent again for as long as wait. It is for work that is better late than begun anew; the
// driver's own few tries are enough for what is repeated anyway. The body of a Get is as b gives it.
func Patient(b Bucket, wait time.Duration) Bucket { return &patient{b: b, wait: wait} }

type patient struct {
	b    Bucket
	wait time.Duration
}

// do repeats f while the store is busy, and returns its last error.
func (p *patient) do(ctx context.Context, f func() error) error {
	began := time.Now()
	for n := 0; ; n++ {
		err := f()
		if !errors.Is(err, ErrThrottled) || ctx.Err() != nil {
			return err
		}
		if waited := time.Since(began); waited >= p.wait {
			return fmt.Errorf("after %s of trying: %w", waited.Round(time.Second), err)
		}
		if serr := Sleep(ctx, Backoff(n)); serr != nil {
			return errors.Join(serr, err)
		}
	}
}

func (p *patient) Get(ctx context.Context, key string, offset, length int64) (r io.ReadCloser, info ObjectInfo, err error) {
	err = p.do(ctx, func() error {
		r, info, err = p.b.Get(ctx, key, offset, length)
		return err
	})
	return r, info, err
}

func (p *patient) Head(ctx context.Context, key string) (info ObjectInfo, err error) {
	err = p.do(ctx, func() error {
		info, err = p.b.Head(ctx, key)
		return err
	})
	return info, err
}

func (p *patient) List(ctx context.Context, prefix, after string, limit int) (objects []ObjectInfo, more bool, err error) {
	err = p.do(ctx, func() error {
		objects, more, err = p.b.List(ctx, prefix, after, limit)
		return err
	})
	return objects, more, err
}

func (p *patient) Put(ctx context.Context, key string, body Body, opts PutOptions) (info ObjectInfo, err error) {
	err = p.do(ctx, func() error {
		if _, err := body.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("put %q: %w", key, err)
		}
		info, err = p.b.Put(ctx, key, body, opts)
		return err
	})
	return info, err
}

func (p *patient) Delete(ctx context.Context, key string) error {
	return p.do(ctx, func() error { return p.b.Delete(ctx, key) })
}

func (p *patient) DeleteMany(ctx context.Context, keys []string) (failed map[string]error, err error) {
	err = p.do(ctx, func() error {
		failed, err = p.b.DeleteMany(ctx, keys)
		return err
	})
	return failed, err
}

// Close implements io.Closer.
func (p *patient) Close() error { return Close(p.b) }
