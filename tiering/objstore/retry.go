package objstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Retry says how often and how fast a request is tried again. The context is
// the total deadline.
type Retry struct {
	Attempts int           // in total, the first one included; 0 means 6
	First    time.Duration // longest first pause; 0 means 50 ms
	Max      time.Duration // longest pause of all; 0 means 2 s
}

func (r Retry) withDefaults() Retry {
	if r.Attempts <= 0 {
		r.Attempts = 6
	}
	if r.First <= 0 {
		r.First = 50 * time.Millisecond
	}
	if r.Max <= 0 {
		r.Max = 2 * time.Second
	}
	return r
}

// Backoff returns the jittered pause before retry n (from 0): between half of
// and the full First · 2^n, at most Max.
func (r Retry) Backoff(n int) time.Duration {
	r = r.withDefaults()
	d := r.First
	for ; n > 0 && d < r.Max; n-- {
		d *= 2
	}
	d = min(d, r.Max)
	return d/2 + rand.N(d/2+1)
}

// Do repeats f while its error is Retriable, up to Attempts times, and returns
// its last error, joined with the context's when that ended first. f must be
// safe to repeat: a conditional put is not (see PutCreateOnly).
func (r Retry) Do(ctx context.Context, f func() error) error {
	r = r.withDefaults()
	var err error
	for attempt := range r.Attempts {
		if attempt > 0 {
			if serr := Sleep(ctx, r.Backoff(attempt-1)); serr != nil {
				return errors.Join(serr, err)
			}
		}
		if err = f(); !Retriable(err) {
			return err
		}
	}
	return err
}

// Backoff is that of the default Retry.
func Backoff(n int) time.Duration { return Retry{}.Backoff(n) }

// Sleep waits for d or until ctx ends, whose error it then returns.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
