package tiering

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// fetcher does the ranged GETs of a Reader: a bounded number at once, each
// with a time limit, tried again while that can help.
type fetcher struct {
	bucket  objstore.Reader
	slots   chan struct{}
	gate    *gate
	backoff backoff
	attempt time.Duration // limit of one try
	total   time.Duration // limit of all tries

	gets, bytes, failures atomic.Int64
}

// fetch fills buf with the bytes of an object from offset.
func (f *fetcher) fetch(ctx context.Context, key string, offset int64, buf []byte) error {
	ctx, cancel := context.WithTimeoutCause(ctx, f.total, fmt.Errorf("read took longer than %v", f.total))
	defer cancel()
	var last error
	for n := 1; ; n++ {
		if wait, _ := f.gate.state(); wait > 0 {
			if err := sleep(ctx, wait); err != nil {
				return giveUp(ctx, key, last)
			}
		}
		err := f.once(ctx, key, offset, buf)
		if err == nil {
			f.gate.ok()
			return nil
		}
		f.failures.Add(1)
		last = err
		switch {
		case ctx.Err() != nil:
			return giveUp(ctx, key, last)
		case errors.Is(err, objstore.ErrNotFound):
			return err
		case errors.Is(err, objstore.ErrRange):
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		case errors.Is(err, objstore.ErrThrottled):
			f.gate.throttled()
		}
		if sleep(ctx, f.backoff.wait(n)) != nil {
			return giveUp(ctx, key, last)
		}
	}
}

func giveUp(ctx context.Context, key string, last error) error {
	return fmt.Errorf("get %s: %w", key, errors.Join(context.Cause(ctx), last))
}

// once makes one attempt when it has a slot.
func (f *fetcher) once(ctx context.Context, key string, offset int64, buf []byte) error {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, f.attempt, fmt.Errorf("get took longer than %v", f.attempt))
	defer cancel()
	f.gets.Add(1)
	if err := getInto(ctx, f.bucket, key, offset, buf); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("%w: %w", cause, err)
		}
		return err
	}
	f.bytes.Add(int64(len(buf)))
	return nil
}
