package agent

import (
	"time"

	"golang.org/x/sys/unix"
)

// leaseClock is the clock by which an agent judges its own lease: between two of its readings lies also the time for which
// the machine was suspended, which Go's monotonic clock leaves out.
type leaseClock struct {
	start time.Time
	boot  time.Duration
	read  func() time.Duration // since some moment
}

func newLeaseClock(read func() time.Duration) *leaseClock {
	return &leaseClock{start: time.Now(), boot: read(), read: read}
}

// Now is a time to be compared with others of this clock only.
func (c *leaseClock) Now() time.Time { return c.start.Add(c.read() - c.boot) }

// sinceBoot is the time since the machine was started, with all that it was suspended: CLOCK_BOOTTIME of clock_gettime(2).
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}
