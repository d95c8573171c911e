package batch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/storage/batch"
)

var codecs = []batch.Codec{batch.CodecNone, batch.CodecGzip, batch.CodecSnappy, batch.CodecLZ4, batch.CodecZstd}

func sampleRecords() []batch.Record {
	return []batch.Record{
		{Timestamp: 1700000000000, Key: []byte("k0"), Value: []byte("v0")},
		{OffsetDelta: 1, Timestamp: 1700000000005, Value: []byte(strings.Repeat("value ", 500))},
		{OffsetDelta: 2, Timestamp: 1699999999999, Key: []byte{}, Headers: []batch.RecordHeader{{Key: "h", Value: []byte("x")}, {Key: ""}}},
	}
}

func encode(t testing.TB, records []batch.Record, opts batch.EncodeOptions) []byte {
	t.Helper()
	b, err := batch.Encode(records, opts)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decode(b []byte, limits batch.Limits) (out []batch.Record, err error) {
	for r, err := range batch.Records(b, limits) {
		if err != nil {
			return out, err
		}
		out = append(out, r)
	}
	return out, nil
}

// reseal sets length and CRC to what they must be.
func reseal(b []byte) []byte {
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-batch.LogOverhead))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[batch.HeadSize:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestRoundTrip(t *testing.T) {
	want := sampleRecords()
	for _, xerial := range []bool{false, true} {
		for _, c := range codecs {
			b := encode(t, want, batch.EncodeOptions{Codec: c, BaseOffset: 42, LeaderEpoch: 7, Xerial: xerial, Producer: &batch.Producer{ID: 9, Epoch: 1, BaseSequence: math.MaxInt32}})
			h, err := batch.Validate(b)
			if err != nil {
				t.Fatalf("%s: %v", c, err)
			}
			if h.BaseOffset != 42 || h.LastOffset() != 44 || h.LeaderEpoch != 7 || h.Codec() != c || h.NumRecords != 3 ||
				h.BaseTimestamp != 1700000000000 || h.MaxTimestamp != 1700000000005 || h.ProducerID != 9 || h.LastSequence() != 1 || h.Size() != len(b) {
				t.Fatalf("%s: header %+v", c, h)
			}
			got, err := decode(b, batch.Limits{})
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: %v, got %+v", c, err, got)
			}
		}
	}
}

func TestHolesAndAppendTime(t *testing.T) {
	records := sampleRecords()
	records[1].OffsetDelta, records[2].OffsetDelta = 5, 9
	b := encode(t, records, batch.EncodeOptions{KeepDeltas: true, Codec: batch.CodecZstd})
	if _, err := batch.Validate(b); !errors.Is(err, batch.ErrInvalid) {
		t.Fatalf("a client may not send holes: %v", err)
	}
	batch.StampLogAppendTime(b, 1800000000000)
	batch.Stamp(b, 100, 3)
	if h, err := batch.Check(b); err != nil || h.LastOffset() != 109 || h.LeaderEpoch != 3 || !h.LogAppendTime() {
		t.Fatalf("%+v, %v", h, err)
	}
	got, err := decode(b, batch.Limits{})
	if err != nil || len(got) != 3 || got[2].OffsetDelta != 9 || got[0].Timestamp != 1800000000000 {
		t.Fatalf("%+v, %v", got, err)
	}
	records[2].OffsetDelta = 5
	if _, err := batch.Encode(records, batch.EncodeOptions{KeepDeltas: true}); err == nil {
		t.Fatal("encoded two records with one delta")
	}
	if _, err := batch.Encode(nil, batch.EncodeOptions{}); err == nil {
		t.Fatal("encoded no records")
	}
}

// record is a record's bytes with its length in front.
func record(body ...byte) []byte {
	return append(binary.AppendVarint(nil, int64(len(body))), body...)
}

func TestValidateRefuses(t *testing.T) {
	base := batch.Header{Magic: 2, ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, NumRecords: 1, BaseTimestamp: 5, MaxTimestamp: 5}
	good := record(0, 0, 0, 1, 1, 0) // key null, value null, no headers
	with := func(f func(h *batch.Header)) []byte { h := base; f(&h); return batch.Assemble(h, good) }
	recs := func(n int32, b ...[]byte) []byte {
		h := base
		h.NumRecords, h.LastOffsetDelta = n, n-1
		return batch.Assemble(h, bytes.Join(b, nil))
	}
	if _, err := batch.Validate(recs(1, good)); err != nil {
		t.Fatal(err)
	}
	if _, err := batch.Validate(recs(2, good, record(0, 0, 2, 2, 'k', 1, 2, 0, 1))); err != nil {
		t.Fatal(err)
	}
	badCRC := recs(1, good)
	badCRC[20] ^= 1
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"empty":                   {nil, batch.ErrTruncated},
		"short":                   {recs(1, good)[:60], batch.ErrTruncated},
		"cut":                     {recs(1, good)[:66], batch.ErrTruncated},
		"two batches":             {append(recs(1, good), recs(1, good)...), batch.ErrInvalid},
		"bad crc":                 {badCRC, batch.ErrCorrupt},
		"magic 0":                 {with(func(h *batch.Header) { h.Magic = 0 }), batch.ErrMagic},
		"magic 1":                 {with(func(h *batch.Header) { h.Magic = 1 }), batch.ErrMagic},
		"magic 3":                 {with(func(h *batch.Header) { h.Magic = 3 }), batch.ErrCorrupt},
		"control":                 {with(func(h *batch.Header) { h.Attributes = 0x20 }), batch.ErrInvalid},
		"codec 5":                 {with(func(h *batch.Header) { h.Attributes = 5 }), batch.ErrCodec},
		"unknown attribute":       {with(func(h *batch.Header) { h.Attributes = 0x100 }), batch.ErrInvalid},
		"delete horizon":          {with(func(h *batch.Header) { h.Attributes = 0x40 }), batch.ErrInvalid},
		"append time":             {with(func(h *batch.Header) { h.Attributes = 8 }), batch.ErrTimestampType},
		"no records":              {with(func(h *batch.Header) { h.NumRecords, h.LastOffsetDelta = 0, -1 }), batch.ErrCorrupt},
		"zero records":            {with(func(h *batch.Header) { h.NumRecords = 0 }), batch.ErrInvalid},
		"negative records":        {with(func(h *batch.Header) { h.NumRecords = -1 }), batch.ErrInvalid},
		"delta lies":              {with(func(h *batch.Header) { h.LastOffsetDelta = 7 }), batch.ErrInvalid},
		"producer without epoch":  {with(func(h *batch.Header) { h.ProducerID, h.BaseSequence = 1, 0 }), batch.ErrInvalid},
		"producer, no sequence":   {with(func(h *batch.Header) { h.ProducerID, h.ProducerEpoch = 1, 0 }), batch.ErrInvalid},
		"transaction, no pid":     {with(func(h *batch.Header) { h.Attributes = 0x10 }), batch.ErrInvalid},
		"negative timestamp":      {with(func(h *batch.Header) { h.MaxTimestamp = -2 }), batch.ErrInvalid},
		"negative base timestamp": {with(func(h *batch.Header) { h.BaseTimestamp = -2 }), batch.ErrInvalid},
		"compressed nothing":      {batch.Assemble(func() batch.Header { h := base; h.Attributes = 1; return h }(), nil), batch.ErrInvalid},
		"count too high":          {recs(2, good), batch.ErrInvalid},
		"count too low":           {recs(1, good, record(0, 0, 2, 1, 1, 0)), batch.ErrInvalid},
		"count of 2^31-1":         {recs(math.MaxInt32, good), batch.ErrInvalid},
		"same delta twice":        {recs(2, good, good), batch.ErrInvalid},
		"record length lies":      {recs(1, append(binary.AppendVarint(nil, 1<<30), good[1:]...)), batch.ErrInvalid},
		"negative record length":  {recs(1, append(binary.AppendVarint(nil, -7), good[1:]...)), batch.ErrInvalid},
		"empty record":            {recs(1, record()), batch.ErrInvalid},
		"key too long":            {recs(1, record(0, 0, 0, 20, 'k', 1, 0)), batch.ErrInvalid},
		"key length -2":           {recs(1, record(0, 0, 0, 3, 1, 0)), batch.ErrInvalid},
		"value too long":          {recs(1, record(0, 0, 0, 1, 20, 0)), batch.ErrInvalid},
		"header without key":      {recs(1, record(0, 0, 0, 1, 1, 2, 1, 1)), batch.ErrInvalid},
		"header count lies":       {recs(1, record(0, 0, 0, 1, 1, 0x80, 0x80, 0x80, 0x80, 0x0f)), batch.ErrInvalid},
		"bytes behind headers":    {recs(1, record(0, 0, 0, 1, 1, 0, 9)), batch.ErrInvalid},
		"varint without end":      {recs(1, bytes.Repeat([]byte{0xff}, 11)), batch.ErrInvalid},
	} {
		if _, err := batch.Validate(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestBombs(t *testing.T) {
	big := []batch.Record{{Timestamp: 1, Value: make([]byte, 8<<20)}}
	for _, xerial := range []bool{false, true} {
		for _, c := range codecs {
			b := encode(t, big, batch.EncodeOptions{Codec: c, Xerial: xerial})
			if c == batch.CodecNone {
				continue
			}
			if _, err := decode(b, batch.Limits{MaxBytes: 1 << 20}); !errors.Is(err, batch.ErrTooBig) {
				t.Errorf("%s: %v", c, err)
			}
			if _, err := decode(b, batch.Limits{MaxRatio: 5}); !errors.Is(err, batch.ErrTooBig) {
				t.Errorf("%s by ratio: %v", c, err)
			}
			if got, err := decode(b, batch.Limits{}); err != nil || len(got) != 1 || len(got[0].Value) != 8<<20 {
				t.Errorf("%s: %v", c, err)
			}
		}
	}
}

// Memory is taken for what comes out, up to the limit, not for what is claimed.
func TestBombsTakeLittleMemory(t *testing.T) {
	const most = 40 << 20 // decoder windows and buffers included
	for _, c := range codecs[1:] {
		b := encode(t, []batch.Record{{Value: make([]byte, 24<<20)}}, batch.EncodeOptions{Codec: c})
		if c == batch.CodecSnappy {
			h, err := batch.Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			b = batch.Assemble(h, append(binary.AppendUvarint(nil, 60<<20), make([]byte, 100)...))
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		limit := 1 << 20
		if c == batch.CodecSnappy {
			limit = 64 << 20 // the claim is within the limit, but cannot be true
		}
		if _, err := decode(b, batch.Limits{MaxBytes: limit}); err == nil {
			t.Errorf("%s: decoded", c)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > most {
			t.Errorf("%s: took %d bytes", c, n)
		}
	}
}

func TestHasNullKey(t *testing.T) {
	for _, c := range codecs {
		for i, want := range []bool{true, false} {
			got, err := batch.HasNullKey(encode(t, []batch.Record{{Key: []byte("a")}, {Key: [][]byte{nil, {}}[i]}}, batch.EncodeOptions{Codec: c}), batch.Limits{})
			if err != nil || got != want {
				t.Errorf("%s: %t, %v", c, got, err)
			}
		}
	}
}

// Any damage behind the head is seen by Check; the head is for the segment's checksums.
func TestCheckSeesEveryFlip(t *testing.T) {
	b := encode(t, sampleRecords()[:1], batch.EncodeOptions{})
	for i := 16; i < len(b); i++ {
		for bit := range 8 {
			b[i] ^= 1 << bit
			if _, err := batch.Check(b); err == nil {
				t.Errorf("byte %d bit %d: damage not seen", i, bit)
			}
			b[i] ^= 1 << bit
		}
	}
	for n := range b {
		if _, err := batch.Check(b[:n]); !errors.Is(err, batch.ErrTruncated) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	b := encode(t, sampleRecords(), batch.EncodeOptions{})
	if n := testing.AllocsPerRun(100, func() {
		if _, err := batch.Validate(b); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Validate allocates %v times", n)
	}
}

func BenchmarkValidate(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		var records []batch.Record
		for i := range n {
			records = append(records, batch.Record{Timestamp: int64(i), Key: []byte(fmt.Sprint(i)), Value: make([]byte, 1000)})
		}
		raw := encode(b, records, batch.EncodeOptions{})
		b.Run(fmt.Sprintf("records=%d", n), func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := batch.Validate(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
