package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// metrics are the agent's Prometheus metrics, each agent with a registry of its own.
type metrics struct {
	reg          *prometheus.Registry
	requests     *prometheus.CounterVec
	latency      *prometheus.HistogramVec
	produced     *prometheus.CounterVec
	fetched      *prometheus.CounterVec
	connections  prometheus.Gauge
	uploads      *prometheus.HistogramVec
	uploadBytes  *prometheus.CounterVec
	uploadErrors *prometheus.CounterVec
	objRequests  *prometheus.CounterVec
	objSeconds   *prometheus.HistogramVec
	objBytes     *prometheus.CounterVec
	metaSeconds  *prometheus.HistogramVec
}

// nativeFactor is the growth of native histogram buckets.
const nativeFactor = 1.1

func newMetrics(a *Agent) *metrics {
	m := &metrics{reg: prometheus.NewRegistry()}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "cirrolog_" + name, Help: help}, labels)
		m.reg.MustRegister(v)
		return v
	}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "cirrolog_" + name, Help: help,
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10), NativeHistogramBucketFactor: nativeFactor}, labels)
		m.reg.MustRegister(v)
		return v
	}
	m.requests = counter("kafka_requests_total", "Answered Kafka requests.", "api", "version", "error")
	m.latency = histogram("kafka_request_seconds", "Time from reading a request to sending its answer.", "api")
	m.produced = counter("kafka_produce_bytes_total", "Bytes of batches received.", "topic")
	m.fetched = counter("kafka_fetch_bytes_total", "Bytes of batches sent.", "topic")
	m.connections = prometheus.NewGauge(prometheus.GaugeOpts{Name: "cirrolog_connections", Help: "Open Kafka connections."})
	m.uploads = histogram("tier_upload_seconds", "Time of segment uploads.", "topic")
	m.uploadBytes = counter("tier_upload_bytes_total", "Bytes of segments uploaded.", "topic")
	m.uploadErrors = counter("tier_upload_failures_total", "Failed attempts to upload a segment.", "topic")
	m.objRequests = counter("objstore_requests_total", "Requests to the bucket.", "op", "outcome")
	m.objSeconds = histogram("objstore_request_seconds", "Time of requests to the bucket.", "op", "outcome")
	m.metaSeconds = histogram("meta_op_seconds", "Time of operations on the metadata store.", "store", "op")
	m.objBytes = counter("objstore_bytes_total", "Payload bytes of requests to the bucket.", "op")
	m.reg.MustRegister(m.connections, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &stateCollector{a: a})
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "cirrolog_build_info", Help: "Always 1; the labels tell the build."}, []string{"version", "commit", "go"})
	version, commit := Version()
	info.WithLabelValues(version, commit, runtime.Version()).Set(1)
	m.reg.MustRegister(info)
	return m
}

// Version returns the version and the commit the program was built from.
func Version() (version, commit string) {
	version, commit = "devel", "unknown"
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return version, commit
	}
	if bi.Main.Version != "" && bi.Main.Version != "(devel)" {
		version = bi.Main.Version
	}
	for _, s := range bi.Settings {
		if s.Key == "vcs.revision" {
			commit = s.Value
		}
	}
	return version, commit
}

// Request implements kafka.Observer.
func (m *metrics) Request(api string, version, code int16, took time.Duration) {
	name := "NONE"
	if code != 0 {
		if e, ok := errors.AsType[*kerr.Error](kerr.ErrorForCode(code)); ok {
			name = e.Message
		}
	}
	m.requests.WithLabelValues(api, fmt.Sprint(version), name).Inc()
	m.latency.WithLabelValues(api).Observe(took.Seconds())
}

// Produced implements kafka.Observer.
func (m *metrics) Produced(topic string, n int) { m.produced.WithLabelValues(topic).Add(float64(n)) }

// Fetched implements kafka.Observer.
func (m *metrics) Fetched(topic string, n int) { m.fetched.WithLabelValues(topic).Add(float64(n)) }

// Connections implements kafka.Observer.
func (m *metrics) Connections(open int) { m.connections.Set(float64(open)) }

func (m *metrics) uploaded(topic string, bytes int64, took time.Duration, err error) {
	if err != nil {
		m.uploadErrors.WithLabelValues(topic).Inc()
		return
	}
	m.uploadErrors.WithLabelValues(topic) // so that rates have a zero to begin with
	m.uploads.WithLabelValues(topic).Observe(took.Seconds())
	m.uploadBytes.WithLabelValues(topic).Add(float64(bytes))
}

func (m *metrics) bucketRequest(op string, took time.Duration, n int64, err error) {
	outcome := "ok"
	switch {
	case err == nil:
	case errors.Is(err, objstore.ErrNotFound):
		outcome = "not_found"
	case errors.Is(err, objstore.ErrPrecondition):
		outcome = "precondition"
	case errors.Is(err, objstore.ErrThrottled):
		outcome = "throttled"
	case errors.Is(err, objstore.ErrUnknown):
		outcome = "unknown"
	default:
		outcome = "error"
	}
	m.objRequests.WithLabelValues(op, outcome).Inc()
	m.objSeconds.WithLabelValues(op, outcome).Observe(took.Seconds())
	m.objBytes.WithLabelValues(op).Add(float64(n))
}

func (m *metrics) metaOp(store, op string, took time.Duration) {
	m.metaSeconds.WithLabelValues(store, op).Observe(took.Seconds())
}

// observedStore tells how long the operations of a key-value store take.
type observedStore struct {
	kv.Store
	name string
	took func(store, op string, took time.Duration)
}

// Get implements kv.Store.
func (s observedStore) Get(ctx context.Context, key string) (kv.Item, error) {
	defer s.observe("get", time.Now())
	return s.Store.Get(ctx, key)
}

// Range implements kv.Store.
func (s observedStore) Range(ctx context.Context, prefix, from string, limit int, reverse bool) ([]kv.Item, error) {
	defer s.observe("range", time.Now())
	return s.Store.Range(ctx, prefix, from, limit, reverse)
}

// Commit implements kv.Store.
func (s observedStore) Commit(ctx context.Context, ops []kv.Op, pre []kv.Precondition) ([]kv.Revision, error) {
	defer s.observe("commit", time.Now())
	return s.Store.Commit(ctx, ops, pre)
}

func (s observedStore) observe(op string, began time.Time) { s.took(s.name, op, time.Since(began)) }

// stateCollector reads the agent's state when it is asked.
type stateCollector struct{ a *Agent }

// Describe implements prometheus.Collector: the metrics are unchecked, because
// which partitions there are changes.
func (c *stateCollector) Describe(chan<- *prometheus.Desc) {}

// maxPartitionSeries is the number of partitions above which there are no
// series per partition.
const maxPartitionSeries = 1000

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	if c.a.broker == nil || c.a.store == nil {
		return
	}
	gauge := func(name, help string, v float64, labels ...string) {
		var keys, vals []string
		for i := 0; i+1 < len(labels); i += 2 {
			keys, vals = append(keys, labels[i]), append(vals, labels[i+1])
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("cirrolog_"+name, help, keys, nil), prometheus.GaugeValue, v, vals...)
	}
	st := c.a.store.Stats()
	gauge("disk_used_bytes", "Bytes of ring, segments and spill files.", float64(st.DiskUsed))
	gauge("disk_limit_bytes", "Disk budget, 0 for none.", float64(st.DiskBudget))
	gauge("wal_used_bytes", "Bytes of the ring that are not trimmed.", float64(st.WALUsed))
	gauge("wal_size_bytes", "Size of the ring.", float64(st.WALSize))
	gauge("tail_memory_bytes", "Memory tail in use.", float64(st.TailInUse))
	gauge("tail_memory_limit_bytes", "Bound of the memory tail.", float64(st.TailLimit))
	gauge("open_segment_files", "Segment files kept open.", float64(st.OpenFiles))
	gauge("partitions", "Partitions led by this agent.", float64(st.Logs))
	up := c.a.broker.UploadStats()
	gauge("tier_lag_bytes", "Bytes of closed segments not yet in the bucket.", float64(up.LagBytes))
	gauge("tier_lag_seconds", "Age of the oldest closed segment not yet in the bucket.", up.LagAge.Seconds())
	memory, local, remote := c.a.broker.Reads()
	for tier, n := range map[string]int64{"cache": memory, "local": local, "remote": remote} {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("cirrolog_fetch_tier_total", "Partition reads by the tier that served them.", []string{"tier"}, nil),
			prometheus.CounterValue, float64(n), tier)
	}
	c.topics(gauge, st.Logs <= maxPartitionSeries)
}

func (c *stateCollector) topics(gauge func(name, help string, v float64, labels ...string), each bool) {
	for _, t := range c.a.broker.Topics() {
		_, parts, err := c.a.broker.TopicStorage(t.Name)
		if err != nil {
			continue // deleted meanwhile
		}
		var local, bucket int64
		for _, p := range parts {
			local += p.LocalBytes
			bucket += p.BucketBytes
			if each {
				part := fmt.Sprint(p.Partition)
				gauge("partition_log_start_offset", "Log start offset.", float64(p.LogStart), "topic", t.Name, "partition", part)
				gauge("partition_high_watermark_offset", "High watermark.", float64(p.HighWatermark), "topic", t.Name, "partition", part)
				gauge("partition_local_start_offset", "First offset on this disk.", float64(p.LocalStart), "topic", t.Name, "partition", part)
			}
		}
		gauge("tier_local_bytes", "Bytes on this disk.", float64(local), "topic", t.Name)
		gauge("tier_remote_bytes", "Bytes in the bucket.", float64(bucket), "topic", t.Name)
	}
}
