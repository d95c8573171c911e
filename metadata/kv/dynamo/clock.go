package dynamo

import (
	"sync"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/smithy-go/middleware"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// clock gives revisions: microseconds since 1970 by DynamoDB's own clock, as
// its answers tell it and the monotonic clock carries it on, and always more
// than any revision seen. The machine's wall clock counts only until the first
// answer.
type clock struct {
	mu    sync.Mutex
	base  time.Time // DynamoDB's time at start
	start time.Time // monotonic
	known bool      // base is from an answer
	last  kv.Revision
}

func newClock() *clock {
	now := time.Now()
	return &clock{base: now, start: now}
}

func (c *clock) nowLocked() time.Time { return c.base.Add(time.Since(c.start)) }

// now is DynamoDB's time, at most a few seconds behind.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nowLocked()
}

// next returns a revision greater than any given or observed before.
func (c *clock) next() kv.Revision {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(c.last+1, kv.Revision(c.nowLocked().UnixMicro()))
	return c.last
}

// observe raises the clock above a revision that stands in the table.
func (c *clock) observe(r kv.Revision) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(c.last, r)
}

// server takes the time from an answer. Later ones only move the clock on: it
// falls behind when the machine sleeps.
func (c *clock) server(md middleware.Metadata) {
	t, ok := awsmiddleware.GetServerTime(md)
	if !ok || t.IsZero() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known || t.After(c.nowLocked()) {
		c.base, c.start, c.known = t, time.Now(), true
	}
}

// within reports whether a revision was given less than d ago. One from the
// future is.
func (c *clock) within(r kv.Revision, d time.Duration) bool {
	return r >= kv.Revision(c.now().Add(-d).UnixMicro())
}
