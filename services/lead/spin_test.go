package lead

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// endedStream takes no changes, as one does that was poisoned.
type endedStream struct{ asked atomic.Int32 }

func (s *endedStream) Change(context.Context, wal.Change) error {
	s.asked.Add(1)
	return contract.ErrPoisoned
}

func (s *endedStream) Release(context.Context, []wal.Release) (uint64, error) {
	return 0, contract.ErrPoisoned
}

// An agent that can't accept what a seal gives it tries again now and then, not as fast as it can read the
// sealed stream, and a drain that has to wait for its turn gets it.
func TestFailedTakeoverIsPaced(t *testing.T) {
	ctx := t.Context()
	store, bucket := kv.NewMem(kv.MemOptions{}), objstore.NewMem()
	t.Cleanup(func() { store.Close() })
	o := started(t, store, bucket, 0)
	meta, inc, cluster := o.Meta, o.Incarnation, o.Cluster

	dead, tp := ids.NewIncarnation(), ids.TopicPartition{Topic: ids.TopicID{1}}
	s, err := wal.Open(ctx, wal.Options{Bucket: bucket, Cluster: cluster, Incarnation: dead, Pool: contract.NewPool(1 << 20), Announce: func([]*contract.Entry, error) {}})
	if err == nil {
		err = s.Change(ctx, wal.Change{Acceptances: []wal.Acceptance{{TP: tp, Giver: "meta/topic"}}})
	}
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := wal.SealStream(ctx, bucket, cluster, dead, inc, func(*wal.State) []wal.Heir { return []wal.Heir{{TP: tp, Epoch: 1, To: inc}} })
	if err == nil {
		err = meta.PublishSealed(ctx, dead, sealed.At)
	}
	if err != nil {
		t.Fatal(err)
	}

	stream := &endedStream{}
	o.Stream, o.TTL = stream, 2*time.Second
	m := New(o)
	if err := m.Start(ctx, "127.0.0.1", 9092, ""); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	other := started(t, store, bucket, 0).Meta
	if err := other.Register(ctx, "127.0.0.1", 9093, ""); err != nil {
		t.Fatal(err)
	}
	if err := other.RenewLease(ctx, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if n := stream.asked.Load(); n == 0 || n > 50 { // every 200 ms, and with each notice of the others
		t.Errorf("tried %d times in a second", n)
	}
	drained := make(chan error, 1)
	go func() { drained <- m.Drain(ctx) }()
	select {
	case err := <-drained:
		if !errors.Is(err, contract.ErrPoisoned) {
			t.Errorf("drain: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the drain waits for ever")
	}
}
