package metadata

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Released names an object of a living agent's stream that gives partitions away.
type Released struct {
	Incarnation ids.Incarnation
	Seq         uint64
}

// releasedRow is the row released/<incarnation>/<seq>. It is there until the rows of the
// partitions are raised.
type releasedRow struct {
	Format     int   `json:"format"`
	Partitions int   `json:"partitions"`
	AtMs       int64 `json:"at_ms"`
}

const releasedPrefix = "released/"

func (r Released) row() string {
	return fmt.Sprintf("%s%s/%020d", releasedPrefix, r.Incarnation, r.Seq)
}

func parseReleased(key string) (r Released, err error) {
	inc, seq, _ := strings.Cut(strings.TrimPrefix(key, releasedPrefix), "/")
	if r.Incarnation, err = ids.ParseIncarnation(inc); err == nil {
		r.Seq, err = strconv.ParseUint(seq, 10, 64)
	}
	if err != nil || r.row() != key {
		return r, fmt.Errorf("%w: row %s", ErrDamaged, key)
	}
	return r, nil
}

// PublishRelease tells the others that an object of this agent's stream, which is durable, gives
// partitions away.
func (s *Store) PublishRelease(ctx context.Context, seq uint64, partitions int) error {
	r := Released{s.opts.Incarnation, seq}
	v, err := encode(releasedRow{Format: formatVersion, Partitions: partitions, AtMs: s.nowMs()})
	if err != nil {
		return err
	}
	err = s.put(ctx, kv.Op{Key: r.row(), Value: v})
	if err == nil {
		s.noteReleased(r, true)
	}
	return unavailable("publish release "+r.row(), err)
}

// RemoveReleases removes rows of releases; everyone finds their partitions' rows raised, or a seal.
func (s *Store) RemoveReleases(ctx context.Context, rs []Released) error {
	keys := make([]string, len(rs))
	for i, r := range rs {
		keys[i] = r.row()
	}
	err := s.deleteRows(ctx, keys)
	if err == nil {
		for _, r := range rs {
			s.noteReleased(r, false)
		}
	}
	return unavailable("remove releases", err)
}

// Released lists the releases that are known and may not be accepted yet, in order.
func (s *Store) Released() []Released {
	s.sealedMu.Lock()
	defer s.sealedMu.Unlock()
	out := make([]Released, 0, len(s.released))
	for r := range s.released {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Released) int {
		return cmp.Or(cmp.Compare(a.Incarnation, b.Incarnation), cmp.Compare(a.Seq, b.Seq))
	})
	return out
}

// ReadReleased reads the rows of releases, so that Released lacks none there is now.
func (s *Store) ReadReleased(ctx context.Context) error {
	return unavailable("read releases", s.rows(ctx, releasedPrefix, s.applyReleased))
}

func (s *Store) noteReleased(r Released, there bool) {
	s.sealedMu.Lock()
	defer s.sealedMu.Unlock()
	if !there {
		delete(s.released, r)
		return
	}
	if s.released == nil {
		s.released = map[Released]struct{}{}
	}
	s.released[r] = struct{}{}
}

func (s *Store) applyReleased(it kv.Item) error {
	r, err := parseReleased(it.Key)
	if err == nil {
		s.noteReleased(r, it.Value != nil)
	}
	return err
}

// Raised reads the rows of a topic's partitions and returns the leader epochs in them.
func (s *Store) Raised(ctx context.Context, id ids.TopicID) (map[int32]int32, error) {
	rows, err := s.partitionRows(ctx, id)
	out := make(map[int32]int32, len(rows))
	for p, row := range rows {
		out[p] = row.Epoch
	}
	return out, err
}

func (s *Store) partitionRows(ctx context.Context, id ids.TopicID) (map[int32]partitionRow, error) {
	out := map[int32]partitionRow{}
	err := s.rows(ctx, partPrefix+id.String()+"/", func(it kv.Item) error {
		tp, err := parsePartition(strings.TrimPrefix(it.Key, partPrefix))
		if err != nil {
			return fmt.Errorf("%w: row %s: %w", ErrDamaged, it.Key, err)
		}
		row, err := decodePartition(it.Key, it.Value)
		out[tp.Partition] = row
		return err
	})
	return out, unavailable("read partitions of "+id.String(), err)
}
