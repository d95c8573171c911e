package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"
)

func TestOwnAddresses(t *testing.T) {
	t.Parallel()
	ifs := func(cidrs ...string) func() ([]net.Addr, error) {
		return func() (out []net.Addr, err error) {
			for _, c := range cidrs {
				ip, n, err := net.ParseCIDR(c)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, &net.IPNet{IP: ip, Mask: n.Mask})
			}
			return out, nil
		}
	}
	// A task of Fargate: loopback, the interface to its metadata, its own.
	task := ifs("127.0.0.1/8", "::1/128", "169.254.172.2/22", "fe80::1/64", "10.64.16.7/20", "2001:db8::7/64")
	for _, c := range []struct {
		addr, want, err string
		interfaces      func() ([]net.Addr, error)
	}{
		{":9092", "10.64.16.7:9092", "", task},
		{"", "", "", task},
		{"agent-7:9092", "agent-7:9092", "", task},
		{"no port", "no port", "", task}, // refused later
		{":9092", "[2001:db8::7]:9092", "", ifs("127.0.0.1/8", "2001:db8::7/64")},
		{":9092", "", "several addresses: 10.0.0.1, 172.17.0.1: say which", ifs("10.0.0.1/24", "172.17.0.1/16")},
		{":9092", "", "no address", ifs("127.0.0.1/8")},
		{":9092", "", "list the network's interfaces: no", func() ([]net.Addr, error) { return nil, errors.New("no") }},
	} {
		cfg := Config{AdvertisedAddr: c.addr, RPC: RPCConfig{Advertised: c.addr}}
		err := cfg.ownAddresses(c.interfaces)
		if c.err == "" && (err != nil || cfg.AdvertisedAddr != c.want || cfg.RPC.Advertised != c.want) {
			t.Errorf("%q: %q, %q, %v", c.addr, cfg.AdvertisedAddr, cfg.RPC.Advertised, err)
		}
		if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), "advertised-addr")) {
			t.Errorf("%q: %v, want %q", c.addr, err, c.err)
		}
	}
}

// TestStartOwnAddress: an agent tells the address of this machine, or refuses to choose.
func TestStartOwnAddress(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.AdvertisedAddr = ":0"
	own, noOwn := ownAddress(net.InterfaceAddrs)
	a, err := Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if noOwn != nil {
		if err == nil || !strings.Contains(err.Error(), "--advertised-addr \":0\"") {
			t.Fatal(err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if self, err := a.self(); err != nil || self.Host != own {
		t.Errorf("%+v, %v, want host %s", self, err, own)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := a.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}
