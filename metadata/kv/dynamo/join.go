package dynamo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// admit begins a watch. Everything that the change log tells up to here is
// visible to reads when it returns, and all that comes later is delivered.
func (p *poller) admit(j *join) error {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	defer context.AfterFunc(j.ctx, cancel)()
	p.prune()
	if len(p.watches) == 0 {
		if err := p.reset(ctx); err != nil {
			return err
		}
	} else if err := p.poll(ctx); err != nil {
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
	}
	if err := p.settle(ctx, j.prefix); err != nil {
		return err
	}
	wctx, end := context.WithCancel(j.ctx)
	ch, err := p.hub.Watch(wctx, j.prefix)
	if err != nil {
		end()
		return err
	}
	p.watches = append(p.watches, &watching{prefix: j.prefix, ctx: wctx, cancel: end})
	j.ch = ch
	return nil
}

// reset begins at the present end of the change log.
func (p *poller) reset(ctx context.Context) error {
	if err := p.s.verify(ctx); err != nil {
		return err
	}
	heads, err := p.s.heads(ctx)
	if err != nil {
		return err
	}
	p.heads, p.pos = heads, [shards]uint64{}
	for n, h := range heads {
		p.pos[n] = h.seq
	}
	p.late, p.wanted, p.large = map[int]time.Time{}, map[string]wish{}, map[logRef]*largeWait{}
	p.seen, p.seenOld, p.rotated = map[string]kv.Revision{}, nil, time.Now()
	p.back = nil
	return nil
}

// settle waits until reads see what the late entries tell of prefix. Large
// commits among them that are not decided are waited for like new ones.
func (p *poller) settle(ctx context.Context, prefix string) error {
	if err := p.readBack(ctx); err != nil {
		return err
	}
	wanted := map[string]kv.Revision{}
	for _, t := range p.back {
		for _, e := range t.entries {
			if e.large && e.outcome == 0 {
				p.await(e)
			}
			if e.large {
				continue
			}
			for _, k := range e.matching([]string{prefix}) {
				wanted[k] = max(wanted[k], e.rev)
			}
		}
	}
	for t := p.s.newTries(); len(wanted) > 0; {
		rows, err := p.s.rows(ctx, keysOf(wanted))
		if err != nil {
			return err
		}
		for k, rev := range wanted {
			if rows[k].rev >= rev {
				delete(wanted, k)
			}
		}
		if len(wanted) == 0 {
			break
		}
		if err := t.pause(ctx, errors.New("changes are not visible yet")); err != nil {
			return err
		}
	}
	return nil
}

const (
	// shareBack is for how long watches that begin share what they read back: an agent
	// begins several, one after the other.
	shareBack = 10 * time.Second
	// backAtOnce is how many shards are read back at a time.
	backAtOnce = 16
)

// tail is the late part of a shard's entries, up to a number.
type tail struct {
	to      uint64
	entries []entry
}

// readBack makes p.back the late entries of all shards, up to p.pos.
func (p *poller) readBack(ctx context.Context) error {
	if p.back == nil || time.Since(p.backAt) > shareBack {
		p.back, p.backAt = map[int]tail{}, time.Now()
	}
	var mu sync.Mutex // of p.back
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(backAtOnce)
	for n, h := range p.heads {
		mu.Lock()
		have, pos := p.back[n], p.pos[n]
		mu.Unlock()
		if have.to >= pos || !p.s.clock.within(h.rev, p.s.opts.recent) {
			continue
		}
		g.Go(func() error {
			more, err := p.lateOf(ctx, n, have.to, pos)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				p.back[n] = tail{pos, append(have.entries, more...)}
			}
			return err
		})
	}
	return g.Wait()
}

// lateOf reads the late entries of a shard behind number after, up to pos. It waits for that at pos: a head may be
// visible before its entry.
func (p *poller) lateOf(ctx context.Context, n int, after, pos uint64) ([]entry, error) {
	for t := p.s.newTries(); ; {
		var last uint64
		late, err := p.s.logBack(ctx, n, pos, func(e entry) bool {
			last = max(last, e.ref.seq())
			return e.ref.seq() > after && p.s.clock.within(e.rev, p.s.opts.recent)
		})
		if err != nil || last == pos {
			return late, err
		}
		if err := t.pause(ctx, errors.New("an entry of the change log is not visible yet")); err != nil {
			return nil, err
		}
	}
}
