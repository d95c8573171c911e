package lead

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// Errors of AbandonDisk, and ErrDiskAbandoned of a manager whose own disk was given up.
var (
	ErrUnknownDisk   = errors.New("no agent has led partitions of class local on this disk")
	ErrDiskInUse     = errors.New("the disk is in use")
	ErrDiskAbandoned = errors.New("the disk was abandoned")
)

// disk is what a manager knows of the disk that it runs on. Manager.work guards it.
type disk struct {
	looked bool                     // whether there are records of it
	held   *metadata.DiskRecord     // of this incarnation; nil: it leads no partition of class local
	kept   []metadata.DiskPartition // that earlier starts have led and this one has not accepted
}

// onDisk tells whether a partition is of class local.
func (m *Manager) onDisk(tp ids.TopicPartition) bool {
	t := m.o.Meta.Snapshot().TopicByID(tp.Topic)
	return t != nil && !m.o.Disk.IsZero() && t.Config.Durability == metadata.DurabilityLocal
}

// fromDisk takes what earlier starts on this disk have led.
func (t *takeover) fromDisk(ctx context.Context) error {
	m := t.m
	if m.o.Disk.IsZero() || m.o.Reader {
		return nil
	}
	if !m.disk.looked {
		r, err := m.o.Meta.Disk(ctx, m.o.Disk)
		if err != nil {
			return err
		}
		if r != nil {
			if err := m.holdDisk(ctx, r); err != nil {
				return err
			}
		}
		m.disk.looked = true
	}
	m.disk.kept = slices.DeleteFunc(m.disk.kept, func(p metadata.DiskPartition) bool {
		e, ok := m.accepted[p.TP]
		return ok && e >= p.Epoch
	})
	for _, p := range m.disk.kept {
		if m.o.Meta.Snapshot().TopicByID(p.TP.Topic) != nil && t.wanted(p.TP, m.o.Incarnation, p.Epoch) {
			t.add(wal.Acceptance{TP: p.TP, Epoch: p.Epoch, End: p.End, Giver: p.Giver}, nil)
			t.leads[p.TP].kept = true
		}
	}
	return nil
}

// holdDisk makes this incarnation the one that leads the partitions of its disk; last is the newest record
// of the disk, or nil. The start before it on the disk is sealed first: its seal says what it led.
func (m *Manager) holdDisk(ctx context.Context, last *metadata.DiskRecord) error {
	next := &metadata.DiskRecord{Disk: m.o.Disk, N: 1, Incarnation: m.o.Incarnation, Node: m.o.Meta.NodeID()}
	switch {
	case last == nil:
	case last.Abandoned():
		return m.lostDisk()
	case last.Incarnation == m.o.Incarnation: // an answer was lost
		m.disk.held, m.disk.kept = last, slices.Clone(last.Partitions)
		return nil
	default:
		kept, err := m.keptBy(ctx, last)
		if err != nil {
			return err
		}
		next.N, next.Partitions = last.N+1, kept
	}
	won, err := m.o.Meta.CreateDisk(ctx, next)
	if err != nil {
		return err
	}
	if !won {
		return fmt.Errorf("%w by another process, or was abandoned: disk %s", ErrDiskInUse, m.o.Disk) // the next try sees which
	}
	m.disk.held, m.disk.kept = next, slices.Clone(next.Partitions)
	m.o.Logger.Info("this start goes on with the partitions of class local of its disk", "disk", m.o.Disk.String(), "record", next.N, "partitions", len(next.Partitions))
	return nil
}

// lostDisk says that this agent's disk was abandoned.
func (m *Manager) lostDisk() error {
	err := fmt.Errorf("disk %s: %w", m.o.Disk, ErrDiskAbandoned)
	if m.o.OnAbandoned != nil {
		m.o.OnAbandoned(err)
	}
	return err
}

// keptBy are the partitions of a disk that was held last by the incarnation of a record, which is
// dead: it is sealed if it is not yet.
func (m *Manager) keptBy(ctx context.Context, last *metadata.DiskRecord) ([]metadata.DiskPartition, error) {
	s, err := wal.ReadSeal(ctx, m.o.Bucket, m.o.Cluster, last.Incarnation)
	if err == nil && s == nil {
		m.takeOver(ctx, last.Incarnation)
		s, err = wal.ReadSeal(ctx, m.o.Bucket, m.o.Cluster, last.Incarnation)
	}
	if err != nil {
		return nil, fmt.Errorf("read the seal of %s, which held disk %s: %w", last.Incarnation, last.Disk, err)
	}
	if s == nil {
		return nil, fmt.Errorf("the stream of %s, which held disk %s, is not sealed yet", last.Incarnation, last.Disk)
	}
	newest := map[ids.TopicPartition]metadata.DiskPartition{}
	for _, p := range last.Partitions {
		newest[p.TP] = p
	}
	for _, h := range s.Heirs {
		if h.Disk == last.Disk && h.Epoch >= newest[h.TP].Epoch {
			newest[h.TP] = metadata.DiskPartition{TP: h.TP, Epoch: h.Epoch, End: h.End, Giver: s.Key()}
		}
	}
	out := make([]metadata.DiskPartition, 0, len(newest))
	for tp, p := range newest {
		if !m.o.Meta.Deleted(tp.Topic) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b metadata.DiskPartition) int { return wal.CompareTP(a.TP, b.TP) })
	return out, nil
}

// bind notes the disk in the acceptances of partitions of class local, after this incarnation has become the
// one that leads them there. It returns what can be accepted: after an error not those of class local, as
// other partitions need not wait for the disk.
func (m *Manager) bind(ctx context.Context, ts []*taken) ([]*taken, error) {
	if m.o.Disk.IsZero() {
		return ts, nil
	}
	unknown := func(t *taken) bool {
		id := t.acceptance.TP.Topic
		return m.o.Meta.Snapshot().TopicByID(id) == nil && !m.o.Meta.Deleted(id)
	}
	if slices.ContainsFunc(ts, unknown) { // without the topic nobody knows the class
		if err := m.o.Meta.Refresh(ctx); err != nil {
			return nil, err
		}
	}
	local := func(t *taken) bool { return m.onDisk(t.acceptance.TP) }
	if !slices.ContainsFunc(ts, local) {
		return ts, nil
	}
	if err := m.useDisk(ctx); err != nil {
		return slices.DeleteFunc(slices.Clone(ts), local), fmt.Errorf("partitions of class local can't be led: %w", err)
	}
	for _, t := range ts {
		if local(t) {
			t.acceptance.Disk = m.o.Disk
		}
	}
	return ts, nil
}

// useDisk makes this incarnation lead the partitions of its disk, and the disk ready for them.
func (m *Manager) useDisk(ctx context.Context) error {
	if err := m.o.OpenDisk(); err != nil || m.disk.held != nil {
		return err
	}
	r, err := m.o.Meta.Disk(ctx, m.o.Disk)
	if err != nil {
		return err
	}
	return m.holdDisk(ctx, r)
}

// keeps is what a seal says of a partition of class local: the disk has it.
func keeps(t *wal.Tail) wal.Heir {
	return wal.Heir{TP: t.TP, Epoch: t.Epoch + 1, Disk: t.Disk, End: t.End}
}

// movable are the partitions that may be given to other agents: not those of class local.
func (m *Manager) movable() []ids.TopicPartition {
	out := make([]ids.TopicPartition, 0, len(m.led))
	for tp := range m.led {
		if !m.bound[tp] {
			out = append(out, tp)
		}
	}
	return out
}

// abandonTries bounds how often AbandonDisk looks anew because the disk was started on.
const abandonTries = 3

// AbandonDisk declares a disk lost for ever: its partitions are given to other agents, with what is
// tiered of them, and whoever starts on the disk is refused. What was acknowledged and not tiered is
// lost. ErrDiskInUse: an agent on it lives. A second call returns the record of the first.
func (m *Manager) AbandonDisk(ctx context.Context, id ids.DiskID) (*metadata.DiskRecord, error) {
	if id == m.o.Disk {
		return nil, fmt.Errorf("%w by this very agent (node %d): stop it and ask another one", ErrDiskInUse, m.o.Meta.NodeID())
	}
	for range abandonTries {
		last, err := m.o.Meta.Disk(ctx, id)
		switch {
		case err != nil:
			return nil, err
		case last == nil:
			return nil, fmt.Errorf("%w: %s", ErrUnknownDisk, id)
		case last.Abandoned():
			return last, m.tellAbandoned(ctx, last)
		}
		next, err := m.abandonment(ctx, last)
		if err != nil {
			return nil, err
		}
		won, err := m.o.Meta.CreateDisk(ctx, next)
		if err != nil {
			return nil, err
		}
		if won {
			m.o.Logger.Warn("a disk was abandoned: what it had of topics of class local and was not tiered is lost", "disk", id.String(), "node", last.Node, "partitions", len(next.Partitions))
			return next, m.tellAbandoned(ctx, next)
		}
	}
	return nil, fmt.Errorf("%w: agents keep starting on %s", ErrDiskInUse, id)
}

// abandonment is the record that gives a disk's partitions away.
func (m *Manager) abandonment(ctx context.Context, last *metadata.DiskRecord) (*metadata.DiskRecord, error) {
	s, err := wal.ReadSeal(ctx, m.o.Bucket, m.o.Cluster, last.Incarnation)
	if err != nil {
		return nil, err
	}
	if s == nil {
		_, held, err := m.o.Meta.LeaseCounter(ctx, last.Incarnation)
		if err != nil {
			return nil, fmt.Errorf("%w: whether the agent on disk %s lives is not known: %w", metadata.ErrUnavailable, last.Disk, err)
		}
		if held {
			return nil, fmt.Errorf("%w by node %d (%s), which lives: stop that agent first", ErrDiskInUse, last.Node, last.Incarnation)
		}
	}
	kept, err := m.keptBy(ctx, last)
	if err != nil {
		return nil, err
	}
	tps := make([]ids.TopicPartition, len(kept))
	for i, p := range kept {
		tps[i] = p.TP
	}
	heirs := Place(tps, m.candidates(map[ids.Incarnation]bool{last.Incarnation: true}))
	if len(heirs) < len(tps) {
		return nil, fmt.Errorf("%w: no agent is there to lead the disk's partitions", metadata.ErrUnavailable)
	}
	for i := range kept {
		kept[i].To = heirs[i]
		row, ok, err := m.o.Meta.LastSegment(ctx, kept[i].TP)
		if err != nil {
			return nil, err
		}
		if ok {
			kept[i].End = max(kept[i].End, row.Last+1)
		}
	}
	return &metadata.DiskRecord{Disk: last.Disk, N: last.N + 1, Node: last.Node, Partitions: kept}, nil
}

func (m *Manager) tellAbandoned(ctx context.Context, r *metadata.DiskRecord) error {
	if err := m.o.Meta.PublishAbandoned(ctx, r.Disk, r.N); err != nil {
		return err
	}
	m.Kick()
	return nil
}

// fromAbandoned takes what abandoned disks give to this agent.
func (t *takeover) fromAbandoned(ctx context.Context) error {
	m := t.m
	for _, id := range m.o.Meta.AbandonedDisks() {
		if m.abandoned[id] {
			continue
		}
		r, err := m.readAbandoned(ctx, id)
		if err != nil {
			return err
		}
		for _, p := range r.Partitions {
			if t.wanted(p.TP, p.To, p.Epoch) {
				t.add(wal.Acceptance{TP: p.TP, Epoch: p.Epoch, End: p.End, Giver: r.Key()}, nil)
			}
		}
		t.abandoned = append(t.abandoned, id)
	}
	return nil
}

// readAbandoned reads what an abandoned disk gives away and notes who leads that.
func (m *Manager) readAbandoned(ctx context.Context, id ids.DiskID) (*metadata.DiskRecord, error) {
	r, err := m.o.Meta.Disk(ctx, id)
	if err != nil {
		return nil, err
	}
	if r == nil || !r.Abandoned() {
		return nil, fmt.Errorf("disk %s is said to be abandoned and is not", id)
	}
	owned := make([]metadata.Owned, len(r.Partitions))
	for i, p := range r.Partitions {
		owned[i] = metadata.Owned{TP: p.TP, Owner: metadata.Owner{Incarnation: p.To, Epoch: p.Epoch}}
		m.noteGiven(p.TP, gift{p.To, p.Epoch, r.Key()})
	}
	m.o.Meta.NoteOwners(owned)
	return r, nil
}

// learnAbandoned reads what all abandoned disks have given away.
func (m *Manager) learnAbandoned(ctx context.Context) error {
	if err := m.o.Meta.ReadAbandoned(ctx); err != nil {
		return err
	}
	for _, id := range m.o.Meta.AbandonedDisks() {
		if _, err := m.readAbandoned(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// fromDiskObject is the acceptance of what an abandoned disk gives.
func (m *Manager) fromDiskObject(ctx context.Context, key string, tp ids.TopicPartition) (wal.Acceptance, []wal.Placed, error) {
	r, err := m.o.Meta.ReadDisk(ctx, key)
	if err != nil {
		return wal.Acceptance{}, nil, err
	}
	for _, p := range r.Partitions {
		if p.TP == tp {
			return wal.Acceptance{TP: tp, Epoch: p.Epoch, End: p.End, Giver: key}, nil, nil
		}
	}
	return wal.Acceptance{}, nil, errors.New("it does not give the partition away")
}
