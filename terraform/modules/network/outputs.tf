output "vpc_id" {
  description = "Id of the VPC."
  value       = local.vpc_id
}

output "cidr" {
  description = "Its addresses."
  value       = local.cidr
}

output "subnets" {
  description = "Private subnets by zone, for agents."
  value       = local.subnets
}

output "route_table_ids" {
  description = "Route tables of the private subnets, for more routes, as to a peered VPC."
  value       = local.made ? { for zone, table in aws_route_table.private : zone => table.id } : {}
}

output "security_group_ids" {
  description = "Ids of the groups by name: agents (all of them), kafka (agents, load balancer), http, admin (agents that offer them), clients (whoever is to reach Kafka), metadata (ElastiCache), endpoints."
  value       = { for name, group in aws_security_group.this : name => group.id }
}

output "nat_addresses" {
  description = "Addresses that the internet sees, by zone."
  value       = { for zone, eip in aws_eip.nat : zone => eip.public_ip }
}
