package objstore_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// counted counts the requests for bytes.
type counted struct {
	objstore.Bucket
	gets int
}

func (c *counted) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, objstore.ObjectInfo, error) {
	c.gets++
	return c.Bucket.Get(ctx, key, offset, length)
}

// Reads of all kinds give what bytes.Reader gives, and small ones in a row come from few requests.
func TestReaderAt(t *testing.T) {
	body := make([]byte, 100_000)
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := range body {
		body[i] = byte(rnd.Uint32())
	}
	b := &counted{Bucket: objstore.NewMem()}
	if _, err := b.Put(t.Context(), "k", bytes.NewReader(body), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	want, r := bytes.NewReader(body), objstore.NewReaderAt(t.Context(), b, "k", 4096)
	at := int64(0)
	for range 2000 {
		n := 1 + rnd.IntN(6000)
		if rnd.IntN(3) == 0 {
			at = int64(rnd.IntN(len(body) + 100))
		}
		p, q := make([]byte, n), make([]byte, n)
		got, err := r.ReadAt(p, at)
		should, wantErr := want.ReadAt(q, at)
		if got != should || !bytes.Equal(p[:got], q[:got]) || (err == io.EOF) != (wantErr == io.EOF) || err != nil && err != io.EOF {
			t.Fatalf("%d bytes at %d: %d, %v; want %d, %v", n, at, got, err, should, wantErr)
		}
		at += int64(got)
	}
	b.gets = 0
	r = objstore.NewReaderAt(t.Context(), b, "k", 32<<10)
	if all, err := io.ReadAll(io.NewSectionReader(r, 0, int64(len(body)))); err != nil || !bytes.Equal(all, body) || b.gets > 6 {
		t.Errorf("%d bytes, %v, from %d requests", len(all), err, b.gets)
	}
	if _, err := objstore.NewReaderAt(t.Context(), b, "other", 4096).ReadAt(make([]byte, 10), 0); err == nil || err == io.EOF {
		t.Errorf("an object that is not there: %v", err)
	}
}
