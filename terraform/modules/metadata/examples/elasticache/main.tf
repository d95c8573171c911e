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

variable "subnet_ids" {
  description = "Private subnets in two zones."
  type        = list(string)
}

variable "security_group_ids" {
  description = "Security groups that let the agents in at port 6379."
  type        = list(string)
}

variable "auth_token" {
  description = "Password of the clients."
  type        = string
  sensitive   = true
}

module "metadata" {
  source = "../.."

  store              = "elasticache"
  name               = "example-cirrolog"
  subnet_ids         = var.subnet_ids
  security_group_ids = var.security_group_ids
  auth_token         = var.auth_token
  tags               = { Service = "cirrolog" }
}

output "metadata_url" {
  description = "For --metadata of every agent."
  value       = module.metadata.url
  sensitive   = true
}
