package lead

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

const (
	// rebalanceMost is how many partitions an agent gives away at once, each rebalanceEvery.
	rebalanceMost  = 256
	rebalanceEvery = time.Second
	// rebalanceCalm is for how many leases the agents must be the same ones.
	rebalanceCalm = 2
)

// Balance decides what self gives away of the partitions it leads, so that loads even
// out: nothing unless somebody is more than a quarter off the average. All agents that see the same
// candidates come to the same plan, in which every agent has the average, up to one,
// and nobody both gives and takes. At most most partitions move. Like Place it depends on nothing
// but the arguments.
func Balance(self ids.Incarnation, led []ids.TopicPartition, candidates []Candidate, most int) []Move {
	n := len(candidates)
	if n < 2 || len(led) == 0 {
		return nil
	}
	order := slices.Clone(candidates)
	slices.SortFunc(order, func(a, b Candidate) int { return cmp.Or(cmp.Compare(b.Load, a.Load), cmp.Compare(a.Node, b.Node)) })
	total := 0
	for _, c := range order {
		total += c.Load
	}
	low, high := total/n, (total+n-1)/n
	if order[0].Load <= high+(high+slack-1)/slack && order[n-1].Load >= low-(low+slack-1)/slack {
		return nil
	}
	var give []ids.Incarnation // one for each partition that self gives away: to whom
	taker, room := n-1, 0
	target := func(i int) int { // the most loaded keep what does not divide
		if i < total%n {
			return high
		}
		return low
	}
	if taker > 0 {
		room = target(taker) - order[taker].Load
	}
	for i := 0; i < n; i++ {
		for extra := order[i].Load - target(i); extra > 0; extra-- {
			for room <= 0 && taker > i {
				if taker--; taker > i {
					room = target(taker) - order[taker].Load
				}
			}
			if taker <= i {
				return moves(led, give, order, most)
			}
			if room--; order[i].Incarnation == self {
				give = append(give, order[taker].Incarnation)
			}
		}
	}
	return moves(led, give, order, most)
}

// moves chooses the partitions: those that Place would rather have at the receiver.
func moves(led []ids.TopicPartition, give []ids.Incarnation, candidates []Candidate, most int) (out []Move) {
	left := slices.Clone(led)
	for len(give) > 0 && len(left) > 0 && len(out) < most {
		to := give[0]
		n := 1
		for n < len(give) && give[n] == to {
			n++
		}
		node := candidates[slices.IndexFunc(candidates, func(c Candidate) bool { return c.Incarnation == to })].Node
		slices.SortFunc(left, func(a, b ids.TopicPartition) int {
			return cmp.Or(cmp.Compare(weight(b, node), weight(a, node)), wal.CompareTP(a, b))
		})
		n = min(n, len(left), most-len(out))
		for _, tp := range left[:n] {
			out = append(out, Move{tp, to})
		}
		left, give = left[n:], give[n:]
		for len(give) > 0 && give[0] == to {
			give = give[1:]
		}
	}
	return out
}

// rebalanceLoop gives partitions to agents that lead too few, when the agents have been the same
// ones for a while.
func (m *Manager) rebalanceLoop(ctx context.Context) {
	var last []ids.Incarnation
	since := m.o.Now()
	m.every(ctx, rebalanceEvery, func() {
		candidates := m.candidates(nil)
		now := make([]ids.Incarnation, len(candidates))
		for i, c := range candidates {
			now[i] = c.Incarnation
		}
		if !slices.Equal(now, last) {
			last, since = now, m.o.Now()
		}
		if err := m.rebalance(ctx, candidates, m.o.Now().Sub(since) >= rebalanceCalm*m.o.TTL); err != nil && ctx.Err() == nil {
			m.o.Logger.Warn("could not give partitions to other agents", "err", err)
		}
	})
}

// rebalance gives away what is too much, if all is calm, and removes the rows of earlier releases. An agent that
// is drained gives away everything.
func (m *Manager) rebalance(ctx context.Context, candidates []Candidate, calm bool) error {
	if m.o.Meta.Drained(m.o.Incarnation) {
		return m.giveUp(ctx)
	}
	plan, err := m.rebalancePlan(ctx, candidates, calm)
	if err != nil || len(plan) == 0 {
		return err
	}
	m.prepare(ctx, plan)
	m.work.Lock()
	defer m.work.Unlock()
	if m.leaving() {
		return nil
	}
	return m.release(ctx, plan)
}

// giveUp gives away what an agent leads that is drained, as long as there are others that are not.
func (m *Manager) giveUp(ctx context.Context) error {
	m.work.Lock()
	leads := len(m.movable())
	_, err := m.forget(ctx)
	m.work.Unlock()
	if leads == 0 || err != nil || m.leaving() {
		return err
	}
	_, err = m.giveAll(ctx, m.live(ctx, m.willing(map[ids.Incarnation]bool{m.o.Incarnation: true}, false)))
	return err
}

func (m *Manager) leaving() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.draining
}

// rebalancePlan says what to give to whom.
func (m *Manager) rebalancePlan(ctx context.Context, candidates []Candidate, calm bool) ([]Move, error) {
	m.work.Lock()
	defer m.work.Unlock()
	if len(m.own) > 0 {
		if n, err := m.forget(ctx); n > 0 || err != nil {
			return nil, err // one after the other
		}
	}
	if m.leaving() || !calm {
		return nil, nil
	}
	led := m.movable()
	if len(Balance(m.o.Incarnation, led, candidates, 1)) == 0 {
		return nil, nil
	}
	if live := m.live(ctx, candidates); len(live) < len(candidates) {
		return nil, nil // one of them is dying
	}
	return Balance(m.o.Incarnation, led, candidates, rebalanceMost), nil
}
