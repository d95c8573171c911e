variable "name" {
  description = "Name of the cluster, which the names of the functions begin with."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,50}$", var.name))
    error_message = "name must have 1 to 50 letters, digits, '_' and '-'."
  }
}

variable "bucket_arn" {
  description = "ARN of the cluster's bucket, without a key."
  type        = string

  validation {
    condition     = can(regex("^arn:[a-z-]+:s3:::[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket_arn))
    error_message = "bucket_arn must be the ARN of a bucket without dots (arn:aws:s3:::NAME), without a key."
  }
}

variable "bucket_url" {
  description = "The bucket, as modules/storage has it in its output url."
  type        = string

  validation {
    condition     = can(regex("^s3://[a-z0-9][a-z0-9-]{1,61}[a-z0-9](/[A-Za-z0-9._=/-]+)?\\?region=[a-z0-9-]+(&[A-Za-z0-9=&:/._-]+)?$", var.bucket_url))
    error_message = "bucket_url must look like s3://BUCKET/PREFIX?region=REGION, as modules/storage has it."
  }
  validation {
    condition     = try(split("/", split("?", var.bucket_url)[0])[2] == split(":::", var.bucket_arn)[1], false)
    error_message = "bucket_url and bucket_arn must be of the same bucket."
  }
}

variable "sweep" {
  description = "The function sweep: path of sweep.zip, and the role sweeper of modules/iam, which lambda.amazonaws.com must be able to take. Null: none."
  type        = object({ zip = string, role_name = string, role_arn = string })
  default     = null

  validation {
    condition     = var.sweep == null || try(endswith(var.sweep.zip, ".zip") && fileexists(var.sweep.zip), false)
    error_message = "sweep: zip must be the path of a zip that is there: make lambda builds .cache/lambda/sweep.zip."
  }
  validation {
    condition     = var.sweep == null || can(regex("^arn:[a-z-]+:iam::[0-9]{12}:role/.+$", var.sweep.role_arn)) && can(regex("^[A-Za-z0-9+=,.@_-]{1,64}$", var.sweep.role_name))
    error_message = "sweep: role_name and role_arn must be the name and the ARN of a role."
  }
}

variable "verify" {
  description = "The function verify: path of verify.zip, and the role verifier of modules/iam. Null: none."
  type        = object({ zip = string, role_name = string, role_arn = string })
  default     = null

  validation {
    condition     = var.verify == null || try(endswith(var.verify.zip, ".zip") && fileexists(var.verify.zip), false)
    error_message = "verify: zip must be the path of a zip that is there: make lambda builds .cache/lambda/verify.zip."
  }
  validation {
    condition     = var.verify == null || can(regex("^arn:[a-z-]+:iam::[0-9]{12}:role/.+$", var.verify.role_arn)) && can(regex("^[A-Za-z0-9+=,.@_-]{1,64}$", var.verify.role_name))
    error_message = "verify: role_name and role_arn must be the name and the ARN of a role."
  }
}

# sweep

variable "metadata_url" {
  description = "sweep: the metadata store, as modules/metadata has it in its output url; who may read the function's configuration finds the password of ElastiCache there. Required."
  type        = string
  default     = null
  sensitive   = true

  validation {
    condition     = var.sweep == null || can(regex("^(dynamodb|rediss?)://[A-Za-z0-9!&#$^<>%*+,;=:@?/._~-]+$", var.metadata_url))
    error_message = "metadata_url must begin with dynamodb://, redis:// or rediss:// when there is sweep."
  }
}

variable "topic_config" {
  description = "sweep: the agents' own --topic-config, or none where they have none. Null: nothing expires."
  type        = string
  default     = null

  validation {
    condition     = var.topic_config == null || can(regex("^(none|[a-z.]+=[^,=]+(,[a-z.]+=[^,=]+)*)$", var.topic_config))
    error_message = "topic_config must be KEY=VALUE,… as the agents have it, or none."
  }
}

variable "schedule" {
  description = "sweep: how often."
  type        = string
  default     = "rate(1 hour)"

  validation {
    condition     = can(regex("^(rate\\((1 (minute|hour|day)|[0-9]+ (minutes|hours|days))\\)|cron\\([^)]+\\))$", var.schedule))
    error_message = "schedule must be rate(1 hour), rate(N minutes) or cron(…), as EventBridge has them."
  }
}

variable "grace" {
  description = "sweep: for how long what is dead stays for readers."
  type        = string
  default     = "1h"

  validation {
    condition     = can(regex("^([0-9]+(h|m|s))+$", var.grace))
    error_message = "grace must be a duration such as 1h or 90m."
  }
}

variable "dry_run" {
  description = "sweep: whether it only says what it would delete."
  type        = bool
  default     = false
}

variable "network" {
  description = "sweep: private subnets and security groups (agents of modules/network), where the metadata store is in a VPC: ElastiCache. Null: none, which is right for DynamoDB."
  type        = object({ subnet_ids = list(string), security_group_ids = list(string) })
  default     = null

  validation {
    condition     = try(length(var.network.subnet_ids) >= 1 && length(var.network.security_group_ids) >= 1, var.network == null)
    error_message = "network must have a subnet and a security group."
  }
  validation {
    condition     = var.network != null || !can(regex("^redis", var.metadata_url))
    error_message = "network is required for a metadata store in a VPC (redis://, rediss://)."
  }
}

# verify

variable "retries" {
  description = "verify: how often an event that failed is tried again before it goes to the queue of those that failed."
  type        = number
  default     = 2

  validation {
    condition     = contains([0, 1, 2], var.retries)
    error_message = "retries must be 0, 1 or 2."
  }
}

# both

variable "memory_mib" {
  description = "Memory of each function; its share of a processor goes with it."
  type        = number
  default     = 512

  validation {
    condition     = var.memory_mib >= 128 && var.memory_mib <= 10240 && floor(var.memory_mib) == var.memory_mib
    error_message = "memory_mib must be a whole number from 128 to 10240."
  }
}

variable "timeout_seconds" {
  description = "Time of a run of each function. A sweep that is cut off goes on with the next one."
  type        = number
  default     = 900

  validation {
    condition     = var.timeout_seconds >= 30 && var.timeout_seconds <= 900 && floor(var.timeout_seconds) == var.timeout_seconds
    error_message = "timeout_seconds must be a whole number from 30 to 900."
  }
}

variable "log_retention_days" {
  description = "Days that logs are kept."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], var.log_retention_days)
    error_message = "log_retention_days must be one that CloudWatch has: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545 or 731."
  }
}

variable "tags" {
  description = "Tags of everything that is created."
  type        = map(string)
  default     = {}
}
