resource "aws_cloudwatch_log_group" "this" {
  name              = "/aws/lambda/${var.name}"
  retention_in_days = var.log_retention_days
  tags              = var.tags
}

# What every function in a VPC needs. Network interfaces have no ARN before they are made.
resource "aws_iam_role_policy" "this" {
  name = "${var.name}-function"
  role = var.role_name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "Logs"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = ["${aws_cloudwatch_log_group.this.arn}:*"]
      },
      {
        Sid    = "Network"
        Effect = "Allow"
        Action = [
          "ec2:AssignPrivateIpAddresses", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface", "ec2:DescribeNetworkInterfaces",
          "ec2:DescribeSubnets", "ec2:UnassignPrivateIpAddresses",
        ]
        Resource = ["*"]
      },
    ]
  })
}

resource "aws_lambda_function" "this" {
  function_name                  = var.name
  description                    = "Cirrolog: HTTP gateway"
  role                           = var.role_arn
  runtime                        = "provided.al2023"
  architectures                  = ["arm64"]
  handler                        = "bootstrap"
  filename                       = var.zip
  source_code_hash               = filebase64sha256(var.zip)
  timeout                        = var.timeout_seconds
  memory_size                    = var.memory_mib
  reserved_concurrent_executions = var.concurrency
  tags                           = var.tags

  environment {
    variables = { CIRROLOG_BROKERS = join(",", var.brokers) }
  }

  vpc_config {
    subnet_ids         = var.subnet_ids
    security_group_ids = var.security_group_ids
  }

  logging_config {
    log_format            = "JSON"
    application_log_level = var.log_level
    log_group             = aws_cloudwatch_log_group.this.name
  }

  depends_on = [aws_iam_role_policy.this] # Lambda tries the network's rights when the function is made
}

# A Function URL

resource "aws_lambda_function_url" "this" {
  count = var.trigger == "url" ? 1 : 0

  function_name      = aws_lambda_function.this.function_name
  authorization_type = "AWS_IAM"
}

# Other accounts need two rights, of which the second may be used by the URL alone.
resource "aws_lambda_permission" "url" {
  for_each = { for pair in setproduct(range(length(var.url_callers)), ["lambda:InvokeFunctionUrl", "lambda:InvokeFunction"]) : "${split(":", pair[1])[1]}-${pair[0]}" => pair }

  statement_id             = each.key
  function_name            = aws_lambda_function.this.function_name
  principal                = var.url_callers[each.value[0]]
  action                   = each.value[1]
  function_url_auth_type   = each.value[1] == "lambda:InvokeFunctionUrl" ? "AWS_IAM" : null
  invoked_via_function_url = each.value[1] == "lambda:InvokeFunction" ? true : null
}

# An HTTP API

resource "aws_apigatewayv2_api" "this" {
  count = var.trigger == "http_api" ? 1 : 0

  name          = var.name
  description   = "Cirrolog: HTTP gateway"
  protocol_type = "HTTP"
  tags          = var.tags
}

resource "aws_apigatewayv2_integration" "this" {
  count = var.trigger == "http_api" ? 1 : 0

  api_id                 = aws_apigatewayv2_api.this[0].id
  integration_type       = "AWS_PROXY"
  integration_uri        = aws_lambda_function.this.invoke_arn
  integration_method     = "POST"
  payload_format_version = "2.0"
  timeout_milliseconds   = 30000
}

resource "aws_apigatewayv2_authorizer" "jwt" {
  count = var.jwt == null ? 0 : 1

  api_id           = aws_apigatewayv2_api.this[0].id
  name             = "jwt"
  authorizer_type  = "JWT"
  identity_sources = ["$request.header.Authorization"]

  jwt_configuration {
    issuer   = var.jwt.issuer
    audience = var.jwt.audience
  }
}

resource "aws_apigatewayv2_route" "this" {
  count = var.trigger == "http_api" ? 1 : 0

  api_id             = aws_apigatewayv2_api.this[0].id
  route_key          = "$default"
  target             = "integrations/${aws_apigatewayv2_integration.this[0].id}"
  authorization_type = var.jwt == null ? "AWS_IAM" : "JWT"
  authorizer_id      = var.jwt == null ? null : aws_apigatewayv2_authorizer.jwt[0].id
}

resource "aws_apigatewayv2_stage" "this" {
  count = var.trigger == "http_api" ? 1 : 0

  api_id      = aws_apigatewayv2_api.this[0].id
  name        = "$default"
  auto_deploy = true
  tags        = var.tags

  default_route_settings {
    throttling_rate_limit  = var.rate
    throttling_burst_limit = var.rate
  }
}

resource "aws_lambda_permission" "api" {
  count = var.trigger == "http_api" ? 1 : 0

  statement_id  = "api"
  function_name = aws_lambda_function.this.function_name
  principal     = "apigateway.amazonaws.com"
  action        = "lambda:InvokeFunction"
  source_arn    = "${aws_apigatewayv2_api.this[0].execution_arn}/*/*"
}
