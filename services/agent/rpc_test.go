package agent

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/cirrolog/cirrolog/gateway/rpc"
	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// noSource tells nothing.
type noSource struct{}

// State implements rpc.Source.
func (noSource) State(context.Context) (rpc.State, error) { return rpc.State{}, nil }

// Put implements rpc.Source.
func (noSource) Put(context.Context) error { return nil }

// Partitions implements rpc.Source.
func (noSource) Partitions(context.Context, string) ([]rpc.Partition, error) {
	return make([]rpc.Partition, 1), nil
}

// The table of metrics has those of the agents' own protocol as they are exported.
func TestRPCMetrics(t *testing.T) {
	m := newMetrics(&Agent{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := metadata.Agent{Incarnation: ids.NewIncarnation(), RPC: l.Addr().String()}
	s, p := rpc.NewServer(rpc.Options{Incarnation: other.Incarnation, Source: noSource{}, Metrics: m.rpc}), rpc.NewPeers(rpc.PeerOptions{Metrics: m.rpc})
	defer s.Stop(t.Context())
	defer p.Close()
	go func() { _ = s.Serve(l) }() // ends with the test
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := p.State(ctx, other); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Partitions(ctx, other, ""); err != nil {
		t.Fatal(err)
	}
	families, err := m.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[dto.MetricType]MetricKind{dto.MetricType_COUNTER: Counter, dto.MetricType_GAUGE: Gauge, dto.MetricType_HISTOGRAM: Histogram}
	got := map[string]Metric{}
	for _, f := range families {
		if name, ok := strings.CutPrefix(f.GetName(), MetricPrefix+"grpc_"); ok {
			x := Metric{Name: "grpc_" + name, Kind: kinds[f.GetType()], Help: f.GetHelp()}
			for _, l := range f.Metric[0].Label {
				x.Labels = append(x.Labels, l.GetName())
			}
			slices.Sort(x.Labels)
			got[x.Name] = x
			if h := f.Metric[0].GetHistogram(); h != nil && h.Schema == nil {
				t.Errorf("%s is no native histogram", f.GetName())
			}
		}
	}
	for _, want := range ClusterMetrics() {
		if !strings.HasPrefix(want.Name, "grpc_") {
			continue
		}
		have, ok := got[want.Name]
		if !ok || have.Kind != want.Kind || have.Help != want.Help || !slices.Equal(have.Labels, slices.Sorted(slices.Values(want.Labels))) {
			t.Errorf("exported is %+v, the table has %+v", have, want)
		}
		delete(got, want.Name)
	}
	for name := range got {
		t.Errorf("%s is exported and not in the table", name)
	}
}

// Settings that can't work are refused before anything is opened.
func TestRPCConfig(t *testing.T) {
	for want, c := range map[string]Config{
		"--metadata is missing":            {RPC: RPCConfig{Addr: "127.0.0.1:1"}},
		"--rpc-addr \"x\": want HOST:PORT": {Metadata: "redis://h", RPC: RPCConfig{Addr: "x"}},
		"--rpc-advertised-addr \"y\"":      {Metadata: "redis://h", RPC: RPCConfig{Addr: "127.0.0.1:1", Advertised: "y"}},
		"go together":                      {Metadata: "redis://h", RPC: RPCConfig{Addr: "127.0.0.1:1", Cert: "c", Key: "k"}},
	} {
		full := Default()
		full.Metadata, full.RPC, full.Bucket = c.Metadata, c.RPC, "dir:///b"
		if err := full.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c.RPC, err, want)
		}
	}
	for want, c := range map[string]RPCConfig{
		"listens on all addresses": {Addr: "0.0.0.0:0"},
		"want HOST:PORT":           {Addr: "127.0.0.1:0", Advertised: ":1"},
		"--rpc-token-file":         {Addr: "127.0.0.1:0", TokenFile: "/dev/null"},
		"--rpc-tls-cert":           {Addr: "127.0.0.1:0", Cert: "/none", Key: "/none", CA: "/none"},
		"":                         {Addr: "0.0.0.0:0", Advertised: "agent7:9645"},
	} {
		l, err := net.Listen("tcp", c.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		a := &Agent{cfg: Config{RPC: c}, log: slog.New(slog.DiscardHandler), rpcListener: l}
		err = a.openRPC(t.Context())
		if err == nil {
			_, err = a.rpcAddr()
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}
