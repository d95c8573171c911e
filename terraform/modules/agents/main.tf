locals {
  ec2     = var.launch == "ec2"
  fargate = var.launch == "fargate"
  lb      = var.load_balancer_security_group_ids != null
  ports   = merge({ kafka = 9092 }, var.http ? { http = 8082 } : {})

  # Flags that others than the user give: an instance adds its addresses and its zone itself, a task has them from its
  # definition (an address without a host is the machine's own). data-dir, config and metadata are given elsewhere.
  own_flags = {
    bucket              = var.bucket_url
    log-format          = "json"
    kafka-addr          = "0.0.0.0:9092"
    rpc-addr            = "0.0.0.0:9645"
    admin-addr          = var.admin ? "0.0.0.0:9644" : "127.0.0.1:9644"
    http-addr           = var.http ? "0.0.0.0:8082" : ""
    advertised-addr     = ":9092"
    rpc-advertised-addr = ":9645"
    rack                = null
    data-dir            = null
    config              = null
    metadata            = null
  }
  flags = merge(var.flags, { for name, value in local.own_flags : name => value if value != null })
}

# The first address of clients; from there they go to each agent by its own. So it carries little, and a zone need not
# reach another one through it.
resource "aws_lb" "this" {
  count = local.lb ? 1 : 0

  name                             = var.name
  load_balancer_type               = "network"
  internal                         = true
  subnets                          = values(var.subnets)
  security_groups                  = var.load_balancer_security_group_ids
  enable_cross_zone_load_balancing = false
  enable_deletion_protection       = var.deletion_protection
  tags                             = var.tags
}

# An agent listens from when it serves until it stops, so that a connection tells enough; /readyz asks the bucket each time.
resource "aws_lb_target_group" "this" {
  for_each = { for name, port in local.ports : name => port if local.lb }

  name                 = "${var.name}-${each.key}"
  vpc_id               = var.vpc_id
  target_type          = local.ec2 ? "instance" : "ip"
  protocol             = "TCP"
  port                 = each.value
  deregistration_delay = 15 # the hook of a termination begins after it
  tags                 = var.tags

  health_check {
    protocol            = "TCP"
    port                = "traffic-port"
    interval            = 10
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "this" {
  for_each = aws_lb_target_group.this

  load_balancer_arn        = aws_lb.this[0].arn
  protocol                 = "TCP"
  port                     = local.ports[each.key]
  tcp_idle_timeout_seconds = 600 # Kafka's clients close connections themselves after 540
  tags                     = var.tags

  default_action {
    type             = "forward"
    target_group_arn = each.value.arn
  }
}
