terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

provider "aws" {
  region = "eu-central-1"
}

variable "image" {
  description = "The image for linux/arm64, in a registry that Fargate reaches."
  type        = string
}

module "network" {
  source = "../../../network"

  name                = "example-cirrolog"
  zones               = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
  interface_endpoints = ["ecr.api", "ecr.dkr", "logs"]
}

module "storage" {
  source = "../../../storage"

  bucket = "example-cirrolog"
  prefix = "prod"
}

module "metadata" {
  source = "../../../metadata"

  name = "example-cirrolog"
}

module "iam" {
  source = "../../../iam"

  name       = "example-cirrolog"
  bucket_arn = module.storage.arn
  prefix     = "prod"
  table_arn  = module.metadata.arn
  trust      = { agent = { services = ["ecs-tasks.amazonaws.com"] } }
}

module "agents" {
  source = "../.."

  name         = "example-cirrolog"
  launch       = "fargate"
  image        = var.image
  bucket_url   = module.storage.url
  metadata_url = module.metadata.url
  vpc_id       = module.network.vpc_id
  subnets      = module.network.subnets
  role_name    = module.iam.role_names.agent
  role_arn     = module.iam.role_arns.agent

  security_group_ids               = [module.network.security_group_ids.agents, module.network.security_group_ids.kafka]
  load_balancer_security_group_ids = [module.network.security_group_ids.kafka]
}

output "bootstrap" {
  description = "For clients."
  value       = module.agents.bootstrap
}
