package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/internal/s3core"
)

func (c *client) encryption() (types.ServerSideEncryption, *string) {
	if c.o.KMSKeyID == "" {
		return "", nil
	}
	return types.ServerSideEncryptionAwsKms, &c.o.KMSKeyID
}

func (c *client) List(ctx context.Context, prefix, after string, limit int) ([]objstore.ObjectInfo, bool, error) {
	in := &s3.ListObjectsV2Input{
		Bucket: &c.o.Bucket, MaxKeys: aws.Int32(int32(limit)), EncodingType: types.EncodingTypeUrl,
	}
	if prefix != "" {
		in.Prefix = &prefix
	}
	if after != "" {
		in.StartAfter = &after
	}
	out, err := c.listPage(ctx, in, c.pages.token(page{prefix, after}))
	if err != nil {
		return nil, false, err
	}
	list := make([]objstore.ObjectInfo, 0, len(out.Contents))
	for _, o := range out.Contents {
		key := aws.ToString(o.Key)
		if out.EncodingType == types.EncodingTypeUrl {
			if key, err = url.QueryUnescape(key); err != nil {
				return nil, false, fmt.Errorf("decode listed key: %w", err)
			}
		}
		list = append(list, info(key, o.Size, o.ETag, o.LastModified))
	}
	if token := aws.ToString(out.NextContinuationToken); token != "" && len(list) > 0 {
		c.pages.keep(page{prefix, list[len(list)-1].Key}, token)
	}
	return list, aws.ToBool(out.IsTruncated), nil
}

// listPage asks for the page of a token of the store, if there is one, and by the key that it begins behind when the
// store does not know the token any more.
func (c *client) listPage(ctx context.Context, in *s3.ListObjectsV2Input, token string) (*s3.ListObjectsV2Output, error) {
	if token != "" {
		with := *in
		with.StartAfter, with.ContinuationToken = nil, &token
		out, err := c.api.ListObjectsV2(ctx, &with)
		if err == nil || c.Failure(err).Status != http.StatusBadRequest {
			return out, err
		}
	}
	return c.api.ListObjectsV2(ctx, in)
}

func (c *client) DeleteMany(ctx context.Context, keys []string) (map[string]s3core.Failure, error) {
	ids := make([]types.ObjectIdentifier, len(keys))
	for i := range keys {
		ids[i].Key = &keys[i]
	}
	out, err := c.api.DeleteObjects(ctx, &s3.DeleteObjectsInput{
		Bucket: &c.o.Bucket, Delete: &types.Delete{Objects: ids, Quiet: aws.Bool(true)},
	})
	if err != nil {
		return nil, err
	}
	failed := make(map[string]s3core.Failure)
	for _, e := range out.Errors {
		code := aws.ToString(e.Code)
		failed[aws.ToString(e.Key)] = s3core.Failure{
			Status: s3core.StatusOf(code), Code: code, Err: errors.New(aws.ToString(e.Message)),
		}
	}
	return failed, nil
}

func (c *client) CreateUpload(ctx context.Context, key string) (string, error) {
	in := &s3.CreateMultipartUploadInput{
		Bucket: &c.o.Bucket, Key: &key, ContentType: aws.String("application/octet-stream"),
		ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c, ChecksumType: types.ChecksumTypeFullObject,
	}
	in.ServerSideEncryption, in.SSEKMSKeyId = c.encryption()
	out, err := c.api.CreateMultipartUpload(ctx, in)
	if err != nil {
		return "", err
	}
	return aws.ToString(out.UploadId), nil
}

func (c *client) PutPart(ctx context.Context, u s3core.Upload, number int, body *io.SectionReader, crc uint32) (string, error) {
	out, err := c.api.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &c.o.Bucket, Key: &u.Key, UploadId: &u.ID, PartNumber: aws.Int32(int32(number)),
		Body: body, ContentLength: aws.Int64(body.Size()), ChecksumCRC32C: aws.String(s3core.EncodeCRC(crc)),
	}, unsigned)
	if err != nil {
		return "", err
	}
	return s3core.Unquote(aws.ToString(out.ETag)), nil
}

func (c *client) CompleteUpload(ctx context.Context, u s3core.Upload, parts []s3core.Part, r s3core.PutRequest) (string, error) {
	done := make([]types.CompletedPart, len(parts))
	for i, p := range parts {
		done[i] = types.CompletedPart{
			PartNumber: aws.Int32(int32(p.Number)), ETag: aws.String(`"` + p.ETag + `"`), ChecksumCRC32C: aws.String(s3core.EncodeCRC(p.CRC32C)),
		}
	}
	in := &s3.CompleteMultipartUploadInput{
		Bucket: &c.o.Bucket, Key: &u.Key, UploadId: &u.ID, MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
		ChecksumCRC32C: aws.String(s3core.EncodeCRC(r.CRC32C)), ChecksumType: types.ChecksumTypeFullObject,
		MpuObjectSize: aws.Int64(r.Body.Size()),
	}
	in.IfNoneMatch, in.IfMatch = conditions(r)
	out, err := c.api.CompleteMultipartUpload(ctx, in)
	if err == nil && aws.ToString(out.ETag) == "" { // the status is sent before the store is done
		err = errors.New("the answer to the completion of an upload has no etag")
	}
	if err != nil {
		return "", err
	}
	return s3core.Unquote(aws.ToString(out.ETag)), nil
}

func (c *client) AbortUpload(ctx context.Context, u s3core.Upload) error {
	_, err := c.api.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &c.o.Bucket, Key: &u.Key, UploadId: &u.ID})
	return err
}

// CreateBucket makes the bucket itself, for tests and first set-ups; one that
// is there already and is ours is no error.
func (b *Bucket) CreateBucket(ctx context.Context) error {
	_, err := b.api.api.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &b.api.o.Bucket})
	if f := b.api.Failure(err); err != nil && f.Code != "BucketAlreadyOwnedByYou" && f.Status != http.StatusConflict {
		return fmt.Errorf("create bucket %s: %w", b.api.o.Bucket, s3core.Classify(ctx, f, true))
	}
	return nil
}
