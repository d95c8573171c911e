output "bootstrap" {
  description = "What clients get as bootstrap.servers. Null: there is no load balancer."
  value       = module.agents.bootstrap
}

output "http_url" {
  description = "The HTTP gateway of the agents. Null: they have none, or there is no load balancer."
  value       = module.agents.http_url
}

output "ingest_url" {
  description = "The function ingest. Null: there is none."
  value       = var.ingest == null ? null : module.ingest[0].url
}

output "bucket_url" {
  description = "What --bucket takes, as of cirrolog recover."
  value       = module.storage.url
}

output "metadata_url" {
  description = "What --metadata takes."
  value       = module.metadata.url
  sensitive   = true
}

output "vpc_id" {
  description = "The VPC."
  value       = module.network.vpc_id
}

output "subnets" {
  description = "Its private subnets by zone."
  value       = module.network.subnets
}

output "route_table_ids" {
  description = "Their route tables by zone, if the VPC was made, for routes to clients elsewhere."
  value       = module.network.route_table_ids
}

output "security_group_ids" {
  description = "Security groups; whoever has clients reaches Kafka."
  value       = module.network.security_group_ids
}

output "role_arns" {
  description = "Roles by agent, gateway, sweeper, verifier."
  value       = module.iam.role_arns
}

output "agents" {
  description = "Names of the Auto Scaling group, or of the ECS cluster and its services by zone."
  value       = { autoscaling_group = module.agents.autoscaling_group, ecs_cluster = module.agents.ecs_cluster, ecs_services = module.agents.ecs_services }
}

output "failed_queue" {
  description = "Queue of the segments that verify failed on. Null: there is no verify."
  value       = var.verify ? module.jobs[0].failed_queue : null
}

output "alarms" {
  description = "ARNs of the alarms."
  value       = var.alarms ? module.observability[0].alarms : {}
}

output "dashboard" {
  description = "Name of the dashboard. Null: there is none."
  value       = var.alarms ? module.observability[0].dashboard : null
}

output "cost_estimate" {
  description = "US dollars a month for load at prices, by the formulas of cirrolog cost: agents, requests, storage, traffic between zones, metadata store. Without load balancer, NAT, endpoints, functions and CloudWatch."
  value       = { for part, dollars in local.cost : part => floor(dollars * 100 + 0.5) / 100 }
}
