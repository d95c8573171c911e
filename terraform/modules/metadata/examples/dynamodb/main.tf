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

module "metadata" {
  source = "../.."

  name = "example-cirrolog"
  tags = { Service = "cirrolog" }
}

output "metadata_url" {
  description = "For --metadata of every agent."
  value       = module.metadata.url
  sensitive   = true
}
