package tiering

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// backoff computes waits that double from base to max. Each wait is drawn
// between half and all of its step, so that many waiters do not return at once.
type backoff struct {
	base, max time.Duration
}

// wait returns the wait before attempt n; n starts at 1.
func (b backoff) wait(n int) time.Duration {
	d := b.max
	if n < 32 {
		if s := b.base << (n - 1); s > 0 && s < b.max {
			d = s
		}
	}
	return d/2 + rand.N(d/2+1)
}

// gate is the brake that all requests to one bucket share: after the store has
// asked for less, nobody sends before the gate opens again, and fewer send at
// once. It recovers step by step. Its methods may be called concurrently.
type gate struct {
	backoff backoff
	now     func() time.Time
	most    int // requests at once when nothing is wrong

	mu      sync.Mutex
	limit   int
	strikes int
	until   time.Time
}

func newGate(most int, b backoff, now func() time.Time) *gate {
	return &gate{backoff: b, now: now, most: most, limit: most}
}

// throttled notes one answer of a busy store.
func (g *gate) throttled() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if now.Before(g.until) {
		return // of the same burst: requests that were in flight
	}
	g.strikes++
	g.limit = max(1, g.limit/2)
	g.until = now.Add(g.backoff.wait(g.strikes))
}

// ok notes one success.
func (g *gate) ok() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.strikes = 0
	g.limit = min(g.most, g.limit+1)
}

// state returns how long to hold back and how many requests may be in flight.
func (g *gate) state() (wait time.Duration, limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(0, g.until.Sub(g.now())), g.limit
}

// sleep waits for d or for the end of ctx, whose error it returns.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
