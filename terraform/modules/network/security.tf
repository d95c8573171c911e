# One group for each port, so that whoever makes instances chooses what they offer. What may be reached is said where it is:
# clients are let in by networks, and by the group clients, which others can take.

locals {
  ports = { kafka = 9092, http = 8082, admin = 9644, rpc = 9645, metadata = 6379, endpoints = 443 }

  groups = {
    agents    = "all agents: their own protocol, and their way out"
    kafka     = "the Kafka port: agents and the load balancer"
    http      = "the HTTP gateway: agents and the load balancer"
    admin     = "the admin port of agents"
    clients   = "whoever has it reaches the Kafka port"
    metadata  = "ElastiCache, for agents"
    endpoints = "interface endpoints, for agents"
  }

  clients = {
    kafka = coalesce(var.kafka_clients, { cidrs = [local.cidr], security_group_ids = [] })
    http  = var.http_clients
    admin = var.admin_clients
  }

  # Keys by position: ids of groups that are made in the same run are not known beforehand.
  client_cidrs  = merge([for port, who in local.clients : { for i, cidr in who.cidrs : "${port}-${i}" => { port = port, cidr = cidr } }]...)
  client_groups = merge([for port, who in local.clients : { for i, id in who.security_group_ids : "${port}-${i}" => { port = port, group = id } }]...)
}

resource "aws_security_group" "this" {
  for_each = local.groups

  name        = "${var.name}-${each.key}"
  description = "Cirrolog ${var.name}: ${each.value}"
  vpc_id      = local.vpc_id
  tags        = merge(var.tags, { Name = "${var.name}-${each.key}" })
}

resource "aws_vpc_security_group_ingress_rule" "cidr" {
  for_each = local.client_cidrs

  security_group_id = aws_security_group.this[each.value.port].id
  description       = "clients"
  ip_protocol       = "tcp"
  from_port         = local.ports[each.value.port]
  to_port           = local.ports[each.value.port]
  cidr_ipv4         = each.value.cidr
  tags              = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "group" {
  for_each = local.client_groups

  security_group_id            = aws_security_group.this[each.value.port].id
  description                  = "clients"
  ip_protocol                  = "tcp"
  from_port                    = local.ports[each.value.port]
  to_port                      = local.ports[each.value.port]
  referenced_security_group_id = each.value.group
  tags                         = var.tags
}

# Within the cluster: which group lets in whom, and who may go there.
locals {
  inside = {
    rpc       = { at = "agents", from = "agents", port = "rpc" }
    balancer  = { at = "kafka", from = "kafka", port = "kafka" } # the load balancer, and its health checks
    http      = { at = "http", from = "http", port = "http" }
    clients   = { at = "kafka", from = "clients", port = "kafka" }
    redis     = { at = "metadata", from = "agents", port = "metadata" }
    endpoints = { at = "endpoints", from = "agents", port = "endpoints" }
  }
}

resource "aws_vpc_security_group_ingress_rule" "inside" {
  for_each = local.inside

  security_group_id            = aws_security_group.this[each.value.at].id
  description                  = "${each.value.from} to ${each.value.at}"
  ip_protocol                  = "tcp"
  from_port                    = local.ports[each.value.port]
  to_port                      = local.ports[each.value.port]
  referenced_security_group_id = aws_security_group.this[each.value.from].id
  tags                         = var.tags
}

resource "aws_vpc_security_group_egress_rule" "inside" {
  for_each = local.inside

  security_group_id            = aws_security_group.this[each.value.from].id
  description                  = "${each.value.from} to ${each.value.at}"
  ip_protocol                  = "tcp"
  from_port                    = local.ports[each.value.port]
  to_port                      = local.ports[each.value.port]
  referenced_security_group_id = aws_security_group.this[each.value.at].id
  tags                         = var.tags
}

# Bucket and table.
resource "aws_vpc_security_group_egress_rule" "gateway" {
  for_each = aws_vpc_endpoint.gateway

  security_group_id = aws_security_group.this["agents"].id
  description       = each.key
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  prefix_list_id    = each.value.prefix_list_id
  tags              = var.tags
}

# Interface endpoints that a given VPC has already.
resource "aws_vpc_security_group_egress_rule" "vpc" {
  count = local.made ? 0 : 1

  security_group_id = aws_security_group.this["agents"].id
  description       = "HTTPS in the VPC"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = local.cidr
  tags              = var.tags
}

# By the NAT gateway; or by what a given VPC has instead of the endpoints that were not made.
resource "aws_vpc_security_group_egress_rule" "internet" {
  count = var.nat != "none" || !local.made && length(local.given_tables) == 0 ? 1 : 0

  security_group_id = aws_security_group.this["agents"].id
  description       = "HTTPS"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = "0.0.0.0/0"
  tags              = var.tags
}
