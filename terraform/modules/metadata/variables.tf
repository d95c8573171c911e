variable "store" {
  description = "What holds the metadata: dynamodb (a table, on demand), or elasticache (a replication group of Valkey or Redis)."
  type        = string
  default     = "dynamodb"

  validation {
    condition     = contains(["dynamodb", "elasticache"], var.store)
    error_message = "store must be dynamodb or elasticache."
  }
}

variable "name" {
  description = "Name of the table, or of the replication group."
  type        = string

  validation {
    condition     = can(regex("^[a-zA-Z0-9_.-]{3,255}$", var.name))
    error_message = "name must have 3 to 255 letters, digits, '_', '-' and '.'."
  }
  validation {
    condition     = var.store != "elasticache" || can(regex("^[a-z](-?[a-z0-9])*$", var.name)) && length(var.name) <= 40
    error_message = "name of a replication group must have up to 40 lower-case letters, digits and single hyphens, begin with a letter and not end with a hyphen."
  }
}

variable "tags" {
  description = "Tags of everything that is created."
  type        = map(string)
  default     = {}
}

variable "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the store. Null: a key of AWS."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/.+$", var.kms_key_arn))
    error_message = "kms_key_arn must be the ARN of a key (arn:aws:kms:REGION:ACCOUNT:key/ID), not an alias or an id."
  }
}

# DynamoDB

variable "prefix" {
  description = "DynamoDB: prefix of the cluster's items, for the URL; clusters with different ones can share a table."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^([A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*)?$", var.prefix)) && length(var.prefix) <= 255
    error_message = "prefix must be up to 255 letters, digits, '_', '-' and '.', with '/' between its parts and none at the ends."
  }
}

variable "point_in_time_recovery" {
  description = "DynamoDB: whether the table can be restored as it was at any second of the last 35 days."
  type        = bool
  default     = true
}

variable "deletion_protection" {
  description = "DynamoDB: whether the table refuses to be deleted, by Terraform too."
  type        = bool
  default     = true
}

variable "endpoint" {
  description = "DynamoDB: URL of the service for the agents, put into the URL as endpoint=. Null: that of AWS in the table's region."
  type        = string
  default     = null

  validation {
    condition     = var.endpoint == null || can(regex("^https?://[^/?#]+$", var.endpoint))
    error_message = "endpoint must be http://HOST[:PORT] or https://HOST[:PORT]."
  }
}

# ElastiCache

variable "engine" {
  description = "ElastiCache: valkey or redis."
  type        = string
  default     = "valkey"

  validation {
    condition     = contains(["valkey", "redis"], var.engine)
    error_message = "engine must be valkey or redis."
  }
}

variable "engine_version" {
  description = "ElastiCache: version of the engine; 7.2 or later of valkey, 7.0 or later of redis. Null: 8.0 or 7.1."
  type        = string
  default     = null

  validation {
    condition     = var.engine_version == null || can(regex(var.engine == "valkey" ? "^(7\\.2|[89]\\.[0-9]+)$" : "^7\\.[0-9]+$", var.engine_version))
    error_message = "engine_version must be 7.2 or later for valkey, 7.x for redis, as MAJOR.MINOR."
  }
}

variable "node_type" {
  description = "ElastiCache: type of the nodes. All metadata must fit into its memory."
  type        = string
  default     = "cache.t4g.small"

  validation {
    condition     = can(regex("^cache\\.[a-z0-9]+\\.[a-z0-9]+$", var.node_type))
    error_message = "node_type must look like cache.t4g.small."
  }
}

variable "replicas" {
  description = "ElastiCache: replicas beside the primary. With none, the metadata are gone with the node."
  type        = number
  default     = 1

  validation {
    condition     = var.replicas >= 0 && var.replicas <= 5 && floor(var.replicas) == var.replicas
    error_message = "replicas must be a whole number from 0 to 5."
  }
}

variable "multi_az" {
  description = "ElastiCache: whether the nodes are in different zones, and a replica takes over by itself."
  type        = bool
  default     = true

  validation {
    condition     = !var.multi_az || var.replicas >= 1
    error_message = "multi_az needs replicas of 1 or more."
  }
}

variable "subnet_ids" {
  description = "ElastiCache: subnets of the nodes, in at least two zones for multi_az. Required."
  type        = list(string)
  default     = []

  validation {
    condition     = var.store != "elasticache" || length(var.subnet_ids) >= (var.multi_az ? 2 : 1)
    error_message = "subnet_ids must name a subnet, with multi_az two, when store is elasticache."
  }
}

variable "security_group_ids" {
  description = "ElastiCache: security groups of the nodes; they let the agents in at port 6379. Required."
  type        = list(string)
  default     = []

  validation {
    condition     = var.store != "elasticache" || length(var.security_group_ids) >= 1
    error_message = "security_group_ids must name a security group when store is elasticache."
  }
}

variable "auth_token" {
  description = "ElastiCache: password of the clients. It is in the state and in the output url. Null: none, the security groups alone protect it."
  type        = string
  default     = null
  sensitive   = true

  validation {
    condition     = var.auth_token == null || can(regex("^[A-Za-z0-9!&#$^<>-]{16,128}$", var.auth_token))
    error_message = "auth_token must have 16 to 128 letters, digits and ! & # $ ^ < > -."
  }
}

variable "namespace" {
  description = "ElastiCache: name of the cluster's keys, for the URL; clusters with different ones can share a server. Empty: cirrolog."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^[A-Za-z0-9_.-]{0,64}$", var.namespace))
    error_message = "namespace must have up to 64 letters, digits, '-', '_' and '.'."
  }
}

variable "snapshot_retention_days" {
  description = "ElastiCache: days that daily snapshots are kept; 0 makes none."
  type        = number
  default     = 7

  validation {
    condition     = var.snapshot_retention_days >= 0 && var.snapshot_retention_days <= 35 && floor(var.snapshot_retention_days) == var.snapshot_retention_days
    error_message = "snapshot_retention_days must be a whole number from 0 to 35."
  }
}
