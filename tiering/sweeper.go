package tiering

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// TopicState is what the bucket says of a topic.
type TopicState struct {
	Known     bool // an object of the bucket names this topic id
	Deleted   bool
	DeletedAt time.Time // when the deletion became durable in the bucket
}

// LogStart is a partition's durable log start in the bucket.
type LogStart struct {
	Offset int64
	Since  time.Time // when it became durable
}

// Proofs answers from the bucket, never from the metadata store, what may be
// deleted. What it says is final: a deleted topic stays deleted, a log start
// never goes back.
type Proofs interface {
	Topic(ctx context.Context, id ids.TopicID) (TopicState, error)
	// LogStart returns the zero value when the bucket has none.
	LogStart(ctx context.Context, tp ids.TopicPartition) (LogStart, error)
}

// MultipartAborter is implemented by buckets that can have unfinished uploads.
type MultipartAborter interface {
	// AbortUploads gives up uploads under prefix that began before the given
	// time, or only counts them.
	AbortUploads(ctx context.Context, prefix string, before time.Time, dryRun bool) (n int, err error)
}

// SweepOptions are what a sweep needs. Bucket, Index and Proofs are required;
// the zero value of the others is their default.
type SweepOptions struct {
	Bucket objstore.Bucket
	Index  Index
	Proofs Proofs
	// Grace is how long after its proof an object stays, for readers that
	// still hold its row. Default 1 h.
	Grace time.Duration
	// Settle is how old an object must be before the lack of a row counts: a
	// younger one may be between put and index. Default 10 min.
	Settle time.Duration
	DryRun bool             // change nothing, only report
	Now    func() time.Time // default: time.Now
	Logger *slog.Logger     // default: discard
	// After is the key of an earlier report's Last: the sweep goes on behind
	// its partition.
	After string
	// OnItem is told what is (or with DryRun would be) done to each object
	// that does not simply stay.
	OnItem func(SweepItem)
}

func (o *SweepOptions) setDefaults() error {
	if o.Bucket == nil || o.Index == nil || o.Proofs == nil {
		return errors.New("sweep: bucket, index and proofs are required")
	}
	o.Grace = orDefault(o.Grace, time.Hour)
	o.Settle = orDefault(o.Settle, 10*time.Minute)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// SweepAction says what happens to an object, or to a row without one.
type SweepAction string

// What a sweep does.
const (
	SweepDeleteTopic    SweepAction = "delete: topic deleted"
	SweepDeleteLogStart SweepAction = "delete: below log start"
	SweepDeleteCovered  SweepAction = "delete: covered by a higher generation"
	SweepGrace          SweepAction = "keep: dead, within grace"
	SweepReindex        SweepAction = "index again"
	SweepUnknownTopic   SweepAction = "keep: the bucket knows no such topic"
	SweepRewritten      SweepAction = "keep: not indexed, compaction has or had its offsets in another"
	SweepFenced         SweepAction = "keep: not indexed, of an older epoch"
	SweepForeign        SweepAction = "keep: not a segment's key"
	SweepMissing        SweepAction = "missing: indexed, not in the bucket"
	SweepFailed         SweepAction = "failed"
)

// SweepItem is one object that a sweep reports.
type SweepItem struct {
	Key    string
	Bytes  int64
	Action SweepAction
	Err    error // of SweepFailed
}

// SweepCount counts objects and their bytes.
type SweepCount struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// SweepReport is what a sweep found and did.
type SweepReport struct {
	Seen        SweepCount                 `json:"seen"`
	Deleted     SweepCount                 `json:"deleted"` // with DryRun: would be
	RowsDropped int64                      `json:"rows_dropped"`
	Uploads     int                        `json:"uploads"` // unfinished multipart uploads given up
	By          map[SweepAction]SweepCount `json:"by"`
	// Last is the last key of the last partition that is finished; with Done
	// false, the After of a sweep that goes on.
	Last string `json:"last"`
	Done bool   `json:"done"`
}

func (r *SweepReport) count(a SweepAction, bytes int64) {
	c := r.By[a]
	c.Objects++
	c.Bytes += bytes
	r.By[a] = c
}

// Sweep looks at every object under data/ once and deletes those of which the
// bucket proves that nobody needs them: their topic is deleted, they are
// wholly below the durable log start, or a higher generation holds all their
// offsets. The index is never a proof: what it does not list and nothing
// proves dead is indexed again. Rows go before bytes, and bytes only after
// the grace period. Sweep needs no agent, and several may run at once. An
// error ends the sweep; the report is valid up to there.
func Sweep(ctx context.Context, o SweepOptions) (SweepReport, error) {
	report := SweepReport{By: map[SweepAction]SweepCount{}}
	if err := o.setDefaults(); err != nil {
		return report, err
	}
	s := &sweep{SweepOptions: o, report: &report}
	after := ""
	if o.After != "" {
		after = endOfPartition(o.After)
	}
	if err := s.walk(ctx, after); err != nil {
		return report, fmt.Errorf("sweep: %w", err)
	}
	if a, ok := o.Bucket.(MultipartAborter); ok {
		n, err := a.AbortUploads(ctx, DataPrefix, o.Now().Add(-o.Grace), o.DryRun)
		report.Uploads = n
		if err != nil {
			return report, fmt.Errorf("sweep: abort unfinished uploads: %w", err)
		}
	}
	report.Done = true
	return report, nil
}

// endOfPartition returns a key behind all those of the partition that key is in.
func endOfPartition(key string) string {
	k, err := ParseSegmentKey(key)
	if err != nil {
		return key
	}
	return PartitionPrefix(k.TP) + "~"
}

type sweep struct {
	SweepOptions
	report *SweepReport
}

// object is one segment found in the bucket.
type object struct {
	SegmentKey
	info objstore.ObjectInfo
}

// walk lists everything under data/ and handles one partition after the
// other; only one partition's objects are in memory.
func (s *sweep) walk(ctx context.Context, after string) error {
	var part []object
	for more := true; more; {
		var page []objstore.ObjectInfo
		var err error
		page, more, err = s.Bucket.List(ctx, DataPrefix, after, 1000)
		if err != nil {
			return fmt.Errorf("list %s: %w", DataPrefix, err)
		}
		for _, info := range page {
			after = info.Key
			s.report.Seen.Objects++
			s.report.Seen.Bytes += info.Size
			key, err := ParseSegmentKey(info.Key)
			if err != nil {
				s.item(info.Key, info.Size, SweepForeign)
				continue
			}
			if len(part) > 0 && part[0].TP != key.TP {
				if err := s.partition(ctx, part); err != nil {
					return err
				}
				part = part[:0]
			}
			part = append(part, object{key, info})
		}
	}
	if len(part) == 0 {
		return nil
	}
	return s.partition(ctx, part)
}

func (s *sweep) item(key string, bytes int64, a SweepAction) {
	s.report.count(a, bytes)
	if s.OnItem != nil {
		s.OnItem(SweepItem{Key: key, Bytes: bytes, Action: a})
	}
}

func (s *sweep) failed(key string, bytes int64, err error) {
	s.report.count(SweepFailed, bytes)
	s.Logger.Warn("sweep failed for an object", "key", key, "err", err)
	if s.OnItem != nil {
		s.OnItem(SweepItem{Key: key, Bytes: bytes, Action: SweepFailed, Err: err})
	}
}

// partition handles all objects of one partition.
func (s *sweep) partition(ctx context.Context, objects []object) error {
	tp := objects[0].TP
	rows, err := allRows(ctx, s.Index, tp)
	if err != nil {
		return fmt.Errorf("read rows of %s: %w", tp, err)
	}
	indexed := make(map[SegmentKey]bool, len(rows))
	for _, r := range rows {
		indexed[r.SegmentKey] = true
	}
	p, err := s.prove(ctx, tp, objects, indexed)
	if err != nil {
		return err
	}
	var dead []object // grace is over: bytes may go
	var drop []SegmentKey
	for _, ob := range objects {
		action, since := p.verdict(ob)
		switch {
		case action == "":
			s.keep(ctx, p, ob, indexed[ob.SegmentKey], rows)
			continue
		case s.Now().Sub(since) <= s.Grace:
			s.item(ob.info.Key, ob.info.Size, SweepGrace)
		default:
			dead = append(dead, ob)
			s.item(ob.info.Key, ob.info.Size, action)
		}
		if indexed[ob.SegmentKey] {
			drop = append(drop, ob.SegmentKey)
		}
	}
	s.missing(ctx, p, rows, objects, &drop)
	if err := s.remove(ctx, tp, drop, dead); err != nil {
		return err
	}
	s.report.Last = objects[len(objects)-1].info.Key
	return nil
}

// keep handles an object that nothing proves dead.
func (s *sweep) keep(ctx context.Context, p *proof, ob object, indexed bool, rows []Segment) {
	switch {
	case indexed:
		return
	case !p.topic.Known:
		s.item(ob.info.Key, ob.info.Size, SweepUnknownTopic)
		return
	case s.Now().Sub(ob.info.Modified) <= s.Settle:
		return // its uploader may be about to index it
	case rewritten(ob, rows):
		s.item(ob.info.Key, ob.info.Size, SweepRewritten)
		return
	}
	if s.DryRun {
		s.item(ob.info.Key, ob.info.Size, SweepReindex)
		return
	}
	row, err := readRow(ctx, s.Bucket, ob.info)
	if err == nil {
		err = s.Index.Add(ctx, row)
	}
	switch {
	case errors.Is(err, ErrFenced):
		s.item(ob.info.Key, ob.info.Size, SweepFenced)
	case err != nil:
		s.failed(ob.info.Key, ob.info.Size, fmt.Errorf("index again: %w", err))
	default:
		s.item(ob.info.Key, ob.info.Size, SweepReindex)
		s.Logger.Info("indexed a segment again", "key", ob.info.Key)
	}
}

// rewritten tells of an object without a row whether compaction explains that:
// it has been replaced since the list was read, or it is a rewrite that never
// got its row, while others hold its offsets. Such a rewrite must not get one
// later: what it says of the log was true when it was made, but not of what was
// cleaned since. The next pass over its offsets covers it.
func rewritten(ob object, rows []Segment) bool {
	var held ranges
	for _, r := range rows {
		if ob.Generation > 0 || r.Generation > 0 {
			held.add(r.Base, r.Last)
		}
	}
	return len(held) > 0 && held.hold(ob.Base, ob.Last)
}

// missing looks for rows whose object is not there. One that is provably dead
// is dropped; any other is a loss and only reported.
func (s *sweep) missing(ctx context.Context, p *proof, rows []Segment, objects []object, drop *[]SegmentKey) {
	there := make(map[SegmentKey]bool, len(objects))
	for _, ob := range objects {
		there[ob.SegmentKey] = true
	}
	for _, r := range rows {
		if there[r.SegmentKey] {
			continue
		}
		if action, _ := p.verdict(object{SegmentKey: r.SegmentKey}); action == SweepDeleteTopic || action == SweepDeleteLogStart {
			*drop = append(*drop, r.SegmentKey)
			continue
		}
		// It may have been put after the list was read.
		if _, err := s.Bucket.Head(ctx, r.Key()); errors.Is(err, objstore.ErrNotFound) {
			s.item(r.Key(), r.Size, SweepMissing)
			s.Logger.Error("indexed segment is not in the bucket", "key", r.Key())
		}
	}
}

// remove drops rows, makes sure that they are gone, and deletes objects.
func (s *sweep) remove(ctx context.Context, tp ids.TopicPartition, drop []SegmentKey, dead []object) error {
	s.report.RowsDropped += int64(len(drop))
	for _, ob := range dead {
		s.report.Deleted.Objects++
		s.report.Deleted.Bytes += ob.info.Size
	}
	if s.DryRun {
		return nil
	}
	if len(drop) > 0 {
		if err := s.Index.Drop(ctx, tp, drop); err != nil {
			return fmt.Errorf("drop rows of %s: %w", tp, err)
		}
	}
	if len(dead) == 0 {
		return nil
	}
	rows, err := allRows(ctx, s.Index, tp)
	if err != nil {
		return fmt.Errorf("read rows of %s: %w", tp, err)
	}
	referenced := make(map[SegmentKey]bool, len(rows))
	for _, r := range rows {
		referenced[r.SegmentKey] = true
	}
	return s.deleteObjects(ctx, dead, referenced)
}

// deleteObjects is the only place that deletes from data/. It never deletes
// what the index still lists.
func (s *sweep) deleteObjects(ctx context.Context, dead []object, referenced map[SegmentKey]bool) error {
	sizes := make(map[string]int64, len(dead))
	var keys []string
	for _, ob := range dead {
		if referenced[ob.SegmentKey] {
			s.undelete(ob.info.Key, ob.info.Size, errors.New("still indexed"))
			continue
		}
		sizes[ob.info.Key] = ob.info.Size
		keys = append(keys, ob.info.Key)
	}
	for len(keys) > 0 {
		n := min(len(keys), 1000)
		failed, err := s.Bucket.DeleteMany(ctx, keys[:n])
		if err != nil {
			return fmt.Errorf("delete %d objects: %w", n, err)
		}
		for key, err := range failed {
			s.undelete(key, sizes[key], err)
		}
		keys = keys[n:]
	}
	return nil
}

func (s *sweep) undelete(key string, bytes int64, err error) {
	s.report.Deleted.Objects--
	s.report.Deleted.Bytes -= bytes
	s.failed(key, bytes, fmt.Errorf("delete: %w", err))
}

// allRows reads every row of a partition.
func allRows(ctx context.Context, index Index, tp ids.TopicPartition) ([]Segment, error) {
	const page = 1000
	var rows []Segment
	seen := map[SegmentKey]bool{}
	for from := int64(0); ; {
		got, err := index.Segments(ctx, tp, from, page)
		if err != nil {
			return nil, err
		}
		fresh := 0
		for _, r := range got {
			if !seen[r.SegmentKey] {
				seen[r.SegmentKey] = true
				rows = append(rows, r)
				fresh++
			}
		}
		if len(got) < page || fresh == 0 {
			return rows, nil
		}
		from = got[len(got)-1].Last
	}
}
