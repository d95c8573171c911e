package kv

import (
	"context"
	"time"
)

// Call describes a call of a Store to Hooks.
type Call struct {
	Method string   // "Get", "Range", "Commit", "Watch", "Acquire", "Release", "Holder"
	Keys   []string // keys of the call; for Commit those of the ops; for Range and Watch the prefix
}

// Hooks inject faults. They may be called from several goroutines at once.
type Hooks struct {
	// Before, when it returns an error, keeps the call from being carried out
	// (unavailable, throttled); the caller gets that error.
	Before func(Call) error
	// After, when it returns an error, replaces the answer of a call that was
	// carried out (a lost response: ErrUnknown though done).
	After func(Call) error
}

// WithHooks returns store with faults injected by h.
func WithHooks(store Store, h Hooks) Store { return &hooked{store: store, h: h} }

type hooked struct {
	store Store
	h     Hooks
}

func (s *hooked) around(method string, keys []string, do func() error) error {
	c := Call{Method: method, Keys: keys}
	if s.h.Before != nil {
		if err := s.h.Before(c); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if s.h.After != nil {
		return s.h.After(c)
	}
	return nil
}

func (s *hooked) Get(ctx context.Context, key string) (it Item, err error) {
	err = s.around("Get", []string{key}, func() error { it, err = s.store.Get(ctx, key); return err })
	if err != nil {
		return Item{}, err
	}
	return it, nil
}

func (s *hooked) Range(ctx context.Context, prefix, from string, limit int, reverse bool) (items []Item, err error) {
	err = s.around("Range", []string{prefix}, func() error {
		items, err = s.store.Range(ctx, prefix, from, limit, reverse)
		return err
	})
	if err != nil {
		return nil, err
	}
	return items, nil
}

func (s *hooked) Commit(ctx context.Context, ops []Op, pre []Precondition) (revs []Revision, err error) {
	keys := make([]string, len(ops))
	for i, op := range ops {
		keys[i] = op.Key
	}
	err = s.around("Commit", keys, func() error { revs, err = s.store.Commit(ctx, ops, pre); return err })
	if err != nil {
		return nil, err
	}
	return revs, nil
}

func (s *hooked) Watch(ctx context.Context, prefix string) (ch <-chan []Item, err error) {
	c := Call{Method: "Watch", Keys: []string{prefix}}
	if s.h.Before != nil {
		if err := s.h.Before(c); err != nil {
			return nil, err
		}
	}
	return s.store.Watch(ctx, prefix)
}

func (s *hooked) Acquire(ctx context.Context, key, owner string, ttl time.Duration) error {
	return s.around("Acquire", []string{key}, func() error { return s.store.Acquire(ctx, key, owner, ttl) })
}

func (s *hooked) Release(ctx context.Context, key, owner string) error {
	return s.around("Release", []string{key}, func() error { return s.store.Release(ctx, key, owner) })
}

func (s *hooked) Holder(ctx context.Context, key string) (owner string, counter uint64, err error) {
	err = s.around("Holder", []string{key}, func() error {
		owner, counter, err = s.store.Holder(ctx, key)
		return err
	})
	return owner, counter, err
}

func (s *hooked) Close() error { return s.store.Close() }
