variable "name" {
  description = "Name of the cluster, which the names of its roles begin with."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9+=,.@_-]{1,50}$", var.name))
    error_message = "name must have 1 to 50 letters, digits and + = , . @ _ -."
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

variable "prefix" {
  description = "Prefix of the cluster's objects in the bucket, as modules/storage has it."
  type        = string
  default     = ""

  validation {
    condition     = var.prefix == "" || can(regex("^[A-Za-z0-9_=-][A-Za-z0-9._=-]*(/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*$", var.prefix))
    error_message = "prefix must be parts of letters, digits, '_', '=', '-' and '.', with '/' between them and none at the ends; no part begins with a dot."
  }
}

variable "table_arn" {
  description = "ARN of the DynamoDB table of the metadata. Null: the metadata are in Redis or Valkey, where IAM says nothing."
  type        = string
  default     = null

  validation {
    condition     = var.table_arn == null || can(regex("^arn:[a-z-]+:dynamodb:[a-z0-9-]+:[0-9]{12}:table/[A-Za-z0-9_.-]{3,255}$", var.table_arn))
    error_message = "table_arn must be the ARN of a table (arn:aws:dynamodb:REGION:ACCOUNT:table/NAME)."
  }
}

variable "kms_key_arns" {
  description = "ARNs of the KMS keys that encrypt bucket and table, of which one's own are meant. Those of AWS need no right."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.kms_key_arns : can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/.+$", arn))])
    error_message = "kms_key_arns must be ARNs of keys (arn:aws:kms:REGION:ACCOUNT:key/ID), not aliases or ids."
  }
}

variable "trust" {
  description = "The roles to make (agent, reader, gateway, sweeper, verifier, operator), and who may take each: services of AWS, and ARNs of accounts, roles and users."
  type = map(object({
    services = optional(list(string), [])
    arns     = optional(list(string), [])
  }))
  default = {
    agent   = { services = ["ec2.amazonaws.com"] }
    reader  = { services = ["ec2.amazonaws.com"] }
    sweeper = { services = ["lambda.amazonaws.com"] }
  }

  validation {
    condition     = alltrue([for role in keys(var.trust) : contains(["agent", "reader", "gateway", "sweeper", "verifier", "operator"], role)])
    error_message = "trust knows the roles agent, reader, gateway, sweeper, verifier and operator."
  }
  validation {
    condition     = alltrue([for by in values(var.trust) : length(by.services) + length(by.arns) > 0])
    error_message = "trust must name a service or an ARN for each role: one that nobody may take is refused by AWS."
  }
  validation {
    condition     = alltrue(flatten([for by in values(var.trust) : [for s in by.services : can(regex("^[a-z0-9-]+(\\.[a-z0-9-]+)*\\.amazonaws\\.com(\\.cn)?$", s))]]))
    error_message = "trust: services must look like ec2.amazonaws.com."
  }
  validation {
    condition     = alltrue(flatten([for by in values(var.trust) : [for a in by.arns : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(root|(role|user)/.+)$", a))]]))
    error_message = "trust: arns must be those of accounts, roles or users (arn:aws:iam::ACCOUNT:root, :role/NAME, :user/NAME), not of everybody."
  }
}

variable "permissions_boundary" {
  description = "ARN of a policy that bounds the roles. Null: none."
  type        = string
  default     = null

  validation {
    condition     = var.permissions_boundary == null || can(regex("^arn:[a-z-]+:iam::([0-9]{12}|aws):policy/.+$", var.permissions_boundary))
    error_message = "permissions_boundary must be the ARN of a policy."
  }
}

variable "tags" {
  description = "Tags of everything that is created."
  type        = map(string)
  default     = {}
}
