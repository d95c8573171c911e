# Run by `tofu test` or `terraform test`: nothing is created. The modules have tests of their own; here is how they fit.
mock_provider "aws" {
  mock_resource "aws_s3_bucket" {
    defaults = {
      id     = "a-bucket"
      arn    = "arn:aws:s3:::a-bucket"
      region = "eu-central-1"
    }
  }
  mock_resource "aws_dynamodb_table" {
    defaults = {
      arn    = "arn:aws:dynamodb:eu-central-1:123456789012:table/prod"
      region = "eu-central-1"
    }
  }
  mock_resource "aws_elasticache_replication_group" {
    defaults = {
      id                       = "prod"
      arn                      = "arn:aws:elasticache:eu-central-1:123456789012:replicationgroup:prod"
      primary_endpoint_address = "master.prod.abc.euc1.cache.amazonaws.com"
    }
  }
  mock_resource "aws_vpc" {
    defaults = { id = "vpc-1" }
  }
  mock_resource "aws_security_group" {
    defaults = {
      id     = "sg-1"
      region = "eu-central-1"
    }
  }
  mock_resource "aws_iam_role" {
    defaults = {
      arn = "arn:aws:iam::123456789012:role/mocked"
    }
  }
  mock_resource "aws_launch_template" {
    defaults = {
      id  = "lt-1"
      arn = "arn:aws:ec2:eu-central-1:123456789012:launch-template/lt-1"
    }
  }
  mock_resource "aws_lb" {
    defaults = {
      arn        = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/net/prod/1"
      arn_suffix = "net/prod/1"
      dns_name   = "prod-1.elb.eu-central-1.amazonaws.com"
    }
  }
  mock_resource "aws_lb_target_group" {
    defaults = {
      arn        = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/prod/1"
      arn_suffix = "targetgroup/prod/1"
    }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = {
      arn    = "arn:aws:logs:eu-central-1:123456789012:log-group:mocked"
      region = "eu-central-1"
    }
  }
  mock_resource "aws_ecs_cluster" {
    defaults = {
      arn = "arn:aws:ecs:eu-central-1:123456789012:cluster/prod"
    }
  }
  mock_resource "aws_ecs_task_definition" {
    defaults = {
      arn = "arn:aws:ecs:eu-central-1:123456789012:task-definition/prod:1"
    }
  }
  mock_resource "aws_lambda_function" {
    defaults = {
      arn = "arn:aws:lambda:eu-central-1:123456789012:function:mocked"
    }
  }
  mock_resource "aws_lambda_function_url" {
    defaults = {
      function_url = "https://abc.lambda-url.eu-central-1.on.aws/"
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
  mock_resource "aws_cloudwatch_metric_alarm" {
    defaults = {
      arn    = "arn:aws:cloudwatch:eu-central-1:123456789012:alarm:mocked"
      region = "eu-central-1"
    }
  }
}

variables {
  name   = "prod"
  bucket = "a-bucket"
  zones  = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
  ec2 = {
    program_url    = "s3://releases/cirrolog"
    program_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
  }
}

run "minimal" {
  assert {
    condition     = output.bootstrap == "prod-1.elb.eu-central-1.amazonaws.com:9092" && output.bucket_url == "s3://a-bucket?region=eu-central-1" && nonsensitive(output.metadata_url) == "dynamodb://prod?region=eu-central-1" && output.http_url == null && output.ingest_url == null && output.failed_queue == null
    error_message = "outputs"
  }
  assert {
    condition     = keys(output.role_arns) == ["agent"] && output.agents.autoscaling_group == "prod" && output.agents.ecs_cluster == null && output.dashboard == "prod" && length(output.subnets) == 3 && length(output.route_table_ids) == 3 && output.vpc_id == "vpc-1"
    error_message = "roles: ${jsonencode(keys(output.role_arns))}"
  }
  assert {
    condition     = toset(keys(output.alarms)) == toset(["agent-down", "bucket-errors", "bucket-slow", "cpu", "instances", "no-agents", "table-errors", "table-throttles"])
    error_message = jsonencode(keys(output.alarms))
  }
  assert {
    condition     = keys(output.security_group_ids) == ["admin", "agents", "clients", "endpoints", "http", "kafka", "metadata"]
    error_message = jsonencode(keys(output.security_group_ids))
  }
}

run "all_on_instances" {
  variables {
    prefix              = "eu/prod"
    deletion_protection = false
    nat                 = "one"
    agents              = 6
    flags               = { wal-linger = "250ms" }
    http_clients        = { cidrs = ["10.64.0.0/16"] }
    admin_clients       = { cidrs = ["10.64.0.0/20"] }
    ec2 = {
      program_url     = "s3://releases/cirrolog"
      program_sha256  = "0000000000000000000000000000000000000000000000000000000000000000"
      instance_types  = ["r7gd.2xlarge"]
      spot_percentage = 50
    }
    lambda_zips   = "tests/zips"
    ingest        = { concurrency = 50 }
    sweep         = { topic_config = "none" }
    verify        = true
    alarm_actions = ["arn:aws:sns:eu-central-1:123456789012:ops"]
    tags          = { Service = "cirrolog" }
  }
  assert {
    condition     = keys(output.role_arns) == ["agent", "gateway", "sweeper", "verifier"] && output.http_url == "http://prod-1.elb.eu-central-1.amazonaws.com:8082" && output.ingest_url == "https://abc.lambda-url.eu-central-1.on.aws" && output.failed_queue.name == "prod-verify-failed"
    error_message = "outputs: ${jsonencode(keys(output.role_arns))}"
  }
  assert {
    condition     = length(setsubtract(["ingest-errors", "sweep-errors", "verify-errors", "segments-damaged"], keys(output.alarms))) == 0
    error_message = jsonencode(keys(output.alarms))
  }
}

run "fargate_and_elasticache" {
  variables {
    launch      = "fargate"
    ec2         = null
    fargate     = { image = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/cirrolog:1.0" }
    metadata    = { store = "elasticache" }
    lambda_zips = "tests/zips"
    sweep       = {}
    alarms      = true
  }
  assert {
    condition     = nonsensitive(output.metadata_url) == "rediss://master.prod.abc.euc1.cache.amazonaws.com:6379" && output.agents.autoscaling_group == null && output.agents.ecs_cluster == "prod" && length(output.agents.ecs_services) == 3
    error_message = "outputs"
  }
  assert {
    condition     = length(setsubtract(["cache-evicts-001", "cache-evicts-002", "cpu-eu-central-1a", "sweep-errors"], keys(output.alarms))) == 0 && !contains(keys(output.alarms), "table-errors")
    error_message = jsonencode(keys(output.alarms))
  }
}

run "given_vpc_and_nothing_beside" {
  variables {
    zones         = []
    vpc           = { id = "vpc-2", cidr = "10.0.0.0/16", subnets = { eu-central-1a = "subnet-a" } }
    agents        = 1
    load_balancer = false
    alarms        = false
  }
  assert {
    condition     = output.vpc_id == "vpc-2" && output.bootstrap == null && length(output.alarms) == 0 && output.dashboard == null && output.cost_estimate.cross_zone == 0
    error_message = jsonencode(output.cost_estimate)
  }
}

# The row of 10 MiB/s and 7 days of docs/operations.md. localstack/laptop compares more loads with the program.
run "cost" {
  command = plan
  assert {
    condition     = { for part, dollars in output.cost_estimate : part => floor(dollars + 0.5) } == { instances = 468, puts = 445, reads = 2, storage = 137, cross_zone = 1027, metadata = 37, total = 2116 }
    error_message = jsonencode(output.cost_estimate)
  }
}

run "bad_name" {
  command = plan
  variables {
    name = "Prod"
  }
  expect_failures = [var.name]
}

run "bad_store" {
  command = plan
  variables {
    metadata = { store = "redis" }
  }
  expect_failures = [var.metadata]
}

run "no_nodes" {
  command = plan
  variables {
    metadata = { store = "elasticache", nodes = 0 }
  }
  expect_failures = [var.metadata]
}

run "bad_launch" {
  command = plan
  variables {
    launch = "eks"
    ec2    = null
  }
  expect_failures = [var.launch]
}

run "ec2_without_program" {
  command = plan
  variables {
    ec2 = null
  }
  expect_failures = [var.ec2]
}

run "fargate_without_image" {
  command = plan
  variables {
    launch = "fargate"
    ec2    = null
  }
  expect_failures = [var.fargate]
}

run "functions_without_zips" {
  command = plan
  variables {
    verify = true
  }
  expect_failures = [var.lambda_zips]
}

run "ingest_without_load_balancer" {
  command = plan
  variables {
    ingest        = {}
    lambda_zips   = "tests/zips"
    load_balancer = false
  }
  expect_failures = [var.ingest]
}

run "no_load" {
  command = plan
  variables {
    load = { in_mib = 0 }
  }
  expect_failures = [var.load]
}

run "bad_share" {
  command = plan
  variables {
    load = { cold = 2 }
  }
  expect_failures = [var.load]
}

run "negative_price" {
  command = plan
  variables {
    prices = { put = -1 }
  }
  expect_failures = [var.prices]
}
