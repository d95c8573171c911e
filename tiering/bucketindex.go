package tiering

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// ErrReadOnly is returned when an index without a metadata store is changed.
var ErrReadOnly = errors.New("tiering: this index is read-only")

// ErrDamaged is wrapped when the bucket's bytes are not those that were
// written, even after they were fetched again. They are never served.
var ErrDamaged = errors.New("tiering: damaged object")

// BucketIndex is an Index made of nothing but the bucket: LIST says which
// segments there are, their footers say the rest. It serves reads while the
// metadata store and every agent are away. Add and Drop fail with ErrReadOnly.
// It may be used concurrently.
type BucketIndex struct {
	bucket objstore.Reader
	now    func() time.Time

	mu    sync.Mutex
	lists map[ids.TopicPartition]listing
	rows  map[SegmentKey]Segment
}

// listing is what one LIST of a partition found, ordered by Last.
type listing struct {
	at      time.Time
	objects []object
}

const (
	listingAge  = 10 * time.Second // after which a partition is listed again
	maxListings = 64
	maxRows     = 1 << 16
	footerGets  = 8 // footers read at once
)

// NewBucketIndex returns the index of a bucket.
func NewBucketIndex(b objstore.Reader) *BucketIndex {
	return &BucketIndex{bucket: b, now: time.Now, lists: map[ids.TopicPartition]listing{}, rows: map[SegmentKey]Segment{}}
}

// Partitions returns the partitions of a topic that have segments, in order.
func (x *BucketIndex) Partitions(ctx context.Context, topic ids.TopicID) ([]int32, error) {
	var out []int32
	prefix := DataPrefix + topic.String() + "/"
	for after := prefix; ; {
		page, _, err := x.bucket.List(ctx, prefix, after, 1)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", prefix, err)
		}
		if len(page) == 0 {
			slices.Sort(out)
			return out, nil
		}
		after = page[0].Key
		if k, err := ParseSegmentKey(after); err == nil {
			out = append(out, k.TP.Partition)
			after = endOfPartition(after)
		}
	}
}

// Segments implements Index. Each row costs one GET of a footer the first
// time. The row of an object whose footer is damaged has a LogSize of -1.
func (x *BucketIndex) Segments(ctx context.Context, tp ids.TopicPartition, from int64, limit int) ([]Segment, error) {
	objects, err := x.list(ctx, tp)
	if err != nil {
		return nil, err
	}
	i, _ := slices.BinarySearchFunc(objects, from, func(o object, t int64) int { return cmp.Compare(o.Last, t) })
	objects = objects[i:min(len(objects), i+max(limit, 0))]
	rows := make([]Segment, len(objects))
	errs := make([]error, len(objects))
	var wg sync.WaitGroup
	slots := make(chan struct{}, footerGets)
	for i, ob := range objects {
		if row, ok := x.cached(ob.SegmentKey); ok {
			rows[i] = row
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			rows[i], errs[i] = readRow(ctx, x.bucket, ob.info)
			switch {
			case errs[i] == nil:
				x.cache(rows[i])
			case errors.Is(errs[i], objstore.ErrNotFound):
				errs[i] = nil // deleted since the list was read; left out below
			case errors.Is(errs[i], ErrDamaged):
				// Its reads fail, those of its neighbours do not.
				rows[i], errs[i] = Segment{SegmentKey: ob.SegmentKey, Size: ob.info.Size, LogSize: -1, MinTimestamp: -1, MaxTimestamp: -1}, nil
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("read segments of %s: %w", tp, err)
	}
	return slices.DeleteFunc(rows, func(r Segment) bool { return r.Size == 0 }), nil
}

// Add implements Index; it always fails.
func (x *BucketIndex) Add(context.Context, Segment) error { return ErrReadOnly }

// Drop implements Index; it always fails.
func (x *BucketIndex) Drop(context.Context, ids.TopicPartition, []SegmentKey) error {
	return ErrReadOnly
}

func (x *BucketIndex) cached(k SegmentKey) (Segment, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r, ok := x.rows[k]
	return r, ok
}

func (x *BucketIndex) cache(r Segment) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.rows) >= maxRows {
		clear(x.rows)
	}
	x.rows[r.SegmentKey] = r
}

// list returns the objects of a partition ordered by Last.
func (x *BucketIndex) list(ctx context.Context, tp ids.TopicPartition) ([]object, error) {
	x.mu.Lock()
	l, ok := x.lists[tp]
	x.mu.Unlock()
	if ok && x.now().Sub(l.at) < listingAge {
		return l.objects, nil
	}
	l = listing{at: x.now()}
	prefix, after := PartitionPrefix(tp), ""
	for more := true; more; {
		var page []objstore.ObjectInfo
		var err error
		if page, more, err = x.bucket.List(ctx, prefix, after, 1000); err != nil {
			return nil, fmt.Errorf("list %s: %w", prefix, err)
		}
		for _, info := range page {
			after = info.Key
			if k, err := ParseSegmentKey(info.Key); err == nil {
				l.objects = append(l.objects, object{k, info})
			}
		}
		more = more && len(page) > 0
	}
	slices.SortFunc(l.objects, func(a, b object) int {
		return cmp.Or(cmp.Compare(a.Last, b.Last), cmp.Compare(a.info.Key, b.info.Key))
	})
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.lists) >= maxListings {
		clear(x.lists)
	}
	x.lists[tp] = l
	return l.objects, nil
}

// readRow makes an object's row from its key and footer.
func readRow(ctx context.Context, b objstore.Reader, info objstore.ObjectInfo) (Segment, error) {
	k, err := ParseSegmentKey(info.Key)
	if err != nil {
		return Segment{}, err
	}
	if info.Size < segment.FooterSize {
		return Segment{}, fmt.Errorf("read footer of %s: %w: %d bytes", info.Key, ErrDamaged, info.Size)
	}
	f, err := readFooter(ctx, b, info)
	if err != nil && (errors.Is(err, ErrDamaged) || errors.Is(err, segment.ErrVersion)) {
		f, err = readFooter(ctx, b, info) // the way may have damaged it
	}
	if err != nil {
		return Segment{}, err
	}
	row := Segment{
		SegmentKey: k, Size: info.Size, LogSize: f.Meta.LogSize, Records: f.Meta.Records,
		MinTimestamp: f.Meta.MinTimestamp, MaxTimestamp: f.Meta.MaxTimestamp,
		LastStable: f.Meta.LastStable, Uploaded: info.Modified.UnixMilli(),
	}
	if err := matches(row, f.Meta); err != nil {
		return Segment{}, err
	}
	if f.TrailerSize+f.Meta.LogSize != info.Size {
		return Segment{}, fmt.Errorf("read footer of %s: %w: %d bytes, the footer says %d", info.Key, ErrDamaged, info.Size, f.TrailerSize+f.Meta.LogSize)
	}
	return row, nil
}

// footerAttempts is how often a footer is asked for while the store is busy.
const footerAttempts = 6

// readFooter reads and parses an object's footer.
func readFooter(ctx context.Context, b objstore.Reader, info objstore.ObjectInfo) (segment.Footer, error) {
	for attempt := 1; ; attempt++ {
		foot, err := getAll(ctx, b, info.Key, info.Size-segment.FooterSize, segment.FooterSize)
		if err == nil {
			f, err := segment.ParseFooter(foot)
			switch {
			case errors.Is(err, segment.ErrVersion):
				return f, fmt.Errorf("read footer of %s: %w", info.Key, err)
			case err != nil:
				return f, fmt.Errorf("read footer of %s: %w: %w", info.Key, ErrDamaged, err)
			}
			return f, nil
		}
		if !objstore.Retriable(err) || attempt == footerAttempts {
			return segment.Footer{}, err
		}
		if err := sleep(ctx, backoff{100 * time.Millisecond, 2 * time.Second}.wait(attempt)); err != nil {
			return segment.Footer{}, err
		}
	}
}

// matches checks that a row and the footer of its object are of one segment.
func matches(row Segment, m segment.Meta) error {
	if m.TP != row.TP || m.Base != row.Base || m.Last != row.Last || m.LogSize != row.LogSize {
		return fmt.Errorf("%w: footer of %s is of %s %d-%d, %d bytes", ErrDamaged, row.Key(), m.TP, m.Base, m.Last, m.LogSize)
	}
	return nil
}
