package s3core

import (
	"context"
	"io"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Client does one HTTP exchange a call, without retries. ETags are without
// quotes on this side of it.
type Client interface {
	Objects
	Uploads
	// Failure describes an error that one of the other methods returned.
	Failure(err error) Failure
}

// Objects are the calls on whole objects.
type Objects interface {
	// Get asks for a range in the form of the HTTP header, or for all if empty.
	Get(ctx context.Context, key, byteRange string) (GetAnswer, error)
	Head(ctx context.Context, key string) (objstore.ObjectInfo, error)
	List(ctx context.Context, prefix, after string, limit int) (objects []objstore.ObjectInfo, more bool, err error)
	Put(ctx context.Context, r PutRequest) (etag string, err error)
	Delete(ctx context.Context, key string) error
	// DeleteMany takes keys that XML can hold; failed has those that remain.
	DeleteMany(ctx context.Context, keys []string) (failed map[string]Failure, err error)
}

// Uploads are the calls of a multipart upload.
type Uploads interface {
	CreateUpload(ctx context.Context, key string) (id string, err error)
	PutPart(ctx context.Context, u Upload, number int, body *io.SectionReader, crc uint32) (etag string, err error)
	CompleteUpload(ctx context.Context, u Upload, parts []Part, r PutRequest) (etag string, err error)
	AbortUpload(ctx context.Context, u Upload) error
}

// GetAnswer is the answer to a get.
type GetAnswer struct {
	Body     io.ReadCloser
	Length   int64  // of the body; -1 when not told
	Range    string // the Content-Range header, empty when all was sent
	ETag     string
	Modified time.Time
}

// PutRequest is a put, or the end of an upload, for which Body is only its size.
type PutRequest struct {
	Key         string
	Body        *io.SectionReader
	CRC32C      uint32
	IfNoneMatch bool
	IfMatch     string
}

// Upload names a multipart upload.
type Upload struct{ Key, ID string }

// Part is a part that was sent.
type Part struct {
	Number int
	ETag   string
	CRC32C uint32
}
