package agent

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// An agent that joins leads nothing yet, and reads nothing of the segment index: there may be millions of rows.
func TestJoinReadsNoSegments(t *testing.T) {
	c := newMoveCluster(t, time.Second)
	a := c.start(true)
	const partitions = 3
	id := c.create(a, "t", partitions)
	c.write(id, partitions, func() { time.Sleep(500 * time.Millisecond) })
	c.until("something is tiered", func() bool {
		_, ok, err := a.meta.LastSegment(t.Context(), ids.TopicPartition{Topic: id})
		return ok && err == nil
	})
	var asked, segments atomic.Int32
	var joined atomic.Bool
	c.kv = kv.WithHooks(c.kv, kv.Hooks{Before: func(call kv.Call) error {
		if asked.Add(1); strings.HasPrefix(call.Keys[0], "seg/") && !joined.Load() {
			segments.Add(1)
		}
		return nil
	}})
	c.start(true)
	joined.Store(true)
	if n := segments.Load(); n > 0 || asked.Load() == 0 {
		t.Errorf("of %d calls of the metadata store %d were for segments", asked.Load(), n)
	}
}
