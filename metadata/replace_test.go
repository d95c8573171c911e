package metadata

import (
	"slices"
	"sync/atomic"
	"testing"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// A rewritten segment takes the place of others in one step, whatever becomes of
// the answer: whoever looks sees all of the old rows or the new one alone.
func TestReplaceSegments(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := w.open()
		ctx := ctxT(t)
		tp := ids.TopicPartition{Topic: create(t, s, "t", 1).ID}
		const each = 40
		at := int64(0)
		old := func() (rows []SegmentRow, drop []SegmentID) {
			for range each {
				r := segment(tp, at, at+9, 1)
				at += 10
				mustNil(t, s.AddSegment(ctx, r))
				rows, drop = append(rows, r), append(drop, r.SegmentID)
			}
			return rows, drop
		}
		rewrite := func(rows []SegmentRow) SegmentRow {
			r := segment(tp, rows[0].Base, rows[len(rows)-1].Last, 1)
			r.Generation = 1<<32 | 7
			return r
		}
		rows := func() []SegmentRow {
			t.Helper()
			got, err := s.Segments(ctx, tp, 0, 1000)
			mustNil(t, err)
			return got
		}
		before, drop := old()
		first := rewrite(before)
		mustNil(t, s.ReplaceSegments(ctx, first, drop))
		mustNil(t, s.ReplaceSegments(ctx, first, drop)) // again: no error
		if got := rows(); !slices.Equal(got, []SegmentRow{first}) {
			t.Fatalf("rows %v", got)
		}
		var n atomic.Int64
		for range 5 {
			before, drop := old()
			r := rewrite(before)
			want := rows()
			w.hooks.set(func(c kv.Call) error {
				if c.Method == "Commit" && n.Add(1)%5 == 0 {
					return kv.ErrUnavailable
				}
				return nil
			}, func(c kv.Call) error {
				if c.Method == "Commit" && n.Add(1)%2 == 0 {
					return kv.ErrUnknown
				}
				return nil
			})
			err := s.ReplaceSegments(ctx, r, drop)
			w.hooks.set(nil, nil)
			mustNil(t, err)
			want = append(want[:len(want)-each], r)
			if got := rows(); !slices.Equal(got, want) {
				t.Fatalf("rows %v, want %v", got, want)
			}
		}
		left, drop := old()
		many := make([]SegmentID, MaxReplaced+1)
		for i := range many {
			many[i] = left[0].SegmentID
		}
		r := rewrite(left)
		wantErr(t, "too many", s.ReplaceSegments(ctx, r, many), ErrInvalidRequest)
		wantErr(t, "itself", s.ReplaceSegments(ctx, r, []SegmentID{r.SegmentID}), ErrInvalidRequest)
		other := w.open(func(o *Options) { o.NodeID = 2 })
		mustNil(t, other.RaiseEpoch(ctx, tp, 2))
		want := rows()
		wantErr(t, "a deposed leader's rewrite", s.ReplaceSegments(ctx, r, drop), ErrFenced)
		if got := rows(); !slices.Equal(got, want) {
			t.Fatal("a deposed leader has changed rows")
		}
	})
}
