# Bucket, table and functions, for agents that run elsewhere, as in Kubernetes by the Helm chart: the bucket is swept with no
# agent running, each segment is verified, and HTTP clients produce by a Function URL.

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

variable "bucket" {
  description = "Name of the bucket that is made; nobody else may have it."
  type        = string
}

variable "lambda_zips" {
  description = "Directory of the zips, as make lambda fills it."
  type        = string
}

variable "brokers" {
  description = "Agents as HOST:PORT, as they are reached from the subnets."
  type        = list(string)
}

variable "subnet_ids" {
  description = "Private subnets from which the agents are reached."
  type        = list(string)
}

variable "security_group_ids" {
  description = "Security groups that the agents let in."
  type        = list(string)
}

module "storage" {
  source = "../../modules/storage"

  bucket = var.bucket
}

module "metadata" {
  source = "../../modules/metadata"

  name = "events"
}

module "iam" {
  source = "../../modules/iam"

  name       = "events"
  bucket_arn = module.storage.arn
  table_arn  = module.metadata.arn
  trust = {
    gateway  = { services = ["lambda.amazonaws.com"] }
    sweeper  = { services = ["lambda.amazonaws.com"] }
    verifier = { services = ["lambda.amazonaws.com"] }
  }
}

module "ingest" {
  source = "../../modules/gateway-lambda"

  name               = "events-ingest"
  zip                = "${var.lambda_zips}/ingest.zip"
  brokers            = var.brokers
  role_name          = module.iam.role_names.gateway
  role_arn           = module.iam.role_arns.gateway
  subnet_ids         = var.subnet_ids
  security_group_ids = var.security_group_ids
}

module "jobs" {
  source = "../../modules/jobs-lambda"

  name         = "events"
  bucket_arn   = module.storage.arn
  bucket_url   = module.storage.url
  metadata_url = module.metadata.url
  topic_config = "none"
  sweep        = { zip = "${var.lambda_zips}/sweep.zip", role_name = module.iam.role_names.sweeper, role_arn = module.iam.role_arns.sweeper }
  verify       = { zip = "${var.lambda_zips}/verify.zip", role_name = module.iam.role_names.verifier, role_arn = module.iam.role_arns.verifier }
}

module "observability" {
  source = "../../modules/observability"

  name         = "events"
  bucket       = { name = module.storage.name }
  table        = module.metadata.name
  functions    = merge({ ingest = module.ingest.function_name }, module.jobs.function_names)
  failed_queue = module.jobs.failed_queue.name
}

output "ingest_url" {
  description = "Where HTTP clients send requests, signed."
  value       = module.ingest.url
}

output "agent_policy" {
  description = "What the agents' own role needs, wherever they run."
  value       = module.iam.policies.agent
}

output "bucket_url" {
  description = "For --bucket of the agents."
  value       = module.storage.url
}

output "metadata_url" {
  description = "For --metadata of the agents."
  value       = module.metadata.url
  sensitive   = true
}
