package agent

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/cirrolog/cirrolog/gateway/rpc"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// metrics are the agent's Prometheus metrics, each agent with a registry of its own.
type metrics struct {
	reg          *prometheus.Registry
	descs        map[string]*prometheus.Desc // of what the stateCollector tells
	requests     *prometheus.CounterVec
	latency      *prometheus.HistogramVec
	byRequest    resolved[requestKey, prometheus.Counter]
	byAPI        resolved[string, prometheus.Observer]
	produced     *prometheus.CounterVec
	fetched      *prometheus.CounterVec
	connections  prometheus.Gauge
	httpRequests *prometheus.CounterVec
	httpSeconds  *prometheus.HistogramVec
	uploads      *prometheus.HistogramVec
	uploadBytes  *prometheus.CounterVec
	uploadErrors *prometheus.CounterVec
	objRequests  *prometheus.CounterVec
	objSeconds   *prometheus.HistogramVec
	objBytes     *prometheus.CounterVec
	objCost      *prometheus.CounterVec
	metaSeconds  *prometheus.HistogramVec
	walSeconds   *prometheus.HistogramVec
	walBytes     *prometheus.CounterVec
	rpc          *rpc.Metrics
	prices       Prices
}

const (
	// nativeFactor is the growth of native histogram buckets.
	nativeFactor = 1.1
	// nativeBuckets bounds their number for one series; beyond it the
	// resolution is halved.
	nativeBuckets = 160
	// maxVersion is above all versions of Kafka's APIs; a client may ask for any.
	maxVersion = 99
)

// Prices of the object store, in US dollars.
type Prices struct {
	Put     float64 // of 1,000 PUT, COPY, POST and LIST requests
	Get     float64 // of 1,000 GET and HEAD requests
	Storage float64 // of a GiB for a month
}

// request is what one request costs. Deletes are free.
func (p Prices) request(op string) float64 {
	switch op {
	case "put", "list":
		return p.Put / 1000
	case "get", "head":
		return p.Get / 1000
	}
	return 0
}

func newMetrics(a *Agent) *metrics {
	m := &metrics{reg: prometheus.NewRegistry(), descs: map[string]*prometheus.Desc{}, prices: a.cfg.Prices}
	known := map[string]Metric{}
	for _, x := range Metrics() {
		known[x.Name] = x
		m.descs[x.Name] = prometheus.NewDesc(MetricPrefix+x.Name, x.Help, x.Labels, nil)
	}
	counter := func(name string) *prometheus.CounterVec {
		x := known[name]
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: MetricPrefix + name, Help: x.Help}, x.Labels)
		m.reg.MustRegister(v)
		return v
	}
	histogram := func(name string) *prometheus.HistogramVec {
		x := known[name]
		opts := prometheus.HistogramOpts{Name: MetricPrefix + name, Help: x.Help}
		histogramShape(&opts)
		v := prometheus.NewHistogramVec(opts, x.Labels)
		m.reg.MustRegister(v)
		return v
	}
	m.requests, m.latency = counter("kafka_requests_total"), histogram("kafka_request_seconds")
	m.byRequest.make = func(k requestKey) prometheus.Counter { return m.requests.WithLabelValues(k.labels()...) }
	m.byAPI.make = func(api string) prometheus.Observer { return m.latency.WithLabelValues(api) }
	m.produced, m.fetched = counter("kafka_produce_bytes_total"), counter("kafka_fetch_bytes_total")
	m.httpRequests, m.httpSeconds = counter("http_requests_total"), histogram("http_request_seconds")
	m.uploads, m.uploadBytes, m.uploadErrors = histogram("tier_upload_seconds"), counter("tier_upload_bytes_total"), counter("tier_upload_failures_total")
	m.objRequests, m.objSeconds = counter("objstore_requests_total"), histogram("objstore_request_seconds")
	m.objBytes, m.objCost = counter("objstore_bytes_total"), counter("objstore_cost_dollars_total")
	m.metaSeconds = histogram("meta_op_seconds")
	m.walSeconds, m.walBytes = histogram("wal_put_seconds"), counter("wal_put_bytes_total")
	m.rpc = rpc.NewMetrics(strings.TrimSuffix(MetricPrefix, "_"), histogramShape)
	m.reg.MustRegister(m.rpc)
	m.connections = prometheus.NewGauge(prometheus.GaugeOpts{Name: MetricPrefix + "connections", Help: known["connections"].Help})
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: MetricPrefix + "build_info", Help: known["build_info"].Help}, known["build_info"].Labels)
	version, commit := Version()
	info.WithLabelValues(version, commit, runtime.Version()).Set(1)
	m.reg.MustRegister(m.connections, info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &stateCollector{a: a, descs: m.descs})
	return m
}

// histogramShape gives a histogram of times its buckets.
func histogramShape(o *prometheus.HistogramOpts) {
	o.Buckets = prometheus.ExponentialBuckets(0.0001, 4, 10)
	o.NativeHistogramBucketFactor, o.NativeHistogramMaxBucketNumber = nativeFactor, nativeBuckets
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

// resolved keeps the children of a vector that were used, so that the next use
// costs a look into a map. It is for few keys: a new one copies the map.
type resolved[K comparable, V any] struct {
	make func(K) V
	mu   sync.Mutex
	m    atomic.Pointer[map[K]V]
}

func (r *resolved[K, V]) get(k K) V {
	if m := r.m.Load(); m != nil {
		if v, ok := (*m)[k]; ok {
			return v
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	grown := map[K]V{}
	if m := r.m.Load(); m != nil {
		grown = maps.Clone(*m)
	}
	v, ok := grown[k]
	if !ok {
		v = r.make(k)
		grown[k] = v
		r.m.Store(&grown)
	}
	return v
}

// requestKey is what requests are counted by.
type requestKey struct {
	api           string
	version, code int16
}

func (k requestKey) labels() []string {
	version, name := strconv.Itoa(int(k.version)), "NONE"
	if k.version > maxVersion {
		version = "unknown"
	}
	if k.code != 0 {
		name = "UNKNOWN_SERVER_ERROR"
		if e, ok := errors.AsType[*kerr.Error](kerr.ErrorForCode(k.code)); ok {
			name = e.Message
		}
	}
	return []string{k.api, version, name}
}

// Request implements kafka.Observer.
func (m *metrics) Request(api string, version, code int16, took time.Duration) {
	if version < 0 || version > maxVersion {
		version = maxVersion + 1
	}
	m.byRequest.get(requestKey{api, version, code}).Inc()
	m.byAPI.get(api).Observe(took.Seconds())
}

// Produced implements kafka.Observer.
func (m *metrics) Produced(topic string, n int) { m.produced.WithLabelValues(topic).Add(float64(n)) }

// Fetched implements kafka.Observer.
func (m *metrics) Fetched(topic string, n int) { m.fetched.WithLabelValues(topic).Add(float64(n)) }

// Connections implements kafka.Observer.
func (m *metrics) Connections(open int) { m.connections.Set(float64(open)) }

func (m *metrics) httpRequest(route string, status int, took time.Duration) {
	m.httpRequests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	m.httpSeconds.WithLabelValues(route).Observe(took.Seconds())
}

func (m *metrics) uploaded(topic string, bytes int64, took time.Duration, err error) {
	if err != nil {
		m.uploadErrors.WithLabelValues(topic).Inc()
		return
	}
	m.uploadErrors.WithLabelValues(topic) // so that rates have a zero to begin with
	m.uploads.WithLabelValues(topic).Observe(took.Seconds())
	m.uploadBytes.WithLabelValues(topic).Add(float64(bytes))
}

// forget removes the series of a topic that was deleted.
func (m *metrics) forget(topic string) {
	for _, v := range []interface{ DeleteLabelValues(...string) bool }{m.produced, m.fetched, m.uploads, m.uploadBytes, m.uploadErrors} {
		v.DeleteLabelValues(topic)
	}
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
	case errors.Is(err, context.Canceled):
		outcome = "canceled"
	default:
		outcome = "error"
	}
	m.objRequests.WithLabelValues(op, outcome).Inc()
	m.objSeconds.WithLabelValues(op, outcome).Observe(took.Seconds())
	m.objBytes.WithLabelValues(op).Add(float64(n))
	m.objCost.WithLabelValues(op).Add(m.prices.request(op))
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

// Reopen implements kv.Reopener, as far as the store does.
func (s observedStore) Reopen(ctx context.Context, check func(kv.Store) error) error {
	if r, ok := s.Store.(kv.Reopener); ok {
		return r.Reopen(ctx, check)
	}
	return nil
}

func (s observedStore) observe(op string, began time.Time) { s.took(s.name, op, time.Since(began)) }
