# Run by `tofu test` or `terraform test`: nothing is created.
mock_provider "aws" {
  mock_resource "aws_s3_bucket" {
    defaults = {
      id     = "a-bucket"
      arn    = "arn:aws:s3:::a-bucket"
      region = "eu-central-1"
    }
  }
}

variables {
  bucket = "a-bucket"
}

run "by_default" {
  assert {
    condition     = output.url == "s3://a-bucket?region=eu-central-1" && output.name == "a-bucket" && output.arn == "arn:aws:s3:::a-bucket"
    error_message = "outputs: ${output.url} ${output.name} ${output.arn}"
  }
  assert {
    condition     = alltrue([for k in ["block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets"] : aws_s3_bucket_public_access_block.this[0][k]])
    error_message = "the bucket may become public"
  }
  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Disabled"
    error_message = "versions are kept"
  }
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.this[0].rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "not SSE-S3"
  }
  assert {
    condition     = one(aws_s3_bucket_ownership_controls.this[0].rule).object_ownership == "BucketOwnerEnforced"
    error_message = "ACLs count"
  }
  assert {
    condition = alltrue([
      length(aws_s3_bucket_lifecycle_configuration.this[0].rule) == 1,
      length(aws_s3_bucket_lifecycle_configuration.this[0].rule[0].expiration) == 0,
      length(aws_s3_bucket_lifecycle_configuration.this[0].rule[0].transition) == 0,
      length(aws_s3_bucket_lifecycle_configuration.this[0].rule[0].noncurrent_version_expiration) == 0,
      aws_s3_bucket_lifecycle_configuration.this[0].rule[0].abort_incomplete_multipart_upload[0].days_after_initiation == 1,
    ])
    error_message = "the lifecycle does more than abort uploads"
  }
  assert {
    condition = alltrue([
      jsondecode(aws_s3_bucket_policy.this[0].policy).Statement[0].Effect == "Deny",
      jsondecode(aws_s3_bucket_policy.this[0].policy).Statement[0].Condition.Bool["aws:SecureTransport"] == "false",
    ])
    error_message = "plain HTTP is allowed"
  }
}

run "kms_and_prefix" {
  variables {
    prefix      = "prod/eu"
    kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/abc"
    endpoint    = "https://bucket.vpce-1.s3.eu-central-1.vpce.amazonaws.com"
  }
  assert {
    condition     = output.url == "s3://a-bucket/prod/eu?region=eu-central-1&endpoint=https://bucket.vpce-1.s3.eu-central-1.vpce.amazonaws.com"
    error_message = output.url
  }
  assert {
    condition = alltrue([
      one(aws_s3_bucket_server_side_encryption_configuration.this[0].rule).bucket_key_enabled,
      one(one(aws_s3_bucket_server_side_encryption_configuration.this[0].rule).apply_server_side_encryption_by_default).sse_algorithm == "aws:kms",
      one(one(aws_s3_bucket_server_side_encryption_configuration.this[0].rule).apply_server_side_encryption_by_default).kms_master_key_id == var.kms_key_arn,
    ])
    error_message = "not SSE-KMS with that key"
  }
}

run "another_store" {
  variables {
    s3_compatible = true
  }
  assert {
    condition     = length(concat(aws_s3_bucket_public_access_block.this, aws_s3_bucket_policy.this, aws_s3_bucket_lifecycle_configuration.this, aws_s3_bucket_ownership_controls.this, aws_s3_bucket_server_side_encryption_configuration.this)) == 0
    error_message = "more than a bucket"
  }
}

run "bad_bucket" {
  command = plan
  variables {
    bucket = "A.Bucket"
  }
  expect_failures = [var.bucket]
}

run "bad_prefix" {
  command = plan
  variables {
    prefix = "/prod/"
  }
  expect_failures = [var.prefix]
}

run "bad_prefix_of_dots" {
  command = plan
  variables {
    prefix = "prod/../other"
  }
  expect_failures = [var.prefix]
}

run "bad_key" {
  command = plan
  variables {
    kms_key_arn = "alias/cirrolog"
  }
  expect_failures = [var.kms_key_arn]
}

run "bad_days" {
  command = plan
  variables {
    abort_uploads_after_days = 0.5
  }
  expect_failures = [var.abort_uploads_after_days]
}

run "bad_endpoint" {
  command = plan
  variables {
    endpoint = "127.0.0.1:9000"
  }
  expect_failures = [var.endpoint]
}
