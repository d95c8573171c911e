package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/cirrolog/cirrolog/services/agent"
	"github.com/cirrolog/cirrolog/services/cost"
)

// liveCount is what agents have counted, all together.
type liveCount struct {
	Nodes    []int32    `json:"nodes"`   // that were counted
	Missing  []int32    `json:"missing"` // that are registered and were not
	Seconds  float64    `json:"seconds"` // of the longest count
	Produced float64    `json:"produced_bytes_per_second"`
	Fetched  float64    `json:"fetched_bytes_per_second"`
	Rates    cost.Rates `json:"rates"`
	// Partitions that they lead.
	Partitions int `json:"partitions"`
}

// counters are those of one agent at one moment.
type counters struct {
	at, started                               time.Time
	produced, fetched                         float64
	wal, puts, lists, gets, heads, partitions float64
	stored                                    float64
}

// countLive counts for window at each address, or takes what was counted since the agents' start. With an error and a
// count, agents are missing in it.
func (a *app) countLive(ctx context.Context, addrs []string, window time.Duration) (*liveCount, error) {
	if len(addrs) == 0 {
		addrs = []string{a.admin}
	}
	nodes, missing, err := a.countable(ctx, addrs)
	if err != nil {
		return nil, err
	}
	out := &liveCount{Missing: missing}
	before := map[int32]counters{}
	if window > 0 {
		for node, addr := range nodes {
			if before[node], err = scrape(ctx, addr); err != nil {
				return nil, err
			}
		}
		select {
		case <-time.After(window):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	for node, addr := range nodes {
		now, err := scrape(ctx, addr)
		if err != nil {
			return nil, err
		}
		out.add(before[node], now)
		out.Nodes = append(out.Nodes, node)
	}
	slices.Sort(out.Nodes)
	if len(missing) > 0 {
		err = fmt.Errorf("%w: agents %v are registered and not counted: give the admin addresses of all with --metrics", errPartial, missing)
	}
	return out, err
}

// countable returns the addresses by node, each once, and who is registered beside them.
func (a *app) countable(ctx context.Context, addrs []string) (nodes map[int32]string, missing []int32, err error) {
	nodes = map[int32]string{}
	registered, cluster := map[int32]bool{}, ""
	for _, addr := range addrs {
		one := *a
		one.admin = strings.TrimSpace(addr)
		var s agent.ClusterState
		if err := one.getJSON(ctx, "/v1/cluster/state", nil, &s); err != nil {
			return nil, nil, err
		}
		if cluster != "" && s.Cluster != cluster {
			return nil, nil, fmt.Errorf("%s is an agent of cluster %s, the others are of %s", addr, s.Cluster, cluster)
		}
		cluster = s.Cluster
		nodes[s.Asked] = one.admin
		for _, o := range s.Agents {
			registered[o.Node] = true
		}
	}
	missing = []int32{}
	for node := range registered {
		if nodes[node] == "" {
			missing = append(missing, node)
		}
	}
	slices.Sort(missing)
	return nodes, missing, nil
}

// add adds an agent's rates. One that was started anew in between counts from its start.
func (c *liveCount) add(before, now counters) {
	if before.at.Before(now.started) {
		before = counters{at: now.started}
	}
	seconds := max(now.at.Sub(before.at).Seconds(), 1)
	c.Seconds = max(c.Seconds, seconds)
	c.Produced += (now.produced - before.produced) / seconds
	c.Fetched += (now.fetched - before.fetched) / seconds
	c.Rates.WALPuts += (now.wal - before.wal) / seconds
	c.Rates.SegmentPuts += math.Max(now.puts-before.puts-(now.wal-before.wal), 0) / seconds // a put under way is in one of the two
	c.Rates.Lists += (now.lists - before.lists) / seconds
	c.Rates.Gets += (now.gets - before.gets) / seconds
	c.Rates.Heads += (now.heads - before.heads) / seconds
	c.Rates.Stored += now.stored
	c.Partitions += int(now.partitions)
}

// scrape reads an agent's metrics.
func scrape(ctx context.Context, addr string) (counters, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	fail := func(err error) (counters, error) {
		return counters{}, fmt.Errorf("read the metrics of the agent at %s: %w", addr, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return fail(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fail(errors.New(resp.Status))
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(http.MaxBytesReader(nil, resp.Body, maxAdminAnswer))
	if err != nil {
		return fail(err)
	}
	sum := func(name string, with ...string) float64 { return sumOf(families[name], with...) }
	ours := func(name string, with ...string) float64 { return sum(agent.MetricPrefix+name, with...) }
	started := sum("process_start_time_seconds")
	if families[agent.MetricPrefix+"objstore_requests_total"] == nil || started == 0 {
		return fail(errors.New("it has no cirrolog_objstore_requests_total and process_start_time_seconds: is it an agent?"))
	}
	return counters{at: time.Now(), started: time.UnixMicro(int64(started * 1e6)),
		produced: ours("kafka_produce_bytes_total"), fetched: ours("kafka_fetch_bytes_total"), wal: ours("wal_put_seconds"),
		puts: ours("objstore_requests_total", "op", "put"), lists: ours("objstore_requests_total", "op", "list"),
		gets: ours("objstore_requests_total", "op", "get"), heads: ours("objstore_requests_total", "op", "head"),
		partitions: ours("partitions"), stored: ours("tier_remote_bytes") + ours("wal_used_bytes", "class", "object")}, nil
}

// sumOf adds up the values of a family with a label, or all; of a histogram its count.
func sumOf(f *dto.MetricFamily, with ...string) (v float64) {
	for _, m := range f.GetMetric() {
		if len(with) > 0 && !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == with[0] && l.GetValue() == with[1] }) {
			continue
		}
		v += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return v
}

// liveRow puts prices on what was counted; what is in the bucket stands for the retention.
func (c *costFlags) liveRow(n *liveCount) costRow {
	l := cost.Load{In: n.Produced, Compression: 1, Partitions: n.Partitions}
	if n.Produced > 0 {
		l.FanOut = n.Fetched / n.Produced
	}
	brokers := c.setup.Brokers
	if brokers == 0 {
		brokers = cost.Brokers(l, c.setup)
	}
	return costRow{Load: l, Cirrolog: cost.Bill(n.Produced, n.Fetched, len(n.Nodes)+len(n.Missing), n.Rates, c.setup.Zones, c.prices),
		Kafka: cost.Compare(n.Produced, n.Fetched, n.Rates.Stored, brokers, c.setup, c.prices)}
}
