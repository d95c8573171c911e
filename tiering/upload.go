package tiering

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

var (
	// errDamaged: the local bytes are not those that were appended.
	errDamaged = errors.New("local bytes are damaged")
	// errConflict: an object of this key holds other bytes. Keys carry the
	// incarnation, so no one else can have written it.
	errConflict = errors.New("object exists with other content")
)

// headTime bounds a look at the bucket, unless MinTime is less.
const headTime = 15 * time.Second

// brief is the context of a look at the bucket. It does not end with the
// upload's own, whose time may be over when the look is needed.
func (u *Uploader) brief() (context.Context, context.CancelFunc) {
	return context.WithTimeout(u.ctx, min(headTime, u.o.MinTime))
}

// upload brings one segment into the bucket and then into the index, in this
// order (bytes before references), and returns its row.
func (u *Uploader) upload(s LocalSegment) (row Segment, err error) {
	src, err := s.Open()
	if err != nil {
		return row, fmt.Errorf("open segment %s %d: %w", s.TP, s.Base, err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	row = src.Segment()
	row.Incarnation, row.Size, row.Uploaded = u.o.Incarnation, src.Size(), u.o.Now().UnixMilli()
	if row.TP != s.TP || row.Base != s.Base || row.Last != s.Last || row.LogSize < 0 || row.LogSize > row.Size {
		return row, fmt.Errorf("open segment %s %d-%d: got %s of %d bytes", s.TP, s.Base, s.Last, row.Key(), row.Size)
	}
	limit := u.o.MinTime + time.Duration(float64(row.Size)/float64(u.o.MinRate)*float64(time.Second))
	ctx, cancel := context.WithTimeoutCause(u.ctx, limit, fmt.Errorf("upload took longer than %v", limit))
	defer cancel()
	if !u.placed(row.SegmentKey) {
		if err := u.place(ctx, src, row); err != nil {
			return row, err
		}
		u.setPlaced(row.SegmentKey)
	}
	// A store may say yes and keep nothing: look before anything relies on it.
	if err := u.look(row); err != nil {
		u.setPlaced(SegmentKey{TP: row.TP})
		return row, err
	}
	if err := u.o.Index.Add(ctx, row); err != nil {
		return row, fmt.Errorf("index %s: %w", row.Key(), err)
	}
	return row, nil
}

// place puts the object. When it returns nil the bucket said, in whatever
// way, that the object of this key has these bytes.
func (u *Uploader) place(ctx context.Context, src Source, row Segment) error {
	crc := src.CRC32C()
	_, err := u.o.Bucket.Put(ctx, row.Key(), io.NewSectionReader(src, 0, row.Size), objstore.PutOptions{IfNoneMatch: true, CRC32C: &crc})
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && u.ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", err, cause) // the watchdog
	}
	err = fmt.Errorf("put %s: %w", row.Key(), err)
	switch {
	case u.ctx.Err() != nil:
		return err
	case errors.Is(err, objstore.ErrPrecondition):
		// An earlier attempt arrived after all, or this one did and its
		// answer was lost.
		return u.same(src, row)
	case errors.Is(err, objstore.ErrUnknown), ctx.Err() != nil:
		// Look before trying again; if it is not there, the next attempt is
		// create-only and can do no harm.
		if lookErr := u.same(src, row); lookErr == nil || errors.Is(lookErr, errConflict) {
			return lookErr
		}
		return err
	case errors.Is(err, objstore.ErrChecksum):
		return u.blame(src, err)
	}
	return err
}

// look checks that the object is in the bucket with its size.
func (u *Uploader) look(row Segment) error {
	ctx, cancel := u.brief()
	defer cancel()
	info, err := u.o.Bucket.Head(ctx, row.Key())
	if err != nil {
		return fmt.Errorf("look for %s: %w", row.Key(), err)
	}
	if info.Size != row.Size {
		return fmt.Errorf("look for %s: %d bytes, want %d: %w", row.Key(), info.Size, row.Size, errConflict)
	}
	return nil
}

// maxProof bounds how much of an object same compares.
const maxProof = 1 << 20

// same checks that the object in the bucket is the one of src: its size and
// its last bytes, where the footer with the checksum of everything is.
func (u *Uploader) same(src Source, row Segment) error {
	if err := u.look(row); err != nil {
		return err
	}
	n := min(row.Size-row.LogSize, maxProof)
	want := make([]byte, n)
	if k, err := src.ReadAt(want, row.Size-n); int64(k) != n {
		return fmt.Errorf("read segment: %w", err)
	}
	ctx, cancel := u.brief()
	defer cancel()
	got, err := getAll(ctx, u.o.Bucket, row.Key(), row.Size-n, n)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("compare %s: %w", row.Key(), errConflict)
	}
	return nil
}

// blame finds out after a checksum error whether the disk or the way to the
// bucket has damaged the bytes.
func (u *Uploader) blame(src Source, err error) error {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	if _, readErr := io.Copy(h, io.NewSectionReader(src, 0, src.Size())); readErr != nil {
		return errors.Join(err, fmt.Errorf("read segment: %w", readErr))
	}
	if got := h.Sum32(); got != src.CRC32C() {
		return fmt.Errorf("%w: checksum %08x on disk, %08x when appended: %w", errDamaged, got, src.CRC32C(), err)
	}
	return err
}

// getAll reads exactly n bytes of an object from offset.
func getAll(ctx context.Context, b objstore.Reader, key string, offset, n int64) ([]byte, error) {
	buf := make([]byte, n)
	if err := getInto(ctx, b, key, offset, buf); err != nil {
		return nil, err
	}
	return buf, nil
}

// getInto fills buf with the bytes of an object from offset.
func getInto(ctx context.Context, b objstore.Reader, key string, offset int64, buf []byte) error {
	if len(buf) == 0 {
		return nil
	}
	body, info, err := b.Get(ctx, key, offset, int64(len(buf)))
	if err != nil {
		return fmt.Errorf("get %s: %w", key, err)
	}
	defer body.Close()
	if end := offset + int64(len(buf)); info.Size > 0 && info.Size < end {
		return fmt.Errorf("get %s: %w: it has %d bytes, want those up to %d", key, objstore.ErrRange, info.Size, end)
	}
	if _, err := io.ReadFull(body, buf); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: cut short: %w", objstore.ErrUnknown, err)
		}
		return fmt.Errorf("get %s: %w", key, err)
	}
	return nil
}
