package agent

import (
	"fmt"
	"strings"
)

// Metric describes a metric that an agent exports.
type Metric struct {
	Name   string // without the prefix cirrolog_
	Kind   MetricKind
	Unit   string // of the value, "" for a number of things
	Labels []string
	Help   string
}

// MetricKind is a Prometheus type.
type MetricKind string

// Kinds of metrics. Histograms are native ones that have classic buckets too.
const (
	Counter   MetricKind = "counter"
	Gauge     MetricKind = "gauge"
	Histogram MetricKind = "histogram"
)

// MetricPrefix begins the names of all metrics.
const MetricPrefix = "cirrolog_"

func labels(l ...string) []string { return l }

// Metrics lists all metrics of an agent.
func Metrics() []Metric {
	all := trafficMetrics()
	all = append(all, tierMetrics()...)
	all = append(all, nodeMetrics()...)
	return append(all, ClusterMetrics()...)
}

// ClusterMetrics lists those that only an agent of a cluster exports.
func ClusterMetrics() []Metric {
	call := labels("grpc_type", "grpc_service", "grpc_method")
	coded := labels("grpc_type", "grpc_service", "grpc_method", "grpc_code")
	return []Metric{
		{"wal_objects", Gauge, "", labels("state"), "Objects of this agent's write-ahead stream in the bucket: present, and needed because not all in them is tiered."},
		{"wal_put_seconds", Histogram, "s", nil, "Time until an object of the write-ahead stream was in the bucket."},
		{"wal_put_bytes_total", Counter, "bytes", nil, "Bytes of objects put to the write-ahead stream."},
		{"lease_live", Gauge, "", nil, "1 while the other agents can't take this one for dead."},
		{"agents", Gauge, "", nil, "Agents that are registered."},
		{"claims_total", Counter, "", nil, "Partitions that this agent claimed: they were given to an agent whose stream had been sealed by one who did not know of it. A failure within a failure: rare."},
		{"grpc_server_started_total", Counter, "", call, "Total number of RPCs started on the server."},
		{"grpc_server_handled_total", Counter, "", coded, "Total number of RPCs completed on the server, regardless of success or failure."},
		{"grpc_server_msg_received_total", Counter, "", call, "Total number of RPC stream messages received on the server."},
		{"grpc_server_msg_sent_total", Counter, "", call, "Total number of gRPC stream messages sent by the server."},
		{"grpc_server_handling_seconds", Histogram, "s", call, "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server."},
		{"grpc_client_started_total", Counter, "", call, "Total number of RPCs started on the client."},
		{"grpc_client_handled_total", Counter, "", coded, "Total number of RPCs completed by the client, regardless of success or failure."},
		{"grpc_client_msg_received_total", Counter, "", call, "Total number of RPC stream messages received by the client."},
		{"grpc_client_msg_sent_total", Counter, "", call, "Total number of gRPC stream messages sent by the client."},
		{"grpc_client_handling_seconds", Histogram, "s", call, "Histogram of response latency (seconds) of the gRPC until it is finished by the application."},
	}
}

func trafficMetrics() []Metric {
	topic, group := labels("topic"), labels("group", "topic")
	return []Metric{
		{"kafka_requests_total", Counter, "", labels("api", "version", "error"), "Answered Kafka requests; error is the first one in the answer, NONE without."},
		{"kafka_request_seconds", Histogram, "s", labels("api"), "Time from reading a Kafka request to sending its answer, with its waits."},
		{"kafka_produce_bytes_total", Counter, "bytes", topic, "Bytes of batches received, as they were sent."},
		{"kafka_fetch_bytes_total", Counter, "bytes", topic, "Bytes of batches sent."},
		{"connections", Gauge, "", nil, "Open Kafka connections."},
		{"produce_waits_total", Counter, "", nil, "Appends that took 1 ms or longer to get memory, room in the write-ahead ring, or disk budget."},
		{"produce_wait_seconds_total", Counter, "s", nil, "Time that those appends took: backpressure on producers."},
		{"http_requests_total", Counter, "", labels("route", "status"), "Requests at the HTTP gateway; route other is what has none."},
		{"http_request_seconds", Histogram, "s", labels("route"), "Time of requests at the HTTP gateway, streams included."},
		{"fetch_tier_total", Counter, "", labels("tier"), "Reads of a partition by what served them: cache (memory), local (disk) or remote (the bucket, or its block cache)."},
		{"partition_log_start_offset", Gauge, "", labels("topic", "partition"), "Log start offset; see --metrics-per-partition."},
		{"partition_high_watermark_offset", Gauge, "", labels("topic", "partition"), "High watermark; see --metrics-per-partition."},
		{"partition_local_start_offset", Gauge, "", labels("topic", "partition"), "First offset on this disk; see --metrics-per-partition."},
		{"partitions", Gauge, "", nil, "Partitions led by this agent."},
		{"topics", Gauge, "", nil, "Topics."},
		{"topic_partitions", Gauge, "", topic, "Partitions of a topic."},
		{"groups", Gauge, "", labels("state"), "Consumer groups that are loaded."},
		{"group_members", Gauge, "", nil, "Members of the consumer groups that are loaded."},
		{"group_lag_messages", Gauge, "", group, "Offsets between what a group has committed and the high watermarks, over all partitions of the topic."},
		{"group_lag_seconds", Gauge, "s", group, "Age of the oldest record of the topic that the group has not consumed; 0 without lag."},
		{"group_lag_groups_left_out", Gauge, "", nil, "Groups whose lag is not exported because there are too many."},
	}
}

func tierMetrics() []Metric {
	topic := labels("topic")
	return []Metric{
		{"tier_upload_seconds", Histogram, "s", topic, "Time of segment uploads."},
		{"tier_upload_bytes_total", Counter, "bytes", topic, "Bytes of segments uploaded."},
		{"tier_upload_failures_total", Counter, "", topic, "Failed attempts to upload a segment; they are repeated."},
		{"tier_damaged_total", Counter, "", nil, "Attempts to upload a segment whose bytes on this disk are not those that were appended."},
		{"compaction_passes_total", Counter, "", nil, "Passes of the cleaner over a partition of a compacted topic."},
		{"compaction_failures_total", Counter, "", nil, "Passes of the cleaner that failed; they are repeated."},
		{"compaction_read_bytes_total", Counter, "bytes", nil, "Bytes of batches that the cleaner read."},
		{"compaction_written_bytes_total", Counter, "bytes", nil, "Bytes of batches that the cleaner wrote."},
		{"compaction_removed_bytes_total", Counter, "bytes", nil, "Bytes of batches replaced less those written for them."},
		{"compaction_removed_records_total", Counter, "", nil, "Records that the cleaner removed."},
		{"compaction_replaced_segments_total", Counter, "", nil, "Segments that rewritten ones have replaced."},
		{"compaction_written_segments_total", Counter, "", nil, "Segments that the cleaner wrote."},
		{"compaction_last_pass_timestamp_seconds", Gauge, "s", nil, "When the last pass of the cleaner ended, since 1970; 0 before the first."},
		{"compaction_last_pass_seconds", Gauge, "s", nil, "How long it took."},
		{"tier_lag_bytes", Gauge, "bytes", topic, "Bytes of closed segments not yet in the bucket."},
		{"tier_lag_seconds", Gauge, "s", topic, "Age of the oldest closed segment not yet in the bucket; 0 without."},
		{"tier_local_bytes", Gauge, "bytes", topic, "Bytes on this disk."},
		{"tier_remote_bytes", Gauge, "bytes", topic, "Bytes in the bucket."},
		{"tier_cache_bytes", Gauge, "bytes", labels("tier"), "Block cache of tiered segments, in memory and on disk."},
		{"tier_cache_reads_total", Counter, "", labels("result"), "Blocks of tiered segments by where they were found: memory, disk, in flight, or miss (the bucket)."},
		{"objstore_requests_total", Counter, "", labels("op", "outcome"), "Requests to the bucket. A put in parts is one, and retries by the driver are not counted."},
		{"objstore_request_seconds", Histogram, "s", labels("op", "outcome"), "Time of requests to the bucket until the answer was complete."},
		{"objstore_bytes_total", Counter, "bytes", labels("op"), "Payload of requests to the bucket; objects of list and keys of delete_many."},
		{"objstore_cost_dollars_total", Counter, "US$", labels("op"), "What the requests cost at the prices of --price-put and --price-get; an estimate."},
		{"objstore_storage_dollars_per_month", Gauge, "US$ a month", nil, "What the tiered bytes cost at the price of --price-storage; an estimate."},
		{"meta_op_seconds", Histogram, "s", labels("store", "op"), "Time of operations on the metadata store."},
	}
}

func nodeMetrics() []Metric {
	return []Metric{
		{"disk_used_bytes", Gauge, "bytes", nil, "Bytes of ring, segments and spill files."},
		{"disk_recycled_bytes", Gauge, "bytes", nil, "Bytes of files of removed segments that wait for a new segment; they go when their space is needed."},
		{"disk_limit_bytes", Gauge, "bytes", nil, "Disk budget, 0 for none."},
		{"wal_used_bytes", Gauge, "bytes", labels("class"), "Bytes of the write-ahead ring (class local), or stream (object), that are not trimmed."},
		{"wal_size_bytes", Gauge, "bytes", labels("class"), "Size of the write-ahead ring; of a stream in the bucket what may be untiered before producers wait."},
		{"wal_backlog_bytes", Gauge, "bytes", labels("class"), "Bytes appended to the write-ahead ring, or stream, and not yet durable."},
		{"wal_bytes_at_risk", Gauge, "bytes", labels("class"), "Acknowledged bytes that are lost with this disk: of class local what is not tiered, in whole segments; of class object always 0."},
		{"storage_failed", Gauge, "", nil, "1 after a write to the disk has failed: the node takes no more appends and stops."},
		{"tail_memory_bytes", Gauge, "bytes", nil, "Memory tail in use."},
		{"tail_memory_limit_bytes", Gauge, "bytes", nil, "Bound of the memory tail."},
		{"open_segment_files", Gauge, "", nil, "Segment files kept open."},
		{"check_ok", Gauge, "", labels("check"), "1 if a check of /readyz was passed when it was last made, at most 30 s ago."},
		{"state_age_seconds", Gauge, "s", nil, "Age of the metrics of topics, partitions and groups, which are measured in the background."},
		{"build_info", Gauge, "", labels("version", "commit", "go"), "Always 1; the labels tell the build."},
	}
}

// MetricsDocs is docs/metrics.md.
func MetricsDocs() string {
	var b strings.Builder
	b.WriteString(metricsIntro)
	for _, part := range []struct {
		title string
		list  []Metric
	}{{"Traffic", trafficMetrics()}, {"Tiers and bucket", tierMetrics()}, {"Node", nodeMetrics()}, {"Agents of a cluster", ClusterMetrics()}} {
		fmt.Fprintf(&b, "\n## %s\n\n| metric | type | labels | unit | meaning |\n|---|---|---|---|---|\n", part.title)
		for _, m := range part.list {
			names := make([]string, len(m.Labels))
			for i, l := range m.Labels {
				names[i] = "`" + l + "`"
			}
			fmt.Fprintf(&b, "| `%s%s` | %s | %s | %s | %s |\n", MetricPrefix, m.Name, m.Kind, strings.Join(names, ", "), m.Unit, m.Help)
		}
	}
	return b.String()
}

const metricsIntro = `# Metrics

Written by ` + "`go test ./services/agent -run TestMetricsDocs -update`" + `; do not edit.

` + "`GET /metrics`" + ` on the admin port, for Prometheus. Beside these there are the ` + "`go_*` and `process_*`" + ` metrics of its
Go client. Histograms are native ones (growth 1.1) with classic buckets beside them, for servers that don't scrape
native ones.

No label is a client id, a key or an offset. Series per partition are there with ` + "`--metrics-per-partition on`" + `, or, as by
default, ` + "`auto`" + `, while the node has at most 1000 partitions. Group lag is told of at most 1000 groups and 10,000 pairs of
group and topic (` + "`cirrolog_group_lag_groups_left_out`" + ` counts the others), and of groups that are loaded: after a start, when
one of their members, or a list of the groups, has asked for them.

A scrape does not look at partitions: what needs that is measured every 5 s in the background, less often if it takes
long (` + "`cirrolog_state_age_seconds`" + `). The lag in seconds is now minus the first timestamp of the batch that holds the first
record not consumed; for one that is only in the bucket, minus the least timestamp of its segment. Nothing is read
from the bucket for it.

Dashboards for Grafana are in [infra/grafana](../infra/grafana), alerts in
[infra/prometheus/rules.yaml](../infra/prometheus/rules.yaml), and what to do about each in [operations.md](operations.md).
`
