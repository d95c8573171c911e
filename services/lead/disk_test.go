package lead

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// started returns what the manager of a new start of an agent needs, as node, or as one that gets its number.
func started(t *testing.T, store kv.Store, bucket objstore.Bucket, node int32) Options {
	t.Helper()
	inc, discard := ids.NewIncarnation(), slog.New(slog.DiscardHandler)
	meta, err := metadata.Open(t.Context(), metadata.Options{KV: store, Bucket: bucket, Incarnation: inc, NodeID: node, Logger: discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { meta.Close() })
	cluster, err := ids.ParseTopicID(meta.ClusterID())
	if err != nil {
		t.Fatal(err)
	}
	return Options{Meta: meta, Bucket: bucket, Cluster: cluster, Incarnation: inc, Logger: discard}
}

// onDisk returns the managers of two starts on one disk, and its bucket.
func onDisk(t *testing.T) (a, b *Manager, bucket objstore.Bucket) {
	store, bucket := kv.NewMem(kv.MemOptions{}), objstore.NewMem()
	t.Cleanup(func() { store.Close() })
	open := func() *Manager {
		o := started(t, store, bucket, 1)
		o.Disk, o.OpenDisk = ids.DiskID{1}, func() error { return nil }
		return New(o)
	}
	return open(), open(), bucket
}

// Of two starts that saw the same records of their disk one goes on; a later one seals the one before and
// takes what its seal, and the record before, say that the disk keeps, each under the greatest epoch.
func TestDiskIsHeldOnce(t *testing.T) {
	a, b, bucket := onDisk(t)
	if err := a.holdDisk(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.holdDisk(t.Context(), nil); !errors.Is(err, ErrDiskInUse) || b.disk.held != nil {
		t.Fatalf("the second one: %v, %+v", err, b.disk)
	}
	first, err := b.o.Meta.Disk(t.Context(), a.o.Disk)
	if err != nil || first.Incarnation != a.o.Incarnation {
		t.Fatalf("%+v, %v", first, err)
	}
	tp := func(p int32) ids.TopicPartition {
		return ids.TopicPartition{Topic: ids.TopicID{1}, Partition: p}
	}
	first.Partitions = []metadata.DiskPartition{{TP: tp(1), Epoch: 4, End: 7, Giver: "old"}, {TP: tp(2), Epoch: 5, End: 8, Giver: "old"}}
	other := ids.NewIncarnation()
	if _, err := wal.SealStream(t.Context(), bucket, a.o.Cluster, a.o.Incarnation, b.o.Incarnation, func(*wal.State) []wal.Heir {
		return []wal.Heir{{TP: tp(2), Epoch: 6, Disk: a.o.Disk, End: 9}, {TP: tp(3), Epoch: 1, Disk: a.o.Disk}, {TP: tp(4), Epoch: 1, Disk: ids.DiskID{9}}, {TP: tp(5), Epoch: 1, To: other}}
	}); err != nil {
		t.Fatal(err)
	}
	if err := b.holdDisk(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	next, err := a.o.Meta.Disk(t.Context(), a.o.Disk)
	seal := wal.Key(a.o.Incarnation, 0)
	want := []metadata.DiskPartition{{TP: tp(1), Epoch: 4, End: 7, Giver: "old"}, {TP: tp(2), Epoch: 6, End: 9, Giver: seal}, {TP: tp(3), Epoch: 1, Giver: seal}}
	if err != nil || next.N != 2 || next.Incarnation != b.o.Incarnation || len(next.Partitions) != len(want) {
		t.Fatalf("%+v, %v", next, err)
	}
	for i, p := range next.Partitions {
		if p != want[i] {
			t.Errorf("partition %+v, want %+v", p, want[i])
		}
	}
	if err := b.holdDisk(t.Context(), next); err != nil { // the answer was lost
		t.Errorf("once more: %v", err)
	}
}

// After a disk was abandoned no start on it goes on.
func TestAbandonedDiskIsNotHeld(t *testing.T) {
	a, _, _ := onDisk(t)
	var told error
	a.o.OnAbandoned = func(err error) { told = err }
	r := &metadata.DiskRecord{Disk: a.o.Disk, N: 1, Partitions: []metadata.DiskPartition{{TP: ids.TopicPartition{Topic: ids.TopicID{1}}, To: ids.NewIncarnation(), Giver: "x"}}}
	if won, err := a.o.Meta.CreateDisk(t.Context(), r); !won || err != nil {
		t.Fatalf("%v, %v", won, err)
	}
	if err := a.useDisk(t.Context()); !errors.Is(err, ErrDiskAbandoned) || !errors.Is(told, ErrDiskAbandoned) || a.disk.held != nil {
		t.Errorf("%v, told %v", err, told)
	}
	all, err := a.o.Meta.Disks(t.Context())
	if err != nil || len(all) != 1 || !all[0].Abandoned() || all[0].Partitions[0].To != r.Partitions[0].To {
		t.Errorf("%+v, %v", all, err)
	}
}
