output "url" {
  description = "Where HTTP clients send requests, without a slash at the end."
  value       = trimsuffix(var.trigger == "url" ? aws_lambda_function_url.this[0].function_url : aws_apigatewayv2_stage.this[0].invoke_url, "/")
}

output "function_name" {
  description = "Name of the function, for alarms."
  value       = aws_lambda_function.this.function_name
}

output "function_arn" {
  description = "ARN of the function, for the policies of callers."
  value       = aws_lambda_function.this.arn
}

output "api_id" {
  description = "Id of the HTTP API. Null: there is a Function URL."
  value       = var.trigger == "http_api" ? aws_apigatewayv2_api.this[0].id : null
}
