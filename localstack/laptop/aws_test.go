package laptop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	dynamotypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

func clients(s3Port, dynamoPort int, key, secret string) (*s3.Client, *dynamodb.Client) {
	config := func(port int) aws.Config {
		url := fmt.Sprintf("http://127.0.0.1:%d", port)
		return aws.Config{Region: "us-east-1", BaseEndpoint: &url, Credentials: credentials.NewStaticCredentialsProvider(key, secret, "")}
	}
	return s3.NewFromConfig(config(s3Port), func(o *s3.Options) { o.UsePathStyle = true }), dynamodb.NewFromConfig(config(dynamoPort))
}

// emulated asks the AWS emulator.
func (l *laptop) emulated() (*s3.Client, *dynamodb.Client) {
	return clients(l.ports[3], l.ports[3], "emulator", "emulator")
}

// checkAWS asks the AWS emulator what the modules made, not Terraform.
func (l *laptop) checkAWS() {
	l.t.Helper()
	t, ctx, bucket := l.t, context.Background(), aws.String("cirrolog")
	objects, tables := l.emulated()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	access, err := objects.GetPublicAccessBlock(ctx, &s3.GetPublicAccessBlockInput{Bucket: bucket})
	must(err)
	if p := access.PublicAccessBlockConfiguration; !aws.ToBool(p.BlockPublicAcls) || !aws.ToBool(p.BlockPublicPolicy) || !aws.ToBool(p.IgnorePublicAcls) || !aws.ToBool(p.RestrictPublicBuckets) {
		t.Errorf("the bucket may become public: %+v", *p)
	}
	owner, err := objects.GetBucketOwnershipControls(ctx, &s3.GetBucketOwnershipControlsInput{Bucket: bucket})
	must(err)
	if o := owner.OwnershipControls.Rules[0].ObjectOwnership; o != "BucketOwnerEnforced" {
		t.Errorf("ownership %s", o)
	}
	sse, err := objects.GetBucketEncryption(ctx, &s3.GetBucketEncryptionInput{Bucket: bucket})
	must(err)
	if a := sse.ServerSideEncryptionConfiguration.Rules[0].ApplyServerSideEncryptionByDefault.SSEAlgorithm; a != "AES256" {
		t.Errorf("encryption %s", a)
	}
	versions, err := objects.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: bucket})
	must(err)
	if versions.Status != "" {
		t.Errorf("versioning %s", versions.Status)
	}
	life, err := objects.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: bucket})
	must(err)
	if r := life.Rules; len(r) != 1 || r[0].Expiration != nil || r[0].NoncurrentVersionExpiration != nil || len(r[0].Transitions) > 0 || r[0].AbortIncompleteMultipartUpload == nil {
		t.Errorf("the lifecycle does not only abort uploads: %+v", r)
	}
	policy, err := objects.GetBucketPolicy(ctx, &s3.GetBucketPolicyInput{Bucket: bucket})
	must(err)
	if !strings.Contains(aws.ToString(policy.Policy), `"aws:SecureTransport":"false"`) {
		t.Errorf("the policy does not demand TLS: %s", aws.ToString(policy.Policy))
	}
	table, err := tables.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: bucket})
	must(err)
	if m := table.Table.BillingModeSummary; m == nil || m.BillingMode != dynamotypes.BillingModePayPerRequest {
		t.Errorf("billing %+v", m)
	}
	ttl, err := tables.DescribeTimeToLive(ctx, &dynamodb.DescribeTimeToLiveInput{TableName: bucket})
	must(err)
	if d := ttl.TimeToLiveDescription; aws.ToString(d.AttributeName) != "x" || d.TimeToLiveStatus != dynamotypes.TimeToLiveStatusEnabled {
		t.Errorf("time to live %+v", *d)
	}
	backups, err := tables.DescribeContinuousBackups(ctx, &dynamodb.DescribeContinuousBackupsInput{TableName: bucket})
	must(err)
	if p := backups.ContinuousBackupsDescription.PointInTimeRecoveryDescription; p.PointInTimeRecoveryStatus != dynamotypes.PointInTimeRecoveryStatusEnabled {
		t.Errorf("point-in-time recovery %s", p.PointInTimeRecoveryStatus)
	}
}

// checkApplied demands that a second apply changes nothing.
func (l *laptop) checkApplied() {
	l.t.Helper()
	if out, code := l.sh("tofu", "plan", "-no-color", "-detailed-exitcode"); code != 0 {
		l.t.Errorf("a plan after apply: exit code %d:\n%s", code, out)
	}
	if out := l.must("tofu", "apply", "-no-color", "-auto-approve", "-input=false"); !strings.Contains(out, "Resources: 0 added, 0 changed, 0 destroyed.") {
		l.t.Errorf("a second apply:\n%s", out)
	}
}

// checkDestroyed demands that destroy left no bucket and no table, neither at the AWS emulator nor where the cluster was.
func (l *laptop) checkDestroyed() {
	l.t.Helper()
	check := func(objects *s3.Client, tables *dynamodb.Client) {
		buckets, err := objects.ListBuckets(context.Background(), &s3.ListBucketsInput{})
		if err != nil || len(buckets.Buckets) > 0 {
			l.t.Errorf("destroy left buckets %v, %v", buckets, err)
		}
		names, err := tables.ListTables(context.Background(), &dynamodb.ListTablesInput{})
		if err != nil || len(names.TableNames) > 0 {
			l.t.Errorf("destroy left tables %v, %v", names, err)
		}
	}
	check(l.emulated())
	check(clients(l.ports[0], l.ports[2], "cirrolog", "cirrolog-secret"))
}

func contains(out *testenv.Output, text string) func(context.Context) error {
	return func(context.Context) error {
		if strings.Contains(out.String(), text) {
			return nil
		}
		return errors.New("not yet")
	}
}

// binWith returns a directory with the programs of .cache/bin, one of which is this script.
func binWith(t *testing.T, name, script string) string {
	t.Helper()
	dir, from := t.TempDir(), filepath.Join(testenv.Root(), ".cache", "bin")
	var all []string
	for _, pattern := range []string{"*", "provider/*"} {
		found, err := filepath.Glob(filepath.Join(from, pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	if err := os.Mkdir(filepath.Join(dir, "provider"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		rel, err := filepath.Rel(from, path)
		if err != nil {
			t.Fatal(err)
		}
		if rel == name || rel == "provider" {
			continue
		}
		if err := os.Symlink(path, filepath.Join(dir, rel)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
