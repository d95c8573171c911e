package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cirrolog/cirrolog/gateway/rpc"
	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// RPCConfig is how the agents of a cluster talk to each other.
type RPCConfig struct {
	Addr       string // HOST:PORT to listen on; "": off
	Advertised string // HOST:PORT that other agents are told; "": the listener's; without HOST: this machine's
	// PEM files for mutual TLS: all three, or none.
	Cert, Key, CA string
	// TokenFile, if not "", has a secret on one line that all agents share.
	TokenFile string
}

func (c *RPCConfig) validate(clustered bool, bad func(format string, args ...any)) {
	if !clustered && *c != (RPCConfig{}) {
		bad("--rpc-addr and its like are of the agents of a cluster: --metadata is missing")
		return
	}
	for flag, addr := range map[string]string{"--rpc-addr": c.Addr, "--rpc-advertised-addr": c.Advertised} {
		if _, _, err := net.SplitHostPort(addr); addr != "" && err != nil {
			bad("%s %q: want HOST:PORT", flag, addr)
		}
	}
	if n := len(c.Cert) + len(c.Key) + len(c.CA); n > 0 && (c.Cert == "" || c.Key == "" || c.CA == "") {
		bad("--rpc-tls-cert, --rpc-tls-key and --rpc-tls-ca go together: give all three, or none")
	}
}

// openRPC reads the files of the agents' own protocol.
func (a *Agent) openRPC(context.Context) (err error) {
	c := &a.cfg.RPC
	if c.Addr == "" {
		return nil
	}
	if c.TokenFile != "" {
		b, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return fmt.Errorf("--rpc-token-file: %w", err)
		}
		if a.rpcToken = strings.TrimSpace(string(b)); a.rpcToken == "" || strings.ContainsAny(a.rpcToken, "\r\n") {
			return fmt.Errorf("--rpc-token-file %s: want one line with a secret", c.TokenFile)
		}
	}
	if c.Cert != "" {
		if a.rpcTLS, err = rpc.LoadTLS(c.Cert, c.Key, c.CA, a.component("rpc")); err != nil {
			return fmt.Errorf("--rpc-tls-cert, --rpc-tls-key, --rpc-tls-ca: %w", err)
		}
	} else if ip := a.rpcListener.Addr().(*net.TCPAddr).IP; !ip.IsLoopback() {
		a.component("rpc").Warn("other agents are reached without TLS: whoever reaches --rpc-addr can read the state of the cluster; see --rpc-tls-cert", "addr", c.Addr, "token", a.rpcToken != "")
	}
	return nil
}

// rpcAddr is where other agents reach this one; "": nowhere.
func (a *Agent) rpcAddr() (string, error) {
	if a.rpcListener == nil {
		return "", nil
	}
	bound := a.rpcListener.Addr().(*net.TCPAddr)
	addr, flag := a.cfg.RPC.Advertised, "--rpc-advertised-addr"
	if addr == "" {
		if bound.IP.IsUnspecified() {
			return "", fmt.Errorf("--rpc-addr %s listens on all addresses: say with --rpc-advertised-addr which one other agents reach", a.cfg.RPC.Addr)
		}
		addr, flag = bound.String(), "--rpc-addr"
	}
	host, port, err := net.SplitHostPort(addr)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || host == "" {
		return "", fmt.Errorf("%s %q: want HOST:PORT", flag, addr)
	}
	if n == 0 {
		port = strconv.Itoa(bound.Port)
	}
	return net.JoinHostPort(host, port), nil
}

// openPeers returns what calls other agents; nil: nothing.
func (a *Agent) openPeers() lead.Peers {
	if a.rpcListener == nil {
		return nil
	}
	a.peers = rpc.NewPeers(rpc.PeerOptions{TLS: a.rpcTLS, Token: a.rpcToken, Metrics: a.metrics.rpc, Logger: a.component("rpc")})
	a.onClose(a.peers.Close)
	return a.peers
}

// rpcStop bounds the time that calls of other agents have to end.
const rpcStop = time.Second

// serveRPC answers other agents until the agent closes.
func (a *Agent) serveRPC(m *lead.Manager) {
	if a.rpcListener == nil {
		return
	}
	log := a.component("rpc")
	s := rpc.NewServer(rpc.Options{Incarnation: a.incarnation, Source: (*source)(a), Receiver: m, TLS: a.rpcTLS, Token: a.rpcToken, Metrics: a.metrics.rpc, Logger: log})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Serve(a.rpcListener); err != nil {
			log.Error("other agents are not answered any more", "err", err)
		}
	}()
	a.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), rpcStop)
		defer cancel()
		s.Stop(ctx)
		<-ended
		return nil
	})
}

// source tells other agents, and the admin API, of this one.
type source Agent

var _ rpc.Source = (*source)(nil)

// State implements rpc.Source.
func (s *source) State(ctx context.Context) (rpc.State, error) {
	a := (*Agent)(s)
	version, _ := Version()
	out := rpc.State{Node: a.meta.NodeID(), Incarnation: a.incarnation, Epoch: a.meta.NodeEpoch(), Version: version, Cluster: a.meta.ClusterID(),
		LeaseLive: true, Partitions: int32(a.broker.CountLed()), Agents: []rpc.Agent{}, Sealed: []ids.Incarnation{}, Releases: []rpc.Release{}}
	select {
	case <-a.draining:
		out.Draining = true
	default:
	}
	m := a.leading.Load()
	if m == nil {
		self, err := a.self()
		out.Agents = append(out.Agents, rpc.Agent{Node: out.Node, Incarnation: out.Incarnation, Epoch: out.Epoch, Host: self.Host, Port: self.Port, Rack: self.Rack,
			Lease: rpc.LeaseHeld, UnchangedMs: -1, Leads: out.Partitions})
		return out, err
	}
	out.LeaseLive = m.Live()
	out.Agents = a.seenAgents(ctx, m)
	out.Sealed = append(out.Sealed, a.meta.Sealed()...)
	for _, r := range a.meta.Released() {
		out.Releases = append(out.Releases, rpc.Release{Incarnation: r.Incarnation, Object: r.Seq})
	}
	st := a.stream.State()
	present, needed := a.stream.Objects()
	out.Stream = rpc.Stream{Next: a.stream.Next(), Present: int32(present), Needed: int32(needed), Backlog: int64(st.End - st.Durable), Used: int64(st.End - st.Trimmed), Capacity: st.Capacity}
	if st.Err != nil {
		out.Stream.Error = st.Err.Error()
	}
	return out, ctx.Err()
}

// seenAgents are the agents as this one sees them.
func (a *Agent) seenAgents(ctx context.Context, m *lead.Manager) []rpc.Agent {
	leads := map[ids.Incarnation]int32{}
	for _, t := range a.meta.Snapshot().Topics() {
		for p := range t.Partitions {
			leads[a.meta.Owner(t, p).Incarnation]++
		}
	}
	out := []rpc.Agent{}
	for _, o := range a.meta.Agents() {
		one := rpc.Agent{Node: o.Node, Incarnation: o.Incarnation, Epoch: o.Epoch, Host: o.Host, Port: o.Port, Rack: o.Rack, Reader: o.Reader, RPC: o.RPC,
			StartedMs: o.StartedMs, Lease: rpc.LeaseUnknown, UnchangedMs: -1, Leads: leads[o.Incarnation]}
		if _, held, err := a.meta.LeaseCounter(ctx, o.Incarnation); err == nil {
			if one.Lease = rpc.LeaseRunOut; held {
				one.Lease = rpc.LeaseHeld
			}
		}
		if d, ok := m.Unchanged(o.Incarnation); ok {
			one.UnchangedMs = d.Milliseconds()
		}
		out = append(out, one)
	}
	return out
}

// Partitions implements rpc.Source.
func (s *source) Partitions(_ context.Context, topic string) ([]rpc.Partition, error) {
	leds, err := s.broker.Led(topic)
	out := make([]rpc.Partition, len(leds))
	for i, l := range leds {
		out[i] = rpc.Partition{Topic: l.Topic, TopicID: l.TP.Topic, Partition: l.TP.Partition, Epoch: l.Epoch, LogStart: l.LogStart, HighWatermark: l.HighWatermark,
			TieredEnd: l.TieredEnd, LocalBytes: l.LocalBytes, BucketBytes: l.BucketBytes}
	}
	return out, err
}

var errNoRPC = errors.New("this agent calls no others: it has no --rpc-addr")
