package wal

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// offsets are those of a partition that an object has, both inclusive.
type offsets struct {
	tp         ids.TopicPartition
	base, last int64
}

// offsetsOf joins the batches of entries that follow each other.
func offsetsOf(entries []*contract.Entry) []offsets {
	var out []offsets
	for _, e := range entries {
		if e.Kind == contract.KindBatch {
			out = append(out, offsets{e.TP, e.Base, e.Last})
		}
	}
	slices.SortFunc(out, func(a, b offsets) int { return cmp.Or(CompareTP(a.tp, b.tp), cmp.Compare(a.base, b.base)) })
	n := 0
	for _, o := range out {
		if n > 0 && out[n-1].tp == o.tp && o.base <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, o.last)
			continue
		}
		out[n] = o
		n++
	}
	return slices.Clone(out[:n])
}

// delete deletes trimmed objects, one after the other: an heir takes the lowest
// number present for the beginning. The last durable object stays, and what is
// not before the newest durable checkpoint.
func (s *Stream) delete() {
	defer s.wg.Done()
	for {
		s.mu.Lock()
		for s.err == nil && !s.closed && (len(s.doomed) == 0 || s.doomed[0].seq >= min(s.newest, s.ckptOK)) {
			s.cond.Wait()
		}
		if s.err != nil || s.closed {
			s.mu.Unlock()
			return
		}
		o := s.doomed[0]
		s.mu.Unlock()
		if !s.awaitSpare(o) {
			return // closed, or poisoned
		}
		if err := s.deleteObject(o.seq); err != nil {
			return // closed, or poisoned
		}
		s.mu.Lock()
		s.doomed = s.doomed[1:]
		s.mu.Unlock()
	}
}

const (
	// sparePause is how long the stream waits before it asks again whether an object may go.
	sparePause = time.Second
	// spareWarnings is how often an object that may not go is logged.
	spareWarnings = time.Minute
)

// awaitSpare waits until nobody needs an object, which is so at once unless the metadata store has
// forgotten what it had said; false: the stream has ended.
func (s *Stream) awaitSpare(o object) bool {
	var warned time.Time
	for {
		needed, err := s.needed(o)
		if err == nil && needed == nil {
			return true
		}
		s.mu.Lock()
		ended, moved := s.closed || s.err != nil, s.space
		s.mu.Unlock()
		if ended {
			return false
		}
		if time.Since(warned) >= spareWarnings {
			warned = time.Now()
			s.o.Logger.Warn("an object of the stream stays, and those behind it: what it has was tiered, and is not in the index any more", "key", Key(s.o.Incarnation, o.seq), "needed", needed, "err", err)
		}
		select {
		case <-s.asking.Done():
			return false
		case <-moved: // or closed
		case <-time.After(sparePause):
		}
	}
}

// asked is for how many partitions it is asked at the same time whether an object may go.
const asked = 16

// needed returns offsets of an object that are neither spare nor carried forward; nil: there are none.
func (s *Stream) needed(o object) (needed *offsets, err error) {
	if s.o.Spare == nil {
		return nil, nil
	}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(s.asking)
	g.SetLimit(asked)
	for _, r := range o.offs {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			ok, err := s.o.Spare(ctx, r.tp, r.base, r.last)
			if err == nil && (ok || s.carried(o.seq, r)) {
				return nil
			}
			mu.Lock()
			needed = &r
			mu.Unlock()
			return cmp.Or(err, errNeeded)
		})
	}
	if err = g.Wait(); errors.Is(err, errNeeded) {
		err = nil
	}
	return needed, err
}

var errNeeded = errors.New("needed")

// carried tells whether newer objects have the offsets too.
func (s *Stream) carried(seq uint64, r offsets) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var have []offsets
	for _, objects := range [][]object{s.doomed, s.live} {
		for i := range objects {
			if objects[i].seq <= seq {
				continue
			}
			for _, o := range objects[i].offs {
				if o.tp == r.tp && o.base <= r.last && o.last >= r.base {
					have = append(have, o)
				}
			}
		}
	}
	slices.SortFunc(have, func(a, b offsets) int { return cmp.Compare(a.base, b.base) })
	next := r.base
	for _, o := range have {
		if o.base > next {
			return false
		}
		next = max(next, o.last+1)
	}
	return next > r.last
}

func (s *Stream) deleteObject(seq uint64) error {
	for attempt := 0; ; attempt++ {
		err := s.o.Bucket.Delete(s.ctx, Key(s.o.Incarnation, seq))
		if err == nil || s.ctx.Err() != nil {
			return err
		}
		if attempt%10 == 9 {
			s.o.Logger.Warn("could not delete a trimmed object of the stream", "key", Key(s.o.Incarnation, seq), "err", err)
		}
		if err := objstore.Sleep(s.ctx, objstore.Backoff(min(attempt, 6))); err != nil {
			return err
		}
	}
}
