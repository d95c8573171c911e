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
  source = "../.."

  bucket = "example-cirrolog"
  prefix = "prod"

  tags = { Service = "cirrolog" }
}

output "bucket_url" {
  description = "For --bucket of every agent."
  value       = module.storage.url
}
