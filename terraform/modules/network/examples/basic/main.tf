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

module "network" {
  source = "../.."

  name  = "example-cirrolog"
  zones = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]

  tags = { Service = "cirrolog" }
}

output "subnets" {
  description = "For agents."
  value       = module.network.subnets
}
