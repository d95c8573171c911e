output "name" {
  description = "Name of the table, or id of the replication group."
  value       = local.dynamodb ? aws_dynamodb_table.this[0].name : aws_elasticache_replication_group.this[0].id
}

output "arn" {
  description = "ARN of the table, or of the replication group, for policies."
  value       = local.dynamodb ? aws_dynamodb_table.this[0].arn : aws_elasticache_replication_group.this[0].arn
}

output "url" {
  description = "The URL that --metadata of an agent takes. Sensitive: that of ElastiCache holds the password."
  sensitive   = true
  value = local.dynamodb ? join("", [
    "dynamodb://${aws_dynamodb_table.this[0].name}",
    var.prefix == "" ? "" : "/${var.prefix}",
    "?region=${aws_dynamodb_table.this[0].region}",
    var.endpoint == null ? "" : "&endpoint=${var.endpoint}",
    ]) : join("", [
    "rediss://",
    var.auth_token == null ? "" : ":${urlencode(var.auth_token)}@",
    "${aws_elasticache_replication_group.this[0].primary_endpoint_address}:6379",
    var.namespace == "" ? "" : "?namespace=${var.namespace}",
  ])
}
