package tiering

import (
	"math"

	"github.com/cirrolog/cirrolog/storage/segment"
)

// CompactConfig holds a topic's settings of compaction, with Kafka's names and
// meanings.
type CompactConfig struct {
	DeleteRetentionMs int64   // delete.retention.ms
	MinLagMs          int64   // min.compaction.lag.ms
	MaxLagMs          int64   // max.compaction.lag.ms
	DirtyRatio        float64 // min.cleanable.dirty.ratio
	SegmentBytes      int64   // segment.bytes: how large a rewritten segment may be
	IndexInterval     int     // index.interval.bytes
}

// extent is a range of offsets and the segment that a read of it uses.
type extent struct {
	row      Segment
	from, to int64 // both inclusive
}

// layout returns what readers of a partition see from the first row on, in
// order and without overlaps, up to the first hole. rows are ordered by Last.
func layout(rows []Segment) []extent {
	if len(rows) == 0 {
		return nil
	}
	var out []extent
	at := rows[0].Base
	for i := 0; ; {
		for i < len(rows) && rows[i].Last < at {
			i++
		}
		row, until, ok := choose(rows[i:], at)
		if !ok {
			return out
		}
		out = append(out, extent{row, at, until - 1})
		at = until
	}
}

// compactPlan is what there is to clean in a partition.
type compactPlan struct {
	extents []extent // from the first on that exists, up to the end of what may be cleaned
	dirty   int      // index of the first that was never cleaned
	due     bool
	next    int64 // ms since 1970 from when it may be due by the time alone; MaxInt64: never
}

// end is the offset behind what may be cleaned.
func (p *compactPlan) end() int64 { return p.extents[len(p.extents)-1].to + 1 }

// planCompaction applies Kafka's rules. What was cleaned is a run of rewritten
// segments at the start of the log: every pass rewrites from the first segment
// on, oldest first, so all that lies before a rewritten segment has been
// cleaned of its keys too.
//
//   - Of the rest, segments whose newest record is younger than
//     min.compaction.lag.ms wait, and so does all behind them.
//   - Cleaning is due when what was never cleaned is more than
//     min.cleanable.dirty.ratio of the bytes, or when its oldest record is older
//     than max.compaction.lag.ms.
func planCompaction(rows []Segment, c CompactConfig, now int64) compactPlan {
	p := compactPlan{extents: layout(rows), next: math.MaxInt64}
	var clean, dirty int64
	for p.dirty < len(p.extents) && p.extents[p.dirty].row.Generation > 0 {
		clean += p.extents[p.dirty].row.LogSize
		p.dirty++
	}
	oldest := int64(math.MaxInt64)
	n := p.dirty
	for ; n < len(p.extents); n++ {
		r := p.extents[n].row
		if free := known(r.MaxTimestamp, r.Uploaded) + c.MinLagMs; c.MinLagMs > 0 && free > now {
			p.next = free
			break
		}
		dirty += r.LogSize
		oldest = min(oldest, known(r.MinTimestamp, r.Uploaded))
	}
	p.extents = p.extents[:n]
	if n == p.dirty {
		return p
	}
	late := int64(math.MaxInt64)
	if c.MaxLagMs < math.MaxInt64-oldest {
		late = oldest + c.MaxLagMs
	}
	p.next = min(p.next, late)
	p.due = late <= now || dirty > 0 && float64(dirty)/float64(clean+dirty) > c.DirtyRatio
	return p
}

// addEpochs appends the leader epochs of the offsets [from, to] of a segment.
func addEpochs(out, epochs []segment.EpochStart, from, to int64) []segment.EpochStart {
	for i, e := range epochs {
		if e.Start > to || i+1 < len(epochs) && epochs[i+1].Start <= from {
			continue
		}
		if n := len(out); n == 0 || out[n-1].Epoch < e.Epoch {
			out = append(out, segment.EpochStart{Epoch: e.Epoch, Start: max(e.Start, from)})
		}
	}
	return out
}
