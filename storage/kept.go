package storage

import (
	"cmp"
	"slices"
	"sync"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// keptRuns are what the stream has of partitions that others lead now and have not
// tiered yet. The stream is not trimmed beyond them.
type keptRuns struct {
	mu sync.Mutex
	m  map[ids.TopicPartition][]run
}

func (k *keptRuns) add(tp ids.TopicPartition, runs []run) {
	if len(runs) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.m == nil {
		k.m = map[ids.TopicPartition][]run{}
	}
	k.m[tp] = append(k.m[tp], runs...)
}

// lowest returns the oldest position that is needed, or durable.
func (k *keptRuns) lowest(durable wal.Pos) wal.Pos {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, runs := range k.m {
		for _, r := range runs {
			durable = min(durable, r.pos)
		}
	}
	return durable
}

// RemoveKeeping removes a frozen log as Remove does, but what the stream has of it stays
// there until DropKept: somebody else goes on with the partition and reads it.
func (s *Store) RemoveKeeping(tp ids.TopicPartition) error { return s.remove(tp, true) }

// Kept lists the partitions of which the stream keeps something for others, each with the
// end of that.
func (s *Store) Kept() map[ids.TopicPartition]int64 {
	s.kept.mu.Lock()
	defer s.kept.mu.Unlock()
	out := make(map[ids.TopicPartition]int64, len(s.kept.m))
	for tp, runs := range s.kept.m {
		for _, r := range runs {
			out[tp] = max(out[tp], r.last+1)
		}
	}
	return out
}

// KeptByAge lists the partitions of Kept, those that hold the oldest of the stream first.
func (s *Store) KeptByAge() []ids.TopicPartition {
	s.kept.mu.Lock()
	defer s.kept.mu.Unlock()
	out := make([]ids.TopicPartition, 0, len(s.kept.m))
	low := make(map[ids.TopicPartition]wal.Pos, len(s.kept.m))
	for tp, runs := range s.kept.m {
		at := runs[0].pos
		for _, r := range runs {
			at = min(at, r.pos)
		}
		out, low[tp] = append(out, tp), at
	}
	slices.SortFunc(out, func(a, b ids.TopicPartition) int { return cmp.Compare(low[a], low[b]) })
	return out
}

// DropKept gives up what the stream keeps of a partition below offset end: it is tiered and indexed,
// or below the log start. It returns whether that was all.
func (s *Store) DropKept(tp ids.TopicPartition, end int64) (all bool) {
	s.kept.mu.Lock()
	runs := slices.DeleteFunc(s.kept.m[tp], func(r run) bool { return r.last < end })
	if len(runs) == 0 {
		delete(s.kept.m, tp)
	} else {
		s.kept.m[tp] = runs
	}
	s.kept.mu.Unlock()
	s.kickCleaner()
	return len(runs) == 0
}
