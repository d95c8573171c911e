# Three widgets a line, of each part that there is.
locals {
  dim = { for name, dimensions in { targets = local.targets, group = local.group, requests = local.requests, rows = local.rows } : name => flatten([for k, v in dimensions : [k, v]]) }

  # Title, what it is of, whether that is there, and metric and statistic of each line.
  plain = [
    { title = "Agents at the load balancer, in a zone", of = "targets", there = local.lb, namespace = "AWS/NetworkELB", metrics = [["HealthyHostCount", "Minimum"], ["HealthyHostCount", "Maximum"], ["UnHealthyHostCount", "Maximum"]] },
    { title = "Instances", of = "group", there = local.ec2, namespace = "AWS/AutoScaling", metrics = [["GroupInServiceInstances", "Minimum"], ["GroupDesiredCapacity", "Maximum"], ["GroupTerminatingInstances", "Maximum"]] },
    { title = "Processors", of = "group", there = local.ec2, namespace = "AWS/EC2", metrics = [["CPUUtilization", "Average"], ["CPUUtilization", "Maximum"]] },
    { title = "Network", of = "group", there = local.ec2, namespace = "AWS/EC2", metrics = [["NetworkIn", "Sum"], ["NetworkOut", "Sum"]] },
    { title = "Bucket: requests", of = "requests", there = var.bucket != null, namespace = "AWS/S3", metrics = [["PutRequests", "Sum"], ["GetRequests", "Sum"], ["HeadRequests", "Sum"], ["ListRequests", "Sum"], ["DeleteRequests", "Sum"]] },
    { title = "Bucket: errors", of = "requests", there = var.bucket != null, namespace = "AWS/S3", metrics = [["5xxErrors", "Sum"], ["4xxErrors", "Sum"]] },
    { title = "Bucket: latency", of = "requests", there = var.bucket != null, namespace = "AWS/S3", metrics = [["TotalRequestLatency", "p50"], ["TotalRequestLatency", "p99"], ["FirstByteLatency", "p99"]] },
    { title = "Bucket: bytes", of = "requests", there = var.bucket != null, namespace = "AWS/S3", metrics = [["BytesUploaded", "Sum"], ["BytesDownloaded", "Sum"]] },
    { title = "Table: throttled", of = "rows", there = var.table != null, namespace = "AWS/DynamoDB", metrics = [["ReadThrottleEvents", "Sum"], ["WriteThrottleEvents", "Sum"]] },
    { title = "Table: units", of = "rows", there = var.table != null, namespace = "AWS/DynamoDB", metrics = [["ConsumedReadCapacityUnits", "Sum"], ["ConsumedWriteCapacityUnits", "Sum"]] },
  ]

  panels = concat(
    [for p in local.plain : { title = p.title, metrics = [for m in p.metrics : concat([p.namespace, m[0]], local.dim[p.of], [{ stat = m[1] }])] } if p.there],
    [for m in ["CPUUtilization", "MemoryUtilization"] : {
      title = "Tasks: ${m}", metrics = [for zone, service in local.fargate : ["AWS/ECS", m, "ClusterName", var.agents.ecs_cluster, "ServiceName", service, { stat = "Average", label = zone }]]
    } if length(local.fargate) > 0],
    [for m in ["DatabaseMemoryUsagePercentage", "EngineCPUUtilization", "ReplicationLag"] : {
      title = "ElastiCache: ${m}", metrics = [for node, id in local.nodes : ["AWS/ElastiCache", m, "CacheClusterId", id, { stat = "Maximum" }]]
    } if length(local.nodes) > 0],
    [for m in ["Invocations", "Errors", "Duration"] : {
      title = "Functions: ${m}", metrics = [for key, name in var.functions : ["AWS/Lambda", m, "FunctionName", name, { stat = m == "Duration" ? "Maximum" : "Sum", label = key }]]
    } if length(var.functions) > 0],
  )
}

resource "aws_cloudwatch_dashboard" "this" {
  count = var.dashboard && length(local.panels) > 0 ? 1 : 0

  dashboard_name = var.name
  dashboard_body = jsonencode({
    widgets = [for i, panel in local.panels : {
      type   = "metric"
      x      = i % 3 * 8
      y      = floor(i / 3) * 6
      width  = 8
      height = 6
      properties = {
        title   = panel.title
        metrics = panel.metrics
        region  = concat(values(aws_cloudwatch_metric_alarm.this), values(aws_cloudwatch_metric_alarm.sum))[0].region # each part has an alarm
        period  = 60
        view    = "timeSeries"
        yAxis   = { left = { min = 0 } }
      }
    }]
  })
}
