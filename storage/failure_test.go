package storage_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/vfs/crashtest"
	"github.com/cirrolog/cirrolog/storage/wal"
)

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

// newWorld opens a store on fsys with one topic.
func newWorld(t testing.TB, fsys vfs.FS, partitions int) *world {
	t.Helper()
	w := &world{t: t, rng: rand.New(rand.NewPCG(1, 1))}
	w.add(partitions)
	s, err := storage.Open(crashOptions(fsys))
	if err != nil {
		t.Fatal(err)
	}
	w.store = s
	return w
}

// die lets appends fail from now on.
func (w *world) die() {
	w.mu.Lock()
	w.killed = true
	w.mu.Unlock()
}

// many appends n batches to the first partition.
func (w *world) many(n, size int) {
	w.t.Helper()
	for range n {
		w.append(w.parts[0], size)
		w.settle()
	}
}

// A process is gone between an operation and what makes it durable. The next one
// builds upon what it finds, trims the ring, and then the power goes: what was
// found must be durable.
func TestFoundBytesAreMadeDurable(t *testing.T) {
	for name, rule := range map[string]vfs.Rule{
		"segment not synced":           {Op: vfs.OpSync, Path: ".log"},
		"directory of logs not synced": {Op: vfs.OpSyncDir, Path: crashDir + "/logs"},
		"name of spill not synced":     {Op: vfs.OpSyncDir, Path: crashDir + "/wal"},
	} {
		t.Run(name, func(t *testing.T) {
			mem := newCrashFS(t)
			first, err := storage.Open(crashOptions(mem))
			if err != nil || first.Close() != nil {
				t.Fatal(err)
			}
			fault := vfs.NewFault(mem)
			w := newWorld(t, fault, 2)
			w.append(w.parts[1], 9000) // a quiet one, which is spilled
			w.settle()
			w.die()
			if strings.Contains(name, "logs") {
				rule.Path += "/" // the partition's own directory comes with its files
			}
			rule.Err = syscall.EIO
			fault.Add(rule)
			w.many(3, 6000)
			w.store.Log(w.parts[0].tp).RollIfOld(true) // nothing of the log is behind its file
			if !strings.Contains(name, "spill") {
				eventually(t, "failure", func() bool { return w.store.Err() != nil })
			}
			for i := 0; i < 200 && w.store.Err() == nil; i++ {
				w.append(w.parts[0], 6000)
				w.settle()
			}
			eventually(t, "failure", func() bool { return w.store.Err() != nil })
			kill(fault)
			_ = w.store.Close() // it was killed
			k := w.observe()
			parts := []*model{w.parts[0], w.parts[1]}
			s := checkRecovered(t, mem, parts, k, k)
			next := &world{t: t, rng: w.rng, store: s, topics: 7}
			next.add(1)
			next.many(200, 3000) // several laps of the ring
			for seed := range uint64(8) {
				clone := mem.CrashClone(rand.New(rand.NewPCG(seed, 0)))
				if err := checkRecovered(t, clone, parts, k, k).Close(); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// After a failed write or sync nothing more is written or synced, though it would
// succeed: the failed one may have lost what the next would call durable.
func TestFailureIsForGood(t *testing.T) {
	for name, rule := range map[string]vfs.Rule{
		"write segment": {Op: vfs.OpWrite, Path: ".log"},
		"sync segment":  {Op: vfs.OpSync, Path: ".log"},
		"write index":   {Op: vfs.OpWrite, Path: ".idx"},
		"sync spill":    {Op: vfs.OpSync, Path: "spill-"},
		"write ring":    {Op: vfs.OpWrite, Path: "ring.wal"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mem := newCrashFS(t)
			fault := vfs.NewFault(mem)
			w := newWorld(t, fault, 3)
			w.many(5, 1000)
			w.die()
			rule.Err, rule.Count = syscall.EIO, 1
			fault.Add(rule)
			for i := 0; i < 300 && w.store.Err() == nil; i++ {
				w.append(w.parts[i%10/9], 6000) // the second one is quiet
				w.settle()
			}
			eventually(t, "failure", func() bool { return w.store.Err() != nil })
			w.settle()
			var mu sync.Mutex
			var after []vfs.Event
			mem.OnOp(func(e vfs.Event) {
				mu.Lock()
				defer mu.Unlock()
				if e.Phase == vfs.Before && (e.Kind == vfs.EventSync || e.Kind == vfs.EventWrite || e.Kind == vfs.EventTruncate) {
					after = append(after, e)
				}
			})
			b := makeBatch(1, 100, 1)
			h, _ := batch.Parse(b)
			for _, l := range w.store.Logs() {
				if err := l.Append(context.Background(), b, h, storage.AppendOptions{}, func(storage.AppendResult) {}); !errors.Is(err, storage.ErrFailed) {
					t.Errorf("append after the failure: %v", err)
				}
				l.RollIfOld(true)
			}
			time.Sleep(1200 * time.Millisecond) // flushers and the cleaner's tick
			mem.OnOp(nil)
			mu.Lock()
			if len(after) > 0 {
				t.Errorf("%d writes and syncs after the failure, first %v", len(after), after[0])
			}
			mu.Unlock()
			_ = w.store.Close() // tells the failure of the ring
			k := w.observe()
			clone := mem.CrashClone(rand.New(rand.NewPCG(2, 2)))
			if err := checkRecovered(t, clone, w.parts, k, k).Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The power goes while a partition is being removed: the others are there, and the
// removed one does not keep the store from opening.
func TestPowerLossDuringRemove(t *testing.T) {
	seed := crashtest.Seed(t)
	mem := newCrashFS(t)
	w := newWorld(t, mem, 2)
	w.append(w.parts[1], 1000)
	w.many(100, 3000)
	eventually(t, "segments", func() bool { return len(w.store.Log(w.parts[0].tp).ClosedSegments()) > 5 })
	sampler := crashtest.Sample(mem, seed, 1000, w.observe)
	w.remove(w.parts[0])
	points, _ := sampler.End()
	if len(points) < 2 {
		t.Fatalf("%d operations", len(points))
	}
	for _, p := range points {
		if err := checkRecovered(t, p.FS, w.parts, p.Before, p.After).Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(40) { // what may be left when nothing more is synced
		k := w.observe()
		clone := mem.CrashClone(rand.New(rand.NewPCG(seed, i)))
		if err := checkRecovered(t, clone, w.parts, k, k).Close(); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := mem.List(filepath.Join(crashDir, "logs")); err != nil || len(left) > 1 {
		t.Fatalf("%v, %v", left, err)
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
}

// A dropped segment's .idx goes after its .log, whoever looks meanwhile for what
// can go: after a power loss in between, a .log without .idx would look like an
// open segment in front of closed ones.
func TestDropRemovesLogFirst(t *testing.T) {
	mem := newCrashFS(t)
	fault := vfs.NewFault(mem)
	fault.Add(vfs.Rule{Op: vfs.OpRemove, Path: ".log", Delay: 5 * time.Millisecond})
	w := newWorld(t, fault, 1)
	w.many(100, 3000)
	l := w.store.Log(w.parts[0].tp)
	eventually(t, "segments", func() bool { return len(l.ClosedSegments()) > 5 })
	var mu sync.Mutex
	var removed []string
	mem.OnOp(func(e vfs.Event) {
		away := e.Kind == vfs.EventRename && strings.Contains(e.NewPath, "/recycled/")
		if (e.Kind == vfs.EventRemove || away) && e.Phase == vfs.Before {
			mu.Lock()
			removed = append(removed, filepath.Base(e.Path))
			mu.Unlock()
		}
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 20 {
			closed := l.ClosedSegments()
			if len(closed) == 0 {
				time.Sleep(time.Millisecond)
				continue
			}
			l.DropLocal(closed[len(closed)/2].Meta.Last + 1)
		}
	})
	w.many(300, 3000) // closes segments, and then looks for indexes that can go
	wg.Wait()
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	gone, indexes := map[string]bool{}, 0
	for _, name := range removed {
		gone[name] = true
		if base, ok := strings.CutSuffix(name, ".idx"); ok {
			indexes++
			if !gone[base+".log"] {
				t.Errorf("%s went before its .log", name)
			}
		}
	}
	if indexes == 0 {
		t.Error("no index was removed")
	}
}

// writeSpill writes a spill file of batches, as docs/format/spill.md has it.
func writeSpill(t *testing.T, mem *vfs.Mem, seq int, tp ids.TopicPartition, batches ...[]byte) {
	t.Helper()
	b := make([]byte, 32)
	for _, data := range batches {
		h, err := batch.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		at := len(b)
		b = append(b, make([]byte, wal.EntrySize(len(data)))...)
		copy(b[at+wal.EntryHeader:], data)
		wal.EncodeEntry(b[at:], &wal.Entry{TP: tp, Kind: wal.KindBatch, Epoch: crashEpoch, Base: h.BaseOffset, Last: h.LastOffset(), Data: data}, len(data))
	}
	copy(b, "CIRROSPL")
	binary.LittleEndian.PutUint32(b[8:], 1)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(batches)))
	binary.LittleEndian.PutUint64(b[16:], uint64(len(b)))
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], crc32.MakeTable(crc32.Castagnoli)))
	put(t, mem, fmt.Sprintf("%s/wal/spill-%020d.wal", crashDir, seq), b)
}

// Spill files were merged into a new one, and the power went while the old ones
// were removed: the file that is left in front of the merged one has later batches.
func TestSpillsComeBackByOffset(t *testing.T) {
	mem := newCrashFS(t)
	if err := mem.MkdirAll(crashDir + "/wal"); err != nil {
		t.Fatal(err)
	}
	tp := ids.TopicPartition{Topic: ids.TopicID{1}}
	var all [][]byte
	for i := range 3 {
		b := makeBatch(1, 100, uint64(i))
		batch.Stamp(b, int64(i), crashEpoch)
		all = append(all, b)
	}
	writeSpill(t, mem, 2, tp, all[1], all[2])
	writeSpill(t, mem, 7, tp, all...)
	s, err := storage.Open(crashOptions(mem))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range all {
		r, err := s.Log(tp).Read(t.Context(), int64(i), 1, true)
		if err != nil || len(r.Data) == 0 || !same(r.Data[0][:len(want)], want) {
			t.Fatalf("offset %d: %v", i, err)
		}
		r.Release()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
