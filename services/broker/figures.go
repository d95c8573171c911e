package broker

import "time"

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
	Offsets  []PartitionFigures // by partition, if they were asked for
}

// PartitionFigures are a partition's borders.
type PartitionFigures struct{ LogStart, LocalStart, HighWatermark int64 }

// Figures measures all topics, by name. It looks at every partition and
// segment: call it now and then, not for every scrape.
func (b *Broker) Figures(offsets bool) []TopicFigures {
	v := b.view.Load()
	out := make([]TopicFigures, 0, len(v.sorted))
	for _, t := range v.sorted {
		f := TopicFigures{Name: t.Name, Partitions: t.Partitions}
		tiered := t.Config.RemoteStorage && !t.Config.RemoteCopyDisabled
		for _, p := range v.parts[t.ID] {
			u := p.log.Usage(p.tiered.Load())
			f.LocalBytes += u.Bytes
			f.BucketBytes += p.bucketBytes.Load()
			if tiered {
				f.LagBytes += u.WaitingBytes
				f.LagSince = earlier(f.LagSince, u.WaitingSince)
			}
			if offsets {
				off := p.log.Offsets()
				f.Offsets = append(f.Offsets, PartitionFigures{LogStart: off.Start, LocalStart: off.LocalStart, HighWatermark: off.HighWatermark})
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
