package rpc

import (
	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are those of a Server and of Peers. It is a prometheus.Collector.
type Metrics struct {
	server *grpcprom.ServerMetrics
	client *grpcprom.ClientMetrics
}

var _ prometheus.Collector = (*Metrics)(nil)

// NewMetrics returns metrics whose names begin with the namespace; shape, if not nil, sets the buckets of histograms.
func NewMetrics(namespace string, shape func(*prometheus.HistogramOpts)) *Metrics {
	if shape == nil {
		shape = func(*prometheus.HistogramOpts) {}
	}
	return &Metrics{
		server: grpcprom.NewServerMetrics(grpcprom.WithServerCounterOptions(grpcprom.WithNamespace(namespace)),
			grpcprom.WithServerHandlingTimeHistogram(grpcprom.WithHistogramNamespace(namespace), shape)),
		client: grpcprom.NewClientMetrics(grpcprom.WithClientCounterOptions(grpcprom.WithNamespace(namespace)),
			grpcprom.WithClientHandlingTimeHistogram(grpcprom.WithHistogramNamespace(namespace), shape)),
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.server.Describe(ch)
	m.client.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.server.Collect(ch)
	m.client.Collect(ch)
}
