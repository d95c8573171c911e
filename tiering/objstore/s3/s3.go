// Package s3 is the bucket driver on aws-sdk-go-v2, for Amazon S3 with all of
// AWS's ways to get credentials, and for stores that speak its protocol.
//
// Payloads are signed as UNSIGNED-PAYLOAD, over plain HTTP too, and guarded by
// a CRC32C that is sent ahead of them: the body is not hashed while it is
// sent. The SDK's own retries are off; see Put for why.
package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/internal/s3core"
)

// Options of New; only Bucket must be set.
type Options = s3core.Options

// Bucket is a bucket of S3. It is safe for concurrent use; Close drops its
// idle connections.
type Bucket struct {
	*s3core.Bucket
	api *client
}

// New returns the bucket of the options without asking the store. ctx bounds
// the reading of AWS's configuration.
func New(ctx context.Context, opts Options) (*Bucket, error) {
	o, err := opts.Check()
	if err != nil {
		return nil, fmt.Errorf("open s3 bucket: %w", err)
	}
	t, err := o.Transport()
	if err != nil {
		return nil, fmt.Errorf("open s3 bucket: %w", err)
	}
	cfg, err := load(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("open s3 bucket: %w", err)
	}
	c := &client{o: o, api: s3.NewFromConfig(cfg, func(so *s3.Options) {
		so.HTTPClient = &http.Client{Transport: t, CheckRedirect: noRedirect}
		so.UsePathStyle = o.Style == s3core.StylePath
		if o.Endpoint != "" {
			so.BaseEndpoint = aws.String(o.Endpoint)
		}
		if o.Custom() {
			so.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		}
		so.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		so.DisableLogOutputChecksumValidationSkipped = true
		so.Retryer = aws.NopRetryer{}
	})}
	return &Bucket{Bucket: s3core.NewBucket(c, o, t), api: c}, nil
}

func load(ctx context.Context, o Options) (aws.Config, error) {
	var load []func(*config.LoadOptions) error
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	if o.AccessKey != "" {
		load = append(load, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(o.AccessKey, o.SecretKey, "")))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return cfg, err
	}
	if cfg.Region == "" {
		if !o.Custom() {
			return cfg, errors.New("region is not known: give region= or set AWS_REGION")
		}
		cfg.Region = "us-east-1"
	}
	return cfg, nil
}

// noRedirect: a redirect of S3 must be signed anew, so it is an error.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// client is s3core.Client on the SDK.
type client struct {
	api   *s3.Client
	o     Options
	pages pages
}

func unsigned(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
}

func (c *client) Failure(err error) s3core.Failure {
	f := s3core.Failure{Err: err}
	var re *smithyhttp.ResponseError
	if errors.As(err, &re) && re.Response != nil {
		f.Status = re.HTTPStatusCode()
	}
	var ae smithy.APIError
	if errors.As(err, &ae) {
		f.Code = ae.ErrorCode()
	}
	if f.Status == http.StatusOK { // an error in the body of a success
		f.Status = http.StatusInternalServerError
	}
	return f
}

func (c *client) Get(ctx context.Context, key, byteRange string) (s3core.GetAnswer, error) {
	in := &s3.GetObjectInput{Bucket: &c.o.Bucket, Key: &key}
	if byteRange != "" {
		in.Range = &byteRange
	}
	out, err := c.api.GetObject(ctx, in)
	if err != nil {
		return s3core.GetAnswer{}, err
	}
	length := int64(-1)
	if out.ContentLength != nil {
		length = *out.ContentLength
	}
	return s3core.GetAnswer{
		Body: out.Body, Length: length, Range: aws.ToString(out.ContentRange),
		ETag: s3core.Unquote(aws.ToString(out.ETag)), Modified: aws.ToTime(out.LastModified),
	}, nil
}

func (c *client) Head(ctx context.Context, key string) (objstore.ObjectInfo, error) {
	out, err := c.api.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &c.o.Bucket, Key: &key})
	if err != nil {
		return objstore.ObjectInfo{}, err
	}
	return info(key, out.ContentLength, out.ETag, out.LastModified), nil
}

func info(key string, size *int64, etag *string, modified *time.Time) objstore.ObjectInfo {
	return objstore.ObjectInfo{
		Key: key, Size: aws.ToInt64(size), ETag: s3core.Unquote(aws.ToString(etag)), Modified: aws.ToTime(modified),
	}
}

func (c *client) Put(ctx context.Context, r s3core.PutRequest) (string, error) {
	in := &s3.PutObjectInput{
		Bucket: &c.o.Bucket, Key: &r.Key, Body: r.Body, ContentLength: aws.Int64(r.Body.Size()),
		ContentType: aws.String("application/octet-stream"), ChecksumCRC32C: aws.String(s3core.EncodeCRC(r.CRC32C)),
	}
	in.IfNoneMatch, in.IfMatch = conditions(r)
	in.ServerSideEncryption, in.SSEKMSKeyId = c.encryption()
	out, err := c.api.PutObject(ctx, in, unsigned)
	if err != nil {
		return "", err
	}
	return s3core.Unquote(aws.ToString(out.ETag)), nil
}

func conditions(r s3core.PutRequest) (noneMatch, match *string) {
	if r.IfNoneMatch {
		noneMatch = aws.String("*")
	}
	if r.IfMatch != "" {
		match = aws.String(`"` + r.IfMatch + `"`)
	}
	return noneMatch, match
}

func (c *client) Delete(ctx context.Context, key string) error {
	_, err := c.api.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &c.o.Bucket, Key: &key})
	return err
}

var _ s3core.Client = (*client)(nil)
