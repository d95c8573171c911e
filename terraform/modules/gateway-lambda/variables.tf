variable "name" {
  description = "Name of the function, and of the API."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,64}$", var.name))
    error_message = "name must have 1 to 64 letters, digits, '_' and '-'."
  }
}

variable "zip" {
  description = "Path of ingest.zip, as make lambda builds it."
  type        = string

  validation {
    condition     = endswith(var.zip, ".zip") && fileexists(var.zip)
    error_message = "zip must be the path of a zip that is there: make lambda builds .cache/lambda/ingest.zip."
  }
}

variable "brokers" {
  description = "Some agents, or the load balancer, as HOST:PORT, as the function reaches them in its subnets."
  type        = list(string)

  validation {
    condition     = length(var.brokers) >= 1 && alltrue([for b in var.brokers : can(regex("^([A-Za-z0-9.-]+|\\[[0-9a-f:]+\\]):[0-9]{1,5}$", b))])
    error_message = "brokers must be HOST:PORT, one at least."
  }
}

variable "role_name" {
  description = "Name of the function's role, gateway of modules/iam, which lambda.amazonaws.com must be able to take. It gets what every function in a VPC needs: to write its log, and network interfaces."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9+=,.@_-]{1,64}$", var.role_name))
    error_message = "role_name must be the name of a role, not its ARN."
  }
}

variable "role_arn" {
  description = "ARN of the same role."
  type        = string

  validation {
    condition     = can(regex("^arn:[a-z-]+:iam::[0-9]{12}:role/.+$", var.role_arn))
    error_message = "role_arn must be the ARN of a role."
  }
}

variable "subnet_ids" {
  description = "Private subnets from which the agents can be reached."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 1
    error_message = "subnet_ids must name a subnet: the agents can be reached in their VPC alone."
  }
}

variable "security_group_ids" {
  description = "Security groups of the function, which the agents let in: clients of modules/network."
  type        = list(string)

  validation {
    condition     = length(var.security_group_ids) >= 1
    error_message = "security_group_ids must name a security group."
  }
}

variable "trigger" {
  description = "What is before the function: url (a Function URL) or http_api (an API of API Gateway)."
  type        = string
  default     = "url"

  validation {
    condition     = contains(["url", "http_api"], var.trigger)
    error_message = "trigger must be url or http_api."
  }
}

variable "url_callers" {
  description = "Function URL: ARNs of accounts, roles and users of other accounts that may call it. Those of its own account need the right by their own policies: lambda:InvokeFunctionUrl and lambda:InvokeFunction."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.url_callers : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(root|(role|user)/.+)$", arn))])
    error_message = "url_callers must be ARNs of accounts, roles or users, not everybody: the function authenticates nobody itself."
  }
  validation {
    condition     = length(var.url_callers) == 0 || var.trigger == "url"
    error_message = "url_callers are of a Function URL: trigger must be url."
  }
}

variable "jwt" {
  description = "HTTP API: who issues the tokens (JWT) that are let in, and for which audience. Null: callers sign as AWS demands (IAM)."
  type        = object({ issuer = string, audience = list(string) })
  default     = null

  validation {
    condition     = try(startswith(var.jwt.issuer, "https://") && length(var.jwt.audience) >= 1, var.jwt == null)
    error_message = "jwt must have an issuer at https:// and an audience."
  }
  validation {
    condition     = var.jwt == null || var.trigger == "http_api"
    error_message = "jwt is of an HTTP API: trigger must be http_api."
  }
}

variable "rate" {
  description = "HTTP API: requests a second that are let in, and as many at once; more are answered with 429."
  type        = number
  default     = 1000

  validation {
    condition     = var.rate >= 1 && var.rate <= 10000 && floor(var.rate) == var.rate
    error_message = "rate must be a whole number from 1 to 10000."
  }
}

variable "timeout_seconds" {
  description = "Time of a request. What is before the function must have more: an HTTP API has 30."
  type        = number
  default     = 25

  validation {
    condition     = var.timeout_seconds >= 3 && var.timeout_seconds <= (var.trigger == "http_api" ? 28 : 900) && floor(var.timeout_seconds) == var.timeout_seconds
    error_message = "timeout_seconds must be a whole number from 3 to 900, of an HTTP API to 28."
  }
}

variable "memory_mib" {
  description = "Memory of the function; its share of a processor goes with it."
  type        = number
  default     = 512

  validation {
    condition     = var.memory_mib >= 128 && var.memory_mib <= 10240 && floor(var.memory_mib) == var.memory_mib
    error_message = "memory_mib must be a whole number from 128 to 10240."
  }
}

variable "concurrency" {
  description = "Most requests at once, which is also most connections to each agent. Null: what the account has left."
  type        = number
  default     = null

  validation {
    condition     = var.concurrency == null || try(var.concurrency >= 1 && floor(var.concurrency) == var.concurrency, false)
    error_message = "concurrency must be a whole number from 1, or null."
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

variable "log_level" {
  description = "Least level of what is logged."
  type        = string
  default     = "INFO"

  validation {
    condition     = contains(["DEBUG", "INFO", "WARN", "ERROR"], var.log_level)
    error_message = "log_level must be DEBUG, INFO, WARN or ERROR."
  }
}

variable "tags" {
  description = "Tags of everything that is created."
  type        = map(string)
  default     = {}
}
