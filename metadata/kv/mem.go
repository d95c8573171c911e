package kv

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// MemOptions of the in-memory store.
type MemOptions struct {
	Hooks Hooks            // faults to inject; zero: none
	Now   func() time.Time // clock of the leases; nil: time.Now
}

// NewMem returns an empty store in memory, for tests and simulations: it
// forgets everything when it is closed.
func NewMem(opts MemOptions) Store {
	m := &mem{items: map[string]Item{}, hub: NewHub(), LeaseTable: NewLeaseTable(opts.Now)}
	if opts.Hooks.Before == nil && opts.Hooks.After == nil {
		return m
	}
	return WithHooks(m, opts.Hooks)
}

type mem struct {
	*LeaseTable
	hub *Hub

	mu       sync.RWMutex
	closed   bool
	keys     []string // sorted; those of items
	items    map[string]Item
	revision Revision // last one given, so that a key's grow over its deletion
}

func (m *mem) Get(ctx context.Context, key string) (Item, error) {
	if err := ctx.Err(); err != nil {
		return Item{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return Item{}, ErrClosed
	}
	it, ok := m.items[key]
	if !ok {
		return Item{}, fmt.Errorf("get %q: %w", key, ErrNotFound)
	}
	it.Value = cloneValue(it.Value)
	return it, nil
}

func (m *mem) Range(ctx context.Context, prefix, from string, limit int, reverse bool) ([]Item, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := CheckRange(prefix, from, limit); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return nil, ErrClosed
	}
	i, step := m.start(prefix, from, reverse), 1
	if reverse {
		step = -1
	}
	var out []Item
	for ; i >= 0 && i < len(m.keys) && len(out) < limit && strings.HasPrefix(m.keys[i], prefix); i += step {
		it := m.items[m.keys[i]]
		it.Value = cloneValue(it.Value)
		out = append(out, it)
	}
	return out, nil
}

// start is the index of the first key of a range.
func (m *mem) start(prefix, from string, reverse bool) int {
	if !reverse {
		i, found := slices.BinarySearch(m.keys, max(prefix, from))
		if found && from != "" {
			i++
		}
		return i
	}
	if from != "" {
		i, _ := slices.BinarySearch(m.keys, from)
		return i - 1
	}
	i, _ := slices.BinarySearchFunc(m.keys, prefix, func(k, p string) int {
		if k < p || strings.HasPrefix(k, p) {
			return -1
		}
		return 1
	})
	return i - 1
}

func (m *mem) Commit(ctx context.Context, ops []Op, pre []Precondition) ([]Revision, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := CheckCommit(ops, pre); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	for _, p := range pre {
		if r := m.items[p.Key].Revision; r != p.Revision {
			return nil, fmt.Errorf("commit: %w: %q is at revision %d, not %d", ErrConflict, p.Key, r, p.Revision)
		}
	}
	revs := make([]Revision, len(ops))
	changed := make([]Item, len(ops))
	for i, op := range ops {
		at, found := slices.BinarySearch(m.keys, op.Key)
		m.revision++
		changed[i] = Item{Key: op.Key, Revision: m.revision}
		if op.Delete {
			if found {
				m.keys = slices.Delete(m.keys, at, at+1)
				delete(m.items, op.Key)
			}
			continue
		}
		if !found {
			m.keys = slices.Insert(m.keys, at, op.Key)
		}
		changed[i].Value = append([]byte{}, op.Value...)
		m.items[op.Key] = changed[i]
		revs[i] = m.revision
	}
	m.hub.Publish(changed)
	return revs, nil
}

func (m *mem) Watch(ctx context.Context, prefix string) (<-chan []Item, error) {
	return m.hub.Watch(ctx, prefix)
}

func (m *mem) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.hub.Close()
	return nil
}
