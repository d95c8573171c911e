package objstore

import (
	"errors"
	"fmt"
	"io"
)

// ExactBody returns r cut at size bytes, with an early end or any other error
// of r turned into one that wraps ErrUnknown, as Reader.Get asks. Drivers use it.
func ExactBody(r io.ReadCloser, size int64) io.ReadCloser {
	return &exactBody{r: r, left: size}
}

type exactBody struct {
	r    io.ReadCloser
	left int64
}

func (b *exactBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, io.EOF
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case err == nil:
	case b.left == 0:
		err = io.EOF
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("body ends %d bytes early: %w: %w", b.left, ErrUnknown, io.ErrUnexpectedEOF)
	case !errors.Is(err, ErrUnknown):
		err = fmt.Errorf("read body: %w: %w", ErrUnknown, err)
	}
	return n, err
}

func (b *exactBody) Close() error { return b.r.Close() }
