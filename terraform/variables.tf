variable "name" {
  description = "Name of the cluster, which the names of everything begin with."
  type        = string

  validation {
    condition     = can(regex("^[a-z](-?[a-z0-9])*$", var.name)) && length(var.name) >= 3 && length(var.name) <= 24
    error_message = "name must have 3 to 24 lower-case letters, digits and single hyphens, begin with a letter and not end with a hyphen."
  }
}

variable "tags" {
  description = "Tags of everything that is created."
  type        = map(string)
  default     = {}
}

variable "deletion_protection" {
  description = "Whether the table and the load balancer refuse to be deleted, by Terraform too."
  type        = bool
  default     = true
}

variable "permissions_boundary" {
  description = "ARN of a policy that bounds the roles. Null: none."
  type        = string
  default     = null
}

# Bucket and metadata

variable "bucket" {
  description = "Name of the bucket that is made. Without dots."
  type        = string
}

variable "prefix" {
  description = "Prefix of the cluster's objects in it."
  type        = string
  default     = ""
}

variable "kms_key_arn" {
  description = "ARN of the KMS key that encrypts bucket and metadata. Null: keys of AWS."
  type        = string
  default     = null
}

variable "force_destroy" {
  description = "Whether destroy may delete the bucket with its objects. They are the cluster's data."
  type        = bool
  default     = false
}

variable "metadata" {
  description = "The metadata store: dynamodb, or elasticache with type and number of its nodes. ElastiCache has no password here; security groups alone protect it."
  type = object({
    store     = optional(string, "dynamodb")
    node_type = optional(string, "cache.t4g.small")
    nodes     = optional(number, 2)
  })
  default = {}

  validation {
    condition     = contains(["dynamodb", "elasticache"], var.metadata.store)
    error_message = "metadata: store must be dynamodb or elasticache."
  }
  validation {
    condition     = var.metadata.nodes >= 1 && var.metadata.nodes <= 6 && floor(var.metadata.nodes) == var.metadata.nodes
    error_message = "metadata: nodes must be a whole number from 1 to 6."
  }
}

# Network

variable "zones" {
  description = "Availability zones of the VPC that is made. Required, unless vpc is given."
  type        = list(string)
  default     = []
}

variable "cidr" {
  description = "Addresses of the VPC that is made, /16 to /24."
  type        = string
  default     = "10.64.0.0/16"
}

variable "vpc" {
  description = "A VPC that is there, as modules/network describes it. Null: one is made."
  type = object({
    id              = string
    cidr            = string
    subnets         = map(string)
    route_table_ids = optional(list(string), [])
  })
  default = null
}

variable "nat" {
  description = "Way to the internet: none, one NAT gateway, or one in each zone."
  type        = string
  default     = "none"
}

variable "interface_endpoints" {
  description = "Services that are reached without the internet. Null: none for EC2; for Fargate without NAT those that it can't start without."
  type        = set(string)
  default     = null
}

variable "kafka_clients" {
  description = "Who may reach the Kafka port. Null: everybody in the VPC."
  type = object({
    cidrs              = optional(list(string), [])
    security_group_ids = optional(list(string), [])
  })
  default = null
}

variable "http_clients" {
  description = "Who may reach the HTTP gateway of the agents; they offer it when somebody is named."
  type = object({
    cidrs              = optional(list(string), [])
    security_group_ids = optional(list(string), [])
  })
  default = {}
}

variable "admin_clients" {
  description = "Who may reach the admin port of the agents, as Prometheus; it is on loopback unless somebody is named."
  type = object({
    cidrs              = optional(list(string), [])
    security_group_ids = optional(list(string), [])
  })
  default = {}
}

# Agents

variable "launch" {
  description = "What agents run on: ec2 or fargate."
  type        = string
  default     = "ec2"

  validation {
    condition     = contains(["ec2", "fargate"], var.launch)
    error_message = "launch must be ec2 or fargate."
  }
}

variable "agents" {
  description = "How many agents there are, over all zones."
  type        = number
  default     = 3
}

variable "flags" {
  description = "More flags of cirrolog agent, without their dashes."
  type        = map(string)
  default     = {}
}

variable "load_balancer" {
  description = "Whether there is a load balancer for the first connection of clients."
  type        = bool
  default     = true
}

variable "ec2" {
  description = "EC2: program_url and program_sha256, which are required, and what else modules/agents has for it."
  type = object({
    program_url     = string
    program_sha256  = string
    instance_types  = optional(list(string), ["m7gd.xlarge"])
    spot_percentage = optional(number, 0)
    image_id        = optional(string, "resolve:ssm:/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64")
    drain_seconds   = optional(number, 120)
  })
  default = null

  validation {
    condition     = (var.launch == "ec2") == (var.ec2 != null)
    error_message = "ec2 is required when launch is ec2, and must not be given otherwise."
  }
}

variable "fargate" {
  description = "Fargate: image, which is required, and what else modules/agents has for it."
  type = object({
    image    = string
    cpu      = optional(number, 2048)
    memory   = optional(number, 8192)
    disk_gib = optional(number, 30)
  })
  default = null

  validation {
    condition     = (var.launch == "fargate") == (var.fargate != null)
    error_message = "fargate is required when launch is fargate, and must not be given otherwise."
  }
}

# Functions

variable "lambda_zips" {
  description = "Directory of the functions' zips, as make lambda fills it: .cache/lambda. Required for functions."
  type        = string
  default     = null

  validation {
    condition     = var.lambda_zips != null || var.ingest == null && var.sweep == null && !var.verify
    error_message = "lambda_zips must be the directory of the zips when there are functions."
  }
}

variable "ingest" {
  description = "The function ingest, as modules/gateway-lambda has it. Null: none."
  type = object({
    trigger     = optional(string, "url")
    url_callers = optional(list(string), [])
    jwt         = optional(object({ issuer = string, audience = list(string) }))
    concurrency = optional(number)
  })
  default = null

  validation {
    condition     = var.ingest == null || var.load_balancer
    error_message = "ingest reaches the agents by the load balancer: load_balancer must be true."
  }
}

variable "sweep" {
  description = "The function sweep, as modules/jobs-lambda has it. Agents sweep by themselves; it is for times without any. Null: none."
  type = object({
    topic_config = optional(string)
    schedule     = optional(string, "rate(1 hour)")
    dry_run      = optional(bool, false)
  })
  default = null
}

variable "verify" {
  description = "Whether there is the function verify, for each segment that is put."
  type        = bool
  default     = false
}

# Alarms

variable "alarms" {
  description = "Whether there are alarms and a dashboard."
  type        = bool
  default     = true
}

variable "alarm_actions" {
  description = "ARNs that alarms are sent to: topics of SNS."
  type        = list(string)
  default     = []
}

# The estimate of cost

variable "load" {
  description = "What clients do, for the estimate of cost; the defaults are those of cirrolog cost. in_mib is what is produced in a second, before compression; cold the share of what is consumed that is read from the bucket."
  type = object({
    in_mib         = optional(number, 10)
    retention_days = optional(number, 7)
    compression    = optional(number, 1)
    batch_kib      = optional(number, 16)
    fan_out        = optional(number, 2)
    cold           = optional(number, 0)
    partitions     = optional(number, 100)
    segment_mib    = optional(number, 64)
    linger_ms      = optional(number, 100)
    sweep_minutes  = optional(number, 10)
  })
  default = {}

  validation {
    condition     = var.load.in_mib > 0 && var.load.retention_days > 0 && var.load.batch_kib > 0 && var.load.partitions >= 1 && var.load.segment_mib > 0 && var.load.linger_ms > 0 && var.load.sweep_minutes > 0
    error_message = "load: rates, times and sizes must be more than 0."
  }
  validation {
    condition     = var.load.compression >= 1 && var.load.fan_out >= 0 && var.load.cold >= 0 && var.load.cold <= 1
    error_message = "load: compression must be 1 or more, fan_out 0 or more, and cold from 0 to 1."
  }
}

variable "prices" {
  description = "US dollars, for the estimate of cost; the defaults are those of cirrolog cost, list prices of us-east-1: put and get for 1,000, storage for a GiB and month, cross_zone for a GiB, instance for an agent and hour (m7gd.xlarge), metadata for a month (two cache.t4g.small)."
  type = object({
    put        = optional(number, 0.005)
    get        = optional(number, 0.0004)
    storage    = optional(number, 0.023)
    cross_zone = optional(number, 0.02)
    instance   = optional(number, 0.2136)
    metadata   = optional(number, 37.38)
  })
  default = {}

  validation {
    condition     = alltrue([for price in values(var.prices) : price >= 0])
    error_message = "prices must be 0 or more."
  }
}
