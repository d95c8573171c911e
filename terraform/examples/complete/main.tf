# Everything: six agents, half of them on spot instances, HTTP, Prometheus, the three functions, alarms by mail.

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

  default_tags {
    tags = { Service = "cirrolog" }
  }
}

variable "bucket" {
  description = "Name of the bucket that is made; nobody else may have it."
  type        = string
}

variable "kms_key_arn" {
  description = "Key that encrypts bucket and table; its policy lets the roles use it."
  type        = string
}

variable "program_url" {
  description = "The program for linux/arm64, as s3://BUCKET/cirrolog."
  type        = string
}

variable "program_sha256" {
  description = "Its SHA-256."
  type        = string
}

variable "lambda_zips" {
  description = "Directory of the zips, as make lambda fills it."
  type        = string
}

variable "clients" {
  description = "Networks that clients are in, peered with this VPC."
  type        = list(string)
}

variable "prometheus_security_group_id" {
  description = "Security group of Prometheus."
  type        = string
}

variable "alarm_topic_arn" {
  description = "Topic of SNS for alarms."
  type        = string
}

module "cirrolog" {
  source = "../.."

  name        = "events"
  bucket      = var.bucket
  prefix      = "prod"
  kms_key_arn = var.kms_key_arn

  zones               = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
  cidr                = "10.64.0.0/16"
  interface_endpoints = ["autoscaling"]
  kafka_clients       = { cidrs = concat(["10.64.0.0/16"], var.clients) }
  http_clients        = { cidrs = var.clients }
  admin_clients       = { security_group_ids = [var.prometheus_security_group_id] }

  agents = 6
  flags  = { wal-linger = "250ms", topic-config = "retention.ms=604800000" }
  ec2 = {
    program_url     = var.program_url
    program_sha256  = var.program_sha256
    instance_types  = ["m7gd.2xlarge", "m8gd.2xlarge"]
    spot_percentage = 50
  }

  lambda_zips = var.lambda_zips
  ingest      = { trigger = "http_api", concurrency = 100 }
  sweep       = { topic_config = "retention.ms=604800000" }
  verify      = true

  alarm_actions = [var.alarm_topic_arn]

  load   = { in_mib = 50, retention_days = 7, partitions = 300, linger_ms = 250 }
  prices = { instance = 0.4272 }
}

output "bootstrap" {
  description = "bootstrap.servers of clients."
  value       = module.cirrolog.bootstrap
}

output "ingest_url" {
  description = "Where HTTP clients send requests, signed."
  value       = module.cirrolog.ingest_url
}

output "cost_estimate" {
  description = "US dollars a month."
  value       = module.cirrolog.cost_estimate
}
