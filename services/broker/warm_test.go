package broker

import (
	"testing"

	"github.com/cirrolog/cirrolog/tiering/wal"
)

func TestHeld(t *testing.T) {
	placed := func(ranges ...int64) (out []wal.Placed) {
		for i := 0; i < len(ranges); i += 2 {
			out = append(out, wal.Placed{Batch: wal.Batch{Base: ranges[i], Last: ranges[i+1]}})
		}
		return out
	}
	for _, one := range []struct {
		batches   []wal.Placed
		from, end int64
		want      bool
	}{
		{nil, 0, 0, true},
		{nil, 0, 1, false},
		{nil, 5, 3, true},
		{placed(0, 4, 5, 9), 0, 10, true},
		{placed(0, 4, 5, 9), 3, 10, true},
		{placed(0, 4, 5, 9), 0, 11, false},
		{placed(0, 4, 6, 9), 0, 10, false},
		{placed(0, 4, 6, 9), 5, 10, false},
		{placed(0, 4, 6, 9), 6, 10, true},
		{placed(2, 4), 0, 5, false},
		{placed(0, 4, 3, 9), 0, 10, true},
	} {
		if got := held(one.batches, one.from) >= one.end; got != one.want {
			t.Errorf("%v from %d to %d: %v", one.batches, one.from, one.end, got)
		}
	}
}
