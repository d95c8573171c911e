// Package objstore is the contract of a bucket. It assumes strong consistency:
// a Get, Head or List that starts after a Put or Delete returned sees it
// (Amazon S3 since 2020-12, MinIO, GCS, R2). Drivers live in sub-packages
// (dir, s3, minio), the conformance suite in objstoretest.
package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

var (
	// ErrNotFound: no object of that key. Also the answer to an IfMatch put on
	// an absent key, as on S3 (404 NoSuchKey).
	ErrNotFound = errors.New("objstore: object not found")
	// ErrPrecondition: IfNoneMatch found an object, or IfMatch found another
	// one (S3: 412). After an unknown outcome it may be one's own success:
	// read the object back.
	ErrPrecondition = errors.New("objstore: precondition failed")
	// ErrUnknown: the request may or may not have been carried out (timeout,
	// cut connection). Look before trying again.
	ErrUnknown = errors.New("objstore: outcome unknown")
	// ErrThrottled: the store asks for less (S3: 503 SlowDown, 429) or had an
	// internal error (500). Nothing was done; try again later.
	ErrThrottled = errors.New("objstore: store is busy")
	// ErrDenied: credentials are missing, expired or not allowed.
	ErrDenied = errors.New("objstore: access denied")
	// ErrClock: denied because the store's clock and this machine's differ too
	// much (S3: 403 RequestTimeTooSkewed, by more than 15 minutes).
	ErrClock = fmt.Errorf("%w: the clocks of the store and of this machine differ too much", ErrDenied)
	// ErrChecksum: the bytes received are not those of the checksum.
	ErrChecksum = errors.New("objstore: checksum mismatch")
	// ErrNoBucket: the bucket itself is not there.
	ErrNoBucket = errors.New("objstore: bucket not found")
	// ErrRange: the range lies outside the object (S3: 416).
	ErrRange = errors.New("objstore: range not satisfiable")
)

// MaxKeyLen is S3's limit on a key, in bytes.
const MaxKeyLen = 1024

// ObjectInfo describes an object.
type ObjectInfo struct {
	Key      string
	Size     int64
	ETag     string // opaque; for PutOptions.IfMatch
	Modified time.Time
}

// PutOptions are the conditions of a Put. At most one of IfNoneMatch and
// IfMatch may be set.
type PutOptions struct {
	// IfNoneMatch makes the put create-only (S3: If-None-Match: *).
	IfNoneMatch bool
	// IfMatch, when set, replaces only the object with this ETag.
	IfMatch string
	// CRC32C of the whole body, which the store checks before the object
	// becomes visible; nil lets the driver compute it.
	CRC32C *uint32
}

// Body is what a Put sends: Size bytes that can be read again from the start
// for a retry. *io.SectionReader and *bytes.Reader are bodies.
type Body interface {
	io.Reader
	io.ReaderAt
	io.Seeker
	Size() int64
}

// Reader reads a bucket.
type Reader interface {
	// Get streams length bytes from offset; length < 0 means to the end.
	// Reading may end in ErrUnknown or ErrThrottled; a body shorter than asked
	// is an error, never a silent end. The caller closes it. A range that
	// begins at or behind the object's end is ErrRange, one that only ends
	// behind it is cut.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, ObjectInfo, error)
	Head(ctx context.Context, key string) (ObjectInfo, error)
	// List returns up to limit objects (1 to 1000) whose keys start with
	// prefix and are greater than after, in byte order of the keys. more says
	// that there are further ones.
	List(ctx context.Context, prefix, after string, limit int) (objects []ObjectInfo, more bool, err error)
}

// Writer changes a bucket. An object appears whole or not at all.
type Writer interface {
	Put(ctx context.Context, key string, body Body, opts PutOptions) (ObjectInfo, error)
	// Delete removes the object; an absent key is no error (S3).
	Delete(ctx context.Context, key string) error
	// DeleteMany removes up to 1000 keys and returns, by key, those that it
	// could not remove. err is for the request as a whole.
	DeleteMany(ctx context.Context, keys []string) (failed map[string]error, err error)
}

// Bucket is a Reader and a Writer. Methods may be called from several goroutines.
type Bucket interface {
	Reader
	Writer
}

// Retriable reports whether the same request may succeed later without a
// change by anyone: ErrThrottled and ErrUnknown (for which look first).
func Retriable(err error) bool {
	return errors.Is(err, ErrThrottled) || errors.Is(err, ErrUnknown)
}
