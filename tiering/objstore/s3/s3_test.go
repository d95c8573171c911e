package s3_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/objstoretest"
	"github.com/cirrolog/cirrolog/tiering/objstore/s3"
)

func options(e minio.Endpoint) s3.Options {
	return s3.Options{Bucket: e.Bucket, Endpoint: e.URL, Region: "us-east-1", AccessKey: e.AccessKey, SecretKey: e.SecretKey}
}

func TestMinIO(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("suite", func(t *testing.T) { // ends before the leak check
		e := minio.Start(t)
		b, err := s3.New(context.Background(), options(e))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		objstoretest.Run(t, func(*testing.T) objstore.Bucket { return b })
		multipart(t, e)
	})
}

// multipart sends an object in parts, conditionally and with checksums.
func multipart(t *testing.T, e minio.Endpoint) {
	o := options(e)
	o.SinglePut, o.PartSize = 1<<20, 5<<20
	b, err := s3.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	ctx := context.Background()
	data := make([]byte, 12<<20+345)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	opts := objstore.PutOptions{IfNoneMatch: true}
	info, err := b.Put(ctx, "parts", bytes.NewReader(data), opts)
	if err != nil {
		t.Fatal(err)
	}
	head, err := b.Head(ctx, "parts")
	if err != nil || head.Size != int64(len(data)) || head.ETag != info.ETag {
		t.Fatalf("head %+v, %v; put answered %+v", head, err, info)
	}
	r, _, err := b.Get(ctx, "parts", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes came back, %v", len(got), err)
	}
	if _, err := b.Put(ctx, "parts", bytes.NewReader(data), opts); !errors.Is(err, objstore.ErrPrecondition) {
		t.Fatalf("create-only put over an object: %v", err)
	}
	if _, err := b.Put(ctx, "parts", bytes.NewReader(data[1:]), objstore.PutOptions{IfMatch: info.ETag}); err != nil {
		t.Fatalf("swap: %v", err)
	}
	if _, err := b.Put(ctx, "parts", bytes.NewReader(data), objstore.PutOptions{IfMatch: info.ETag}); !errors.Is(err, objstore.ErrPrecondition) {
		t.Fatalf("swap with an old etag: %v", err)
	}
	wrong := uint32(1)
	if _, err := b.Put(ctx, "wrong", bytes.NewReader(data), objstore.PutOptions{CRC32C: &wrong}); !errors.Is(err, objstore.ErrChecksum) {
		t.Fatalf("put with a wrong checksum: %v", err)
	}
	if _, err := b.Head(ctx, "wrong"); !errors.Is(err, objstore.ErrNotFound) {
		t.Fatalf("head after it: %v", err)
	}
}

// A list goes on by the key that it is to begin behind where the store does not take its token any more.
func TestForgottenToken(t *testing.T) {
	e := minio.Start(t)
	b, err := s3.New(t.Context(), options(e))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	for _, key := range []string{"p/1", "p/2", "p/3"} {
		if _, err := b.Put(t.Context(), key, strings.NewReader("x"), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	first, more, err := b.List(t.Context(), "p/", "", 1)
	if err != nil || len(first) != 1 || !more {
		t.Fatal(first, more, err)
	}
	b.KeepToken("p/", "p/1", "not a token")
	rest, more, err := b.List(t.Context(), "p/", "p/1", 10)
	if err != nil || len(rest) != 2 || more {
		t.Errorf("%v, more %t, %v", rest, more, err)
	}
}
