package lead

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// claimsAtOnce is how many claims are read or put at the same time.
const claimsAtOnce = 16

// Stats counts what a manager has done since its start.
type Stats struct {
	Claims uint64 // partitions that this agent claimed because a seal did not list them
}

// Stats returns the counts so far.
func (m *Manager) Stats() Stats { return Stats{Claims: m.claims.Load()} }

// fromClaims settles what was given to agents whose seals do not list it, and takes what of that
// comes to this agent. Seals and releases were read before. A claim may name an agent that is
// sealed as well, and whose seal does not know of it: then the next one lies beside that seal.
func (t *takeover) fromClaims(ctx context.Context) error {
	for {
		open := t.unsettled()
		if len(open) == 0 {
			break
		}
		settled, err := t.m.claim(ctx, open)
		if err != nil {
			return err
		}
		if settled == 0 {
			break // nobody is there to lead them, or it is for others to claim
		}
	}
	return t.takeClaimed(ctx)
}

// takeClaimed takes what claims give to this agent.
func (t *takeover) takeClaimed(ctx context.Context) error {
	m := t.m
	mine := map[ids.TopicPartition]gift{}
	m.givenMu.Lock()
	for tp, g := range m.given {
		if g.to == m.o.Incarnation {
			mine[tp] = g
		}
	}
	m.givenMu.Unlock()
	var mu sync.Mutex
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(claimsAtOnce)
	for tp, g := range mine {
		if _, _, _, ok := wal.ParseClaimKey(g.giver); !ok || m.o.Meta.Snapshot().TopicByID(tp.Topic) == nil || !t.wanted(tp, g.to, g.epoch) {
			delete(mine, tp)
		}
	}
	for tp, g := range mine {
		work.Go(func() error {
			a, own, err := t.chain.origin(ctx, g.giver, tp)
			if err != nil {
				return fmt.Errorf("read what %s gives: %w", g.giver, err)
			}
			a.Epoch, a.Giver = g.epoch, g.giver
			mu.Lock()
			defer mu.Unlock()
			t.add(a, own)
			return nil
		})
	}
	return work.Wait()
}

// unsettled are the partitions whose newest gift went to an agent that is sealed. Its seal was
// read: did it list them, the seal's gift would be the newest.
func (t *takeover) unsettled() map[ids.TopicPartition]gift {
	m := t.m
	sealed := func(inc ids.Incarnation) bool { return m.sealed[inc] || slices.Contains(t.sealed, inc) }
	out := map[ids.TopicPartition]gift{}
	topics := m.o.Meta.Snapshot()
	m.givenMu.Lock()
	defer m.givenMu.Unlock()
	for tp, g := range m.given {
		if sealed(g.to) && topics.TopicByID(tp.Topic) != nil {
			out[tp] = g
		}
	}
	for _, topic := range topics.Topics() {
		for p := range topic.Partitions {
			tp := ids.TopicPartition{Topic: topic.ID, Partition: p}
			if _, ok := m.given[tp]; !ok && sealed(topic.FirstOwner(p)) {
				out[tp] = gift{to: topic.FirstOwner(p), giver: topic.Object()}
			}
		}
	}
	return out
}

// claim reads the claims of partitions, and makes those that are not there. It returns how many
// there are now. An agent that leads nothing makes none.
func (m *Manager) claim(ctx context.Context, open map[ids.TopicPartition]gift) (settled int, err error) {
	tps := make([]ids.TopicPartition, 0, len(open))
	for tp := range open {
		tps = append(tps, tp)
	}
	slices.SortFunc(tps, wal.CompareTP)
	heirs := Place(tps, m.candidates(nil)) // those who are sealed are none
	claims := make([]*wal.Claim, len(tps))
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(claimsAtOnce)
	for i, tp := range tps {
		work.Go(func() error {
			g := open[tp]
			c, err := wal.ReadClaim(ctx, m.o.Bucket, m.o.Cluster, wal.ClaimKey(g.to, tp, g.epoch+1))
			if errors.Is(err, objstore.ErrNotFound) {
				if m.o.Reader || len(heirs) == 0 {
					return nil
				}
				c, err = m.putClaim(ctx, wal.Claim{Dead: g.to, TP: tp, Epoch: g.epoch + 1, To: heirs[i], Giver: g.giver, By: m.o.Incarnation})
			}
			if err != nil {
				return fmt.Errorf("claim %s, which %s gave to a sealed agent: %w", tp, g.giver, err)
			}
			claims[i] = c
			return nil
		})
	}
	err = work.Wait()
	owned := make([]metadata.Owned, 0, len(tps))
	for i, c := range claims {
		if c != nil {
			m.noteGiven(tps[i], gift{c.To, c.Epoch, c.Key()})
			owned = append(owned, metadata.Owned{TP: tps[i], Owner: metadata.Owner{Incarnation: c.To, Epoch: c.Epoch}})
			settled++
		}
	}
	m.o.Meta.NoteOwners(owned)
	return settled, err
}

func (m *Manager) putClaim(ctx context.Context, c wal.Claim) (*wal.Claim, error) {
	out, made, err := wal.PutClaim(ctx, m.o.Bucket, m.o.Cluster, c)
	if made {
		m.claims.Add(1)
		m.o.Logger.Info("claimed a partition that was given to a sealed agent whose seal does not list it", "topic_id", c.TP.Topic.String(), "partition", c.TP.Partition, "sealed", c.Dead, "giver", c.Giver, "to", c.To, "epoch", c.Epoch)
	}
	return out, err
}
