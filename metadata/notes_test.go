package metadata

import (
	"testing"

	"github.com/cirrolog/cirrolog/storage/ids"
)

// What is known already is told to nobody: who notes owners whenever something changes would
// be told of its own doing for ever.
func TestNotedTwiceIsNoChange(t *testing.T) {
	var s Store
	told := 0
	changed := func() { told++ }
	s.changed.Store(&changed)
	a, b := ids.NewIncarnation(), ids.NewIncarnation()
	owned := func(inc ids.Incarnation, epoch int32) []Owned {
		return []Owned{{TP: ids.TopicPartition{Partition: 1}, Owner: Owner{Incarnation: inc, Epoch: epoch}}}
	}
	for i, tt := range []struct {
		owned []Owned
		told  int
	}{{nil, 0}, {owned(a, 3), 1}, {owned(a, 3), 1}, {owned(b, 2), 1}, {nil, 1}, {owned(b, 4), 2}, {owned(b, 4), 2}} {
		if s.NoteOwners(tt.owned); told != tt.told {
			t.Errorf("%d: told %d times, want %d", i, told, tt.told)
		}
	}
}
