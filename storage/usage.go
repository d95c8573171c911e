package storage

import (
	"sync/atomic"
	"time"
)

// waits counts appends that had to wait for memory, stream or disk space, or
// for another append to the same log that did.
type waits struct{ n, nanos atomic.Int64 }

// noteWait is the time from which on an append counts as one that waited.
const noteWait = time.Millisecond

func (w *waits) note(d time.Duration) {
	if d >= noteWait {
		w.n.Add(1)
		w.nanos.Add(int64(d))
	}
}

// Usage is what a log takes of this disk.
type Usage struct {
	Bytes int64 // of its segments' records
	// WaitingBytes are those of closed segments, with their trailers, that are
	// not yet in the bucket; WaitingSince is when the oldest of them was closed.
	WaitingBytes int64
	WaitingSince time.Time
	// UntieredBytes are those of all segments that are not yet in the bucket, whole segments.
	UntieredBytes int64
}

// Usage measures the log. tieredEnd is the offset behind what is tiered.
func (l *Log) Usage(tieredEnd int64) (u Usage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segs {
		if s.logGone || s.last < s.base {
			continue
		}
		u.Bytes += s.size
		if !s.tiered && s.last >= max(tieredEnd, l.start) {
			u.UntieredBytes += s.size
		}
		if s.state != segClosed || s.tiered || s.last < tieredEnd || s.last < l.start {
			continue
		}
		u.WaitingBytes += s.size + s.trailer
		if u.WaitingSince.IsZero() || s.closedAt.Before(u.WaitingSince) {
			u.WaitingSince = s.closedAt
		}
	}
	return u
}
