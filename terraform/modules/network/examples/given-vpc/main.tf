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

  name = "example-cirrolog"

  vpc = {
    id              = "vpc-0123456789abcdef0"
    cidr            = "10.0.0.0/16"
    subnets         = { eu-central-1a = "subnet-0123456789abcdef0", eu-central-1b = "subnet-0123456789abcdef1" }
    route_table_ids = ["rtb-0123456789abcdef0"]
  }

  tags = { Service = "cirrolog" }
}

output "subnets" {
  description = "For agents."
  value       = module.network.subnets
}
