package objstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"
)

// ErrUnsuitable: the store answered a probe otherwise than the contract asks,
// for example it ignores If-None-Match; data in it would not be safe.
var ErrUnsuitable = errors.New("objstore: store is not suitable")

const probeRoom = "probe/"

// Probe checks with one small object below "probe/" what Cirrolog relies on:
// create-only and compare-and-swap puts are enforced, a list shows an object
// right after its put, ranged reads work and a delete is seen at once. It
// removes its object. An answer that breaks the contract is ErrUnsuitable;
// other errors are the store's own.
func Probe(ctx context.Context, b Bucket) (err error) {
	key := probeRoom + rand.Text()
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if derr := b.Delete(clean, key); derr != nil && err == nil {
			err = fmt.Errorf("probe bucket: clean up: %w", derr)
		}
	}()
	for _, step := range []func(context.Context, Bucket, string) error{probeConditions, probeList, probeRange, probeDelete} {
		if err := step(ctx, b, key); err != nil {
			return fmt.Errorf("probe bucket: %w", err)
		}
	}
	return nil
}

func probeConditions(ctx context.Context, b Bucket, key string) error {
	first, second := bytes.NewReader([]byte("cirrolog probe 1")), bytes.NewReader([]byte("cirrolog probe 2"))
	if created, err := PutCreateOnly(ctx, b, key, first, PutOptions{}); err != nil || !created {
		return fmt.Errorf("create: %w", err)
	}
	if err := expect(ctx, b, key, second, PutOptions{IfNoneMatch: true}); err != nil {
		return fmt.Errorf("create-only put (If-None-Match) on an object that is there: %w", err)
	}
	info, err := b.Head(ctx, key)
	if err != nil {
		return fmt.Errorf("head: %w", err)
	}
	if info.Size != 16 || info.ETag == "" {
		return fmt.Errorf("head says %d bytes, etag %q: %w", info.Size, info.ETag, ErrUnsuitable)
	}
	if err := (Retry{}).Do(ctx, func() error {
		_, _ = second.Seek(0, io.SeekStart)
		_, err := b.Put(ctx, key, second, PutOptions{IfMatch: info.ETag})
		return err
	}); err != nil {
		return fmt.Errorf("compare-and-swap put: %w", err)
	}
	if err := expect(ctx, b, key, first, PutOptions{IfMatch: info.ETag}); err != nil {
		return fmt.Errorf("compare-and-swap put (If-Match) with an old etag: %w", err)
	}
	return nil
}

// expect puts and wants ErrPrecondition.
func expect(ctx context.Context, b Bucket, key string, body *bytes.Reader, opts PutOptions) error {
	err := Retry{}.Do(ctx, func() error {
		_, _ = body.Seek(0, io.SeekStart)
		_, err := b.Put(ctx, key, body, opts)
		return err
	})
	switch {
	case err == nil:
		return fmt.Errorf("was carried out: %w", ErrUnsuitable)
	case errors.Is(err, ErrPrecondition):
		return nil
	}
	return err
}

func probeList(ctx context.Context, b Bucket, key string) error {
	return Retry{}.Do(ctx, func() error {
		list, _, err := b.List(ctx, key, "", 1)
		if err == nil && (len(list) != 1 || list[0].Key != key || list[0].Size != 16) {
			err = fmt.Errorf("list does not show what was put: %w", ErrUnsuitable)
		}
		return err
	})
}

func probeRange(ctx context.Context, b Bucket, key string) error {
	return Retry{}.Do(ctx, func() error {
		r, _, err := b.Get(ctx, key, 9, 5)
		if err != nil {
			return fmt.Errorf("ranged get: %w", err)
		}
		got, err := io.ReadAll(io.LimitReader(r, 17))
		if err = errors.Join(err, r.Close()); err != nil {
			return fmt.Errorf("ranged get: %w", err)
		}
		if string(got) != "probe" {
			return fmt.Errorf("ranged get gave %q: %w", got, ErrUnsuitable)
		}
		return nil
	})
}

func probeDelete(ctx context.Context, b Bucket, key string) error {
	return Retry{}.Do(ctx, func() error {
		if err := b.Delete(ctx, key); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
		switch _, err := b.Head(ctx, key); {
		case err == nil:
			return fmt.Errorf("head shows a deleted object: %w", ErrUnsuitable)
		case !errors.Is(err, ErrNotFound):
			return fmt.Errorf("head: %w", err)
		}
		return nil
	})
}
