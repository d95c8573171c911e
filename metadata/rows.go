package metadata

import (
	"bytes"
	"math"
)

// parseFlat parses the JSON object that encode makes of numbers alone: the
// fields of these names in this order, and nothing else. It returns false, with
// out undefined, for everything else, and for numbers of more than 18 digits:
// then encoding/json has the word, of which a start would need 4 us a row.
func parseFlat(b []byte, names []string, out []int64) bool {
	sep := byte('{')
	for i, name := range names {
		if len(b) < len(name)+4 || b[0] != sep || b[1] != '"' || string(b[2:2+len(name)]) != name {
			return false
		}
		var ok bool
		if b, ok = bytes.CutPrefix(b[2+len(name):], []byte(`":`)); !ok {
			return false
		}
		if out[i], b, ok = parseNumber(b); !ok {
			return false
		}
		sep = ','
	}
	return string(b) == "}\n"
}

// parseNumber parses an integer as JSON writes it, of at most 18 digits, and
// returns what follows.
func parseNumber(b []byte) (v int64, rest []byte, ok bool) {
	b, minus := bytes.CutPrefix(b, []byte("-"))
	n := 0
	for n < len(b) && n <= 18 && b[n] >= '0' && b[n] <= '9' {
		v = v*10 + int64(b[n]-'0')
		n++
	}
	if n == 0 || n > 18 || b[0] == '0' && (n > 1 || minus) {
		return 0, nil, false
	}
	if minus {
		v = -v
	}
	return v, b[n:], true
}

// decodeSegment parses the value of a segment's row.
func decodeSegment(key string, b []byte) (segmentValue, error) {
	names := [...]string{"format", "size", "log_size", "records", "min_ts", "max_ts", "lso", "uploaded_ms"}
	var n [len(names)]int64
	if parseFlat(b, names[:], n[:]) && n[0] == formatVersion {
		return segmentValue{Format: formatVersion, Size: n[1], LogSize: n[2], Records: n[3],
			MinTimestamp: n[4], MaxTimestamp: n[5], LastStable: n[6], Uploaded: n[7]}, nil
	}
	var v segmentValue
	err := decode("row "+key, b, &v)
	return v, err
}

// decodePartition parses the value of a partition's row.
func decodePartition(key string, b []byte) (partitionRow, error) {
	names := [...]string{"format", "epoch", "log_start"}
	var n [len(names)]int64
	if parseFlat(b, names[:], n[:]) && n[0] == formatVersion && n[1] >= math.MinInt32 && n[1] <= math.MaxInt32 {
		return partitionRow{Format: formatVersion, Epoch: int32(n[1]), LogStart: n[2]}, nil
	}
	var v partitionRow
	err := decode("row "+key, b, &v)
	return v, err
}
