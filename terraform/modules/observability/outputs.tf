output "alarms" {
  description = "ARNs of the alarms by what they are about, for a composite alarm."
  value       = merge({ for key, a in aws_cloudwatch_metric_alarm.this : key => a.arn }, { for key, a in aws_cloudwatch_metric_alarm.sum : key => a.arn })
}

output "dashboard" {
  description = "Name of the dashboard. Null: there is none."
  value       = var.dashboard && length(local.panels) > 0 ? aws_cloudwatch_dashboard.this[0].dashboard_name : null
}
