# Instances: user data writes files, two scripts of files/ and what they are told, and starts the units. All else is in the
# scripts, which tests run.

locals {
  instance_env = {
    NAME            = var.name
    HOOK            = "${var.name}-drain"
    PROGRAM_URL     = var.program_url == null ? "" : var.program_url
    PROGRAM_SHA256  = var.program_sha256 == null ? "" : var.program_sha256
    METADATA_SECRET = var.metadata_secret_arn == null ? "" : var.metadata_secret_arn
  }

  units = {
    "cirrolog@.service"                         = file("${path.module}/files/cirrolog@.service")
    "cirrolog@agent.service.d/10-instance.conf" = "[Unit]\nRequires=cirrolog-setup.service\nAfter=cirrolog-setup.service\n"
    "cirrolog-setup.service"                    = file("${path.module}/files/cirrolog-setup.service")
    "cirrolog-drain.service"                    = file("${path.module}/files/cirrolog-drain.service")
  }

  user_data = "#cloud-config\n${jsonencode({
    write_files = concat(
      [for name, text in local.units : { path = "/etc/systemd/system/${name}", permissions = "0644", content = text }],
      [for name in ["setup.sh", "drain.sh"] : { path = "/usr/local/lib/cirrolog/${name}", permissions = "0755", content = file("${path.module}/files/${name}") }],
      [
        { path = "/etc/cirrolog/instance.env", permissions = "0644", content = join("", [for name, value in local.instance_env : "${name}='${value}'\n"]) },
        # The addresses are not known here: setup.sh adds them.
        { path = "/etc/cirrolog/flags.yaml", permissions = "0644", content = yamlencode({ for name, value in local.flags : name => value if !endswith(name, "advertised-addr") }) },
        { path = "/etc/cirrolog/agent.env", permissions = "0600", content = var.metadata_url == null ? "" : "CIRROLOG_METADATA='${var.metadata_url}'\n" },
      ],
    )
    runcmd = [
      ["systemctl", "daemon-reload"],
      ["systemctl", "enable", "--now", "cirrolog-drain.service"],
      ["systemctl", "enable", "--now", "cirrolog@agent.service"],
    ]
  })}"

  pinned = !startswith(var.image_id, "resolve:")
}

resource "aws_launch_template" "this" {
  count = local.ec2 ? 1 : 0

  name                   = var.name
  image_id               = var.image_id
  instance_type          = var.instance_types[0]
  vpc_security_group_ids = var.security_group_ids
  user_data              = base64encode(local.user_data)
  update_default_version = true
  tags                   = var.tags

  iam_instance_profile {
    name = var.instance_profile
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_type           = "gp3"
      volume_size           = var.root_volume_gib
      encrypted             = "true"
      delete_on_termination = "true"
    }
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume"]

    content {
      resource_type = tag_specifications.value
      tags          = merge(var.tags, { Name = "${var.name}-agent" })
    }
  }

  lifecycle {
    precondition {
      condition     = length(nonsensitive(local.user_data)) <= 16384
      error_message = "The user data have ${length(nonsensitive(local.user_data))} bytes, EC2 takes 16384: give fewer flags."
    }
  }
}

resource "aws_autoscaling_group" "this" {
  count = local.ec2 ? 1 : 0

  name                      = var.name
  min_size                  = var.agents
  desired_capacity          = var.agents
  max_size                  = 2 * var.agents # a new instance comes before the old one goes
  vpc_zone_identifier       = values(var.subnets)
  target_group_arns         = [for group in aws_lb_target_group.this : group.arn]
  health_check_type         = local.lb ? "ELB" : "EC2"
  health_check_grace_period = 300
  capacity_rebalance        = var.spot_percentage > 0
  enabled_metrics           = ["GroupDesiredCapacity", "GroupInServiceInstances", "GroupTerminatingInstances"]

  mixed_instances_policy {
    instances_distribution {
      on_demand_allocation_strategy            = "prioritized"
      on_demand_percentage_above_base_capacity = 100 - var.spot_percentage
      spot_allocation_strategy                 = "price-capacity-optimized"
    }

    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.this[0].id
        version            = aws_launch_template.this[0].latest_version
      }

      dynamic "override" {
        for_each = var.instance_types

        content {
          instance_type = override.value
        }
      }
    }
  }

  instance_maintenance_policy {
    min_healthy_percentage = 100
    max_healthy_percentage = 150
  }

  # What changes in the launch template, as the program, comes by this: one instance after the other, or half of them.
  instance_refresh {
    strategy = "Rolling"

    preferences {
      min_healthy_percentage = 100
      max_healthy_percentage = 150
      instance_warmup        = "60"
      skip_matching          = local.pinned # not known of an image that is a parameter, nor can that be rolled back
      auto_rollback          = local.pinned
    }
  }

  dynamic "tag" {
    for_each = merge(var.tags, { Name = "${var.name}-agent" })

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = false # the launch template does
    }
  }

  depends_on = [aws_iam_role_policy.instance]
}

# Holds an instance that is to go until drain.sh on it has stopped the agent.
resource "aws_autoscaling_lifecycle_hook" "drain" {
  count = local.ec2 ? 1 : 0

  name                   = local.instance_env.HOOK
  autoscaling_group_name = aws_autoscaling_group.this[0].name
  lifecycle_transition   = "autoscaling:EC2_INSTANCE_TERMINATING"
  heartbeat_timeout      = var.drain_seconds
  default_result         = "CONTINUE"
}

# Before the group: instances fetch the program when they start. Partition, region and account are those of the template.
locals {
  arn = local.ec2 ? split(":", aws_launch_template.this[0].arn) : []
}

resource "aws_iam_role_policy" "instance" {
  count = local.ec2 ? 1 : 0

  name = "${var.name}-instance"
  role = var.role_name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{
        Sid      = "Drained"
        Effect   = "Allow"
        Action   = ["autoscaling:CompleteLifecycleAction"]
        Resource = ["arn:${local.arn[1]}:autoscaling:${local.arn[3]}:${local.arn[4]}:autoScalingGroup:*:autoScalingGroupName/${var.name}"]
      }],
      [for url in [var.program_url] : {
        Sid      = "Program"
        Effect   = "Allow"
        Action   = ["s3:GetObject"]
        Resource = ["arn:${local.arn[1]}:s3:::${trimprefix(url, "s3://")}"]
      } if startswith(url, "s3://")],
      [for arn in [var.metadata_secret_arn] : {
        Sid      = "Metadata"
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue"]
        Resource = [arn]
      } if arn != null],
    )
  })
}
