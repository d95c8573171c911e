package broker

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/cirrolog/cirrolog/services/group"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// GroupLag is how far a group is behind in a topic, over all its partitions.
type GroupLag struct {
	Group, Topic string
	Messages     int64 // offsets between the commits and the high watermarks
	// Since is the time of the oldest record that is not consumed, as its batch
	// tells it; zero when there is none, or it is not known.
	Since time.Time
}

// LagMeter measures the lag of the consumer groups that are loaded. It
// remembers the times of records between its rounds; it is for one goroutine.
type LagMeter struct {
	b                *Broker
	groups, series   int
	known, remembers map[place]int64 // ms since 1970, -1 unknown
	lookups          int
}

// place is an offset of a partition.
type place struct {
	tp     ids.TopicPartition
	offset int64
}

const (
	// lagLookups bounds how many records are looked at in one round.
	lagLookups = 2000
	// lagLookupTime bounds the wait for one of them.
	lagLookupTime = time.Second
)

// NewLagMeter returns a meter for at most so many groups, and pairs of group
// and topic.
func (b *Broker) NewLagMeter(groups, series int) *LagMeter {
	return &LagMeter{b: b, groups: groups, series: series, known: map[place]int64{}}
}

// Measure returns the lags by group and topic, and the number of groups that
// were left out. It reads segment indexes and at most lagLookups batches that
// are in memory or on this disk, and nothing from the bucket.
func (m *LagMeter) Measure(ctx context.Context) (lags []GroupLag, leftOut int) {
	commits, leftOut := m.commits()
	m.remembers, m.lookups = make(map[place]int64, len(m.known)), 0
	type key struct{ group, topic string }
	sums := map[key]*GroupLag{}
	for _, c := range commits {
		p := m.partition(&c)
		if p == nil {
			continue
		}
		k := key{c.GroupID, c.Topic}
		sum := sums[k]
		if sum == nil {
			sum = &GroupLag{Group: c.GroupID, Topic: c.Topic}
			sums[k] = sum
		}
		off := p.log.Offsets()
		next := max(c.Offset, off.Start)
		if next >= off.HighWatermark {
			continue
		}
		sum.Messages += off.HighWatermark - next
		if ts := m.timeOf(ctx, p, next); ts >= 0 {
			sum.Since = earlier(sum.Since, time.UnixMilli(ts))
		}
	}
	m.known, m.remembers = m.remembers, nil
	for _, l := range sums {
		lags = append(lags, *l)
	}
	slices.SortFunc(lags, func(a, b GroupLag) int { return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Topic, b.Topic)) })
	return m.bound(lags, leftOut)
}

// bound cuts the list to the allowed number of series, whole groups at a time.
func (m *LagMeter) bound(lags []GroupLag, leftOut int) ([]GroupLag, int) {
	if len(lags) <= m.series {
		return lags, leftOut
	}
	n := m.series
	for n > 0 && lags[n-1].Group == lags[n].Group {
		n--
	}
	last := ""
	for i, l := range lags[n:] {
		if i == 0 || l.Group != last {
			leftOut++
		}
		last = l.Group
	}
	return lags[:n], leftOut
}

// maxLagName is the longest name of a group, in bytes, that is measured: names
// become labels.
const maxLagName = 255

// commits copies the committed offsets of the groups that are measured: of too
// many, the first by name, so that they are the same ones every time.
func (m *LagMeter) commits() (out []group.Committed, leftOut int) {
	var names []string
	last := ""
	m.b.groups.Committed(func(c group.Committed) bool {
		switch {
		case c.GroupID == last:
		case len(c.GroupID) > maxLagName || !utf8.ValidString(c.GroupID):
			leftOut++
		default:
			names = append(names, c.GroupID)
		}
		last = c.GroupID
		return true
	})
	slices.Sort(names)
	chosen := map[string]bool{}
	for _, n := range names[:min(len(names), m.groups)] {
		chosen[n] = true
	}
	m.b.groups.Committed(func(c group.Committed) bool {
		if chosen[c.GroupID] {
			out = append(out, c)
		}
		return true
	})
	return out, leftOut + max(len(names)-m.groups, 0)
}

// partition returns the partition of a commit, nil if it is one of a topic that
// is no more.
func (m *LagMeter) partition(c *group.Committed) *Partition {
	t := m.b.Topic(c.Topic)
	if t == nil || c.TopicID != (group.TopicID{}) && c.TopicID != group.TopicID(t.ID) {
		return nil
	}
	p, err := m.b.Partition(t.ID, c.Partition)
	if err != nil {
		return nil // no such partition
	}
	return p
}

// timeOf returns the time of the record at an offset, -1 if it can't be told.
func (m *LagMeter) timeOf(ctx context.Context, p *Partition, offset int64) int64 {
	at := place{p.tp, offset}
	if ts, ok := m.known[at]; ok {
		m.remembers[at] = ts
		return ts
	}
	if ts, ok := m.remembers[at]; ok {
		return ts
	}
	if m.lookups >= lagLookups || ctx.Err() != nil {
		return -1
	}
	m.lookups++
	ctx, cancel := context.WithTimeout(ctx, lagLookupTime)
	defer cancel()
	ts, err := p.timeOf(ctx, offset)
	if err != nil {
		return -1 // again in the next round
	}
	m.remembers[at] = ts
	return ts
}

// timeOf returns the first timestamp of the batch that holds offset; when that
// is only in the bucket, the least timestamp of its segment. -1 means none.
func (p *Partition) timeOf(ctx context.Context, offset int64) (int64, error) {
	r, err := p.log.Read(ctx, offset, 1, true)
	if errors.Is(err, storage.ErrNotLocal) {
		rows, err := p.b.index.Segments(ctx, p.tp, offset, 1)
		if err != nil || len(rows) == 0 {
			return -1, err
		}
		return rows[0].MinTimestamp, nil
	}
	if err != nil {
		return -1, err
	}
	defer r.Release()
	if len(r.Data) == 0 {
		return -1, nil
	}
	h, err := batch.Parse(r.Data[0])
	if err != nil {
		return -1, err
	}
	if h.LogAppendTime() {
		return h.MaxTimestamp, nil
	}
	return h.BaseTimestamp, nil
}
