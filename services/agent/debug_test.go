package agent

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestDebugIsLocal keeps profiles from other machines.
func TestDebugIsLocal(t *testing.T) {
	a := &Agent{cfg: Default(), log: slog.New(slog.DiscardHandler)}
	a.metrics = newMetrics(a)
	h := a.adminHandler()
	for from, want := range map[string]int{"127.0.0.1:5": 200, "[::1]:5": 200, "10.0.0.7:5": 403, "[2001:db8::1]:5": 403, "": 403} {
		for _, path := range []string{"/debug/pprof/cmdline", "/debug/vars"} {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.RemoteAddr = from
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code != want {
				t.Errorf("GET %s from %q: %d, want %d", path, from, w.Code, want)
			}
		}
	}
}

// TestFlightRecorderAndNoPartitions starts with both flags the other way round.
func TestFlightRecorderAndNoPartitions(t *testing.T) {
	cfg := testConfig(t)
	cfg.FlightRecorder, cfg.PerPartition = true, PerPartitionOff
	a, err := Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := a.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	newTopic(t, a.broker, "orders", 2)
	base := "http://" + a.AdminAddr()
	if status, body := get(t, http.MethodGet, base+"/debug/flight"); status != 200 || !strings.HasPrefix(body, "go 1.") {
		t.Errorf("flight record: %d, %d bytes", status, len(body))
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, page := get(t, http.MethodGet, base+"/metrics")
		if strings.Contains(page, `cirrolog_topic_partitions{topic="orders"} 2`) {
			if strings.Contains(page, "cirrolog_partition_") {
				t.Error("there are series per partition")
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no series of the topic in 20 s")
		}
	}
}

// TestMetricsConfig refuses what is no setting.
func TestMetricsConfig(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"--metrics-per-partition": func(c *Config) { c.PerPartition = "yes" },
		"--price-put":             func(c *Config) { c.Prices.Put = -1 },
		"--price-storage":         func(c *Config) { c.Prices.Storage = 1e9 },
	} {
		cfg := testConfig(t)
		change(&cfg)
		if err := cfg.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error about %s", err, want)
		}
	}
}
