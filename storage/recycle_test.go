package storage_test

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/vfs/crashtest"
)

// lockstep are the sizes of the batches of topics that follow each other: so an
// old batch lies exactly where the new one of the same offsets comes. Some end with
// a block: then nothing of them is in the ring.
var lockstep = []int{fillsBlocks(2), fillsBlocks(3), fillsBlocks(2), 500, 9000, 300, 300, 8300}

// fillsBlocks is the payload of a batch of n blocks.
func fillsBlocks(n int) int { return n*vfs.BlockSize - batch.HeaderSize }

// fill appends rounds of lockstep to each partition of w that is left.
func (w *world) fill(rounds int, seed uint64) {
	for i := range rounds * len(lockstep) {
		for _, m := range w.parts {
			if !m.removed {
				w.appendBatch(m, 2, lockstep[i%len(lockstep)], seed, crashConfig)
			}
		}
		if i%3 == 0 {
			w.settle()
		}
	}
	w.settle()
}

// recycledInto lists the segments whose files are of used blocks.
func recycledInto(t *testing.T, fsys vfs.FS) (out []string) {
	t.Helper()
	logs, err := fsys.List(filepath.Join(crashDir, "logs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range logs {
		files, _ := fsys.List(filepath.Join(crashDir, "logs", l.Name()))
		for _, f := range files {
			if strings.HasSuffix(f.Name(), ".reused") {
				out = append(out, l.Name()+"/"+f.Name())
			}
		}
	}
	return out
}

// New segments lie in the files of old ones whose batches have the same offsets and
// sizes. After a power loss at any operation none of the old ones is taken for new.
func TestCrashWithUsedFiles(t *testing.T) {
	seed := crashtest.Seed(t)
	mem := newCrashFS(t)
	w := newWorld(t, mem, 1)
	w.fill(6, 1)
	eventually(t, "closed segments", func() bool { return len(w.store.Log(w.parts[0].tp).ClosedSegments()) > 4 })
	sampler := crashtest.Sample(mem, seed, 700, w.observe)
	reused := 0
	for gen := range uint64(3) {
		w.remove(w.parts[gen])
		if gen == 0 && w.store.Stats().Recycled < 4*crashConfig.SegmentBytes {
			t.Errorf("%d bytes were kept", w.store.Stats().Recycled)
		}
		w.mu.Lock()
		w.add(1)
		w.mu.Unlock()
		w.fill(5, 2+gen)
		reused += len(recycledInto(t, mem))
	}
	if reused == 0 {
		t.Error("no file was used again")
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	points, seen := sampler.End()
	t.Logf("%d operations, %d of them tried", seen, len(points))
	crashtest.Each(t, points, func(t *testing.T, p crashtest.Point[[]known]) { checkPoint(t, p, w.parts, seed) })
}

// A spill file that is kept for one partition still has batches of another one, which
// its segment has long since with many behind them. The segment's file is of used blocks.
func TestUsedFileBehindOldSpill(t *testing.T) {
	mem := newCrashFS(t)
	w := newWorld(t, mem, 2)
	w.fill(4, 1)
	eventually(t, "closed segments", func() bool { return len(w.store.Log(w.parts[0].tp).ClosedSegments()) > 1 })
	for _, m := range w.parts {
		w.remove(m)
	}
	w.add(2)
	busy, quiet := w.parts[2], w.parts[3]
	big := storage.LogConfig{SegmentBytes: 4 << 20}
	small := func(m *model, size int) { w.appendBatch(m, 1, size, 7, crashConfig) }
	w.appendBatch(busy, 1, 9000, 3, crashConfig) // takes a file of used blocks
	small(busy, 100)
	small(quiet, 100)
	w.settle()
	if len(recycledInto(t, mem)) == 0 {
		t.Fatal("no file was used again")
	}
	w.add(1)
	other := w.parts[4]
	for range 60 { // the ring is trimmed: what is little goes to a spill file
		w.appendBatch(other, 1, 5000, 5, big)
		w.settle()
	}
	eventually(t, "spill file", func() bool { return w.store.Stats().SpillFiles > 0 })
	for range 3 {
		w.appendBatch(busy, 1, 8500, 4, crashConfig)
		w.settle()
	}
	for range 60 {
		w.appendBatch(other, 1, 5000, 6, big)
		w.settle()
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	k := w.observe()
	s := checkRecovered(t, mem, w.parts, k, k)
	goOn(t, mem, s, w.parts, k)
}

// A full segment in a file of used blocks can't be finished for want of space while the
// ring is trimmed far behind it: it is found whole after a power loss.
func TestUsedFileNotFinished(t *testing.T) {
	mem := newCrashFS(t)
	fault := vfs.NewFault(mem)
	w := newWorld(t, fault, 1)
	w.fill(4, 1)
	eventually(t, "closed segments", func() bool { return len(w.store.Log(w.parts[0].tp).ClosedSegments()) > 1 })
	w.remove(w.parts[0])
	w.add(2)
	fault.Add(vfs.Rule{Op: vfs.OpOpen, Path: ".idx.tmp", Err: syscall.ENOSPC})
	full, other := w.parts[1], w.parts[2]
	for range 5 { // five times two blocks fill a segment of 40 KiB, one begins the next
		w.appendBatch(full, 1, fillsBlocks(2), 3, crashConfig)
	}
	w.appendBatch(full, 1, 100, 3, crashConfig)
	w.settle()
	if len(recycledInto(t, mem)) == 0 {
		t.Fatal("no file was used again")
	}
	big := storage.LogConfig{SegmentBytes: 4 << 20}
	before := w.store.Stats()
	for range 100 {
		w.appendBatch(other, 1, 5000, 5, big)
		w.settle()
	}
	if st := w.store.Stats(); st.WALUsed > st.WALSize || before.WALUsed == 0 {
		t.Errorf("%+v", st)
	}
	k := w.observe()
	clone := copyOf(mem)
	s := checkRecovered(t, clone, w.parts, k, k)
	goOn(t, clone, s, w.parts, k)
	w.die()
	if err := w.store.Close(); err != nil {
		t.Log(err)
	}
}

// Files that wait for a segment count against the disk budget, and go first.
func TestRecycledFilesGoForBudget(t *testing.T) {
	mem := newCrashFS(t)
	o := crashOptions(mem)
	o.DiskBudget = 2 << 20
	w := &world{t: t, store: nil}
	w.add(1)
	var err error
	if w.store, err = storage.Open(o); err != nil {
		t.Fatal(err)
	}
	fill := func(bytes int) {
		m := w.parts[len(w.parts)-1]
		for range bytes / 9061 {
			w.appendBatch(m, 1, 9000, 1, crashConfig)
			w.settle()
		}
	}
	fill(1 << 20)
	eventually(t, "closed segments", func() bool { return len(w.store.Log(w.parts[0].tp).ClosedSegments()) > 20 })
	w.remove(w.parts[0])
	st := w.store.Stats()
	if st.Recycled == 0 || st.Recycled > o.DiskBudget/8 || st.DiskUsed > st.WALSize+1000 {
		t.Fatalf("after the topic went: %+v", st)
	}
	w.add(1)
	fill(int(o.DiskBudget-st.WALSize) - 50_000)
	if st = w.store.Stats(); st.Recycled+st.DiskUsed > o.DiskBudget {
		t.Errorf("more than the budget is used: %+v", st)
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := mem.List(filepath.Join(crashDir, "recycled"))
	if err != nil || int64(len(left))*30_000 > st.Recycled {
		t.Errorf("%d files are left, %d bytes: %v", len(left), st.Recycled, err)
	}
}

// A start removes the files of segments of which nothing is durable, and one that fails in the middle of that
// leaves what the next one can go on with.
func TestUnmetFilesAreRemoved(t *testing.T) {
	mem := newCrashFS(t)
	w := newWorld(t, mem, 1)
	m := w.parts[0]
	w.append(m, 1000)
	l := w.store.Log(m.tp)
	if !l.RollIfOld(true) {
		t.Fatal("nothing to close")
	}
	eventually(t, "closed segment", func() bool { return len(l.ClosedSegments()) == 1 })
	w.settle()
	end := l.End()
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(crashDir, "logs", m.tp.String())
	used, later := filepath.Join(dir, segment.LogName(end)), filepath.Join(dir, segment.LogName(end+10))
	for removed := range 3 {
		for _, name := range []string{used, used + storage.ReusedSuffix, later} {
			put(t, mem, name, make([]byte, 2*vfs.BlockSize))
		}
		fault := vfs.NewFault(mem)
		fault.Add(vfs.Rule{Op: vfs.OpRemove, Path: dir, Skip: removed, Count: 1, Err: syscall.EIO})
		if s, err := storage.Open(crashOptions(fault)); !errors.Is(err, syscall.EIO) {
			t.Fatalf("%v, %v: removal %d fails", s, err, removed+1)
		}
		s, err := storage.Open(crashOptions(mem))
		if err != nil {
			t.Fatalf("after %d removals: %v", removed, err)
		}
		if l := s.Log(m.tp); l == nil || l.End() != end {
			t.Errorf("after %d removals the log does not end at %d", removed, end)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got := logFiles(t, mem, m, ".log"); len(got) != 1 {
			t.Errorf("after %d removals there are %v", removed, got)
		}
	}
}
