package objstore

import (
	"context"
	"errors"
	"io"
)

// ReaderAt reads an object at any place, with retries. Who reads on where the last read ended gets it from one larger
// request. It is for one goroutine.
type ReaderAt struct {
	ctx    context.Context // of what reads
	bucket Reader
	key    string
	ahead  int
	next   int64  // where the last read ended
	block  []byte // of the object from at on
	at     int64
}

// NewReaderAt returns a reader of one object; ahead is how many bytes it asks for at once where they are read one after
// the other.
func NewReaderAt(ctx context.Context, b Reader, key string, ahead int) *ReaderAt {
	return &ReaderAt{ctx: ctx, bucket: b, key: key, ahead: ahead, next: -1}
}

// ReadAt implements io.ReaderAt.
func (r *ReaderAt) ReadAt(p []byte, at int64) (n int, err error) {
	sequential := at == r.next
	for n < len(p) && err == nil {
		pos := at + int64(n)
		if pos >= r.at && pos < r.at+int64(len(r.block)) {
			n += copy(p[n:], r.block[pos-r.at:])
			continue
		}
		if !sequential || len(p)-n >= r.ahead {
			var got int
			got, err = r.get(p[n:], pos)
			n += got
			continue
		}
		if cap(r.block) < r.ahead {
			r.block = make([]byte, r.ahead)
		}
		var got int
		got, err = r.get(r.block[:r.ahead], pos)
		r.block, r.at = r.block[:got], pos
		if err == io.EOF && got > 0 {
			err = nil // the next look tells
		}
	}
	r.next = at + int64(n)
	return n, err
}

// get fills p from one request. What is less ends with io.EOF.
func (r *ReaderAt) get(p []byte, at int64) (n int, err error) {
	err = Retry{}.Do(r.ctx, func() error {
		body, _, err := r.bucket.Get(r.ctx, r.key, at, int64(len(p)))
		if err != nil {
			return err
		}
		defer func() { _ = body.Close() }()
		n, err = io.ReadFull(body, p)
		return err
	})
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrRange) {
		err = io.EOF
	}
	return n, err
}
