# A cluster: bucket, metadata store, network, roles, agents, functions, alarms. Each module can be had alone, too.

locals {
  elasticache = var.metadata.store == "elasticache"
  fargate     = var.launch == "fargate"
  http        = length(var.http_clients.cidrs) + length(var.http_clients.security_group_ids) > 0
  admin       = length(var.admin_clients.cidrs) + length(var.admin_clients.security_group_ids) > 0
  jobs        = var.sweep != null || var.verify
  groups      = module.network.security_group_ids

  # Of Fargate: without them, or NAT, a task finds neither its image nor its log.
  endpoints = local.fargate && var.nat == "none" ? ["ecr.api", "ecr.dkr", "logs"] : []

  trust = merge(
    { agent = { services = [local.fargate ? "ecs-tasks.amazonaws.com" : "ec2.amazonaws.com"] } },
    { for role, wanted in { gateway = var.ingest != null, sweeper = var.sweep != null, verifier = var.verify } : role => { services = ["lambda.amazonaws.com"] } if wanted },
  )
}

module "network" {
  source = "./modules/network"

  name                = var.name
  zones               = var.zones
  cidr                = var.cidr
  vpc                 = var.vpc
  nat                 = var.nat
  interface_endpoints = var.interface_endpoints == null ? local.endpoints : var.interface_endpoints
  kafka_clients       = var.kafka_clients
  http_clients        = var.http_clients
  admin_clients       = var.admin_clients
  tags                = var.tags
}

module "storage" {
  source = "./modules/storage"

  bucket        = var.bucket
  prefix        = var.prefix
  kms_key_arn   = var.kms_key_arn
  force_destroy = var.force_destroy
  tags          = var.tags
}

module "metadata" {
  source = "./modules/metadata"

  store               = var.metadata.store
  name                = var.name
  kms_key_arn         = var.kms_key_arn
  deletion_protection = var.deletion_protection
  node_type           = var.metadata.node_type
  replicas            = var.metadata.nodes - 1
  multi_az            = var.metadata.nodes > 1
  subnet_ids          = values(module.network.subnets)
  security_group_ids  = [local.groups.metadata]
  tags                = var.tags
}

module "iam" {
  source = "./modules/iam"

  name                 = var.name
  bucket_arn           = module.storage.arn
  prefix               = var.prefix
  table_arn            = local.elasticache ? null : module.metadata.arn
  kms_key_arns         = var.kms_key_arn == null ? [] : [var.kms_key_arn]
  trust                = local.trust
  permissions_boundary = var.permissions_boundary
  tags                 = var.tags
}

module "agents" {
  source = "./modules/agents"

  name                 = var.name
  launch               = var.launch
  agents               = var.agents
  bucket_url           = module.storage.url
  metadata_url         = module.metadata.url
  flags                = var.flags
  vpc_id               = module.network.vpc_id
  subnets              = module.network.subnets
  http                 = local.http
  admin                = local.admin
  deletion_protection  = var.deletion_protection
  role_name            = module.iam.role_names.agent
  role_arn             = module.iam.role_arns.agent
  permissions_boundary = var.permissions_boundary
  tags                 = var.tags

  security_group_ids               = concat([local.groups.agents, local.groups.kafka], local.http ? [local.groups.http] : [], local.admin ? [local.groups.admin] : [])
  load_balancer_security_group_ids = var.load_balancer ? concat([local.groups.kafka], local.http ? [local.groups.http] : []) : null

  instance_profile = local.fargate ? null : module.iam.instance_profiles.agent
  program_url      = local.fargate ? null : var.ec2.program_url
  program_sha256   = local.fargate ? null : var.ec2.program_sha256
  instance_types   = local.fargate ? ["m7gd.xlarge"] : var.ec2.instance_types
  spot_percentage  = local.fargate ? 0 : var.ec2.spot_percentage
  image_id         = local.fargate ? "resolve:ssm:/none" : var.ec2.image_id
  drain_seconds    = local.fargate ? 120 : var.ec2.drain_seconds

  image    = local.fargate ? var.fargate.image : null
  cpu      = local.fargate ? var.fargate.cpu : 2048
  memory   = local.fargate ? var.fargate.memory : 8192
  disk_gib = local.fargate ? var.fargate.disk_gib : 30

  # Agents begin when what they need is there: rights, the way to the bucket.
  depends_on = [module.network, module.iam]
}

module "ingest" {
  source = "./modules/gateway-lambda"
  count  = var.ingest == null ? 0 : 1

  name               = "${var.name}-ingest"
  zip                = "${var.lambda_zips}/ingest.zip"
  brokers            = [module.agents.bootstrap]
  role_name          = module.iam.role_names.gateway
  role_arn           = module.iam.role_arns.gateway
  subnet_ids         = values(module.network.subnets)
  security_group_ids = [local.groups.clients]
  trigger            = var.ingest.trigger
  url_callers        = var.ingest.url_callers
  jwt                = var.ingest.jwt
  concurrency        = var.ingest.concurrency
  tags               = var.tags
}

module "jobs" {
  source = "./modules/jobs-lambda"
  count  = local.jobs ? 1 : 0

  name         = var.name
  bucket_arn   = module.storage.arn
  bucket_url   = module.storage.url
  metadata_url = module.metadata.url
  topic_config = var.sweep == null ? null : var.sweep.topic_config
  schedule     = var.sweep == null ? "rate(1 hour)" : var.sweep.schedule
  dry_run      = var.sweep == null ? false : var.sweep.dry_run
  network      = local.elasticache ? { subnet_ids = values(module.network.subnets), security_group_ids = [local.groups.agents] } : null
  tags         = var.tags

  sweep  = var.sweep == null ? null : { zip = "${var.lambda_zips}/sweep.zip", role_name = module.iam.role_names.sweeper, role_arn = module.iam.role_arns.sweeper }
  verify = var.verify ? { zip = "${var.lambda_zips}/verify.zip", role_name = module.iam.role_names.verifier, role_arn = module.iam.role_arns.verifier } : null
}

module "observability" {
  source = "./modules/observability"
  count  = var.alarms ? 1 : 0

  name          = var.name
  alarm_actions = var.alarm_actions
  bucket        = { name = module.storage.name, prefix = var.prefix }
  table         = local.elasticache ? null : module.metadata.name
  cache         = local.elasticache ? { id = module.metadata.name, nodes = var.metadata.nodes } : null
  functions     = merge(var.ingest == null ? {} : { ingest = module.ingest[0].function_name }, local.jobs ? module.jobs[0].function_names : {})
  failed_queue  = var.verify ? module.jobs[0].failed_queue.name : null
  tags          = var.tags

  agents = {
    count             = var.agents
    load_balancer     = module.agents.load_balancer
    autoscaling_group = module.agents.autoscaling_group
    ecs_cluster       = module.agents.ecs_cluster
    ecs_services      = module.agents.ecs_services
  }
}
