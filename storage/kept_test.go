package storage_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	objwal "github.com/cirrolog/cirrolog/tiering/wal"
)

// The stream keeps what it has of partitions that others lead now, where the release says that
// it is, however much is appended, carried forward and trimmed; until that is tiered.
func TestStreamKeepsWhatOthersNeed(t *testing.T) {
	ctx, to := context.Background(), ids.NewIncarnation()
	r := openRemote(t, objstore.NewMem(), t.TempDir(), storage.RemoteOptions{MaxObjects: 8, TierMinBytes: 32 << 10, TierMaxDelay: 20 * time.Millisecond})
	logs := r.create(6, storage.LogConfig{SegmentBytes: 64 << 10})
	var wg sync.WaitGroup
	load := func(logs []*storage.Log, n int) {
		t.Helper()
		for i := range n {
			if err := r.append(logs[i%len(logs)], 1000, &wg); err != nil {
				t.Fatal(err)
			}
			if i%10 == 0 {
				wg.Wait()
				r.tier(nil, logs[:3]) // the others are quiet and carried forward
			}
		}
		wg.Wait()
	}
	load(logs, 200)
	gone := logs[3:]
	var rs []objwal.Release
	for _, l := range gone {
		end, err := l.Freeze()
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, objwal.Release{TP: l.TP(), Epoch: 2, End: end, To: to})
	}
	load(logs[:3], 100) // meanwhile carrying goes on
	seq, err := r.stream.Release(ctx, rs)
	if err != nil {
		t.Fatal(err)
	}
	load(logs[:3], 200) // nothing is carried out of what the release names
	for _, l := range gone {
		if err := r.RemoveKeeping(l.TP()); err != nil {
			t.Fatal(err)
		}
	}
	load(logs[:3], 400)
	time.Sleep(50 * time.Millisecond) // what may be trimmed is
	rs, err = objwal.ReadReleases(ctx, r.bucket, [16]byte{}, r.inc, seq)
	if err != nil {
		t.Fatal(err)
	}
	kept := r.Kept()
	for _, one := range rs {
		read := objwal.Older{Bucket: r.bucket}
		got, err := read.Batches(ctx, one.TP, one.Older)
		if err != nil {
			t.Fatal(err)
		}
		next := r.tiered[one.TP]
		for _, b := range got {
			if b.Last < next {
				continue
			}
			if b.Base != next {
				t.Fatalf("%s: offset %d is not there, but %d", one.TP, next, b.Base)
			}
			next = b.Last + 1
		}
		if next != one.End || kept[one.TP] != one.End {
			t.Fatalf("%s: batches end at %d, kept is to %d, released was %d", one.TP, next, kept[one.TP], one.End)
		}
	}
	for _, one := range rs {
		r.DropKept(one.TP, one.End-1)
		if r.Kept()[one.TP] != one.End {
			t.Error("what is not tiered is given up")
		}
		r.DropKept(one.TP, one.End)
	}
	eventually(t, "the stream is trimmed", func() bool {
		load(logs[:3], 30)
		_, needed := r.stream.Objects()
		return len(r.Kept()) == 0 && needed < 60
	})
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}
