package tiering

import "math"

// Special values of the retention settings, as in Kafka.
const (
	Unlimited = -1 // never, however old or large
	AsTotal   = -2 // local retention: the same as the total one
)

// RetentionConfig holds a topic's retention settings, with Kafka's names and
// meanings. A compacted topic without deletion has both totals Unlimited.
type RetentionConfig struct {
	RetentionMs         int64 // retention.ms
	RetentionBytes      int64 // retention.bytes, per partition
	LocalRetentionMs    int64 // local.retention.ms
	LocalRetentionBytes int64 // local.retention.bytes
	Remote              bool  // remote.storage.enable
}

// local returns the limits of the local tier.
func (c RetentionConfig) local() (ms, bytes int64) {
	ms, bytes = c.LocalRetentionMs, c.LocalRetentionBytes
	if ms == AsTotal {
		ms = c.RetentionMs
	}
	if bytes == AsTotal {
		bytes = c.RetentionBytes
	}
	return ms, bytes
}

// LocalRange is a local segment as retention sees it.
type LocalRange struct {
	Base, Last   int64 // Last < Base: no records yet
	Bytes        int64
	MaxTimestamp int64 // of its records, ms since 1970; negative: unknown
	Modified     int64 // ms since 1970; counts when MaxTimestamp is unknown
	Active       bool  // still written to
}

// RetentionState is a partition at one moment.
type RetentionState struct {
	Now      int64        // ms since 1970
	LogStart int64        // first offset that exists
	Tiered   []Segment    // rows of the index, ordered by Last
	Local    []LocalRange // local segments, ordered by Base
}

// RetentionPlan is what retention asks for. LogStart must be made durable
// before anything below it is deleted.
type RetentionPlan struct {
	LogStart int64
	// DropLocal are the bases of local segments that may go from the disk:
	// they are below LogStart, or they are in the bucket and beyond the local limits.
	DropLocal []int64
	// Roll: the active segment is over the total limits too, and so goes once it is closed.
	Roll bool
}

// Retain applies Kafka's retention rules:
//
//   - A segment is too old when the largest timestamp in it is more than the
//     limit ago. Only a run of such segments from the oldest on goes; one with
//     a timestamp in the future keeps itself and what follows.
//   - By size, the oldest segments go while what remains is at least the
//     limit, so a partition may be larger than it by less than one segment.
//   - The active segment counts for the size and does not go. When all before
//     it goes and it is over the limit itself, Roll asks to close it, so that a
//     partition that nobody writes to any more expires too.
//   - What is not in the bucket never leaves the disk because of a local limit.
//
// Retain changes nothing and keeps nothing of its arguments.
func Retain(c RetentionConfig, s RetentionState) RetentionPlan {
	plan := RetentionPlan{LogStart: s.LogStart}
	total := s.pieces(c.Remote)
	n := expired(total, s.Now, c.RetentionMs, c.RetentionBytes)
	if n > 0 {
		plan.LogStart = max(plan.LogStart, total[n-1].last+1)
	}
	if last := len(total) - 1; last >= 0 && n == last && total[last].bytes > 0 {
		total[last].pinned = false
		plan.Roll = expired(total, s.Now, c.RetentionMs, c.RetentionBytes) > last
	}
	plan.DropLocal = s.dropLocal(c, plan.LogStart)
	return plan
}

// TieredUntil tells until when, in ms since 1970 and at the latest, nothing goes of what is in the bucket, whatever is
// written and uploaded meanwhile: as long as the log start and the limits are the same, and KeepsLocal, Retain asks for
// nothing until then, and the rows need not be read again. Negative: there is no such time.
func TieredUntil(c RetentionConfig, s RetentionState) int64 {
	if !c.Remote || c.RetentionBytes >= 0 {
		return -1
	}
	for _, r := range winners(s.Tiered) {
		switch {
		case r.Last < s.LogStart:
		case c.RetentionMs < 0:
			return math.MaxInt64
		default: // the oldest shields what follows it
			return known(r.MaxTimestamp, r.Uploaded) + c.RetentionMs
		}
	}
	return -1
}

// KeepsLocal tells that no local segment goes, even if all of them were in the bucket. It needs no rows.
func KeepsLocal(c RetentionConfig, s RetentionState) bool {
	pieces := make([]piece, len(s.Local))
	for i, l := range s.Local {
		if !l.Active && l.Last < s.LogStart {
			return false
		}
		pieces[i] = piece{last: l.Last, bytes: l.Bytes, timestamp: known(l.MaxTimestamp, l.Modified), pinned: l.Active}
	}
	ms, bytes := c.local()
	return expired(pieces, s.Now, ms, bytes) == 0
}

// piece is a range of offsets that retention keeps or gives up as a whole.
type piece struct {
	last, bytes int64
	timestamp   int64
	pinned      bool // never goes: active, or not in the bucket
}

// pieces returns the whole partition in order, each offset once: rows of the
// index, then the local segments that reach beyond them. Pieces wholly below
// the log start no longer count.
func (s RetentionState) pieces(remote bool) []piece {
	var out []piece
	end := s.LogStart
	if remote {
		for _, r := range winners(s.Tiered) {
			if r.Last < end {
				continue
			}
			out = append(out, piece{last: r.Last, bytes: r.LogSize, timestamp: known(r.MaxTimestamp, r.Uploaded)})
			end = r.Last + 1
		}
	}
	for _, l := range s.Local {
		if l.Last < end && !l.Active {
			continue
		}
		out = append(out, piece{last: l.Last, bytes: l.Bytes, timestamp: known(l.MaxTimestamp, l.Modified), pinned: l.Active})
		end = max(end, l.Last+1)
	}
	return out
}

func known(timestamp, otherwise int64) int64 {
	if timestamp >= 0 {
		return timestamp
	}
	return otherwise
}

// expired returns how many pieces from the front are given up.
func expired(pieces []piece, now, limitMs, limitBytes int64) int {
	byAge := 0
	if limitMs >= 0 {
		for byAge < len(pieces) && !pieces[byAge].pinned && now-pieces[byAge].timestamp > limitMs {
			byAge++
		}
	}
	bySize := 0
	if limitBytes >= 0 {
		excess := -limitBytes
		for _, p := range pieces {
			excess += p.bytes
		}
		for bySize < len(pieces) && !pieces[bySize].pinned && excess >= pieces[bySize].bytes {
			excess -= pieces[bySize].bytes
			bySize++
		}
	}
	return max(byAge, bySize)
}

func (s RetentionState) dropLocal(c RetentionConfig, logStart int64) []int64 {
	var bases []int64
	var rest []LocalRange
	for _, l := range s.Local {
		if !l.Active && l.Last < logStart {
			bases = append(bases, l.Base)
			continue
		}
		rest = append(rest, l)
	}
	if !c.Remote {
		return bases
	}
	var tiered ranges
	for _, r := range s.Tiered {
		tiered.add(r.Base, r.Last)
	}
	pieces := make([]piece, len(rest))
	for i, l := range rest {
		pieces[i] = piece{
			last: l.Last, bytes: l.Bytes, timestamp: known(l.MaxTimestamp, l.Modified),
			pinned: l.Active || !tiered.hold(max(l.Base, logStart), l.Last),
		}
	}
	ms, bytes := c.local()
	for i := range expired(pieces, s.Now, ms, bytes) {
		bases = append(bases, rest[i].Base)
	}
	return bases
}
