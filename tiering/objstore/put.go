package objstore

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const copyPiece = 1 << 20

// PutCreateOnly stores body under key unless another object is there, and
// settles unknown outcomes by looking. created is true when the key now holds
// exactly these bytes, whether this call, an earlier one or someone else
// stored them, so a body that claims something must hold a nonce of its
// writer; it is false with ErrPrecondition when it holds others. Busy
// stores are tried again as the default Retry says; the
// last error is returned, which for ErrUnknown says that the object may still
// appear. opts.IfNoneMatch is implied and opts.IfMatch refused.
func PutCreateOnly(ctx context.Context, b Bucket, key string, body Body, opts PutOptions) (created bool, err error) {
	opts.IfNoneMatch = true
	if err := CheckPut(key, opts); err != nil {
		return false, err
	}
	if opts.CRC32C == nil {
		sum, err := ChecksumBody(body)
		if err != nil {
			return false, fmt.Errorf("create %q: %w", key, err)
		}
		opts.CRC32C = &sum
	}
	policy := Retry{}.withDefaults()
	for attempt := range policy.Attempts {
		if attempt > 0 {
			if serr := Sleep(ctx, policy.Backoff(attempt-1)); serr != nil {
				return false, fmt.Errorf("create %q: %w: %w", key, serr, err)
			}
		}
		if _, err := body.Seek(0, io.SeekStart); err != nil {
			return false, fmt.Errorf("create %q: rewind body: %w", key, err)
		}
		if _, err = b.Put(ctx, key, body, opts); err == nil {
			return true, nil
		}
		if errors.Is(err, ErrPrecondition) || errors.Is(err, ErrUnknown) {
			same, lerr := holds(ctx, b, key, body.Size(), *opts.CRC32C)
			switch {
			case lerr == nil && same:
				return true, nil
			case lerr == nil:
				return false, fmt.Errorf("create %q: another object is there: %w", key, ErrPrecondition)
			case errors.Is(lerr, ErrNotFound): // not carried out, or deleted since: once more
			case Retriable(lerr):
				err = fmt.Errorf("look after %w: %w", ErrUnknown, lerr)
			default:
				return false, fmt.Errorf("create %q: look: %w: %w", key, err, lerr)
			}
		} else if !Retriable(err) {
			return false, fmt.Errorf("create %q: %w", key, err)
		}
	}
	return false, fmt.Errorf("create %q: %d attempts: %w", key, policy.Attempts, err)
}

// holds reports whether key's object has this size and checksum.
func holds(ctx context.Context, b Reader, key string, size int64, sum uint32) (bool, error) {
	info, err := b.Head(ctx, key)
	if err != nil {
		return false, err
	}
	if info.Size != size {
		return false, nil
	}
	if size == 0 {
		return true, nil
	}
	r, _, err := b.Get(ctx, key, 0, -1)
	if err != nil {
		return false, err
	}
	h := crc32.New(castagnoli())
	n, err := io.CopyBuffer(h, io.LimitReader(r, size+1), make([]byte, min(size+1, copyPiece)))
	if err = errors.Join(err, r.Close()); err != nil {
		return false, err
	}
	return n == size && h.Sum32() == sum, nil
}

// ChecksumBody returns the CRC32C of the whole body, read with ReadAt, so that
// the body's position stays.
func ChecksumBody(body Body) (uint32, error) {
	h := crc32.New(castagnoli())
	size := body.Size()
	buf := make([]byte, min(size+1, copyPiece))
	n, err := io.CopyBuffer(h, io.NewSectionReader(body, 0, size), buf)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, fmt.Errorf("read body: %w", err)
	}
	return h.Sum32(), nil
}
