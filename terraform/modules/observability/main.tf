# What AWS sees of a cluster from outside. What only agents know is in their own metrics: README.md has the list.

locals {
  ec2     = var.agents == null ? false : var.agents.autoscaling_group != null
  lb      = var.agents == null ? false : var.agents.load_balancer != null
  fargate = var.agents == null ? {} : var.agents.ecs_services
  nodes   = var.cache == null ? {} : { for i in range(var.cache.nodes) : format("%03d", i + 1) => "${var.cache.id}-${format("%03d", i + 1)}" }

  targets = local.lb ? { LoadBalancer = var.agents.load_balancer.load_balancer, TargetGroup = var.agents.load_balancer.target_group } : {}
  group   = local.ec2 ? { AutoScalingGroupName = var.agents.autoscaling_group } : {}

  # One metric each: period and how many of them, in which statistic, compared how; what missing data mean.
  alarms = merge(
    { for key in local.lb ? ["no-agents"] : [] : key => {
      description = "No agent answers at its Kafka port: look at the journal of an instance, or the log of a task. docs/operations.md#cirrolognodedown"
      namespace   = "AWS/NetworkELB", metric = "HealthyHostCount", dimensions = local.targets
      statistic   = "Maximum", period = 60, periods = 2, comparison = "LessThanThreshold", threshold = 1, missing = "breaching"
    } },
    { for key in local.lb ? ["agent-down"] : [] : key => {
      description = "An agent does not answer at its Kafka port; its partitions have gone on at others after seconds. docs/operations.md#cirrolognodedown"
      namespace   = "AWS/NetworkELB", metric = "UnHealthyHostCount", dimensions = local.targets
      statistic   = "Maximum", period = 60, periods = 10, comparison = "GreaterThanThreshold", threshold = 0, missing = "notBreaching"
    } },
    { for key in local.ec2 ? ["instances"] : [] : key => {
      description = "The Auto Scaling group has fewer instances than it should: its activities tell why, as no capacity of these types in a zone."
      namespace   = "AWS/AutoScaling", metric = "GroupInServiceInstances", dimensions = local.group
      statistic   = "Minimum", period = 60, periods = 15, comparison = "LessThanThreshold", threshold = var.agents.count, missing = "breaching"
    } },
    { for key in local.ec2 ? ["cpu"] : [] : key => {
      description = "Agents use more than 80 % of their processors: add agents, or larger instances. docs/operations.md#sizing"
      namespace   = "AWS/EC2", metric = "CPUUtilization", dimensions = local.group
      statistic   = "Average", period = 300, periods = 3, comparison = "GreaterThanThreshold", threshold = 80, missing = "notBreaching"
    } },
    { for zone, service in local.fargate : "cpu-${zone}" => {
      description = "Agents in ${zone} use more than 80 % of their processors: add agents, or larger tasks. docs/operations.md#sizing"
      namespace   = "AWS/ECS", metric = "CPUUtilization", dimensions = { ClusterName = var.agents.ecs_cluster, ServiceName = service }
      statistic   = "Average", period = 300, periods = 3, comparison = "GreaterThanThreshold", threshold = 80, missing = "breaching"
    } },
    { for zone, service in local.fargate : "memory-${zone}" => {
      description = "Agents in ${zone} use more than 90 % of their memory: lower --memory-tail, --cache-memory or --read-memory, or give tasks more."
      namespace   = "AWS/ECS", metric = "MemoryUtilization", dimensions = { ClusterName = var.agents.ecs_cluster, ServiceName = service }
      statistic   = "Maximum", period = 300, periods = 2, comparison = "GreaterThanThreshold", threshold = 90, missing = "notBreaching"
    } },
    { for key in var.bucket == null ? [] : ["bucket-slow"] : key => {
      description = "1 % of the requests to the bucket take more than a second: producers wait for puts. docs/operations.md#cirrologrequestlatency"
      namespace   = "AWS/S3", metric = "TotalRequestLatency", dimensions = local.requests
      statistic   = "p99", period = 300, periods = 3, comparison = "GreaterThanThreshold", threshold = 1000, missing = "notBreaching"
    } },
    { for node, id in local.nodes : "cache-evicts-${node}" => {
      description = "${id} throws metadata away: its parameter group must have maxmemory-policy noeviction. docs/operations.md#a-metadata-store-that-is-lost"
      namespace   = "AWS/ElastiCache", metric = "Evictions", dimensions = { CacheClusterId = id }
      statistic   = "Sum", period = 60, periods = 1, comparison = "GreaterThanThreshold", threshold = 0, missing = "notBreaching"
    } },
    { for node, id in local.nodes : "cache-full-${node}" => {
      description = "${id} uses more than 80 % of its memory; when it is full, nothing can be made or indexed: take larger nodes."
      namespace   = "AWS/ElastiCache", metric = "DatabaseMemoryUsagePercentage", dimensions = { CacheClusterId = id }
      statistic   = "Maximum", period = 300, periods = 2, comparison = "GreaterThanThreshold", threshold = 80, missing = "notBreaching"
    } },
    { for key, name in var.functions : "${key}-errors" => {
      description = "The function ${name} fails: its log has one line with errorType. docs/lambda.md"
      namespace   = "AWS/Lambda", metric = "Errors", dimensions = { FunctionName = name }
      statistic   = "Sum", period = 300, periods = 1, comparison = "GreaterThanThreshold", threshold = 0, missing = "notBreaching"
    } },
    { for key, name in var.functions : "${key}-throttled" => {
      description = "Calls of the function ${name} are refused: its concurrency, or the account's, is used up."
      namespace   = "AWS/Lambda", metric = "Throttles", dimensions = { FunctionName = name }
      statistic   = "Sum", period = 300, periods = 2, comparison = "GreaterThanThreshold", threshold = 0, missing = "notBreaching"
    } },
    { for key in var.failed_queue == null ? [] : ["segments-damaged"] : key => {
      description = "The function verify failed on a segment to the end: the message names it, cirrolog segment verify --bucket tells more. docs/lambda.md#verify"
      namespace   = "AWS/SQS", metric = "ApproximateNumberOfMessagesVisible", dimensions = { QueueName = var.failed_queue }
      statistic   = "Maximum", period = 300, periods = 1, comparison = "GreaterThanThreshold", threshold = 0, missing = "notBreaching"
    } },
  )

  requests = var.bucket == null ? {} : { BucketName = var.bucket.name, FilterId = var.name }
  rows     = var.table == null ? {} : { TableName = var.table }

  # Made of several metrics. Throttling is told for the table as a whole, errors of DynamoDB for each operation only.
  sums = merge(
    { for key in var.table == null ? [] : ["table-throttles"] : key => {
      description = "DynamoDB throttles the table: leases of agents are renewed late. On demand it follows the load within minutes; look for a limit of the account or the table."
      expression  = "FILL(r, 0) + FILL(w, 0)", threshold = 0, periods = 3
      metrics = {
        r = { namespace = "AWS/DynamoDB", metric = "ReadThrottleEvents", dimensions = local.rows }
        w = { namespace = "AWS/DynamoDB", metric = "WriteThrottleEvents", dimensions = local.rows }
      }
    } },
    { for key in var.table == null ? [] : ["table-errors"] : key => {
      description = "DynamoDB answers with errors of its own. docs/operations.md#a-metadata-store-that-is-lost"
      expression  = join(" + ", [for i, operation in local.operations : "FILL(o${i}, 0)"]), threshold = 5, periods = 3
      metrics     = { for i, operation in local.operations : "o${i}" => { namespace = "AWS/DynamoDB", metric = "SystemErrors", dimensions = merge(local.rows, { Operation = operation }) } }
    } },
    { for key in var.bucket == null ? [] : ["bucket-errors"] : key => {
      description = "S3 answers more than 1 % of the requests with 5xx: it has errors, or asks for fewer requests (503). docs/operations.md#cirrologobjstoreerrors"
      expression  = "100 * FILL(e, 0) / a", threshold = 1, periods = 3
      metrics = {
        e = { namespace = "AWS/S3", metric = "5xxErrors", dimensions = local.requests }
        a = { namespace = "AWS/S3", metric = "AllRequests", dimensions = local.requests }
      }
    } },
  )
  operations = ["BatchGetItem", "GetItem", "PutItem", "Query", "TransactWriteItems", "UpdateItem"]
}

resource "aws_s3_bucket_metric" "this" {
  count = var.bucket == null ? 0 : 1

  bucket = var.bucket.name
  name   = var.name

  dynamic "filter" {
    for_each = var.bucket.prefix == "" ? [] : ["${var.bucket.prefix}/"]

    content {
      prefix = filter.value
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = local.alarms

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.description
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = startswith(each.value.statistic, "p") ? null : each.value.statistic
  extended_statistic  = startswith(each.value.statistic, "p") ? each.value.statistic : null
  period              = each.value.period
  evaluation_periods  = each.value.periods
  comparison_operator = each.value.comparison
  threshold           = each.value.threshold
  treat_missing_data  = each.value.missing
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags
}

resource "aws_cloudwatch_metric_alarm" "sum" {
  for_each = local.sums

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.description
  evaluation_periods  = each.value.periods
  comparison_operator = "GreaterThanThreshold"
  threshold           = each.value.threshold
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags

  metric_query {
    id          = "result"
    expression  = each.value.expression
    label       = each.key
    return_data = true
  }

  dynamic "metric_query" {
    for_each = each.value.metrics

    content {
      id          = metric_query.key
      return_data = false

      metric {
        namespace   = metric_query.value.namespace
        metric_name = metric_query.value.metric
        dimensions  = metric_query.value.dimensions
        period      = 60
        stat        = "Sum"
      }
    }
  }
}
