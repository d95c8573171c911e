package broker

import (
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
)

// Offsets count as indexed when rows hold them without a gap, whatever the order of the rows.
func TestCoveredTo(t *testing.T) {
	row := func(base, last int64) tiering.Segment {
		return tiering.Segment{SegmentKey: tiering.SegmentKey{Base: base, Last: last}}
	}
	for _, one := range []struct {
		rows       []tiering.Segment
		from, want int64
	}{
		{nil, 5, 5},
		{[]tiering.Segment{row(0, 9), row(10, 19)}, 5, 20},
		{[]tiering.Segment{row(0, 9), row(11, 19)}, 5, 10},
		{[]tiering.Segment{row(6, 9)}, 5, 5},
		{[]tiering.Segment{row(10, 12), row(3, 30), row(31, 31)}, 5, 32}, // a rewrite over others
		{[]tiering.Segment{row(0, 9), row(4, 6)}, 5, 10},
	} {
		if got := coveredTo(one.rows, one.from); got != one.want {
			t.Errorf("%v from %d: covered to %d, want %d", one.rows, one.from, got, one.want)
		}
	}
}

// What was replaced or dropped does not come back, what is old is given up.
func TestRecentRows(t *testing.T) {
	var r recentRows
	now := time.Unix(1000, 0)
	tp := ids.TopicPartition{Topic: ids.TopicID{1}}
	seg := func(base, generation int64) tiering.Segment {
		return tiering.Segment{SegmentKey: tiering.SegmentKey{TP: tp, Base: base, Last: base + 9, Generation: generation}}
	}
	for base := int64(0); base < 40; base += 10 {
		r.note(seg(base, 0), nil, now)
	}
	r.forget([]tiering.SegmentKey{seg(0, 0).SegmentKey, seg(10, 0).SegmentKey})
	r.note(seg(0, 1), []tiering.SegmentKey{seg(0, 0).SegmentKey, seg(10, 0).SegmentKey}, now.Add(time.Minute))
	rows := r.by(now.Add(time.Minute))[tp]
	if len(rows) != 3 || r.has(seg(0, 0).SegmentKey) || !r.has(seg(0, 1).SegmentKey) || !r.has(seg(20, 0).SegmentKey) {
		t.Errorf("remembered are %+v", rows)
	}
	rows = r.by(now.Add(recentAge + time.Second))[tp]
	if len(rows) != 1 || rows[0].segment.Generation != 1 || len(rows[0].replaced) != 2 {
		t.Errorf("after a while remembered are %+v", rows)
	}
	if r.by(now.Add(3 * recentAge)); len(r.rows)+len(r.order) != 0 {
		t.Errorf("never given up: %+v", r.rows)
	}
}
