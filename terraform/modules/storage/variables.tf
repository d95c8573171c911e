variable "bucket" {
  description = "Name of the bucket. Without dots: they break TLS certificates of virtual-host addresses."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "bucket must have 3 to 63 lower-case letters, digits and hyphens, and begin and end with a letter or digit."
  }
}

variable "prefix" {
  description = "Prefix of the cluster's objects in the bucket, for the URL. Each cluster needs one of its own."
  type        = string
  default     = ""

  validation {
    condition     = var.prefix == "" || can(regex("^[A-Za-z0-9_=-][A-Za-z0-9._=-]*(/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*$", var.prefix))
    error_message = "prefix must be parts of letters, digits, '_', '=', '-' and '.', with '/' between them and none at the ends; no part begins with a dot."
  }
}

variable "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the objects (SSE-KMS with a bucket key). Null: SSE-S3."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/.+$", var.kms_key_arn))
    error_message = "kms_key_arn must be the ARN of a key (arn:aws:kms:REGION:ACCOUNT:key/ID), not an alias or an id."
  }
}

variable "abort_uploads_after_days" {
  description = "Days after which S3 drops the parts of an upload that was never completed. Agents complete theirs within minutes."
  type        = number
  default     = 1

  validation {
    condition     = var.abort_uploads_after_days >= 1 && var.abort_uploads_after_days <= 30 && floor(var.abort_uploads_after_days) == var.abort_uploads_after_days
    error_message = "abort_uploads_after_days must be a whole number from 1 to 30."
  }
}

variable "force_destroy" {
  description = "Whether destroy may delete a bucket that holds objects. They are the cluster's data."
  type        = bool
  default     = false
}

variable "s3_compatible" {
  description = "For a store that speaks S3 but is not AWS, as MinIO: only the bucket, with versioning off. Leaves out what such a store refuses or does by itself: public access block, ownership, encryption, lifecycle, and the policy that demands TLS."
  type        = bool
  default     = false
}

variable "endpoint" {
  description = "URL of the store for the agents, put into the URL as endpoint=. Null: that of AWS in the bucket's region."
  type        = string
  default     = null

  validation {
    condition     = var.endpoint == null || can(regex("^https?://[^/?#]+$", var.endpoint))
    error_message = "endpoint must be http://HOST[:PORT] or https://HOST[:PORT]."
  }
}

variable "tags" {
  description = "Tags of the bucket."
  type        = map(string)
  default     = {}
}
