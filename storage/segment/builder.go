package segment

import (
	"fmt"
	"hash/crc32"
	"sort"
	"strconv"
	"strings"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// LogName is the file name of the log of the segment that begins at base.
func LogName(base int64) string { return fmt.Sprintf("%020d.log", base) }

// IndexName is the file name of its trailer.
func IndexName(base int64) string { return fmt.Sprintf("%020d.idx", base) }

// ParseName parses the forms of LogName and IndexName.
func ParseName(name string) (base int64, isIndex bool, err error) {
	num, ok := strings.CutSuffix(name, ".log")
	if !ok {
		num, isIndex = strings.CutSuffix(name, ".idx")
	}
	n, err := strconv.ParseUint(num, 10, 63)
	if !ok && !isIndex || err != nil || len(num) != 20 {
		return 0, false, fmt.Errorf("segment: unknown file name %q", name)
	}
	return int64(n), isIndex, nil
}

// Builder collects the indexes of a segment while it is appended to. It is not
// safe for concurrent use.
type Builder struct {
	meta     Meta
	interval int64
	spans    []Span
	spanAt   int64 // bytes in the open span
	ended    bool  // the next batch begins a span
	epochs   []EpochStart
	comb     combiner
}

// NewBuilder returns the builder of an empty segment. interval is the least
// size of a span in bytes (index.interval.bytes).
func NewBuilder(tp ids.TopicPartition, base int64, interval int) *Builder {
	return &Builder{meta: Meta{TP: tp, Base: base, Last: base - 1, MinTimestamp: -1, MaxTimestamp: -1}, interval: int64(max(interval, 1))}
}

// Add takes the next batch: its header as stamped, and its bytes, of which
// only the first HeadSize are read, because the batch's own CRC is known; all
// of them when the batch has a delete horizon.
func (b *Builder) Add(h batch.Header, raw []byte) {
	size := int64(h.Size())
	head := raw[:HeadSize]
	if len(b.spans) == 0 || b.ended || b.spanAt >= b.interval {
		b.spans = append(b.spans, Span{Pos: b.meta.LogSize, Base: h.BaseOffset, MaxTimestamp: h.MaxTimestamp})
		b.spanAt, b.ended = 0, false
	}
	s := &b.spans[len(b.spans)-1]
	s.MaxTimestamp = max(s.MaxTimestamp, h.MaxTimestamp)
	s.HeadCRC = crc32.Update(s.HeadCRC, castagnoli, head)
	b.spanAt += size
	m := &b.meta
	m.LogCRC = b.comb.combine(crc32.Update(m.LogCRC, castagnoli, head), h.CRC, size-HeadSize)
	m.LogSize += size
	m.Records += int64(h.NumRecords)
	m.Last, m.Epoch = h.LastOffset(), h.LeaderEpoch
	m.MaxTimestamp = max(m.MaxTimestamp, h.MaxTimestamp)
	if first := firstTimestamp(&h, raw); m.MinTimestamp < 0 || first < m.MinTimestamp {
		m.MinTimestamp = first
	}
	if n := len(b.epochs); n == 0 || b.epochs[n-1].Epoch < h.LeaderEpoch {
		b.epochs = append(b.epochs, EpochStart{Epoch: h.LeaderEpoch, Start: h.BaseOffset})
	}
}

// firstTimestamp is the least timestamp of a batch as its header tells it. A
// delete horizon has taken its place there, so then the records are asked.
func firstTimestamp(h *batch.Header, raw []byte) int64 {
	first := min(h.BaseTimestamp, h.MaxTimestamp)
	if !h.DeleteHorizon() {
		return first
	}
	first = h.MaxTimestamp
	for r, err := range batch.Records(raw, batch.Limits{}) {
		if err != nil {
			return 0 // as old as can be: nobody leaves the segment out for it
		}
		first = min(first, r.Timestamp)
	}
	return first
}

// EndSpan makes the next batch begin a span.
func (b *Builder) EndSpan() { b.ended = true }

// Size is the bytes of batches taken.
func (b *Builder) Size() int64 { return b.meta.LogSize }

// Meta describes the segment so far.
func (b *Builder) Meta() Meta { return b.meta }

// Lookup returns the span that holds offset as positions in the log; the last
// span ends at Size.
func (b *Builder) Lookup(offset int64) (pos, end int64) {
	return lookup(b.spans, offset, b.meta.LogSize)
}

// SpansFrom returns the spans from the one that holds offset on, at least one
// and as many as start within limit bytes, that end at or before avail, and
// where the last of them ends.
func (b *Builder) SpansFrom(offset, limit, avail int64) ([]Span, int64) {
	return spansFrom(b.spans, offset, limit, b.meta.LogSize, avail)
}

// LookupTime returns the first span with a timestamp >= ts that ends behind
// offset from: its first offset and the one behind its last.
func (b *Builder) LookupTime(ts, from int64) (base, end int64, ok bool) {
	return lookupTime(b.spans, ts, from, b.meta.Last+1)
}

// Trailer encodes the trailer. lastStable is the last stable offset now.
func (b *Builder) Trailer(lastStable int64, aborted []AbortedTxn, producers []ProducerState) []byte {
	m := b.meta
	m.LastStable = lastStable
	return encodeTrailer(&m, b.spans, aborted, producers, b.epochs)
}

// Inherited is what a rewritten segment takes over from those it replaces,
// because its batches no longer tell it.
type Inherited struct {
	Last       int64 // last offset of the range, at least that of the last batch
	LastStable int64
	Aborted    []AbortedTxn
	Producers  []ProducerState
	Epochs     []EpochStart // all of the range, also those without a batch left
}

// RewriteTrailer encodes the trailer of a rewritten segment.
func (b *Builder) RewriteTrailer(in Inherited) []byte {
	b.meta.Last = max(b.meta.Last, in.Last)
	b.epochs = in.Epochs
	if n := len(in.Epochs); n > 0 {
		b.meta.Epoch = in.Epochs[n-1].Epoch
	}
	return b.Trailer(in.LastStable, in.Aborted, in.Producers)
}

// ObjectCRC is the CRC32C of the log followed by the trailer.
func (b *Builder) ObjectCRC(trailer []byte) uint32 {
	return crc32.Update(b.meta.LogCRC, castagnoli, trailer)
}

func lookup(spans []Span, offset, size int64) (pos, end int64) {
	i := sort.Search(len(spans), func(i int) bool { return spans[i].Base > offset })
	if i == 0 {
		return 0, 0
	}
	end = size
	if i < len(spans) {
		end = spans[i].Pos
	}
	return spans[i-1].Pos, end
}

func spansFrom(spans []Span, offset, limit, size, avail int64) ([]Span, int64) {
	i := sort.Search(len(spans), func(i int) bool { return spans[i].Base > offset }) - 1
	if i < 0 {
		return nil, 0
	}
	j, end := i, spans[i].Pos
	for j < len(spans) && (j == i || spans[j].Pos-spans[i].Pos < limit) {
		next := size
		if j+1 < len(spans) {
			next = spans[j+1].Pos
		}
		if next > avail {
			break
		}
		end = next
		j++
	}
	return append([]Span(nil), spans[i:j]...), end
}

func lookupTime(spans []Span, ts, from, logEnd int64) (base, end int64, ok bool) {
	for i, s := range spans {
		end := logEnd
		if i+1 < len(spans) {
			end = spans[i+1].Base
		}
		if s.MaxTimestamp >= ts && end > from {
			return s.Base, end, true
		}
	}
	return 0, 0, false
}
