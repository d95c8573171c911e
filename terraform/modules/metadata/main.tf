locals {
  dynamodb       = var.store == "dynamodb"
  elasticache    = var.store == "elasticache"
  engine_version = coalesce(var.engine_version, var.engine == "valkey" ? "8.0" : "7.1")
}

# The key and the attribute of time to live are those of docs/format/kv-dynamo.md; an agent refuses a table with
# another key.
resource "aws_dynamodb_table" "this" {
  count = local.dynamodb ? 1 : 0

  name                        = var.name
  billing_mode                = "PAY_PER_REQUEST"
  hash_key                    = "pk"
  range_key                   = "sk"
  deletion_protection_enabled = var.deletion_protection
  tags                        = var.tags

  attribute {
    name = "pk"
    type = "S"
  }

  attribute {
    name = "sk"
    type = "B"
  }

  ttl {
    attribute_name = "x"
    enabled        = true
  }

  point_in_time_recovery {
    enabled = var.point_in_time_recovery
  }

  # Without the block DynamoDB encrypts with a key of its own.
  dynamic "server_side_encryption" {
    for_each = var.kms_key_arn == null ? [] : [var.kms_key_arn]

    content {
      enabled     = true
      kms_key_arn = server_side_encryption.value
    }
  }
}

resource "aws_elasticache_subnet_group" "this" {
  count = local.elasticache ? 1 : 0

  name       = var.name
  subnet_ids = var.subnet_ids
  tags       = var.tags
}

# An agent refuses a server that may drop keys: they are metadata, no cache.
resource "aws_elasticache_parameter_group" "this" {
  count = local.elasticache ? 1 : 0

  name   = "${var.name}-${var.engine}${split(".", local.engine_version)[0]}"
  family = "${var.engine}${split(".", local.engine_version)[0]}"
  tags   = var.tags

  parameter {
    name  = "maxmemory-policy"
    value = "noeviction"
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_elasticache_replication_group" "this" {
  count = local.elasticache ? 1 : 0

  replication_group_id = var.name
  description          = "Metadata of Cirrolog"

  engine                     = var.engine
  engine_version             = local.engine_version
  node_type                  = var.node_type
  num_cache_clusters         = 1 + var.replicas
  automatic_failover_enabled = var.replicas > 0
  multi_az_enabled           = var.multi_az
  port                       = 6379

  parameter_group_name = aws_elasticache_parameter_group.this[0].name
  subnet_group_name    = aws_elasticache_subnet_group.this[0].name
  security_group_ids   = var.security_group_ids

  at_rest_encryption_enabled = true
  kms_key_id                 = var.kms_key_arn
  transit_encryption_enabled = true
  auth_token                 = var.auth_token

  snapshot_retention_limit = var.snapshot_retention_days
  tags                     = var.tags
}
