package tiering

import (
	"container/list"
	"sync"

	"github.com/cirrolog/cirrolog/storage/ids"
)

// streams recognises sequential readers: one that asks for the offset at which
// an earlier answer ended. Several may read one partition.
type streams struct {
	mu    sync.Mutex
	byKey map[streamKey]*list.Element // of *stream
	order *list.List                  // most recent first
}

type streamKey struct {
	tp   ids.TopicPartition
	next int64
}

type stream struct {
	key    streamKey
	window int64
}

// maxStreams bounds the readers remembered.
const maxStreams = 4096

func newStreams() streams {
	return streams{byKey: map[streamKey]*list.Element{}, order: list.New()}
}

// follows reports whether a read of offset goes on where an earlier one ended.
func (s *streams) follows(tp ids.TopicPartition, offset int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byKey[streamKey{tp, offset}] != nil
}

// step notes a read from offset to next and returns how many bytes to read
// ahead: nothing for a first read, then from one block on doubling up to most.
func (s *streams) step(tp ids.TopicPartition, offset, next, block, most int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	window := int64(0)
	if e := s.byKey[streamKey{tp, offset}]; e != nil {
		old := s.order.Remove(e).(*stream)
		delete(s.byKey, old.key)
		window = min(max(block, 2*old.window), most)
	}
	key := streamKey{tp, next}
	if e := s.byKey[key]; e != nil {
		s.order.MoveToFront(e)
		st := e.Value.(*stream)
		st.window = max(st.window, window)
		return window
	}
	s.byKey[key] = s.order.PushFront(&stream{key, window})
	if s.order.Len() > maxStreams {
		old := s.order.Remove(s.order.Back()).(*stream)
		delete(s.byKey, old.key)
	}
	return window
}

// aheadOf begins to load what a sequential reader will ask for next: the rest
// of the segment, then the following ones with their trailers.
func (r *Reader) aheadOf(tp ids.TopicPartition, offset int64, row Segment, rows []Segment, res ReadResult) {
	if r.o.ReadAhead < 0 || res.Size == 0 {
		return
	}
	left := r.streams.step(tp, offset, res.NextOffset, r.o.BlockBytes, r.o.ReadAhead)
	if left == 0 {
		return
	}
	pos := res.nextPos
	for until := row.Last + 1; left > 0; until = row.Last + 1 {
		key := row.Key()
		for n := pos / r.o.BlockBytes; n*r.o.BlockBytes < row.LogSize && left > 0; n++ {
			if !r.blocks.readAhead(blockID{key, n}, r.blockLen(row, n), true) {
				return
			}
			left -= int64(r.blockLen(row, n))
		}
		var ok bool
		if row, _, ok = choose(rows, until); !ok {
			return
		}
		r.trailers.ahead(row.SegmentKey, row)
		pos = 0
		left -= row.Size - row.LogSize
	}
}
