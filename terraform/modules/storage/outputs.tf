output "name" {
  description = "Name of the bucket."
  value       = aws_s3_bucket.this.id
}

output "arn" {
  description = "ARN of the bucket, for policies."
  value       = aws_s3_bucket.this.arn
}

output "url" {
  description = "The URL that --bucket of an agent takes. It names no credentials."
  value = join("", [
    "s3://${aws_s3_bucket.this.id}",
    var.prefix == "" ? "" : "/${var.prefix}",
    "?region=${aws_s3_bucket.this.region}",
    var.endpoint == null ? "" : "&endpoint=${var.endpoint}",
  ])
}
