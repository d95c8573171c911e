package e2e

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/services/agent"
)

// scrape reads /metrics as Prometheus does.
func scrape(t *testing.T, n *Node) map[string]*dto.MetricFamily {
	t.Helper()
	resp, err := http.Get("http://" + n.Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p := expfmt.NewTextParser(model.UTF8Validation)
	f, err := p.TextToMetricFamilies(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// value sums the series of a metric that have all these labels, NAME=VALUE.
func value(f *dto.MetricFamily, labels ...string) (sum float64, found bool) {
next:
	for _, m := range f.GetMetric() {
		for _, want := range labels {
			if !slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetName()+"="+l.GetValue() == want }) {
				continue next
			}
		}
		found = true
		sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return sum, found
}

func cli(t *testing.T, n *Node, args ...string) {
	t.Helper()
	if err := n.CLI(io.Discard, args...); err != nil {
		t.Fatalf("cirrolog %s: %v", strings.Join(args, " "), err)
	}
}

// TestMetrics drives everything that a node measures, and compares what it
// exports with the table in docs/metrics.md: names, types and labels. The
// dashboards and alerts are tested against the same table.
func TestMetrics(t *testing.T) {
	n := NewNode(t, NodeOptions{Args: groupArgs("--retention-interval", "200ms")})
	cli(t, n, "topic", "create", "orders", "-p", "2", "-c", "local.retention.ms=1")
	numbers(t, n, "orders", 2, 0, 1000)
	n.API(http.MethodPost, "/v1/topics/orders/roll", nil)
	eventually(t, 30*time.Second, "records in the bucket only", func() bool {
		for _, p := range n.Storage("orders") {
			if p.TieredEnd == 0 || p.LocalStart < p.TieredEnd {
				return false
			}
		}
		return true
	})
	n.Stop() // memory has them too
	n.Start()
	cli(t, n, "replay", "orders", "--to-file", t.TempDir()+"/replayed")
	numbers(t, n, "orders", 2, 1000, 1100)
	n.API(http.MethodPost, "/v1/topics/orders/roll", nil)
	consumeSome(t, n)
	resp, err := http.Get("http://" + n.HTTP + "/api/v1/topics/none/messages")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()

	var got map[string]*dto.MetricFamily
	eventually(t, 30*time.Second, "the lag of the group", func() bool {
		got = scrape(t, n)
		v, ok := value(got["cirrolog_group_lag_messages"], "group=readers", "topic=orders")
		_, uploaded := value(got["cirrolog_tier_upload_seconds"], "topic=orders")
		return ok && v == 1100-5 && uploaded
	})
	compare(t, got)
	for _, x := range []struct {
		name   string
		labels []string
	}{
		{"cirrolog_fetch_tier_total", []string{"tier=remote"}}, {"cirrolog_tier_remote_bytes", []string{"topic=orders"}},
		{"cirrolog_kafka_request_seconds", []string{"api=Produce"}}, {"cirrolog_kafka_requests_total", []string{"api=Fetch", "error=NONE"}},
		{"cirrolog_group_lag_seconds", []string{"group=readers", "topic=orders"}}, {"cirrolog_objstore_cost_dollars_total", []string{"op=put"}},
		{"cirrolog_objstore_storage_dollars_per_month", nil}, {"cirrolog_check_ok", []string{"check=bucket"}}, {"cirrolog_http_requests_total", []string{"status=404"}},
	} {
		if v, ok := value(got[x.name], x.labels...); !ok || v <= 0 {
			t.Errorf("%s %q: %v", x.name, x.labels, v)
		}
	}
	cli(t, n, "topic", "rm", "orders", "--yes")
	eventually(t, 30*time.Second, "no series of a deleted topic", func() bool {
		for _, f := range scrape(t, n) {
			if _, ok := value(f, "topic=orders"); ok {
				return false
			}
		}
		return true
	})
}

// consumeSome reads as a group and commits 5 records.
func consumeSome(t *testing.T, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka), kgo.ClientID("secret-client"), kgo.ConsumerGroup("readers"), kgo.ConsumeTopics("orders"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	seen := map[int32]bool{}
	for len(seen) < 2 {
		f := cl.PollRecords(ctx, 100)
		if err := f.Err(); err != nil {
			t.Fatal(err)
		}
		f.EachRecord(func(r *kgo.Record) {
			// 5 of one partition, none of the other.
			if last := map[int32]int64{0: 4, 1: -1}[r.Partition]; !seen[r.Partition] && r.Offset >= last {
				c := *r
				c.Offset = last
				if err := cl.CommitRecords(ctx, &c); err != nil {
					t.Error(err)
				}
				seen[r.Partition] = true
			}
		})
	}
}

func compare(t *testing.T, got map[string]*dto.MetricFamily) {
	t.Helper()
	kinds := map[agent.MetricKind]dto.MetricType{agent.Counter: dto.MetricType_COUNTER, agent.Gauge: dto.MetricType_GAUGE, agent.Histogram: dto.MetricType_HISTOGRAM}
	table := map[string]bool{}
	for _, m := range agent.Metrics()[:len(agent.Metrics())-len(agent.ClusterMetrics())] { // the node is alone
		name := agent.MetricPrefix + m.Name
		table[name] = true
		f := got[name]
		if f == nil {
			t.Errorf("%s is not exported", name)
			continue
		}
		if f.GetType() != kinds[m.Kind] || f.GetHelp() != m.Help {
			t.Errorf("%s: %s %q, want %s %q", name, f.GetType(), f.GetHelp(), m.Kind, m.Help)
		}
		want := slices.Sorted(slices.Values(m.Labels))
		for _, s := range f.Metric {
			var have []string
			for _, l := range s.Label {
				have = append(have, l.GetName())
				if strings.Contains(l.GetValue(), "secret-client") {
					t.Errorf("%s has the id of a client", name)
				}
			}
			if slices.Sort(have); !slices.Equal(have, want) {
				t.Errorf("%s has labels %q, want %q", name, have, want)
			}
		}
	}
	for name := range got {
		if !table[name] && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") && !strings.HasPrefix(name, "promhttp_") {
			t.Errorf("%s is exported and not in the table", name)
		}
	}
}
