package broker

import (
	"context"
	"sync"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/lock"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

const (
	// spanShare is how many bytes a request to the bucket may bring more than needed, if it spares another one.
	spanShare = 128 << 10
	// spanMost bounds one span, and spansMost what of them is kept.
	spanMost  = 8 << 20
	spansMost = 64 << 20
)

// spans reads what many partitions have in the same objects of older streams: an object once, not once for each of
// them. What it keeps is bounded; beyond that every partition reads for itself. It is safe for concurrent use.
type spans struct {
	bucket objstore.Reader

	mu   sync.Mutex
	of   map[objectID]*span
	kept int64
}

type objectID struct {
	stream ids.Incarnation
	seq    uint64
}

// span is the piece of an object that has all that is needed of it.
type span struct {
	from, to int64
	uses     int        // pieces of it that were not asked for yet
	taken    bool       // it is read, or to be
	reading  lock.Mutex // held while it is read
	data     *wal.Span  // nil: not read yet
}

// newSpans plans what is to be read of all of the partitions.
func newSpans(bucket objstore.Reader, parts []*Partition) *spans {
	s := &spans{bucket: bucket, of: map[objectID]*span{}}
	for _, p := range parts {
		o := p.older.Load()
		if o == nil {
			continue
		}
		for at := 0; at < len(o.batches); {
			some := o.from(o.batches[at].Base, fetchRun, true)
			s.plan(some)
			at += len(some)
		}
	}
	return s
}

func (s *spans) plan(some []wal.Placed) {
	first, last := &some[0], &some[len(some)-1]
	id := objectID{first.Stream, first.Seq}
	one := s.of[id]
	if one == nil {
		one = &span{from: first.Pos, to: last.Pos + last.Length}
		s.of[id] = one
	}
	one.from, one.to = min(one.from, first.Pos), max(one.to, last.Pos+last.Length)
	one.uses++
}

// read reads batches that lie next to each other in an object.
func (s *spans) read(ctx context.Context, some []wal.Placed) ([]byte, error) {
	one := s.use(some)
	if one == nil {
		return wal.ReadBatches(ctx, s.bucket, some[0].Stream, some[0].Seq, entries(some))
	}
	one.reading.Lock()
	if one.data == nil {
		data, err := wal.ReadSpan(ctx, s.bucket, some[0].Stream, some[0].Seq, one.from, one.to)
		if err != nil {
			one.reading.Unlock()
			return nil, err
		}
		one.data = data
	}
	data := one.data
	one.reading.Unlock()
	return data.Batches(entries(some))
}

// use returns the span that has the batches; nil: they are to be read alone.
func (s *spans) use(some []wal.Placed) *span {
	first, last := &some[0], &some[len(some)-1]
	id := objectID{first.Stream, first.Seq}
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.of[id]
	if one == nil || first.Pos < one.from || last.Pos+last.Length > one.to {
		return nil // not as it was planned
	}
	size := one.to - one.from
	switch {
	case !one.taken && (one.uses < 2 || size > spanMost || size > int64(one.uses)*spanShare || s.kept+size > spansMost):
		if one.uses--; one.uses == 0 {
			delete(s.of, id)
		}
		return nil
	case !one.taken:
		one.taken = true
		s.kept += size
	}
	if one.uses--; one.uses == 0 {
		delete(s.of, id)
		s.kept -= size
	}
	return one
}
