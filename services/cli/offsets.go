package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// offsetSpec says where reading begins, and perhaps ends:
//
//	start, end     the first record there is; behind the last one
//	N              offset N
//	+N, -N         N records after the start; N before the end
//	@T             first record at or after time T
//	@T:@T, @T:end  the same, up to (without) the second place
//
// A time is ms since 1970, RFC 3339, a date, or how long ago with a minus sign
// (-1h, -7d).
type offsetSpec struct {
	kind  specKind
	n     int64 // offset, or how many records from start or end
	since int64 // ms since 1970
	until int64 // ms since 1970; endOfTime: the end at the time of asking; noEnd: none
}

type specKind uint8

const (
	atStart specKind = iota + 1
	atEnd
	atOffset
	afterStart
	beforeEnd
	atTime
)

const (
	endOfTime = math.MaxInt64
	noEnd     = -1
)

func parseOffsetSpec(s string, now time.Time) (offsetSpec, error) {
	bad := fmt.Errorf("%w: offset %q: want start, end, N, +N, -N, @TIME or @TIME:@TIME", errUsage, s)
	spec := offsetSpec{until: noEnd}
	switch {
	case s == "start":
		spec.kind = atStart
		return spec, nil
	case s == "end":
		spec.kind = atEnd
		return spec, nil
	case strings.HasPrefix(s, "@"):
		return parseTimeSpec(s[1:], now)
	case strings.HasPrefix(s, "+"):
		spec.kind = afterStart
	case strings.HasPrefix(s, "-"):
		spec.kind = beforeEnd
	default:
		spec.kind = atOffset
	}
	digits := s
	if spec.kind != atOffset {
		digits = s[1:]
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || strings.HasPrefix(digits, "+") {
		return offsetSpec{}, bad
	}
	spec.n = n
	return spec, nil
}

func parseTimeSpec(s string, now time.Time) (offsetSpec, error) {
	spec := offsetSpec{kind: atTime, until: noEnd}
	first, second, ranged := strings.Cut(s, ":@")
	if !ranged {
		if before, ok := strings.CutSuffix(s, ":end"); ok {
			first, spec.until = before, endOfTime
		}
	}
	var err error
	if spec.since, err = parseTime(first, now); err != nil {
		return spec, fmt.Errorf("%w: %w", errUsage, err)
	}
	if ranged {
		if spec.until, err = parseTime(second, now); err != nil {
			return spec, fmt.Errorf("%w: %w", errUsage, err)
		}
		if spec.until < spec.since {
			return spec, fmt.Errorf("%w: offset @%s: it ends before it begins", errUsage, s)
		}
	}
	return spec, nil
}

// parseTime returns ms since 1970.
func parseTime(s string, now time.Time) (int64, error) {
	if ago, ok := strings.CutPrefix(s, "-"); ok {
		d, err := parseDuration(ago)
		if err != nil {
			return 0, err
		}
		return now.Add(-d).UnixMilli(), nil
	}
	if ms, err := strconv.ParseInt(s, 10, 64); err == nil && ms >= 0 {
		return ms, nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly, "2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if t, err := time.Parse(layout, s); err == nil && t.UnixMilli() >= 0 {
			return t.UnixMilli(), nil
		}
	}
	return 0, fmt.Errorf("%q is not a time: want ms since 1970, 2026-01-31, 2026-01-31T15:04:05Z or, for ago, -1h", s)
}

// partRange is a range of offsets of one partition. The JSON form is part of
// checkpoints.
type partRange struct {
	Partition int32 `json:"partition"`
	From      int64 `json:"from"`
	To        int64 `json:"to"` // exclusive; math.MaxInt64: for ever
}

func (r partRange) empty() bool { return r.From >= r.To }

// listedAt is the offset listed for a partition.
func listedAt(l kadm.ListedOffsets, topic string, p int32) (int64, error) {
	o, ok := l.Lookup(topic, p)
	if !ok {
		return 0, fmt.Errorf("list offsets of %s: no answer for partition %d", topic, p)
	}
	if o.Err != nil {
		return 0, fmt.Errorf("list offsets of %s, partition %d: %w", topic, p, o.Err)
	}
	return o.Offset, nil
}

const (
	leaderWait  = 20 * time.Second // for another agent to lead what a dead one led: some leases
	leaderPause = 300 * time.Millisecond
)

// withLeaders lists offsets. They come from the leaders; while one can't be reached it asks again, as clients that
// produce and fetch do.
func withLeaders(ctx context.Context, list func() (kadm.ListedOffsets, error)) (kadm.ListedOffsets, error) {
	for end := time.Now().Add(leaderWait); ; {
		l, err := list()
		if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "dial" || time.Now().After(end) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(leaderPause):
		}
	}
}

// listThree lists start, end and local start offsets.
func listThree(ctx context.Context, adm *kadm.Client, topics ...string) (listed [3]kadm.ListedOffsets, err error) {
	for i, list := range []func(context.Context, ...string) (kadm.ListedOffsets, error){adm.ListStartOffsets, adm.ListEndOffsets, adm.ListLocalLogStartOffsets} {
		if listed[i], err = withLeaders(ctx, func() (kadm.ListedOffsets, error) { return list(ctx, topics...) }); err != nil {
			return listed, fmt.Errorf("list offsets of %s: %w", strings.Join(topics, ", "), err)
		}
	}
	return listed, nil
}

// bounds are the offsets a topic has now.
type bounds struct{ starts, ends kadm.ListedOffsets }

// topicBounds lists first and end offsets; committed: the end is the last stable
// offset.
func topicBounds(ctx context.Context, adm *kadm.Client, topic string, committed bool) (b bounds, err error) {
	if b.starts, err = withLeaders(ctx, func() (kadm.ListedOffsets, error) { return adm.ListStartOffsets(ctx, topic) }); err != nil {
		return b, fmt.Errorf("list offsets of %s: %w", topic, err)
	}
	list := adm.ListEndOffsets
	if committed {
		list = adm.ListCommittedOffsets
	}
	if b.ends, err = withLeaders(ctx, func() (kadm.ListedOffsets, error) { return list(ctx, topic) }); err != nil {
		return b, fmt.Errorf("list offsets of %s: %w", topic, err)
	}
	return b, nil
}

// of returns the first and the end offset of a partition.
func (b bounds) of(topic string, p int32) (start, end int64, err error) {
	if start, err = listedAt(b.starts, topic, p); err != nil {
		return 0, 0, err
	}
	end, err = listedAt(b.ends, topic, p)
	return start, end, err
}

// timeOffsets lists the first offsets at or after a time, the end where there
// is none. It returns nil for noEnd and endOfTime.
func timeOffsets(ctx context.Context, adm *kadm.Client, topic string, ms int64) (kadm.ListedOffsets, error) {
	if ms == noEnd || ms == endOfTime {
		return nil, nil
	}
	l, err := withLeaders(ctx, func() (kadm.ListedOffsets, error) { return adm.ListOffsetsAfterMilli(ctx, ms, topic) })
	if err != nil {
		return nil, fmt.Errorf("list offsets of %s at %d: %w", topic, ms, err)
	}
	return l, nil
}

// resolve turns a specification into ranges of offsets. toEnd bounds them by
// the end there is now.
func (s offsetSpec) resolve(ctx context.Context, adm *kadm.Client, topic string, parts []int32, b bounds, toEnd bool) ([]partRange, error) {
	var since, until kadm.ListedOffsets
	var err error
	if s.kind == atTime {
		if since, err = timeOffsets(ctx, adm, topic, s.since); err != nil {
			return nil, err
		}
		if until, err = timeOffsets(ctx, adm, topic, s.until); err != nil {
			return nil, err
		}
	}
	var out []partRange
	for _, p := range parts {
		start, end, err := b.of(topic, p)
		if err != nil {
			return nil, err
		}
		r := partRange{Partition: p, From: start, To: math.MaxInt64}
		switch s.kind {
		case atEnd:
			r.From = end
		case atOffset:
			r.From = max(start, s.n)
		case afterStart:
			r.From = start + min(s.n, math.MaxInt64-1-start)
		case beforeEnd:
			r.From = max(start, end-s.n)
		case atTime:
			if r.From, err = listedAt(since, topic, p); err != nil {
				return nil, err
			}
		}
		if toEnd || s.until == endOfTime {
			r.To = end
		}
		if until != nil {
			if r.To, err = listedAt(until, topic, p); err != nil {
				return nil, err
			}
		}
		out = append(out, r)
	}
	return out, nil
}
