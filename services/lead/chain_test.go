package lead

import (
	"testing"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// A sealed stream is read once in a takeover, however many partitions it gives.
func TestChainReadsOnce(t *testing.T) {
	bucket, cluster, inc := objstore.NewFault(objstore.NewMem(), 1), [16]byte{1}, ids.NewIncarnation()
	s, err := wal.Open(t.Context(), wal.Options{Bucket: bucket, Cluster: cluster, Incarnation: inc, Pool: contract.NewPool(4 << 20), Announce: func([]*contract.Entry, error) {}})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := s.Change(t.Context(), wal.Change{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c := newChain(&Manager{o: Options{Bucket: bucket, Cluster: cluster}})
	if got, err := c.readSealed(t.Context(), inc); got != nil || err != nil {
		t.Errorf("a stream that is not sealed: %v, %v", got, err)
	}
	if _, err := wal.SealStream(t.Context(), bucket, cluster, inc, ids.NewIncarnation(), func(*wal.State) []wal.Heir { return nil }); err != nil {
		t.Fatal(err)
	}
	first, err := c.readSealed(t.Context(), inc)
	if err != nil || first == nil {
		t.Fatalf("%v, %v", first, err)
	}
	before := bucket.Calls(objstore.MethodAny)
	if again, err := c.readSealed(t.Context(), inc); again != first || err != nil || bucket.Calls(objstore.MethodAny) != before {
		t.Errorf("%d more requests, %v", bucket.Calls(objstore.MethodAny)-before, err)
	}
}

// An agent that starts reads of earlier streams their seals, not what they have, unless they give it something.
func TestSealsAloneAreRead(t *testing.T) {
	const streams, objects = 5, 20
	bucket, cluster := objstore.NewFault(objstore.NewMem(), 1), [16]byte{1}
	meta, m := opener(t)(false)
	m.o.Bucket, m.o.Cluster = bucket, cluster
	to, tp := ids.NewIncarnation(), ids.TopicPartition{Topic: ids.TopicID{7}}
	for range streams {
		inc := ids.NewIncarnation()
		s, err := wal.Open(t.Context(), wal.Options{Bucket: bucket, Cluster: cluster, Incarnation: inc, Pool: contract.NewPool(4 << 20), Announce: func([]*contract.Entry, error) {}})
		if err != nil {
			t.Fatal(err)
		}
		for range objects {
			if err := s.Change(t.Context(), wal.Change{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		heirs := func(*wal.State) []wal.Heir { return []wal.Heir{{TP: tp, To: to, Epoch: 3}} }
		if _, err := wal.SealStream(t.Context(), bucket, cluster, inc, m.o.Incarnation, heirs); err != nil {
			t.Fatal(err)
		}
		if err := meta.PublishSealed(t.Context(), inc, objects); err != nil {
			t.Fatal(err)
		}
	}
	before := bucket.Calls(objstore.MethodAny)
	take := takeover{m: m, chain: newChain(m), leads: map[ids.TopicPartition]*taken{}}
	if err := take.fromSeals(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := bucket.Calls(objstore.MethodAny) - before; n == 0 || n > 4*streams {
		t.Errorf("%d requests for %d seals", n, streams)
	}
	if g := m.given[tp]; g.to != to || g.epoch != 3 || len(take.sealed) != streams {
		t.Errorf("the seals gave %+v, %d are read", g, len(take.sealed))
	}
}
