package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// olderRig is a bucket with objects in which many partitions have a batch each.
type olderRig struct {
	t      *testing.T
	bucket *objstore.Fault
	parts  []*Partition
	want   [][]byte // by partition: its batches, one behind the other
}

func newOlderRig(t *testing.T, partitions, objects, value int) *olderRig {
	mem := objstore.NewMem()
	r := &olderRig{t: t, bucket: objstore.NewFault(mem, 1), want: make([][]byte, partitions)}
	inc := ids.NewIncarnation()
	placed := make([][]wal.Placed, partitions)
	for seq := range uint64(objects) {
		var object []byte
		for i := range partitions {
			raw, err := batch.Encode([]batch.Record{{Value: bytes.Repeat([]byte{byte(i), byte(seq)}, value/2)}}, batch.EncodeOptions{BaseOffset: int64(seq)})
			if err != nil {
				t.Fatal(err)
			}
			h, err := batch.Check(raw)
			if err != nil {
				t.Fatal(err)
			}
			tp := ids.TopicPartition{Topic: ids.TopicID{1}, Partition: int32(i)}
			placed[i] = append(placed[i], wal.Placed{Stream: inc, Seq: seq, Batch: wal.Batch{TP: tp, Epoch: h.LeaderEpoch, Base: h.BaseOffset, Last: h.LastOffset(),
				Pos: int64(len(object)), Length: int64(len(raw)), MaxTimestamp: h.MaxTimestamp, ProducerID: h.ProducerID, ProducerEpoch: h.ProducerEpoch,
				BaseSequence: h.BaseSequence, Attributes: h.Attributes}})
			object = append(object, raw...)
			r.want[i] = append(r.want[i], raw...)
		}
		if _, err := mem.Put(t.Context(), wal.Key(inc, seq), bytes.NewReader(object), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range partitions {
		p := &Partition{}
		p.older.Store(&older{placed[i]})
		r.parts = append(r.parts, p)
	}
	return r
}

// read reads all of a partition, run by run.
func (r *olderRig) read(s *spans, i int) error {
	o := r.parts[i].older.Load()
	var got []byte
	for at := 0; at < len(o.batches); {
		some := o.from(o.batches[at].Base, fetchRun, true)
		data, err := s.read(r.t.Context(), some)
		if err != nil {
			return err
		}
		got = append(got, data...)
		at += len(some)
	}
	if !bytes.Equal(got, r.want[i]) {
		return fmt.Errorf("partition %d: other bytes", i)
	}
	return nil
}

func (r *olderRig) all(s *spans, partitions int) {
	r.t.Helper()
	var wg sync.WaitGroup
	for i := range partitions {
		wg.Go(func() {
			if err := r.read(s, i); err != nil {
				r.t.Error(err)
			}
		})
	}
	wg.Wait()
}

// What many partitions have in the same objects is read once for each object, and nothing of it is kept afterwards.
func TestSpansAreShared(t *testing.T) {
	const partitions, objects = 50, 40
	r := newOlderRig(t, partitions, objects, 200)
	s := newSpans(r.bucket, r.parts)
	r.all(s, partitions)
	if n := r.bucket.Calls(objstore.MethodGet); n != objects {
		t.Errorf("%d requests for %d objects", n, objects)
	}
	if len(s.of) > 0 || s.kept != 0 {
		t.Errorf("kept are %d spans, %d bytes", len(s.of), s.kept)
	}
	r.all(s, 1) // once more, as after an error: unplanned
}

// Where sharing would bring much more than is needed, or need too much memory, everybody reads for itself.
func TestSpansAreBounded(t *testing.T) {
	t.Run("few partitions of many", func(t *testing.T) {
		const partitions, objects = 30, 4
		r := newOlderRig(t, partitions, objects, 64<<10)
		s := newSpans(r.bucket, []*Partition{r.parts[0], r.parts[partitions-1]})
		for _, i := range []int{0, partitions - 1} {
			if err := r.read(s, i); err != nil {
				t.Error(err)
			}
		}
		if n := r.bucket.Calls(objstore.MethodGet); n != 2*objects || s.kept != 0 {
			t.Errorf("%d requests, %d bytes kept", n, s.kept)
		}
	})
	t.Run("memory", func(t *testing.T) {
		const partitions, objects = 60, 20 // 80 MiB
		r := newOlderRig(t, partitions, objects, 70<<10)
		s := newSpans(r.bucket, r.parts)
		for i := range partitions { // one after the other, so that everything waits for the last
			if err := r.read(s, i); err != nil {
				t.Error(err)
			}
			if s.kept > spansMost {
				t.Fatalf("%d bytes are kept", s.kept)
			}
		}
		if n := r.bucket.Calls(objstore.MethodGet); n < 2*objects || n > partitions*objects/2 || s.kept != 0 {
			t.Errorf("%d requests, %d bytes kept", n, s.kept)
		}
	})
}

// A damaged batch is noticed, and a failed request is made again by the next who needs it.
func TestSpansFail(t *testing.T) {
	r := newOlderRig(t, 3, 1, 100)
	s := newSpans(r.bucket, r.parts)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.read(ctx, r.parts[0].older.Load().batches); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	for _, i := range []int{1, 2, 0} {
		if err := r.read(s, i); err != nil {
			t.Error(err)
		}
	}
	wrong := *r.parts[1].older.Load()
	wrong.batches = []wal.Placed{wrong.batches[0]}
	wrong.batches[0].Epoch++
	r.parts[1].older.Store(&wrong)
	if err := r.read(newSpans(r.bucket, r.parts), 1); !errors.Is(err, contract.ErrDamaged) {
		t.Errorf("damaged: %v", err)
	}
}
