package agent

import (
	"context"
	"expvar"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime/trace"
	"time"
)

// Bounds of what the flight recorder keeps.
const (
	flightAge   = 10 * time.Second
	flightBytes = 16 << 20
)

// startFlightRecorder keeps a trace of the last seconds, if that is wanted.
func (a *Agent) startFlightRecorder(context.Context) error {
	if !a.cfg.FlightRecorder {
		return nil
	}
	r := trace.NewFlightRecorder(trace.FlightRecorderConfig{MinAge: flightAge, MaxBytes: flightBytes})
	if err := r.Start(); err != nil {
		return fmt.Errorf("start flight recorder: %w", err)
	}
	a.flight = r
	a.onClose(func() error { r.Stop(); return nil })
	return nil
}

// debugHandler serves profiles, Go's variables and the flight recorder.
func (a *Agent) debugHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.Handle("/debug/vars", expvar.Handler())
	mux.HandleFunc("/debug/flight", func(w http.ResponseWriter, _ *http.Request) {
		if a.flight == nil {
			http.Error(w, "the flight recorder is off: start the node with --flight-recorder", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Disposition", `attachment; filename="flight.trace"`)
		if _, err := a.flight.WriteTo(w); err != nil {
			a.component("admin").Warn("write flight record", "err", err)
		}
	})
	return mux
}

// loopbackOnly keeps out clients of other machines: the admin port may have to
// be open to a Prometheus, which needs no profiles.
func loopbackOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			http.Error(w, "/debug is for clients on this machine", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}
