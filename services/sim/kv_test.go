package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/metadata/kv/kvtest"
)

// store is a key-value store in memory that can forget its last writes, as a Redis
// without synchronous replicas does in a failover. Revisions grow over that, as those
// of the driver do; watches end.
type store struct {
	mu      sync.Mutex
	closed  bool
	hub     *kv.Hub
	keys    []string // sorted
	items   map[string]kv.Item
	leases  map[string]holder
	counter uint64
	rev     kv.Revision
	undo    []undo // of the last writes, oldest first
}

type holder struct {
	owner   string
	until   time.Time
	counter uint64
}

// undo takes one write back.
type undo struct {
	items  []kv.Item // as they were; Revision 0: absent
	lease  string
	holder *holder // as it was; nil: none
}

// maxUndo is how many writes can be forgotten.
const maxUndo = 512

func newStore() *store {
	return &store{hub: kv.NewHub(), items: map[string]kv.Item{}, leases: map[string]holder{}}
}

// forget takes back the last n writes and ends all watches.
func (s *store) forget(n int) int {
	s.mu.Lock()
	n = min(n, len(s.undo))
	for range n {
		u := s.undo[len(s.undo)-1]
		s.undo = s.undo[:len(s.undo)-1]
		for _, it := range u.items {
			s.setLocked(it)
		}
		switch {
		case u.lease != "" && u.holder == nil:
			delete(s.leases, u.lease)
		case u.lease != "":
			s.leases[u.lease] = *u.holder
		}
	}
	old := s.hub
	s.hub = kv.NewHub()
	s.mu.Unlock()
	old.Close()
	return n
}

// settle makes what was written so far durable: a store that has forgotten whose it is is not
// written any more until it is recovered.
func (s *store) settle() {
	s.mu.Lock()
	s.undo = nil
	s.mu.Unlock()
}

// setLocked stores an item; Revision 0 deletes it.
func (s *store) setLocked(it kv.Item) {
	at, found := slices.BinarySearch(s.keys, it.Key)
	switch {
	case it.Revision == 0:
		if found {
			s.keys = slices.Delete(s.keys, at, at+1)
			delete(s.items, it.Key)
		}
		return
	case !found:
		s.keys = slices.Insert(s.keys, at, it.Key)
	}
	s.items[it.Key] = it
}

func (s *store) noteLocked(u undo) {
	if s.undo = append(s.undo, u); len(s.undo) > 2*maxUndo {
		s.undo = slices.Delete(s.undo, 0, maxUndo)
	}
}

func (s *store) lockOpen(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return kv.ErrClosed
	}
	return nil
}

func copied(it kv.Item) kv.Item {
	it.Value = append([]byte{}, it.Value...)
	return it
}

func (s *store) Get(ctx context.Context, key string) (kv.Item, error) {
	if err := s.lockOpen(ctx); err != nil {
		return kv.Item{}, err
	}
	defer s.mu.Unlock()
	it, ok := s.items[key]
	if !ok {
		return kv.Item{}, fmt.Errorf("get %q: %w", key, kv.ErrNotFound)
	}
	return copied(it), nil
}

func (s *store) Range(ctx context.Context, prefix, from string, limit int, reverse bool) ([]kv.Item, error) {
	if err := kv.CheckRange(prefix, from, limit); err != nil {
		return nil, err
	}
	if err := s.lockOpen(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	lo, _ := slices.BinarySearch(s.keys, prefix)
	hi := lo
	for hi < len(s.keys) && strings.HasPrefix(s.keys[hi], prefix) {
		hi++
	}
	keys := slices.Clone(s.keys[lo:hi])
	if reverse {
		slices.Reverse(keys)
	}
	var out []kv.Item
	for _, k := range keys {
		if from != "" && (!reverse && k <= from || reverse && k >= from) {
			continue
		}
		if len(out) == limit {
			break
		}
		out = append(out, copied(s.items[k]))
	}
	return out, nil
}

func (s *store) Commit(ctx context.Context, ops []kv.Op, pre []kv.Precondition) ([]kv.Revision, error) {
	if err := kv.CheckCommit(ops, pre); err != nil {
		return nil, err
	}
	if err := s.lockOpen(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	for _, p := range pre {
		if r := s.items[p.Key].Revision; r != p.Revision {
			return nil, fmt.Errorf("commit: %w: %q is at revision %d, not %d", kv.ErrConflict, p.Key, r, p.Revision)
		}
	}
	revs, changed, u := make([]kv.Revision, len(ops)), make([]kv.Item, len(ops)), undo{}
	for i, op := range ops {
		before := s.items[op.Key]
		before.Key = op.Key
		u.items = append(u.items, before)
		s.rev++
		changed[i] = kv.Item{Key: op.Key, Revision: s.rev}
		if op.Delete {
			s.setLocked(kv.Item{Key: op.Key})
			continue
		}
		changed[i].Value = append([]byte{}, op.Value...)
		s.setLocked(changed[i])
		revs[i] = s.rev
	}
	if len(ops) > 0 {
		s.noteLocked(u)
		s.hub.Publish(changed)
	}
	return revs, nil
}

func (s *store) Watch(ctx context.Context, prefix string) (<-chan []kv.Item, error) {
	if err := s.lockOpen(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return s.hub.Watch(ctx, prefix)
}

func (s *store) noteLeaseLocked(key string) {
	u := undo{lease: key}
	if h, ok := s.leases[key]; ok {
		u.holder = &h
	}
	s.noteLocked(u)
}

func (s *store) Acquire(ctx context.Context, key, owner string, ttl time.Duration) error {
	if err := kv.CheckKey(key); err != nil {
		return err
	}
	if owner == "" || ttl <= 0 {
		return fmt.Errorf("%w: lease of %q needs an owner and a positive ttl", kv.ErrInvalid, key)
	}
	if err := s.lockOpen(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	now := time.Now()
	if h, ok := s.leases[key]; ok && h.owner != owner && now.Before(h.until) {
		return fmt.Errorf("acquire lease %q: %w: held by %s", key, kv.ErrLeaseLost, h.owner)
	}
	s.noteLeaseLocked(key)
	s.counter++
	s.leases[key] = holder{owner, now.Add(ttl), s.counter}
	return nil
}

func (s *store) Release(ctx context.Context, key, owner string) error {
	if err := s.lockOpen(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	h, ok := s.leases[key]
	if !ok || h.owner != owner || !time.Now().Before(h.until) {
		return fmt.Errorf("release lease %q: %w", key, kv.ErrLeaseLost)
	}
	s.noteLeaseLocked(key)
	delete(s.leases, key)
	return nil
}

func (s *store) Holder(ctx context.Context, key string) (string, uint64, error) {
	if err := s.lockOpen(ctx); err != nil {
		return "", 0, err
	}
	defer s.mu.Unlock()
	h, ok := s.leases[key]
	if !ok || !time.Now().Before(h.until) {
		return "", h.counter, nil
	}
	return h.owner, h.counter, nil
}

func (s *store) Close() error {
	s.mu.Lock()
	s.closed = true
	hub := s.hub
	s.mu.Unlock()
	hub.Close()
	return nil
}

func TestStoreKeepsTheContract(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kv.Store {
		s := newStore()
		t.Cleanup(func() { _ = s.Close() })
		return s
	})
}

func TestStoreForgets(t *testing.T) {
	s, ctx := newStore(), t.Context()
	defer s.Close()
	put := func(k, v string) kv.Revision {
		r, err := s.Commit(ctx, []kv.Op{{Key: k, Value: []byte(v)}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r[0]
	}
	first := put("a", "1")
	ch, err := s.Watch(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	last := put("a", "2")
	put("b", "1")
	if err := s.Acquire(ctx, "l", "me", time.Minute); err != nil {
		t.Fatal(err)
	}
	s.forget(3)
	for range ch { // ends
	}
	if it, err := s.Get(ctx, "a"); err != nil || string(it.Value) != "1" || it.Revision != first {
		t.Errorf("%+v, %v", it, err)
	}
	if it, err := s.Get(ctx, "b"); err == nil {
		t.Errorf("b is there: %+v", it)
	}
	if h, _, _ := s.Holder(ctx, "l"); h != "" {
		t.Errorf("the lease is held by %q", h)
	}
	if r := put("a", "3"); r <= last {
		t.Errorf("revision %d after %d", r, last)
	}
}
