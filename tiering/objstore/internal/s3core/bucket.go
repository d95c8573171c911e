package s3core

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Bucket is objstore.Bucket on a Client. It is safe for concurrent use.
type Bucket struct {
	c     Client
	o     Options
	t     *http.Transport
	reads objstore.Retry // of requests that may be repeated
}

// NewBucket returns the bucket of a client that runs on t, with o from Check.
func NewBucket(c Client, o Options, t *http.Transport) *Bucket {
	return &Bucket{c: c, o: o, t: t, reads: objstore.Retry{Attempts: 3}}
}

// Close drops the idle connections.
func (b *Bucket) Close() error {
	b.t.CloseIdleConnections()
	return nil
}

// try runs one attempt of a request without a large body.
func (b *Bucket) try(ctx context.Context, write bool, f func(ctx context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	actx, cancel := context.WithTimeout(ctx, b.o.Timeout)
	defer cancel()
	return b.classify(ctx, f(actx), write)
}

func (b *Bucket) classify(ctx context.Context, err error, write bool) error {
	if err == nil {
		return nil
	}
	return Classify(ctx, b.c.Failure(err), write)
}

// Get implements objstore.Reader.
func (b *Bucket) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, objstore.ObjectInfo, error) {
	var r io.ReadCloser
	var info objstore.ObjectInfo
	err := objstore.CheckKey(key)
	if err == nil && offset < 0 {
		err = fmt.Errorf("offset %d: %w", offset, objstore.ErrInvalid)
	}
	if err == nil && length == 0 {
		return b.getNothing(ctx, key, offset)
	}
	if err == nil {
		err = b.reads.Do(ctx, func() (err error) {
			r, info, err = b.get(ctx, key, offset, length)
			return err
		})
	}
	if err != nil {
		return nil, objstore.ObjectInfo{}, fmt.Errorf("get %q: %w", key, err)
	}
	return r, info, nil
}

// getNothing answers a range of no bytes, which HTTP cannot ask for.
func (b *Bucket) getNothing(ctx context.Context, key string, offset int64) (io.ReadCloser, objstore.ObjectInfo, error) {
	info, err := b.Head(ctx, key)
	if err != nil {
		return nil, objstore.ObjectInfo{}, err
	}
	if _, err := objstore.ClipRange(info.Size, offset, 0); err != nil {
		return nil, objstore.ObjectInfo{}, fmt.Errorf("get %q: %w", key, err)
	}
	return http.NoBody, info, nil
}

func (b *Bucket) get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, objstore.ObjectInfo, error) {
	none := objstore.ObjectInfo{}
	if err := ctx.Err(); err != nil {
		return nil, none, err
	}
	actx, cancel := context.WithCancel(ctx)
	watch := newWatch(b.o.Timeout, cancel)
	watch.start()
	a, err := b.c.Get(actx, key, rangeHeader(offset, length))
	late := watch.stop()
	if err != nil {
		cancel()
		if late {
			return nil, none, fmt.Errorf("%w: no answer for %s", objstore.ErrUnknown, b.o.Timeout)
		}
		return nil, none, b.classify(ctx, err, false)
	}
	total := a.Length
	if offset > 0 || length >= 0 {
		total, err = parseContentRange(a.Range, offset, a.Length)
	} else if a.Length < 0 {
		err = fmt.Errorf("answer without a length: %w", objstore.ErrUnsuitable)
	}
	if err != nil {
		cancel()
		return nil, none, errors.Join(err, a.Body.Close())
	}
	watch.r, watch.ctx = a.Body, ctx
	info := objstore.ObjectInfo{Key: key, Size: total, ETag: a.ETag, Modified: a.Modified}
	return objstore.ExactBody(watch, a.Length), info, nil
}

func rangeHeader(offset, length int64) string {
	switch {
	case offset == 0 && length < 0:
		return ""
	case length < 0:
		return fmt.Sprintf("bytes=%d-", offset)
	case length-1 > math.MaxInt64-offset:
		return fmt.Sprintf("bytes=%d-%d", offset, int64(math.MaxInt64))
	}
	return fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
}

// parseContentRange checks "bytes FIRST-LAST/TOTAL" against what was asked for
// and returns TOTAL.
func parseContentRange(s string, offset, length int64) (int64, error) {
	span, total, ok := strings.Cut(strings.TrimPrefix(s, "bytes "), "/")
	first, last, ok2 := strings.Cut(span, "-")
	f, err1 := strconv.ParseInt(first, 10, 64)
	l, err2 := strconv.ParseInt(last, 10, 64)
	n, err3 := strconv.ParseInt(total, 10, 64)
	if !ok || !ok2 || errors.Join(err1, err2, err3) != nil || f != offset || l-f+1 != length || l >= n {
		return 0, fmt.Errorf("answer with range %q to a get from %d: %w", s, offset, objstore.ErrUnsuitable)
	}
	return n, nil
}

// Head implements objstore.Reader.
func (b *Bucket) Head(ctx context.Context, key string) (objstore.ObjectInfo, error) {
	var info objstore.ObjectInfo
	err := objstore.CheckKey(key)
	if err == nil {
		err = b.reads.Do(ctx, func() error {
			return b.try(ctx, false, func(ctx context.Context) (err error) {
				info, err = b.c.Head(ctx, key)
				return err
			})
		})
	}
	if err != nil {
		return objstore.ObjectInfo{}, fmt.Errorf("head %q: %w", key, err)
	}
	info.Key = key
	return info, nil
}

// List implements objstore.Reader.
func (b *Bucket) List(ctx context.Context, prefix, after string, limit int) ([]objstore.ObjectInfo, bool, error) {
	var list []objstore.ObjectInfo
	var more bool
	err := objstore.CheckList(limit)
	if err == nil {
		err = b.reads.Do(ctx, func() error {
			return b.try(ctx, false, func(ctx context.Context) (err error) {
				list, more, err = b.c.List(ctx, prefix, after, limit)
				return err
			})
		})
	}
	if err != nil {
		return nil, false, fmt.Errorf("list %q: %w", prefix, err)
	}
	return list, more, nil
}

// Delete implements objstore.Writer.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	err := objstore.CheckKey(key)
	if err == nil {
		err = b.reads.Do(ctx, func() error {
			return b.try(ctx, true, func(ctx context.Context) error { return b.c.Delete(ctx, key) })
		})
	}
	if err != nil && !errors.Is(err, objstore.ErrNotFound) {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	return nil
}

// DeleteMany implements objstore.Writer.
func (b *Bucket) DeleteMany(ctx context.Context, keys []string) (map[string]error, error) {
	if err := objstore.CheckDeleteMany(keys); err != nil {
		return nil, fmt.Errorf("delete many: %w", err)
	}
	var plain []string
	failed := make(map[string]error)
	for _, k := range keys {
		if xmlSafe(k) {
			plain = append(plain, k)
		} else if err := b.Delete(ctx, k); err != nil {
			failed[k] = err
		}
	}
	if len(plain) == 0 {
		return failed, nil
	}
	var left map[string]Failure
	err := b.reads.Do(ctx, func() error {
		return b.try(ctx, true, func(ctx context.Context) (err error) {
			left, err = b.c.DeleteMany(ctx, plain)
			return err
		})
	})
	if err != nil {
		return failed, fmt.Errorf("delete many: %w", err)
	}
	for k, f := range left {
		if err := Classify(ctx, f, true); !errors.Is(err, objstore.ErrNotFound) {
			failed[k] = err
		}
	}
	return failed, nil
}

// xmlSafe reports whether a key comes through an XML document unchanged.
func xmlSafe(key string) bool {
	if !utf8.ValidString(key) {
		return false
	}
	for _, r := range key {
		if r < 0x20 || r == 0x7f || r == 0xfffe || r == 0xffff {
			return false
		}
	}
	return true
}

// watch cancels a request when its answer, or the next piece of its body, does
// not come in time. It is the body while that is read.
type watch struct {
	r     io.ReadCloser
	ctx   context.Context // the caller's
	limit time.Duration
	timer *time.Timer
	end   context.CancelFunc
}

func newWatch(limit time.Duration, cancel context.CancelFunc) *watch {
	w := &watch{limit: limit, end: cancel}
	w.timer = time.AfterFunc(limit, cancel)
	return w
}

func (w *watch) start() { w.timer.Reset(w.limit) }

// stop reports whether the time was over.
func (w *watch) stop() bool { return !w.timer.Stop() }

func (w *watch) Read(p []byte) (int, error) {
	w.start()
	n, err := w.r.Read(p)
	late := w.stop()
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	if cerr := w.ctx.Err(); cerr != nil {
		return n, fmt.Errorf("%w: %w", objstore.ErrUnknown, cerr)
	}
	if late {
		return n, fmt.Errorf("%w: no data for %s", objstore.ErrUnknown, w.limit)
	}
	return n, err
}

func (w *watch) Close() error {
	w.timer.Stop()
	w.end() // first: the rest of a large body is not worth reading
	_ = w.r.Close()
	return nil
}

// EncodeCRC returns the value of S3's checksum headers.
func EncodeCRC(crc uint32) string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], crc)
	return base64.StdEncoding.EncodeToString(b[:])
}

// Unquote takes the quotes off an ETag.
func Unquote(etag string) string { return strings.Trim(etag, `"`) }

var _ objstore.Bucket = (*Bucket)(nil)
