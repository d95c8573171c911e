# Run by `tofu test` or `terraform test`: nothing is created.
mock_provider "aws" {
  mock_resource "aws_vpc" {
    defaults = { id = "vpc-0made" }
  }
  mock_resource "aws_security_group" {
    defaults = { region = "eu-central-1" }
  }
  mock_resource "aws_vpc_endpoint" {
    defaults = { prefix_list_id = "pl-1" }
  }
}

variables {
  name  = "prod"
  zones = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
}

run "by_default" {
  assert {
    condition     = output.vpc_id == "vpc-0made" && output.cidr == "10.64.0.0/16" && toset(keys(output.subnets)) == toset(var.zones) && toset(keys(output.route_table_ids)) == toset(var.zones)
    error_message = jsonencode(output.subnets)
  }
  assert {
    condition     = { for zone, s in aws_subnet.private : zone => s.cidr_block } == { eu-central-1a = "10.64.0.0/20", eu-central-1b = "10.64.16.0/20", eu-central-1c = "10.64.32.0/20" }
    error_message = "subnets: ${jsonencode([for s in aws_subnet.private : s.cidr_block])}"
  }
  assert {
    condition     = toset(keys(aws_route_table_association.private)) == toset(var.zones)
    error_message = "a subnet has no route table"
  }
  assert {
    condition     = { for s, e in aws_vpc_endpoint.gateway : e.service_name => e.vpc_endpoint_type } == { "com.amazonaws.eu-central-1.s3" = "Gateway", "com.amazonaws.eu-central-1.dynamodb" = "Gateway" } && alltrue([for e in aws_vpc_endpoint.gateway : length(e.route_table_ids) > 0])
    error_message = "bucket and table are not reached from every subnet"
  }
  # Private: nothing leads to the internet, and agents may go to nothing there.
  assert {
    condition = alltrue([
      length(aws_internet_gateway.this) + length(aws_nat_gateway.this) + length(aws_route.nat) + length(aws_subnet.public) + length(aws_vpc_endpoint.interface) == 0,
      length(aws_vpc_security_group_egress_rule.internet) + length(aws_vpc_security_group_egress_rule.vpc) == 0,
      length(aws_default_security_group.this[0].ingress) + length(aws_default_security_group.this[0].egress) == 0,
    ])
    error_message = "there is a way to the internet"
  }
  assert {
    condition     = [for k, r in aws_vpc_security_group_ingress_rule.cidr : [k, r.cidr_ipv4, r.from_port, r.to_port]] == [["kafka-0", "10.64.0.0/16", 9092, 9092]] && length(aws_vpc_security_group_ingress_rule.group) == 0
    error_message = "let in: ${jsonencode(aws_vpc_security_group_ingress_rule.cidr)}"
  }
  # Whoever is let in may go there, and the other way round. (Mocked groups have all one id.)
  assert {
    condition = { for k, r in aws_vpc_security_group_ingress_rule.inside : r.description => [r.from_port, r.to_port] } == {
      "agents to agents"    = [9645, 9645]
      "kafka to kafka"      = [9092, 9092]
      "clients to kafka"    = [9092, 9092]
      "http to http"        = [8082, 8082]
      "agents to metadata"  = [6379, 6379]
      "agents to endpoints" = [443, 443]
    }
    error_message = "within the cluster: ${jsonencode(aws_vpc_security_group_ingress_rule.inside)}"
  }
  assert {
    condition     = alltrue([for k, r in aws_vpc_security_group_egress_rule.inside : r.description == aws_vpc_security_group_ingress_rule.inside[k].description && r.from_port == aws_vpc_security_group_ingress_rule.inside[k].from_port])
    error_message = "ways in and out differ"
  }
  assert {
    condition     = alltrue([for r in aws_vpc_security_group_egress_rule.gateway : r.prefix_list_id == "pl-1" && r.from_port == 443 && r.security_group_id == output.security_group_ids.agents])
    error_message = "agents don't reach bucket and table"
  }
}

run "clients_and_endpoints" {
  variables {
    kafka_clients       = { cidrs = ["10.1.0.0/16", "10.2.0.0/16"], security_group_ids = ["sg-1"] }
    http_clients        = { cidrs = ["10.1.0.0/16"] }
    admin_clients       = { security_group_ids = ["sg-2"] }
    interface_endpoints = ["autoscaling", "ecr.api"]
  }
  assert {
    condition     = { for k, r in aws_vpc_security_group_ingress_rule.cidr : k => r.from_port } == { kafka-0 = 9092, kafka-1 = 9092, http-0 = 8082 }
    error_message = "networks: ${jsonencode(aws_vpc_security_group_ingress_rule.cidr)}"
  }
  assert {
    condition = { for k, r in aws_vpc_security_group_ingress_rule.group : k => [r.referenced_security_group_id, tostring(r.from_port)] } == {
      kafka-0 = ["sg-1", "9092"]
      admin-0 = ["sg-2", "9644"]
    }
    error_message = "groups: ${jsonencode(aws_vpc_security_group_ingress_rule.group)}"
  }
  assert {
    condition     = [for e in aws_vpc_endpoint.interface : e.service_name] == ["com.amazonaws.eu-central-1.autoscaling", "com.amazonaws.eu-central-1.ecr.api"] && alltrue([for e in aws_vpc_endpoint.interface : length(e.subnet_ids) > 0 && e.private_dns_enabled])
    error_message = "interface endpoints: ${jsonencode(aws_vpc_endpoint.interface)}"
  }
}

run "one_nat" {
  variables {
    nat = "one"
  }
  assert {
    condition     = [for zone, n in aws_nat_gateway.this : zone] == ["eu-central-1a"] && length(aws_route.nat) == 3
    error_message = "not one NAT gateway for all zones"
  }
  assert {
    condition     = aws_subnet.public["eu-central-1a"].cidr_block == "10.64.128.0/20" && length(aws_vpc_security_group_egress_rule.internet) == 1
    error_message = "the public subnet, or the way out of the agents"
  }
}

run "nat_in_each_zone" {
  variables {
    nat = "zone"
  }
  assert {
    condition     = length(output.nat_addresses) == 3 && toset(keys(aws_nat_gateway.this)) == toset(var.zones) && toset(keys(aws_route.nat)) == toset(var.zones)
    error_message = "a zone has no NAT gateway"
  }
  assert {
    condition     = length(distinct(concat([for s in aws_subnet.public : s.cidr_block], [for s in aws_subnet.private : s.cidr_block]))) == 6
    error_message = "subnets overlap"
  }
}

run "given" {
  variables {
    zones = []
    vpc   = { id = "vpc-1", cidr = "10.0.0.0/16", subnets = { eu-central-1a = "subnet-a", eu-central-1b = "subnet-b" }, route_table_ids = ["rtb-1"] }
  }
  assert {
    condition     = output.vpc_id == "vpc-1" && output.subnets == tomap({ eu-central-1a = "subnet-a", eu-central-1b = "subnet-b" }) && length(aws_vpc.this) + length(aws_subnet.private) + length(aws_route_table.private) + length(aws_default_security_group.this) == 0
    error_message = "something was made in a VPC that is there"
  }
  assert {
    condition     = alltrue([for e in aws_vpc_endpoint.gateway : e.vpc_id == "vpc-1" && e.route_table_ids == toset(["rtb-1"])]) && length(aws_vpc_endpoint.gateway) == 2 && length(aws_vpc_security_group_egress_rule.internet) == 0
    error_message = "endpoints"
  }
  assert {
    condition     = aws_vpc_security_group_ingress_rule.cidr["kafka-0"].cidr_ipv4 == "10.0.0.0/16" && aws_vpc_security_group_egress_rule.vpc[0].cidr_ipv4 == "10.0.0.0/16" && aws_vpc_security_group_egress_rule.vpc[0].from_port == 443
    error_message = "clients, or endpoints, are not those of the VPC"
  }
}

run "given_with_its_own_way_out" {
  variables {
    zones = []
    vpc   = { id = "vpc-1", cidr = "10.0.0.0/16", subnets = { eu-central-1a = "subnet-a" } }
  }
  assert {
    condition     = length(aws_vpc_endpoint.gateway) == 0 && aws_vpc_security_group_egress_rule.internet[0].cidr_ipv4 == "0.0.0.0/0" && aws_vpc_security_group_egress_rule.internet[0].from_port == 443
    error_message = "agents have no way to bucket and table"
  }
}

run "bad_name" {
  command = plan
  variables {
    name = "1 cluster"
  }
  expect_failures = [var.name]
}

run "bad_cidr" {
  command = plan
  variables {
    cidr = "10.64.0.1/16"
  }
  expect_failures = [var.cidr]
}

run "bad_zone" {
  command = plan
  variables {
    zones = ["eu-central-1a", "eu-central-1"]
  }
  expect_failures = [var.zones]
}

run "no_zones" {
  command = plan
  variables {
    zones = []
  }
  expect_failures = [var.zones]
}

run "bad_vpc" {
  command = plan
  variables {
    zones = []
    vpc   = { id = "prod", cidr = "10.0.0.0/16", subnets = { eu-central-1a = "subnet-a" } }
  }
  expect_failures = [var.vpc]
}

run "bad_cidr_of_vpc" {
  command = plan
  variables {
    zones = []
    vpc   = { id = "vpc-1", cidr = "10.0.0.0", subnets = { eu-central-1a = "subnet-a" } }
  }
  expect_failures = [var.vpc]
}

run "vpc_without_zones" {
  command = plan
  variables {
    zones = []
    vpc   = { id = "vpc-1", cidr = "10.0.0.0/16", subnets = { a = "subnet-a" } }
  }
  expect_failures = [var.vpc]
}

run "bad_nat" {
  command = plan
  variables {
    nat = "yes"
  }
  expect_failures = [var.nat]
}

run "nat_in_a_given_vpc" {
  command = plan
  variables {
    zones = []
    vpc   = { id = "vpc-1", cidr = "10.0.0.0/16", subnets = { eu-central-1a = "subnet-a" } }
    nat   = "one"
  }
  expect_failures = [var.nat]
}

run "bad_endpoint" {
  command = plan
  variables {
    interface_endpoints = ["com.amazonaws.eu-central-1.logs", "s3"]
  }
  expect_failures = [var.interface_endpoints]
}

run "kafka_for_everybody" {
  command = plan
  variables {
    kafka_clients = { cidrs = ["0.0.0.0/0"] }
  }
  expect_failures = [var.kafka_clients]
}

run "bad_group_of_kafka" {
  command = plan
  variables {
    kafka_clients = { security_group_ids = ["default"] }
  }
  expect_failures = [var.kafka_clients]
}

run "http_for_everybody" {
  command = plan
  variables {
    http_clients = { cidrs = ["0.0.0.0/0"] }
  }
  expect_failures = [var.http_clients]
}

run "bad_group_of_http" {
  command = plan
  variables {
    http_clients = { security_group_ids = ["default"] }
  }
  expect_failures = [var.http_clients]
}

run "admin_for_everybody" {
  command = plan
  variables {
    admin_clients = { cidrs = ["0.0.0.0/0"] }
  }
  expect_failures = [var.admin_clients]
}

run "bad_group_of_admin" {
  command = plan
  variables {
    admin_clients = { security_group_ids = ["default"] }
  }
  expect_failures = [var.admin_clients]
}
