package s3_test

import (
	"context"
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
	})
}
