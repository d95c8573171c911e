package storage

import (
	"fmt"
	"math"
	"time"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/segment"
)

// keptBatches is how many batches of a producer are remembered, to answer
// retries with the original offset; Kafka clients keep at most five in flight.
const keptBatches = 5

// producers is the idempotence state of one partition (KIP-98): what each
// producer id appended last. The Log's appendMu guards it.
type producers struct {
	byID map[int64]*segment.ProducerState
}

// check decides about a batch of an idempotent producer. A duplicate returns
// the offsets that the original got.
func (p *producers) check(h *batch.Header) (dup *segment.BatchRef, err error) {
	if !h.HasProducer() {
		return nil, nil
	}
	s := p.byID[h.ProducerID]
	if s == nil {
		// Unknown producer: its state may have expired, so Kafka accepts any
		// sequence (KIP-360).
		return nil, nil
	}
	switch {
	case h.ProducerEpoch < s.Epoch:
		return nil, fmt.Errorf("%w: producer %d has epoch %d, this is %d", ErrInvalidProducerEpoch, h.ProducerID, s.Epoch, h.ProducerEpoch)
	case h.ProducerEpoch > s.Epoch:
		if h.BaseSequence != 0 {
			return nil, fmt.Errorf("%w: producer %d begins epoch %d with sequence %d, not 0", ErrOutOfOrderSequence, h.ProducerID, h.ProducerEpoch, h.BaseSequence)
		}
		return nil, nil
	case len(s.Batches) == 0:
		return nil, nil
	}
	for i := range s.Batches {
		if b := &s.Batches[i]; b.BaseSequence == h.BaseSequence && b.LastSequence == h.LastSequence() {
			return b, nil
		}
	}
	last := s.Batches[len(s.Batches)-1].LastSequence
	if want := batch.AddSequence(last, 1); h.BaseSequence != want {
		if before(h.LastSequence(), want) {
			return nil, fmt.Errorf("%w: producer %d sends sequences %d to %d, next is %d", ErrDuplicateSequence, h.ProducerID, h.BaseSequence, h.LastSequence(), want)
		}
		return nil, fmt.Errorf("%w: producer %d sends sequence %d, next is %d", ErrOutOfOrderSequence, h.ProducerID, h.BaseSequence, want)
	}
	return nil, nil
}

// before orders sequence numbers across their wrap at 2^31-1.
func before(a, b int32) bool {
	d := int64(b) - int64(a)
	if d < 0 {
		d += math.MaxInt32 + 1
	}
	return d > 0 && d < 1<<30
}

// add records an appended batch.
func (p *producers) add(h *batch.Header, now int64) {
	if !h.HasProducer() {
		return
	}
	if p.byID == nil {
		p.byID = map[int64]*segment.ProducerState{}
	}
	s := p.byID[h.ProducerID]
	if s == nil {
		s = &segment.ProducerState{ProducerID: h.ProducerID, Epoch: h.ProducerEpoch, TxnFirstOffset: -1, CoordinatorEpoch: -1}
		p.byID[h.ProducerID] = s
	}
	if h.ProducerEpoch > s.Epoch {
		s.Epoch, s.Batches = h.ProducerEpoch, s.Batches[:0]
	}
	if len(s.Batches) == keptBatches {
		s.Batches = append(s.Batches[:0], s.Batches[1:]...)
	}
	s.Batches = append(s.Batches, segment.BatchRef{
		BaseSequence: h.BaseSequence, LastSequence: h.LastSequence(),
		BaseOffset: h.BaseOffset, LastOffset: h.LastOffset(), Timestamp: h.MaxTimestamp,
	})
	s.LastTimestamp = now
}

// snapshot copies the state, leaving out producers idle for longer than expiry.
func (p *producers) snapshot(now int64, expiry time.Duration) []segment.ProducerState {
	out := make([]segment.ProducerState, 0, len(p.byID))
	for id, s := range p.byID {
		if now-s.LastTimestamp > expiry.Milliseconds() {
			delete(p.byID, id)
			continue
		}
		c := *s
		c.Batches = append([]segment.BatchRef(nil), s.Batches...)
		out = append(out, c)
	}
	return out
}

// restore replaces the state by a snapshot.
func (p *producers) restore(snap []segment.ProducerState) {
	p.byID = nil
	if len(snap) == 0 {
		return
	}
	p.byID = make(map[int64]*segment.ProducerState, len(snap))
	for _, s := range snap {
		c := s
		c.Batches = append([]segment.BatchRef(nil), s.Batches...)
		p.byID[s.ProducerID] = &c
	}
}

// AddProducers returns the idempotence state after batches of these headers, which are in order,
// were appended to a log with the state before.
func AddProducers(state []segment.ProducerState, headers []batch.Header, now time.Time) []segment.ProducerState {
	var p producers
	p.restore(state)
	for i := range headers {
		if s := p.byID[headers[i].ProducerID]; s == nil || len(s.Batches) == 0 || s.Batches[len(s.Batches)-1].LastOffset < headers[i].BaseOffset {
			p.add(&headers[i], now.UnixMilli())
		}
	}
	return p.snapshot(now.UnixMilli(), math.MaxInt64)
}
