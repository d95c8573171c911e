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

variable "zips" {
  description = "Directory of the zips, as make lambda fills it."
  type        = string
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

  trust = {
    sweeper  = { services = ["lambda.amazonaws.com"] }
    verifier = { services = ["lambda.amazonaws.com"] }
  }
}

module "jobs" {
  source = "../.."

  name         = "example-cirrolog"
  bucket_arn   = module.storage.arn
  bucket_url   = module.storage.url
  metadata_url = module.metadata.url
  topic_config = "none"

  sweep = {
    zip       = "${var.zips}/sweep.zip"
    role_name = module.iam.role_names.sweeper
    role_arn  = module.iam.role_arns.sweeper
  }
  verify = {
    zip       = "${var.zips}/verify.zip"
    role_name = module.iam.role_names.verifier
    role_arn  = module.iam.role_arns.verifier
  }
}

output "failed_queue" {
  description = "Look here for segments that are damaged."
  value       = module.jobs.failed_queue
}
