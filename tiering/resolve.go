package tiering

import (
	"cmp"
	"slices"
)

// outranks orders segments that hold the same offsets: the higher generation
// is the compacted form, otherwise the data is identical and the higher epoch
// is as good as any; the incarnation makes the order total.
func outranks(a, b SegmentKey) bool {
	return cmp.Or(
		cmp.Compare(a.Generation, b.Generation),
		cmp.Compare(a.Epoch, b.Epoch),
		cmp.Compare(a.Last-a.Base, b.Last-b.Base),
		cmp.Compare(a.Incarnation, b.Incarnation),
	) > 0
}

// choose returns the row to read offset from, and the first offset at which
// another row outranks it: the read stops there. ok is false when no row holds
// offset; a gap is never skipped, because a lost row looks just like one.
func choose(rows []Segment, offset int64) (row Segment, until int64, ok bool) {
	for _, r := range rows {
		if r.Base <= offset && offset <= r.Last && (!ok || outranks(r.SegmentKey, row.SegmentKey)) {
			row, ok = r, true
		}
	}
	if !ok {
		return row, 0, false
	}
	until = row.Last + 1
	for _, r := range rows {
		if r.Generation > row.Generation && r.Base > offset && r.Base < until {
			until = r.Base
		}
	}
	return row, until, true
}

// winners returns the rows that are not wholly hidden behind ones that outrank
// them, in order of Last. rows are ordered by Last.
func winners(rows []Segment) []Segment {
	apart := true
	for i := 1; i < len(rows) && apart; i++ {
		apart = rows[i].Base > rows[i-1].Last
	}
	if apart {
		return rows
	}
	sorted := slices.Clone(rows)
	slices.SortFunc(sorted, func(a, b Segment) int {
		if outranks(a.SegmentKey, b.SegmentKey) {
			return -1
		}
		return 1
	})
	var out []Segment
	var taken ranges
	for _, r := range sorted {
		if !taken.hold(r.Base, r.Last) {
			out = append(out, r)
			taken.add(r.Base, r.Last)
		}
	}
	slices.SortFunc(out, func(a, b Segment) int {
		return cmp.Or(cmp.Compare(a.Last, b.Last), cmp.Compare(a.Base, b.Base))
	})
	return out
}

// ranges is a set of offsets: disjoint, non-adjacent intervals in order.
type ranges []struct{ lo, hi int64 } // both inclusive

// add puts [lo, hi] into the set.
func (r *ranges) add(lo, hi int64) {
	v := *r
	// v[i:j] are the intervals that touch [lo, hi].
	i, _ := slices.BinarySearchFunc(v, lo-1, func(e struct{ lo, hi int64 }, t int64) int { return cmp.Compare(e.hi, t) })
	j := i
	for ; j < len(v) && v[j].lo-1 <= hi; j++ {
		lo, hi = min(lo, v[j].lo), max(hi, v[j].hi)
	}
	*r = slices.Replace(v, i, j, struct{ lo, hi int64 }{lo, hi})
}

// hold reports whether every offset of [lo, hi] is in the set.
func (r ranges) hold(lo, hi int64) bool {
	if hi < lo {
		return true
	}
	i, _ := slices.BinarySearchFunc(r, lo, func(e struct{ lo, hi int64 }, t int64) int { return cmp.Compare(e.hi, t) })
	return i < len(r) && r[i].lo <= lo && hi <= r[i].hi
}
