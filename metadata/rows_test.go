package metadata

import (
	"bytes"
	"math"
	"testing"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// slowly is what encoding/json makes of a row.
func slowly[T any](b []byte) (T, error) {
	var v T
	err := decode("row", b, &v)
	return v, err
}

// The values that this program writes, and all that differ from them in one
// byte, are the same rows or errors for the quick parser as for encoding/json.
func TestRowsAsJSON(t *testing.T) {
	var values [][]byte
	for _, v := range []any{
		&segmentValue{Format: formatVersion, Size: 1 << 40, LogSize: 0, Records: 999_999_999_999_999_999, MinTimestamp: -1, MaxTimestamp: 1763751437000, LastStable: 10, Uploaded: 1},
		&segmentValue{Format: formatVersion, Size: math.MaxInt64, MinTimestamp: math.MinInt64},
		&segmentValue{Format: formatVersion + 1},
		&partitionRow{Format: formatVersion, Epoch: math.MaxInt32, LogStart: 5},
		&partitionRow{Format: formatVersion, Epoch: math.MinInt32, LogStart: -5},
	} {
		b, err := encode(v)
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, b)
	}
	same := func(b []byte) {
		t.Helper()
		s, err := decodeSegment("k", b)
		if want, wrong := slowly[segmentValue](b); (err == nil) != (wrong == nil) || err == nil && s != want {
			t.Fatalf("%s: %+v, %v, want %+v, %v", b, s, err, want, wrong)
		}
		p, err := decodePartition("k", b)
		if want, wrong := slowly[partitionRow](b); (err == nil) != (wrong == nil) || err == nil && p != want {
			t.Fatalf("%s: %+v, %v, want %+v, %v", b, p, err, want, wrong)
		}
	}
	for _, b := range values {
		same(b)
		for i := range b {
			same(b[:i])
			same(append(bytes.Clone(b[:i]), b[i+1:]...))
			for _, c := range []byte("-+.0129eE \",:{}[]nx\x00\n") {
				v := bytes.Clone(b)
				v[i] = c
				same(v)
				same(append(append(bytes.Clone(b[:i]), c), b[i:]...))
			}
		}
	}
}

// A start reads a row for each segment in the bucket and each partition: that
// must not cost what encoding/json does.
func TestRowsAreCheap(t *testing.T) {
	id := SegmentID{Base: 5, Last: 1000, Epoch: 3, Incarnation: ids.NewIncarnation(), Generation: 1}
	seg, err := encode(&segmentValue{Format: formatVersion, Size: 12345, LogSize: 11111, Records: 996, MinTimestamp: -1, MaxTimestamp: 1763751437000, LastStable: 1001, Uploaded: 1763751438000})
	if err != nil {
		t.Fatal(err)
	}
	part, err := encode(&partitionRow{Format: formatVersion, Epoch: 3, LogStart: 100})
	if err != nil {
		t.Fatal(err)
	}
	it := kv.Item{Key: id.row(ids.TopicPartition{Topic: ids.NewTopicID(), Partition: 77}), Value: seg}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := parseSegmentRow(it); err != nil {
			t.Fatal(err)
		}
	}); n > 10 {
		t.Errorf("%.0f allocations to parse a segment's row", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if v, err := decodePartition("k", part); err != nil || v.LogStart != 100 {
			t.Fatal(v, err)
		}
	}); n > 0 {
		t.Errorf("%.0f allocations to parse a partition's row", n)
	}
}
