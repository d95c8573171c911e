package metadata

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Owner is who leads a partition, as far as this agent knows.
type Owner struct {
	Incarnation ids.Incarnation // "": not known
	Epoch       int32
}

// Owner returns who leads a partition of a topic: the row of the partition, or the first
// owner that the topic names, whose epoch is 0.
func (s *Store) Owner(t *Topic, partition int32) Owner {
	row := s.parts.get(ids.TopicPartition{Topic: t.ID, Partition: partition})
	if row.Owner != "" || row.Epoch > 0 {
		return Owner{row.Owner, row.Epoch}
	}
	return Owner{t.FirstOwner(partition), 0}
}

// FirstOwner is whom the topic gave the partition to.
func (t *Topic) FirstOwner(partition int32) ids.Incarnation {
	for _, o := range t.Owners {
		if o.From <= partition && partition < o.To {
			return o.Incarnation
		}
	}
	return ""
}

// Owned is a partition and who leads it.
type Owned struct {
	TP ids.TopicPartition
	Owner
}

// rowsAtOnce is how many rows one commit writes where there are many: each may have a precondition, and DynamoDB needs
// room in the transaction for its log of changes, else it takes two more.
const rowsAtOnce = kv.MaxCommitKeys / 2

// RaiseOwners raises the rows of partitions to what the chain in the bucket says. Rows that
// know more stay as they are. What this agent knows is raised in any case.
func (s *Store) RaiseOwners(ctx context.Context, owned []Owned) error {
	s.NoteOwners(owned)
	known, err := s.rowsOf(ctx, owned)
	if err != nil {
		return unavailable("raise owners of partitions", err)
	}
	for len(owned) > 0 { // with the log start as far as it is known: the row may have been forgotten
		n := min(len(owned), rowsAtOnce)
		some := owned[:n]
		owned = owned[n:]
		err := s.update(ctx, func() (ops []kv.Op, pre []kv.Precondition, err error) {
			for _, o := range some {
				it, ok := known[o.TP]
				if !ok {
					if it, err = s.row(ctx, partRow(o.TP)); err != nil {
						return nil, nil, err
					}
				}
				delete(known, o.TP) // another try reads it anew
				op, p, err := s.raiseOpOn(it, o.TP, partitionRow{Epoch: o.Epoch, Owner: o.Incarnation, LogStart: s.LogStart(o.TP)})
				if errors.Is(err, ErrFenced) {
					continue // it knows more
				}
				if err != nil {
					return nil, nil, err
				}
				if op != nil {
					ops, pre = append(ops, *op), append(pre, p)
				}
			}
			return ops, pre, nil
		})
		if err != nil {
			return unavailable("raise owners of partitions", err)
		}
	}
	return nil
}

// Forgotten returns those of the partitions whose rows say less than their owner knows: a lower epoch
// or log start, no owner, or nothing.
func (s *Store) Forgotten(ctx context.Context, owned []Owned) (out []Owned, err error) {
	topics := map[ids.TopicID]map[int32]partitionRow{}
	for _, o := range owned {
		rows, ok := topics[o.TP.Topic]
		if !ok {
			if rows, err = s.partitionRows(ctx, o.TP.Topic); err != nil {
				return nil, err
			}
			topics[o.TP.Topic] = rows
		}
		if row, ok := rows[o.TP.Partition]; !ok || row.Epoch < o.Epoch || row.Epoch == o.Epoch && row.Owner != o.Incarnation || row.LogStart < s.LogStart(o.TP) {
			out = append(out, o)
		}
	}
	return out, nil
}

// readTogether is from how many partitions of a topic on its rows are read at once, if that reads
// at most readMore times as many.
const (
	readTogether = 8
	readMore     = 32
)

// rowsOf reads the rows of partitions whose topics have several of them, a topic at a time.
func (s *Store) rowsOf(ctx context.Context, owned []Owned) (map[ids.TopicPartition]kv.Item, error) {
	n := map[ids.TopicID]int{}
	for _, o := range owned {
		n[o.TP.Topic]++
	}
	for id, k := range n {
		if t := s.Snapshot().TopicByID(id); k < readTogether || t == nil || int(t.Partitions) > k*readMore {
			delete(n, id)
		}
	}
	out := map[ids.TopicPartition]kv.Item{}
	for _, o := range owned {
		if n[o.TP.Topic] > 0 {
			out[o.TP] = kv.Item{Key: partRow(o.TP)} // not there, unless it is read below
		}
	}
	for id := range n {
		err := s.rows(ctx, partPrefix+id.String()+"/", func(it kv.Item) error {
			tp, err := parsePartition(strings.TrimPrefix(it.Key, partPrefix))
			if _, ok := out[tp]; ok && err == nil {
				out[tp] = it
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// NoteOwners notes owners that the bucket has told, without writing rows. What was known is no change: who
// notes the same again when it is told of changes would never come to rest.
func (s *Store) NoteOwners(owned []Owned) {
	news := false
	for _, o := range owned {
		if s.parts.raise(o.TP, partitionRow{Epoch: o.Epoch, Owner: o.Incarnation}) {
			news = true
		}
	}
	if news {
		s.ownersChanged()
	}
}

// sealedRow is the row sealed/<incarnation>: the stream is sealed, its partitions have heirs.
type sealedRow struct {
	Format int             `json:"format"`
	Seal   uint64          `json:"seal"`
	By     ids.Incarnation `json:"by"`
	AtMs   int64           `json:"at_ms"`
}

const sealedPrefix = "sealed/"

// PublishSealed tells the others that a stream is sealed.
func (s *Store) PublishSealed(ctx context.Context, dead ids.Incarnation, seal uint64) error {
	key := sealedPrefix + string(dead)
	v, err := encode(sealedRow{Format: formatVersion, Seal: seal, By: s.opts.Incarnation, AtMs: s.nowMs()})
	if err != nil {
		return err
	}
	err = s.update(ctx, func() ([]kv.Op, []kv.Precondition, error) {
		it, err := s.row(ctx, key)
		if err != nil || it.Revision != 0 {
			return nil, nil, err
		}
		return []kv.Op{{Key: key, Value: v}}, []kv.Precondition{{Key: key}}, nil
	})
	if err == nil {
		s.noteSealed(dead)
	}
	return unavailable("publish seal of "+string(dead), err)
}

// Sealed lists the incarnations whose streams are known to be sealed.
func (s *Store) Sealed() []ids.Incarnation {
	s.sealedMu.Lock()
	defer s.sealedMu.Unlock()
	return slices.Collect(maps.Keys(s.sealed))
}

// IsSealed tells whether the stream of inc is known to be sealed.
func (s *Store) IsSealed(inc ids.Incarnation) bool {
	s.sealedMu.Lock()
	defer s.sealedMu.Unlock()
	_, ok := s.sealed[inc]
	return ok
}

// LostSeals lists the incarnations that are known to be sealed and whose rows are not there.
func (s *Store) LostSeals(ctx context.Context) ([]ids.Incarnation, error) {
	there := map[ids.Incarnation]bool{}
	err := s.rows(ctx, sealedPrefix, func(it kv.Item) error {
		there[ids.Incarnation(strings.TrimPrefix(it.Key, sealedPrefix))] = true
		return nil
	})
	if err != nil {
		return nil, unavailable("read seals", err)
	}
	var out []ids.Incarnation
	for _, inc := range s.Sealed() {
		if !there[inc] {
			out = append(out, inc)
		}
	}
	return out, nil
}

func (s *Store) noteSealed(inc ids.Incarnation) {
	s.sealedMu.Lock()
	_, known := s.sealed[inc]
	if s.sealed == nil {
		s.sealed = map[ids.Incarnation]struct{}{}
	}
	s.sealed[inc] = struct{}{}
	s.sealedMu.Unlock()
	if !known {
		s.ownersChanged()
	}
}

// WatchCluster follows agents, owners, seals and releases, until the store is closed. changed is
// called, without locks, after each change; it must not block.
func (s *Store) WatchCluster(ctx context.Context, changed func()) error {
	s.changed.Store(&changed)
	for _, w := range []struct {
		prefix string
		apply  func(kv.Item) error
	}{{agentPrefix, s.applyAgent}, {partPrefix, s.applyOwner}, {sealedPrefix, s.applySealed}, {releasedPrefix, s.applyReleased}, {abandonedPrefix, s.applyAbandoned}} {
		if err := s.rows(ctx, w.prefix, w.apply); err != nil {
			return unavailable("read "+w.prefix, err)
		}
		s.wg.Go(func() {
			s.watchForever(s.background, w.prefix, func(it kv.Item) error {
				err := w.apply(it)
				s.ownersChanged()
				return err
			})
		})
	}
	return nil
}

// OnReconnect has f called, without locks, when a watch of WatchCluster begins anew: the store was
// away. It must not block.
func (s *Store) OnReconnect(f func()) { s.reconnected.Store(&f) }

func (s *Store) ownersChanged() {
	if f := s.changed.Load(); f != nil {
		(*f)()
	}
}

func (s *Store) applyOwner(it kv.Item) error {
	if it.Value == nil {
		return nil
	}
	tp, err := parsePartition(strings.TrimPrefix(it.Key, partPrefix))
	if err != nil {
		return fmt.Errorf("%w: row %s: %w", ErrDamaged, it.Key, err)
	}
	row, err := decodePartition(it.Key, it.Value)
	if err == nil {
		s.parts.raise(tp, row)
	}
	return err
}

func (s *Store) applySealed(it kv.Item) error {
	inc, err := ids.ParseIncarnation(strings.TrimPrefix(it.Key, sealedPrefix))
	if err != nil {
		return fmt.Errorf("%w: row %s: %w", ErrDamaged, it.Key, err)
	}
	if it.Value != nil {
		s.noteSealed(inc)
	}
	return nil
}

// watchForever applies all rows under prefix, and every change of them, until ctx ends.
func (s *Store) watchForever(ctx context.Context, prefix string, apply func(kv.Item) error) {
	for ctx.Err() == nil {
		err := s.watchOnce(ctx, prefix, apply)
		if ctx.Err() != nil || errors.Is(err, kv.ErrClosed) {
			return
		}
		s.opts.Logger.Warn("a watch of the metadata store ended; starting anew", "prefix", prefix, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(watchPause):
		}
		if f := s.reconnected.Load(); f != nil {
			(*f)()
		}
	}
}

// watchPause is how long a watch that has ended waits.
const watchPause = time.Second

func (s *Store) watchOnce(ctx context.Context, prefix string, apply func(kv.Item) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := s.opts.KV.Watch(ctx, prefix)
	if err != nil {
		return err
	}
	one := func(it kv.Item) error {
		if err := apply(it); err != nil {
			s.opts.Logger.Error("can't read a row", "key", it.Key, "err", err)
		}
		return nil
	}
	if err := s.rows(ctx, prefix, one); err != nil {
		return err
	}
	for items := range ch {
		for _, it := range items {
			_ = one(it) // never fails
		}
	}
	return kv.ErrUnavailable
}
