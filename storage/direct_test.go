package storage_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/storage/wal/ring"
)

const (
	ringPath  = crashDir + "/wal/ring.wal"
	ringStart = 4 * vfs.BlockSize // where its position 0 lies in the file
	// wholeBlocks makes a batch of makeBatch end where a block does.
	wholeBlocks = 4*vfs.BlockSize - batch.HeaderSize
)

// oneSegment keeps a log of a test in one segment.
var oneSegment = storage.LogConfig{SegmentBytes: 64 << 20}

// openWorld opens a store with options and one topic.
func openWorld(t testing.TB, o storage.Options, partitions int) *world {
	t.Helper()
	s, err := storage.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, rng: rand.New(rand.NewPCG(1, 1)), store: s}
	w.add(partitions)
	return w
}

// reopen closes the store, opens it again with options o and compares.
func (w *world) reopen(o storage.Options) {
	w.t.Helper()
	if err := w.store.Close(); err != nil {
		w.t.Fatal(err)
	}
	s, err := storage.Open(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.store = s
	w.readBack()
}

// readBack compares every log with what was acknowledged.
func (w *world) readBack() {
	w.t.Helper()
	for _, m := range w.parts {
		l := w.store.Log(m.tp)
		if l == nil {
			w.t.Fatalf("%s is gone", m.tp)
		}
		if o := l.Offsets(); o.End != m.tried {
			w.t.Fatalf("%s: %+v, want the end %d", m.tp, o, m.tried)
		}
		if end := readRest(w.t, l, m); end != m.tried {
			w.t.Fatalf("%s: can be read up to %d, want %d", m.tp, end, m.tried)
		}
	}
}

// appendRaw appends one batch beside the model, and waits.
func appendRaw(t testing.TB, l *storage.Log, b []byte) (int64, error) {
	t.Helper()
	h, err := batch.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan storage.AppendResult, 1)
	if err := l.Append(context.Background(), b, h, storage.AppendOptions{Epoch: crashEpoch}, func(r storage.AppendResult) { got <- r }); err != nil {
		return -1, err
	}
	r := <-got
	return r.Base, r.Err
}

func segPath(tp ids.TopicPartition, base int64) string {
	return filepath.Join(crashDir, "logs", tp.String(), segment.LogName(base))
}

// ringEntries are those of the ring, without their data.
func ringEntries(t testing.TB, fsys vfs.FS) (all []wal.Entry) {
	t.Helper()
	_, err := ring.Scan(fsys, ringPath, func(e *wal.Entry) error {
		all = append(all, *e)
		all[len(all)-1].Data = nil
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func refs(all []wal.Entry) (n int) {
	for _, e := range all {
		if e.Kind == wal.KindRef {
			n++
		}
	}
	return n
}

// Large batches go to their segment files once, and nothing but references to the
// ring; small ones between them are where they belong.
func TestLargeBatchesAreWrittenOnce(t *testing.T) {
	const n, size = 48, 300 << 10
	for _, partitions := range []int{1, 4} {
		mem := newCrashFS(t)
		fs := &countingFS{FS: mem}
		o := storage.Options{FS: fs, Dir: crashDir, WALSize: 8 << 20}
		w := openWorld(t, o, partitions)
		fs.ringBytes.Store(0)
		var total int64
		for i := range n {
			m := w.parts[i%partitions]
			w.appendAs(m, size+w.rng.IntN(10_000), oneSegment)
			w.appendAs(m, w.rng.IntN(5000), oneSegment)
			if i%5 == 0 {
				w.settle()
			}
		}
		w.settle()
		for _, m := range w.parts {
			for _, s := range m.batches {
				total += int64(len(s.data))
			}
		}
		if got := fs.logBytes.Load(); got > total || got < total-int64(partitions)*8<<10 {
			t.Errorf("%d partitions: %d bytes written to segment files for %d", partitions, got, total)
		}
		if got := fs.ringBytes.Load(); got > n*16<<10 {
			t.Errorf("%d partitions: %d bytes written to the ring for %d batches", partitions, got, n)
		}
		r, err := w.store.Log(w.parts[0].tp).Read(context.Background(), 0, 1, true)
		if err != nil || !r.FromMemory {
			t.Errorf("first batch: %v, from memory %v", err, r.FromMemory)
		}
		r.Release()
		w.readBack()
		o.TailBytes = 1
		w.reopen(o)
		for _, l := range w.store.Logs() {
			l.RollIfOld(true)
			eventually(t, "closed segment", func() bool { return len(l.ClosedSegments()) == 1 })
		}
		w.readBack()
		w.reopen(o)
		if r, err = w.store.Log(w.parts[0].tp).Read(context.Background(), 0, 1, true); err != nil || r.FromMemory {
			t.Errorf("first batch: %v, from memory %v", err, r.FromMemory)
		}
		r.Release()
		if err := w.store.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A disk that fails a large batch's blocks fails the append and all later ones;
// what was acknowledged before is there after a restart.
func TestLargeBatchOnFailingDisk(t *testing.T) {
	for name, op := range map[string]vfs.Op{"write": vfs.OpWrite, "sync": vfs.OpSync} {
		t.Run(name, func(t *testing.T) {
			mem := newCrashFS(t)
			fault := vfs.NewFault(mem)
			failed := make(chan error, 10)
			o := crashOptions(fault)
			o.OnFailure = func(err error) { failed <- err }
			w := openWorld(t, o, 2)
			for i := range 6 {
				w.append(w.parts[i%2], 3000*i)
			}
			w.settle()
			fault.Add(vfs.Rule{Op: op, Path: ".log", Err: syscall.EIO, Count: 1})
			w.die()
			m := w.parts[0]
			b := makeBatch(1, 20_000, 77)
			idempotent(b, int64(m.tp.Partition)+1, int32(m.tried))
			m.batches = append(m.batches, sent{base: m.tried, last: m.tried, seq: int32(m.tried), data: bytes.Clone(b)})
			m.tried++
			if _, err := appendRaw(t, w.store.Log(m.tp), b); !errors.Is(err, storage.ErrFailed) {
				t.Fatalf("append to a failing disk: %v", err)
			}
			if fault.Fired(op) != 1 {
				t.Fatal("the fault was not met")
			}
			for _, m := range w.parts {
				for _, size := range []int{100, 20_000} {
					if _, err := appendRaw(t, w.store.Log(m.tp), makeBatch(1, size, 1)); !errors.Is(err, storage.ErrFailed) {
						t.Errorf("append after the failure: %v", err)
					}
				}
			}
			select {
			case err := <-failed:
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("OnFailure: %v", err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("OnFailure was not called")
			}
			if err := w.store.Close(); !errors.Is(err, syscall.EIO) {
				t.Errorf("close: %v", err)
			}
			batch.Stamp(m.batches[len(m.batches)-1].data, m.tried-1, crashEpoch)
			k := w.observe()
			for i := range uint64(10) {
				clone := mem.CrashClone(rand.New(rand.NewPCG(i, 3)))
				goOn(t, clone, checkRecovered(t, clone, w.parts, k, k), w.parts, k)
			}
			goOn(t, mem, checkRecovered(t, mem, w.parts, k, k), w.parts, k)
		})
	}
}

// A full disk does not stop large batches while the ring has room, and is told.
func TestLargeBatchOnFullDisk(t *testing.T) {
	for name, fill := range map[string]func(*vfs.Mem, *vfs.Fault){
		"error": func(_ *vfs.Mem, f *vfs.Fault) { f.Add(vfs.Rule{Op: vfs.OpReserve, Path: ".log", Err: syscall.ENOSPC}) },
		"limit": func(m *vfs.Mem, _ *vfs.Fault) {
			free, total, _ := m.Usage("/")
			m.SetLimit(total - free + 8<<10)
		},
	} {
		t.Run(name, func(t *testing.T) {
			mem := newCrashFS(t)
			fault := vfs.NewFault(mem)
			o := crashOptions(fault)
			o.WALSize = 512 << 10
			w := openWorld(t, o, 2)
			w.append(w.parts[0], 100)
			w.settle()
			fill(mem, fault)
			for i := range 4 {
				w.append(w.parts[i%2], 20_000)
			}
			w.settle() // all are acknowledged
			if err := w.store.NoSpace(); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("NoSpace: %v", err)
			}
			w.readBack()
			if all := ringEntries(t, mem); len(all) != 5 || refs(all) != 0 {
				t.Errorf("ring has %d entries, %d of them references", len(all), refs(all))
			}
			k := w.observe()
			clone := mem.CrashClone(rand.New(rand.NewPCG(4, 4)))
			goOn(t, clone, checkRecovered(t, clone, w.parts, k, k), w.parts, k)
			fault.Clear()
			mem.SetLimit(0)
			w.append(w.parts[0], 20_000)
			w.settle()
			if n := refs(ringEntries(t, mem)); n != 1 {
				t.Errorf("%d references in the ring when there is room again", n)
			}
			w.reopen(o)
			if err := w.store.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Where files can't reserve space, the ring takes large batches as ever.
func TestLargeBatchWithoutReserve(t *testing.T) {
	mem := newCrashFS(t)
	fault := vfs.NewFault(mem)
	fault.Add(vfs.Rule{Op: vfs.OpReserve, Err: errors.ErrUnsupported})
	o := crashOptions(fault)
	o.WALSize = 512 << 10
	w := openWorld(t, o, 2)
	for i := range 4 {
		w.append(w.parts[i%2], 20_000)
		w.settle()
	}
	if n := fault.Fired(vfs.OpReserve); n != 1 {
		t.Errorf("%d times space was asked for", n)
	}
	if all := ringEntries(t, mem); len(all) != 4 || refs(all) != 0 {
		t.Errorf("ring has %d entries, %d of them references", len(all), refs(all))
	}
	if err := w.store.NoSpace(); err != nil {
		t.Error(err)
	}
	w.reopen(o)
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
}

// A ring of version 1 stays one that an older program can read.
func TestLargeBatchInOldRing(t *testing.T) {
	mem := newCrashFS(t)
	o := crashOptions(mem)
	o.WALSize = 4 << 20
	w := openWorld(t, o, 2)
	w.append(w.parts[0], 20_000)
	w.append(w.parts[1], 100)
	w.settle()
	if n := refs(ringEntries(t, mem)); n != 1 {
		t.Fatalf("%d references in a new ring", n)
	}
	for _, l := range w.store.Logs() { // so that the ring is not needed
		l.RollIfOld(true)
		eventually(t, "closed segment", func() bool { return len(l.ClosedSegments()) == 1 })
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := mem.Remove(ringPath); err != nil {
		t.Fatal(err)
	}
	if s, err := storage.Open(o); err != nil || s.Close() != nil {
		t.Fatal(err)
	}
	b := readBytes(t, mem, ringPath)
	binary.LittleEndian.PutUint32(b[8:], 1)
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], crc32.MakeTable(crc32.Castagnoli)))
	put(t, mem, ringPath, b)
	var err error
	if w.store, err = storage.Open(o); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for i := range 4 {
			w.append(w.parts[i%2], 20_000)
		}
		w.settle()
		all := ringEntries(t, mem)
		if len(all) == 0 || refs(all) != 0 {
			t.Errorf("ring has %d entries, %d of them references", len(all), refs(all))
		}
		w.reopen(o)
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	if v := binary.LittleEndian.Uint32(readBytes(t, mem, ringPath)[8:]); v != 1 {
		t.Errorf("the ring has become one of version %d", v)
	}
}

// A large batch that was acknowledged and is damaged in its file stops its partition,
// whose file is left alone, and no other one.
func TestDamagedLargeBatch(t *testing.T) {
	for name, at := range map[string]int{"first batch": 5000, "a later one": 26_000} {
		t.Run(name, func(t *testing.T) {
			mem := newCrashFS(t)
			o := crashOptions(mem)
			o.WALSize = 512 << 10
			w := openWorld(t, o, 2)
			sick, well := w.parts[0], w.parts[1]
			for _, size := range []int{20_000, 500, 20_000} {
				w.appendAs(sick, size, oneSegment)
				w.appendAs(well, size, oneSegment)
				w.settle()
			}
			w.appendAs(well, 100, oneSegment) // the last commit
			w.settle()
			if err := w.store.Close(); err != nil {
				t.Fatal(err)
			}
			flip(t, mem, segPath(sick.tp, 0), at)
			before := readBytes(t, mem, segPath(sick.tp, 0))
			for range 2 {
				s, err := storage.Open(o)
				if err != nil {
					t.Fatal(err)
				}
				l := s.Log(sick.tp)
				if _, err := l.Read(context.Background(), 0, 100, true); !errors.Is(err, storage.ErrDamaged) {
					t.Errorf("read: %v", err)
				}
				if _, err := appendRaw(t, l, makeBatch(1, 20_000, 1)); !errors.Is(err, storage.ErrDamaged) {
					t.Errorf("append: %v", err)
				}
				l.RollIfOld(true)
				w.store = s
				w.appendAs(well, 20_000, oneSegment)
				w.appendAs(well, 100, oneSegment)
				w.settle()
				if end := readRest(t, s.Log(well.tp), well); end != well.tried {
					t.Errorf("the other partition can be read up to %d, want %d", end, well.tried)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(before, readBytes(t, mem, segPath(sick.tp, 0))) {
				t.Error("the damaged file was changed")
			}
		})
	}
}

// twoInOneCommit appends a large batch to the first partition and a small one to
// the second, such that the ring has them in one commit, its last.
func twoInOneCommit(t *testing.T, w *world, mem *vfs.Mem, fault *vfs.Fault) {
	t.Helper()
	for range 20 {
		fault.Add(vfs.Rule{Op: vfs.OpWrite, Path: "ring.wal", Delay: 50 * time.Millisecond, Count: 1})
		w.appendAs(w.parts[1], 100, oneSegment)
		eventually(t, "commit under way", func() bool { return fault.Fired(vfs.OpWrite) > 0 })
		w.appendAs(w.parts[0], wholeBlocks, oneSegment)
		w.appendAs(w.parts[1], 200, oneSegment)
		w.settle()
		all := ringEntries(t, mem)
		if a, b := all[len(all)-2], all[len(all)-1]; a.Pos == b.Pos && a.Kind == wal.KindRef && b.TP == w.parts[1].tp {
			return
		}
		fault.Clear()
	}
	t.Fatal("no commit with both")
}

// In the last commit a batch whose blocks are not there counts as torn with all
// that was committed with it: it may never have been acknowledged. Its blocks are
// removed, and the log goes on.
func TestTornLargeBatch(t *testing.T) {
	mem := newCrashFS(t)
	fault := vfs.NewFault(mem)
	o := crashOptions(fault)
	o.WALSize = 512 << 10
	w := openWorld(t, o, 2)
	w.appendAs(w.parts[0], wholeBlocks, oneSegment)
	w.settle()
	twoInOneCommit(t, w, mem, fault)
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	path := segPath(w.parts[0].tp, 0)
	size := len(readBytes(t, mem, path))
	flip(t, mem, path, size-100)
	for _, m := range w.parts {
		m.tried = m.batches[len(m.batches)-1].base
		m.acked, m.batches = m.tried, m.batches[:len(m.batches)-1]
	}
	k := w.observe()
	clone := copyOf(mem)
	goOn(t, clone, checkRecovered(t, clone, w.parts, k, k), w.parts, k)
	if err := checkRecovered(t, mem, w.parts, k, k).Close(); err != nil { // once more, without appends
		t.Fatal(err)
	}
	if n := len(readBytes(t, mem, path)); n != size-wholeBlocks-batch.HeaderSize {
		t.Errorf("the file has %d bytes after the cut, %d before", n, size)
	}
	goOn(t, mem, checkRecovered(t, mem, w.parts, k, k), w.parts, k)
}

// Blocks of large batches whose reference did not become durable are removed:
// behind later batches of the same size they would come back as appended ones.
func TestLostLargeBatchesStayLost(t *testing.T) {
	mem := newCrashFS(t)
	o := crashOptions(mem)
	o.WALSize = 512 << 10
	w := openWorld(t, o, 1)
	m := w.parts[0]
	for range 3 {
		w.appendAs(m, wholeBlocks, oneSegment)
		w.settle()
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	// The power went before the commits of the second and the third one, and the
	// blocks of the second one, were on disk.
	for _, e := range ringEntries(t, mem)[1:] {
		overwrite(t, mem, ringPath, make([]byte, vfs.BlockSize), ringStart+int64(e.Pos))
	}
	const size = wholeBlocks + batch.HeaderSize
	overwrite(t, mem, segPath(m.tp, 0), make([]byte, size), size)
	lost := m.batches[1]
	m.batches, m.tried, m.acked = m.batches[:1], lost.base, lost.base
	k := w.observe()
	w.store = checkRecovered(t, mem, w.parts, k, k)
	if n := len(readBytes(t, mem, segPath(m.tp, 0))); n != size {
		t.Errorf("the file has %d bytes, want %d", n, size)
	}
	b := makeBatch(int(lost.last-lost.base)+1, wholeBlocks, 99)
	idempotent(b, int64(m.tp.Partition)+1, lost.seq)
	if at, err := appendRaw(t, w.store.Log(m.tp), b); err != nil || at != lost.base {
		t.Fatalf("appended at %d: %v", at, err)
	}
	m.batches = append(m.batches, sent{base: lost.base, last: lost.last, seq: lost.seq, data: b})
	m.tried, m.acked = lost.last+1, lost.last+1
	w.reopen(o)
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
}

// overwrite changes bytes of a file.
func overwrite(t testing.TB, fsys vfs.FS, name string, b []byte, at int64) {
	t.Helper()
	f, err := fsys.Open(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(b, at)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// After a recovery memory may have the batches before and behind those that were
// found in a file: a read does not pass over them.
func TestReadAcrossFoundBatches(t *testing.T) {
	mem := newCrashFS(t)
	fault := vfs.NewFault(mem)
	o := crashOptions(fault)
	o.WALSize = 512 << 10
	w := openWorld(t, o, 1)
	m := w.parts[0]
	cfg := storage.LogConfig{SegmentBytes: 2 * (wholeBlocks + batch.HeaderSize)}
	w.appendAs(m, wholeBlocks, cfg)
	w.settle()
	// The end of the first segment does not get to its file.
	fault.Add(vfs.Rule{Op: vfs.OpWrite, Path: segment.LogName(0), Err: syscall.ENOSPC})
	w.appendAs(m, 1000, cfg)
	w.appendAs(m, wholeBlocks, cfg) // begins the second one
	w.appendAs(m, 1000, cfg)
	w.settle()
	if n := refs(ringEntries(t, mem)); n != 2 {
		t.Fatalf("%d references in the ring", n)
	}
	for i := range uint64(5) {
		k := w.observe()
		clone := mem.CrashClone(rand.New(rand.NewPCG(5, i)))
		goOn(t, clone, checkRecovered(t, clone, w.parts, k, k), w.parts, k)
	}
	w.reopen(o)
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
}
