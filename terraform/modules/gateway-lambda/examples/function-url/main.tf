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

variable "zip" {
  description = "Path of ingest.zip, built by make lambda."
  type        = string
}

variable "brokers" {
  description = "The cluster: bootstrap of modules/agents."
  type        = list(string)
}

variable "subnet_ids" {
  description = "Private subnets of the agents' VPC."
  type        = list(string)
}

variable "security_group_ids" {
  description = "A group that the agents let in."
  type        = list(string)
}

module "iam" {
  source = "../../../iam"

  name       = "example-cirrolog"
  bucket_arn = "arn:aws:s3:::example-cirrolog"
  trust      = { gateway = { services = ["lambda.amazonaws.com"] } }
}

module "ingest" {
  source = "../.."

  name               = "example-ingest"
  zip                = var.zip
  brokers            = var.brokers
  role_name          = module.iam.role_names.gateway
  role_arn           = module.iam.role_arns.gateway
  subnet_ids         = var.subnet_ids
  security_group_ids = var.security_group_ids
}

output "url" {
  description = "For HTTP clients."
  value       = module.ingest.url
}
