package lead

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// Coming is what an agent is about to be given.
type Coming struct {
	Partitions []ids.TopicPartition
	// Streams are those whose objects have what is not tiered of them.
	Streams []ids.Incarnation
}

// Peers tells other agents of partitions that move, so that they lead them sooner. Nothing depends on it:
// an agent that is not told finds the release in the metadata store.
type Peers interface {
	// Prepare tells an agent what it is about to be given, and returns when that one has read ahead.
	Prepare(ctx context.Context, to metadata.Agent, c Coming) error
	// Released tells an agent of an object that gives partitions to it, and returns when
	// that one leads them.
	Released(ctx context.Context, to metadata.Agent, r metadata.Released) error
}

const (
	// prepareTime bounds how long partitions wait for their receivers to read ahead, before they move.
	prepareTime = 3 * time.Second
	// tellTime bounds a call that tells of a release.
	tellTime = 5 * time.Second
	// aheadTime is how long what was read of older streams is remembered when nothing more is read, and aheadMost how
	// long at most: what it has of objects that are gone goes with it.
	aheadTime = 30 * time.Second
	aheadMost = 5 * time.Minute
	// mostHints bounds the releases that others have told of and that were not read yet.
	mostHints = 1000
)

// prepare tells the receivers of the moves what is to come, and waits until they have read ahead. m.work
// is not held: partitions are served meanwhile.
func (m *Manager) prepare(ctx context.Context, moves []Move) {
	if m.o.Peers == nil || len(moves) == 0 {
		return
	}
	began := m.o.Now()
	ctx, cancel := context.WithTimeout(ctx, prepareTime)
	defer cancel()
	coming := map[ids.Incarnation]*Coming{}
	streams := m.streams(moves)
	for _, v := range moves {
		c := coming[v.To]
		if c == nil {
			c = &Coming{Streams: streams}
			coming[v.To] = c
		}
		c.Partitions = append(c.Partitions, v.TP)
	}
	var wg sync.WaitGroup
	for to, c := range coming {
		if a, ok := m.o.Meta.Agent(to); ok {
			wg.Go(func() {
				slices.SortFunc(c.Partitions, wal.CompareTP)
				err := m.o.Peers.Prepare(ctx, a, *c)
				m.o.Logger.Debug("told an agent what it is about to be given", "node", a.Node, "partitions", len(c.Partitions), "took", m.o.Now().Sub(began), "err", err)
			})
		}
	}
	wg.Wait()
}

// streams are those that have what is not tiered of partitions that are to move: this agent's, and of earlier owners.
func (m *Manager) streams(moves []Move) []ids.Incarnation {
	out := []ids.Incarnation{m.o.Incarnation}
	if m.o.Held == nil {
		return out
	}
	moving := make(map[ids.TopicPartition]bool, len(moves))
	for _, v := range moves {
		moving[v.TP] = true
	}
	seen := map[ids.Incarnation]bool{m.o.Incarnation: true}
	for _, h := range m.o.Held() {
		for _, r := range h.Older {
			if moving[h.TP] && !seen[r.Stream] {
				seen[r.Stream] = true
				out = append(out, r.Stream)
			}
		}
	}
	return out
}

// tell tells the receivers of a release, which is durable, of it, in the background.
func (m *Manager) tell(r metadata.Released, rs []wal.Release) {
	if m.o.Peers == nil {
		return
	}
	began := m.o.Now()
	told := map[ids.Incarnation]bool{}
	for _, rel := range rs {
		if told[rel.To] {
			continue
		}
		told[rel.To] = true
		a, ok := m.o.Meta.Agent(rel.To)
		if !ok {
			continue
		}
		m.wg.Go(func() {
			ctx, cancel := context.WithTimeout(m.background, tellTime)
			defer cancel()
			err := m.o.Peers.Released(ctx, a, r)
			m.o.Logger.Debug("told an agent of a release", "node", a.Node, "object", r.Seq, "took", m.o.Now().Sub(began), "err", err)
		})
	}
}

// Prepare reads ahead what this agent is about to be given. It is a hint of another agent.
func (m *Manager) Prepare(ctx context.Context, c Coming) error {
	o := m.older()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		o.Refresh()
		for _, inc := range c.Streams {
			if err := o.Read(ctx, inc); err != nil {
				return fmt.Errorf("read stream %s ahead: %w", inc, err)
			}
		}
		return nil
	})
	if m.o.Warm != nil {
		g.Go(func() error { return m.o.Warm(ctx, c.Partitions) })
	}
	return g.Wait()
}

// older is what reads the streams of earlier owners. It is remembered for a while: footers never change, and the next
// partitions that come are often in the same streams.
func (m *Manager) older() *wal.Older {
	m.aheadMu.Lock()
	defer m.aheadMu.Unlock()
	if now := m.o.Now(); m.ahead == nil || now.Sub(m.aheadMade) > aheadMost {
		m.ahead, m.aheadMade = &wal.Older{Bucket: m.o.Bucket}, now
	}
	o := m.ahead
	if m.aheadEnd != nil {
		m.aheadEnd.Stop()
	}
	m.aheadEnd = time.AfterFunc(aheadTime, func() {
		m.aheadMu.Lock()
		defer m.aheadMu.Unlock()
		if m.ahead == o {
			m.ahead = nil
		}
	})
	return o
}

// errNotDurable: a release that was told of is not in the durable prefix of its stream.
var errNotDurable = errors.New("lead: the release is not in the durable part of its stream")

// Released takes over what an object gives to this agent, and returns when it leads that. It is a
// hint of another agent: only what the bucket has counts.
func (m *Manager) Released(ctx context.Context, r metadata.Released) error {
	if r.Incarnation == m.o.Incarnation || m.o.Reader {
		return fmt.Errorf("object %d of %s gives nothing to this agent", r.Seq, r.Incarnation)
	}
	rs, err := m.verify(ctx, r)
	if err != nil {
		return err
	}
	m.work.Lock()
	defer m.work.Unlock()
	if m.released[r] {
		return nil
	}
	if len(m.hints) >= mostHints {
		clear(m.hints) // the metadata store has them
	}
	m.hints[r] = rs
	return m.step(m.background) // also when the caller has gone
}

// verify reads what an object gives away, if that is in the durable part of its stream.
func (m *Manager) verify(ctx context.Context, r metadata.Released) (rs []wal.Release, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		ok, err := wal.InPrefix(ctx, m.o.Bucket, r.Incarnation, r.Seq)
		if err == nil && !ok {
			err = errNotDurable
		}
		return err
	})
	g.Go(func() (err error) {
		rs, err = wal.ReadReleases(ctx, m.o.Bucket, m.o.Cluster, r.Incarnation, r.Seq)
		return err
	})
	return rs, g.Wait()
}

// releases are those that may not have been accepted yet: of the metadata store, and that others
// have told of. m.work is held.
func (m *Manager) releases() []metadata.Released {
	out := m.o.Meta.Released()
	for r := range m.hints {
		if m.released[r] {
			delete(m.hints, r)
		} else if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}
