package wal

import (
	"bytes"
	"io"
	"reflect"
	"testing"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

const (
	goldenStream = ids.Incarnation("01M7YNX4NQ47ZE5QSPHCVH7RE0")
	goldenOther  = ids.Incarnation("01M7YNX4NQ47ZE5QSPHCVH7RE1")
	goldenThird  = ids.Incarnation("01M7YNX4NQ47ZE5QSPHCVH7RE2")
)

func goldenBatch(t *testing.T, tp ids.TopicPartition, base int64, producer *batch.Producer, values ...string) (Batch, []byte) {
	t.Helper()
	var records []batch.Record
	for i, v := range values {
		records = append(records, batch.Record{Timestamp: 1700000000000 + int64(i), Key: []byte("k"), Value: []byte(v)})
	}
	raw, err := batch.Encode(records, batch.EncodeOptions{BaseOffset: base, LeaderEpoch: 3, Producer: producer})
	if err != nil {
		t.Fatal(err)
	}
	h, err := batch.Check(raw)
	if err != nil {
		t.Fatal(err)
	}
	return batchOf(tp, &h), raw
}

// goldenObject is an object of a stream with everything that one may have.
func goldenObject(t *testing.T) (f *Footer, batches []byte, whole []byte) {
	a := ids.TopicPartition{Topic: ids.TopicID{1, 2, 3}, Partition: 7}
	b := ids.TopicPartition{Topic: ids.TopicID{4, 5, 6}, Partition: 0}
	older := []OlderRange{{Stream: goldenOther, From: 3, To: 900, Base: 100, End: 250}, {Stream: goldenThird, From: 0, To: 0, Base: 250, End: 251}}
	f = &Footer{Cluster: [16]byte{0xfd, 1, 2}, Stream: goldenStream, Seq: 512, Nonce: [16]byte{9, 8, 7}, CreatedMs: 1700000000123,
		Pos: 4096, End: 4480, CheckpointAt: 512,
		LogStarts:   []LogStart{{TP: a, Epoch: 3, Offset: 42}},
		Acceptances: []Acceptance{{TP: b, Epoch: 4, LogStart: 5, End: 251, Giver: "meta/topics/orders/00000000000000000001", Older: older}},
		Releases:    []Release{{TP: a, Epoch: 4, LogStart: 42, End: 303, To: goldenOther, Older: older[:1]}},
		Checkpoint: &Checkpoint{
			Held:     []Held{{TP: b, Epoch: 4, LogStart: 5, End: 251, Giver: Key(goldenThird, 17), Older: older}},
			Released: []Release{{TP: a, Epoch: 4, LogStart: 42, End: 303, To: goldenOther}}}}
	pos := int64(headerSize)
	for _, x := range []struct {
		tp       ids.TopicPartition
		base     int64
		producer *batch.Producer
		values   []string
	}{{a, 300, nil, []string{"one", "two"}}, {a, 302, &batch.Producer{ID: 77, Epoch: 1, BaseSequence: 5}, []string{"three"}}, {b, 1 << 40, nil, []string{""}}} {
		e, raw := goldenBatch(t, x.tp, x.base, x.producer, x.values...)
		e.Pos = pos
		pos += e.Length
		f.Batches, batches = append(f.Batches, e), append(batches, raw...)
	}
	whole = append(append(f.header(), batches...), f.encode()...)
	return f, batches, whole
}

// TestGolden reads the objects of a stream as an earlier program wrote them, and writes the same.
func TestGolden(t *testing.T) {
	mem := objstore.NewMem()
	put := func(seq uint64, b []byte) {
		t.Helper()
		if _, err := mem.Put(t.Context(), Key(goldenStream, seq), bytes.NewReader(b), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	want, batches, whole := goldenObject(t)
	put(512, golden.Bytes(t, "data-v1.bin", whole))
	got, err := ReadFooter(t.Context(), mem, goldenStream, 512, -1)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v\n got %+v\nwant %+v", err, got, want)
	}
	if b, err := ReadBatches(t.Context(), mem, goldenStream, 512, got.Batches); err != nil || !bytes.Equal(b, batches) {
		t.Errorf("batches: %v\n got %q\nwant %q", err, b, batches)
	}

	seal := &Footer{Cluster: want.Cluster, Stream: goldenStream, Seq: 513, Nonce: [16]byte{1}, CreatedMs: 1700000000456, Seal: &Seal{By: goldenOther, Heirs: []Heir{
		{TP: ids.TopicPartition{Topic: ids.TopicID{1, 2, 3}, Partition: 7}, Epoch: 4, To: goldenOther, Released: true},
		{TP: ids.TopicPartition{Topic: ids.TopicID{4, 5, 6}}, Epoch: 5, To: goldenThird},
		{TP: ids.TopicPartition{Topic: ids.TopicID{4, 5, 6}, Partition: 1}, Epoch: 1, To: goldenThird, Giver: Key(goldenThird, 17)}}}}
	put(513, golden.Bytes(t, "seal-v1.bin", append(seal.header(), seal.encode()...)))
	if got, err := ReadFooter(t.Context(), mem, goldenStream, 513, -1); err != nil || !reflect.DeepEqual(got, seal) {
		t.Fatalf("%v\n got %+v\nwant %+v", err, got, seal)
	}
	s := sealer{b: mem, cluster: want.Cluster, dead: goldenStream}
	if at, err := s.markSealed(t.Context(), 513); err != nil || at != 513 {
		t.Fatal(at, err)
	}
	r, _, err := mem.Get(t.Context(), sealedKey(goldenStream), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	written, _ := io.ReadAll(r)
	if _, err := mem.Put(t.Context(), sealedKey(goldenStream), bytes.NewReader(golden.Bytes(t, "sealed-v1.json", written)), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if at, err := readSealed(t.Context(), mem, goldenStream); err != nil || at != 513 {
		t.Errorf("sealed: %d, %v", at, err)
	}
}

// TestGoldenDisks does so with objects that name disks, which have a version of their own.
func TestGoldenDisks(t *testing.T) {
	f, batches, _ := goldenObject(t)
	tp := ids.TopicPartition{Topic: ids.TopicID{7, 8, 9}, Partition: 1}
	f.Acceptances = append(f.Acceptances, Acceptance{TP: tp, Epoch: 2, LogStart: 1, End: 3, Giver: Key(goldenThird, 17), Disk: ids.DiskID{1, 2, 3}})
	f.Checkpoint.Held = append(f.Checkpoint.Held, Held(f.Acceptances[1]))
	seal := &Footer{Cluster: f.Cluster, Stream: goldenStream, Seq: 513, Nonce: [16]byte{1}, CreatedMs: 1700000000456, Seal: &Seal{By: goldenOther, Heirs: []Heir{
		{TP: ids.TopicPartition{Topic: ids.TopicID{4, 5, 6}}, Epoch: 5, To: goldenThird}, {TP: tp, Epoch: 3, Disk: ids.DiskID{1, 2, 3}, End: 3}}}}
	for name, c := range map[string]struct {
		f     *Footer
		whole []byte
	}{"data-v2.bin": {f, append(append(f.header(), batches...), f.encode()...)}, "seal-v2.bin": {seal, append(seal.header(), seal.encode()...)}} {
		got, err := decodeFooter(golden.Bytes(t, name, c.whole))
		if err != nil || !reflect.DeepEqual(got, c.f) {
			t.Errorf("%s: %v\n got %+v\nwant %+v", name, err, got, c.f)
		}
	}
}
