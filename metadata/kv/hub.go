package kv

import (
	"context"
	"strings"
	"sync"
)

// maxPending bounds the changed keys that a slow watcher may leave waiting;
// beyond it the watch ends, and the watcher ranges anew.
const maxPending = 100_000

// Hub delivers the changes of an in-process driver to its watchers. The driver
// calls Publish in the order of its commits. A slow watcher never blocks a
// commit: changes of one key that wait for it are merged into the last.
type Hub struct {
	mu       sync.Mutex
	watchers map[*watcher]struct{}
	closed   bool
	wg       sync.WaitGroup // one goroutine per watcher
}

type watcher struct {
	prefix  string
	out     chan []Item
	wake    chan struct{} // one token: pending is not empty, or the hub closed
	mu      sync.Mutex
	pending []Item
	at      map[string]int // key -> index in pending
	ended   bool
}

// NewHub returns a hub without watchers.
func NewHub() *Hub { return &Hub{watchers: map[*watcher]struct{}{}} }

// Watch registers a watcher of prefix: every Publish that begins after Watch
// returned reaches it. The channel closes with ctx, with Close, or when the
// watcher has left more than 100,000 keys waiting.
func (h *Hub) Watch(ctx context.Context, prefix string) (<-chan []Item, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w := &watcher{prefix: prefix, out: make(chan []Item), wake: make(chan struct{}, 1), at: map[string]int{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, ErrClosed
	}
	h.watchers[w] = struct{}{}
	h.wg.Go(func() {
		defer close(w.out)
		defer h.remove(w)
		w.deliver(ctx)
	})
	return w.out, nil
}

// Publish hands changed items to the watchers; a nil Value is a delete. It
// copies the values and never blocks on a watcher.
func (h *Hub) Publish(items []Item) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		w.add(items)
	}
}

// Close ends all watches and waits for their goroutines.
func (h *Hub) Close() {
	h.mu.Lock()
	h.closed = true
	for w := range h.watchers {
		w.end()
	}
	h.mu.Unlock()
	h.wg.Wait()
}

func (h *Hub) remove(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

func (w *watcher) add(items []Item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	changed := false
	for _, it := range items {
		if !strings.HasPrefix(it.Key, w.prefix) {
			continue
		}
		it.Value = cloneValue(it.Value)
		changed = true
		if i, ok := w.at[it.Key]; ok {
			w.pending[i] = it
			continue
		}
		w.at[it.Key] = len(w.pending)
		w.pending = append(w.pending, it)
	}
	if len(w.pending) > maxPending {
		w.ended = true
	}
	if changed {
		w.signal()
	}
}

func (w *watcher) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.signal()
}

func (w *watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		}
		w.mu.Lock()
		batch, ended := w.pending, w.ended
		w.pending, w.at = nil, map[string]int{}
		w.mu.Unlock()
		if ended {
			return
		}
		if len(batch) == 0 {
			continue
		}
		if !w.send(ctx, batch) {
			return
		}
	}
}

// send waits for the watcher to take the batch. While it waits only the end of
// the watch is of interest; a wake for new changes is put back.
func (w *watcher) send(ctx context.Context, batch []Item) bool {
	for {
		select {
		case w.out <- batch:
			w.signal() // there may be more; a wake without changes is harmless
			return true
		case <-ctx.Done():
			return false
		case <-w.wake:
			w.mu.Lock()
			ended := w.ended
			w.mu.Unlock()
			if ended {
				return false
			}
		}
	}
}

// cloneValue copies a value and keeps nil apart from empty.
func cloneValue(v []byte) []byte {
	if v == nil {
		return nil
	}
	return append([]byte{}, v...)
}
