# The modules on a laptop, by `make localstack-up`. The cluster runs on the bucket in MinIO and on the table in DynamoDB
# Local: both keep what they acknowledge and check conditions atomically. The AWS emulator (moto) knows more of AWS's
# configuration and is no store: it gets the modules as they are on AWS, with every setting.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

variable "name" {
  description = "Name of buckets and tables."
  type        = string
  default     = "cirrolog"
}

variable "minio" {
  description = "URL and credentials of MinIO."
  type        = object({ url = string, access_key = string, secret_key = string })
  sensitive   = true
}

variable "dynamodb_url" {
  description = "URL of DynamoDB Local."
  type        = string
}

variable "emulator_url" {
  description = "URL of the AWS emulator."
  type        = string
}

provider "aws" {
  alias                       = "minio"
  region                      = "us-east-1"
  access_key                  = var.minio.access_key
  secret_key                  = var.minio.secret_key
  s3_use_path_style           = true
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true

  endpoints {
    s3 = var.minio.url
  }
}

provider "aws" {
  alias                       = "dynamodb"
  region                      = "us-east-1"
  access_key                  = var.minio.access_key # it takes any, and keeps a database for each
  secret_key                  = var.minio.secret_key
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true

  endpoints {
    dynamodb = var.dynamodb_url
  }
}

provider "aws" {
  alias                       = "emulator"
  region                      = "us-east-1"
  access_key                  = "emulator"
  secret_key                  = "emulator"
  s3_use_path_style           = true
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true

  endpoints {
    s3       = var.emulator_url
    dynamodb = var.emulator_url
  }
}

module "storage" {
  source    = "../../modules/storage"
  providers = { aws = aws.minio }

  bucket        = var.name
  s3_compatible = true
  endpoint      = nonsensitive(var.minio.url)
  force_destroy = true
}

module "metadata" {
  source    = "../../modules/metadata"
  providers = { aws = aws.dynamodb }

  name                   = var.name
  endpoint               = var.dynamodb_url
  point_in_time_recovery = false # DynamoDB Local has none
  deletion_protection    = false
}

module "aws_storage" {
  source    = "../../modules/storage"
  providers = { aws = aws.emulator }

  bucket        = var.name
  endpoint      = var.emulator_url
  force_destroy = true
  tags          = { Service = "cirrolog" }
}

module "aws_metadata" {
  source    = "../../modules/metadata"
  providers = { aws = aws.emulator }

  name                = var.name
  endpoint            = var.emulator_url
  deletion_protection = false
  tags                = { Service = "cirrolog" }
}

output "bucket_url" {
  description = "For --bucket."
  value       = module.storage.url
}

output "metadata_url" {
  description = "For --metadata."
  value       = module.metadata.url
  sensitive   = true
}

output "aws_bucket_url" {
  description = "The bucket of the AWS emulator."
  value       = module.aws_storage.url
}

output "aws_metadata_url" {
  description = "The table of the AWS emulator."
  value       = module.aws_metadata.url
  sensitive   = true
}
