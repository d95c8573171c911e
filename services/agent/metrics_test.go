package agent

import (
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/services/broker"
)

// TestMetricsDocs makes sure that docs/metrics.md tells what the agent exports.
func TestMetricsDocs(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "metrics.md")
	want := MetricsDocs()
	if golden.Update() {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/metrics.md is not current: run go test ./services/agent -run TestMetricsDocs -update")
	}
}

// TestRequestMetricsDoNotAllocate holds the price of counting a request down.
func TestRequestMetricsDoNotAllocate(t *testing.T) {
	m := newMetrics(&Agent{})
	for i := range 1000 { // the native buckets there will be
		m.Request("Produce", 9, 0, time.Duration(i)*10*time.Microsecond)
	}
	i := 0
	n := testing.AllocsPerRun(1000, func() {
		m.Request("Produce", 9, 0, time.Duration(i%1000)*10*time.Microsecond)
		m.Produced("orders", 100)
		m.Fetched("orders", 100)
		i++
	})
	if n != 0 {
		t.Errorf("%v allocations for a request", n)
	}
}

// TestRequestLabels sees that what clients make up does not become a series each.
func TestRequestLabels(t *testing.T) {
	m := newMetrics(&Agent{})
	for v := range 30_000 {
		m.Request("ApiVersions", int16(v), 35, 0)
		m.Request("ApiVersions", int16(-v-1), 35, 0)
	}
	families, err := m.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "cirrolog_kafka_requests_total" && len(f.Metric) != maxVersion+2 {
			t.Errorf("%d series", len(f.Metric))
		}
	}
}

func BenchmarkRequestMetrics(b *testing.B) {
	m := newMetrics(&Agent{})
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		m.Request("Produce", 9, 0, time.Duration(i%1000)*10*time.Microsecond)
		i++
	}
}

func BenchmarkRequestMetricsParallel(b *testing.B) {
	m := newMetrics(&Agent{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		i := 0
		for pb.Next() {
			m.Request("Produce", 9, 0, time.Duration(i%1000)*10*time.Microsecond)
			i++
		}
	})
}

// TestNativeHistograms sees that scrapers of native histograms get them, and
// others the classic buckets.
func TestNativeHistograms(t *testing.T) {
	m := newMetrics(&Agent{})
	m.Request("Produce", 9, 0, time.Millisecond)
	m.httpRequest("other", 404, time.Millisecond)
	families, err := m.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range families {
		if h := f.Metric[0].GetHistogram(); h != nil && f.GetName() != "go_gc_pauses_seconds" {
			seen++
			if h.Schema == nil || len(h.PositiveSpan) == 0 || len(h.Bucket) == 0 {
				t.Errorf("%s: schema %v, %d spans, %d buckets", f.GetName(), h.Schema, len(h.PositiveSpan), len(h.Bucket))
			}
		}
	}
	if seen != 2 {
		t.Errorf("%d histograms, want 2", seen)
	}
}

// BenchmarkScrape is a scrape of a node with 10,000 topics, of which 1,000 are
// written to, and 1,000 groups.
func BenchmarkScrape(b *testing.B) {
	a := &Agent{cfg: Default(), log: slog.New(slog.DiscardHandler)}
	a.metrics = newMetrics(a)
	a.monitor.a = a
	s := &state{}
	for i := range 10_000 {
		s.topics = append(s.topics, broker.TopicFigures{Name: fmt.Sprint("topic", i), Partitions: 10})
	}
	for i := range 1000 {
		s.lags = append(s.lags, broker.GroupLag{Group: fmt.Sprint("group", i), Topic: "topic1"})
		a.metrics.Produced(fmt.Sprint("topic", i), 1)
		a.metrics.Fetched(fmt.Sprint("topic", i), 1)
		a.metrics.uploaded(fmt.Sprint("topic", i), 1, time.Second, nil)
	}
	s.series = a.monitor.series(s)
	a.monitor.latest.Store(s)
	h := a.adminHandler()
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		if w.Code != 200 {
			b.Fatal(w.Code)
		}
		b.ReportMetric(float64(w.Body.Len()), "bytes")
	}
}
