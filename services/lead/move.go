package lead

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// Move gives a partition to another agent.
type Move struct {
	TP ids.TopicPartition
	To ids.Incarnation
}

// ownRelease is a release of this agent.
type ownRelease struct {
	metadata.Released
	published bool
	owned     []metadata.Owned
}

// freezeTime bounds how long partitions that are to move take no appends and have no new leader.
const freezeTime = 10 * time.Second

// Release gives partitions that this agent leads to others: appends stop, one object of the
// stream says who goes on, then everyone is told. Nothing is uploaded in between. Once the
// releases are on their way there is no way back, whatever becomes of ctx.
func (m *Manager) Release(ctx context.Context, moves []Move) error {
	m.prepare(ctx, moves)
	m.work.Lock()
	defer m.work.Unlock()
	return m.release(ctx, moves)
}

func (m *Manager) release(ctx context.Context, moves []Move) error {
	var tps []ids.TopicPartition
	to := map[ids.TopicPartition]ids.Incarnation{}
	for _, v := range moves {
		if _, ok := m.led[v.TP]; ok && !m.bound[v.TP] && v.To != m.o.Incarnation && !m.waits(v.TP) {
			tps = append(tps, v.TP)
			to[v.TP] = v.To
		}
	}
	if len(tps) == 0 {
		return nil
	}
	began := m.o.Now()
	fctx, cancel := context.WithTimeout(ctx, freezeTime)
	defer cancel()
	frozen, err := m.o.Host.Freeze(fctx, tps)
	if err != nil {
		return fmt.Errorf("stop appends of %d partitions: %w", len(tps), err)
	}
	for _, f := range frozen {
		delete(to, f.TP)
	}
	for tp := range to {
		delete(m.led, tp) // deleted
	}
	for _, v := range moves {
		to[v.TP] = v.To
	}
	rs := make([]wal.Release, len(frozen))
	own := ownRelease{owned: make([]metadata.Owned, len(frozen))}
	for i, f := range frozen {
		rs[i] = wal.Release{TP: f.TP, Epoch: m.led[f.TP] + 1, End: f.End, To: to[f.TP]}
		own.owned[i] = metadata.Owned{TP: f.TP, Owner: metadata.Owner{Incarnation: rs[i].To, Epoch: rs[i].Epoch}}
	}
	seq, err := m.o.Stream.Release(ctx, rs)
	for _, r := range rs { // it may become durable after an error: nobody here leads them any more
		delete(m.led, r.TP)
	}
	if err != nil {
		return fmt.Errorf("release %d partitions: %w", len(rs), err)
	}
	own.Released = metadata.Released{Incarnation: m.o.Incarnation, Seq: seq}
	for _, r := range rs {
		m.noteGiven(r.TP, gift{r.To, r.Epoch, wal.Key(m.o.Incarnation, seq)})
	}
	m.o.Meta.NoteOwners(own.owned)
	m.own = append(m.own, own)
	m.tell(own.Released, rs)
	told := m.publish(ctx)
	gap := m.o.Now().Sub(began)
	if err := m.o.Host.Resign(tpsOf(rs)); err != nil {
		m.o.Logger.Warn("could not remove the files of partitions that others lead now", "err", err)
	}
	m.o.Logger.Info("released partitions", "partitions", len(rs), "object", seq, "told_after", gap.Round(time.Millisecond), "took", m.o.Now().Sub(began).Round(time.Millisecond))
	if told != nil {
		m.Kick() // it is tried again
	}
	return told
}

// waits tells whether a partition is accepted and not served yet.
func (m *Manager) waits(tp ids.TopicPartition) bool {
	return slices.ContainsFunc(m.unserved, func(t *taken) bool { return t.acceptance.TP == tp })
}

func tpsOf(rs []wal.Release) []ids.TopicPartition {
	out := make([]ids.TopicPartition, len(rs))
	for i, r := range rs {
		out[i] = r.TP
	}
	return out
}

// publish tells everyone of the releases that they were not told of. m.work is held.
func (m *Manager) publish(ctx context.Context) error {
	for i := range m.own {
		if o := &m.own[i]; !o.published {
			if err := m.o.Meta.PublishRelease(ctx, o.Seq, len(o.owned)); err != nil {
				return err
			}
			o.published = true
		}
	}
	return nil
}

// forget removes the rows of releases whose receivers have raised the rows of their partitions. It
// returns how many releases wait. m.work is held.
func (m *Manager) forget(ctx context.Context) (waiting int, err error) {
	raised := map[ids.TopicID]map[int32]int32{}
	var done []metadata.Released
	var keep []ownRelease
	for _, o := range m.own {
		all := o.published
		for _, p := range o.owned {
			if m.o.Meta.Snapshot().TopicByID(p.TP.Topic) == nil {
				continue // deleted
			}
			rows, ok := raised[p.TP.Topic]
			if !ok {
				if rows, err = m.o.Meta.Raised(ctx, p.TP.Topic); err != nil {
					return len(m.own), err
				}
				raised[p.TP.Topic] = rows
			}
			all = all && rows[p.TP.Partition] >= p.Epoch
		}
		if all {
			done = append(done, o.Released)
		} else {
			keep = append(keep, o)
		}
	}
	if len(done) > 0 {
		if err := m.o.Meta.RemoveReleases(ctx, done); err != nil {
			return len(m.own), err
		}
	}
	m.own = keep
	return len(keep), nil
}

// removeReleasesOf removes the rows of a sealed stream's releases: the seal has them.
func (m *Manager) removeReleasesOf(ctx context.Context, sealed ids.Incarnation) {
	var rs []metadata.Released
	for _, r := range m.o.Meta.Released() {
		if r.Incarnation == sealed {
			rs = append(rs, r)
		}
	}
	if len(rs) == 0 {
		return
	}
	if err := m.o.Meta.RemoveReleases(ctx, rs); err != nil && ctx.Err() == nil {
		m.o.Logger.Warn("could not remove the rows of releases of a sealed stream", "incarnation", sealed, "err", err)
	}
}

const (
	// drainTakeover bounds the wait for those who take over what a stopping agent gives away.
	drainTakeover = 5 * time.Second
	drainPause    = 10 * time.Millisecond
	// drainIdle is how much longer this agent waits than it looks: reading the rows of many
	// partitions again and again holds up those who write them.
	drainIdle = 4
	// drainTries bounds how often what was given to a stopping agent meanwhile is given on.
	drainTries = 5
	// drainTell bounds the wait for the metadata store to note that this agent stops.
	drainTell = 2 * time.Second
)

// Drain gives all partitions to the other live agents, waits a while until those
// have taken them over, and takes this agent out of the cluster. Without others it does
// nothing: the next start seals this one's stream.
func (m *Manager) Drain(ctx context.Context) error {
	m.mu.Lock()
	m.draining = true
	m.mu.Unlock()
	m.tellLeaving(ctx)
	moved := false
	for range drainTries {
		n, err := m.drainOnce(ctx)
		if err != nil {
			return fmt.Errorf("give partitions away: %w", err)
		}
		if n < 0 {
			m.o.Logger.Info("no other agent is there to take partitions over")
			return nil
		}
		if n == 0 {
			break
		}
		moved = true
	}
	if err := m.o.Meta.RemoveAgent(ctx, m.o.Meta.NodeID(), m.o.Incarnation); err != nil {
		return err
	}
	if _, err := m.drainOnce(ctx); err != nil { // a topic may have been created meanwhile
		return fmt.Errorf("give partitions away: %w", err)
	}
	if moved {
		m.awaitTakeover(ctx)
	}
	m.stop()
	return m.o.Meta.DropLease(ctx)
}

// tellLeaving keeps the others from evening out, by giving them to this agent, the loads that its drain makes uneven.
func (m *Manager) tellLeaving(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTell)
	defer cancel()
	if err := m.o.Meta.Leaving(ctx); err != nil {
		m.o.Logger.Warn("the metadata store does not note that this agent stops", "err", err)
	}
}

// drainOnce is giveAll to those who live.
func (m *Manager) drainOnce(ctx context.Context) (int, error) {
	return m.giveAll(ctx, m.live(ctx, m.candidates(map[ids.Incarnation]bool{m.o.Incarnation: true})))
}

// giveAll accepts what this agent was given and gives everything to others. It returns how many
// partitions that were; negative: there is nobody.
func (m *Manager) giveAll(ctx context.Context, others []Candidate) (int, error) {
	if len(others) == 0 {
		return -1, nil
	}
	plan, err := m.drainPlan(ctx, others)
	if err != nil {
		return 0, err
	}
	m.prepare(ctx, plan)
	m.work.Lock()
	defer m.work.Unlock()
	if plan, err = m.drainPlanLocked(ctx, others); err != nil {
		return 0, err
	}
	return len(plan), m.release(ctx, plan)
}

// drainPlan accepts what this agent was given, and says to whom everything that it leads goes.
func (m *Manager) drainPlan(ctx context.Context, others []Candidate) ([]Move, error) {
	m.work.Lock()
	defer m.work.Unlock()
	return m.drainPlanLocked(ctx, others)
}

func (m *Manager) drainPlanLocked(ctx context.Context, others []Candidate) ([]Move, error) {
	if err := m.step(ctx); err != nil {
		return nil, err
	}
	tps := m.movable()
	slices.SortFunc(tps, wal.CompareTP)
	moves := make([]Move, len(tps))
	for i, to := range Place(tps, others) {
		moves[i] = Move{tps[i], to}
	}
	return moves, nil
}

// live are those of the candidates whose lease the store takes for alive.
func (m *Manager) live(ctx context.Context, in []Candidate) (out []Candidate) {
	for _, c := range in {
		if c.Incarnation == m.o.Incarnation {
			out = append(out, c)
			continue
		}
		if _, held, err := m.o.Meta.LeaseCounter(ctx, c.Incarnation); err == nil && held {
			out = append(out, c)
		}
	}
	return out
}

// awaitTakeover waits until the receivers of this agent's releases lead.
func (m *Manager) awaitTakeover(ctx context.Context) {
	began := m.o.Now()
	ctx, cancel := context.WithTimeout(ctx, drainTakeover)
	defer cancel()
	for {
		looked := m.o.Now()
		m.work.Lock()
		n, err := m.forget(ctx)
		m.work.Unlock()
		if n == 0 {
			m.o.Logger.Info("others have taken over", "took", m.o.Now().Sub(began).Round(time.Millisecond))
			return
		}
		select {
		case <-ctx.Done():
			m.o.Logger.Warn("others have not taken everything over yet; they will", "releases", n, "err", err)
			return
		case <-time.After(max(drainPause, drainIdle*m.o.Now().Sub(looked))):
		}
	}
}
