package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// weather is what goes wrong around one place, or everywhere. Faults overlap, so all are counts.
type weather struct {
	mu        sync.Mutex
	noKV      int
	noBucket  int
	lostKV    int // answers of the key-value store are lost
	flaky     int // the bucket fails, before and after it has done it
	slow      int
	lateSeals int // who seals others' streams is late
	paused    int
	resumed   chan struct{} // closed when paused falls to 0
}

func (w *weather) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.paused
	f()
	if before == 0 && w.paused > 0 {
		w.resumed = make(chan struct{})
	}
	if before > 0 && w.paused == 0 {
		close(w.resumed)
	}
}

// sky is a weather at one moment.
type sky struct {
	noKV, noBucket, lostKV, flaky, slow, lateSeals bool
}

func (w *weather) look() sky {
	w.mu.Lock()
	defer w.mu.Unlock()
	return sky{w.noKV > 0, w.noBucket > 0, w.lostKV > 0, w.flaky > 0, w.slow > 0, w.lateSeals > 0}
}

func (s sky) and(o sky) sky {
	return sky{s.noKV || o.noKV, s.noBucket || o.noBucket, s.lostKV || o.lostKV, s.flaky || o.flaky, s.slow || o.slow, s.lateSeals || o.lateSeals}
}

// pause waits until the place is not paused.
func (w *weather) pause(ctx context.Context) error {
	for {
		w.mu.Lock()
		paused, ch := w.paused > 0, w.resumed
		w.mu.Unlock()
		if !paused {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

var errDead = errors.New("this agent is dead")

// link is how one start of an agent reaches bucket and key-value store. Once it is cut by
// kill, nothing that the start does has an effect, but what is on its way already.
type link struct {
	w    *world
	slot int
	inc  ids.Incarnation
	dead chan struct{}
	once sync.Once

	mu  sync.Mutex
	rng *rand.Rand
}

func (w *world) newLink(slot int, inc ids.Incarnation, seed uint64) *link {
	return &link{w: w, slot: slot, inc: inc, dead: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, 11))}
}

func (l *link) kill() { l.once.Do(func() { close(l.dead) }) }

func (l *link) gone() bool {
	select {
	case <-l.dead:
		return true
	default:
		return false
	}
}

func (l *link) place() *weather { return &l.w.slots[l.slot].weather }

func (l *link) sky() sky { return l.place().look().and(l.w.weather.look()) }

// chance draws; ms is a time of up to n milliseconds.
func (l *link) chance(p float64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rng.Float64() < p
}

func (l *link) ms(n float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(l.rng.Float64() * n * float64(time.Millisecond))
}

// sleep waits, or until the agent dies or ctx ends.
func (l *link) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-l.dead:
		return errDead
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// request carries out one request to the bucket: after a while, or not, or without an answer.
// A write whose sender has gone may arrive later.
func (l *link) request(ctx context.Context, what, key string, write bool, do func() error) error {
	if err := l.place().pause(ctx); err != nil {
		return fmt.Errorf("%s: %w: %w", what, objstore.ErrUnknown, err)
	}
	sky := l.sky()
	before, after := l.ms(4), l.ms(4)
	if sky.slow {
		before, after = l.ms(500), l.ms(300)
	}
	if sky.lateSeals && write && l.foreign(key) {
		before = l.ms(6000)
	}
	if sky.noBucket {
		if err := l.sleep(ctx, l.ms(200)); err != nil {
			return fmt.Errorf("%s: %w: %w", what, objstore.ErrUnknown, err)
		}
		return fmt.Errorf("%s: can't be reached: %w", what, objstore.ErrThrottled)
	}
	if err := l.sleep(ctx, before); err != nil {
		if write && l.chance(0.5) { // it is on its way
			l.w.late.Go(func() {
				time.Sleep(before / 2)
				_ = do()
			})
		}
		return fmt.Errorf("%s: %w: %w", what, objstore.ErrUnknown, err)
	}
	if sky.flaky && l.chance(0.3) {
		if l.chance(0.5) {
			return fmt.Errorf("%s: injected: %w", what, objstore.ErrThrottled)
		}
		return fmt.Errorf("%s: injected before: %w", what, objstore.ErrUnknown)
	}
	err := do()
	if serr := l.sleep(ctx, after); serr != nil {
		return fmt.Errorf("%s: answer lost: %w: %w", what, objstore.ErrUnknown, serr)
	}
	if perr := l.place().pause(ctx); perr != nil {
		return fmt.Errorf("%s: answer lost: %w: %w", what, objstore.ErrUnknown, perr)
	}
	if sky.flaky && write && l.chance(0.2) {
		return fmt.Errorf("%s: injected after: %w", what, objstore.ErrUnknown)
	}
	return err
}

// foreign tells that a key is of another agent's stream.
func (l *link) foreign(key string) bool {
	return strings.HasPrefix(key, "wal/") && !strings.HasPrefix(key, "wal/"+string(l.inc)+"/")
}

// bucketLink is a link as a bucket.
type bucketLink struct{ *link }

var _ objstore.Bucket = bucketLink{}

func (l bucketLink) Get(ctx context.Context, key string, offset, length int64) (r io.ReadCloser, info objstore.ObjectInfo, err error) {
	err = l.request(ctx, "get "+key, key, false, func() (err error) {
		r, info, err = l.w.vault.Get(context.Background(), key, offset, length)
		return err
	})
	return r, info, err
}

func (l bucketLink) Head(ctx context.Context, key string) (info objstore.ObjectInfo, err error) {
	err = l.request(ctx, "head "+key, key, false, func() (err error) {
		info, err = l.w.vault.Head(context.Background(), key)
		return err
	})
	return info, err
}

func (l bucketLink) List(ctx context.Context, prefix, after string, limit int) (out []objstore.ObjectInfo, more bool, err error) {
	err = l.request(ctx, "list "+prefix, prefix, false, func() (err error) {
		out, more, err = l.w.vault.List(context.Background(), prefix, after, limit)
		return err
	})
	return out, more, err
}

func (l bucketLink) Put(ctx context.Context, key string, body objstore.Body, opts objstore.PutOptions) (info objstore.ObjectInfo, err error) {
	data, err := io.ReadAll(io.NewSectionReader(body, 0, body.Size()))
	if err != nil {
		return info, err
	}
	var out objstore.ObjectInfo // a late put writes it when nobody looks
	err = l.request(ctx, "put "+key, key, true, func() (err error) {
		out, err = l.w.vault.put(l.link, key, bytes.NewReader(data), opts)
		return err
	})
	if err != nil {
		return info, err
	}
	return out, nil
}

func (l bucketLink) Delete(ctx context.Context, key string) error {
	return l.request(ctx, "delete "+key, key, true, func() error { return l.w.vault.remove(l.link, key) })
}

func (l bucketLink) DeleteMany(ctx context.Context, keys []string) (map[string]error, error) {
	first := ""
	if len(keys) > 0 {
		first = keys[0]
	}
	return nil, l.request(ctx, "delete many", first, true, func() error {
		for _, k := range keys {
			if err := l.w.vault.remove(l.link, k); err != nil {
				return err
			}
		}
		return nil
	})
}

// kvLink is a link as a key-value store.
type kvLink struct{ *link }

var _ kv.Store = kvLink{}

// ask carries out one request to the key-value store.
func (l kvLink) ask(ctx context.Context, what string, write bool, do func() error) error {
	fail := kv.ErrUnavailable
	if write {
		fail = kv.ErrUnknown
	}
	if err := l.place().pause(ctx); err != nil {
		return fmt.Errorf("%s: %w: %w", what, kv.ErrUnavailable, err)
	}
	sky := l.sky()
	if err := l.sleep(ctx, l.ms(1)); err != nil {
		return fmt.Errorf("%s: %w: %w", what, kv.ErrUnavailable, err)
	}
	if sky.noKV {
		if err := l.sleep(ctx, l.ms(300)); err != nil {
			return fmt.Errorf("%s: %w: %w", what, kv.ErrUnavailable, err)
		}
		return fmt.Errorf("%s: %w", what, kv.ErrUnavailable)
	}
	if sky.lostKV && write && l.chance(0.15) {
		return fmt.Errorf("%s: injected before: %w", what, fail)
	}
	err := do()
	if sky.lostKV && write && l.chance(0.15) {
		return fmt.Errorf("%s: injected after: %w", what, fail)
	}
	if serr := l.sleep(ctx, l.ms(1)); serr != nil {
		return fmt.Errorf("%s: answer lost: %w: %w", what, fail, serr)
	}
	if perr := l.place().pause(ctx); perr != nil {
		return fmt.Errorf("%s: answer lost: %w: %w", what, fail, perr)
	}
	return err
}

func (l kvLink) Get(ctx context.Context, key string) (it kv.Item, err error) {
	err = l.ask(ctx, "get "+key, false, func() (err error) {
		it, err = l.w.kv.Get(context.Background(), key)
		return err
	})
	return it, err
}

func (l kvLink) Range(ctx context.Context, prefix, from string, limit int, reverse bool) (out []kv.Item, err error) {
	err = l.ask(ctx, "range "+prefix, false, func() (err error) {
		out, err = l.w.kv.Range(context.Background(), prefix, from, limit, reverse)
		return err
	})
	return out, err
}

func (l kvLink) Commit(ctx context.Context, ops []kv.Op, pre []kv.Precondition) (revs []kv.Revision, err error) {
	err = l.ask(ctx, "commit", true, func() (err error) {
		revs, err = l.w.kv.Commit(context.Background(), ops, pre)
		return err
	})
	if err != nil {
		return nil, err
	}
	return revs, nil
}

// Watch ends when the store can't be reached any more.
func (l kvLink) Watch(ctx context.Context, prefix string) (<-chan []kv.Item, error) {
	if err := l.ask(ctx, "watch "+prefix, false, func() error { return nil }); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	in, err := l.w.kv.Watch(ctx, prefix)
	if err != nil {
		cancel()
		return nil, err
	}
	out := make(chan []kv.Item)
	l.w.late.Go(func() {
		defer cancel()
		defer close(out)
		for {
			select {
			case <-l.dead:
				return
			case items, ok := <-in:
				if !ok || l.place().pause(ctx) != nil || l.sky().noKV {
					return
				}
				select {
				case out <- items:
				case <-l.dead:
					return
				case <-ctx.Done():
					return
				}
			}
		}
	})
	return out, nil
}

func (l kvLink) Acquire(ctx context.Context, key, owner string, ttl time.Duration) error {
	return l.ask(ctx, "acquire "+key, true, func() error { return l.w.kv.Acquire(context.Background(), key, owner, ttl) })
}

func (l kvLink) Release(ctx context.Context, key, owner string) error {
	return l.ask(ctx, "release "+key, true, func() error { return l.w.kv.Release(context.Background(), key, owner) })
}

func (l kvLink) Holder(ctx context.Context, key string) (owner string, counter uint64, err error) {
	err = l.ask(ctx, "holder "+key, false, func() (err error) {
		owner, counter, err = l.w.kv.Holder(context.Background(), key)
		return err
	})
	return owner, counter, err
}

func (l kvLink) Close() error { return nil }
