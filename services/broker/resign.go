package broker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Freeze makes partitions refuse appends (ErrNotLeader) and returns where they end. What was appended is in the
// stream, if not durable yet: a release enters it behind that. Partitions that are gone, or not led,
// are left out. After an error they take appends again.
func (b *Broker) Freeze(ctx context.Context, tps []ids.TopicPartition) ([]lead.Frozen, error) {
	parts := b.of(tps)
	for _, p := range parts {
		p.leaving.Store(true)
	}
	b.groups.giveUp(tps)
	var mu sync.Mutex
	var out []lead.Frozen
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(leadsAtOnce)
	for _, p := range parts {
		g.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			end, err := p.log.Freeze() // waits for appends that wait for room
			if err != nil && p.gone.Load() {
				return nil
			}
			if err != nil {
				return fmt.Errorf("freeze partition %d of %s: %w", p.tp.Partition, p.topic.Load().Name, err)
			}
			mu.Lock()
			out = append(out, lead.Frozen{TP: p.tp, End: end})
			mu.Unlock()
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		b.Thaw(tps)
		return nil, err
	}
	return out, nil
}

// Thaw makes frozen partitions take appends again.
func (b *Broker) Thaw(tps []ids.TopicPartition) {
	for _, p := range b.of(tps) {
		p.log.Thaw()
		p.leaving.Store(false)
	}
	b.FindClosed()
}

// of are those of the partitions that this agent leads.
func (b *Broker) of(tps []ids.TopicPartition) (out []*Partition) {
	for _, tp := range tps {
		if p, err := b.Partition(tp.Topic, tp.Partition); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// Resign ends the serving of frozen partitions, whose release is durable: what waits for them
// wakes with ErrNotLeader, and their files go. What the stream has of them stays until it is tiered.
func (b *Broker) Resign(tps []ids.TopicPartition) error {
	parts := b.hide(tps)
	for _, p := range parts {
		p.moved.Store(true)
		p.log.Wake()
	}
	b.groups.giveUp(tps)
	var g errgroup.Group
	g.SetLimit(leadsAtOnce)
	var mu sync.Mutex
	var errs []error
	for _, p := range parts {
		g.Go(func() error {
			err := b.opts.Store.RemoveKeeping(p.tp)
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs
	return errors.Join(errs...)
}

// hide takes partitions out of the view and returns them.
func (b *Broker) hide(tps []ids.TopicPartition) (parts []*Partition) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loadedLocked()
	parts = b.of(tps)
	old := b.view.Load()
	v := newView(len(old.sorted))
	for _, t := range old.sorted {
		v.add(t, slices.Clone(old.parts[t.ID]))
	}
	for _, p := range parts {
		v.parts[p.tp.Topic][p.tp.Partition] = nil
	}
	b.view.Store(v)
	return parts
}

const (
	// keptAtOnce is how many partitions that others lead are looked up in the index at the same time.
	keptAtOnce = 16
	// keptTime bounds how long that goes on, each second.
	keptTime = 500 * time.Millisecond
)

// dropKept lets the stream go on to be trimmed where those who lead partitions now have tiered
// what this agent's stream has of them. Absence from the index proves nothing. What holds the
// oldest objects comes first, as the stream is trimmed in order; where nothing of that goes, the
// rest does not matter yet.
func (b *Broker) dropKept() {
	began := b.opts.Now()
	for kept := b.opts.Store.KeptByAge(); len(kept) > 0 && b.ctx.Err() == nil; {
		n := min(len(kept), keptAtOnce)
		var dropped atomic.Int64
		g, ctx := errgroup.WithContext(b.ctx)
		for _, tp := range kept[:n] {
			g.Go(func() error {
				all, err := b.dropKeptOf(ctx, tp)
				if all {
					dropped.Add(1)
				}
				return err
			})
		}
		if err := g.Wait(); err != nil || dropped.Load() == 0 || b.opts.Now().Sub(began) > keptTime {
			return // the next time
		}
		kept = kept[n:]
	}
}

// dropKeptOf gives up what is kept of one partition as far as it is tiered; all: nothing is left.
func (b *Broker) dropKeptOf(ctx context.Context, tp ids.TopicPartition) (all bool, err error) {
	if b.opts.Meta.Deleted(tp.Topic) {
		return b.opts.Store.DropKept(tp, math.MaxInt64), nil
	}
	to := b.opts.Meta.LogStart(tp)
	row, ok, err := b.opts.Meta.LastSegment(ctx, tp)
	if err != nil {
		return false, err
	}
	if ok {
		to = max(to, row.Last+1)
	}
	return b.opts.Store.DropKept(tp, to), nil
}
