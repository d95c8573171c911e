package broker

import (
	"fmt"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// TopicFigures say what a topic takes in both tiers.
type TopicFigures struct {
	Name                    string
	Partitions              int32
	LocalBytes, BucketBytes int64
	// LagBytes are those of closed segments that are not yet in the bucket;
	// LagSince is when the oldest of them was closed. A topic that is not tiered
	// has none.
	LagBytes int64
	LagSince time.Time
	// AtRiskBytes are those that only this disk has, in whole segments: of topics of class
	// local what is not tiered.
	AtRiskBytes int64
	Offsets     []PartitionFigures // by partition, if they were asked for
}

// PartitionFigures are a partition's borders.
type PartitionFigures struct {
	Partition                           int32
	LogStart, LocalStart, HighWatermark int64
}

// Figures measures all topics, by name. It looks at every partition and
// segment: call it now and then, not for every scrape.
func (b *Broker) Figures(offsets bool) []TopicFigures {
	v := b.view.Load()
	out := make([]TopicFigures, 0, len(v.sorted))
	for _, t := range v.sorted {
		f := TopicFigures{Name: t.Name, Partitions: t.Partitions}
		tiered := t.Config.RemoteStorage && !t.Config.RemoteCopyDisabled
		for p := range led(v.parts[t.ID]) {
			u := p.log.Usage(p.tiered.Load())
			f.LocalBytes += u.Bytes
			f.BucketBytes += p.bucketBytes.Load()
			if t.Config.Durability == metadata.DurabilityLocal {
				f.AtRiskBytes += u.UntieredBytes
			}
			if tiered {
				f.LagBytes += u.WaitingBytes
				f.LagSince = earlier(f.LagSince, u.WaitingSince)
			}
			if offsets {
				off := p.log.Offsets()
				f.Offsets = append(f.Offsets, PartitionFigures{Partition: p.tp.Partition, LogStart: off.Start, LocalStart: off.LocalStart, HighWatermark: off.HighWatermark})
			}
		}
		out = append(out, f)
	}
	return out
}

// earlier is the earlier one of two times; zero means none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// LedPartition is a partition that this agent leads.
type LedPartition struct {
	Topic                              string
	TP                                 ids.TopicPartition
	Epoch                              int32
	LogStart, HighWatermark, TieredEnd int64 // TieredEnd is behind the last tiered record
	LocalBytes, BucketBytes            int64
}

// Led lists what this agent leads of a topic, or of all for "", by topic and number.
func (b *Broker) Led(topic string) ([]LedPartition, error) {
	v := b.view.Load()
	topics := v.sorted
	if topic != "" {
		t := b.Topic(topic)
		if t == nil {
			return nil, fmt.Errorf("%w: %s", ErrUnknownTopic, topic)
		}
		topics = []*Topic{t}
	}
	var out []LedPartition
	for _, t := range topics {
		for p := range led(v.parts[t.ID]) {
			off, tiered := p.log.Offsets(), p.tiered.Load()
			out = append(out, LedPartition{Topic: t.Name, TP: p.tp, Epoch: p.LeaderEpoch(), LogStart: off.Start, HighWatermark: off.HighWatermark, TieredEnd: tiered,
				LocalBytes: p.log.Usage(tiered).Bytes, BucketBytes: p.bucketBytes.Load()})
		}
	}
	return out, nil
}

// CountLed counts the partitions that this agent leads.
func (b *Broker) CountLed() (n int) {
	for _, parts := range b.view.Load().parts {
		for range led(parts) {
			n++
		}
	}
	return n
}
