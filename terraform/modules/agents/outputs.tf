output "bootstrap" {
  description = "What clients get as bootstrap.servers: the load balancer. Null: there is none."
  value       = local.lb ? "${aws_lb.this[0].dns_name}:9092" : null
}

output "http_url" {
  description = "The HTTP gateway behind the load balancer. Null: there is none."
  value       = local.lb && var.http ? "http://${aws_lb.this[0].dns_name}:8082" : null
}

output "autoscaling_group" {
  description = "EC2: name of the Auto Scaling group, for alarms. Null: Fargate."
  value       = local.ec2 ? aws_autoscaling_group.this[0].name : null
}

output "ecs_cluster" {
  description = "Fargate: name of the ECS cluster, for alarms. Null: EC2."
  value       = local.fargate ? aws_ecs_cluster.this[0].name : null
}

output "ecs_services" {
  description = "Fargate: names of the services by zone, for alarms."
  value       = { for zone, service in aws_ecs_service.this : zone => service.name }
}

output "load_balancer" {
  description = "The load balancer and the group of its Kafka targets, as CloudWatch names them, for alarms. Null: there is none."
  value       = local.lb ? { load_balancer = aws_lb.this[0].arn_suffix, target_group = aws_lb_target_group.this["kafka"].arn_suffix } : null
}

output "agents" {
  description = "How many agents there are to be."
  value       = var.agents
}

output "user_data" {
  description = "EC2: what the instances get. Null: Fargate."
  value       = local.ec2 ? local.user_data : null
  sensitive   = true
}
