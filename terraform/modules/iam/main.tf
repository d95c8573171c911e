# A role for each entry of trust, with its policy. The gateway is a Kafka client: its role has none.

resource "aws_iam_role" "this" {
  for_each = var.trust

  name                 = "${var.name}-${each.key}"
  description          = "Cirrolog ${var.name}: ${each.key}"
  permissions_boundary = var.permissions_boundary
  tags                 = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [for kind, names in { Service = each.value.services, AWS = each.value.arns } : {
      Effect    = "Allow"
      Principal = { (kind) = names }
      Action    = "sts:AssumeRole"
    } if length(names) > 0]
  })
}

resource "aws_iam_role_policy" "this" {
  # By what is known before there is a bucket: a gateway has no policy.
  for_each = { for role in keys(var.trust) : role => local.policies[role] if length(local.objects[role].get) > 0 }

  name   = "cirrolog"
  role   = aws_iam_role.this[each.key].name
  policy = each.value
}

# EC2 takes a role by an instance profile.
resource "aws_iam_instance_profile" "this" {
  for_each = toset([for role, by in var.trust : role if contains(by.services, "ec2.amazonaws.com")])

  name = aws_iam_role.this[each.key].name
  role = aws_iam_role.this[each.key].name
  tags = var.tags
}
