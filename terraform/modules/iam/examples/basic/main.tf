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
  source = "../.."

  name       = "example-cirrolog"
  bucket_arn = module.storage.arn
  prefix     = "prod"
  table_arn  = module.metadata.arn

  trust = {
    agent    = { services = ["ec2.amazonaws.com"] }
    operator = { arns = ["arn:aws:iam::123456789012:role/ops"] }
  }
}

output "agent_profile" {
  description = "For the agents' instances."
  value       = module.iam.instance_profiles.agent
}
