package metadata

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// partitionRow is the row part/<topic-id>/<partition>, written when there is
// something to say: an epoch that has written, or a log start above 0.
type partitionRow struct {
	Format   int   `json:"format"`
	Epoch    int32 `json:"epoch"`
	LogStart int64 `json:"log_start"`
	// Owner leads the partition with Epoch; "" where one agent leads everything.
	Owner ids.Incarnation `json:"owner,omitempty"`
}

// raised has the greater of each value; the owner goes with the epoch.
func (r partitionRow) raised(by partitionRow) partitionRow {
	if by.Epoch > r.Epoch || by.Epoch == r.Epoch && by.Owner != "" {
		r.Epoch, r.Owner = by.Epoch, by.Owner
	}
	r.LogStart = max(r.LogStart, by.LogStart)
	return r
}

// partitionTable holds, per partition, the greatest values seen.
type partitionTable struct {
	mu sync.RWMutex
	m  map[ids.TopicPartition]partitionRow
}

func (p *partitionTable) get(tp ids.TopicPartition) partitionRow {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.m[tp]
}

// raise keeps the greater of each value, and tells whether that is news.
func (p *partitionTable) raise(tp ids.TopicPartition, r partitionRow) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = map[ids.TopicPartition]partitionRow{}
	}
	r.Format = 0
	had := p.m[tp]
	p.m[tp] = had.raised(r)
	return p.m[tp] != had
}

func (p *partitionTable) forget(id ids.TopicID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for tp := range p.m {
		if tp.Topic == id {
			delete(p.m, tp)
		}
	}
}

const partPrefix = "part/"

func partRow(tp ids.TopicPartition) string {
	return partPrefix + tp.Topic.String() + "/" + strconv.Itoa(int(tp.Partition))
}

// parsePartition parses "<topic-id>/<partition>".
func parsePartition(s string) (ids.TopicPartition, error) {
	topic, num, _ := strings.Cut(s, "/")
	id, err := ids.ParseTopicID(topic)
	if err != nil {
		return ids.TopicPartition{}, err
	}
	p, err := ids.ParsePartition(num)
	return ids.TopicPartition{Topic: id, Partition: p}, err
}

// partitionOf parses a partition's row; the item's revision is 0 if there is none.
func partitionOf(it kv.Item) (partitionRow, error) {
	if it.Revision == 0 {
		return partitionRow{Format: formatVersion}, nil
	}
	return decodePartition(it.Key, it.Value)
}

// loadPartitions loads the rows and the newest log starts of the bucket.
func (s *Store) loadPartitions(ctx context.Context) error {
	err := s.rows(ctx, partPrefix, func(it kv.Item) error {
		tp, err := parsePartition(strings.TrimPrefix(it.Key, partPrefix))
		if err != nil {
			return fmt.Errorf("%w: row %s: %w", ErrDamaged, it.Key, err)
		}
		row, err := decodePartition(it.Key, it.Value)
		if err != nil {
			return err
		}
		s.parts.raise(tp, row)
		return nil
	})
	if err != nil {
		return err
	}
	newest, err := s.newestLogStarts(ctx)
	if err != nil {
		return err
	}
	for tp, start := range newest.starts {
		s.parts.raise(tp, partitionRow{LogStart: start})
	}
	return nil
}

// LogStart is the greatest log start this agent knows of; 0 if none was set.
func (s *Store) LogStart(tp ids.TopicPartition) int64 { return s.parts.get(tp).LogStart }

// LeaderEpoch is the greatest leader epoch this agent knows to have written; 0 if none.
func (s *Store) LeaderEpoch(tp ids.TopicPartition) int32 { return s.parts.get(tp).Epoch }

// SetLogStart raises the log start of a partition on the word of its leader; a
// lower or equal one changes nothing. ErrFenced: a greater epoch has written.
// No byte below it may be deleted before PublishLogStarts has made it durable.
func (s *Store) SetLogStart(ctx context.Context, tp ids.TopicPartition, epoch int32, offset int64) error {
	if offset < 0 || epoch < 0 {
		return fmt.Errorf("%w: log start %d, epoch %d of %s", ErrInvalidRequest, offset, epoch, tp)
	}
	if have := s.parts.get(tp); have.Epoch <= epoch && have.LogStart >= offset {
		return nil
	}
	err := s.raisePartition(ctx, tp, partitionRow{Epoch: epoch, LogStart: offset})
	return unavailable("set log start of "+tp.String(), err)
}

// RaiseEpoch fences all leaders of the partition with a lower epoch.
// ErrFenced: a greater one has been there.
func (s *Store) RaiseEpoch(ctx context.Context, tp ids.TopicPartition, epoch int32) error {
	if epoch < 0 {
		return fmt.Errorf("%w: epoch %d of %s", ErrInvalidRequest, epoch, tp)
	}
	return unavailable("raise epoch of "+tp.String(), s.raisePartition(ctx, tp, partitionRow{Epoch: epoch}))
}

func (s *Store) raisePartition(ctx context.Context, tp ids.TopicPartition, want partitionRow) error {
	err := s.update(ctx, func() ([]kv.Op, []kv.Precondition, error) {
		op, pre, err := s.raiseOp(ctx, tp, want)
		if err != nil || op == nil {
			return nil, nil, err
		}
		return []kv.Op{*op}, []kv.Precondition{pre}, nil
	})
	if err == nil {
		s.parts.raise(tp, want)
	}
	return err
}

// raiseOp reads a partition's row and returns the op that raises it to want, or
// nil, and the precondition that fences greater epochs. It notes what it read.
func (s *Store) raiseOp(ctx context.Context, tp ids.TopicPartition, want partitionRow) (*kv.Op, kv.Precondition, error) {
	it, err := s.row(ctx, partRow(tp))
	if err != nil {
		return nil, kv.Precondition{Key: it.Key}, err
	}
	return s.raiseOpOn(it, tp, want)
}

// raiseOpOn is raiseOp for a row that was read.
func (s *Store) raiseOpOn(it kv.Item, tp ids.TopicPartition, want partitionRow) (*kv.Op, kv.Precondition, error) {
	pre := kv.Precondition{Key: it.Key, Revision: it.Revision}
	row, err := partitionOf(it)
	if err != nil {
		return nil, pre, err
	}
	s.parts.raise(tp, row)
	if row.Epoch > want.Epoch {
		return nil, pre, fmt.Errorf("%w: %s is at epoch %d, not %d", ErrFenced, tp, row.Epoch, want.Epoch)
	}
	if have := s.parts.get(tp); want.Owner == "" && have.Epoch == want.Epoch {
		want.Owner = have.Owner // the row may have forgotten it
	}
	next := row.raised(want)
	next.Format = formatVersion
	if next == row {
		return nil, pre, nil
	}
	v, err := encode(next)
	return &kv.Op{Key: it.Key, Value: v}, pre, err
}

// ForgetTopic removes the rows of a deleted topic's partitions and segments,
// after its bytes are gone. A live topic is ErrInvalidRequest.
func (s *Store) ForgetTopic(ctx context.Context, id ids.TopicID) error {
	if t := s.Snapshot().TopicByID(id); t != nil {
		return fmt.Errorf("%w: topic '%s' is not deleted", ErrInvalidRequest, t.Name)
	}
	for _, prefix := range []string{segPrefix + id.String() + "/", partPrefix + id.String() + "/"} {
		var keys []string
		if err := s.rows(ctx, prefix, func(it kv.Item) error { keys = append(keys, it.Key); return nil }); err != nil {
			return unavailable("forget topic "+id.String(), err)
		}
		if err := s.deleteRows(ctx, keys); err != nil {
			return unavailable("forget topic "+id.String(), err)
		}
	}
	s.parts.forget(id)
	return nil
}

// deleteRows deletes rows in commits within the limits; absent ones are no error.
func (s *Store) deleteRows(ctx context.Context, keys []string) error {
	for len(keys) > 0 {
		n := min(len(keys), rowsAtOnce)
		ops := make([]kv.Op, n)
		for i, key := range keys[:n] {
			ops[i] = kv.Op{Key: key, Delete: true}
		}
		// Deleting twice is harmless, so an unknown outcome is simply repeated.
		if err := s.retry(ctx, func() error { _, err := s.opts.KV.Commit(ctx, ops, nil); return err }); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}
