package chaos

import (
	"fmt"
	"maps"
	"slices"
)

// Violation is a promise that was broken.
type Violation string

// The violations. All are counted in records, commits in partitions.
const (
	Lost        Violation = "lost"         // acknowledged, and not in the log
	Duplicated  Violation = "duplicated"   // at two offsets
	Reordered   Violation = "reordered"    // behind a later record of its key
	WrongOffset Violation = "wrong offset" // not where the acknowledgement said
	TwoValues   Violation = "two values"   // another record was seen at its offset
	Dirty       Violation = "dirty reads"  // seen by a reader, and not in the log; or above the high watermark
	GarbledRead Violation = "garbled"      // seen by a reader, and sent by nobody
	Gap         Violation = "gap"          // an offset without a record
	Disordered  Violation = "disordered"   // a consumer saw an offset that does not follow the one before
	Unread      Violation = "unread"       // in the log, and never shown to the consumers of a library
	LostCommit  Violation = "lost commits" // a committed offset went back
)

// violations is the order in which they are reported.
var violations = []Violation{Lost, Duplicated, Reordered, WrongOffset, TwoValues, Dirty, GarbledRead, Gap, Disordered, Unread, LostCommit}

// examplesOf bounds how many of each violation are told in words.
const examplesOf = 10

// Verdict is what the checker found.
type Verdict struct {
	Acked    int64               `json:"acked"`
	Unknown  int64               `json:"unknown"` // given up by their producers
	Kept     int64               `json:"unknown_kept"`
	Records  int64               `json:"records"` // in the log at the end
	Reads    map[string]int64    `json:"reads"`   // by library
	Commits  int64               `json:"commits"` // acknowledged, of one partition each
	Asked    int64               `json:"committed_offsets_asked"`
	Broken   map[Violation]int64 `json:"broken"` // every violation, with 0 too
	Examples []string            `json:"examples,omitempty"`
}

// OK tells that no promise was broken.
func (v *Verdict) OK() bool {
	for _, n := range v.Broken {
		if n > 0 {
			return false
		}
	}
	return true
}

// Checker judges a log of events. It keeps some ten bytes for each record. Not for several goroutines.
type Checker struct {
	v         Verdict
	parts     []part
	lanes     map[laneID]*lane
	next      map[reading]int64            // the offset that a consumer is to see next
	floors    map[uint16]map[int32]int64   // by group and partition: what a question asked from now on is to be told at least
	questions map[question]map[int32]int64 // the floors when they were asked
	begins    map[reading]int64            // the floor when a partition was assigned
	examples  map[Violation]int
}

type part struct {
	sums  []uint32 // of the record at each offset, as it was seen first; 0: none yet
	flags []uint8
	final int64 // records read at the end
	end   int64 // the high watermark at the end; -1: not told
}

// What is known of an offset.
const (
	flagFinal uint8 = 1 << iota
	flagRead        // by the first library; the others follow
)

func flagOf(library uint8) uint8 { return flagRead << library }

const flagAnyRead = flagRead | flagRead<<(libraries-1)

type laneID struct {
	client    uint32
	partition int32
}

// lane is what became of the records of one key.
type lane struct {
	acked   []int64 // offset and 1 by sequence; 0: not acknowledged
	unknown map[uint32]bool
	final   []uint64 // bitmap of the sequences that are in the log
	last    int64    // sequence read last at the end; -1: none
}

type reading struct {
	library   uint8
	who       uint16
	partition int32
}

type question struct {
	group uint16
	id    uint32
}

// NewChecker returns a checker of a topic of so many partitions.
func NewChecker(partitions int) *Checker {
	c := &Checker{parts: make([]part, partitions), lanes: map[laneID]*lane{}, next: map[reading]int64{}, floors: map[uint16]map[int32]int64{},
		questions: map[question]map[int32]int64{}, begins: map[reading]int64{}, examples: map[Violation]int{}}
	for i := range c.parts {
		c.parts[i].end = -1
	}
	c.v.Reads, c.v.Broken = map[string]int64{}, map[Violation]int64{}
	for _, v := range violations {
		c.v.Broken[v] = 0
	}
	return c
}

func (c *Checker) broken(v Violation, format string, args ...any) {
	c.v.Broken[v]++
	if c.examples[v]++; c.examples[v] <= examplesOf {
		c.v.Examples = append(c.v.Examples, string(v)+": "+fmt.Sprintf(format, args...))
	}
}

// Add takes the next event.
func (c *Checker) Add(e Event) {
	switch e.Kind {
	case Acked:
		c.acked(e)
	case Unknown:
		c.v.Unknown++
		l := c.lane(e)
		if l.unknown == nil {
			l.unknown = map[uint32]bool{}
		}
		l.unknown[e.Record.Seq] = true
	case Assigned:
		r := reading{e.Library, e.Who, e.Partition}
		delete(c.next, r)
		c.begins[r] = c.floors[uint16(e.Library)][e.Partition]
	case Read, Above:
		c.read(e)
	case Garbled:
		c.broken(GarbledRead, "partition %d, offset %d, seen by %s", e.Partition, e.Offset, reader(e))
	case Committed:
		c.v.Commits++
		c.raise(e)
	case Asked:
		c.questions[question{e.Who, e.Record.Seq}] = maps.Clone(c.floors[e.Who])
	case Told:
		c.told(e)
	case Final:
		c.final(e)
	case End:
		c.parts[e.Partition].end = e.Offset
	}
}

// Broken tells how many violations there are so far.
func (c *Checker) Broken() (n int64) {
	for _, of := range c.v.Broken {
		n += of
	}
	return n
}

func reader(e Event) string { return fmt.Sprintf("%s %d", libraryNames[e.Library], e.Who) }

func (c *Checker) lane(e Event) *lane {
	id := laneID{e.Record.Client, e.Partition}
	l := c.lanes[id]
	if l == nil {
		l = &lane{last: -1}
		c.lanes[id] = l
	}
	return l
}

// note compares what is at an offset with what was seen there before.
func (c *Checker) note(e Event, how string) (p *part, same bool) {
	p = &c.parts[e.Partition]
	for int64(len(p.sums)) <= e.Offset {
		p.sums, p.flags = append(p.sums, 0), append(p.flags, 0)
	}
	sum := max(e.Sum, 1) // 0 is for none
	if p.sums[e.Offset] == 0 {
		p.sums[e.Offset] = sum
	}
	if same = p.sums[e.Offset] == sum; !same {
		c.broken(TwoValues, "partition %d, offset %d: %s record %d of client %d, another was seen there before", e.Partition, e.Offset, how, e.Record.Seq, e.Record.Client)
	}
	return p, same
}

func (c *Checker) acked(e Event) {
	c.v.Acked++
	l, seq := c.lane(e), e.Record.Seq
	for len(l.acked) <= int(seq) {
		l.acked = append(l.acked, 0)
	}
	if was := l.acked[seq]; was != 0 && was != e.Offset+1 {
		c.broken(Duplicated, "partition %d: record %d of client %d was acknowledged at offsets %d and %d", e.Partition, seq, e.Record.Client, was-1, e.Offset)
	}
	l.acked[seq] = e.Offset + 1
	c.note(e, "an acknowledgement names")
}

func (c *Checker) read(e Event) {
	c.v.Reads[libraryNames[e.Library]]++
	if e.Kind == Above {
		c.broken(Dirty, "partition %d, offset %d: %s saw it above the high watermark", e.Partition, e.Offset, reader(e))
	}
	p, _ := c.note(e, reader(e)+" saw")
	p.flags[e.Offset] |= flagOf(e.Library)
	r := reading{e.Library, e.Who, e.Partition}
	if want, ok := c.next[r]; ok && want != e.Offset {
		c.broken(Disordered, "partition %d: %s saw offset %d after %d", e.Partition, reader(e), e.Offset, want-1)
	}
	c.next[r] = e.Offset + 1
	if floor, ok := c.begins[r]; ok {
		delete(c.begins, r)
		if e.Offset < floor {
			c.broken(LostCommit, "partition %d: %s begins at offset %d, its group had committed %d before", e.Partition, reader(e), e.Offset, floor)
		}
	}
}

// raise notes that an offset of a group was committed.
func (c *Checker) raise(e Event) {
	if c.floors[e.Who] == nil {
		c.floors[e.Who] = map[int32]int64{}
	}
	c.floors[e.Who][e.Partition] = max(c.floors[e.Who][e.Partition], e.Offset)
}

func (c *Checker) told(e Event) {
	c.v.Asked++
	if floor := c.questions[question{e.Who, e.Record.Seq}][e.Partition]; e.Offset < floor {
		c.broken(LostCommit, "partition %d: group %d is said to be at %d, it was at %d when that was asked", e.Partition, e.Who, e.Offset, floor)
	}
	c.raise(e)
}

func (c *Checker) final(e Event) {
	c.v.Records++
	p, same := c.note(e, "the log has")
	if e.Offset != p.final {
		c.broken(Gap, "partition %d: offset %d follows %d", e.Partition, e.Offset, p.final-1)
	}
	p.final = e.Offset + 1
	if !same && p.flags[e.Offset]&flagAnyRead != 0 {
		c.broken(Dirty, "partition %d, offset %d: a reader saw what is not in the log", e.Partition, e.Offset)
	}
	p.flags[e.Offset] |= flagFinal
	l, seq := c.lane(e), e.Record.Seq
	for len(l.final) <= int(seq/64) {
		l.final = append(l.final, 0)
	}
	switch bit := uint64(1) << (seq % 64); {
	case l.final[seq/64]&bit != 0:
		c.broken(Duplicated, "partition %d, offset %d: record %d of client %d is there before", e.Partition, e.Offset, seq, e.Record.Client)
		return
	default:
		l.final[seq/64] |= bit
	}
	if int64(seq) < l.last {
		c.broken(Reordered, "partition %d, offset %d: record %d of client %d is behind record %d", e.Partition, e.Offset, seq, e.Record.Client, l.last)
	}
	l.last = max(l.last, int64(seq))
	if int(seq) < len(l.acked) && l.acked[seq] != 0 && l.acked[seq] != e.Offset+1 {
		c.broken(WrongOffset, "partition %d: record %d of client %d is at offset %d, acknowledged at %d", e.Partition, seq, e.Record.Client, e.Offset, l.acked[seq]-1)
	}
}

// Verdict ends the log: it looks for what never came.
func (c *Checker) Verdict() *Verdict {
	for i := range c.parts {
		c.closePart(int32(i), &c.parts[i])
	}
	ids := slices.SortedFunc(maps.Keys(c.lanes), func(a, b laneID) int {
		if a.client != b.client {
			return int(int64(a.client) - int64(b.client))
		}
		return int(a.partition - b.partition)
	})
	for _, id := range ids {
		l := c.lanes[id]
		in := func(seq int) bool { return seq/64 < len(l.final) && l.final[seq/64]>>(seq%64)&1 != 0 }
		for seq, at := range l.acked {
			if at != 0 && !in(seq) {
				c.broken(Lost, "partition %d: record %d of client %d, acknowledged at offset %d", id.partition, seq, id.client, at-1)
			}
		}
		for seq := range l.unknown {
			if in(int(seq)) {
				c.v.Kept++
			}
		}
	}
	return &c.v
}

func (c *Checker) closePart(i int32, p *part) {
	if p.end >= 0 && p.final < p.end {
		c.broken(Gap, "partition %d: the log ends at %d, its high watermark is %d", i, p.final, p.end)
	}
	for offset, f := range p.flags {
		if f&flagFinal == 0 && f&flagAnyRead != 0 {
			c.broken(Dirty, "partition %d, offset %d: a reader saw it, the log ends at %d", i, offset, p.final)
		}
		for lib := range libraries {
			if f&flagFinal != 0 && f&flagOf(lib) == 0 {
				c.broken(Unread, "partition %d, offset %d: no consumer of %s saw it", i, offset, libraryNames[lib])
			}
		}
	}
}
