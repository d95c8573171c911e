# Run by `tofu test` or `terraform test`: nothing is created.
mock_provider "aws" {
  mock_resource "aws_cloudwatch_log_group" {
    defaults = {
      arn = "arn:aws:logs:eu-central-1:123456789012:log-group:/aws/lambda/ingest"
    }
  }
  mock_resource "aws_lambda_function" {
    defaults = {
      arn        = "arn:aws:lambda:eu-central-1:123456789012:function:ingest"
      invoke_arn = "arn:aws:apigateway:eu-central-1:lambda:path/2015-03-31/functions/arn:aws:lambda:eu-central-1:123456789012:function:ingest/invocations"
    }
  }
  mock_resource "aws_lambda_function_url" {
    defaults = {
      function_url = "https://abc.lambda-url.eu-central-1.on.aws/"
    }
  }
  mock_resource "aws_apigatewayv2_api" {
    defaults = {
      id            = "abc"
      execution_arn = "arn:aws:execute-api:eu-central-1:123456789012:abc"
    }
  }
  mock_resource "aws_apigatewayv2_stage" {
    defaults = {
      invoke_url = "https://abc.execute-api.eu-central-1.amazonaws.com/"
    }
  }
}

variables {
  name               = "ingest"
  zip                = "tests/function.zip"
  brokers            = ["10.64.0.4:9092", "nlb.example.com:9092"]
  role_name          = "prod-gateway"
  role_arn           = "arn:aws:iam::123456789012:role/prod-gateway"
  subnet_ids         = ["subnet-a"]
  security_group_ids = ["sg-clients"]
}

run "function_url" {
  assert {
    condition = alltrue([
      aws_lambda_function.this.runtime == "provided.al2023",
      aws_lambda_function.this.architectures == tolist(["arm64"]),
      aws_lambda_function.this.source_code_hash == filebase64sha256("tests/function.zip"),
      aws_lambda_function.this.environment[0].variables == tomap({ CIRROLOG_BROKERS = "10.64.0.4:9092,nlb.example.com:9092" }),
      aws_lambda_function.this.vpc_config[0].security_group_ids == toset(["sg-clients"]),
      aws_lambda_function.this.timeout == 25,
      aws_lambda_function.this.reserved_concurrent_executions == null,
      aws_lambda_function.this.logging_config[0].log_group == "/aws/lambda/ingest",
    ])
    error_message = "the function"
  }
  assert {
    condition     = aws_lambda_function_url.this[0].authorization_type == "AWS_IAM" && length(aws_lambda_permission.url) + length(aws_lambda_permission.api) + length(aws_apigatewayv2_api.this) == 0
    error_message = "the URL is open to more than the account's own"
  }
  assert {
    condition     = [for s in jsondecode(aws_iam_role_policy.this.policy).Statement : s.Sid] == ["Logs", "Network"] && jsondecode(aws_iam_role_policy.this.policy).Statement[0].Resource == ["arn:aws:logs:eu-central-1:123456789012:log-group:/aws/lambda/ingest:*"]
    error_message = aws_iam_role_policy.this.policy
  }
  assert {
    condition     = output.url == "https://abc.lambda-url.eu-central-1.on.aws" && output.api_id == null && output.function_name == "ingest" && output.function_arn == "arn:aws:lambda:eu-central-1:123456789012:function:ingest"
    error_message = output.url
  }
}

run "function_url_for_others" {
  variables {
    url_callers     = ["arn:aws:iam::210987654321:role/producer"]
    timeout_seconds = 60
    concurrency     = 20
    memory_mib      = 1024
    log_level       = "WARN"
  }
  assert {
    condition = { for k, p in aws_lambda_permission.url : k => [p.action, p.principal, p.function_url_auth_type == null ? "" : p.function_url_auth_type, tostring(p.invoked_via_function_url == true)] } == {
      InvokeFunctionUrl-0 = ["lambda:InvokeFunctionUrl", "arn:aws:iam::210987654321:role/producer", "AWS_IAM", "false"]
      InvokeFunction-0    = ["lambda:InvokeFunction", "arn:aws:iam::210987654321:role/producer", "", "true"]
    }
    error_message = jsonencode(aws_lambda_permission.url)
  }
  assert {
    condition     = aws_lambda_function.this.reserved_concurrent_executions == 20 && aws_lambda_function.this.timeout == 60 && aws_lambda_function.this.memory_size == 1024 && aws_lambda_function.this.logging_config[0].application_log_level == "WARN"
    error_message = "the function"
  }
}

run "http_api" {
  variables {
    trigger = "http_api"
    rate    = 50
  }
  assert {
    condition = alltrue([
      aws_apigatewayv2_route.this[0].route_key == "$default",
      aws_apigatewayv2_route.this[0].authorization_type == "AWS_IAM",
      aws_apigatewayv2_route.this[0].authorizer_id == null,
      aws_apigatewayv2_integration.this[0].payload_format_version == "2.0",
      aws_apigatewayv2_integration.this[0].timeout_milliseconds > 1000 * aws_lambda_function.this.timeout,
      aws_apigatewayv2_stage.this[0].name == "$default",
      aws_apigatewayv2_stage.this[0].default_route_settings[0].throttling_rate_limit == 50,
      aws_lambda_permission.api[0].source_arn == "arn:aws:execute-api:eu-central-1:123456789012:abc/*/*",
      length(aws_lambda_function_url.this) + length(aws_apigatewayv2_authorizer.jwt) == 0,
    ])
    error_message = "the API"
  }
  assert {
    condition     = output.url == "https://abc.execute-api.eu-central-1.amazonaws.com" && output.api_id == "abc"
    error_message = output.url
  }
}

run "http_api_with_tokens" {
  variables {
    trigger = "http_api"
    jwt     = { issuer = "https://login.example.com/", audience = ["cirrolog"] }
  }
  assert {
    condition     = aws_apigatewayv2_route.this[0].authorization_type == "JWT" && aws_apigatewayv2_route.this[0].authorizer_id == aws_apigatewayv2_authorizer.jwt[0].id && aws_apigatewayv2_authorizer.jwt[0].jwt_configuration[0].audience == toset(["cirrolog"])
    error_message = "tokens are not asked for"
  }
}

run "bad_name" {
  command = plan
  variables {
    name = "an ingest"
  }
  expect_failures = [var.name]
}

run "no_zip" {
  command = plan
  variables {
    zip = "tests/none.zip"
  }
  expect_failures = [var.zip]
}

run "bad_broker" {
  command = plan
  variables {
    brokers = ["10.64.0.4"]
  }
  expect_failures = [var.brokers]
}

run "bad_role" {
  command = plan
  variables {
    role_name = "arn:aws:iam::123456789012:role/prod-gateway"
  }
  expect_failures = [var.role_name]
}

run "bad_role_arn" {
  command = plan
  variables {
    role_arn = "prod-gateway"
  }
  expect_failures = [var.role_arn]
}

run "no_subnet" {
  command = plan
  variables {
    subnet_ids = []
  }
  expect_failures = [var.subnet_ids]
}

run "no_security_group" {
  command = plan
  variables {
    security_group_ids = []
  }
  expect_failures = [var.security_group_ids]
}

run "bad_trigger" {
  command = plan
  variables {
    trigger = "alb"
  }
  expect_failures = [var.trigger]
}

run "url_for_everybody" {
  command = plan
  variables {
    url_callers = ["*"]
  }
  expect_failures = [var.url_callers]
}

run "callers_of_an_api" {
  command = plan
  variables {
    trigger     = "http_api"
    url_callers = ["arn:aws:iam::210987654321:root"]
  }
  expect_failures = [var.url_callers]
}

run "bad_issuer" {
  command = plan
  variables {
    trigger = "http_api"
    jwt     = { issuer = "login.example.com", audience = ["a"] }
  }
  expect_failures = [var.jwt]
}

run "tokens_at_a_url" {
  command = plan
  variables {
    jwt = { issuer = "https://login.example.com", audience = ["a"] }
  }
  expect_failures = [var.jwt]
}

run "bad_rate" {
  command = plan
  variables {
    rate = 0
  }
  expect_failures = [var.rate]
}

run "too_long_for_an_api" {
  command = plan
  variables {
    trigger         = "http_api"
    timeout_seconds = 29
  }
  expect_failures = [var.timeout_seconds]
}

run "bad_memory" {
  command = plan
  variables {
    memory_mib = 64
  }
  expect_failures = [var.memory_mib]
}

run "no_concurrency" {
  command = plan
  variables {
    concurrency = 0
  }
  expect_failures = [var.concurrency]
}

run "bad_log_retention" {
  command = plan
  variables {
    log_retention_days = 10
  }
  expect_failures = [var.log_retention_days]
}

run "bad_log_level" {
  command = plan
  variables {
    log_level = "info"
  }
  expect_failures = [var.log_level]
}
