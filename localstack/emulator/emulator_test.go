package emulator

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	miniogo "github.com/cirrolog/cirrolog/tiering/objstore/minio"
	"github.com/cirrolog/cirrolog/tiering/objstore/objstoretest"
	"github.com/cirrolog/cirrolog/tiering/objstore/s3"
)

// What the stores get wrong, as subtests of the suite; docs/localstack.md has them in a table.
var (
	wrongInLocalStack = []string{"checksum of a replacement", "list of escaped keys"}
	wrongInMoto       = []string{ // races now and then only: in one of a dozen runs two of 32 puts created one object
		"race of creators", "race of swappers", "checksum", "checksum of a replacement",
	}
)

func options(e minio.Endpoint) s3.Options {
	return s3.Options{Bucket: e.Bucket, Endpoint: e.URL, Region: "us-east-1", AccessKey: e.AccessKey, SecretKey: e.SecretKey}
}

func open(t *testing.T, o s3.Options) objstore.Bucket {
	t.Helper()
	b, err := s3.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// suite runs the suite of buckets with both drivers.
func suite(t *testing.T, e minio.Endpoint, except []string) {
	t.Run("s3", func(t *testing.T) {
		b := open(t, options(e))
		objstoretest.Run(t, func(*testing.T) objstore.Bucket { return b }, except...)
	})
	t.Run("minio-go", func(t *testing.T) {
		b, err := miniogo.New(miniogo.Options{Bucket: e.Bucket, Endpoint: e.URL, Region: "us-east-1", AccessKey: e.AccessKey, SecretKey: e.SecretKey})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		objstoretest.Run(t, func(*testing.T) objstore.Bucket { return b }, except...)
	})
	t.Run("doctor", func(t *testing.T) { doctor(t, e) })
	t.Run("loopback", func(t *testing.T) { // another address of this machine
		if c, err := net.DialTimeout("tcp", strings.Replace(strings.TrimPrefix(e.URL, "http://"), "127.0.0.1", "127.0.0.2", 1), time.Second); err == nil {
			_ = c.Close()
			t.Error("it listens on all addresses")
		}
	})
}

// doctor has `cirrolog doctor` look at the bucket.
func doctor(t *testing.T, e minio.Endpoint) {
	cmd := exec.Command(testenv.Binary(t), "doctor", "--bucket", "s3://"+e.Bucket+"?region=us-east-1&endpoint="+e.URL, "--data-dir", t.TempDir())
	cmd.Env = append(cmd.Environ(), "AWS_ACCESS_KEY_ID="+e.AccessKey, "AWS_SECRET_ACCESS_KEY="+e.SecretKey)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "bucket") {
		t.Errorf("doctor: %v\n%s", err, out)
	} else {
		t.Logf("%s", out)
	}
}

func TestLocalStack(t *testing.T) {
	e := LocalStack(t)
	suite(t, e, wrongInLocalStack)
	t.Run("parts", func(t *testing.T) { parts(t, e, true) })
	t.Run("replacement refused", func(t *testing.T) { lost(t, e) })
	t.Run("escaped keys", func(t *testing.T) { leftOut(t, e) })
	t.Run("settings", func(t *testing.T) { settings(t, e) })
}

func TestMoto(t *testing.T) {
	e := Moto(t)
	suite(t, e, wrongInMoto)
	t.Run("parts", func(t *testing.T) { parts(t, e, false) })
	t.Run("wrong checksum", func(t *testing.T) { stored(t, e) })
	t.Run("settings", func(t *testing.T) { settings(t, e) })
}

// TestMinIO: the suite runs on it in the tests of the drivers.
func TestMinIO(t *testing.T) {
	e := minio.Start(t)
	doctor(t, e)
	t.Run("siblings", func(t *testing.T) { siblings(t, e) })
	t.Run("settings", func(t *testing.T) { settings(t, e, "public access block", "ownership", "encryption", "lifecycle") })
}

// lost: LocalStack refuses a put for its checksum after it has cut the object that it was to replace.
func lost(t *testing.T, e minio.Endpoint) {
	o, ctx := options(e), context.Background()
	o.Timeout = time.Second
	b := open(t, o)
	if _, err := b.Put(ctx, "lost", strings.NewReader("the old bytes"), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	wrong := uint32(1)
	if _, err := b.Put(ctx, "lost", strings.NewReader("the new bytes"), objstore.PutOptions{CRC32C: &wrong}); !errors.Is(err, objstore.ErrChecksum) {
		t.Fatalf("put with a wrong checksum: %v", err)
	}
	info, err := b.Head(ctx, "lost")
	t.Logf("head: %+v, %v", info, err)
	r, _, err := b.Get(ctx, "lost", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	_ = r.Close()
	if err == nil && string(got) == "the old bytes" {
		t.Error("LocalStack keeps the object now: take the row out of docs/localstack.md, and the subtest back in")
	}
	t.Logf("get: %q, %v", got, err)
}

// leftOut: LocalStack compares keys escaped, while it has them in the order of the unescaped ones.
func leftOut(t *testing.T, e minio.Endpoint) {
	b, ctx := open(t, options(e)), context.Background()
	for _, key := range []string{"list/a0", "list/a=1", "list/b"} {
		if _, err := b.Put(ctx, key, strings.NewReader("x"), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for after, want := range map[string]int{"": 3, "list/a0": 1} { // it should be 2
		got, _, err := b.List(ctx, "list/", after, 10)
		if err != nil || len(got) != want {
			t.Errorf("after %q: %v, %v: see docs/localstack.md", after, got, err)
		}
	}
}

// stored: moto stores what has another checksum than its put says.
func stored(t *testing.T, e minio.Endpoint) {
	wrong := uint32(1)
	if _, err := open(t, options(e)).Put(context.Background(), "stored", strings.NewReader("body"), objstore.PutOptions{CRC32C: &wrong}); err != nil {
		t.Errorf("%v: see docs/localstack.md", err)
	}
}

// siblings: when start-after lies in a directory, MinIO looks for the keys behind it among as many as the page has, and
// those count whose names go on where the directory's ends and that come before it: a-1/1 for a/1. With more of them than that the
// page is short, and is said to be the last one. The driver goes on with MinIO's own token, which it knows of the lists that it has
// begun; another one that begins there gets too few.
func siblings(t *testing.T, e minio.Endpoint) {
	b, ctx := open(t, options(e)), context.Background()
	want := 0
	for _, key := range []string{"a-1/1", "a-2/1", "a-3/1", "a-4/1", "a-5/1", "a-6/1", "a/1", "a/2", "a/3", "a/4", "b/1"} {
		if _, err := b.Put(ctx, "siblings/"+key, strings.NewReader("x"), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		want++
	}
	for _, limit := range []int{2, 1000} {
		b := open(t, options(e))
		got, after := 0, ""
		for more := true; more; {
			var page []objstore.ObjectInfo
			var err error
			if page, more, err = b.List(ctx, "siblings/", after, limit); err != nil {
				t.Fatal(err)
			}
			got += len(page)
			if len(page) > 0 {
				after = page[len(page)-1].Key
			}
		}
		t.Logf("pages of %d: %d of %d keys", limit, got, want)
		if got != want {
			t.Errorf("pages of %d have %d of %d keys", limit, got, want)
		}
	}
	if page, more, err := open(t, options(e)).List(ctx, "siblings/", "siblings/a/1", 2); err != nil || len(page) == 2 || more {
		t.Errorf("behind a/1: %d keys, more %t, %v: see docs/localstack.md", len(page), more, err)
	}
}

// settings puts what terraform/modules/storage sets on a bucket, and demands that these are refused.
func settings(t *testing.T, e minio.Endpoint, refused ...string) {
	ctx, bucket := context.Background(), &e.Bucket
	c := awss3.NewFromConfig(aws.Config{Region: "us-east-1", BaseEndpoint: &e.URL, Credentials: credentials.NewStaticCredentialsProvider(e.AccessKey, e.SecretKey, "")}, func(o *awss3.Options) { o.UsePathStyle = true })
	yes := aws.Bool(true)
	for name, put := range map[string]func() error{
		"public access block": func() error {
			_, err := c.PutPublicAccessBlock(ctx, &awss3.PutPublicAccessBlockInput{Bucket: bucket, PublicAccessBlockConfiguration: &types.PublicAccessBlockConfiguration{BlockPublicAcls: yes, BlockPublicPolicy: yes, IgnorePublicAcls: yes, RestrictPublicBuckets: yes}})
			return err
		},
		"ownership": func() error {
			_, err := c.PutBucketOwnershipControls(ctx, &awss3.PutBucketOwnershipControlsInput{Bucket: bucket, OwnershipControls: &types.OwnershipControls{Rules: []types.OwnershipControlsRule{{ObjectOwnership: types.ObjectOwnershipBucketOwnerEnforced}}}})
			return err
		},
		"encryption": func() error {
			_, err := c.PutBucketEncryption(ctx, &awss3.PutBucketEncryptionInput{Bucket: bucket, ServerSideEncryptionConfiguration: &types.ServerSideEncryptionConfiguration{Rules: []types.ServerSideEncryptionRule{{ApplyServerSideEncryptionByDefault: &types.ServerSideEncryptionByDefault{SSEAlgorithm: types.ServerSideEncryptionAes256}}}}})
			return err
		},
		"lifecycle": func() error {
			_, err := c.PutBucketLifecycleConfiguration(ctx, &awss3.PutBucketLifecycleConfigurationInput{Bucket: bucket, LifecycleConfiguration: &types.BucketLifecycleConfiguration{Rules: []types.LifecycleRule{{ID: aws.String("a"), Status: types.ExpirationStatusEnabled, Filter: &types.LifecycleRuleFilter{Prefix: aws.String("")}, AbortIncompleteMultipartUpload: &types.AbortIncompleteMultipartUpload{DaysAfterInitiation: aws.Int32(1)}}}}})
			return err
		},
	} {
		err := put()
		if (err != nil) != slices.Contains(refused, name) {
			t.Errorf("%s: %v", name, err)
		} else if err != nil {
			t.Logf("%s: %v", name, err)
		}
	}
}

// parts sends an object in parts: conditions and checksums hold for it as for one in a piece, or are not looked at.
func parts(t *testing.T, e minio.Endpoint, right bool) {
	o, ctx := options(e), context.Background()
	o.SinglePut, o.PartSize = 1<<20, 5<<20
	b := open(t, o)
	data := bytes.Repeat([]byte("0123456789abcdef"), 6<<20/16)
	first, err := b.Put(ctx, "parts", bytes.NewReader(data), objstore.PutOptions{IfNoneMatch: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(ctx, "parts", bytes.NewReader(data), objstore.PutOptions{IfNoneMatch: true}); !errors.Is(err, objstore.ErrPrecondition) {
		t.Errorf("create-only put over an object: %v", err)
	}
	if _, err := b.Put(ctx, "parts", bytes.NewReader(data[1:]), objstore.PutOptions{IfMatch: first.ETag}); err != nil {
		t.Errorf("swap: %v", err)
	}
	wrong := uint32(1)
	_, swap := b.Put(ctx, "parts", bytes.NewReader(data), objstore.PutOptions{IfMatch: first.ETag})
	_, sum := b.Put(ctx, "other", bytes.NewReader(data), objstore.PutOptions{CRC32C: &wrong})
	if errors.Is(swap, objstore.ErrPrecondition) != right || errors.Is(sum, objstore.ErrChecksum) != right {
		t.Errorf("swap with an old etag: %v; put with a wrong checksum: %v; looked at should be %t: see docs/localstack.md", swap, sum, right)
	}
}
