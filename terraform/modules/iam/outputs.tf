output "role_arns" {
  description = "ARNs of the roles, by agent, reader, gateway, sweeper, verifier, operator."
  value       = { for role, r in aws_iam_role.this : role => r.arn }
}

output "role_names" {
  description = "Their names, to attach more to, as the right to write logs."
  value       = { for role, r in aws_iam_role.this : role => r.name }
}

output "instance_profiles" {
  description = "Names of the instance profiles of the roles that EC2 may take."
  value       = { for role, p in aws_iam_instance_profile.this : role => p.name }
}

output "policies" {
  description = "The policies as JSON, of all roles, made or not, for those who make roles by other means. Null: the role needs none."
  value       = local.policies
}
