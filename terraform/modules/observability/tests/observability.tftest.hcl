# Run by `tofu test` or `terraform test`: nothing is created.
mock_provider "aws" {
  mock_resource "aws_cloudwatch_metric_alarm" {
    defaults = {
      arn    = "arn:aws:cloudwatch:eu-central-1:123456789012:alarm:mocked"
      region = "eu-central-1"
    }
  }
}

variables {
  name = "prod"
}

run "nothing" {
  assert {
    condition     = length(output.alarms) == 0 && output.dashboard == null && length(aws_s3_bucket_metric.this) == 0
    error_message = "something is watched: ${jsonencode(keys(output.alarms))}"
  }
}

run "instances_and_all_else" {
  variables {
    alarm_actions = ["arn:aws:sns:eu-central-1:123456789012:ops"]
    agents        = { count = 3, load_balancer = { load_balancer = "net/prod/1", target_group = "targetgroup/prod/1" }, autoscaling_group = "prod" }
    bucket        = { name = "a-bucket", prefix = "eu/prod" }
    table         = "a-table"
    functions     = { ingest = "prod-ingest", sweep = "prod-sweep" }
    failed_queue  = "prod-verify-failed"
  }
  assert {
    condition = keys(output.alarms) == [
      "agent-down", "bucket-errors", "bucket-slow", "cpu", "ingest-errors", "ingest-throttled", "instances", "no-agents", "segments-damaged",
      "sweep-errors", "sweep-throttled", "table-errors", "table-throttles",
    ]
    error_message = jsonencode(keys(output.alarms))
  }
  assert {
    condition     = alltrue([for a in concat(values(aws_cloudwatch_metric_alarm.this), values(aws_cloudwatch_metric_alarm.sum)) : a.alarm_actions == toset(var.alarm_actions) && a.ok_actions == toset(var.alarm_actions) && startswith(a.alarm_name, "prod-") && length(a.alarm_description) <= 1024])
    error_message = "an alarm is told nobody"
  }
  assert {
    condition = alltrue([
      aws_cloudwatch_metric_alarm.this["no-agents"].dimensions == tomap({ LoadBalancer = "net/prod/1", TargetGroup = "targetgroup/prod/1" }),
      aws_cloudwatch_metric_alarm.this["no-agents"].treat_missing_data == "breaching",
      aws_cloudwatch_metric_alarm.this["instances"].dimensions == tomap({ AutoScalingGroupName = "prod" }) && aws_cloudwatch_metric_alarm.this["instances"].threshold == 3,
      aws_cloudwatch_metric_alarm.this["ingest-errors"].dimensions == tomap({ FunctionName = "prod-ingest" }),
      aws_cloudwatch_metric_alarm.this["segments-damaged"].dimensions == tomap({ QueueName = "prod-verify-failed" }),
      aws_cloudwatch_metric_alarm.this["bucket-slow"].extended_statistic == "p99" && aws_cloudwatch_metric_alarm.this["bucket-slow"].statistic == null,
      aws_cloudwatch_metric_alarm.this["cpu"].statistic == "Average" && aws_cloudwatch_metric_alarm.this["cpu"].extended_statistic == null,
    ])
    error_message = "an alarm is of something else"
  }
  # Requests are counted under the name that alarms ask for.
  assert {
    condition     = aws_s3_bucket_metric.this[0].bucket == "a-bucket" && aws_s3_bucket_metric.this[0].filter[0].prefix == "eu/prod/" && aws_cloudwatch_metric_alarm.this["bucket-slow"].dimensions == tomap({ BucketName = "a-bucket", FilterId = aws_s3_bucket_metric.this[0].name })
    error_message = "the bucket's requests are not counted"
  }
  assert {
    condition     = { for q in aws_cloudwatch_metric_alarm.sum["table-throttles"].metric_query : q.id => q.return_data } == { result = true, r = false, w = false } && length(aws_cloudwatch_metric_alarm.sum["table-errors"].metric_query) == 7
    error_message = "sums: ${jsonencode(aws_cloudwatch_metric_alarm.sum["table-throttles"].metric_query)}"
  }
  # Every id of an expression is a metric of it.
  assert {
    condition = alltrue([for a in aws_cloudwatch_metric_alarm.sum :
      toset(regexall("\\b[a-z][0-9]*\\b", one([for q in a.metric_query : q.expression if q.id == "result"]))) == toset([for q in a.metric_query : q.id if q.id != "result"])
    ])
    error_message = "an expression names what is not there"
  }
  assert {
    condition     = output.dashboard == "prod" && length(jsondecode(aws_cloudwatch_dashboard.this[0].dashboard_body).widgets) == 13 && alltrue([for w in jsondecode(aws_cloudwatch_dashboard.this[0].dashboard_body).widgets : w.properties.region == "eu-central-1" && w.x + w.width <= 24 && alltrue([for m in w.properties.metrics : length(m) >= 5 && length(m) % 2 == 1])])
    error_message = aws_cloudwatch_dashboard.this[0].dashboard_body
  }
}

run "tasks_and_elasticache" {
  variables {
    agents = { count = 2, ecs_cluster = "prod", ecs_services = { eu-central-1a = "prod-eu-central-1a", eu-central-1b = "prod-eu-central-1b" } }
    cache  = { id = "prod", nodes = 2 }
    bucket = { name = "a-bucket" }
  }
  assert {
    condition = keys(output.alarms) == [
      "bucket-errors", "bucket-slow", "cache-evicts-001", "cache-evicts-002", "cache-full-001", "cache-full-002", "cpu-eu-central-1a", "cpu-eu-central-1b",
      "memory-eu-central-1a", "memory-eu-central-1b",
    ]
    error_message = jsonencode(keys(output.alarms))
  }
  assert {
    condition     = aws_cloudwatch_metric_alarm.this["cache-full-002"].dimensions == tomap({ CacheClusterId = "prod-002" }) && aws_cloudwatch_metric_alarm.this["cpu-eu-central-1b"].dimensions == tomap({ ClusterName = "prod", ServiceName = "prod-eu-central-1b" })
    error_message = "an alarm is of something else"
  }
  assert {
    condition     = length(aws_s3_bucket_metric.this[0].filter) == 0 && length(jsondecode(aws_cloudwatch_dashboard.this[0].dashboard_body).widgets) == 9
    error_message = aws_cloudwatch_dashboard.this[0].dashboard_body
  }
}

run "without_dashboard" {
  variables {
    dashboard = false
    table     = "a-table"
  }
  assert {
    condition     = length(aws_cloudwatch_dashboard.this) == 0 && keys(output.alarms) == ["table-errors", "table-throttles"]
    error_message = jsonencode(keys(output.alarms))
  }
}

run "bad_name" {
  command = plan
  variables {
    name = "a cluster"
  }
  expect_failures = [var.name]
}

run "bad_action" {
  command = plan
  variables {
    alarm_actions = ["ops@example.com"]
  }
  expect_failures = [var.alarm_actions]
}

run "half_an_agent" {
  command = plan
  variables {
    agents = { count = 0.5, autoscaling_group = "prod" }
  }
  expect_failures = [var.agents]
}

run "instances_and_tasks" {
  command = plan
  variables {
    agents = { count = 1, autoscaling_group = "prod", ecs_cluster = "prod", ecs_services = { a = "b" } }
  }
  expect_failures = [var.agents]
}

run "services_without_cluster" {
  command = plan
  variables {
    agents = { count = 1, ecs_services = { a = "b" } }
  }
  expect_failures = [var.agents]
}

run "bad_bucket" {
  command = plan
  variables {
    bucket = { name = "s3://a-bucket" }
  }
  expect_failures = [var.bucket]
}

run "bad_table" {
  command = plan
  variables {
    table = "arn:aws:dynamodb:eu-central-1:123456789012:table/a-table"
  }
  expect_failures = [var.table]
}

run "bad_cache" {
  command = plan
  variables {
    cache = { id = "prod", nodes = 0 }
  }
  expect_failures = [var.cache]
}

run "bad_function" {
  command = plan
  variables {
    functions = { "The Sweeper" = "prod-sweep" }
  }
  expect_failures = [var.functions]
}

run "bad_queue" {
  command = plan
  variables {
    failed_queue = "https://sqs.eu-central-1.amazonaws.com/123456789012/prod-verify-failed"
  }
  expect_failures = [var.failed_queue]
}
