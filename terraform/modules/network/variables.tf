variable "name" {
  description = "Name of the cluster, which the names of everything begin with."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z][A-Za-z0-9-]{0,39}$", var.name))
    error_message = "name must have up to 40 letters, digits and hyphens, and begin with a letter."
  }
}

variable "cidr" {
  description = "Addresses of the VPC that is made. A sixteenth of them is for each private subnet."
  type        = string
  default     = "10.64.0.0/16"

  validation {
    condition     = can(cidrnetmask(var.cidr)) && try(cidrsubnet(var.cidr, 0, 0) == var.cidr && tonumber(split("/", var.cidr)[1]) >= 16 && tonumber(split("/", var.cidr)[1]) <= 24, false)
    error_message = "cidr must be an IPv4 network from /16 to /24, as 10.64.0.0/16."
  }
}

variable "zones" {
  description = "Availability zones of the VPC that is made, a private subnet in each. Required, unless vpc is given."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for zone in var.zones : can(regex("^[a-z]{2}(-[a-z]+)+-[0-9][a-z]$", zone))]) && length(distinct(var.zones)) == length(var.zones)
    error_message = "zones must be names of different zones, as eu-central-1a."
  }
  validation {
    condition     = var.vpc != null ? length(var.zones) == 0 : length(var.zones) >= 1 && length(var.zones) <= 6
    error_message = "zones must name 1 to 6 zones, and none when vpc is given, whose subnets have theirs."
  }
}

variable "vpc" {
  description = "A VPC that is there: its id and addresses, a private subnet by zone, and the route tables of these subnets, which get the gateway endpoints. Without route tables none are made: then it has them, or another way to S3 and DynamoDB. Null: one is made."
  type = object({
    id              = string
    cidr            = string
    subnets         = map(string)
    route_table_ids = optional(list(string), [])
  })
  default = null

  validation {
    condition     = try(startswith(var.vpc.id, "vpc-"), var.vpc == null)
    error_message = "vpc: id must be that of a VPC (vpc-…)."
  }
  validation {
    condition     = var.vpc == null || can(cidrnetmask(var.vpc.cidr))
    error_message = "vpc: cidr must be the VPC's IPv4 network, as 10.0.0.0/16."
  }
  validation {
    condition     = try(length(var.vpc.subnets) >= 1 && alltrue([for zone in keys(var.vpc.subnets) : can(regex("^[a-z]{2}(-[a-z]+)+-[0-9][a-z]$", zone))]), var.vpc == null)
    error_message = "vpc: subnets must have a subnet by the name of its zone, as { eu-central-1a = \"subnet-…\" }."
  }
}

variable "nat" {
  description = "Way to the internet from the VPC that is made: none, one NAT gateway for all zones, or one in each zone."
  type        = string
  default     = "none"

  validation {
    condition     = contains(["none", "one", "zone"], var.nat)
    error_message = "nat must be none, one or zone."
  }
  validation {
    condition     = var.vpc == null || var.nat == "none"
    error_message = "nat is of the VPC that is made: leave it at none when vpc is given."
  }
}

variable "interface_endpoints" {
  description = "Services of AWS that are to be reached without the internet, by an interface endpoint in each subnet, which costs by the hour: autoscaling, ecr.api, ecr.dkr, logs, secretsmanager, ssm, …"
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for service in var.interface_endpoints : can(regex("^[a-z][a-z0-9-]*(\\.[a-z0-9-]+)*$", service)) && !contains(["s3", "dynamodb"], service)])
    error_message = "interface_endpoints must be names of services as in com.amazonaws.REGION.NAME; s3 and dynamodb have gateway endpoints."
  }
}

variable "kafka_clients" {
  description = "Who may reach the Kafka port: networks, and security groups beside that of clients. Null: everybody in the VPC. Nothing on the port is authenticated or encrypted."
  type = object({
    cidrs              = optional(list(string), [])
    security_group_ids = optional(list(string), [])
  })
  default = null

  validation {
    condition     = try(alltrue([for cidr in var.kafka_clients.cidrs : can(cidrnetmask(cidr)) && cidr != "0.0.0.0/0"]), var.kafka_clients == null)
    error_message = "kafka_clients: cidrs must be IPv4 networks, and not everybody's: nothing on the port is authenticated."
  }
  validation {
    condition     = try(alltrue([for id in var.kafka_clients.security_group_ids : startswith(id, "sg-")]), var.kafka_clients == null)
    error_message = "kafka_clients: security_group_ids must be ids (sg-…)."
  }
}

variable "http_clients" {
  description = "Who may reach the HTTP gateway of the agents, as kafka_clients. By default nobody."
  type = object({
    cidrs              = optional(list(string), [])
    security_group_ids = optional(list(string), [])
  })
  default = {}

  validation {
    condition     = try(alltrue([for cidr in var.http_clients.cidrs : can(cidrnetmask(cidr)) && cidr != "0.0.0.0/0"]), false)
    error_message = "http_clients: cidrs must be IPv4 networks, and not everybody's: nothing on the port is authenticated."
  }
  validation {
    condition     = try(alltrue([for id in var.http_clients.security_group_ids : startswith(id, "sg-")]), false)
    error_message = "http_clients: security_group_ids must be ids (sg-…)."
  }
}

variable "admin_clients" {
  description = "Who may reach the admin port of the agents, as Prometheus. By default nobody."
  type = object({
    cidrs              = optional(list(string), [])
    security_group_ids = optional(list(string), [])
  })
  default = {}

  validation {
    condition     = try(alltrue([for cidr in var.admin_clients.cidrs : can(cidrnetmask(cidr)) && cidr != "0.0.0.0/0"]), false)
    error_message = "admin_clients: cidrs must be IPv4 networks, and not everybody's: who reaches the port may delete topics."
  }
  validation {
    condition     = try(alltrue([for id in var.admin_clients.security_group_ids : startswith(id, "sg-")]), false)
    error_message = "admin_clients: security_group_ids must be ids (sg-…)."
  }
}

variable "tags" {
  description = "Tags of everything that is created."
  type        = map(string)
  default     = {}
}
