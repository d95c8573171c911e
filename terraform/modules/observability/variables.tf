variable "name" {
  description = "Name of the cluster, which the names of alarms and the dashboard begin with."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,64}$", var.name))
    error_message = "name must have 1 to 64 letters, digits, '_' and '-'."
  }
}

variable "alarm_actions" {
  description = "ARNs that alarms are sent to, and their ends: topics of SNS. Without any, alarms are only to be seen."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.alarm_actions : can(regex("^arn:[a-z-]+:[a-z0-9-]+:[a-z0-9-]*:[0-9]{12}:.+$", arn))])
    error_message = "alarm_actions must be ARNs, as those of topics (arn:aws:sns:REGION:ACCOUNT:NAME)."
  }
}

variable "agents" {
  description = "The agents, of the outputs of modules/agents: how many there are to be, the load balancer, and the Auto Scaling group or the ECS cluster with its services. Null: there are none."
  type = object({
    count             = number
    load_balancer     = optional(object({ load_balancer = string, target_group = string }))
    autoscaling_group = optional(string)
    ecs_cluster       = optional(string)
    ecs_services      = optional(map(string), {})
  })
  default = null

  validation {
    condition     = try(var.agents.count >= 1 && floor(var.agents.count) == var.agents.count, var.agents == null)
    error_message = "agents: count must be a whole number from 1."
  }
  validation {
    condition     = var.agents == null || try((var.agents.autoscaling_group == null) != (length(var.agents.ecs_services) == 0), false)
    error_message = "agents must have an autoscaling_group, or ecs_cluster and ecs_services."
  }
  validation {
    condition     = var.agents == null || try((var.agents.ecs_cluster == null) == (length(var.agents.ecs_services) == 0), false)
    error_message = "agents: ecs_cluster and ecs_services go together."
  }
}

variable "bucket" {
  description = "Name of the bucket and prefix of the cluster in it. Its requests are counted for it, which CloudWatch charges as custom metrics. Null: nothing of the bucket is watched."
  type        = object({ name = string, prefix = optional(string, "") })
  default     = null

  validation {
    condition     = var.bucket == null || can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket.name))
    error_message = "bucket: name must be that of a bucket."
  }
}

variable "table" {
  description = "Name of the DynamoDB table. Null: there is none."
  type        = string
  default     = null

  validation {
    condition     = var.table == null || can(regex("^[a-zA-Z0-9_.-]{3,255}$", var.table))
    error_message = "table must be the name of a table."
  }
}

variable "cache" {
  description = "ElastiCache: id of the replication group, and how many nodes it has. Null: there is none."
  type        = object({ id = string, nodes = number })
  default     = null

  validation {
    condition     = try(var.cache.nodes >= 1 && var.cache.nodes <= 6 && floor(var.cache.nodes) == var.cache.nodes, var.cache == null)
    error_message = "cache: nodes must be a whole number from 1 to 6."
  }
}

variable "functions" {
  description = "Names of Lambda functions by what they are called in alarms: ingest, sweep, verify."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key in keys(var.functions) : can(regex("^[a-z][a-z0-9-]*$", key))])
    error_message = "functions must have keys of lower-case letters, digits and hyphens."
  }
}

variable "failed_queue" {
  description = "Name of the queue of the events that verify failed on. Null: there is none."
  type        = string
  default     = null

  validation {
    condition     = var.failed_queue == null || can(regex("^[A-Za-z0-9_-]{1,80}$", var.failed_queue))
    error_message = "failed_queue must be the name of a queue, not its URL or ARN."
  }
}

variable "dashboard" {
  description = "Whether there is a dashboard."
  type        = bool
  default     = true
}

variable "tags" {
  description = "Tags of the alarms."
  type        = map(string)
  default     = {}
}
