package agent

import (
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"
)

// testClock is a variable of the tests of clocks that jump: it names a file with a duration, as
// time.ParseDuration takes it, by which the agent's clock is ahead. Without the file it is right.
const testClock = "CIRROLOG_TEST_CLOCK"

// jumpingClock is the clock of a machine whose wall clock is set while it runs: times of day jump, what
// passes between two readings does not, as Go measures that by the monotonic clock.
type jumpingClock struct {
	ahead atomic.Int64 // seconds
	quit  chan struct{}
}

// newJumpingClock looks into the file every 100 ms, until stop.
func newJumpingClock(path string) *jumpingClock {
	c := &jumpingClock{quit: make(chan struct{})}
	c.look(path)
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-c.quit:
				return
			case <-tick.C:
				c.look(path)
			}
		}
	}()
	return c
}

func (c *jumpingClock) look(path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		c.ahead.Store(0)
		return
	}
	if d, err := time.ParseDuration(strings.TrimSpace(string(b))); err == nil { // else it is being written
		c.ahead.Store(int64(d / time.Second))
	}
}

func (c *jumpingClock) stop() { close(c.quit) }

// Now is the time of day by the clock as it was set, in whole seconds away from the right one, with the monotonic reading of now.
func (c *jumpingClock) Now() time.Time { return jump(time.Now(), c.ahead.Load()) }

// jump moves the time of day and leaves the monotonic reading, for which package time has no way: Add moves
// both. A time with a monotonic reading begins with a word of a flag, 33 bits of seconds and 30 of nanoseconds.
func jump(t time.Time, seconds int64) time.Time {
	*(*uint64)(unsafe.Pointer(&t)) += uint64(seconds) << 30
	return t
}
