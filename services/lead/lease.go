package lead

import (
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
)

// Observer judges the leases of others by its own clock. It is a pure state
// machine: it learns what was seen, and when. Not for several goroutines.
type Observer struct {
	ttl  time.Duration
	seen map[ids.Incarnation]sight
}

type sight struct {
	counter uint64
	since   time.Time // since when the counter is seen unchanged, without a gap
}

// NewObserver returns an observer of leases of this length.
func NewObserver(ttl time.Duration) *Observer {
	return &Observer{ttl: ttl, seen: map[ids.Incarnation]sight{}}
}

// Seen notes a lease's counter, read at now, and reports whether the lease is
// dead: unchanged for a full lease in which the store could be read. held tells
// that the store takes it for alive; one that has run out there, or is gone, is unchanged too: a
// store that has forgotten its last writes proves nothing.
func (o *Observer) Seen(inc ids.Incarnation, counter uint64, held bool, now time.Time) (dead bool) {
	s, ok := o.seen[inc]
	if !ok || held && s.counter != counter {
		o.seen[inc] = sight{counter, now}
		return false
	}
	return now.Sub(s.since) >= o.ttl
}

// Lost notes that the store could not be read: what an owner did meanwhile is not known.
func (o *Observer) Lost() { clear(o.seen) }

// Forget drops what was seen of an incarnation.
func (o *Observer) Forget(inc ids.Incarnation) { delete(o.seen, inc) }

// since tells since when leases are seen unchanged.
func (o *Observer) since() *map[ids.Incarnation]time.Time {
	out := make(map[ids.Incarnation]time.Time, len(o.seen))
	for inc, s := range o.seen {
		out[inc] = s.since
	}
	return &out
}

// Own is an agent's own lease as it judges it itself, by the same rules for the clock.
type Own struct {
	ttl, margin time.Duration
	renewed     time.Time // when the last renewal that succeeded was begun
	put         time.Time // when the last put of the stream that succeeded was begun
}

// NewOwn returns a lease that was never renewed. margin is taken off its end.
func NewOwn(ttl, margin time.Duration) *Own { return &Own{ttl: ttl, margin: margin} }

// Renewed notes a renewal that was begun at began and succeeded.
func (o *Own) Renewed(began time.Time) {
	if began.After(o.renewed) {
		o.renewed = began
	}
}

// Put notes an object of the own stream whose put was begun at began and succeeded: nobody
// had sealed the stream then.
func (o *Own) Put(began time.Time) {
	if began.After(o.put) {
		o.put = began
	}
}

// Lapsed reports whether the lease was alive once and is no more: the others may have sealed the
// stream, which a renewal does not tell.
func (o *Own) Lapsed(now time.Time) bool { return !o.renewed.IsZero() && !o.Live(now) }

// Live reports whether the agent may answer without a put that nobody else leads
// its partitions.
func (o *Own) Live(now time.Time) bool {
	last := o.renewed
	if o.put.After(last) {
		last = o.put
	}
	return !last.IsZero() && now.Sub(last) < o.ttl-o.margin
}
