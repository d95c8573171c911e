package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// absent tells whether an error says that there is no such thing.
func absent(err error, codes ...string) bool {
	var api smithy.APIError
	return errors.As(err, &api) && slices.Contains(codes, api.ErrorCode())
}

var noBucket = []string{"NotFound", "NoSuchBucket"}

func s3Bucket() *resource {
	return &resource{
		does:    []string{"bucket", "force_destroy", "tags"},
		fills:   []string{"id", "arn", "region", "bucket_region", "bucket_domain_name", "tags_all"},
		replace: []string{"bucket"},
		create: func(ctx context.Context, c *clients, v object) error {
			if c.s3 == nil {
				return errNoEndpoint
			}
			in := &s3.CreateBucketInput{Bucket: aws.String(text(v, "bucket"))}
			if c.region != "us-east-1" {
				in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(c.region)}
			}
			if _, err := c.s3.CreateBucket(ctx, in); err != nil {
				return err
			}
			v["id"], v["arn"] = v["bucket"], "arn:aws:s3:::"+text(v, "bucket")
			v["region"], v["bucket_region"], v["bucket_domain_name"] = c.region, c.region, text(v, "bucket")+".s3.amazonaws.com"
			return putBucketTags(ctx, c, v)
		},
		update: putBucketTags,
		read: func(ctx context.Context, c *clients, v object) (bool, error) {
			if c.s3 == nil {
				return false, errNoEndpoint
			}
			if _, err := c.s3.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String(text(v, "id"))}); err != nil {
				if absent(err, noBucket...) {
					err = nil
				}
				return false, err
			}
			tags, err := c.s3.GetBucketTagging(ctx, &s3.GetBucketTaggingInput{Bucket: aws.String(text(v, "id"))})
			if err != nil && !absent(err, "NoSuchTagSet") {
				return true, err
			}
			have := object{}
			if err == nil {
				for _, t := range tags.TagSet {
					have[aws.ToString(t.Key)] = aws.ToString(t.Value)
				}
			}
			setTags(v, have)
			return true, nil
		},
		remove: removeBucket,
	}
}

// setTags keeps null when there are none.
func setTags(v, have object) {
	if len(have) > 0 || v["tags"] != nil {
		v["tags"], v["tags_all"] = have, have
	}
}

func putBucketTags(ctx context.Context, c *clients, v object) error {
	bucket, tags := aws.String(text(v, "id")), []types.Tag{}
	all, _ := v["tags"].(object)
	for k, t := range all {
		tags = append(tags, types.Tag{Key: aws.String(k), Value: aws.String(fmt.Sprint(t))})
	}
	v["tags_all"] = v["tags"]
	var err error
	if len(tags) > 0 {
		_, err = c.s3.PutBucketTagging(ctx, &s3.PutBucketTaggingInput{Bucket: bucket, Tagging: &types.Tagging{TagSet: tags}})
	} else {
		_, err = c.s3.DeleteBucketTagging(ctx, &s3.DeleteBucketTaggingInput{Bucket: bucket})
	}
	return err
}

func removeBucket(ctx context.Context, c *clients, v object) error {
	if c.s3 == nil {
		return errNoEndpoint
	}
	bucket := aws.String(text(v, "id"))
	pages := s3.NewListObjectsV2Paginator(c.s3, &s3.ListObjectsV2Input{Bucket: bucket})
	for flag(v, "force_destroy") && pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return err
		}
		for _, o := range page.Contents {
			if _, err := c.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: o.Key}); err != nil {
				return err
			}
		}
	}
	_, err := c.s3.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: bucket})
	return err
}

// setting is a resource that is one setting of a bucket.
type setting struct {
	does []string
	put  func(context.Context, *s3.Client, *string, object) error
	get  func(context.Context, *s3.Client, *string, object) error // sets the values; an error of a code in none says that there are none
	none []string
	drop func(context.Context, *s3.Client, *string) error
}

func (s setting) resource() *resource {
	put := func(ctx context.Context, c *clients, v object) error {
		if c.s3 == nil {
			return errNoEndpoint
		}
		v["id"], v["region"] = v["bucket"], c.region
		return s.put(ctx, c.s3, aws.String(text(v, "bucket")), v)
	}
	return &resource{
		does: append(s.does, "bucket"), fills: []string{"id", "region"}, replace: []string{"bucket"},
		create: put, update: put,
		read: func(ctx context.Context, c *clients, v object) (bool, error) {
			if c.s3 == nil {
				return false, errNoEndpoint
			}
			err := s.get(ctx, c.s3, aws.String(text(v, "bucket")), v)
			if absent(err, append(s.none, noBucket...)...) {
				return false, nil
			}
			return err == nil, err
		},
		remove: func(ctx context.Context, c *clients, v object) error {
			if c.s3 == nil {
				return errNoEndpoint
			}
			return s.drop(ctx, c.s3, aws.String(text(v, "bucket")))
		},
	}
}

func s3Versioning() *resource {
	const never = "Disabled" // as the provider calls a bucket that never had versions
	status := func(ctx context.Context, c *s3.Client, b *string) (string, error) {
		out, err := c.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: b})
		if err != nil || out.Status != "" {
			return string(out.Status), err
		}
		return never, nil
	}
	return setting{
		does: []string{"versioning_configuration", "versioning_configuration.status"},
		put: func(ctx context.Context, c *s3.Client, b *string, v object) error {
			want := text(first(v, "versioning_configuration"), "status")
			if have, err := status(ctx, c, b); err != nil || have == want {
				return err
			}
			if want == never {
				return errors.New("a bucket that had versions can be Suspended, not Disabled")
			}
			_, err := c.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: b,
				VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatus(want)}})
			return err
		},
		get: func(ctx context.Context, c *s3.Client, b *string, v object) error {
			have, err := status(ctx, c, b)
			v["versioning_configuration"] = []any{object{"status": have}}
			return err
		},
		drop: func(ctx context.Context, c *s3.Client, b *string) error {
			if have, err := status(ctx, c, b); err != nil || have == never {
				return err
			}
			_, err := c.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: b,
				VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusSuspended}})
			return err
		},
	}.resource()
}

func s3PublicAccessBlock() *resource {
	return setting{
		does: []string{"block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets"},
		put: func(ctx context.Context, c *s3.Client, b *string, v object) error {
			_, err := c.PutPublicAccessBlock(ctx, &s3.PutPublicAccessBlockInput{Bucket: b, PublicAccessBlockConfiguration: &types.PublicAccessBlockConfiguration{
				BlockPublicAcls: aws.Bool(flag(v, "block_public_acls")), BlockPublicPolicy: aws.Bool(flag(v, "block_public_policy")),
				IgnorePublicAcls: aws.Bool(flag(v, "ignore_public_acls")), RestrictPublicBuckets: aws.Bool(flag(v, "restrict_public_buckets"))}})
			return err
		},
		get: func(ctx context.Context, c *s3.Client, b *string, v object) error {
			out, err := c.GetPublicAccessBlock(ctx, &s3.GetPublicAccessBlockInput{Bucket: b})
			if err == nil {
				p := out.PublicAccessBlockConfiguration
				v["block_public_acls"], v["block_public_policy"] = aws.ToBool(p.BlockPublicAcls), aws.ToBool(p.BlockPublicPolicy)
				v["ignore_public_acls"], v["restrict_public_buckets"] = aws.ToBool(p.IgnorePublicAcls), aws.ToBool(p.RestrictPublicBuckets)
			}
			return err
		},
		none: []string{"NoSuchPublicAccessBlockConfiguration"},
		drop: func(ctx context.Context, c *s3.Client, b *string) error {
			_, err := c.DeletePublicAccessBlock(ctx, &s3.DeletePublicAccessBlockInput{Bucket: b})
			return err
		},
	}.resource()
}

func s3Ownership() *resource {
	return setting{
		does: []string{"rule", "rule.object_ownership"},
		put: func(ctx context.Context, c *s3.Client, b *string, v object) error {
			_, err := c.PutBucketOwnershipControls(ctx, &s3.PutBucketOwnershipControlsInput{Bucket: b, OwnershipControls: &types.OwnershipControls{
				Rules: []types.OwnershipControlsRule{{ObjectOwnership: types.ObjectOwnership(text(first(v, "rule"), "object_ownership"))}}}})
			return err
		},
		get: func(ctx context.Context, c *s3.Client, b *string, v object) error {
			out, err := c.GetBucketOwnershipControls(ctx, &s3.GetBucketOwnershipControlsInput{Bucket: b})
			if err == nil {
				rules := []any{}
				for _, r := range out.OwnershipControls.Rules {
					rules = append(rules, object{"object_ownership": string(r.ObjectOwnership)})
				}
				v["rule"] = rules
			}
			return err
		},
		none: []string{"OwnershipControlsNotFoundError"},
		drop: func(ctx context.Context, c *s3.Client, b *string) error {
			_, err := c.DeleteBucketOwnershipControls(ctx, &s3.DeleteBucketOwnershipControlsInput{Bucket: b})
			return err
		},
	}.resource()
}

func s3Encryption() *resource {
	const byDefault = "apply_server_side_encryption_by_default"
	return setting{
		does: []string{"rule", "rule.bucket_key_enabled", "rule." + byDefault, "rule." + byDefault + ".sse_algorithm", "rule." + byDefault + ".kms_master_key_id"},
		put: func(ctx context.Context, c *s3.Client, b *string, v object) error {
			var rules []types.ServerSideEncryptionRule
			for _, r := range items(v, "rule") {
				d := first(r, byDefault)
				sse := &types.ServerSideEncryptionByDefault{SSEAlgorithm: types.ServerSideEncryption(text(d, "sse_algorithm"))}
				if key := text(d, "kms_master_key_id"); key != "" {
					sse.KMSMasterKeyID = &key
				}
				rules = append(rules, types.ServerSideEncryptionRule{ApplyServerSideEncryptionByDefault: sse, BucketKeyEnabled: aws.Bool(flag(r, "bucket_key_enabled"))})
			}
			_, err := c.PutBucketEncryption(ctx, &s3.PutBucketEncryptionInput{Bucket: b, ServerSideEncryptionConfiguration: &types.ServerSideEncryptionConfiguration{Rules: rules}})
			return err
		},
		get: func(ctx context.Context, c *s3.Client, b *string, v object) error {
			out, err := c.GetBucketEncryption(ctx, &s3.GetBucketEncryptionInput{Bucket: b})
			if err != nil {
				return err
			}
			rules := []any{}
			for _, r := range out.ServerSideEncryptionConfiguration.Rules {
				d := object{"sse_algorithm": string(r.ApplyServerSideEncryptionByDefault.SSEAlgorithm)}
				if key := aws.ToString(r.ApplyServerSideEncryptionByDefault.KMSMasterKeyID); key != "" {
					d["kms_master_key_id"] = key
				}
				rules = append(rules, object{byDefault: []any{d}, "bucket_key_enabled": aws.ToBool(r.BucketKeyEnabled)})
			}
			v["rule"] = rules
			return nil
		},
		none: []string{"ServerSideEncryptionConfigurationNotFoundError"},
		drop: func(ctx context.Context, c *s3.Client, b *string) error {
			_, err := c.DeleteBucketEncryption(ctx, &s3.DeleteBucketEncryptionInput{Bucket: b})
			return err
		},
	}.resource()
}

// s3Lifecycle carries out rules for all objects that abort uploads; expiry is not among what it does.
func s3Lifecycle() *resource {
	const abort = "abort_incomplete_multipart_upload"
	return setting{
		does: []string{"rule", "rule.id", "rule.status", "rule.filter", "rule." + abort, "rule." + abort + ".days_after_initiation"},
		put: func(ctx context.Context, c *s3.Client, b *string, v object) error {
			var rules []types.LifecycleRule
			for _, r := range items(v, "rule") {
				rule := types.LifecycleRule{ID: aws.String(text(r, "id")), Status: types.ExpirationStatus(text(r, "status")), Filter: &types.LifecycleRuleFilter{Prefix: aws.String("")}}
				if a := first(r, abort); a != nil {
					rule.AbortIncompleteMultipartUpload = &types.AbortIncompleteMultipartUpload{DaysAfterInitiation: aws.Int32(int32(whole(a, "days_after_initiation")))}
				}
				rules = append(rules, rule)
			}
			_, err := c.PutBucketLifecycleConfiguration(ctx, &s3.PutBucketLifecycleConfigurationInput{Bucket: b, LifecycleConfiguration: &types.BucketLifecycleConfiguration{Rules: rules}})
			return err
		},
		get: func(ctx context.Context, c *s3.Client, b *string, v object) error {
			out, err := c.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: b})
			if err != nil {
				return err
			}
			rules := []any{}
			for _, r := range out.Rules {
				rule := object{"id": aws.ToString(r.ID), "status": string(r.Status)}
				if r.Filter != nil {
					rule["filter"] = []any{object{}}
				}
				if r.AbortIncompleteMultipartUpload != nil {
					rule[abort] = []any{object{"days_after_initiation": int64(aws.ToInt32(r.AbortIncompleteMultipartUpload.DaysAfterInitiation))}}
				}
				if r.Expiration != nil || r.NoncurrentVersionExpiration != nil || len(r.Transitions) > 0 {
					return fmt.Errorf("the rule %q of bucket %s does more than the stand-in knows", aws.ToString(r.ID), *b)
				}
				rules = append(rules, rule)
			}
			v["rule"] = rules
			return nil
		},
		none: []string{"NoSuchLifecycleConfiguration"},
		drop: func(ctx context.Context, c *s3.Client, b *string) error {
			_, err := c.DeleteBucketLifecycle(ctx, &s3.DeleteBucketLifecycleInput{Bucket: b})
			return err
		},
	}.resource()
}

func s3Policy() *resource {
	return setting{
		does: []string{"policy"},
		put: func(ctx context.Context, c *s3.Client, b *string, v object) error {
			_, err := c.PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: b, Policy: aws.String(text(v, "policy"))})
			return err
		},
		get: func(ctx context.Context, c *s3.Client, b *string, v object) error {
			out, err := c.GetBucketPolicy(ctx, &s3.GetBucketPolicyInput{Bucket: b})
			if err == nil && !sameJSON(text(v, "policy"), aws.ToString(out.Policy)) {
				v["policy"] = aws.ToString(out.Policy)
			}
			return err
		},
		none: []string{"NoSuchBucketPolicy"},
		drop: func(ctx context.Context, c *s3.Client, b *string) error {
			_, err := c.DeleteBucketPolicy(ctx, &s3.DeleteBucketPolicyInput{Bucket: b})
			return err
		},
	}.resource()
}

func sameJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}
