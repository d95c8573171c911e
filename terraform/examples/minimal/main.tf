# Three agents on EC2 in a VPC of their own, a bucket, a DynamoDB table, alarms that are only to be seen.

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

variable "program_url" {
  description = "The program for linux/arm64, as s3://BUCKET/cirrolog."
  type        = string
}

variable "program_sha256" {
  description = "Its SHA-256."
  type        = string
}

module "cirrolog" {
  source = "../.."

  name   = "events"
  bucket = var.bucket
  zones  = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
  ec2    = { program_url = var.program_url, program_sha256 = var.program_sha256 }
}

output "bootstrap" {
  description = "bootstrap.servers of clients."
  value       = module.cirrolog.bootstrap
}

output "cost_estimate" {
  description = "US dollars a month."
  value       = module.cirrolog.cost_estimate
}
