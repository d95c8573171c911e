package agent

import (
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/services/cost"
	"github.com/cirrolog/cirrolog/storage"
)

// TestCostKnowsTheStream: the formulas of cost use the agent's own settings.
func TestCostKnowsTheStream(t *testing.T) {
	for _, linger := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond, 60 * time.Millisecond, 100 * time.Millisecond, time.Second} {
		if got, want := cost.StreamObjects(linger), float64(streamObjects(linger)); got != want {
			t.Errorf("linger %v: %v objects, the agent has %v", linger, got, want)
		}
	}
	if got, want := cost.StreamObjects(100*time.Millisecond), float64(streamObjects(0)); got != want {
		t.Errorf("the default: %v objects, the agent has %v", got, want)
	}
	if cost.TierMinBytes != storage.DefaultTierMinBytes || cost.TierMaxDelay != storage.DefaultTierMaxDelay {
		t.Errorf("segments of %d bytes wait for %v: want %d and %v", cost.TierMinBytes, cost.TierMaxDelay, storage.DefaultTierMinBytes, storage.DefaultTierMaxDelay)
	}
}
