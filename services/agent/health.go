package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// readyTimeout bounds the checks of /readyz.
const readyTimeout = 5 * time.Second

// check is one check of /readyz.
type check struct {
	name string
	err  error
}

// runChecks makes all checks, and remembers them for the metrics.
func (a *Agent) runChecks(ctx context.Context) []check {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	draining := error(nil)
	select {
	case <-a.draining:
		draining = errors.New("shutting down")
	default:
	}
	_, err := a.bucket.Head(ctx, "meta/cluster")
	if errors.Is(err, objstore.ErrNotFound) {
		err = errors.New("the bucket has lost meta/cluster")
	}
	checks := []check{{"draining", draining}, {"storage", a.storageErr()}, {"bucket", err}, {"metadata", a.meta.CheckOwner(ctx)}, {"disk", a.diskCheck()}}
	a.monitor.checks.Store(&checks)
	return checks
}

// ready answers /readyz: 503 if a check fails, with a line for each of them.
func (a *Agent) ready(w http.ResponseWriter, r *http.Request) {
	checks := a.runChecks(context.WithoutCancel(r.Context())) // a prober that has gone is no failure
	status := http.StatusOK
	for _, c := range checks {
		if c.err != nil {
			status = http.StatusServiceUnavailable
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	for _, c := range checks {
		switch {
		case c.err != nil:
			fmt.Fprintf(w, "[-] %s: %v\n", c.name, c.err)
		case r.URL.Query().Has("verbose"):
			fmt.Fprintf(w, "[+] %s ok\n", c.name)
		}
	}
	if status == http.StatusOK {
		fmt.Fprintln(w, "ready")
	}
}

func (a *Agent) diskCheck() error {
	for _, s := range a.stores() {
		if s.DiskFull() {
			return fmt.Errorf("disk budget used up, producers of topics of class %s wait: %d of %d bytes", s.class, s.DiskUsed(), s.DiskBudget())
		}
		if err := s.NoSpace(); err != nil {
			return fmt.Errorf("the disk is full, free some space, it goes on by itself: %w", err)
		}
	}
	return nil
}
