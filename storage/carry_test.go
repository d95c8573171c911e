package storage_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	objwal "github.com/cirrolog/cirrolog/tiering/wal"
)

// What many quiet partitions have in old objects is carried forward from the disk with less read memory than one buffer for
// each of them: the stream is trimmed on.
func TestCarryFromDisk(t *testing.T) {
	const partitions, chunks = 40, 4
	dog := time.AfterFunc(time.Minute, func() { panic("nothing is carried forward: the stream is full, and an append waits for ever") })
	defer dog.Stop()
	r := &remote{t: t, bucket: objstore.NewMem(), inc: ids.NewIncarnation(), acked: map[ids.TopicPartition]map[int64][]byte{},
		ends: map[ids.TopicPartition]int64{}, tiered: map[ids.TopicPartition]int64{}}
	var err error
	r.Store, err = storage.Open(storage.Options{FS: vfs.OS(), Dir: t.TempDir(), TailBytes: chunks * wal.ChunkSize, ReadBytes: chunks * wal.ChunkSize,
		Remote: storage.RemoteOptions{MaxObjects: 16, Open: func(c storage.StreamConfig) (wal.Stream, error) {
			var err error
			r.stream, err = objwal.Open(context.Background(), objwal.Options{Bucket: r.bucket, Incarnation: r.inc, Pool: c.Pool, Announce: c.Announce, OnFull: c.OnFull, Linger: time.Millisecond})
			return r.stream, err
		}}})
	if err != nil {
		t.Fatal(err)
	}
	logs := r.create(partitions, storage.LogConfig{})
	busy, quiet := logs[0], logs[1:]
	var wg sync.WaitGroup
	put := func(l *storage.Log, size int) {
		t.Helper()
		if err := r.append(l, size, &wg); err != nil {
			t.Fatal(err)
		}
		wg.Wait() // an object for each
	}
	for range 3 { // the end of the last one is no whole block, and not in the segment's file
		for _, l := range quiet {
			put(l, 20<<10)
		}
	}
	// What the busy one has takes the memory of the others'; its segments are tiered.
	for {
		put(busy, 256<<10)
		r.tier(nil, logs[:1])
		if _, needed := r.stream.Objects(); needed < partitions && r.stream.Next() > 10*partitions {
			break
		}
	}
	r.check()
	if err := r.Close(); err != nil && !errors.Is(err, objwal.ErrFenced) {
		t.Fatal(err)
	}
}

// kept is a bucket from which nothing is deleted.
type kept struct{ objstore.Bucket }

func (kept) Delete(context.Context, string) error { return nil }

// What is carried forward is not carried once more while it is on its way to the bucket.
func TestCarriedOnce(t *testing.T) {
	const most = 24
	slow := objstore.NewFault(objstore.NewMem(), 1)
	r := openRemote(t, kept{slow}, t.TempDir(), storage.RemoteOptions{MaxObjects: most})
	logs := r.create(2, storage.LogConfig{})
	busy, quiet := logs[0], logs[1]
	var wg sync.WaitGroup
	if err := r.append(quiet, 1000, &wg); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	slow.Add(objstore.FaultRule{Method: objstore.MethodPut, Kind: objstore.FaultLatency, Delay: 20 * time.Millisecond, Probability: 1})
	for r.stream.Next() < 10*most {
		if err := r.append(busy, 1000, &wg); err != nil {
			t.Fatal(err)
		}
		if busy.RollIfOld(true) {
			r.tier(nil, logs[:1])
		}
		time.Sleep(2 * time.Millisecond)
	}
	wg.Wait()
	var at []uint64
	for seq := range r.stream.Next() {
		f, err := objwal.ReadFooter(t.Context(), r.bucket, r.inc, seq, -1)
		if err != nil {
			continue
		}
		for _, b := range f.Batches {
			if b.TP == quiet.TP() {
				at = append(at, seq)
			}
		}
	}
	t.Logf("in objects %d of %d", at, r.stream.Next())
	if len(at) < 5 {
		t.Errorf("nothing was carried")
	}
	for i := range at[1:] {
		if at[i+1]-at[i] < most/4 {
			t.Errorf("carried again after %d objects", at[i+1]-at[i])
		}
	}
	r.check()
	if err := r.Close(); err != nil && !errors.Is(err, objwal.ErrFenced) {
		t.Fatal(err)
	}
}
