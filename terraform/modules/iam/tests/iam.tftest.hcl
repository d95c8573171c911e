# Run by `tofu test` or `terraform test`: nothing is created.
mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = {
      arn = "arn:aws:iam::123456789012:role/mocked"
    }
  }
}

variables {
  name       = "prod"
  bucket_arn = "arn:aws:s3:::a-bucket"
  prefix     = "eu/prod"
  table_arn  = "arn:aws:dynamodb:eu-central-1:123456789012:table/a-table"
}

run "by_default" {
  assert {
    condition     = output.role_names == { agent = "prod-agent", reader = "prod-reader", sweeper = "prod-sweeper" } && length(output.role_arns) == 3
    error_message = "roles: ${jsonencode(output.role_names)}"
  }
  assert {
    condition     = output.instance_profiles == { agent = "prod-agent", reader = "prod-reader" }
    error_message = "instance profiles: ${jsonencode(output.instance_profiles)}"
  }
  assert {
    condition     = jsondecode(aws_iam_role.this["sweeper"].assume_role_policy).Statement == [{ Effect = "Allow", Principal = { Service = ["lambda.amazonaws.com"] }, Action = "sts:AssumeRole" }]
    error_message = aws_iam_role.this["sweeper"].assume_role_policy
  }
  assert {
    condition     = aws_iam_role_policy.this["agent"].policy == output.policies.agent && output.policies.gateway == null && keys(aws_iam_role_policy.this) == ["agent", "reader", "sweeper"]
    error_message = "the roles have other policies"
  }
  # Nobody may do anything outside of the cluster's prefix and table, or by a wildcard among actions.
  assert {
    condition = alltrue(flatten([for role, policy in output.policies : policy == null ? [] : [for s in jsondecode(policy).Statement : [
      s.Effect == "Allow",
      alltrue([for a in s.Action : can(regex("^(s3|dynamodb):[A-Z][A-Za-z]+$", a))]),
      alltrue([for r in s.Resource : r == var.table_arn || r == var.bucket_arn && s.Action == ["s3:ListBucket"] || startswith(r, "${var.bucket_arn}/eu/prod/")]),
    ]]]))
    error_message = "a policy goes beyond the cluster: ${jsonencode(output.policies)}"
  }
  assert {
    condition     = [for s in jsondecode(output.policies.agent).Statement : s.Condition.StringLikeIfExists["s3:prefix"] if s.Sid == "List"] == [["eu/prod/data/*", "eu/prod/meta/*", "eu/prod/probe/*", "eu/prod/wal/*"]]
    error_message = "lists: ${output.policies.agent}"
  }
  assert {
    condition     = [for s in jsondecode(output.policies.verifier).Statement : [s.Action, s.Resource]] == [[["s3:GetObject"], ["arn:aws:s3:::a-bucket/eu/prod/data/*"]], [["s3:ListBucket"], ["arn:aws:s3:::a-bucket"]]]
    error_message = "the verifier does more than read segments: ${output.policies.verifier}"
  }
  assert {
    condition     = alltrue([for role in ["reader", "sweeper", "verifier", "operator"] : !strcontains(jsonencode([for s in jsondecode(output.policies[role]).Statement : s if s.Sid == "ObjectsPut"]), "/data/")])
    error_message = "others than agents may write segments"
  }
  assert {
    condition     = alltrue([for s in jsondecode(output.policies.operator).Statement : s.Resource == ["arn:aws:s3:::a-bucket/eu/prod/probe/*"] if s.Sid == "ObjectsDelete"])
    error_message = "the operator may delete data: ${output.policies.operator}"
  }
}

run "all_roles" {
  variables {
    trust = {
      agent    = { services = ["ec2.amazonaws.com", "ecs-tasks.amazonaws.com"] }
      reader   = { services = ["ecs-tasks.amazonaws.com"] }
      gateway  = { services = ["ec2.amazonaws.com"] }
      sweeper  = { services = ["lambda.amazonaws.com"], arns = ["arn:aws:iam::123456789012:role/jobs"] }
      verifier = { services = ["lambda.amazonaws.com"] }
      operator = { arns = ["arn:aws:iam::123456789012:root"] }
    }
    permissions_boundary = "arn:aws:iam::123456789012:policy/bound"
    kms_key_arns         = ["arn:aws:kms:eu-central-1:123456789012:key/abc"]
  }
  assert {
    condition     = keys(aws_iam_role.this) == ["agent", "gateway", "operator", "reader", "sweeper", "verifier"] && keys(aws_iam_role_policy.this) == ["agent", "operator", "reader", "sweeper", "verifier"]
    error_message = "roles: ${jsonencode(keys(aws_iam_role.this))}, policies: ${jsonencode(keys(aws_iam_role_policy.this))}"
  }
  assert {
    condition     = length(jsondecode(aws_iam_role.this["sweeper"].assume_role_policy).Statement) == 2 && jsondecode(aws_iam_role.this["operator"].assume_role_policy).Statement[0].Principal == { AWS = ["arn:aws:iam::123456789012:root"] }
    error_message = "who may take roles: ${aws_iam_role.this["sweeper"].assume_role_policy}"
  }
  assert {
    condition     = alltrue([for r in aws_iam_role.this : r.permissions_boundary == "arn:aws:iam::123456789012:policy/bound"])
    error_message = "a role is not bounded"
  }
  assert {
    condition = { for role, policy in output.policies : role => one([for s in jsondecode(policy).Statement : s.Action if s.Sid == "Keys"]) if policy != null } == {
      agent    = ["kms:Decrypt", "kms:GenerateDataKey"]
      reader   = ["kms:Decrypt", "kms:GenerateDataKey"]
      operator = ["kms:Decrypt", "kms:GenerateDataKey"]
      sweeper  = ["kms:Decrypt", "kms:GenerateDataKey"]
      verifier = ["kms:Decrypt"]
    }
    error_message = "keys: ${jsonencode(output.policies)}"
  }
}

run "redis_and_no_prefix" {
  variables {
    prefix    = ""
    table_arn = null
  }
  assert {
    condition     = !strcontains(jsonencode(output.policies), "dynamodb:")
    error_message = "there is no table"
  }
  assert {
    condition     = [for s in jsondecode(output.policies.sweeper).Statement : s.Resource if s.Sid == "ObjectsDelete"] == [["arn:aws:s3:::a-bucket/data/*", "arn:aws:s3:::a-bucket/meta/log-start/*", "arn:aws:s3:::a-bucket/wal/*"]]
    error_message = output.policies.sweeper
  }
}

run "bad_name" {
  command = plan
  variables {
    name = "a cluster"
  }
  expect_failures = [var.name]
}

run "bad_bucket" {
  command = plan
  variables {
    bucket_arn = "arn:aws:s3:::a-bucket/*"
  }
  expect_failures = [var.bucket_arn]
}

run "bad_prefix" {
  command = plan
  variables {
    prefix = "prod/*"
  }
  expect_failures = [var.prefix]
}

run "bad_table" {
  command = plan
  variables {
    table_arn = "a-table"
  }
  expect_failures = [var.table_arn]
}

run "bad_key" {
  command = plan
  variables {
    kms_key_arns = ["arn:aws:kms:eu-central-1:123456789012:key/abc", "alias/cirrolog"]
  }
  expect_failures = [var.kms_key_arns]
}

run "unknown_role" {
  command = plan
  variables {
    trust = { admin = { services = ["ec2.amazonaws.com"] } }
  }
  expect_failures = [var.trust]
}

run "role_for_nobody" {
  command = plan
  variables {
    trust = { agent = {} }
  }
  expect_failures = [var.trust]
}

run "bad_service" {
  command = plan
  variables {
    trust = { agent = { services = ["ec2"] } }
  }
  expect_failures = [var.trust]
}

run "role_for_everybody" {
  command = plan
  variables {
    trust = { operator = { arns = ["*"] } }
  }
  expect_failures = [var.trust]
}

run "bad_boundary" {
  command = plan
  variables {
    permissions_boundary = "bound"
  }
  expect_failures = [var.permissions_boundary]
}
