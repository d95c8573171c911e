package cli

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
)

// plan works out the new offsets, in order of topics and partitions, and
// warns of those that had to be brought into bounds.
func (r reset) plan(ctx context.Context, adm *kadm.Client) (out []resetOffset, warnings []string, err error) {
	old, err := fetchOffsets(ctx, adm, r.group)
	if err != nil {
		return nil, nil, err
	}
	parts, err := r.partitions(ctx, adm, old)
	if err != nil {
		return nil, nil, err
	}
	for _, topic := range sortedKeys(parts) {
		b, err := topicBounds(ctx, adm, topic, false)
		if err != nil {
			return nil, nil, err
		}
		var times kadm.ListedOffsets
		if r.kind == toTime {
			if times, err = timeOffsets(ctx, adm, topic, r.n); err != nil {
				return nil, nil, err
			}
		}
		for _, p := range parts[topic] {
			o := resetOffset{Topic: topic, Partition: p, Old: -1}
			if c, ok := old.Lookup(topic, p); ok {
				o.Old = c.At
			}
			start, end, err := b.of(topic, p)
			if err != nil {
				return nil, nil, err
			}
			want, err := r.target(&o, start, end, times)
			if err != nil {
				return nil, nil, err
			}
			o.New = min(max(want, start), end)
			switch {
			case want < start:
				warnings = append(warnings, fmt.Sprintf("%s-%d begins at offset %d, not %d: the new offset is %d", topic, p, start, want, o.New))
			case want > end:
				warnings = append(warnings, fmt.Sprintf("%s-%d ends at offset %d, before %d: the new offset is %d", topic, p, end, want, o.New))
			}
			out = append(out, o)
		}
	}
	return out, warnings, nil
}

// target is the offset that is asked for, perhaps out of bounds.
func (r reset) target(o *resetOffset, start, end int64, times kadm.ListedOffsets) (int64, error) {
	switch r.kind {
	case toEarliest:
		return start, nil
	case toLatest:
		return end, nil
	case toCurrent:
		if o.Old < 0 {
			return end, nil
		}
		return o.Old, nil
	case toOffset:
		return r.n, nil
	case toTime:
		return listedAt(times, o.Topic, o.Partition)
	case shiftBy:
		if o.Old < 0 {
			return 0, fmt.Errorf("%w: group %s has no committed offset of %s-%d to shift: use --to-earliest, --to-latest or --to-offset", errUsage, r.group, o.Topic, o.Partition)
		}
		if r.n > 0 && o.Old > math.MaxInt64-r.n {
			return math.MaxInt64, nil
		}
		return o.Old + r.n, nil
	}
	return r.file[o.Topic][o.Partition], nil
}

// partitions are those that the reset is about, by topic, in order.
func (r reset) partitions(ctx context.Context, adm *kadm.Client, old kadm.OffsetResponses) (map[string][]int32, error) {
	asked := r.topics
	if r.all {
		for _, topic := range sortedKeys(old) {
			asked = append(asked, topicParts{topic, sortedParts(old[topic])})
		}
		if len(asked) == 0 {
			return nil, fmt.Errorf("group %s has no committed offsets: name the topics with --topic", r.group)
		}
	}
	for topic, offsets := range r.file {
		asked = append(asked, topicParts{topic, sortedParts(offsets)})
	}
	out := make(map[string][]int32, len(asked))
	for _, tp := range asked {
		d, err := oneTopic(ctx, adm, tp.topic)
		if err != nil {
			return nil, err
		}
		parts, err := choosePartitions(d, tp.parts)
		if err != nil {
			return nil, err
		}
		parts = slices.Clone(parts)
		slices.Sort(parts)
		out[tp.topic] = parts
	}
	return out, nil
}

func sortedParts[V any](m map[int32]V) []int32 {
	out := make([]int32, 0, len(m))
	for p := range m {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}
