# Tasks: a service for each zone, so that each has its share of agents and its rack. A task has no disk that stays, which
# topics of class object, the default, don't need.

locals {
  zones = sort(keys(var.subnets))
  tasks = { for i, zone in local.zones : zone => floor(var.agents / length(local.zones)) + (i < var.agents % length(local.zones) ? 1 : 0) }
  used  = local.fargate ? { for zone, count in local.tasks : zone => count if count > 0 } : {}

  # Where ECS may fetch the image: one repository of ECR, or registries that ask for nothing.
  ecr = try(regex("^([0-9]{12})\\.dkr\\.ecr\\.([a-z0-9-]+)\\.amazonaws\\.com(\\.cn)?/([^:@]+)", var.image), null)
}

resource "aws_cloudwatch_log_group" "this" {
  count = local.fargate ? 1 : 0

  name              = "/cirrolog/${var.name}"
  retention_in_days = var.log_retention_days
  tags              = var.tags
}

resource "aws_ecs_cluster" "this" {
  count = local.fargate ? 1 : 0

  name = var.name
  tags = var.tags
}

# What ECS does for a task before it runs.
resource "aws_iam_role" "execution" {
  count = local.fargate ? 1 : 0

  name                 = "${var.name}-execution"
  description          = "Cirrolog ${var.name}: starts tasks"
  permissions_boundary = var.permissions_boundary
  tags                 = var.tags

  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Principal = { Service = ["ecs-tasks.amazonaws.com"] }, Action = "sts:AssumeRole" }]
  })
}

resource "aws_iam_role_policy" "execution" {
  count = local.fargate ? 1 : 0

  name = "${var.name}-execution"
  role = aws_iam_role.execution[0].name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{
        Sid      = "Logs"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = ["${aws_cloudwatch_log_group.this[0].arn}:*"]
      }],
      [for ecr in [local.ecr] : {
        Sid      = "Image"
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = ["arn:${split(":", aws_cloudwatch_log_group.this[0].arn)[1]}:ecr:${ecr[1]}:${ecr[0]}:repository/${ecr[3]}"]
      } if ecr != null],
      [for ecr in [local.ecr] : {
        Sid      = "Registry"
        Effect   = "Allow"
        Action   = ["ecr:GetAuthorizationToken"] # has no resource
        Resource = ["*"]
      } if ecr != null],
      [for arn in [var.metadata_secret_arn] : {
        Sid      = "Metadata"
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue"]
        Resource = [arn]
      } if arn != null],
    )
  })
}

resource "aws_ecs_task_definition" "this" {
  for_each = local.used

  family                   = "${var.name}-${each.key}"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = tostring(var.cpu)
  memory                   = tostring(var.memory)
  task_role_arn            = var.role_arn
  execution_role_arn       = aws_iam_role.execution[0].arn
  tags                     = var.tags

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = "ARM64"
  }

  ephemeral_storage {
    size_in_gib = var.disk_gib
  }

  # With the owner that the image gives the directory.
  volume {
    name = "data"
  }

  container_definitions = jsonencode([{
    name                   = "agent"
    image                  = var.image
    essential              = true
    user                   = "65532:65532"
    readonlyRootFilesystem = true
    command                = concat(["agent", "--data-dir=/var/lib/cirrolog", "--rack=${each.key}"], [for name, value in local.flags : "--${name}=${value}"])
    environment            = [for url in [var.metadata_url] : { name = "CIRROLOG_METADATA", value = url } if url != null]
    secrets                = [for arn in [var.metadata_secret_arn] : { name = "CIRROLOG_METADATA", valueFrom = arn } if arn != null]
    mountPoints            = [{ sourceVolume = "data", containerPath = "/var/lib/cirrolog", readOnly = false }]
    portMappings           = [for port in concat(values(local.ports), [9645], var.admin ? [9644] : []) : { containerPort = port, hostPort = port, protocol = "tcp" }]
    linuxParameters        = { capabilities = { drop = ["ALL"] } }
    # SIGTERM has it give its partitions away, within 30 s (--shutdown-timeout).
    stopTimeout = 90
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.this[0].name
        awslogs-region        = aws_cloudwatch_log_group.this[0].region
        awslogs-stream-prefix = each.key
      }
    }
  }])
}

resource "aws_ecs_service" "this" {
  for_each = local.used

  name                               = "${var.name}-${each.key}"
  cluster                            = aws_ecs_cluster.this[0].arn
  task_definition                    = aws_ecs_task_definition.this[each.key].arn
  launch_type                        = "FARGATE"
  desired_count                      = each.value
  deployment_minimum_healthy_percent = 100 # a new task comes before the old one goes
  deployment_maximum_percent         = 200
  health_check_grace_period_seconds  = local.lb ? 120 : null
  propagate_tags                     = "SERVICE"
  tags                               = var.tags

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = [var.subnets[each.key]]
    security_groups  = var.security_group_ids
    assign_public_ip = false
  }

  dynamic "load_balancer" {
    for_each = aws_lb_target_group.this

    content {
      target_group_arn = load_balancer.value.arn
      container_name   = "agent"
      container_port   = local.ports[load_balancer.key]
    }
  }

  depends_on = [aws_iam_role_policy.execution, aws_lb_listener.this]
}
