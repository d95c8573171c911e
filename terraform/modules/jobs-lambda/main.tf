locals {
  jobs = { for name, job in { sweep = var.sweep, verify = var.verify } : name => job if job != null }

  environment = {
    sweep = merge(
      { CIRROLOG_BUCKET = var.bucket_url, CIRROLOG_METADATA = var.metadata_url, CIRROLOG_SWEEP_GRACE = var.grace },
      var.topic_config == null ? {} : { CIRROLOG_TOPIC_CONFIG = var.topic_config },
      var.dry_run ? { CIRROLOG_DRY_RUN = "true" } : {},
    )
    verify = { CIRROLOG_BUCKET = var.bucket_url }
  }

  bucket = split(":::", var.bucket_arn)[1]
  prefix = join("/", slice(split("/", split("?", var.bucket_url)[0]), 3, length(split("/", split("?", var.bucket_url)[0]))))
}

resource "aws_cloudwatch_log_group" "this" {
  for_each = local.jobs

  name              = "/aws/lambda/${var.name}-${each.key}"
  retention_in_days = var.log_retention_days
  tags              = var.tags
}

resource "aws_iam_role_policy" "this" {
  for_each = local.jobs

  name = "${var.name}-${each.key}-function"
  role = each.value.role_name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{
        Sid      = "Logs"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = ["${aws_cloudwatch_log_group.this[each.key].arn}:*"]
      }],
      # Network interfaces have no ARN before they are made.
      [for job in [each.key] : {
        Sid    = "Network"
        Effect = "Allow"
        Action = [
          "ec2:AssignPrivateIpAddresses", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface", "ec2:DescribeNetworkInterfaces",
          "ec2:DescribeSubnets", "ec2:UnassignPrivateIpAddresses",
        ]
        Resource = ["*"]
      } if job == "sweep" && var.network != null],
      [for job in [each.key] : {
        Sid      = "Failed"
        Effect   = "Allow"
        Action   = ["sqs:SendMessage"]
        Resource = [aws_sqs_queue.failed[0].arn]
      } if job == "verify"],
    )
  })
}

resource "aws_lambda_function" "this" {
  for_each = local.jobs

  function_name    = "${var.name}-${each.key}"
  description      = "Cirrolog ${var.name}: ${each.key}"
  role             = each.value.role_arn
  runtime          = "provided.al2023"
  architectures    = ["arm64"]
  handler          = "bootstrap"
  filename         = each.value.zip
  source_code_hash = filebase64sha256(each.value.zip)
  timeout          = var.timeout_seconds
  memory_size      = var.memory_mib
  tags             = var.tags

  environment {
    variables = local.environment[each.key]
  }

  dynamic "vpc_config" {
    for_each = each.key == "sweep" && var.network != null ? [var.network] : []

    content {
      subnet_ids         = vpc_config.value.subnet_ids
      security_group_ids = vpc_config.value.security_group_ids
    }
  }

  logging_config {
    log_format            = "JSON"
    application_log_level = "INFO"
    log_group             = aws_cloudwatch_log_group.this[each.key].name
  }

  depends_on = [aws_iam_role_policy.this] # Lambda tries the network's rights when the function is made
}

# sweep, on a schedule. What fails is made good by the next run.

resource "aws_cloudwatch_event_rule" "sweep" {
  count = var.sweep == null ? 0 : 1

  name                = "${var.name}-sweep"
  description         = "Cirrolog ${var.name}: keeps the bucket clean"
  schedule_expression = var.schedule
  tags                = var.tags
}

resource "aws_cloudwatch_event_target" "sweep" {
  count = var.sweep == null ? 0 : 1

  rule = aws_cloudwatch_event_rule.sweep[0].name
  arn  = aws_lambda_function.this["sweep"].arn

  depends_on = [aws_lambda_permission.sweep]
}

resource "aws_lambda_permission" "sweep" {
  count = var.sweep == null ? 0 : 1

  statement_id  = "schedule"
  function_name = aws_lambda_function.this["sweep"].function_name
  principal     = "events.amazonaws.com"
  action        = "lambda:InvokeFunction"
  source_arn    = aws_cloudwatch_event_rule.sweep[0].arn
}

resource "aws_lambda_function_event_invoke_config" "sweep" {
  count = var.sweep == null ? 0 : 1

  function_name          = aws_lambda_function.this["sweep"].function_name
  maximum_retry_attempts = 0
}

# verify, for each segment that is put. An event that fails to the end is kept: somebody must look at that segment.

resource "aws_sqs_queue" "failed" {
  count = var.verify == null ? 0 : 1

  name                      = "${var.name}-verify-failed"
  message_retention_seconds = 14 * 24 * 3600
  sqs_managed_sse_enabled   = true
  tags                      = var.tags
}

resource "aws_lambda_function_event_invoke_config" "verify" {
  count = var.verify == null ? 0 : 1

  function_name          = aws_lambda_function.this["verify"].function_name
  maximum_retry_attempts = var.retries

  destination_config {
    on_failure {
      destination = aws_sqs_queue.failed[0].arn
    }
  }
}

resource "aws_lambda_permission" "verify" {
  count = var.verify == null ? 0 : 1

  statement_id   = "bucket"
  function_name  = aws_lambda_function.this["verify"].function_name
  principal      = "s3.amazonaws.com"
  action         = "lambda:InvokeFunction"
  source_arn     = var.bucket_arn
  source_account = split(":", var.verify.role_arn)[4]
}

resource "aws_s3_bucket_notification" "verify" {
  count = var.verify == null ? 0 : 1

  bucket = local.bucket

  lambda_function {
    lambda_function_arn = aws_lambda_function.this["verify"].arn
    events              = ["s3:ObjectCreated:*"]
    filter_prefix       = local.prefix == "" ? "data/" : "${local.prefix}/data/"
  }

  depends_on = [aws_lambda_permission.verify]
}
