package lead

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// stallingStore answers nothing about leases while it is told so, and then everything that was asked meanwhile.
type stallingStore struct {
	kv.Store
	mu      sync.Mutex
	stalled chan struct{} // closed when it goes on; nil: it does not stall
}

func (s *stallingStore) stall() (goOn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled = make(chan struct{})
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(s.stalled)
		s.stalled = nil
	}
}

func (s *stallingStore) wait(ctx context.Context) error {
	s.mu.Lock()
	stalled := s.stalled
	s.mu.Unlock()
	if stalled == nil {
		return nil
	}
	select {
	case <-stalled:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *stallingStore) Acquire(ctx context.Context, key, owner string, ttl time.Duration) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.Store.Acquire(ctx, key, owner, ttl)
}

func (s *stallingStore) Holder(ctx context.Context, key string) (string, uint64, error) {
	if err := s.wait(ctx); err != nil {
		return "", 0, err
	}
	return s.Store.Holder(ctx, key)
}

// idleHost leads nothing.
type idleHost struct{ Host }

func (idleHost) Reassert(context.Context) error { return nil }

// A store that answers what it was asked leases ago, and nothing in between, has shown nobody dead: who
// asked waited for it as who was to renew did.
func TestStalledStoreShowsNobodyDead(t *testing.T) {
	const ttl = time.Second
	store, bucket := &stallingStore{Store: kv.NewMem(kv.MemOptions{})}, objstore.NewMem()
	t.Cleanup(func() { store.Close() })
	var managers []*Manager
	for port := range int32(3) {
		o := started(t, store, bucket, 0)
		o.Stream, o.Host, o.TTL = &endedStream{}, idleHost{}, ttl
		m := New(o)
		if err := m.Start(t.Context(), "127.0.0.1", 9092+port, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		managers = append(managers, m)
	}
	time.Sleep(ttl)
	for _, m := range managers {
		if others := len(*m.watched.Load()); others != len(managers)-1 {
			t.Fatalf("an agent watches %d others", others)
		}
	}
	goOn := store.stall()
	time.Sleep(2 * ttl)
	goOn()
	time.Sleep(3 * ttl / 2)
	for i, m := range managers {
		if sealed := m.o.Meta.Sealed(); len(sealed) > 0 {
			t.Errorf("agent %d takes %v for dead", i, sealed)
		}
	}
}
