package metadata

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// SegmentID names one object of tiered data within its partition.
type SegmentID struct {
	Base, Last  int64 // offsets, both inclusive
	Epoch       int32
	Incarnation ids.Incarnation
	Generation  int64
}

// SegmentRow is one row of the segment index: one per segment in the bucket.
type SegmentRow struct {
	TP ids.TopicPartition
	SegmentID
	Size         int64 // bytes of the object
	LogSize      int64 // bytes of batches at its start
	Records      int64
	MinTimestamp int64 // ms since 1970; -1 unknown
	MaxTimestamp int64
	LastStable   int64 // last stable offset when the segment was closed
	Uploaded     int64 // ms since 1970
}

// segmentValue is the value of a segment's row; the rest is in its key.
type segmentValue struct {
	Format       int   `json:"format"`
	Size         int64 `json:"size"`
	LogSize      int64 `json:"log_size"`
	Records      int64 `json:"records"`
	MinTimestamp int64 `json:"min_ts"`
	MaxTimestamp int64 `json:"max_ts"`
	LastStable   int64 `json:"lso"`
	Uploaded     int64 `json:"uploaded_ms"`
}

const segPrefix = "seg/"

func segRows(tp ids.TopicPartition) string {
	return segPrefix + tp.Topic.String() + "/" + strconv.Itoa(int(tp.Partition)) + "/"
}

// row is the key of a segment's row, ordered by last offset, then base offset.
func (id SegmentID) row(tp ids.TopicPartition) string {
	return fmt.Sprintf("%s%020d/%020d-%d-%s-%d", segRows(tp), id.Last, id.Base, id.Epoch, id.Incarnation, id.Generation)
}

func (id SegmentID) check() error {
	_, err := ids.ParseIncarnation(string(id.Incarnation))
	if err != nil || id.Base < 0 || id.Last < id.Base || id.Epoch < 0 || id.Generation < 0 {
		return fmt.Errorf("%w: segment id %+v", ErrInvalidRequest, id)
	}
	return nil
}

// parseSegmentRow parses a row; only the canonical key is accepted.
func parseSegmentRow(it kv.Item) (SegmentRow, error) {
	var r SegmentRow
	bad := func(err error) (SegmentRow, error) { return r, fmt.Errorf("%w: row %s: %w", ErrDamaged, it.Key, err) }
	parts := strings.Split(it.Key, "/")
	if len(parts) != 5 || parts[0]+"/" != segPrefix {
		return bad(errors.New("want seg/<topic-id>/<partition>/<last>/<base>-<epoch>-<incarnation>-<generation>"))
	}
	tp, err := parsePartition(parts[1] + "/" + parts[2])
	if err != nil {
		return bad(err)
	}
	f := strings.Split(parts[4], "-")
	if len(f) != 4 {
		return bad(errors.New("want <base>-<epoch>-<incarnation>-<generation>"))
	}
	last, err1 := strconv.ParseInt(parts[3], 10, 64)
	base, err2 := strconv.ParseInt(f[0], 10, 64)
	epoch, err3 := strconv.ParseInt(f[1], 10, 32)
	inc, err4 := ids.ParseIncarnation(f[2])
	gen, err5 := strconv.ParseInt(f[3], 10, 64)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return bad(err)
	}
	id := SegmentID{Base: base, Last: last, Epoch: int32(epoch), Incarnation: inc, Generation: gen}
	if err := id.check(); err != nil || id.row(tp) != it.Key {
		return bad(errors.New("key is not canonical"))
	}
	v, err := decodeSegment(it.Key, it.Value)
	if err != nil {
		return r, err
	}
	return SegmentRow{
		TP: tp, SegmentID: id, Size: v.Size, LogSize: v.LogSize, Records: v.Records,
		MinTimestamp: v.MinTimestamp, MaxTimestamp: v.MaxTimestamp, LastStable: v.LastStable, Uploaded: v.Uploaded,
	}, nil
}

// encode is the value of the segment's row.
func (r SegmentRow) encode() ([]byte, error) {
	return encode(segmentValue{
		Format: formatVersion, Size: r.Size, LogSize: r.LogSize, Records: r.Records,
		MinTimestamp: r.MinTimestamp, MaxTimestamp: r.MaxTimestamp, LastStable: r.LastStable, Uploaded: r.Uploaded,
	})
}

// AddSegment indexes an uploaded segment, conditional on no greater leader
// epoch having written to the partition (ErrFenced), and fences lower ones.
// Adding a segment again is no error and keeps the row that is there.
func (s *Store) AddSegment(ctx context.Context, r SegmentRow) error {
	return s.ReplaceSegments(ctx, r, nil)
}

// MaxReplaced is how many segments one ReplaceSegments can take the place of,
// so that it is one commit.
const MaxReplaced = kv.MaxCommitKeys - 4

// ReplaceSegments indexes a segment as AddSegment does and removes the rows of
// those that it takes the place of, of the same partition and at most
// MaxReplaced, in one commit. Absent ones are no error. When the row is there
// already, an earlier call's answer was lost: the rows went with it.
func (s *Store) ReplaceSegments(ctx context.Context, r SegmentRow, replaced []SegmentID) error {
	return s.replaceSegments(ctx, r.Epoch, r, replaced)
}

// RestoreSegment indexes a segment that an earlier leader has uploaded, as the leader of epoch: the
// store had forgotten it.
func (s *Store) RestoreSegment(ctx context.Context, r SegmentRow, epoch int32) error {
	return s.replaceSegments(ctx, max(epoch, r.Epoch), r, nil)
}

func (s *Store) replaceSegments(ctx context.Context, epoch int32, r SegmentRow, replaced []SegmentID) error {
	if err := r.check(); err != nil {
		return err
	}
	if len(replaced) > MaxReplaced {
		return fmt.Errorf("%w: %d segments to replace, at most %d", ErrInvalidRequest, len(replaced), MaxReplaced)
	}
	key := r.row(r.TP)
	drop := make([]kv.Op, len(replaced))
	for i, id := range replaced {
		if err := id.check(); err != nil {
			return err
		}
		if drop[i] = (kv.Op{Key: id.row(r.TP), Delete: true}); drop[i].Key == key {
			return fmt.Errorf("%w: segment %s is to replace itself", ErrInvalidRequest, key)
		}
	}
	v, err := r.encode()
	if err != nil {
		return err
	}
	err = s.update(ctx, func() ([]kv.Op, []kv.Precondition, error) {
		op, pre, err := s.raiseOp(ctx, r.TP, partitionRow{Epoch: epoch})
		if err != nil {
			return nil, nil, err
		}
		it, err := s.row(ctx, key)
		if err != nil {
			return nil, nil, err
		}
		if it.Revision != 0 {
			return nil, nil, s.sameSegment(it, r)
		}
		ops := append([]kv.Op{{Key: key, Value: v}}, drop...)
		if op != nil {
			ops = append(ops, *op)
		}
		return ops, []kv.Precondition{pre, {Key: key}}, nil
	})
	if err == nil {
		s.parts.raise(r.TP, partitionRow{Epoch: epoch})
	}
	return unavailable("index segment of "+r.TP.String(), err)
}

// sameSegment refuses a second segment under a name that is taken: names are
// unique, so the two can only differ by a bug or damage.
func (s *Store) sameSegment(it kv.Item, r SegmentRow) error {
	have, err := parseSegmentRow(it)
	if err != nil {
		return err
	}
	r.Uploaded = have.Uploaded
	if have != r {
		return fmt.Errorf("%w: segment %s is indexed as %+v, not %+v", ErrInvalidRequest, it.Key, have, r)
	}
	return nil
}

// Segments returns the rows of a partition that hold an offset >= from, in
// order of Last, at most limit (1 or more).
func (s *Store) Segments(ctx context.Context, tp ids.TopicPartition, from int64, limit int) ([]SegmentRow, error) {
	prefix, after := segRows(tp), ""
	if from > 0 {
		after = fmt.Sprintf("%s%020d0", prefix, from-1) // '0' follows '/': behind all rows with Last = from-1
	}
	var out []SegmentRow
	for len(out) < limit {
		n := min(limit-len(out), kv.MaxRangeItems)
		items, err := s.rangeRows(ctx, prefix, after, n, false)
		if err != nil {
			return nil, unavailable("read segments of "+tp.String(), err)
		}
		for _, it := range items {
			r, err := parseSegmentRow(it)
			if err != nil {
				return nil, err
			}
			out = append(out, r)
			after = it.Key
		}
		if len(items) < n {
			break
		}
	}
	return out, nil
}

func (s *Store) rangeRows(ctx context.Context, prefix, after string, n int, reverse bool) (items []kv.Item, err error) {
	err = s.retry(ctx, func() (err error) {
		items, err = s.opts.KV.Range(ctx, prefix, after, n, reverse)
		return err
	})
	return items, err
}

// LastSegment returns the row with the greatest Last; false: there is none.
func (s *Store) LastSegment(ctx context.Context, tp ids.TopicPartition) (SegmentRow, bool, error) {
	items, err := s.rangeRows(ctx, segRows(tp), "", 1, true)
	if err != nil || len(items) == 0 {
		return SegmentRow{}, false, unavailable("read segments of "+tp.String(), err)
	}
	r, err := parseSegmentRow(items[0])
	return r, err == nil, err
}

// ScanSegments calls f with all rows of a topic, or with a zero id of all
// topics, until f returns an error, which it returns.
func (s *Store) ScanSegments(ctx context.Context, topic ids.TopicID, f func(SegmentRow) error) error {
	prefix := segPrefix
	if !topic.IsZero() {
		prefix += topic.String() + "/"
	}
	var own error
	err := s.rows(ctx, prefix, func(it kv.Item) error {
		r, err := parseSegmentRow(it)
		if err == nil {
			err = f(r)
		}
		own = err
		return err
	})
	if own != nil {
		return own
	}
	return unavailable("scan segments", err)
}

// DropSegments removes rows; absent ones are no error. The objects go later.
// More than about a hundred are dropped in several steps, oldest first as given.
func (s *Store) DropSegments(ctx context.Context, tp ids.TopicPartition, segments []SegmentID) error {
	keys := make([]string, len(segments))
	for i, id := range segments {
		if err := id.check(); err != nil {
			return err
		}
		keys[i] = id.row(tp)
	}
	return unavailable("drop segments of "+tp.String(), s.deleteRows(ctx, keys))
}
