package cost

import (
	"math"
	"time"
)

// What an agent's write-ahead stream and its segments are ruled by (docs/design/009-object-stream.md). Tests hold
// that they are those of the code.
const (
	FlushBytes   = 4 << 20 // pending bytes that are put without waiting for the linger
	CarryBytes   = 4 << 20 // carried forward in one object
	Capacity     = 1 << 30 // of the stream, in bytes that are not tiered
	TierMinBytes = 1 << 20 // the least open segment that is closed to make room
	BlockBytes   = 4 << 20 // of a GET of the tiered reader
	ListPage     = 1000    // objects in a LIST
	TierMaxDelay = 10 * time.Minute
)

// StreamObjects is how many objects a stream should have at most: those of 50 s, 512 at least, 1,024 at most.
func StreamObjects(linger time.Duration) float64 {
	return min(max(math.Floor(float64(50*time.Second)/float64(linger)), 512), 1024)
}

// WALPuts is how many objects a second an agent puts to its stream that takes in bytes/s, in batches of batch bytes: one
// for each linger, or for each batch if they come more seldom, or for each 4 MiB if these come sooner.
func WALPuts(in, batch float64, linger time.Duration) float64 {
	return max(min(1/linger.Seconds(), in/batch), in/FlushBytes)
}

// carryShare is how often a byte is carried forward for each window beyond the first that its segment is open, as plays of
// 100, 200 and 400 partitions have it: 0.63, 0.62 and 0.63.
const carryShare = 0.63

// Stream is what an agent's stream and segments come to.
type Stream struct {
	Puts    float64       // objects of the stream a second, without those carried forward
	Carried float64       // bytes/s that are carried forward: appended to the stream once more
	Window  time.Duration // how long a batch may be in the stream before it is tiered or carried forward
	Segment float64       // mean bytes of a segment
	Bytes   float64       // in the stream
}

// NewStream reckons with in bytes/s in batches of batch bytes, spread evenly over partitions whose segments have
// segmentBytes at most.
//
// A partition's open segment grows until it is full, or until the stream wants to be rid of its oldest batch and it has
// TierMinBytes: after TierMaxDelay, when the stream has StreamObjects objects, or when half of Capacity is used. What is
// smaller then is carried forward, a quarter of the stream at once.
func NewStream(in, batch float64, partitions int, segmentBytes float64, linger time.Duration) Stream {
	s := Stream{Puts: WALPuts(in, batch, linger)}
	each := in / float64(partitions)
	// Carrying makes the window shorter, which makes more be carried: the middle of a few rounds is near enough.
	for range 50 {
		w := min(TierMaxDelay.Seconds(), StreamObjects(linger)/(s.Puts+s.Carried/CarryBytes), Capacity/2/(in+s.Carried))
		s.Window = time.Duration(w * float64(time.Second))
		// Open segments hold half of their size in the mean. Where that is a quarter of Capacity, carrying frees too
		// little, and all that are in the way are closed. (One play with 800 partitions: 0.67 MiB each.)
		least := min(TierMinBytes, Capacity/2/float64(partitions))
		s.Segment = min(max(each*w, least), segmentBytes)
		s.Carried = (s.Carried + in*carryShare*max(s.Segment/(each*w)-1, 0)) / 2
	}
	s.Bytes = (in + s.Carried) * s.Window.Seconds()
	return s
}

// CarryPuts is how many objects a second hold what is carried forward.
func (s Stream) CarryPuts() float64 { return s.Carried / CarryBytes }
