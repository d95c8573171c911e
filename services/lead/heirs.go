package lead

import (
	"context"
	"slices"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// takeOver seals the stream of a dead agent and tells everyone.
func (m *Manager) takeOver(ctx context.Context, dead ids.Incarnation) {
	if err := m.o.Meta.TrySealing(ctx, dead, m.o.TTL); err != nil {
		return // another one is at it
	}
	began := m.o.Now()
	if err := m.learnReleases(ctx); err != nil { // what was given to the dead one and not accepted is passed on too
		m.o.Logger.Warn("could not read releases before a stream is sealed; trying again", "incarnation", dead, "err", err)
		return
	}
	if err := m.learnAbandoned(ctx); err != nil {
		m.o.Logger.Warn("could not read what abandoned disks give away before a stream is sealed; trying again", "incarnation", dead, "err", err)
		return
	}
	s, err := wal.SealStream(ctx, m.o.Bucket, m.o.Cluster, dead, m.o.Incarnation, func(st *wal.State) []wal.Heir { return m.heirs(dead, st) })
	if err == nil {
		err = m.o.Meta.PublishSealed(ctx, dead, s.At)
	}
	if err != nil {
		if ctx.Err() == nil {
			m.o.Logger.Warn("could not seal the stream of a dead agent; trying again", "incarnation", dead, "err", err)
		}
		return
	}
	m.o.Logger.Info("sealed the stream of a dead agent", "incarnation", dead, "seal", s.At, "by", s.Seal.By, "partitions", len(s.Seal.Heirs), "took", m.o.Now().Sub(began).Round(time.Millisecond))
	for _, a := range m.o.Meta.Agents() {
		if a.Incarnation == dead {
			if err := m.o.Meta.RemoveAgent(ctx, a.Node, dead); err != nil {
				m.o.Logger.Warn("could not remove the row of a dead agent", "node", a.Node, "err", err)
			}
		}
	}
	m.removeReleasesOf(ctx, dead)
	m.Kick()
}

// heirs chooses who gets the partitions of a dead agent.
func (m *Manager) heirs(dead ids.Incarnation, st *wal.State) []wal.Heir {
	candidates := m.candidates(map[ids.Incarnation]bool{dead: true})
	var out []wal.Heir
	var tps []ids.TopicPartition
	for tp, t := range st.Tails {
		if !t.Disk.IsZero() { // of class local
			out = append(out, keeps(t))
			continue
		}
		tps = append(tps, tp)
	}
	given := m.unaccepted(dead, st)
	for tp := range given {
		tps = append(tps, tp)
	}
	slices.SortFunc(tps, wal.CompareTP)
	for i, to := range Place(tps, candidates) {
		h := wal.Heir{TP: tps[i], To: to}
		if t := st.Tails[tps[i]]; t != nil {
			h.Epoch = t.Epoch + 1
		} else {
			g := given[tps[i]]
			h.Epoch, h.Giver = g.epoch+1, g.giver
		}
		out = append(out, h)
	}
	for tp, r := range st.Released {
		if _, ok := given[tp]; ok { // it came back and was not accepted
			continue
		}
		out = append(out, wal.Heir{TP: tp, To: r.To, Epoch: r.Epoch, Released: true})
	}
	slices.SortFunc(out, func(a, b wal.Heir) int { return wal.CompareTP(a.TP, b.TP) })
	return out
}

// unaccepted are the partitions that topics, releases and seals have given to an agent which never
// accepted them.
func (m *Manager) unaccepted(dead ids.Incarnation, st *wal.State) map[ids.TopicPartition]gift {
	out := map[ids.TopicPartition]gift{}
	for _, t := range m.o.Meta.Snapshot().Topics() {
		for p := range t.Partitions {
			tp := ids.TopicPartition{Topic: t.ID, Partition: p}
			if t.FirstOwner(p) != dead || st.Tails[tp] != nil {
				continue
			}
			if _, ok := st.Released[tp]; !ok && m.o.Meta.Owner(t, p).Epoch == 0 {
				out[tp] = gift{to: dead, giver: t.Object()}
			}
		}
	}
	m.givenMu.Lock()
	defer m.givenMu.Unlock()
	for tp, g := range m.given {
		if g.to != dead || m.o.Meta.Snapshot().TopicByID(tp.Topic) == nil {
			continue
		}
		if st.Tails[tp] != nil {
			continue
		}
		if r, ok := st.Released[tp]; ok && r.Epoch > g.epoch {
			continue
		}
		out[tp] = g
	}
	return out
}
