package kv

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// LeaseTable is an in-memory implementation of Leases for drivers whose store
// belongs to one process: a lease dies with that process, as it should.
type LeaseTable struct {
	now     func() time.Time
	mu      sync.Mutex
	leases  map[string]lease
	counter uint64
}

type lease struct {
	owner   string
	until   time.Time
	counter uint64
}

// NewLeaseTable returns an empty table that tells time by now (nil: time.Now,
// whose differences are monotonic).
func NewLeaseTable(now func() time.Time) *LeaseTable {
	if now == nil {
		now = time.Now
	}
	return &LeaseTable{now: now, leases: map[string]lease{}}
}

// Acquire implements Leases.
func (t *LeaseTable) Acquire(ctx context.Context, key, owner string, ttl time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := CheckKey(key); err != nil {
		return err
	}
	if owner == "" || ttl <= 0 {
		return fmt.Errorf("%w: lease of %q needs an owner and a positive ttl", ErrInvalid, key)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if l, ok := t.leases[key]; ok && l.owner != owner && now.Before(l.until) {
		return fmt.Errorf("acquire lease %q: %w: held by %s", key, ErrLeaseLost, l.owner)
	}
	t.counter++
	t.leases[key] = lease{owner: owner, until: now.Add(ttl), counter: t.counter}
	return nil
}

// Release implements Leases. Releasing a lease one does not have is ErrLeaseLost.
func (t *LeaseTable) Release(ctx context.Context, key, owner string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	l, ok := t.leases[key]
	if !ok || l.owner != owner || !t.now().Before(l.until) {
		return fmt.Errorf("release lease %q: %w", key, ErrLeaseLost)
	}
	delete(t.leases, key)
	return nil
}

// Holder implements Leases.
func (t *LeaseTable) Holder(ctx context.Context, key string) (string, uint64, error) {
	if err := ctx.Err(); err != nil {
		return "", 0, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	l, ok := t.leases[key]
	if !ok || !t.now().Before(l.until) {
		return "", l.counter, nil
	}
	return l.owner, l.counter, nil
}
