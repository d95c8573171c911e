package minio_test

import (
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/s3"
)

func TestShared(t *testing.T) {
	var server minio.Shared
	a, b := server.Start(t), server.Start(t)
	if a.URL != b.URL {
		t.Errorf("two servers, %s and %s", a.URL, b.URL)
	}
	if a.Bucket == b.Bucket && os.Getenv("CIRROLOG_TEST_S3_BUCKET") == "" {
		t.Error("one bucket for two tests")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	bkt, err := s3.New(ctx, s3.Options{Bucket: a.Bucket, Endpoint: a.URL, Region: "us-east-1", AccessKey: a.AccessKey, SecretKey: a.SecretKey})
	if err != nil {
		t.Fatal(err)
	}
	defer bkt.Close()
	if _, err := objstore.Probe(ctx, bkt); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("CIRROLOG_TEST_S3_ENDPOINT") != "" {
		return
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL, strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		_ = resp.Body.Close()
		t.Error("the server still answers")
	}
}
