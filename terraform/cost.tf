# What the cluster costs a month, by the formulas of `cirrolog cost` (services/cost, docs/operations.md): a test compares
# the two. There, what is carried forward is found in rounds; here it is solved for: of the three things that bound how
# long the stream holds a batch, the one that makes it shortest counts.

locals {
  cost_mib     = 1048576
  cost_seconds = 730 * 3600 # of a month

  cost_wire  = var.load.in_mib * local.cost_mib / var.load.compression # bytes a second
  cost_zones = length(var.vpc == null ? var.zones : keys(var.vpc.subnets))

  # Of one agent.
  cost_in         = local.cost_wire / var.agents
  cost_partitions = max(floor(var.load.partitions / var.agents), 1)
  cost_each       = local.cost_in / local.cost_partitions
  cost_puts       = max(min(1000 / var.load.linger_ms, local.cost_in / (var.load.batch_kib * 1024)), local.cost_in / (4 * local.cost_mib))
  cost_objects    = min(max(floor(50000 / var.load.linger_ms), 512), 1024)
  cost_least      = min(local.cost_mib, 512 * local.cost_mib / local.cost_partitions) # of a segment
  cost_ratio      = local.cost_least / local.cost_each
  cost_share      = 0.63 * local.cost_in * local.cost_ratio
  cost_carried = max(
    0,
    local.cost_share / 600 - 0.63 * local.cost_in,
    (local.cost_share * local.cost_puts / local.cost_objects - 0.63 * local.cost_in) / (1 - local.cost_share / (4 * local.cost_mib * local.cost_objects)),
    (local.cost_share * local.cost_in / (512 * local.cost_mib) - 0.63 * local.cost_in) / (1 - local.cost_share / (512 * local.cost_mib)),
  )
  cost_window  = min(600, local.cost_objects / (local.cost_puts + local.cost_carried / (4 * local.cost_mib)), 512 * local.cost_mib / (local.cost_in + local.cost_carried))
  cost_segment = min(max(local.cost_each * local.cost_window, local.cost_least), var.load.segment_mib * local.cost_mib)

  # Of all: requests a second, and bytes.
  cost_kept   = local.cost_wire * (var.load.retention_days * 86400 + 3600)
  cost_stored = local.cost_kept + var.agents * (local.cost_in + local.cost_carried) * local.cost_window
  cost_wal    = var.agents * (local.cost_puts + local.cost_carried / (4 * local.cost_mib))
  cost_tier   = local.cost_wire / local.cost_segment
  cost_lists  = (1 + local.cost_kept / local.cost_segment / 1000) / (var.load.sweep_minutes * 60)
  cost_heads  = local.cost_tier + var.agents / 30
  cost_gets   = local.cost_wire * var.load.fan_out * var.load.cold / local.cost_segment * (ceil(local.cost_segment / (4 * local.cost_mib)) + 1)
  cost_cross  = local.cost_wire * (1 + var.load.fan_out * (1 - var.load.cold)) * (local.cost_zones - 1) / max(local.cost_zones, 1)

  cost_parts = {
    instances  = var.agents * var.prices.instance * 730
    puts       = local.cost_seconds * (local.cost_wal + local.cost_tier + local.cost_lists) * var.prices.put / 1000
    reads      = local.cost_seconds * (local.cost_gets + local.cost_heads) * var.prices.get / 1000
    storage    = local.cost_stored / (1024 * local.cost_mib) * var.prices.storage
    cross_zone = local.cost_seconds * local.cost_cross / (1024 * local.cost_mib) * var.prices.cross_zone
    metadata   = var.prices.metadata
  }
  cost = merge(local.cost_parts, { total = sum(values(local.cost_parts)) })
}
