package s3core

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// conflictTries is how often a put is sent when the store answers 409: two
// conditional requests met and neither was judged.
const conflictTries = 4

// Put implements objstore.Writer. Without a given checksum the body is read
// twice. A put is sent once, so that a precondition that fails is never the
// echo of an own earlier attempt; only a 409, of which nothing was done, is
// repeated.
func (b *Bucket) Put(ctx context.Context, key string, body objstore.Body, opts objstore.PutOptions) (objstore.ObjectInfo, error) {
	info, err := b.put(ctx, key, body, opts)
	if err != nil {
		return objstore.ObjectInfo{}, fmt.Errorf("put %q: %w", key, err)
	}
	return info, nil
}

func (b *Bucket) put(ctx context.Context, key string, body objstore.Body, opts objstore.PutOptions) (objstore.ObjectInfo, error) {
	none := objstore.ObjectInfo{}
	if err := errors.Join(ctx.Err(), objstore.CheckPut(key, opts)); err != nil {
		return none, err
	}
	size := body.Size()
	r := PutRequest{Key: key, Body: io.NewSectionReader(body, 0, size), IfNoneMatch: opts.IfNoneMatch, IfMatch: opts.IfMatch}
	if opts.CRC32C != nil {
		r.CRC32C = *opts.CRC32C
	} else {
		sum, err := objstore.ChecksumBody(body)
		if err != nil {
			return none, err
		}
		r.CRC32C = sum
	}
	send := func(ctx context.Context) (string, error) { return b.c.Put(ctx, r) }
	if size > b.o.SinglePut {
		u, parts, err := b.upload(ctx, r, body)
		if err != nil {
			return none, err
		}
		defer b.abort(ctx, u)
		send = func(ctx context.Context) (string, error) { return b.c.CompleteUpload(ctx, u, parts, r) }
	}
	var etag string
	var err error
	for n := range conflictTries {
		if n > 0 {
			if serr := objstore.Sleep(ctx, b.reads.Backoff(n-1)); serr != nil {
				return none, fmt.Errorf("%w: %w", serr, err)
			}
			r.Body = io.NewSectionReader(body, 0, size)
		}
		var conflict bool
		if etag, conflict, err = b.send(ctx, size, send); !conflict {
			break
		}
	}
	if err != nil {
		return none, err
	}
	return objstore.ObjectInfo{Key: key, Size: size, ETag: etag, Modified: time.Now()}, nil
}

// send sends a put within its time.
func (b *Bucket) send(ctx context.Context, size int64, f func(ctx context.Context) (string, error)) (etag string, conflict bool, err error) {
	actx, cancel := context.WithTimeout(ctx, b.o.Timeout+time.Duration(size/slowest)*time.Second)
	defer cancel()
	if etag, err = f(actx); err == nil {
		return etag, false, nil
	}
	fail := b.c.Failure(err)
	if fail.Code == "NoSuchUpload" {
		// Completed by an attempt whose answer was lost, or aborted.
		return "", false, fmt.Errorf("%w: %w", objstore.ErrUnknown, err)
	}
	return "", fail.Status == http.StatusConflict, Classify(ctx, fail, true)
}

// upload sends the parts of a large object; nothing is visible afterwards.
func (b *Bucket) upload(ctx context.Context, r PutRequest, body objstore.Body) (Upload, []Part, error) {
	u := Upload{Key: r.Key}
	err := b.reads.Do(ctx, func() error {
		return b.try(ctx, false, func(ctx context.Context) (err error) {
			u.ID, err = b.c.CreateUpload(ctx, r.Key)
			return err
		})
	})
	if err != nil {
		return u, nil, fmt.Errorf("start upload: %w", err)
	}
	parts, err := b.parts(ctx, u, body)
	if err != nil {
		b.abort(ctx, u)
		return u, nil, err
	}
	return u, parts, nil
}

func (b *Bucket) parts(ctx context.Context, u Upload, body objstore.Body) ([]Part, error) {
	size := body.Size()
	piece := max(b.o.PartSize, (size+maxParts-1)/maxParts)
	var parts []Part
	for pos := int64(0); pos < size; pos += piece {
		n := min(piece, size-pos)
		crc, err := objstore.ChecksumBody(io.NewSectionReader(body, pos, n))
		if err != nil {
			return nil, err
		}
		p := Part{Number: len(parts) + 1, CRC32C: crc}
		err = b.reads.Do(ctx, func() (err error) {
			p.ETag, _, err = b.send(ctx, n, func(ctx context.Context) (string, error) {
				return b.c.PutPart(ctx, u, p.Number, io.NewSectionReader(body, pos, n), crc)
			})
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("send part %d: %w", p.Number, err)
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// abort drops the parts of an upload that is not complete; on a complete one
// it does nothing. The bucket's lifecycle rule drops what this cannot.
func (b *Bucket) abort(ctx context.Context, u Upload) {
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.o.Timeout)
	defer cancel()
	_ = b.c.AbortUpload(actx, u)
}
