package lead

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// address is where an agent is reached.
type address struct {
	host string
	port int32
	rack string
}

// Checkpoint says that a checkpoint of the agent's stream is durable: what is in the metadata store is
// compared with what this agent knows.
func (m *Manager) Checkpoint() { m.reassertSoon(false) }

// reassertSoon has everything asserted again; away: the metadata store was away, and may have
// forgotten more than the last writes.
func (m *Manager) reassertSoon(away bool) {
	for {
		select {
		case m.assert <- away:
			return
		default:
		}
		select {
		case before := <-m.assert: // one token stands for both
			away = away || before
		default:
		}
	}
}

// reassertRetry is the pause after a failure.
const reassertRetry = time.Second

func (m *Manager) reassertLoop(ctx context.Context) {
	failing := false
	for {
		var away bool
		select {
		case <-ctx.Done():
			return
		case away = <-m.assert:
		}
		err := m.reassert(ctx, away)
		if err != nil && !failing && ctx.Err() == nil {
			m.o.Logger.Warn("could not compare the metadata store with what this agent knows; trying again", "err", err)
		}
		if failing = err != nil; failing {
			select {
			case <-ctx.Done():
			case <-time.After(reassertRetry):
				m.reassertSoon(away)
			}
		}
	}
}

// reassert writes again what the metadata store has forgotten: this agent, its partitions and the
// segments it indexed lately; after an outage also its releases, and the seals it knows of.
func (m *Manager) reassert(ctx context.Context, away bool) error {
	m.mu.Lock()
	draining := m.draining
	m.mu.Unlock()
	if draining {
		return nil
	}
	if gone, err := m.sealedMeanwhile(ctx, away); gone || err != nil {
		return err
	}
	if err := m.o.Meta.Register(ctx, m.at.host, m.at.port, m.at.rack); err != nil {
		return err
	}
	m.work.Lock()
	led := maps.Clone(m.led)
	for _, t := range m.unserved {
		delete(led, t.acceptance.TP)
	}
	var releases []ownRelease
	for _, o := range m.own {
		if o.published {
			releases = append(releases, o)
		}
	}
	m.work.Unlock()
	if err := m.reassertOwners(ctx, led); err != nil {
		return err
	}
	if away {
		for _, o := range releases {
			if err := m.o.Meta.PublishRelease(ctx, o.Seq, len(o.owned)); err != nil {
				return err
			}
		}
		if err := m.reassertSeals(ctx); err != nil {
			return err
		}
		if err := m.reassertAbandoned(ctx); err != nil {
			return err
		}
	}
	return m.o.Host.Reassert(ctx)
}

// sealedMeanwhile looks whether this agent must not come back: it was out of reach, or its row is gone.
func (m *Manager) sealedMeanwhile(ctx context.Context, away bool) (bool, error) {
	if _, ok := m.o.Meta.NodeOf(m.o.Incarnation); ok && !away {
		return false, nil
	}
	s, err := wal.ReadSeal(ctx, m.o.Bucket, m.o.Cluster, m.o.Incarnation)
	if err != nil || s == nil {
		return false, err
	}
	if m.o.OnSealed != nil {
		m.o.OnSealed()
	}
	return true, nil
}

// reassertOwners raises the rows of partitions that this agent leads and whose rows say less.
func (m *Manager) reassertOwners(ctx context.Context, led map[ids.TopicPartition]int32) error {
	var owned []metadata.Owned
	for tp, epoch := range led {
		if m.o.Meta.Snapshot().TopicByID(tp.Topic) != nil {
			owned = append(owned, metadata.Owned{TP: tp, Owner: metadata.Owner{Incarnation: m.o.Incarnation, Epoch: epoch}})
		}
	}
	low, err := m.o.Meta.Forgotten(ctx, owned)
	if err != nil {
		return err
	}
	if len(low) == 0 {
		return nil
	}
	if err := m.o.Meta.RaiseOwners(ctx, low); err != nil {
		return err
	}
	m.o.Logger.Warn("the metadata store had forgotten who leads partitions, which is written again", "partitions", len(low))
	return nil
}

// reassertAbandoned tells again of abandoned disks; there are few.
func (m *Manager) reassertAbandoned(ctx context.Context) error {
	for _, id := range m.o.Meta.AbandonedDisks() {
		r, err := m.o.Meta.Disk(ctx, id)
		if err == nil && r != nil && r.Abandoned() {
			err = m.o.Meta.PublishAbandoned(ctx, id, r.N)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// reassertSeals tells again of seals whose rows are not there any more; the bucket has the word.
func (m *Manager) reassertSeals(ctx context.Context) error {
	lost, err := m.o.Meta.LostSeals(ctx)
	if err != nil {
		return err
	}
	for _, inc := range lost {
		s, err := wal.ReadSeal(ctx, m.o.Bucket, m.o.Cluster, inc)
		if err == nil && s == nil {
			err = errNotSealed(inc)
		}
		if err == nil {
			err = m.o.Meta.PublishSealed(ctx, inc, s.At)
		}
		if err != nil {
			return fmt.Errorf("tell of the seal of %s again: %w", inc, err)
		}
	}
	return nil
}
