variable "name" {
  description = "Name of the cluster, which the names of everything begin with."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z][A-Za-z0-9-]{0,22}[A-Za-z0-9]$", var.name)) && !startswith(var.name, "internal-")
    error_message = "name must have 2 to 24 letters, digits and hyphens, begin with a letter, not end with a hyphen, and not begin with internal-."
  }
}

variable "launch" {
  description = "What agents run on: ec2 (an Auto Scaling group of instances with NVMe disks), or fargate (no machines to look after, and no fast disks)."
  type        = string
  default     = "ec2"

  validation {
    condition     = contains(["ec2", "fargate"], var.launch)
    error_message = "launch must be ec2 or fargate."
  }
}

variable "agents" {
  description = "How many agents there are, over all zones."
  type        = number
  default     = 3

  validation {
    condition     = var.agents >= 1 && var.agents <= 200 && floor(var.agents) == var.agents
    error_message = "agents must be a whole number from 1 to 200."
  }
}

# What they work on

variable "bucket_url" {
  description = "The bucket, as modules/storage has it in its output url."
  type        = string

  validation {
    condition     = can(regex("^s3://[a-z0-9][a-z0-9-]{1,61}[a-z0-9](/[A-Za-z0-9._=/-]+)?\\?region=[a-z0-9-]+(&[A-Za-z0-9=&:/._-]+)?$", var.bucket_url))
    error_message = "bucket_url must look like s3://BUCKET/PREFIX?region=REGION, as modules/storage has it."
  }
}

variable "metadata_url" {
  description = "The metadata store, as modules/metadata has it in its output url. It is in the user data of the instances, or in the definition of the task, where who may read those finds the password of ElastiCache. Null: metadata_secret_arn."
  type        = string
  default     = null
  sensitive   = true

  validation {
    condition     = var.metadata_url == null || can(regex("^(dynamodb|rediss?)://[A-Za-z0-9!&#$^<>%*+,;=:@?/._~-]+$", var.metadata_url))
    error_message = "metadata_url must begin with dynamodb://, redis:// or rediss://, without spaces and quotes."
  }
}

variable "metadata_secret_arn" {
  description = "ARN of a secret in Secrets Manager whose value is that URL. Agents read it when they start; from private subnets that takes a way to Secrets Manager."
  type        = string
  default     = null

  validation {
    condition     = var.metadata_secret_arn == null || can(regex("^arn:[a-z-]+:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[A-Za-z0-9/_+=.@-]+$", var.metadata_secret_arn))
    error_message = "metadata_secret_arn must be the ARN of a secret (arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME-SUFFIX)."
  }
  validation {
    condition     = (var.metadata_secret_arn == null) != (var.metadata_url == null)
    error_message = "Give metadata_url or metadata_secret_arn, one of them."
  }
}

variable "flags" {
  description = "More flags of cirrolog agent, without their dashes, as { wal-linger = \"250ms\" }."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name, value in var.flags : can(regex("^[a-z][a-z0-9-]*$", name)) && can(regex("^[^\n\r]*$", value))])
    error_message = "flags must have names of flags without dashes before them, and values of one line."
  }
  validation {
    condition     = length(setintersection(keys(var.flags), keys(local.own_flags))) == 0
    error_message = "flags must not have what the module gives itself: addresses, bucket, metadata, data-dir, rack, config and log-format."
  }
}

# Where they stand

variable "vpc_id" {
  description = "The VPC."
  type        = string

  validation {
    condition     = startswith(var.vpc_id, "vpc-")
    error_message = "vpc_id must be the id of a VPC (vpc-…)."
  }
}

variable "subnets" {
  description = "Private subnets by zone, as modules/network has them. Agents are spread over them, and the zone is their rack."
  type        = map(string)

  validation {
    condition     = length(var.subnets) >= 1 && alltrue([for zone in keys(var.subnets) : can(regex("^[a-z]{2}(-[a-z]+)+-[0-9][a-z]$", zone))])
    error_message = "subnets must have a subnet by the name of its zone, as { eu-central-1a = \"subnet-…\" }."
  }
}

variable "security_group_ids" {
  description = "Security groups of the agents: of modules/network agents and kafka, and http and admin for what they offer."
  type        = list(string)

  validation {
    condition     = length(var.security_group_ids) >= 1
    error_message = "security_group_ids must name a security group."
  }
}

variable "load_balancer_security_group_ids" {
  description = "Security groups of the load balancer: of modules/network kafka, and http with http. Null: there is no load balancer, clients begin with addresses of agents."
  type        = list(string)
  default     = null

  validation {
    condition     = try(length(var.load_balancer_security_group_ids) >= 1, var.load_balancer_security_group_ids == null)
    error_message = "load_balancer_security_group_ids must name a security group, or be null: a load balancer that was made without can never get one."
  }
}

variable "http" {
  description = "Whether agents offer the HTTP gateway, on port 8082, to those whom their security groups let in."
  type        = bool
  default     = false
}

variable "admin" {
  description = "Whether the admin port, 9644, can be reached from other machines that the security groups let in, as by Prometheus. Nothing on it is authenticated."
  type        = bool
  default     = false
}

variable "deletion_protection" {
  description = "Whether the load balancer, whose name clients know, refuses to be deleted, by Terraform too."
  type        = bool
  default     = true
}

# Who they are

variable "role_name" {
  description = "Name of the agents' role, as modules/iam has it. It gets what an instance needs beside: to fetch the program, to end its own termination, to read the secret."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9+=,.@_-]{1,64}$", var.role_name))
    error_message = "role_name must be the name of a role, not its ARN."
  }
}

variable "role_arn" {
  description = "Fargate: ARN of the same role; ecs-tasks.amazonaws.com must be able to take it."
  type        = string
  default     = null

  validation {
    condition     = var.launch == "fargate" ? can(regex("^arn:[a-z-]+:iam::[0-9]{12}:role/.+$", var.role_arn)) : true
    error_message = "role_arn must be the ARN of the role when launch is fargate."
  }
}

variable "instance_profile" {
  description = "EC2: name of the role's instance profile, as modules/iam has it."
  type        = string
  default     = null

  validation {
    condition     = var.launch == "ec2" ? can(regex("^[A-Za-z0-9+=,.@_-]{1,128}$", var.instance_profile)) : true
    error_message = "instance_profile must be the name of an instance profile when launch is ec2."
  }
}

variable "permissions_boundary" {
  description = "Fargate: ARN of a policy that bounds the role that fetches the image. Null: none."
  type        = string
  default     = null

  validation {
    condition     = var.permissions_boundary == null || can(regex("^arn:[a-z-]+:iam::([0-9]{12}|aws):policy/.+$", var.permissions_boundary))
    error_message = "permissions_boundary must be the ARN of a policy."
  }
}

variable "tags" {
  description = "Tags of everything that is created, and of the instances."
  type        = map(string)
  default     = {}
}

# EC2

variable "instance_types" {
  description = "EC2: types of the instances, the preferred one first; Graviton with NVMe instance store. Alike in size, as partitions are spread evenly."
  type        = list(string)
  default     = ["m7gd.xlarge"]

  validation {
    condition     = length(var.instance_types) >= 1 && alltrue([for type in var.instance_types : can(regex("^([cmrx][0-9]+gd|i[0-9]+ge?|im4gn|is4gen)\\.(medium|large|[0-9]*xlarge|metal.*)$", type))])
    error_message = "instance_types must be of families of arm64 with instance store: c7gd, m7gd, r7gd, i4g, i8g, im4gn, is4gen and the like."
  }
}

variable "spot_percentage" {
  description = "EC2: how many of a hundred instances are spot ones. What they acknowledged is in the bucket when they are taken away."
  type        = number
  default     = 0

  validation {
    condition     = var.spot_percentage >= 0 && var.spot_percentage <= 100 && floor(var.spot_percentage) == var.spot_percentage
    error_message = "spot_percentage must be a whole number from 0 to 100."
  }
}

variable "image_id" {
  description = "EC2: the machine image, Amazon Linux 2023 for arm64 or one like it (systemd, cloud-init, AWS CLI). The default is AWS's newest at the start of an instance; give an id to choose when it changes, and to have failed refreshes rolled back."
  type        = string
  default     = "resolve:ssm:/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64"

  validation {
    condition     = can(regex("^(ami-[0-9a-f]+|resolve:ssm:/[A-Za-z0-9_./-]+)$", var.image_id))
    error_message = "image_id must be ami-… or resolve:ssm:/PARAMETER."
  }
}

variable "program_url" {
  description = "EC2: where the program for linux/arm64 is, s3://BUCKET/KEY or https://…: the program itself, the archive (.tar.gz) or the package (.rpm) of a release. Required."
  type        = string
  default     = null

  validation {
    condition     = var.launch == "ec2" ? can(regex("^(s3://[a-z0-9][a-z0-9.-]*[a-z0-9]/|https://)[A-Za-z0-9._/%+~=-]+$", var.program_url)) : true
    error_message = "program_url must be s3://BUCKET/KEY or https://HOST/PATH when launch is ec2."
  }
}

variable "program_sha256" {
  description = "EC2: SHA-256 of that file, as sha256sum prints it. Instances refuse another one. Required."
  type        = string
  default     = null

  validation {
    condition     = var.launch == "ec2" ? can(regex("^[0-9a-f]{64}$", var.program_sha256)) : true
    error_message = "program_sha256 must have 64 hexadecimal digits when launch is ec2."
  }
}

variable "root_volume_gib" {
  description = "EC2: size of the root volume, which has the system only."
  type        = number
  default     = 8

  validation {
    condition     = var.root_volume_gib >= 8 && var.root_volume_gib <= 1024 && floor(var.root_volume_gib) == var.root_volume_gib
    error_message = "root_volume_gib must be a whole number from 8 to 1024."
  }
}

variable "drain_seconds" {
  description = "EC2: how long an instance that is to go has to give its partitions away. One that can reach the Auto Scaling service goes when it has; others when the time is over."
  type        = number
  default     = 120

  validation {
    condition     = var.drain_seconds >= 90 && var.drain_seconds <= 7200 && floor(var.drain_seconds) == var.drain_seconds
    error_message = "drain_seconds must be a whole number from 90, what the unit allows an agent for its stop and some more, to 7200."
  }
}

# Fargate

variable "image" {
  description = "Fargate: the image with its tag or digest, for linux/arm64. Required."
  type        = string
  default     = null

  validation {
    condition     = var.launch == "fargate" ? can(regex("^[a-z0-9][a-z0-9.:/_-]*(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$", var.image)) : true
    error_message = "image must be REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST when launch is fargate."
  }
}

variable "cpu" {
  description = "Fargate: processor units of a task; 1024 are one."
  type        = number
  default     = 2048

  validation {
    condition     = contains([512, 1024, 2048, 4096, 8192, 16384], var.cpu)
    error_message = "cpu must be 512, 1024, 2048, 4096, 8192 or 16384."
  }
}

variable "memory" {
  description = "Fargate: memory of a task in MiB."
  type        = number
  default     = 8192

  validation {
    condition     = var.memory >= max(2048, 2 * var.cpu) && var.memory <= (var.cpu >= 4096 ? 7.5 : 8) * var.cpu && var.memory % (var.cpu == 16384 ? 8192 : var.cpu == 8192 ? 4096 : 1024) == 0
    error_message = "memory must be one that Fargate has for cpu: 2 to 8 MiB for each unit (7.5 from 4096 on), in steps of 1024 (of 4096 for 8192, of 8192 for 16384), and 2048 at least."
  }
}

variable "disk_gib" {
  description = "Fargate: disk of a task, which is gone with it."
  type        = number
  default     = 30

  validation {
    condition     = var.disk_gib >= 21 && var.disk_gib <= 200 && floor(var.disk_gib) == var.disk_gib
    error_message = "disk_gib must be a whole number from 21 to 200."
  }
}

variable "log_retention_days" {
  description = "Fargate: days that logs are kept."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], var.log_retention_days)
    error_message = "log_retention_days must be one that CloudWatch has: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545 or 731."
  }
}
