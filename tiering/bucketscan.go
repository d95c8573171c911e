package tiering

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// How much of a bucket ScanBucket looks at at the same time.
const (
	scanPartitions = 8
	scanFooters    = 64 // of all partitions
)

// BucketPartition is what a bucket has of a partition.
type BucketPartition struct {
	TP ids.TopicPartition
	// Rows are the segments that count, by offset: without those whose offsets ones of a higher generation,
	// or longer ones, have.
	Rows []Segment
	// Damaged are the objects whose footers can't be read.
	Damaged []DamagedObject
}

// DamagedObject is an object that is no segment, or not any more, by its key one of the partition.
type DamagedObject struct {
	SegmentKey
	Err error
}

// Gaps returns the offset ranges that no row has, from start on up to the end of the last row.
func (p *BucketPartition) Gaps(start int64) (gaps [][2]int64) {
	for _, r := range p.Rows {
		if r.Base > start {
			gaps = append(gaps, [2]int64{start, r.Base})
		}
		start = max(start, r.Last+1)
	}
	return gaps
}

// ScanBucket reads the footers of all segments of the topics that want asks for, and calls f, from several
// goroutines, once with each partition that has objects. It needs no index. The first error ends it.
func ScanBucket(ctx context.Context, b objstore.Reader, want func(ids.TopicID) bool, f func(context.Context, *BucketPartition) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(scanPartitions)
	slots := make(chan struct{}, scanFooters)
	one := func(objects []object) {
		if len(objects) == 0 {
			return
		}
		g.Go(func() error {
			p, err := scanPartition(ctx, b, objects, slots)
			if err != nil {
				return fmt.Errorf("read segments of %s: %w", objects[0].TP, err)
			}
			return f(ctx, p)
		})
	}
	err := eachObject(ctx, b, want, one)
	return errors.Join(g.Wait(), err)
}

// eachObject lists everything under data/ and calls f with all objects of a partition at once.
func eachObject(ctx context.Context, b objstore.Reader, want func(ids.TopicID) bool, f func([]object)) error {
	var part []object
	after := ""
	for more := true; more; {
		var page []objstore.ObjectInfo
		err := (objstore.Retry{}).Do(ctx, func() (err error) {
			page, more, err = b.List(ctx, DataPrefix, after, 1000)
			return err
		})
		if err != nil {
			return fmt.Errorf("list %s: %w", DataPrefix, err)
		}
		for _, info := range page {
			after = info.Key
			key, err := ParseSegmentKey(info.Key)
			if err != nil || !want(key.TP.Topic) {
				continue
			}
			if len(part) > 0 && part[0].TP != key.TP {
				f(part)
				part = nil
			}
			part = append(part, object{key, info})
		}
	}
	f(part)
	return nil
}

func scanPartition(ctx context.Context, b objstore.Reader, objects []object, slots chan struct{}) (*BucketPartition, error) {
	p := &BucketPartition{TP: objects[0].TP}
	rows, errs := make([]Segment, len(objects)), make([]error, len(objects))
	var g errgroup.Group
	for i, ob := range objects {
		slots <- struct{}{}
		g.Go(func() error {
			defer func() { <-slots }()
			rows[i], errs[i] = readRow(ctx, b, ob.info)
			return nil
		})
	}
	_ = g.Wait() // never fails
	var there []Segment
	for i, err := range errs {
		switch {
		case err == nil:
			there = append(there, rows[i])
		case errors.Is(err, objstore.ErrNotFound): // swept meanwhile
		case errors.Is(err, ErrDamaged), errors.Is(err, segment.ErrVersion):
			p.Damaged = append(p.Damaged, DamagedObject{objects[i].SegmentKey, err})
		default:
			return nil, err
		}
	}
	slices.SortFunc(there, func(a, b Segment) int { return cmp.Compare(a.Last, b.Last) })
	p.Rows = winners(there)
	return p, nil
}
