package dynamo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

const (
	// fenceAfter is how long a watch waits for a large commit whose outcome
	// nobody has noted; longer than a commit may take.
	fenceAfter = 30 * time.Second
	// rotate is how often delivered revisions are forgotten, half of them.
	rotate = 5 * time.Minute
	// hurryShare of the poll interval lies at least between two polls.
	hurryShare = 10
)

// errGap: changes can't be had any more; the watches must begin anew.
var errGap = errors.New("the change log has a gap")

// poller serves all watches of a store. One goroutine owns what is below hub.
type poller struct {
	s     *Store
	joins chan *join
	wake  chan struct{}
	ctx   context.Context // ends with stop
	end   context.CancelFunc
	wg    sync.WaitGroup
	hub   *kv.Hub

	watches []*watching
	heads   map[int]head
	pos     [shards]uint64         // entries taken in
	late    map[int]time.Time      // shard -> since when its next entry is not visible
	wanted  map[string]wish        // keys to read and deliver
	large   map[logRef]*largeWait  // commits that may still come
	seen    map[string]kv.Revision // delivered
	seenOld map[string]kv.Revision // delivered before rotated
	rotated time.Time
	back    map[int]tail // what watches that began lately have read back
	backAt  time.Time    // when the first of it was read
}

type watching struct {
	prefix string
	ctx    context.Context
	cancel context.CancelFunc
}

// join asks the goroutine for a watch.
type join struct {
	ctx    context.Context // of the watch
	prefix string
	ch     <-chan []kv.Item
	done   chan error
}

// wish is a change that is known to have been made.
type wish struct {
	rev   kv.Revision // at least
	since time.Time
	maybe bool // it is not certain that it was made
}

type largeWait struct {
	entry
	since time.Time
}

func newPoller(s *Store) *poller {
	p := &poller{s: s, joins: make(chan *join), wake: make(chan struct{}, 1), hub: kv.NewHub()}
	p.ctx, p.end = context.WithCancel(context.Background())
	return p
}

func (p *poller) start() { p.wg.Go(p.run) }

func (p *poller) stop() {
	p.end()
	p.wg.Wait()
	p.hub.Close()
}

// hurry brings the next poll forward: this process has committed.
func (p *poller) hurry() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *poller) add(ctx context.Context, prefix string) (<-chan []kv.Item, error) {
	j := &join{ctx: ctx, prefix: prefix, done: make(chan error, 1)}
	select {
	case p.joins <- j:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.ctx.Done():
		return nil, kv.ErrClosed
	}
	select {
	case err := <-j.done:
		return j.ch, err
	case <-ctx.Done():
		return nil, ctx.Err() // the watch ends with ctx
	}
}

func (p *poller) run() {
	var last time.Time
	timer := time.NewTimer(p.s.opts.Poll)
	defer timer.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case j := <-p.joins:
			j.done <- p.admit(j)
		case <-p.wake:
			if p.prune(); len(p.watches) > 0 {
				timer.Reset(max(0, p.s.opts.Poll/hurryShare-time.Since(last)))
			}
		case <-timer.C:
			if p.prune(); len(p.watches) > 0 {
				p.step()
				last = time.Now()
			}
			timer.Reset(p.s.opts.Poll)
		}
	}
}

// prune forgets watches that have ended.
func (p *poller) prune() {
	var left []*watching
	for _, w := range p.watches {
		if w.ctx.Err() == nil {
			left = append(left, w)
		} else {
			w.cancel()
		}
	}
	p.watches = left
}

func (p *poller) step() {
	if time.Since(p.backAt) > shareBack {
		p.back = nil
	}
	err := p.poll(p.ctx)
	switch {
	case err == nil || p.ctx.Err() != nil:
	case errors.Is(err, kv.ErrUnavailable):
		p.s.opts.Logger.Warn("can't look for changes of metadata; trying again", "err", err)
	default:
		p.s.opts.Logger.Warn("the watches of metadata end; they must begin anew", "err", err)
		for _, w := range p.watches {
			w.cancel()
		}
	}
}

func keysOf[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}

func (p *poller) await(e entry) {
	if p.large[e.ref] == nil {
		p.large[e.ref] = &largeWait{entry: e, since: time.Now()}
	}
}

// poll takes in new entries of the change log and delivers what they tell.
func (p *poller) poll(ctx context.Context) error {
	if err := p.s.verify(ctx); err != nil {
		return err
	}
	heads, err := p.s.heads(ctx)
	if err != nil {
		return err
	}
	p.heads = heads
	prefixes := make([]string, len(p.watches))
	for i, w := range p.watches {
		prefixes[i] = w.prefix
	}
	for n, h := range heads {
		if err := p.follow(ctx, n, h.seq, prefixes); err != nil {
			return err
		}
	}
	if err := p.decide(ctx, prefixes); err != nil {
		return err
	}
	return p.deliver(ctx)
}

// follow takes in the entries of one shard.
func (p *poller) follow(ctx context.Context, n int, last uint64, prefixes []string) error {
	if last < p.pos[n] {
		return fmt.Errorf("%w: shard %d went back from %d to %d", errGap, n, p.pos[n], last)
	}
	if last == p.pos[n] {
		return nil
	}
	entries, err := p.s.logAfter(ctx, n, p.pos[n], last)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.ref.seq() != p.pos[n]+1 {
			break
		}
		p.pos[n]++
		delete(p.late, n)
		if e.large {
			p.await(e)
			continue
		}
		for _, k := range e.matching(prefixes) {
			p.want(k, e.rev, false)
		}
	}
	if p.pos[n] == last {
		return nil
	}
	// The head is visible before its entry, or the entry has expired.
	if _, ok := p.late[n]; !ok {
		p.late[n] = time.Now()
	}
	if time.Since(p.late[n]) > p.s.opts.recent {
		return fmt.Errorf("%w: entry %d of shard %d", errGap, p.pos[n]+1, n)
	}
	return nil
}

func (p *poller) want(key string, rev kv.Revision, maybe bool) {
	w, ok := p.wanted[key]
	if !ok {
		w = wish{since: time.Now(), maybe: maybe}
	}
	w.rev, w.maybe = max(w.rev, rev), w.maybe && maybe
	p.wanted[key] = w
}

// decide looks what became of large commits. One that nobody decided in time is
// kept from ever happening.
func (p *poller) decide(ctx context.Context, prefixes []string) error {
	if len(p.large) == 0 {
		return nil
	}
	var refs []logRef
	for ref := range p.large {
		refs = append(refs, ref)
	}
	entries, err := p.s.entries(ctx, refs)
	if err != nil {
		return err
	}
	for ref, w := range p.large {
		keys := w.matching(prefixes)
		if len(keys) == 0 || entries[ref].outcome == failed {
			delete(p.large, ref)
			continue
		}
		maybe := false
		if entries[ref].outcome != applied {
			first, err := p.s.row(ctx, w.keys[0])
			if err != nil {
				return err
			}
			if first.rev == w.anchor {
				if time.Since(w.since) > p.s.opts.fenceAfter {
					if err := p.s.fence(ctx, w.keys[0], w.anchor); err != nil {
						p.s.opts.Logger.Debug("could not fence a commit", "err", err)
					}
				}
				continue
			}
			maybe = first.log != ref && first.prev != ref
		}
		for _, k := range keys {
			p.want(k, w.rev, maybe)
		}
		delete(p.large, ref)
	}
	return nil
}

// deliver reads the wanted keys and publishes those whose change is visible.
func (p *poller) deliver(ctx context.Context) error {
	if len(p.wanted) == 0 {
		return nil
	}
	rows, err := p.s.rows(ctx, keysOf(p.wanted))
	if err != nil {
		return err
	}
	if time.Since(p.rotated) > rotate {
		p.seen, p.seenOld, p.rotated = map[string]kv.Revision{}, p.seen, time.Now()
	}
	var changed []kv.Item
	for k, w := range p.wanted {
		r := rows[k]
		if r.rev < w.rev {
			if time.Since(w.since) <= p.s.opts.recent {
				continue
			}
			if !w.maybe {
				return fmt.Errorf("%w: revision %d of %q does not become visible", errGap, w.rev, k)
			}
			delete(p.wanted, k)
			continue
		}
		delete(p.wanted, k)
		if r.rev > max(p.seen[k], p.seenOld[k]) {
			p.seen[k] = r.rev
			changed = append(changed, r.item())
		}
	}
	if len(changed) > 0 {
		p.hub.Publish(changed)
	}
	return nil
}
