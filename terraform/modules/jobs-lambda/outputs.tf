output "function_names" {
  description = "Names of the functions by sweep and verify, for alarms."
  value       = { for name, f in aws_lambda_function.this : name => f.function_name }
}

output "failed_queue" {
  description = "Name and URL of the queue of the events that verify failed on. Null: there is no verify."
  value       = var.verify == null ? null : { name = aws_sqs_queue.failed[0].name, url = aws_sqs_queue.failed[0].url }
}
