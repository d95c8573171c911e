# Run by `tofu test` or `terraform test`: nothing is created. What the scripts in the user data do is tested by
# localstack/laptop.
mock_provider "aws" {
  mock_resource "aws_launch_template" {
    defaults = {
      id             = "lt-1"
      arn            = "arn:aws:ec2:eu-central-1:123456789012:launch-template/lt-1"
      latest_version = 7
    }
  }
  mock_resource "aws_lb" {
    defaults = {
      arn        = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/net/prod/1"
      arn_suffix = "net/prod/1"
      dns_name   = "prod-1.elb.eu-central-1.amazonaws.com"
    }
  }
  mock_resource "aws_lb_target_group" {
    defaults = {
      arn        = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/prod/1"
      arn_suffix = "targetgroup/prod/1"
    }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = {
      arn    = "arn:aws:logs:eu-central-1:123456789012:log-group:/cirrolog/prod"
      region = "eu-central-1"
    }
  }
  mock_resource "aws_iam_role" {
    defaults = {
      arn = "arn:aws:iam::123456789012:role/mocked"
    }
  }
  mock_resource "aws_ecs_cluster" {
    defaults = {
      arn = "arn:aws:ecs:eu-central-1:123456789012:cluster/prod"
    }
  }
  mock_resource "aws_ecs_task_definition" {
    defaults = {
      arn = "arn:aws:ecs:eu-central-1:123456789012:task-definition/prod:1"
    }
  }
}

variables {
  name                             = "prod"
  bucket_url                       = "s3://a-bucket/eu/prod?region=eu-central-1"
  metadata_url                     = "dynamodb://a-table?region=eu-central-1"
  vpc_id                           = "vpc-1"
  subnets                          = { eu-central-1a = "subnet-a", eu-central-1b = "subnet-b", eu-central-1c = "subnet-c" }
  security_group_ids               = ["sg-agents", "sg-kafka"]
  load_balancer_security_group_ids = ["sg-kafka"]
  role_name                        = "prod-agent"
  instance_profile                 = "prod-agent"
  program_url                      = "s3://releases/cirrolog/1.0/cirrolog_linux_arm64.tar.gz"
  program_sha256                   = "0000000000000000000000000000000000000000000000000000000000000000"
}

run "instances_by_default" {
  assert {
    condition = alltrue([
      aws_autoscaling_group.this[0].min_size == 3,
      aws_autoscaling_group.this[0].desired_capacity == 3,
      aws_autoscaling_group.this[0].max_size == 6,
      aws_autoscaling_group.this[0].vpc_zone_identifier == toset(["subnet-a", "subnet-b", "subnet-c"]),
      aws_autoscaling_group.this[0].health_check_type == "ELB",
      aws_autoscaling_group.this[0].mixed_instances_policy[0].launch_template[0].override[0].instance_type == "m7gd.xlarge",
      aws_autoscaling_group.this[0].mixed_instances_policy[0].launch_template[0].launch_template_specification[0].version == "7",
      aws_autoscaling_group.this[0].mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 100,
      aws_autoscaling_group.this[0].instance_refresh[0].preferences[0].auto_rollback == false,
      aws_autoscaling_group.this[0].instance_refresh[0].preferences[0].min_healthy_percentage == 100,
      length(aws_ecs_service.this) + length(aws_ecs_cluster.this) + length(aws_iam_role.execution) == 0,
    ])
    error_message = "the group: ${jsonencode(aws_autoscaling_group.this[0].mixed_instances_policy)}"
  }
  assert {
    condition = alltrue([
      aws_launch_template.this[0].metadata_options[0].http_tokens == "required",
      aws_launch_template.this[0].metadata_options[0].http_put_response_hop_limit == 1,
      aws_launch_template.this[0].block_device_mappings[0].ebs[0].encrypted == "true",
      aws_launch_template.this[0].iam_instance_profile[0].name == "prod-agent",
      aws_launch_template.this[0].vpc_security_group_ids == toset(["sg-agents", "sg-kafka"]),
      base64decode(aws_launch_template.this[0].user_data) == nonsensitive(output.user_data),
    ])
    error_message = "the launch template"
  }
  assert {
    condition     = aws_autoscaling_lifecycle_hook.drain[0].lifecycle_transition == "autoscaling:EC2_INSTANCE_TERMINATING" && aws_autoscaling_lifecycle_hook.drain[0].heartbeat_timeout == 120 && aws_autoscaling_lifecycle_hook.drain[0].default_result == "CONTINUE"
    error_message = "an instance is not held until it has drained"
  }
  assert {
    condition = jsondecode(aws_iam_role_policy.instance[0].policy).Statement == [
      { Sid = "Drained", Effect = "Allow", Action = ["autoscaling:CompleteLifecycleAction"], Resource = ["arn:aws:autoscaling:eu-central-1:123456789012:autoScalingGroup:*:autoScalingGroupName/prod"] },
      { Sid = "Program", Effect = "Allow", Action = ["s3:GetObject"], Resource = ["arn:aws:s3:::releases/cirrolog/1.0/cirrolog_linux_arm64.tar.gz"] },
    ]
    error_message = aws_iam_role_policy.instance[0].policy
  }
  assert {
    condition = { for f in jsondecode(trimprefix(nonsensitive(output.user_data), "#cloud-config\n")).write_files : f.path => f.permissions } == {
      "/etc/systemd/system/cirrolog@.service"                         = "0644"
      "/etc/systemd/system/cirrolog@agent.service.d/10-instance.conf" = "0644"
      "/etc/systemd/system/cirrolog-setup.service"                    = "0644"
      "/etc/systemd/system/cirrolog-drain.service"                    = "0644"
      "/usr/local/lib/cirrolog/setup.sh"                              = "0755"
      "/usr/local/lib/cirrolog/drain.sh"                              = "0755"
      "/etc/cirrolog/instance.env"                                    = "0644"
      "/etc/cirrolog/flags.yaml"                                      = "0644"
      "/etc/cirrolog/agent.env"                                       = "0600"
    }
    error_message = nonsensitive(output.user_data)
  }
  assert {
    condition = yamldecode({ for f in jsondecode(trimprefix(nonsensitive(output.user_data), "#cloud-config\n")).write_files : f.path => f.content }["/etc/cirrolog/flags.yaml"]) == {
      bucket     = "s3://a-bucket/eu/prod?region=eu-central-1"
      kafka-addr = "0.0.0.0:9092"
      rpc-addr   = "0.0.0.0:9645"
      admin-addr = "127.0.0.1:9644"
      http-addr  = ""
      log-format = "json"
    }
    error_message = nonsensitive(output.user_data)
  }
  assert {
    condition = alltrue([
      aws_lb.this[0].internal,
      aws_lb.this[0].load_balancer_type == "network",
      aws_lb.this[0].security_groups == toset(["sg-kafka"]),
      aws_lb.this[0].enable_deletion_protection,
      keys(aws_lb_target_group.this) == ["kafka"],
      aws_lb_target_group.this["kafka"].target_type == "instance",
      aws_lb_target_group.this["kafka"].port == 9092,
      aws_lb_listener.this["kafka"].port == 9092,
    ])
    error_message = "the load balancer"
  }
  assert {
    condition     = output.bootstrap == "prod-1.elb.eu-central-1.amazonaws.com:9092" && output.http_url == null && output.autoscaling_group == "prod" && output.ecs_cluster == null && output.load_balancer == { load_balancer = "net/prod/1", target_group = "targetgroup/prod/1" } && output.agents == 3
    error_message = "outputs"
  }
}

run "instances_with_all" {
  variables {
    agents              = 6
    metadata_url        = null
    metadata_secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:prod-metadata-AbCdEf"
    flags               = { wal-linger = "250ms", topic-config = "retention.ms=604800000" }
    http                = true
    admin               = true
    deletion_protection = false
    instance_types      = ["r7gd.2xlarge", "r8gd.2xlarge"]
    spot_percentage     = 50
    image_id            = "ami-0123456789abcdef0"
    program_url         = "https://example.com/cirrolog.rpm"
    root_volume_gib     = 20
    drain_seconds       = 300
    tags                = { Service = "cirrolog" }
  }
  assert {
    condition = alltrue([
      [for o in aws_autoscaling_group.this[0].mixed_instances_policy[0].launch_template[0].override : o.instance_type] == ["r7gd.2xlarge", "r8gd.2xlarge"],
      aws_autoscaling_group.this[0].mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 50,
      aws_autoscaling_group.this[0].capacity_rebalance,
      aws_autoscaling_group.this[0].instance_refresh[0].preferences[0].auto_rollback,
      aws_autoscaling_lifecycle_hook.drain[0].heartbeat_timeout == 300,
      length(aws_autoscaling_group.this[0].target_group_arns) > 0,
    ])
    error_message = "the group: ${jsonencode(aws_autoscaling_group.this[0].mixed_instances_policy)}"
  }
  assert {
    condition     = [for s in jsondecode(aws_iam_role_policy.instance[0].policy).Statement : s.Sid] == ["Drained", "Metadata"]
    error_message = aws_iam_role_policy.instance[0].policy
  }
  assert {
    condition     = toset(keys(aws_lb_listener.this)) == toset(["http", "kafka"]) && output.http_url == "http://prod-1.elb.eu-central-1.amazonaws.com:8082"
    error_message = "HTTP is not behind the load balancer"
  }
  assert {
    condition     = strcontains(nonsensitive(output.user_data), "METADATA_SECRET='arn:aws:secretsmanager:")
    error_message = "the secret is not told to the instance"
  }
  assert {
    condition     = [for f in jsondecode(trimprefix(nonsensitive(output.user_data), "#cloud-config\n")).write_files : f.content if f.path == "/etc/cirrolog/agent.env"] == [""]
    error_message = "agent.env is not empty"
  }
  assert {
    condition     = yamldecode({ for f in jsondecode(trimprefix(nonsensitive(output.user_data), "#cloud-config\n")).write_files : f.path => f.content }["/etc/cirrolog/flags.yaml"])["wal-linger"] == "250ms" && strcontains(nonsensitive(output.user_data), "0.0.0.0:9644")
    error_message = nonsensitive(output.user_data)
  }
}

run "instances_without_load_balancer" {
  variables {
    load_balancer_security_group_ids = null
  }
  assert {
    condition     = length(aws_lb.this) + length(aws_lb_target_group.this) + length(aws_lb_listener.this) == 0 && aws_autoscaling_group.this[0].health_check_type == "EC2" && output.bootstrap == null && output.load_balancer == null
    error_message = "there is a load balancer"
  }
}

run "fargate" {
  variables {
    launch           = "fargate"
    agents           = 4
    image            = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/cirrolog:1.0"
    role_arn         = "arn:aws:iam::123456789012:role/prod-agent"
    instance_profile = null
    program_url      = null
    program_sha256   = null
    flags            = { wal-linger = "250ms" }
  }
  assert {
    condition     = { for zone, s in aws_ecs_service.this : zone => s.desired_count } == { eu-central-1a = 2, eu-central-1b = 1, eu-central-1c = 1 } && output.ecs_services == { eu-central-1a = "prod-eu-central-1a", eu-central-1b = "prod-eu-central-1b", eu-central-1c = "prod-eu-central-1c" }
    error_message = "zones: ${jsonencode({ for zone, s in aws_ecs_service.this : zone => s.desired_count })}"
  }
  assert {
    condition     = alltrue([for zone, s in aws_ecs_service.this : s.network_configuration[0].subnets == toset([var.subnets[zone]]) && !s.network_configuration[0].assign_public_ip && s.deployment_minimum_healthy_percent == 100])
    error_message = "a service is not in its zone"
  }
  assert {
    condition = alltrue([for zone, t in aws_ecs_task_definition.this : alltrue([
      t.runtime_platform[0].cpu_architecture == "ARM64",
      t.network_mode == "awsvpc",
      t.ephemeral_storage[0].size_in_gib == 30,
      t.task_role_arn == "arn:aws:iam::123456789012:role/prod-agent",
      jsondecode(nonsensitive(t.container_definitions))[0].readonlyRootFilesystem,
      jsondecode(nonsensitive(t.container_definitions))[0].user == "65532:65532",
      jsondecode(nonsensitive(t.container_definitions))[0].linuxParameters.capabilities.drop == ["ALL"],
      jsondecode(nonsensitive(t.container_definitions))[0].environment == [{ name = "CIRROLOG_METADATA", value = "dynamodb://a-table?region=eu-central-1" }],
      jsondecode(nonsensitive(t.container_definitions))[0].command == [
        "agent", "--data-dir=/var/lib/cirrolog", "--rack=${zone}", "--admin-addr=127.0.0.1:9644", "--advertised-addr=:9092",
        "--bucket=s3://a-bucket/eu/prod?region=eu-central-1", "--http-addr=", "--kafka-addr=0.0.0.0:9092", "--log-format=json",
        "--rpc-addr=0.0.0.0:9645", "--rpc-advertised-addr=:9645", "--wal-linger=250ms",
      ],
    ])])
    error_message = nonsensitive(aws_ecs_task_definition.this["eu-central-1a"].container_definitions)
  }
  assert {
    condition = jsondecode(aws_iam_role_policy.execution[0].policy).Statement == [
      { Sid = "Logs", Effect = "Allow", Action = ["logs:CreateLogStream", "logs:PutLogEvents"], Resource = ["arn:aws:logs:eu-central-1:123456789012:log-group:/cirrolog/prod:*"] },
      { Sid = "Image", Effect = "Allow", Action = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], Resource = ["arn:aws:ecr:eu-central-1:123456789012:repository/cirrolog"] },
      { Sid = "Registry", Effect = "Allow", Action = ["ecr:GetAuthorizationToken"], Resource = ["*"] },
    ]
    error_message = aws_iam_role_policy.execution[0].policy
  }
  assert {
    condition     = aws_lb_target_group.this["kafka"].target_type == "ip" && output.ecs_cluster == "prod" && output.autoscaling_group == null && length(aws_launch_template.this) + length(aws_autoscaling_group.this) + length(aws_iam_role_policy.instance) == 0 && nonsensitive(output.user_data) == null
    error_message = "there are instances"
  }
}

run "fargate_with_secret_in_one_zone" {
  variables {
    launch               = "fargate"
    agents               = 1
    image                = "ghcr.io/example/cirrolog@sha256:0000000000000000000000000000000000000000000000000000000000000000"
    role_arn             = "arn:aws:iam::123456789012:role/prod-agent"
    metadata_url         = null
    metadata_secret_arn  = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:prod-metadata-AbCdEf"
    permissions_boundary = "arn:aws:iam::123456789012:policy/bound"
    cpu                  = 8192
    memory               = 61440
    http                 = true
    admin                = true
  }
  assert {
    condition     = keys(aws_ecs_service.this) == ["eu-central-1a"] && keys(aws_ecs_task_definition.this) == ["eu-central-1a"] && length(aws_ecs_service.this["eu-central-1a"].load_balancer) == 2
    error_message = "a service without tasks was made"
  }
  assert {
    condition     = jsondecode(nonsensitive(aws_ecs_task_definition.this["eu-central-1a"].container_definitions))[0].secrets == [{ name = "CIRROLOG_METADATA", valueFrom = var.metadata_secret_arn }] && length(jsondecode(nonsensitive(aws_ecs_task_definition.this["eu-central-1a"].container_definitions))[0].environment) == 0
    error_message = "the URL is not that of the secret"
  }
  assert {
    condition     = [for s in jsondecode(aws_iam_role_policy.execution[0].policy).Statement : s.Sid] == ["Logs", "Metadata"] && aws_iam_role.execution[0].permissions_boundary == "arn:aws:iam::123456789012:policy/bound"
    error_message = aws_iam_role_policy.execution[0].policy
  }
  assert {
    condition     = toset([for p in jsondecode(nonsensitive(aws_ecs_task_definition.this["eu-central-1a"].container_definitions))[0].portMappings : p.containerPort]) == toset([9092, 8082, 9645, 9644])
    error_message = "ports"
  }
}

run "bad_name" {
  command = plan
  variables {
    name = "-prod"
  }
  expect_failures = [var.name]
}

run "bad_launch" {
  command = plan
  variables {
    launch = "eks"
  }
  expect_failures = [var.launch]
}

run "half_an_agent" {
  command = plan
  variables {
    agents = 1.5
  }
  expect_failures = [var.agents]
}

run "bad_bucket" {
  command = plan
  variables {
    bucket_url = "s3://a-bucket"
  }
  expect_failures = [var.bucket_url]
}

run "bad_metadata" {
  command = plan
  variables {
    metadata_url = "mysql://db"
  }
  expect_failures = [var.metadata_url]
}

run "bad_secret" {
  command = plan
  variables {
    metadata_url        = null
    metadata_secret_arn = "prod-metadata"
  }
  expect_failures = [var.metadata_secret_arn]
}

run "two_metadata_stores" {
  command = plan
  variables {
    metadata_secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:prod-metadata-AbCdEf"
  }
  expect_failures = [var.metadata_secret_arn]
}

run "flag_with_dashes" {
  command = plan
  variables {
    flags = { "--wal-linger" = "1s" }
  }
  expect_failures = [var.flags]
}

run "own_flag" {
  command = plan
  variables {
    flags = { rack = "a" }
  }
  expect_failures = [var.flags]
}

run "bad_vpc" {
  command = plan
  variables {
    vpc_id = "prod"
  }
  expect_failures = [var.vpc_id]
}

run "bad_zone" {
  command = plan
  variables {
    subnets = { a = "subnet-a" }
  }
  expect_failures = [var.subnets]
}

run "no_security_group" {
  command = plan
  variables {
    security_group_ids = []
  }
  expect_failures = [var.security_group_ids]
}

run "load_balancer_for_nobody" {
  command = plan
  variables {
    load_balancer_security_group_ids = []
  }
  expect_failures = [var.load_balancer_security_group_ids]
}

run "bad_role" {
  command = plan
  variables {
    role_name = "arn:aws:iam::123456789012:role/prod-agent"
  }
  expect_failures = [var.role_name]
}

run "no_role_arn" {
  command = plan
  variables {
    launch = "fargate"
    image  = "cirrolog:1.0"
  }
  expect_failures = [var.role_arn]
}

run "no_instance_profile" {
  command = plan
  variables {
    instance_profile = null
  }
  expect_failures = [var.instance_profile]
}

run "bad_boundary" {
  command = plan
  variables {
    permissions_boundary = "bound"
  }
  expect_failures = [var.permissions_boundary]
}

run "no_instance_store" {
  command = plan
  variables {
    instance_types = ["m7gd.xlarge", "m7g.xlarge"]
  }
  expect_failures = [var.instance_types]
}

run "bad_spot" {
  command = plan
  variables {
    spot_percentage = 101
  }
  expect_failures = [var.spot_percentage]
}

run "bad_image_id" {
  command = plan
  variables {
    image_id = "al2023"
  }
  expect_failures = [var.image_id]
}

run "no_program" {
  command = plan
  variables {
    program_url = null
  }
  expect_failures = [var.program_url]
}

run "no_checksum" {
  command = plan
  variables {
    program_sha256 = null
  }
  expect_failures = [var.program_sha256]
}

run "small_root" {
  command = plan
  variables {
    root_volume_gib = 4
  }
  expect_failures = [var.root_volume_gib]
}

run "no_time_to_drain" {
  command = plan
  variables {
    drain_seconds = 30
  }
  expect_failures = [var.drain_seconds]
}

run "image_without_tag" {
  command = plan
  variables {
    launch   = "fargate"
    role_arn = "arn:aws:iam::123456789012:role/prod-agent"
    image    = "cirrolog"
  }
  expect_failures = [var.image]
}

run "bad_cpu" {
  command = plan
  variables {
    cpu    = 3000
    memory = 8192
  }
  expect_failures = [var.cpu]
}

run "bad_memory" {
  command = plan
  variables {
    cpu    = 8192
    memory = 17408
  }
  expect_failures = [var.memory]
}

run "small_disk" {
  command = plan
  variables {
    disk_gib = 20
  }
  expect_failures = [var.disk_gib]
}

run "bad_log_retention" {
  command = plan
  variables {
    log_retention_days = 10
  }
  expect_failures = [var.log_retention_days]
}

run "too_much_user_data" {
  command = plan
  variables {
    flags = { topic-config = format("%08000d", 0) }
  }
  expect_failures = [aws_launch_template.this]
}
