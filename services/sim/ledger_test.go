package sim

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// ledger is what clients were promised and what they have seen.
type ledger struct {
	mu    sync.Mutex
	parts map[ids.TopicPartition]*page
	pids  map[int64]int // agents that gave producer ids
}

// page is a partition in the ledger.
type page struct {
	at      map[int64]uint64 // record by offset, as acknowledged or read
	where   map[uint64]int64 // offset by record
	acked   map[int64]uint64 // acknowledged
	end     int64            // behind the last one that was acknowledged or read
	start   int64            // the greatest that anyone asked records to be deleted before
	started int64            // the greatest of those that were acknowledged
	by      int32            // the greatest epoch that acknowledged one
	epoch   int32            // the greatest whose high watermark was seen
	hw      int64            // the greatest high watermark that was seen with it
	deleted bool             // the topic, or its deletion was asked for
	name    string
}

func newLedger() *ledger {
	return &ledger{parts: map[ids.TopicPartition]*page{}, pids: map[int64]int{}}
}

// open makes the page of a partition of a topic that clients write.
func (l *ledger) open(tp ids.TopicPartition, name string) *page {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.parts[tp]
	if p == nil {
		p = &page{at: map[int64]uint64{}, where: map[uint64]int64{}, acked: map[int64]uint64{}, epoch: -1, name: fmt.Sprintf("%s-%d", name, tp.Partition)}
		l.parts[tp] = p
	}
	return p
}

// plainRecord marks the ids of records of producers that are not idempotent.
const plainRecord = 1 << 63

// value is the value of a record: its id and bytes that follow from it.
func value(id uint64) []byte {
	b := make([]byte, 8+int(id*2654435761>>7%180))
	binary.BigEndian.PutUint64(b, id)
	for i := 8; i < len(b); i++ {
		b[i] = byte(id>>(i%8)) + byte(i)
	}
	return b
}

// see notes that a record is at an offset. l.mu is held.
func (p *page) see(w *world, offset int64, id uint64, by string) {
	if have, ok := p.at[offset]; ok && have != id {
		w.trace.violate("I2: %s offset %d has record %x by %s, and had %x", p.name, offset, id, by, have)
		return
	}
	if at, ok := p.where[id]; ok && at != offset {
		w.trace.violate("I1: %s record %x is at offset %d by %s, and at %d", p.name, id, offset, by, at)
		return
	}
	p.at[offset], p.where[id] = id, offset
	p.end = max(p.end, offset+1)
}

// ack notes an acknowledged batch.
func (l *ledger) ack(w *world, tp ids.TopicPartition, base int64, records []uint64, by string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.parts[tp]
	for i, id := range records {
		p.see(w, base+int64(i), id, by)
		p.acked[base+int64(i)] = id
	}
}

// records notes a batch that was read. Batches that nobody acknowledged count when they are
// read by a client (committed), or are in a segment.
func (l *ledger) records(w *world, tp ids.TopicPartition, b []byte, by string, committed bool) (next int64, err error) {
	h, err := batch.Check(b)
	if err != nil {
		w.trace.violate("%s: %s: damaged batch: %v", tp, by, err)
		return 0, err
	}
	next = h.LastOffset() + 1
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.parts[tp]
	if p == nil {
		return next, nil
	}
	for r, err := range batch.Records(b, batch.Limits{}) {
		if err != nil || len(r.Value) < 8 {
			w.trace.violate("%s: %s: offset %d: %v", tp, by, h.BaseOffset, err)
			return next, err
		}
		id := binary.BigEndian.Uint64(r.Value)
		if string(r.Value) != string(value(id)) {
			w.trace.violate("%s: %s: the bytes at offset %d are not those of record %x", tp, by, h.BaseOffset+int64(r.OffsetDelta), id)
		}
		p.see(w, h.BaseOffset+int64(r.OffsetDelta), id, by)
	}
	return next, nil
}

// askDelete notes that records are to be deleted, or were.
func (l *ledger) askDelete(tp ids.TopicPartition, before int64, done bool, epoch int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.parts[tp]
	p.start = max(p.start, before)
	if done {
		p.started, p.by = max(p.started, before), max(p.by, epoch)
	}
}

// deletedBefore tells whether the offsets before end may be gone.
func (l *ledger) deletedBefore(tp ids.TopicPartition, end int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.parts[tp]
	return p != nil && (p.deleted || end <= p.start)
}

func (l *ledger) deleteTopic(id ids.TopicID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for tp, p := range l.parts {
		if tp.Topic == id {
			p.deleted = true
		}
	}
}

// known is what a client knows before it asks: an answer of at least this epoch has at least
// this high watermark.
type known struct {
	epoch, by               int32
	hw, end, start, started int64
	deleted                 bool
}

func (l *ledger) known(tp ids.TopicPartition) known {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.parts[tp]
	return known{p.epoch, p.by, p.hw, p.end, p.start, p.started, p.deleted}
}

// watermark notes a high watermark that a leader of an epoch told, in an answer to a question
// that was asked when known was known.
func (l *ledger) watermark(w *world, tp ids.TopicPartition, epoch int32, hw, start int64, before known, by string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.parts[tp]
	if epoch >= before.epoch && hw < before.hw {
		w.trace.violate("I2: %s high watermark %d of epoch %d by %s, was %d in epoch %d", p.name, hw, epoch, by, before.hw, before.epoch)
	}
	if epoch >= max(before.epoch, before.by) && start < before.started && before.started <= hw {
		w.trace.violate("I2: %s log start %d of epoch %d by %s, was %d", p.name, start, epoch, by, before.started)
	}
	if epoch >= p.epoch {
		p.epoch, p.hw = epoch, max(p.hw, hw)
	}
}

// pid notes a producer id: none is ever given twice (I6).
func (l *ledger) pid(w *world, id int64, slot int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if by, ok := l.pids[id]; ok {
		w.trace.violate("I6: agent %d gave producer id %d, which agent %d had given", slot, id, by)
	}
	l.pids[id] = slot
}
