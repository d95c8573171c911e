package segment

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/storage/batch"
)

// TestGolden reads a closed segment, batches and trailer, as an earlier program wrote it, and writes the
// same. It is not compressed: what compressors make of the same bytes may change.
func TestGolden(t *testing.T) {
	b := NewBuilder(testTP, 1000, 128)
	var log []byte
	for i, offset := int64(0), int64(1000); i < 6; i++ {
		records := []batch.Record{{Timestamp: 5000 + i*7%5, Key: []byte{byte(i)}, Value: bytes.Repeat([]byte{byte(i)}, int(i)*9)}, {Timestamp: 5001, Value: []byte("v")}}
		raw, err := batch.Encode(records, batch.EncodeOptions{BaseOffset: offset, LeaderEpoch: int32(i / 3), Producer: &batch.Producer{ID: 5, Epoch: 1, BaseSequence: int32(2 * i)}})
		if err != nil {
			t.Fatal(err)
		}
		h, err := batch.Check(raw)
		if err != nil {
			t.Fatal(err)
		}
		b.Add(h, raw[:batch.HeaderSize])
		log = append(log, raw...)
		offset = h.LastOffset() + 1
	}
	trailer := b.Trailer(b.Meta().Last+1, testAborted, testProducers)
	whole := golden.Bytes(t, "segment-v1.bin", append(append([]byte{}, log...), trailer...))
	x := parse(t, whole[len(log):])
	meta := b.Meta()
	meta.LastStable = meta.Last + 1
	if x.Meta != meta || !reflect.DeepEqual(x.Producers, testProducers) || !reflect.DeepEqual(x.Aborted(1000, 1011), testAborted) {
		t.Errorf("read %+v\nwant %+v, with %+v", x, meta, testProducers)
	}
	if spans := x.Spans(); len(spans) < 2 || !reflect.DeepEqual(spans, b.spans) {
		t.Errorf("spans are %+v, want %+v", spans, b.spans)
	}
	if err := VerifySpan(whole[:len(log)], x.Spans(), int64(len(log))); err != nil {
		t.Error(err)
	}
}
