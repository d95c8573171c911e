package agent

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/tiering"
)

const (
	// maxPartitionSeries is the number of partitions above which there are no
	// series per partition by themselves.
	maxPartitionSeries = 1000
	// maxLagGroups and maxLagSeries bound the series of group lag.
	maxLagGroups, maxLagSeries = 1000, 10_000
	// measureShare is how many times longer the pause between two measurements
	// is than the longest of them.
	measureShare = 50
	// checkInterval is how often the checks of /readyz are made for the metrics.
	checkInterval = 30 * time.Second
)

// PerPartition says when there are series per partition.
type PerPartition string

// Values of PerPartition; auto means up to maxPartitionSeries partitions.
const (
	PerPartitionAuto PerPartition = "auto"
	PerPartitionOn   PerPartition = "on"
	PerPartitionOff  PerPartition = "off"
)

// state is what is measured in the background, because it takes a look at
// every partition.
type state struct {
	at      time.Time
	topics  []broker.TopicFigures
	lags    []broker.GroupLag
	leftOut int // groups
	groups  group.Stats
	// series are the metrics made of the above: a scrape of 10,000 topics only
	// has to write them.
	series []*dto.MetricFamily
}

// monitor measures the agent's state and makes its checks now and then.
type monitor struct {
	a      *Agent
	latest atomic.Pointer[state]
	checks atomic.Pointer[[]check]
	meter  *broker.LagMeter
	known  map[string]bool // topics of the last measurement
}

// startMonitor runs the monitor until the agent is closed.
func (a *Agent) startMonitor(context.Context) error {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	a.monitor.a, a.monitor.meter = a, a.broker.NewLagMeter(maxLagGroups, maxLagSeries)
	a.open.Store(true)
	go func() {
		defer close(done)
		a.monitor.run(ctx)
	}()
	a.onClose(func() error {
		cancel()
		<-done
		return nil
	})
	return nil
}

func (m *monitor) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	checked := time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		m.measure(ctx)
		took := time.Since(began)
		if time.Since(checked) >= checkInterval {
			m.a.runChecks(ctx)
			checked = time.Now()
		}
		timer.Reset(max(m.a.cfg.MeasureInterval, measureShare*took))
	}
}

func (m *monitor) measure(ctx context.Context) {
	each := m.a.cfg.PerPartition == PerPartitionOn || m.a.cfg.PerPartition == PerPartitionAuto && m.a.logs() <= maxPartitionSeries
	s := &state{topics: m.a.broker.Figures(each), groups: m.a.broker.Groups().Stats()}
	s.lags, s.leftOut = m.meter.Measure(ctx)
	s.at = time.Now()
	s.series = m.series(s)
	m.latest.Store(s)
	now := make(map[string]bool, len(s.topics))
	for _, t := range s.topics {
		now[t.Name] = true
	}
	for name := range m.known {
		if !now[name] {
			m.a.metrics.forget(name)
		}
	}
	m.known = now
}

// series makes the metrics of a measurement.
func (m *monitor) series(s *state) []*dto.MetricFamily {
	reg := prometheus.NewRegistry()
	reg.MustRegister(measured(func(ch chan<- prometheus.Metric) {
		o := out{m.a.metrics.descs, ch}
		m.a.topicSeries(o, s)
		m.a.groupSeries(o, s)
	}))
	f, err := reg.Gather()
	if err != nil {
		m.a.component("agent").Warn("some metrics can't be told", "err", err)
	}
	return f
}

// measured is an unchecked prometheus.Collector of a measurement.
type measured func(chan<- prometheus.Metric)

// Describe implements prometheus.Collector.
func (measured) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c measured) Collect(ch chan<- prometheus.Metric) { c(ch) }

// gather implements prometheus.Gatherer: what is counted, the state of now,
// and what the monitor has measured.
func (a *Agent) gather() ([]*dto.MetricFamily, error) {
	f, err := a.metrics.reg.Gather()
	if s := a.monitor.latest.Load(); s != nil {
		f = append(f, s.series...)
	}
	slices.SortFunc(f, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return f, err
}

// stateCollector tells the state of the agent that is at hand when it is asked.
type stateCollector struct {
	a     *Agent
	descs map[string]*prometheus.Desc
}

// Describe implements prometheus.Collector: the metrics are unchecked, because
// which partitions there are changes.
func (c *stateCollector) Describe(chan<- *prometheus.Desc) {}

// out sends metrics of the table by name.
type out struct {
	descs map[string]*prometheus.Desc
	ch    chan<- prometheus.Metric
}

func (o out) gauge(name string, v float64, labels ...string) {
	o.ch <- prometheus.MustNewConstMetric(o.descs[name], prometheus.GaugeValue, v, labels...)
}

func (o out) counter(name string, v float64, labels ...string) {
	o.ch <- prometheus.MustNewConstMetric(o.descs[name], prometheus.CounterValue, v, labels...)
}

func (o out) compaction(s tiering.CompactStats) {
	o.counter("compaction_passes_total", float64(s.Passes))
	o.counter("compaction_failures_total", float64(s.Failures))
	o.counter("compaction_read_bytes_total", float64(s.BytesRead))
	o.counter("compaction_written_bytes_total", float64(s.BytesWritten))
	o.counter("compaction_removed_bytes_total", float64(s.BytesRemoved))
	o.counter("compaction_removed_records_total", float64(s.RecordsRemoved))
	o.counter("compaction_replaced_segments_total", float64(s.SegmentsReplaced))
	o.counter("compaction_written_segments_total", float64(s.SegmentsWritten))
	last := 0.0
	if !s.LastEnd.IsZero() {
		last = float64(s.LastEnd.UnixMilli()) / 1000
	}
	o.gauge("compaction_last_pass_timestamp_seconds", last)
	o.gauge("compaction_last_pass_seconds", s.LastTook.Seconds())
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	if !c.a.open.Load() {
		return
	}
	o := out{c.descs, ch}
	c.disk(o)
	c.reads(o)
	c.cluster(o)
	if checks := c.a.monitor.checks.Load(); checks != nil {
		for _, x := range *checks {
			o.gauge("check_ok", truth(x.err == nil), x.name)
		}
	}
	if s := c.a.monitor.latest.Load(); s != nil {
		o.gauge("state_age_seconds", time.Since(s.at).Seconds())
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (c *stateCollector) disk(o out) {
	var st storage.Stats
	for _, s := range c.a.stores() {
		one := s.Stats()
		o.gauge("wal_used_bytes", float64(one.WALUsed), string(s.class))
		o.gauge("wal_size_bytes", float64(one.WALSize), string(s.class))
		o.gauge("wal_backlog_bytes", float64(one.WALBacklog), string(s.class))
		st.DiskUsed, st.Recycled, st.DiskBudget = st.DiskUsed+one.DiskUsed, st.Recycled+one.Recycled, st.DiskBudget+one.DiskBudget
		st.TailInUse, st.TailLimit = st.TailInUse+one.TailInUse, st.TailLimit+one.TailLimit
		st.OpenFiles, st.Logs = st.OpenFiles+one.OpenFiles, st.Logs+one.Logs
		st.Waits, st.WaitTime = st.Waits+one.Waits, st.WaitTime+one.WaitTime
	}
	o.gauge("disk_used_bytes", float64(st.DiskUsed))
	o.gauge("disk_recycled_bytes", float64(st.Recycled))
	o.gauge("disk_limit_bytes", float64(st.DiskBudget))
	o.gauge("storage_failed", truth(c.a.storageErr() != nil))
	o.gauge("tail_memory_bytes", float64(st.TailInUse))
	o.gauge("tail_memory_limit_bytes", float64(st.TailLimit))
	o.gauge("open_segment_files", float64(st.OpenFiles))
	o.gauge("partitions", float64(st.Logs))
	o.counter("produce_waits_total", float64(st.Waits))
	o.counter("produce_wait_seconds_total", st.WaitTime.Seconds())
	o.counter("tier_damaged_total", float64(c.a.broker.UploadCounters().Damaged))
	o.compaction(c.a.broker.CompactStats())
}

// cluster tells what only an agent of a cluster has.
func (c *stateCollector) cluster(o out) {
	if c.a.stream == nil {
		return
	}
	present, needed := c.a.stream.Objects()
	o.gauge("wal_objects", float64(present), "present")
	o.gauge("wal_objects", float64(needed), "needed")
	m := c.a.leading.Load()
	o.gauge("lease_live", truth(m != nil && m.Live()))
	o.gauge("agents", float64(len(c.a.meta.Agents())))
	if m != nil {
		o.counter("claims_total", float64(m.Stats().Claims))
	}
}

func (c *stateCollector) reads(o out) {
	memory, local, remote := c.a.broker.Reads()
	o.counter("fetch_tier_total", float64(memory), "cache")
	o.counter("fetch_tier_total", float64(local), "local")
	o.counter("fetch_tier_total", float64(remote), "remote")
	r := c.a.reader.Stats()
	o.gauge("tier_cache_bytes", float64(r.Memory), "memory")
	o.gauge("tier_cache_bytes", float64(r.CacheBytes), "disk")
	o.counter("tier_cache_reads_total", float64(r.BlockHits), "memory")
	o.counter("tier_cache_reads_total", float64(r.BlockJoins), "in_flight")
	o.counter("tier_cache_reads_total", float64(r.DiskHits), "disk")
	o.counter("tier_cache_reads_total", float64(max(r.BlockLoads-r.DiskHits, 0)), "miss")
}

func (a *Agent) topicSeries(o out, s *state) {
	remote, risk := int64(0), int64(0)
	for _, t := range s.topics {
		remote += t.BucketBytes
		risk += t.AtRiskBytes
		age := 0.0
		if !t.LagSince.IsZero() {
			age = max(time.Since(t.LagSince).Seconds(), 0)
		}
		o.gauge("topic_partitions", float64(t.Partitions), t.Name)
		o.gauge("tier_lag_bytes", float64(t.LagBytes), t.Name)
		o.gauge("tier_lag_seconds", age, t.Name)
		o.gauge("tier_local_bytes", float64(t.LocalBytes), t.Name)
		o.gauge("tier_remote_bytes", float64(t.BucketBytes), t.Name)
		for _, p := range t.Offsets {
			part := strconv.Itoa(int(p.Partition))
			o.gauge("partition_log_start_offset", float64(p.LogStart), t.Name, part)
			o.gauge("partition_high_watermark_offset", float64(p.HighWatermark), t.Name, part)
			o.gauge("partition_local_start_offset", float64(p.LocalStart), t.Name, part)
		}
	}
	o.gauge("topics", float64(len(s.topics)))
	o.gauge("wal_bytes_at_risk", float64(risk), string(metadata.DurabilityLocal))
	if a.clustered() {
		o.gauge("wal_bytes_at_risk", 0, string(metadata.DurabilityObject)) // what is acknowledged is in the bucket
	}
	o.gauge("objstore_storage_dollars_per_month", float64(remote)/(1<<30)*a.cfg.Prices.Storage)
}

func (a *Agent) groupSeries(o out, s *state) {
	for _, l := range s.lags {
		age := 0.0
		if !l.Since.IsZero() {
			age = max(time.Since(l.Since).Seconds(), 0)
		}
		o.gauge("group_lag_messages", float64(l.Messages), l.Group, l.Topic)
		o.gauge("group_lag_seconds", age, l.Group, l.Topic)
	}
	o.gauge("group_lag_groups_left_out", float64(s.leftOut))
	for _, st := range []group.State{group.Empty, group.PreparingRebalance, group.CompletingRebalance, group.Stable, group.Dead} {
		o.gauge("groups", float64(s.groups.Groups[st]), st.String())
	}
	o.gauge("group_members", float64(s.groups.Members))
}
