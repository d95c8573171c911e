package tiering

import (
	"container/list"
	"context"
	"sync"
)

// memo is a bounded map of values that are costly to get: the least recently
// used ones go, and a missing one is loaded once for all who want it, under
// the memo's own context, so that the load outlives who asked.
type memo[K comparable, V any] struct {
	ctx      context.Context
	wg       *sync.WaitGroup
	capacity int64
	load     func(ctx context.Context, key K, arg any) (v V, cost int64, err error)

	mu      sync.Mutex
	entries map[K]*list.Element // of *memoEntry
	order   *list.List          // most recently used first
	used    int64
	flights map[K]*memoFlight[V]
}

type memoEntry[K comparable, V any] struct {
	key  K
	v    V
	cost int64
}

type memoFlight[V any] struct {
	done chan struct{}
	v    V
	err  error
}

func newMemo[K comparable, V any](ctx context.Context, wg *sync.WaitGroup, capacity int64,
	load func(ctx context.Context, key K, arg any) (V, int64, error)) *memo[K, V] {
	return &memo[K, V]{
		ctx: ctx, wg: wg, capacity: capacity, load: load,
		entries: map[K]*list.Element{}, order: list.New(), flights: map[K]*memoFlight[V]{},
	}
}

// get returns the value of key; arg goes to the load if there is one.
func (m *memo[K, V]) get(ctx context.Context, key K, arg any) (V, error) {
	m.mu.Lock()
	if e, ok := m.entries[key]; ok {
		m.order.MoveToFront(e)
		v := e.Value.(*memoEntry[K, V]).v
		m.mu.Unlock()
		return v, nil
	}
	f := m.start(key, arg)
	m.mu.Unlock()
	select {
	case <-f.done:
		return f.v, f.err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}

// ahead begins to load the value of key if it is missing, without waiting.
func (m *memo[K, V]) ahead(key K, arg any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.entries[key]; !ok {
		m.start(key, arg)
	}
}

// start returns the load of key that is in flight, or a new one; m.mu is held.
func (m *memo[K, V]) start(key K, arg any) *memoFlight[V] {
	f := m.flights[key]
	if f == nil {
		f = &memoFlight[V]{done: make(chan struct{})}
		m.flights[key] = f
		m.wg.Add(1)
		go m.run(f, key, arg)
	}
	return f
}

func (m *memo[K, V]) run(f *memoFlight[V], key K, arg any) {
	defer m.wg.Done()
	var cost int64
	f.v, cost, f.err = m.load(m.ctx, key, arg)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.flights, key)
	close(f.done)
	if f.err != nil || cost > m.capacity {
		return
	}
	m.entries[key] = m.order.PushFront(&memoEntry[K, V]{key, f.v, cost})
	m.used += cost
	for m.used > m.capacity {
		m.remove(m.order.Back())
	}
}

// remove takes an entry out; m.mu is held.
func (m *memo[K, V]) remove(e *list.Element) {
	x := m.order.Remove(e).(*memoEntry[K, V])
	delete(m.entries, x.key)
	m.used -= x.cost
}

// size returns the cost of everything held.
func (m *memo[K, V]) size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}
