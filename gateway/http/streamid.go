package httpgate

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// The id of an SSE event tells where the stream is in all of its partitions, so
// that a client that comes back with it in Last-Event-ID neither misses a record
// nor gets one again. Up to idPartitions it is the JSON of KafkaSSE, an array of
// {"topic","partition","offset"} with the offsets delivered last; for more, the
// shorter "v1:" and PARTITION=NEXT OFFSET, with commas. Partitions of which
// nothing was passed are left out of both.
const (
	idPartitions   = 16
	tailPartitions = 1000 // of one stream; ids of more don't fit into a request's header
)

// appendStreamID adds the id of a stream that goes on at next.
func appendStreamID(b []byte, topic string, next map[int32]int64) []byte {
	if len(next) > idPartitions {
		return appendPlaces(b, next)
	}
	b = append(b, '[')
	n := 0
	add := func(p int32, at int64) {
		if at <= 0 {
			return
		}
		if n++; n > 1 {
			b = append(b, ',')
		}
		b = appendString(append(b, `{"topic":`...), topic)
		b = strconv.AppendInt(append(b, `,"partition":`...), int64(p), 10)
		b = append(strconv.AppendInt(append(b, `,"offset":`...), at-1, 10), '}')
	}
	if len(next) == 1 { // the usual case needs no order
		for p, at := range next {
			add(p, at)
		}
	} else {
		for _, p := range slices.Sorted(maps.Keys(next)) {
			add(p, next[p])
		}
	}
	return append(b, ']')
}

const (
	placesMark = "v1:"
	maxPlace   = 1 << 62 // the largest offset that an id or a cursor may name
)

// appendPlaces adds "v1:" and PARTITION=OFFSET of those that are not at 0.
func appendPlaces(b []byte, next map[int32]int64) []byte {
	b = append(b, placesMark...)
	sep := false
	for _, p := range slices.Sorted(maps.Keys(next)) {
		if next[p] <= 0 {
			continue
		}
		if sep {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(strconv.AppendInt(b, int64(p), 10), '='), next[p], 10)
		sep = true
	}
	return b
}

// parsePlaces is appendPlaces back.
func parsePlaces(s string) (map[int32]int64, bool) {
	next := map[int32]int64{}
	list, ok := strings.CutPrefix(s, placesMark)
	if !ok || list == "" {
		return next, ok
	}
	for pair := range strings.SplitSeq(list, ",") {
		ps, os, _ := strings.Cut(pair, "=")
		p, err1 := strconv.ParseInt(ps, 10, 32)
		at, err2 := strconv.ParseInt(os, 10, 64)
		if err1 != nil || err2 != nil || p < 0 || at < 0 || at > maxPlace {
			return nil, false
		}
		next[int32(p)] = at
	}
	return next, true
}

// parseStreamID reads an id: the next offsets by partition and, as KafkaSSE
// allows, timestamps (ms) in place of some.
func parseStreamID(id, topic string) (next, times map[int32]int64, err error) {
	times = map[int32]int64{}
	if strings.HasPrefix(id, placesMark) {
		next, ok := parsePlaces(id)
		if !ok {
			return nil, nil, errStreamID
		}
		return next, times, nil
	}
	next = map[int32]int64{}
	var at []struct {
		Topic     string
		Partition *int32
		Offset    *int64
		Timestamp *int64
	}
	if err := json.Unmarshal([]byte(id), &at); err != nil {
		return nil, nil, errStreamID
	}
	for _, p := range at {
		switch {
		case p.Topic != topic:
			return nil, nil, fail(400, "The Last-Event-ID is of another topic.")
		case p.Partition == nil || *p.Partition < 0:
			return nil, nil, errStreamID
		case p.Offset != nil && *p.Offset >= -1 && *p.Offset < maxPlace:
			next[*p.Partition] = *p.Offset + 1
		case p.Offset == nil && p.Timestamp != nil && *p.Timestamp >= 0:
			times[*p.Partition] = *p.Timestamp
		default:
			return nil, nil, errStreamID
		}
	}
	return next, times, nil
}

var errStreamID = fail(400, "The Last-Event-ID is damaged: send the id of an event as it came, or none.")
