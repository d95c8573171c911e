# What each role may do, and nothing else: README.md says which code needs it. A test of localstack/e2e records what
# each of them asks of a store, and compares.
locals {
  root = var.prefix == "" ? var.bucket_arn : "${var.bucket_arn}/${var.prefix}"

  # Below the cluster's prefix: objects that a role reads, writes, deletes, and lists.
  objects = {
    agent = {
      get    = ["data", "meta", "probe", "wal"]
      put    = ["data", "meta", "probe", "wal"]
      delete = ["data", "meta/log-start", "probe", "wal"]
      abort  = ["data"]
      list   = ["data", "meta", "probe", "wal"]
    }
    reader = {
      get    = ["data", "meta", "probe", "wal"]
      put    = ["meta", "probe", "wal"]
      delete = ["data", "probe", "wal"]
      abort  = []
      list   = ["data", "meta", "probe", "wal"]
    }
    sweeper = {
      get    = ["data", "meta", "wal"]
      put    = ["meta/log-start"]
      delete = ["data", "meta/log-start", "wal"]
      abort  = []
      list   = ["data", "meta", "wal"]
    }
    operator = {
      get    = ["data", "meta", "probe", "wal"]
      put    = ["meta/recovery", "probe"]
      delete = ["probe"]
      abort  = []
      list   = ["data", "meta", "probe", "wal"]
    }
    # It reads segments alone, and asks no table.
    verifier = { get = ["data"], put = [], delete = [], abort = [], list = ["data"], table = false }
    gateway  = { get = [], put = [], delete = [], abort = [], list = [] }
  }

  object_actions = {
    get    = "s3:GetObject"
    put    = "s3:PutObject"
    delete = "s3:DeleteObject"
    abort  = "s3:AbortMultipartUpload"
  }

  # Rows are deleted by an update; nobody needs DeleteItem. Who has the one store has all of its rows.
  rows = [
    "dynamodb:BatchGetItem", "dynamodb:ConditionCheckItem", "dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive",
    "dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query", "dynamodb:UpdateItem",
  ]

  statements = { for role, can in local.objects : role => concat(
    [for kind, action in local.object_actions : {
      Sid      = "Objects${title(kind)}"
      Effect   = "Allow"
      Action   = [action]
      Resource = [for room in can[kind] : "${local.root}/${room}/*"]
    } if length(can[kind]) > 0],
    # Without the right to list, S3 answers 403 instead of 404 for an object that is not there, and such a request names
    # no prefix: hence IfExists.
    [for kind in ["list"] : {
      Sid       = "List"
      Effect    = "Allow"
      Action    = ["s3:ListBucket"]
      Resource  = [var.bucket_arn]
      Condition = { StringLikeIfExists = { "s3:prefix" = [for room in can[kind] : var.prefix == "" ? "${room}/*" : "${var.prefix}/${room}/*"] } }
    } if length(can[kind]) > 0],
    [for arn in var.table_arn == null || length(can.get) == 0 || !try(can.table, true) ? [] : [var.table_arn] : {
      Sid      = "Metadata"
      Effect   = "Allow"
      Action   = local.rows
      Resource = [arn]
    }],
    [for kms in length(var.kms_key_arns) == 0 || length(can.get) == 0 ? [] : [var.kms_key_arns] : {
      Sid      = "Keys"
      Effect   = "Allow"
      Action   = length(can.put) > 0 ? ["kms:Decrypt", "kms:GenerateDataKey"] : ["kms:Decrypt"]
      Resource = kms
    }],
  ) }

  policies = { for role, statements in local.statements : role => length(statements) == 0 ? null : jsonencode({
    Version   = "2012-10-17"
    Statement = statements
  }) }
}
