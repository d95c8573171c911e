package httpgate

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/storage/batch"
)

func fuzzTopic() kadm.TopicDetail {
	return kadm.TopicDetail{Topic: "t", Partitions: kadm.PartitionDetails{0: {}, 1: {}, 2: {}}}
}

// refused checks that an error is an answer with one of some statuses.
func refused(t *testing.T, err error, statuses ...int) {
	t.Helper()
	if e, ok := errors.AsType[*apiError](err); !ok || !slices.Contains(statuses, e.status()) {
		t.Fatalf("error %v, want a status of %v", err, statuses)
	}
}

// FuzzRecordLines: lines with format=records are refused with an answer, or
// give what encoding/json finds in them; what a read shows of these records
// gives the same records again.
func FuzzRecordLines(f *testing.F) {
	for _, s := range []string{
		`{"key":"k","value":{"a":[1]},"headers":[{"key":"h","value":"v"},{"key":"n","value":null},{"key":"b","value_base64":"/w=="}],"timestamp":1700000000000}`,
		"{}\n{\"key\":null}\r\n\n {\"partition\":2}", `{"key_base64":"/wA=","value_base64":"gA=="}`, `{"key":"","value":"\u0000\"\\\n\u2028\ud83d\ude00 é"}`,
		`{"value":"x","\u0076alue":2}`, `{"value":"\ud800"}`, `{"value":"` + "\ufffd" + `\ufffd"}`, `{"value": -1.5e3 , "offset" : [] }`, `{"headers":[],"timestamp":null,"partition":null}`, `[1]`, `{"a":1}`, "{}\f", "\xff", `{"topic":{"a":"}"},"value":true}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		sent := bytes.Clone(body)
		template := &kgo.Record{Topic: "t", Partition: -1, Key: []byte("of the request"), Headers: []kgo.RecordHeader{{Key: "a"}}}
		recs, numbers, err := keyedLines(body, true, template, fuzzTopic())
		if err != nil {
			refused(t, err, 404, 413, 422)
			return
		}
		if !bytes.Equal(sent, body) {
			t.Fatal("the body was written to")
		}
		lines := bytes.Split(body, []byte("\n"))
		for i, r := range recs {
			sameLine(t, lines[numbers[i]-1], r)
			again := &kgo.Record{Topic: "t", Partition: -1}
			shown := *r
			if shown.Partition = max(0, r.Partition); r.Timestamp.IsZero() {
				shown.Timestamp = time.UnixMilli(1)
			}
			if err := parseLine(appendRecord(nil, &shown), true, again); err != nil {
				t.Fatalf("%s: %v", appendRecord(nil, &shown), err)
			}
			if again.Partition != shown.Partition || !again.Timestamp.Equal(shown.Timestamp) || !sameBytes(again.Key, r.Key) || !sameBytes(again.Value, r.Value) || len(again.Headers) != len(r.Headers) {
				t.Fatalf("%+v came back as %+v", shown, again)
			}
			for j, h := range again.Headers {
				if h.Key != r.Headers[j].Key || !sameBytes(h.Value, r.Headers[j].Value) {
					t.Fatalf("header %+v came back as %+v", r.Headers[j], h)
				}
			}
		}
	})
}

func sameBytes(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// sameLine compares a record with what encoding/json finds in its line.
func sameLine(t *testing.T, line []byte, r *kgo.Record) {
	t.Helper()
	var w map[string]json.RawMessage
	if err := json.Unmarshal(line, &w); err != nil || !utf8.Valid(line) {
		t.Fatalf("taken: %q: %v", line, err)
	}
	key, value := jsonBytes(t, w["key"], w["key_base64"]), jsonBytes(t, w["value"], w["value_base64"])
	if w["key"] == nil && w["key_base64"] == nil {
		key = []byte("of the request")
	}
	if !sameBytes(key, r.Key) || !sameBytes(value, r.Value) {
		t.Fatalf("%q: key %q, value %q, want %q and %q", line, r.Key, r.Value, key, value)
	}
	partition, timestamp := int32(-1), int64(math.MinInt64)
	var headers []map[string]json.RawMessage
	for name, to := range map[string]any{"partition": &partition, "timestamp": &timestamp, "headers": &headers} {
		if v := w[name]; v != nil && string(v) != "null" {
			if err := json.Unmarshal(v, to); err != nil {
				t.Fatalf("taken: %q: %v", line, err)
			}
		}
	}
	if partition != r.Partition || r.Timestamp.IsZero() != (timestamp == math.MinInt64) || !r.Timestamp.IsZero() && r.Timestamp.UnixMilli() != timestamp || len(r.Headers) != len(headers)+1 {
		t.Fatalf("%q: %+v", line, r)
	}
	for i, h := range headers {
		got := r.Headers[i+1]
		if string(jsonBytes(t, h["key"], nil)) != got.Key || !sameBytes(jsonBytes(t, h["value"], h["value_base64"]), got.Value) {
			t.Fatalf("%q: header %d is %+v", line, i, got)
		}
	}
}

// jsonBytes is what the plain or the Base64 form of a field stands for.
func jsonBytes(t *testing.T, v, b64 json.RawMessage) []byte {
	t.Helper()
	var s *string
	if b64 != nil && string(b64) != "null" {
		if err := json.Unmarshal(b64, &s); err != nil {
			t.Fatalf("%s: %v", b64, err)
		}
		b, err := base64.StdEncoding.DecodeString(*s)
		if err != nil {
			t.Fatalf("%s: %v", b64, err)
		}
		return append([]byte{}, b...)
	}
	if v == nil || string(v) == "null" {
		return nil
	}
	if json.Unmarshal(v, &s) == nil {
		return []byte(*s)
	}
	return v
}

// FuzzStreamID: a Last-Event-ID is refused with 400 or gives places that come
// out of their own id again, in both forms.
func FuzzStreamID(f *testing.F) {
	for _, s := range []string{`[{"topic":"t","partition":1,"offset":0},{"topic":"t","partition":2,"timestamp":5}]`, "v1:0=1,17=9223372036854775807", "v1:", "[]", `[{"topic":"u"}]`, `[{"topic":"t","partition":0,"offset":-1}]`, "null", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		next, times, err := parseStreamID(id, "t")
		if err != nil {
			refused(t, err, 400)
			return
		}
		for p, at := range times {
			if p < 0 || at < 0 {
				t.Fatalf("%q: time %d of partition %d", id, at, p)
			}
		}
		for p, at := range next {
			if p < 0 || at < 0 || at > maxPlace {
				t.Fatalf("%q: offset %d of partition %d", id, at, p)
			}
		}
		for _, own := range [][]byte{appendStreamID(nil, "t", next), appendPlaces(nil, next)} {
			again, _, err := parseStreamID(string(own), "t")
			if err != nil || !maps.Equal(again, moved(next)) {
				t.Fatalf("%q: %v became %s, %v, %v", id, next, own, again, err)
			}
		}
	})
}

// moved are the places that are not at 0: ids leave those out.
func moved(next map[int32]int64) map[int32]int64 {
	next = maps.Clone(next)
	maps.DeleteFunc(next, func(_ int32, at int64) bool { return at == 0 })
	return next
}

// FuzzCursor: a cursor is refused with 400 or moves partitions that are there,
// and the cursor made of them moves to the same places.
func FuzzCursor(f *testing.F) {
	for _, s := range []string{"t v1:0=1,1=5,9=9", "t v1:", "u v1:0=1", "t", "t v1:0=-1"} {
		f.Add(base64.RawURLEncoding.EncodeToString([]byte(s)))
	}
	f.Fuzz(func(t *testing.T, cursor string) {
		sp := &span{topic: "t", next: map[int32]int64{0: 0, 1: 3}}
		if err := sp.fromCursor(cursor); err != nil {
			refused(t, err, 400)
			return
		}
		again := &span{topic: "t", next: map[int32]int64{0: 0, 1: 0}}
		if err := again.fromCursor(sp.cursor()); err != nil || !maps.Equal(sp.next, again.next) || len(sp.next) != 2 {
			t.Fatalf("%q: %v, again %v, %v", cursor, sp.next, again.next, err)
		}
	})
}

// FuzzKeyHeader: a header is refused with 400 or gives a key that, written as
// RFC 8941 wants it, is the same key.
func FuzzKeyHeader(f *testing.F) {
	for _, s := range []string{`"8e03978e-40d5-43dd-bc93-6894a57f9324"`, "bare", `"a\"\\b"`, `"`, `""`, "a b", "\xff", `"a";p=1`, "\t x "} {
		f.Add(s)
	}
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	f.Fuzz(func(t *testing.T, header string) {
		key, err := parseKey(http.Header{headerKey: {header}})
		if err != nil {
			refused(t, err, 400)
			return
		}
		if len(key) < 1 || len(key) > maxKeyLength || strings.Trim(key, " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~") != "" {
			t.Fatalf("%q gave the key %q", header, key)
		}
		if again, err := parseKey(http.Header{headerKey: {`"` + quote.Replace(key) + `"`}}); err != nil || again != key {
			t.Fatalf("%q gave %q, then %q, %v", header, key, again, err)
		}
	})
}

// FuzzKeyRecord: whatever stands in the topic of the keys, it is no record of a
// gateway or one whose batches can be made of the records of its request; the
// index takes it in any order and twice.
func FuzzKeyRecord(f *testing.F) {
	at, offset := time.Now().UnixMilli(), int64(7)
	for _, r := range []keyRecord{
		{State: keyBegin, At: at, Gateway: "g", Fingerprint: "f", Topic: "t", Partitions: 3, Fallback: 2, Timestamp: at, ProducerID: 5, Batches: []keyBatch{{Partition: 2, Count: 1}, {Partition: 1, Sequence: 4, Count: 2}}},
		{State: keyDone, At: at, Begin: 0, Topic: "t", Partitions: 1, Batches: []keyBatch{{Count: 3, Offset: &offset}, {Partition: 1, Code: 50002, Message: "no"}}},
		{State: keyFree, At: at, Begin: 1}, {State: keyBegin, Partitions: 0, Batches: []keyBatch{{Partition: 1}}}, {State: keyBegin, Partitions: -3, Fallback: -1},
		{State: keyBegin, Partitions: 3, Fallback: 2, Batches: []keyBatch{{Partition: 2, Count: 1}, {Partition: 0, Count: 1}, {Partition: 5}}},
	} {
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint8(3))
		f.Add(b, uint8(7))
	}
	f.Add([]byte("null"), uint8(0))
	f.Fuzz(func(t *testing.T, value []byte, n uint8) {
		var r keyRecord
		if json.Unmarshal(value, &r) != nil {
			return
		}
		b, err := json.Marshal(r)
		var again keyRecord
		if err != nil || json.Unmarshal(b, &again) != nil || !reflect.DeepEqual(again, r) && len(r.Batches) > 0 {
			t.Fatalf("%s came back as %s, %v", value, b, err)
		}
		x, h := keyIndex{}, hashKey("key")
		for _, begun := range []bool{false, true} {
			if begun {
				x = keyIndex{h: {begin: r.Begin, done: -1, at: r.At}}
			}
			for at := range int64(2) {
				x.apply(h, at, &r)
			}
			if e, ok := x[h]; ok && e.done == 1 {
				t.Fatalf("%s counts twice: %+v", value, e)
			}
		}
		var recs []*kgo.Record
		for i := range n % 8 {
			rec := &kgo.Record{Partition: int32(i%4) - 1, Value: []byte{i}}
			if i > 3 {
				rec.Key = []byte{i}
			}
			recs = append(recs, rec)
		}
		groups, err := r.spread(recs)
		if err != nil {
			refused(t, err, 500)
			return
		}
		total := 0
		for _, b := range r.Batches {
			recs := groups[b.Partition]
			if len(recs) == 0 {
				t.Fatalf("%s: no records for partition %d", value, b.Partition)
			}
			total += len(recs)
			_ = appendBatch(nil, recs, r.ProducerID, r.Epoch, b.Sequence, time.UnixMilli(r.Timestamp))
		}
		if total != len(recs) {
			t.Fatalf("%s: %d of %d records are in batches", value, total, len(recs))
		}
	})
}

// FuzzAppendBatch: the batch of any records is one to the brokers, and they
// read the same records from it.
func FuzzAppendBatch(f *testing.F) {
	f.Add([]byte("key\x00value"), int64(1700000000000), int64(7), int16(1), int32(3), uint8(4))
	f.Add([]byte{}, int64(0), int64(0), int16(0), int32(math.MaxInt32), uint8(1))
	f.Add([]byte("\x01\x02\x03"), int64(maxMillis), int64(math.MaxInt64), int16(math.MaxInt16), int32(0), uint8(255))
	f.Fuzz(func(t *testing.T, data []byte, ms, pid int64, epoch int16, seq int32, n uint8) {
		if ms < 0 || ms > maxMillis || pid < 0 || epoch < 0 || seq < 0 || n == 0 {
			return // no request gives such
		}
		now := time.UnixMilli(1_700_000_000_123)
		recs := make([]*kgo.Record, n)
		for i := range recs {
			cut := i % (len(data) + 1)
			r := &kgo.Record{Key: data[:cut], Value: data[cut:], Timestamp: time.UnixMilli(max(0, ms-int64(i)*7919))}
			switch i % 4 {
			case 1:
				r.Key, r.Timestamp = nil, time.Time{}
			case 2:
				r.Value, r.Headers = nil, []kgo.RecordHeader{{Key: string(data[cut:]), Value: data[:cut]}, {Key: "", Value: nil}}
			}
			recs[i] = r
		}
		prefix := []byte("before")
		b := appendBatch(prefix, recs, pid, epoch, seq, now)[len(prefix):]
		h, err := batch.Validate(b)
		if err != nil || h.Size() != len(b) || h.ProducerID != pid || h.ProducerEpoch != epoch || h.BaseSequence != seq {
			t.Fatalf("%d records: %v, %+v", n, err, h)
		}
		i, last := 0, int64(math.MinInt64)
		for got, err := range batch.Records(b, batch.Limits{}) {
			if err != nil || i == len(recs) {
				t.Fatalf("record %d of %d: %v", i, n, err)
			}
			want := recs[i]
			if want.Timestamp.IsZero() {
				want.Timestamp = now
			}
			last = max(last, got.Timestamp)
			if got.OffsetDelta != int32(i) || got.Timestamp != want.Timestamp.UnixMilli() || !sameBytes(got.Key, want.Key) || !sameBytes(got.Value, want.Value) || len(got.Headers) != len(want.Headers) {
				t.Fatalf("record %d: %+v, want %+v", i, got, want)
			}
			for j, h := range got.Headers {
				if h.Key != want.Headers[j].Key || !sameBytes(h.Value, want.Headers[j].Value) {
					t.Fatalf("record %d, header %d: %+v, want %+v", i, j, h, want.Headers[j])
				}
			}
			i++
		}
		if i != len(recs) || h.MaxTimestamp != last {
			t.Fatalf("%d records up to %d, want %d, header %+v", i, last, n, h)
		}
	})
}
