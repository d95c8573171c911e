package tiering

import (
	"fmt"
	"math"

	"github.com/cirrolog/cirrolog/storage/batch"
)

// recordFilter decides which records of a compacted topic stay, by the rules
// of Kafka's log cleaner.
type recordFilter struct {
	keys            *keyMap
	now             int64 // ms since 1970
	deleteRetention int64 // delete.retention.ms
	limits          batch.Limits
	kept            []batch.Record
}

// apply returns what stays of a whole, verified batch: the batch itself, a
// smaller one with the same offsets, or nil. records is how many are in it.
//
//   - Of a key only the record with the greatest offset stays, and what lies
//     beyond the part of the log that the map knows.
//   - A record without a key goes.
//   - The first cleaning that meets a tombstone gives its batch a delete
//     horizon, delete.retention.ms from now; a cleaning after that time drops it.
//   - Transactional and control batches stay as they are.
func (f *recordFilter) apply(h *batch.Header, raw []byte) (out []byte, records int, err error) {
	if untouched(h) {
		return raw, int(h.NumRecords), nil
	}
	f.kept = f.kept[:0]
	tombstones := false
	for r, err := range batch.Records(raw, f.limits) {
		if err != nil {
			return nil, 0, fmt.Errorf("clean batch at %d: %w", h.BaseOffset, err)
		}
		if r.Key == nil || h.BaseOffset+int64(r.OffsetDelta) < f.keys.latest(hashKey(r.Key)) {
			continue
		}
		if r.Value == nil {
			if h.DeleteHorizon() && f.now >= h.BaseTimestamp {
				continue
			}
			tombstones = true
		}
		f.kept = append(f.kept, r)
	}
	horizon := int64(batch.NoHorizon)
	if tombstones && !h.DeleteHorizon() {
		horizon = f.now + min(f.deleteRetention, math.MaxInt64-f.now)
	}
	switch n := len(f.kept); {
	case n == 0:
		return nil, 0, nil
	case n == int(h.NumRecords) && horizon == batch.NoHorizon:
		return raw, n, nil
	}
	out, err = batch.Retain(*h, f.kept, horizon)
	return out, len(f.kept), err
}

// note puts the keys of a batch into the map. It reports false, and notes
// nothing, when the map has no room for all of them and is not empty.
func (f *recordFilter) note(h *batch.Header, raw []byte) (bool, error) {
	if untouched(h) {
		return true, nil
	}
	if f.keys.used > 0 && int(h.NumRecords) > f.keys.room() {
		return false, nil
	}
	for r, err := range batch.Records(raw, f.limits) {
		if err != nil {
			return false, fmt.Errorf("read keys of the batch at %d: %w", h.BaseOffset, err)
		}
		if r.Key != nil {
			f.keys.put(hashKey(r.Key), h.BaseOffset+int64(r.OffsetDelta))
		}
	}
	return true, nil
}

// untouched tells batches that a cleaning leaves alone: what they hold depends
// on the outcome of a transaction.
func untouched(h *batch.Header) bool { return h.Control() || h.Transactional() }
