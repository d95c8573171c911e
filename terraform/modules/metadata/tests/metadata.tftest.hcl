# Run by `tofu test` or `terraform test`: nothing is created.
mock_provider "aws" {
  mock_resource "aws_dynamodb_table" {
    defaults = {
      arn    = "arn:aws:dynamodb:eu-central-1:123456789012:table/a-table"
      region = "eu-central-1"
    }
  }
  mock_resource "aws_elasticache_replication_group" {
    defaults = {
      id                       = "a-table"
      arn                      = "arn:aws:elasticache:eu-central-1:123456789012:replicationgroup:a-table"
      primary_endpoint_address = "master.a-table.abc.euc1.cache.amazonaws.com"
    }
  }
}

variables {
  name = "a-table"
}

run "table_by_default" {
  assert {
    condition     = nonsensitive(output.url) == "dynamodb://a-table?region=eu-central-1" && output.name == "a-table"
    error_message = nonsensitive(output.url)
  }
  assert {
    condition = alltrue([
      aws_dynamodb_table.this[0].billing_mode == "PAY_PER_REQUEST",
      aws_dynamodb_table.this[0].deletion_protection_enabled,
      aws_dynamodb_table.this[0].point_in_time_recovery[0].enabled,
      aws_dynamodb_table.this[0].ttl[0].enabled,
      length(aws_dynamodb_table.this[0].server_side_encryption) == 0,
      length(aws_elasticache_replication_group.this) == 0,
    ])
    error_message = "the table is not on demand, protected, with PITR and time to live"
  }
  # What metadata/kv/dynamo demands of a table.
  assert {
    condition = alltrue([
      aws_dynamodb_table.this[0].hash_key == "pk",
      aws_dynamodb_table.this[0].range_key == "sk",
      { for a in aws_dynamodb_table.this[0].attribute : a.name => a.type } == { pk = "S", sk = "B" },
      aws_dynamodb_table.this[0].ttl[0].attribute_name == "x",
    ])
    error_message = "not the key of docs/format/kv-dynamo.md"
  }
}

run "table_with_all" {
  variables {
    prefix                 = "prod/eu"
    kms_key_arn            = "arn:aws:kms:eu-central-1:123456789012:key/abc"
    endpoint               = "http://127.0.0.1:8000"
    point_in_time_recovery = false
    deletion_protection    = false
  }
  assert {
    condition     = nonsensitive(output.url) == "dynamodb://a-table/prod/eu?region=eu-central-1&endpoint=http://127.0.0.1:8000"
    error_message = nonsensitive(output.url)
  }
  assert {
    condition     = aws_dynamodb_table.this[0].server_side_encryption[0].kms_key_arn == var.kms_key_arn && !aws_dynamodb_table.this[0].point_in_time_recovery[0].enabled && !aws_dynamodb_table.this[0].deletion_protection_enabled
    error_message = "the variables do not arrive"
  }
}

run "cache_by_default" {
  variables {
    store              = "elasticache"
    subnet_ids         = ["subnet-1", "subnet-2"]
    security_group_ids = ["sg-1"]
    auth_token         = "0123456789abcdef#&"
  }
  assert {
    condition     = nonsensitive(output.url) == "rediss://:0123456789abcdef%23%26@master.a-table.abc.euc1.cache.amazonaws.com:6379"
    error_message = nonsensitive(output.url)
  }
  assert {
    condition = alltrue([
      aws_elasticache_replication_group.this[0].transit_encryption_enabled,
      tobool(aws_elasticache_replication_group.this[0].at_rest_encryption_enabled),
      aws_elasticache_replication_group.this[0].automatic_failover_enabled,
      aws_elasticache_replication_group.this[0].multi_az_enabled,
      aws_elasticache_replication_group.this[0].num_cache_clusters == 2,
      aws_elasticache_replication_group.this[0].engine == "valkey",
      aws_elasticache_parameter_group.this[0].family == "valkey8",
      { for p in aws_elasticache_parameter_group.this[0].parameter : p.name => p.value } == { maxmemory-policy = "noeviction" },
      length(aws_dynamodb_table.this) == 0,
    ])
    error_message = "not Multi-AZ with TLS and noeviction"
  }
}

run "one_redis_node" {
  variables {
    store              = "elasticache"
    engine             = "redis"
    replicas           = 0
    multi_az           = false
    subnet_ids         = ["subnet-1"]
    security_group_ids = ["sg-1"]
    namespace          = "eu"
  }
  assert {
    condition     = nonsensitive(output.url) == "rediss://master.a-table.abc.euc1.cache.amazonaws.com:6379?namespace=eu"
    error_message = nonsensitive(output.url)
  }
  assert {
    condition     = aws_elasticache_parameter_group.this[0].family == "redis7" && !aws_elasticache_replication_group.this[0].automatic_failover_enabled && aws_elasticache_replication_group.this[0].num_cache_clusters == 1
    error_message = "not one node of redis 7"
  }
}

run "bad_store" {
  command = plan
  variables {
    store = "redis"
  }
  expect_failures = [var.store]
}

run "bad_name" {
  command = plan
  variables {
    name = "a/b"
  }
  expect_failures = [var.name]
}

run "bad_name_of_a_group" {
  command = plan
  variables {
    name               = "A_Group"
    store              = "elasticache"
    subnet_ids         = ["subnet-1", "subnet-2"]
    security_group_ids = ["sg-1"]
  }
  expect_failures = [var.name]
}

run "bad_key" {
  command = plan
  variables {
    kms_key_arn = "alias/cirrolog"
  }
  expect_failures = [var.kms_key_arn]
}

run "bad_prefix" {
  command = plan
  variables {
    prefix = "/prod"
  }
  expect_failures = [var.prefix]
}

run "bad_endpoint" {
  command = plan
  variables {
    endpoint = "dynamodb"
  }
  expect_failures = [var.endpoint]
}

run "bad_engine" {
  command = plan
  variables {
    engine = "memcached"
  }
  expect_failures = [var.engine]
}

run "bad_engine_version" {
  command = plan
  variables {
    engine_version = "6.2"
  }
  expect_failures = [var.engine_version]
}

run "bad_engine_version_of_redis" {
  command = plan
  variables {
    engine         = "redis"
    engine_version = "8.0"
  }
  expect_failures = [var.engine_version]
}

run "bad_node_type" {
  command = plan
  variables {
    node_type = "t4g.small"
  }
  expect_failures = [var.node_type]
}

run "bad_replicas" {
  command = plan
  variables {
    replicas = 6
  }
  expect_failures = [var.replicas]
}

run "bad_multi_az" {
  command = plan
  variables {
    replicas = 0
  }
  expect_failures = [var.multi_az]
}

run "bad_subnets" {
  command = plan
  variables {
    store              = "elasticache"
    subnet_ids         = ["subnet-1"]
    security_group_ids = ["sg-1"]
  }
  expect_failures = [var.subnet_ids]
}

run "bad_security_groups" {
  command = plan
  variables {
    store      = "elasticache"
    subnet_ids = ["subnet-1", "subnet-2"]
  }
  expect_failures = [var.security_group_ids]
}

run "bad_auth_token" {
  command = plan
  variables {
    auth_token = "short"
  }
  expect_failures = [var.auth_token]
}

run "bad_namespace" {
  command = plan
  variables {
    namespace = "a b"
  }
  expect_failures = [var.namespace]
}

run "bad_snapshot_retention_days" {
  command = plan
  variables {
    snapshot_retention_days = 36
  }
  expect_failures = [var.snapshot_retention_days]
}
