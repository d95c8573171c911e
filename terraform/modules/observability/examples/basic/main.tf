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

variable "topic_arn" {
  description = "Topic of SNS that alarms are sent to."
  type        = string
}

module "observability" {
  source = "../.."

  name          = "example-cirrolog"
  alarm_actions = [var.topic_arn]
  bucket        = { name = "example-cirrolog", prefix = "prod" }
  table         = "example-cirrolog"

  # Of modules/agents: count = output agents, and its outputs of these names.
  agents = {
    count             = 3
    autoscaling_group = "example-cirrolog"
    load_balancer     = { load_balancer = "net/example-cirrolog/0123456789abcdef", target_group = "targetgroup/example-cirrolog-kafka/0123456789abcdef" }
  }
}

output "alarms" {
  description = "ARNs of the alarms."
  value       = module.observability.alarms
}
