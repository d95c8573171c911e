// Package minio is the bucket driver on minio-go, for MinIO and other stores
// that speak S3's protocol. It has the options and the behaviour of package
// s3; credentials come from the options, the AWS environment variables, the
// AWS credentials file or the instance, in this order.
package minio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/internal/s3core"
)

const (
	amazon      = "https://s3.amazonaws.com"
	contentType = "application/octet-stream"
	crcHeader   = "X-Amz-Checksum-Crc32c"
)

// Options of New; only Bucket must be set.
type Options = s3core.Options

// Bucket is a bucket of an S3 store. It is safe for concurrent use; Close
// drops its idle connections.
type Bucket struct{ *s3core.Bucket }

// New returns the bucket of the options without asking the store.
func New(opts Options) (*Bucket, error) {
	o, err := opts.Check()
	if err != nil {
		return nil, fmt.Errorf("open minio bucket: %w", err)
	}
	t, err := o.Transport()
	if err != nil {
		return nil, fmt.Errorf("open minio bucket: %w", err)
	}
	endpoint := o.Endpoint
	if endpoint == "" {
		endpoint = amazon
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, fmt.Errorf("open minio bucket: %w", err)
	}
	lookup := minio.BucketLookupDNS
	if o.Style == s3core.StylePath {
		lookup = minio.BucketLookupPath
	}
	core, err := minio.NewCore(u.Host, &minio.Options{
		Creds: chain(o, t), Secure: u.Scheme == "https", Transport: t, Region: region(o), BucketLookup: lookup, MaxRetries: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("open minio bucket: %w", err)
	}
	c := &client{core: core, o: o}
	if o.KMSKeyID != "" {
		if c.sse, err = encrypt.NewSSEKMS(o.KMSKeyID, nil); err != nil {
			return nil, fmt.Errorf("open minio bucket: kms key: %w", err)
		}
	}
	return &Bucket{s3core.NewBucket(c, o, t)}, nil
}

func chain(o Options, t *http.Transport) *credentials.Credentials {
	if o.AccessKey != "" {
		return credentials.NewStaticV4(o.AccessKey, o.SecretKey, "")
	}
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{Client: &http.Client{Transport: t}},
	})
}

// region returns the region, or none for minio-go to ask Amazon for it.
func region(o Options) string {
	for _, r := range []string{o.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")} {
		if r != "" {
			return r
		}
	}
	if o.Custom() {
		return "us-east-1"
	}
	return ""
}

// client is s3core.Client on minio-go.
type client struct {
	core *minio.Core
	o    Options
	sse  encrypt.ServerSide // nil: the bucket's default
}

func (c *client) Failure(err error) s3core.Failure {
	f := s3core.Failure{Err: err}
	var re minio.ErrorResponse
	if errors.As(err, &re) {
		f.Status, f.Code = re.StatusCode, re.Code
		if f.Status == http.StatusOK { // an error in the body of a success
			f.Status = http.StatusInternalServerError
		}
	}
	return f
}

func (c *client) Get(ctx context.Context, key, byteRange string) (s3core.GetAnswer, error) {
	var opts minio.GetObjectOptions
	if byteRange != "" {
		opts.Set("Range", byteRange)
	}
	body, info, header, err := c.core.GetObject(ctx, c.o.Bucket, key, opts)
	if err != nil {
		return s3core.GetAnswer{}, err
	}
	return s3core.GetAnswer{
		Body: body, Length: info.Size, Range: header.Get("Content-Range"), ETag: s3core.Unquote(info.ETag), Modified: info.LastModified,
	}, nil
}

func (c *client) Head(ctx context.Context, key string) (objstore.ObjectInfo, error) {
	info, err := c.core.StatObject(ctx, c.o.Bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return objstore.ObjectInfo{}, err
	}
	return convert(key, info), nil
}

func convert(key string, info minio.ObjectInfo) objstore.ObjectInfo {
	return objstore.ObjectInfo{Key: key, Size: info.Size, ETag: s3core.Unquote(info.ETag), Modified: info.LastModified}
}

// List asks for one object more than wanted, because minio-go does not hand
// out whether the page was the last.
func (c *client) List(ctx context.Context, prefix, after string, limit int) ([]objstore.ObjectInfo, bool, error) {
	opts := minio.ListObjectsOptions{Prefix: prefix, StartAfter: after, Recursive: true, MaxKeys: min(limit+1, objstore.MaxKeys)}
	var list []objstore.ObjectInfo
	for o := range c.core.ListObjectsIter(ctx, c.o.Bucket, opts) {
		if o.Err != nil {
			return nil, false, o.Err
		}
		if len(list) == limit {
			return list, true, nil
		}
		list = append(list, convert(o.Key, o))
	}
	return list, false, ctx.Err()
}

func (c *client) putOptions(r s3core.PutRequest) minio.PutObjectOptions {
	opts := minio.PutObjectOptions{
		ContentType: contentType, DisableContentSha256: true, ServerSideEncryption: c.sse,
		UserMetadata: map[string]string{crcHeader: s3core.EncodeCRC(r.CRC32C)},
	}
	if r.IfNoneMatch {
		opts.SetMatchETagExcept("*")
	}
	if r.IfMatch != "" {
		opts.SetMatchETag(r.IfMatch)
	}
	return opts
}

// Put uses the low level, which never splits the object; the high level
// refuses a checksum given beforehand.
func (c *client) Put(ctx context.Context, r s3core.PutRequest) (string, error) {
	info, err := c.core.PutObject(ctx, c.o.Bucket, r.Key, r.Body, r.Body.Size(), "", "", c.putOptions(r))
	return s3core.Unquote(info.ETag), err
}

func (c *client) Delete(ctx context.Context, key string) error {
	return c.core.RemoveObject(ctx, c.o.Bucket, key, minio.RemoveObjectOptions{})
}

func (c *client) DeleteMany(ctx context.Context, keys []string) (map[string]s3core.Failure, error) {
	var objects iter.Seq[minio.ObjectInfo] = func(yield func(minio.ObjectInfo) bool) {
		for _, k := range keys {
			if !yield(minio.ObjectInfo{Key: k}) {
				return
			}
		}
	}
	results, err := c.core.RemoveObjectsWithIter(ctx, c.o.Bucket, objects, minio.RemoveObjectsOptions{})
	if err != nil {
		return nil, err
	}
	failed := make(map[string]s3core.Failure)
	var whole error
	for r := range results {
		if r.Err == nil {
			continue
		}
		f := c.Failure(r.Err)
		if f.Status != 0 || f.Code == "" { // not of one key
			whole = r.Err
			continue
		}
		f.Status = s3core.StatusOf(f.Code)
		failed[r.ObjectName] = f
	}
	return failed, errors.Join(whole, ctx.Err())
}

func (c *client) CreateUpload(ctx context.Context, key string) (string, error) {
	return c.core.NewMultipartUpload(ctx, c.o.Bucket, key, minio.PutObjectOptions{
		ContentType: contentType, ServerSideEncryption: c.sse,
		UserMetadata: map[string]string{"X-Amz-Checksum-Algorithm": "CRC32C", "X-Amz-Checksum-Type": "FULL_OBJECT"},
	})
}

func (c *client) PutPart(ctx context.Context, u s3core.Upload, number int, body *io.SectionReader, crc uint32) (string, error) {
	part, err := c.core.PutObjectPart(ctx, c.o.Bucket, u.Key, u.ID, number, body, body.Size(), minio.PutObjectPartOptions{
		DisableContentSha256: true, CustomHeader: http.Header{crcHeader: {s3core.EncodeCRC(crc)}},
	})
	return s3core.Unquote(part.ETag), err
}

func (c *client) CompleteUpload(ctx context.Context, u s3core.Upload, parts []s3core.Part, r s3core.PutRequest) (string, error) {
	done := make([]minio.CompletePart, len(parts))
	for i, p := range parts {
		done[i] = minio.CompletePart{PartNumber: p.Number, ETag: p.ETag, ChecksumCRC32C: s3core.EncodeCRC(p.CRC32C)}
	}
	opts := c.putOptions(r)
	opts.ServerSideEncryption = nil // said when the upload was created
	opts.UserMetadata["X-Amz-Checksum-Type"] = "FULL_OBJECT"
	info, err := c.core.CompleteMultipartUpload(ctx, c.o.Bucket, u.Key, u.ID, done, opts)
	return s3core.Unquote(info.ETag), err
}

func (c *client) AbortUpload(ctx context.Context, u s3core.Upload) error {
	return c.core.AbortMultipartUpload(ctx, c.o.Bucket, u.Key, u.ID)
}

var _ s3core.Client = (*client)(nil)
