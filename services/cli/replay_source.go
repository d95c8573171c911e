package cli

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// replaySource is where replay reads a topic from.
type replaySource interface {
	// id tells this topic from a later one of the same name.
	id() string
	// bounds returns the offsets of all partitions now, in order.
	bounds(ctx context.Context) ([]partRange, error)
	// offsetAt is the first offset in r at or after a time (ms since 1970), r.To
	// if there is none.
	offsetAt(ctx context.Context, r partRange, ms int64) (int64, error)
	// read calls emit for the records of r in order. A record and what it points
	// to is valid during the call only.
	read(ctx context.Context, r partRange, emit func(*kgo.Record) error) error
	// segments returns what holds the offsets of the ranges.
	segments(ctx context.Context, ranges []partRange) ([]planSegment, error)
	close() error
}

// selection is what part of a topic to replay; -1 is not given.
type selection struct {
	partitions       []int32
	from, to         int64
	fromTime, toTime int64
}

// ranges fixes the selection on the offsets there are now.
func (s selection) ranges(ctx context.Context, src replaySource) ([]partRange, error) {
	all, err := src.bounds(ctx)
	if err != nil {
		return nil, err
	}
	var out []partRange
	wanted := map[int32]bool{}
	for _, p := range s.partitions {
		wanted[p] = true
	}
	for _, r := range all {
		if len(s.partitions) > 0 && !wanted[r.Partition] {
			continue
		}
		delete(wanted, r.Partition)
		whole := r
		if s.from >= 0 {
			r.From = max(r.From, s.from)
		}
		if s.to >= 0 {
			r.To = min(r.To, s.to)
		}
		if s.fromTime >= 0 {
			at, err := src.offsetAt(ctx, whole, s.fromTime)
			if err != nil {
				return nil, err
			}
			r.From = max(r.From, at)
		}
		if s.toTime >= 0 {
			at, err := src.offsetAt(ctx, whole, s.toTime)
			if err != nil {
				return nil, err
			}
			r.To = min(r.To, at)
		}
		r.To = max(r.To, r.From)
		out = append(out, r)
	}
	for p := range wanted {
		return nil, fmt.Errorf("%w: there is no partition %d, only 0 to %d", errUsage, p, len(all)-1)
	}
	return out, nil
}

// brokerSource reads through the brokers.
type brokerSource struct {
	a       *app
	cl      *kgo.Client
	adm     *kadm.Client
	topic   string
	details kadm.TopicDetail
	times   map[int64]kadm.ListedOffsets
}

func (a *app) newBrokerSource(ctx context.Context, topic string) (*brokerSource, error) {
	cl, err := a.client(ctx, consumerOptions(false)...)
	if err != nil {
		return nil, err
	}
	adm := kadm.NewClient(cl)
	d, err := oneTopic(ctx, adm, topic)
	if err != nil {
		cl.Close()
		return nil, err
	}
	return &brokerSource{a: a, cl: cl, adm: adm, topic: topic, details: d, times: map[int64]kadm.ListedOffsets{}}, nil
}

func (s *brokerSource) id() string { return topicID(s.details.ID) }

func (s *brokerSource) close() error {
	s.cl.Close()
	return nil
}

func (s *brokerSource) bounds(ctx context.Context) ([]partRange, error) {
	b, err := topicBounds(ctx, s.adm, s.topic, false)
	if err != nil {
		return nil, err
	}
	var out []partRange
	for _, p := range s.details.Partitions.Numbers() {
		start, end, err := b.of(s.topic, p)
		if err != nil {
			return nil, err
		}
		out = append(out, partRange{Partition: p, From: start, To: end})
	}
	return out, nil
}

func (s *brokerSource) offsetAt(ctx context.Context, r partRange, ms int64) (int64, error) {
	l, ok := s.times[ms]
	if !ok {
		var err error
		if l, err = timeOffsets(ctx, s.adm, s.topic, ms); err != nil {
			return 0, err
		}
		s.times[ms] = l
	}
	at, err := listedAt(l, s.topic, r.Partition)
	return min(at, r.To), err
}

func (s *brokerSource) read(ctx context.Context, r partRange, emit func(*kgo.Record) error) error {
	return readRanges(ctx, s.cl, s.topic, []fetchRange{{r, r.From}},
		func(_ *kgo.FetchPartition, rec *kgo.Record) error { return emit(rec) }, func() error { return nil })
}

// segments asks the admin API. A bucket segment that is on disk as well costs no GET.
func (s *brokerSource) segments(ctx context.Context, ranges []partRange) ([]planSegment, error) {
	list, err := s.a.segmentList(ctx, s.topic, -1)
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	local := map[int32]int64{}
	for _, g := range list.Segments {
		if at, ok := local[g.Partition]; g.Tier == "local" && (!ok || g.Base < at) {
			local[g.Partition] = g.Base
		}
	}
	var out []planSegment
	for _, r := range ranges {
		limit, ok := local[r.Partition]
		if !ok {
			limit = math.MaxInt64
		}
		for _, g := range list.Segments {
			if g.Partition != r.Partition || g.Tier == "bucket" && g.Base >= limit || g.Last < g.Base {
				continue
			}
			p := planSegment{Partition: g.Partition, Tier: g.Tier, Base: g.Base, Last: g.Last, Size: g.Bytes, Key: g.Key}
			if p.clip(r); p.Bytes > 0 {
				p.price(1)
				out = append(out, p)
			}
		}
	}
	return out, nil
}

var errMissing = errors.New("records are missing")
