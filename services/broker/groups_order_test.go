package broker

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/services/group"
)

// slowLog is a log that can be loaded when hold is closed.
type slowLog struct {
	*memoryLog
	hold chan struct{}
}

func (l slowLog) Bounds() (start, end int64) {
	<-l.hold
	return l.memoryLog.Bounds()
}

// Commits that wait for the load of their coordinator are carried out in the order in which they came: the
// client of the first may have given up, and the second one was acknowledged.
func TestCommitsWaitInOrder(t *testing.T) {
	const rounds, waiting = 100, 4
	for round := range rounds {
		log := slowLog{&memoryLog{max: 1 << 20}, make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		o := GroupOptions{Config: group.Config{NewID: newMemberID}}
		o.setDefaults()
		p := newGroupPartition(ctx, &o, log, slog.New(slog.DiscardHandler), func(string) bool { return true })
		var run, commits sync.WaitGroup
		run.Go(p.run)
		for i := range int64(waiting) {
			commits.Go(func() {
				if err := commitOffset(p, "g", "a", i, ""); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(2 * time.Millisecond) // it waits by now
		}
		close(log.hold)
		commits.Wait()
		got := offsetOf(t, p, "g", "a")
		cancel()
		run.Wait()
		if got != waiting-1 {
			t.Fatalf("round %d: committed is %d, the last of %d commits was %d", round, got, waiting, waiting-1)
		}
	}
}
