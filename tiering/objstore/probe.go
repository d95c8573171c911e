package objstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// ErrUnsuitable: the store answered a probe otherwise than the contract asks,
// for example it ignores If-None-Match; data in it would not be safe.
var ErrUnsuitable = errors.New("objstore: store is not suitable")

const probeRoom = "probe/"

// Probe checks with three small objects below "probe/" what Cirrolog relies on:
// create-only and compare-and-swap puts are enforced, lists show objects
// right after their puts, in byte order and from any key on, ranged reads work and
// a delete is seen at once. It removes its objects. An answer that breaks the contract is
// ErrUnsuitable; other errors are the store's own.
//
// ahead is how much later it is by the store's clock, which stamps objects, than by
// this machine's: to a second, and 0 as far as the time of the put explains it.
func Probe(ctx context.Context, b Bucket) (ahead time.Duration, err error) {
	key, put := probeRoom+rand.Text(), true
	defer func() {
		if !put {
			return
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if derr := b.Delete(clean, key); derr != nil && err == nil {
			err = fmt.Errorf("probe bucket: clean up: %w", derr)
		}
	}()
	if ahead, err = probeClock(ctx, b, key); err != nil {
		put = !errors.Is(err, ErrNoBucket) && !errors.Is(err, ErrDenied)
		return 0, fmt.Errorf("probe bucket: %w", err)
	}
	for _, step := range []func(context.Context, Bucket, string) error{probeConditions, probeList, probeRange, probeDelete} {
		if err := step(ctx, b, key); err != nil {
			return 0, fmt.Errorf("probe bucket: %w", err)
		}
	}
	return ahead, nil
}

// probeClock creates the object and looks when the store says that it did.
func probeClock(ctx context.Context, b Bucket, key string) (ahead time.Duration, err error) {
	began := time.Now()
	if created, err := PutCreateOnly(ctx, b, key, bytes.NewReader([]byte("cirrolog probe 1")), PutOptions{}); err != nil || !created {
		return 0, fmt.Errorf("create: %w", err)
	}
	ended := time.Now()
	info, err := b.Head(ctx, key)
	if err != nil {
		return 0, fmt.Errorf("head: %w", err)
	}
	if info.Size != 16 || info.ETag == "" {
		return 0, fmt.Errorf("head says %d bytes, etag %q: %w", info.Size, info.ETag, ErrUnsuitable)
	}
	return Ahead(info.Modified, began, ended), nil
}

// Ahead is how much later it is by another clock that showed a time, of whole seconds, at some moment
// between began and ended.
func Ahead(shown, began, ended time.Time) time.Duration {
	switch {
	case shown.IsZero():
		return 0
	case shown.After(ended):
		return shown.Sub(ended)
	case shown.Add(time.Second).Before(began):
		return shown.Add(time.Second).Sub(began)
	}
	return 0
}

func probeConditions(ctx context.Context, b Bucket, key string) error {
	first, second := bytes.NewReader([]byte("cirrolog probe 1")), bytes.NewReader([]byte("cirrolog probe 2"))
	if err := expect(ctx, b, key, second, PutOptions{IfNoneMatch: true}); err != nil {
		return fmt.Errorf("create-only put (If-None-Match) on an object that is there: %w", err)
	}
	info, err := b.Head(ctx, key)
	if err != nil {
		return fmt.Errorf("head: %w", err)
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

// probeList lists the object and two more behind it, two at a time.
func probeList(ctx context.Context, b Bucket, key string) (err error) {
	keys := []string{key, key + "Z", key + "a"} // in byte order, which is not a dictionary's
	rest := keys[1:]
	defer func() {
		failed, derr := b.DeleteMany(context.WithoutCancel(ctx), rest)
		for _, e := range failed {
			derr = errors.Join(derr, e)
		}
		if derr != nil && err == nil {
			err = fmt.Errorf("delete many: %w", derr)
		}
	}()
	for _, k := range rest {
		if _, err := PutCreateOnly(ctx, b, k, bytes.NewReader([]byte("cirrolog probe 3")), PutOptions{}); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	}
	for _, page := range []struct {
		after string
		want  []string
	}{{"", keys[:2]}, {keys[1], keys[2:]}} {
		var got []ObjectInfo
		var more bool
		if err := (Retry{}).Do(ctx, func() (err error) {
			got, more, err = b.List(ctx, key, page.after, 2)
			return err
		}); err != nil {
			return fmt.Errorf("list: %w", err)
		}
		if !slices.EqualFunc(got, page.want, func(o ObjectInfo, k string) bool { return o.Key == k && o.Size == 16 }) || more != (page.after == "") {
			return fmt.Errorf("list of the first two keys from %q on shows %d, more: %t, not what was put in the order of keys (S3's ListObjectsV2 with start-after): %w", page.after, len(got), more, ErrUnsuitable)
		}
	}
	return nil
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
