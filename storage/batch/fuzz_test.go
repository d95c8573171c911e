package batch_test

import (
	"testing"

	"github.com/cirrolog/cirrolog/storage/batch"
)

func seeds(f *testing.F) {
	for _, c := range codecs {
		b := encode(f, sampleRecords(), batch.EncodeOptions{Codec: c, Xerial: c == batch.CodecSnappy})
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Add(encode(f, sampleRecords()[:1], batch.EncodeOptions{Producer: &batch.Producer{ID: 1}, Transactional: true}))
	f.Add([]byte{})
}

// FuzzParse: a header that parses has a size that holds one.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := batch.Parse(b); err == nil && (h.Size() < batch.HeaderSize || h.Magic != 2) {
			t.Fatalf("parsed %+v", h)
		}
		if h, err := batch.Check(b); err == nil && (h.Size() > len(b) || h.LastOffset() < h.BaseOffset) {
			t.Fatalf("checked %+v", h)
		}
	})
}

// FuzzValidate: an uncompressed batch that is valid has exactly the records it says.
func FuzzValidate(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= batch.HeaderSize { // else nothing gets past the CRC
			b = reseal(append([]byte(nil), b...))
		}
		h, err := batch.Validate(b)
		if err != nil || h.Codec() != batch.CodecNone {
			return
		}
		n := int32(0)
		for r, err := range batch.Records(b, batch.Limits{}) {
			if err != nil {
				t.Fatalf("valid, but record %d: %v", n, err)
			}
			if r.OffsetDelta != n {
				t.Fatalf("record %d has delta %d", n, r.OffsetDelta)
			}
			n++
		}
		if n != h.NumRecords {
			t.Fatalf("valid, but %d records of %d", n, h.NumRecords)
		}
	})
}

// FuzzRecords: no more comes out of a batch than its limit.
func FuzzRecords(f *testing.F) {
	const limit = 1 << 20
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= batch.HeaderSize {
			b = reseal(append([]byte(nil), b...))
		}
		total := 0
		for r, err := range batch.Records(b, batch.Limits{MaxBytes: limit}) {
			if err != nil {
				return
			}
			total += len(r.Key) + len(r.Value)
			for _, h := range r.Headers {
				total += len(h.Key) + len(h.Value)
			}
		}
		if total > max(limit, len(b)) {
			t.Fatalf("%d bytes came out", total)
		}
	})
}
