package lead

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// gift is what a seal or a release gives on.
type gift struct {
	to    ids.Incarnation
	epoch int32
	giver string // key of the object
}

// taken is a partition that this agent is about to accept, or has accepted and does not serve yet.
type taken struct {
	acceptance wal.Acceptance
	own        []wal.Placed // batches that are known already
	batches    []wal.Placed // all
	read       bool         // they are
	kept       bool         // on this disk
}

func (t *taken) lead() Lead {
	a := &t.acceptance
	return Lead{TP: a.TP, Epoch: a.Epoch, LogStart: a.LogStart, End: a.End, Kept: t.kept, Batches: t.batches}
}

// readBatches reads where the batches lie that the acceptances name.
func (m *Manager) readBatches(ctx context.Context, ts []*taken) error {
	read := m.older()
	read.Refresh()
	for _, t := range ts {
		if t.read {
			continue
		}
		older, err := read.Batches(ctx, t.acceptance.TP, t.acceptance.Older)
		if err != nil {
			return err
		}
		t.batches, t.read = wal.Merge(older, t.own), true
	}
	return nil
}

// takeover collects what this agent is given and has not accepted.
type takeover struct {
	chain     *chain
	m         *Manager
	leads     map[ids.TopicPartition]*taken
	sealed    []ids.Incarnation // that were read
	released  []metadata.Released
	abandoned []ids.DiskID
}

// wanted tells whether a gift is for this agent and new.
func (t *takeover) wanted(tp ids.TopicPartition, to ids.Incarnation, epoch int32) bool {
	if to != t.m.o.Incarnation {
		return false
	}
	if before, ok := t.m.accepted[tp]; ok && before >= epoch {
		return false
	}
	have, ok := t.leads[tp]
	return !ok || have.acceptance.Epoch < epoch
}

func (t *takeover) add(a wal.Acceptance, own []wal.Placed) {
	t.leads[a.TP] = &taken{acceptance: a, own: own}
}

// fromTopics takes what new topics give to this agent.
func (t *takeover) fromTopics() {
	m := t.m
	for _, topic := range m.o.Meta.Snapshot().Topics() {
		for p := range topic.Partitions {
			tp := ids.TopicPartition{Topic: topic.ID, Partition: p}
			if topic.FirstOwner(p) == m.o.Incarnation && m.o.Meta.Owner(topic, p) == (metadata.Owner{Incarnation: m.o.Incarnation}) && t.wanted(tp, m.o.Incarnation, 0) {
				t.add(wal.Acceptance{TP: tp, Giver: topic.Object()}, nil)
			}
		}
	}
}

// fromReleases takes what living agents release to this one, and tells this agent who leads
// what they release.
func (t *takeover) fromReleases(ctx context.Context) error {
	m := t.m
	for _, r := range m.releases() {
		if m.released[r] || r.Incarnation == m.o.Incarnation {
			continue
		}
		rs, err := m.readReleases(ctx, r, m.hints[r])
		if err != nil && (errors.Is(err, objstore.ErrNotFound) || m.isSealed(ctx, r.Incarnation)) {
			continue // the seal says it
		}
		if err != nil {
			return err
		}
		for _, rel := range rs {
			if t.wanted(rel.TP, rel.To, rel.Epoch) {
				t.add(fromRelease(rel, wal.Key(r.Incarnation, r.Seq)), nil)
			}
		}
		t.released = append(t.released, r)
	}
	return nil
}

// fromRelease is the acceptance of what a release gives.
func fromRelease(r wal.Release, giver string) wal.Acceptance {
	return wal.Acceptance{TP: r.TP, Epoch: r.Epoch, LogStart: r.LogStart, End: r.End, Giver: giver, Older: r.Older}
}

// readReleases reads a release, unless rs is what it says, and notes who leads its partitions.
func (m *Manager) readReleases(ctx context.Context, r metadata.Released, rs []wal.Release) ([]wal.Release, error) {
	if rs == nil {
		var err error
		if rs, err = wal.ReadReleases(ctx, m.o.Bucket, m.o.Cluster, r.Incarnation, r.Seq); err != nil {
			return nil, err
		}
	}
	owned := make([]metadata.Owned, len(rs))
	for i, rel := range rs {
		owned[i] = metadata.Owned{TP: rel.TP, Owner: metadata.Owner{Incarnation: rel.To, Epoch: rel.Epoch}}
		m.noteGiven(rel.TP, gift{rel.To, rel.Epoch, wal.Key(r.Incarnation, r.Seq)})
	}
	m.o.Meta.NoteOwners(owned)
	return rs, nil
}

// isSealed tells whether a stream is known to be sealed, or is by the bucket.
func (m *Manager) isSealed(ctx context.Context, inc ids.Incarnation) bool {
	if m.o.Meta.IsSealed(inc) {
		return true
	}
	s, err := wal.ReadSeal(ctx, m.o.Bucket, m.o.Cluster, inc)
	return err == nil && s != nil
}

func (m *Manager) noteGiven(tp ids.TopicPartition, g gift) {
	m.givenMu.Lock()
	defer m.givenMu.Unlock()
	have, ok := m.given[tp]
	if !ok || have.epoch < g.epoch || have.to == "" && have.epoch == g.epoch { // a disk that kept it has been abandoned
		m.given[tp] = g
	}
}

// learnReleases reads all releases that may not have been accepted yet.
func (m *Manager) learnReleases(ctx context.Context) error {
	if err := m.o.Meta.ReadReleased(ctx); err != nil {
		return err
	}
	for _, r := range m.o.Meta.Released() {
		if _, err := m.readReleases(ctx, r, nil); err != nil && !m.isSealed(ctx, r.Incarnation) {
			return err
		}
	}
	return nil
}

// fromSeals takes what new seals give to this agent.
func (t *takeover) fromSeals(ctx context.Context) error {
	m := t.m
	seals, err := t.newSeals(ctx)
	if err != nil {
		return err
	}
	for _, seal := range seals {
		var owned []metadata.Owned
		for _, h := range seal.Heirs {
			if !h.Disk.IsZero() { // nobody leads it until its disk is back
				m.noteGiven(h.TP, gift{"", h.Epoch, seal.Key()})
				continue
			}
			owned = append(owned, metadata.Owned{TP: h.TP, Owner: metadata.Owner{Incarnation: h.To, Epoch: h.Epoch}})
			m.noteGiven(h.TP, gift{h.To, h.Epoch, seal.Key()})
			if !t.wanted(h.TP, h.To, h.Epoch) {
				continue
			}
			s, err := t.chain.readSealed(ctx, seal.Stream)
			if err == nil && s == nil {
				err = errNotSealed(seal.Stream)
			}
			if err != nil {
				return err
			}
			a, own, err := t.chain.inherit(ctx, s, h)
			if errors.Is(err, errSwept) { // the rest must not wait: the topic may be deleted, which this agent need not know
				if m.o.Meta.Snapshot().TopicByID(h.TP.Topic) != nil {
					m.o.Logger.Error("can't take a partition over", "topic_id", h.TP.Topic.String(), "partition", h.TP.Partition, "err", err)
				}
				continue
			}
			if err != nil {
				return err
			}
			t.add(a, own)
		}
		m.o.Meta.NoteOwners(owned)
		t.sealed = append(t.sealed, seal.Stream)
	}
	return nil
}

func errNotSealed(inc ids.Incarnation) error {
	return errors.New("stream " + string(inc) + " is said to be sealed and is not")
}

// sealsAtOnce are as many seals as are read side by side: an agent that starts has those of all earlier starts to read.
const sealsAtOnce = 16

// newSeals reads the seals that this agent has not gone through yet.
func (t *takeover) newSeals(ctx context.Context) ([]*wal.SealAt, error) {
	m := t.m
	unread := slices.DeleteFunc(m.o.Meta.Sealed(), func(inc ids.Incarnation) bool { return m.sealed[inc] })
	seals := make([]*wal.SealAt, len(unread))
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(sealsAtOnce)
	for i, inc := range unread {
		work.Go(func() (err error) {
			seals[i], err = wal.ReadSeal(ctx, m.o.Bucket, m.o.Cluster, inc)
			if err == nil && seals[i] == nil {
				err = errNotSealed(inc)
			}
			return err
		})
	}
	return seals, work.Wait()
}

// errSwept: a stream is swept only when the acceptances of all heirs are durable.
var errSwept = errors.New("the objects of the sealed stream are gone, so all that it had was accepted by others; is this agent's metadata store the cluster's")
