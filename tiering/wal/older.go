package wal

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Older reads what ranges of older streams have of partitions. It remembers the
// footers that it has read, as many partitions share them. It is safe for concurrent use.
type Older struct {
	Bucket  objstore.Reader
	mu      sync.Mutex
	streams map[ids.Incarnation]*olderStream
}

// olderStream is what was read of a stream.
type olderStream struct {
	of      map[ids.TopicPartition][]Placed
	read    map[uint64]bool // objects whose batches are in of
	present map[uint64]bool // objects of the last list
	fresh   bool            // it need not be listed again
}

// Refresh has the next Batches look at each stream again. Footers that were read are not read again.
func (o *Older) Refresh() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.streams {
		s.fresh = false
	}
}

// Read reads a stream's footers ahead.
func (o *Older) Read(ctx context.Context, inc ids.Incarnation) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err := o.streamLocked(ctx, inc)
	return err
}

// Batches returns the batches of a partition in the ranges, by offset. Objects that are
// no longer there had nothing that is not tiered.
func (o *Older) Batches(ctx context.Context, tp ids.TopicPartition, ranges []OlderRange) ([]Placed, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var t Tail
	for _, r := range ranges {
		s, err := o.streamLocked(ctx, r.Stream)
		if err != nil {
			return nil, err
		}
		for _, b := range s.of[tp] {
			if b.Seq >= r.From && b.Seq <= r.To && b.Last >= r.Base && b.Base < r.End && s.present[b.Seq] {
				t.Batches = append(t.Batches, b)
			}
		}
	}
	t.order()
	return t.Batches, nil
}

// streamLocked lists a stream, unless that was done, and reads those footers that are new.
func (o *Older) streamLocked(ctx context.Context, inc ids.Incarnation) (*olderStream, error) {
	s := o.streams[inc]
	if s != nil && s.fresh {
		return s, nil
	}
	objects, _, err := list(ctx, o.Bucket, inc)
	if err != nil {
		return nil, err
	}
	if s == nil {
		s = &olderStream{of: map[ids.TopicPartition][]Placed{}, read: map[uint64]bool{}}
	}
	s.present = make(map[uint64]bool, len(objects))
	var unread []info
	for _, i := range objects {
		if s.present[i.seq] = true; !s.read[i.seq] {
			unread = append(unread, i)
		}
	}
	read, err := footersLeft(ctx, o.Bucket, inc, unread)
	if err != nil {
		return nil, err
	}
	for i, f := range read {
		s.read[unread[i].seq] = true
		if f == nil || f.Seal != nil {
			continue
		}
		for _, b := range f.Batches {
			s.of[b.TP] = append(s.of[b.TP], Placed{b, inc, f.Seq})
		}
	}
	s.fresh = true
	if o.streams == nil {
		o.streams = map[ids.Incarnation]*olderStream{}
	}
	o.streams[inc] = s
	return s, nil
}

// footersLeft reads the footers of the objects that are still there, in parallel; nil where one is not.
func footersLeft(ctx context.Context, b objstore.Reader, inc ids.Incarnation, objects []info) ([]*Footer, error) {
	out := make([]*Footer, len(objects))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i, o := range objects {
		g.Go(func() error {
			f, err := ReadFooter(ctx, b, inc, o.seq, o.size)
			if errors.Is(err, objstore.ErrNotFound) {
				return nil
			}
			out[i] = f
			return err
		})
	}
	return out, g.Wait()
}
