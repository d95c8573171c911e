package httpgate

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	zstdWindow = 8 << 20  // bytes of the largest window
	zstdMemory = 64 << 20 // bytes of a frame that is decoded at once
	zstdBodies = 64       // at work; each holds up to a window
)

var (
	errTooLarge = errors.New("body is too large")
	errEncoding = errors.New("the body does not have the encoding of its Content-Encoding, or ends early")
)

// body is a request's body, decoded, with its bounds.
type body struct {
	r     io.Reader
	left  int64 // bytes that may still come out
	bad   bool  // reading failed
	close func()
}

// openBody decodes Content-Encoding. limit bounds the bytes before and after.
// stall is the time between two reads; 0: the whole body has Limits.BodyTime.
func (s *Server) openBody(w http.ResponseWriter, r *http.Request, limit int64, stall time.Duration) (*body, error) {
	enc := strings.ToLower(strings.TrimSpace(r.Header.Get("Content-Encoding")))
	before := limit
	if enc != "" && enc != "identity" {
		before += limit/64 + 1024 // what does not compress grows
	}
	raw := &deadlineReader{r: http.MaxBytesReader(w, r.Body, before), rc: http.NewResponseController(w), stall: stall}
	if stall == 0 {
		_ = raw.rc.SetReadDeadline(time.Now().Add(s.limits.BodyTime)) // the test recorder has none
	}
	b := &body{r: raw, left: limit}
	b.close = func() {
		if !b.bad { // the server would wait without end for the rest of a bad one
			_ = raw.rc.SetReadDeadline(time.Time{})
		}
	}
	switch enc {
	case "", "identity":
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(raw)
		if err != nil {
			return nil, decodeError(err)
		}
		b.r = z
	case "zstd":
		if !s.zstds.take() {
			return nil, errBusy
		}
		z, err := zstd.NewReader(raw, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderMaxMemory(zstdMemory))
		if err != nil {
			s.zstds.release()
			return nil, decodeError(err)
		}
		b.r = z
		reset := b.close
		b.close = func() { z.Close(); s.zstds.release(); reset() }
	default:
		return nil, fail(415, "Content-Encoding %q: want gzip, zstd or identity.", enc)
	}
	return b, nil
}

// decodeError tells damage of the encoding from errors of the connection.
func decodeError(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", errEncoding, err)
}

func (b *body) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		b.bad = true
		return 0, errTooLarge
	}
	if err != nil && err != io.EOF {
		b.bad = true
		err = decodeError(err)
	}
	return n, err
}

// deadlineReader gives every read the time stall; 0: no time of its own.
type deadlineReader struct {
	r     io.Reader
	rc    *http.ResponseController
	stall time.Duration
}

func (d *deadlineReader) Read(p []byte) (int, error) {
	if d.stall > 0 {
		_ = d.rc.SetReadDeadline(time.Now().Add(d.stall))
	}
	return d.r.Read(p)
}

// readAll reads a body as a whole.
func (s *Server) readAll(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	b, err := s.openBody(w, r, limit, 0)
	if err != nil {
		return nil, err
	}
	defer b.close()
	var buf bytes.Buffer
	if r.ContentLength > 0 && r.ContentLength <= limit {
		buf.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	_, err = buf.ReadFrom(b)
	return buf.Bytes(), err
}
