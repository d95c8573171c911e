// Package tiering moves closed segments to the bucket and reads them back:
// Uploader, Reader and Sweeper. It knows of local storage only through Source,
// and of the metadata store only through Index.
package tiering

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
)

// DataPrefix is where segments live in the bucket.
const DataPrefix = "data/"

// ErrNoSegment: no indexed segment holds the offset.
var ErrNoSegment = errors.New("tiering: no segment holds the offset")

// GapError is an ErrNoSegment of the offsets [From, To), which lie between indexed segments.
type GapError struct {
	TP       ids.TopicPartition
	From, To int64
}

func (e *GapError) Error() string {
	return fmt.Sprintf("%v: %s from %d to %d", ErrNoSegment, e.TP, e.From, e.To-1)
}

func (e *GapError) Unwrap() error { return ErrNoSegment }

// SegmentKey names one object of tiered data.
type SegmentKey struct {
	TP          ids.TopicPartition
	Base, Last  int64 // offsets, both inclusive
	Epoch       int32 // leader epoch of the writer
	Incarnation ids.Incarnation
	Generation  int64 // 0 for the original, greater for rewrites (compaction)
}

// Key returns the bucket key:
// data/<topic-id>/<partition>/<base:020d>-<last:020d>-<epoch>-<incarnation>[-g<generation>].
func (k SegmentKey) Key() string {
	s := fmt.Sprintf("%s%s/%d/%020d-%020d-%d-%s", DataPrefix, k.TP.Topic, k.TP.Partition, k.Base, k.Last, k.Epoch, k.Incarnation)
	if k.Generation > 0 {
		s += "-g" + strconv.FormatInt(k.Generation, 10)
	}
	return s
}

// PartitionPrefix is the prefix of all segments of a partition.
func PartitionPrefix(tp ids.TopicPartition) string {
	return fmt.Sprintf("%s%s/%d/", DataPrefix, tp.Topic, tp.Partition)
}

// ParseSegmentKey parses the form of Key. Only the canonical form is accepted.
func ParseSegmentKey(s string) (SegmentKey, error) {
	bad := func(why string) (SegmentKey, error) {
		return SegmentKey{}, fmt.Errorf("parse segment key %q: %s", s, why)
	}
	parts := strings.Split(strings.TrimPrefix(s, DataPrefix), "/")
	if !strings.HasPrefix(s, DataPrefix) || len(parts) != 3 {
		return bad("want data/<topic-id>/<partition>/<name>")
	}
	var k SegmentKey
	var err error
	if k.TP.Topic, err = ids.ParseTopicID(parts[0]); err != nil {
		return bad(err.Error())
	}
	if k.TP.Partition, err = ids.ParsePartition(parts[1]); err != nil {
		return bad(err.Error())
	}
	f := strings.Split(parts[2], "-")
	if len(f) != 4 && len(f) != 5 {
		return bad("want <base>-<last>-<epoch>-<incarnation>[-g<generation>]")
	}
	base, err1 := strconv.ParseInt(f[0], 10, 64)
	last, err2 := strconv.ParseInt(f[1], 10, 64)
	epoch, err3 := strconv.ParseInt(f[2], 10, 32)
	inc, err4 := ids.ParseIncarnation(f[3])
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return bad(err.Error())
	}
	k.Base, k.Last, k.Epoch, k.Incarnation = base, last, int32(epoch), inc
	if len(f) == 5 {
		g, ok := strings.CutPrefix(f[4], "g")
		n, err := strconv.ParseInt(g, 10, 64)
		if !ok || err != nil || n <= 0 {
			return bad("bad generation")
		}
		k.Generation = n
	}
	if base < 0 || last < base || epoch < 0 || k.Key() != s {
		return bad("not canonical")
	}
	return k, nil
}

// Segment is one row of the segment index.
type Segment struct {
	SegmentKey
	Size         int64 // bytes of the object
	LogSize      int64 // bytes of batches at its start; the trailer follows
	Records      int64
	MinTimestamp int64 // of the batches, ms since 1970; -1 unknown
	MaxTimestamp int64
	LastStable   int64 // last stable offset when the segment was closed
	Uploaded     int64 // ms since 1970, by the uploader's clock
}

// Index is the segment index of the metadata store. Rows are small and few:
// one per segment, never one per batch.
type Index interface {
	// Segments returns the rows of a partition that hold an offset >= from, in
	// order of Last, at most limit.
	Segments(ctx context.Context, tp ids.TopicPartition, from int64, limit int) ([]Segment, error)
	// Add indexes an uploaded segment, conditional on the leader epoch not
	// having passed s.Epoch. Adding the same row again is no error.
	Add(ctx context.Context, s Segment) error
	// Drop removes rows; absent ones are no error. The objects go later.
	Drop(ctx context.Context, tp ids.TopicPartition, keys []SegmentKey) error
}

// Source is a closed local segment as the uploader sees it: its bytes, already
// in the form of the object (batches, then trailer), and what the row says.
// The uploader closes it; until then the files under it stay.
type Source interface {
	io.ReaderAt
	io.Closer
	// Size is the object's size in bytes.
	Size() int64
	// CRC32C of the whole object, known from the append path and not read back
	// from the disk, so that the store refuses bytes the disk has damaged.
	CRC32C() uint32
	// Segment is the index row, Incarnation, Size and Uploaded filled by the uploader.
	Segment() Segment
}

// Local is the local side of tiering: what is closed and not yet known to be tiered.
type Local interface {
	// Closed returns the oldest closed local segment of each partition that has
	// one, of those that have remote storage enabled and reach beyond their
	// tiered end; those that waited longest first, at most limit.
	Closed(limit int) []LocalSegment
	// Lag sums up all such segments.
	Lag() Lag
	// Tiered says that offsets up to and including s.Last are in the bucket and indexed.
	Tiered(s Segment)
}

// Lag is what is closed and not tiered.
type Lag struct {
	Segments int
	Bytes    int64     // of their objects
	Oldest   time.Time // when the first of them was closed; zero without one
}

// LocalSegment is a closed segment that can be opened for upload.
type LocalSegment struct {
	TP         ids.TopicPartition
	Base, Last int64
	Bytes      int64
	ClosedAt   time.Time
	Open       func() (Source, error)
}
