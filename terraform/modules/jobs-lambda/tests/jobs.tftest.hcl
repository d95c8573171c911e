# Run by `tofu test` or `terraform test`: nothing is created.
mock_provider "aws" {
  mock_resource "aws_cloudwatch_log_group" {
    defaults = {
      arn = "arn:aws:logs:eu-central-1:123456789012:log-group:/aws/lambda/mocked"
    }
  }
  mock_resource "aws_lambda_function" {
    defaults = {
      arn = "arn:aws:lambda:eu-central-1:123456789012:function:mocked"
    }
  }
  mock_resource "aws_cloudwatch_event_rule" {
    defaults = {
      arn = "arn:aws:events:eu-central-1:123456789012:rule/prod-sweep"
    }
  }
  mock_resource "aws_sqs_queue" {
    defaults = {
      arn = "arn:aws:sqs:eu-central-1:123456789012:prod-verify-failed"
      url = "https://sqs.eu-central-1.amazonaws.com/123456789012/prod-verify-failed"
    }
  }
}

variables {
  name         = "prod"
  bucket_arn   = "arn:aws:s3:::a-bucket"
  bucket_url   = "s3://a-bucket/eu/prod?region=eu-central-1"
  metadata_url = "dynamodb://a-table?region=eu-central-1"
  sweep        = { zip = "tests/function.zip", role_name = "prod-sweeper", role_arn = "arn:aws:iam::123456789012:role/prod-sweeper" }
  verify       = { zip = "tests/function.zip", role_name = "prod-verifier", role_arn = "arn:aws:iam::123456789012:role/prod-verifier" }
}

run "both" {
  assert {
    condition     = output.function_names == { sweep = "prod-sweep", verify = "prod-verify" } && output.failed_queue == { name = "prod-verify-failed", url = "https://sqs.eu-central-1.amazonaws.com/123456789012/prod-verify-failed" }
    error_message = jsonencode(output.function_names)
  }
  assert {
    condition = alltrue([
      nonsensitive(aws_lambda_function.this["sweep"].environment[0].variables) == tomap({ CIRROLOG_BUCKET = var.bucket_url, CIRROLOG_METADATA = nonsensitive(var.metadata_url), CIRROLOG_SWEEP_GRACE = "1h" }),
      nonsensitive(aws_lambda_function.this["verify"].environment[0].variables) == tomap({ CIRROLOG_BUCKET = var.bucket_url }),
      alltrue([for f in aws_lambda_function.this : f.runtime == "provided.al2023" && f.architectures == tolist(["arm64"]) && f.timeout == 900 && length(f.vpc_config) == 0]),
      aws_lambda_function.this["verify"].role == var.verify.role_arn && aws_lambda_function.this["sweep"].role == var.sweep.role_arn,
    ])
    error_message = "the functions"
  }
  assert {
    condition = alltrue([
      aws_cloudwatch_event_rule.sweep[0].schedule_expression == "rate(1 hour)",
      aws_cloudwatch_event_target.sweep[0].rule == "prod-sweep",
      aws_lambda_permission.sweep[0].principal == "events.amazonaws.com" && aws_lambda_permission.sweep[0].source_arn == "arn:aws:events:eu-central-1:123456789012:rule/prod-sweep",
      aws_lambda_function_event_invoke_config.sweep[0].maximum_retry_attempts == 0,
    ])
    error_message = "the schedule"
  }
  assert {
    condition = alltrue([
      aws_s3_bucket_notification.verify[0].bucket == "a-bucket",
      aws_s3_bucket_notification.verify[0].lambda_function[0].filter_prefix == "eu/prod/data/",
      aws_s3_bucket_notification.verify[0].lambda_function[0].events == toset(["s3:ObjectCreated:*"]),
      aws_lambda_permission.verify[0].source_arn == "arn:aws:s3:::a-bucket" && aws_lambda_permission.verify[0].source_account == "123456789012",
      aws_lambda_function_event_invoke_config.verify[0].destination_config[0].on_failure[0].destination == "arn:aws:sqs:eu-central-1:123456789012:prod-verify-failed",
    ])
    error_message = "the events of the bucket"
  }
  assert {
    condition = { for job, p in aws_iam_role_policy.this : "${job} ${p.role}" => [for s in jsondecode(p.policy).Statement : s.Sid] } == {
      "sweep prod-sweeper"   = ["Logs"]
      "verify prod-verifier" = ["Logs", "Failed"]
    }
    error_message = jsonencode([for p in aws_iam_role_policy.this : p.policy])
  }
}

run "sweep_beside_elasticache" {
  variables {
    verify       = null
    bucket_url   = "s3://a-bucket?region=eu-central-1"
    metadata_url = "rediss://:word@host:6379"
    network      = { subnet_ids = ["subnet-a"], security_group_ids = ["sg-agents"] }
    topic_config = "retention.ms=604800000,segment.bytes=67108864"
    dry_run      = true
    schedule     = "rate(15 minutes)"
    grace        = "90m"
  }
  assert {
    condition     = nonsensitive(aws_lambda_function.this["sweep"].environment[0].variables) == tomap({ CIRROLOG_BUCKET = var.bucket_url, CIRROLOG_METADATA = nonsensitive(var.metadata_url), CIRROLOG_SWEEP_GRACE = "90m", CIRROLOG_TOPIC_CONFIG = var.topic_config, CIRROLOG_DRY_RUN = "true" })
    error_message = "the variables of sweep"
  }
  assert {
    condition     = aws_lambda_function.this["sweep"].vpc_config[0].subnet_ids == toset(["subnet-a"]) && [for s in jsondecode(aws_iam_role_policy.this["sweep"].policy).Statement : s.Sid] == ["Logs", "Network"]
    error_message = "the function does not reach ElastiCache"
  }
  assert {
    condition     = length(aws_s3_bucket_notification.verify) + length(aws_sqs_queue.failed) == 0 && output.failed_queue == null && output.function_names == { sweep = "prod-sweep" }
    error_message = "verify was made"
  }
}

run "verify_without_prefix" {
  variables {
    sweep        = null
    metadata_url = null
    bucket_url   = "s3://a-bucket?region=eu-central-1"
    retries      = 0
  }
  assert {
    condition     = aws_s3_bucket_notification.verify[0].lambda_function[0].filter_prefix == "data/" && aws_lambda_function_event_invoke_config.verify[0].maximum_retry_attempts == 0 && length(aws_cloudwatch_event_rule.sweep) == 0
    error_message = "verify alone"
  }
}

run "bad_name" {
  command = plan
  variables {
    name = "a cluster"
  }
  expect_failures = [var.name]
}

run "bad_bucket" {
  command = plan
  variables {
    bucket_arn = "a-bucket"
  }
  expect_failures = [var.bucket_arn]
}

run "bad_bucket_url" {
  command = plan
  variables {
    bucket_url = "s3://a-bucket/eu"
  }
  expect_failures = [var.bucket_url]
}

run "two_buckets" {
  command = plan
  variables {
    bucket_url = "s3://another/eu?region=eu-central-1"
  }
  expect_failures = [var.bucket_url]
}

run "no_sweep_zip" {
  command = plan
  variables {
    sweep = { zip = "none.zip", role_name = "r", role_arn = "arn:aws:iam::123456789012:role/r" }
  }
  expect_failures = [var.sweep]
}

run "bad_sweep_role" {
  command = plan
  variables {
    sweep = { zip = "tests/function.zip", role_name = "r", role_arn = "r" }
  }
  expect_failures = [var.sweep]
}

run "no_verify_zip" {
  command = plan
  variables {
    verify = { zip = "none.zip", role_name = "r", role_arn = "arn:aws:iam::123456789012:role/r" }
  }
  expect_failures = [var.verify]
}

run "bad_verify_role" {
  command = plan
  variables {
    verify = { zip = "tests/function.zip", role_name = "arn:aws:iam::123456789012:role/r", role_arn = "arn:aws:iam::123456789012:role/r" }
  }
  expect_failures = [var.verify]
}

run "no_metadata" {
  command = plan
  variables {
    metadata_url = null
  }
  expect_failures = [var.metadata_url]
}

run "bad_topic_config" {
  command = plan
  variables {
    topic_config = "retention.ms"
  }
  expect_failures = [var.topic_config]
}

run "bad_schedule" {
  command = plan
  variables {
    schedule = "hourly"
  }
  expect_failures = [var.schedule]
}

run "bad_grace" {
  command = plan
  variables {
    grace = "1 hour"
  }
  expect_failures = [var.grace]
}

run "bad_network" {
  command = plan
  variables {
    network = { subnet_ids = [], security_group_ids = ["sg-1"] }
  }
  expect_failures = [var.network]
}

run "redis_without_network" {
  command = plan
  variables {
    metadata_url = "redis://host:6379"
  }
  expect_failures = [var.network]
}

run "bad_retries" {
  command = plan
  variables {
    retries = 3
  }
  expect_failures = [var.retries]
}

run "bad_memory" {
  command = plan
  variables {
    memory_mib = 64
  }
  expect_failures = [var.memory_mib]
}

run "bad_timeout" {
  command = plan
  variables {
    timeout_seconds = 901
  }
  expect_failures = [var.timeout_seconds]
}

run "bad_log_retention" {
  command = plan
  variables {
    log_retention_days = 10
  }
  expect_failures = [var.log_retention_days]
}
