package storage_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// copyOf returns a file system of its own with the same files.
func copyOf(m *vfs.Mem) *vfs.Mem { return m.CrashClone(rand.New(rand.NewPCG(1, 1))) }

func readBytes(t testing.TB, fsys vfs.FS, name string) []byte {
	t.Helper()
	f, err := fsys.Open(name, vfs.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		t.Fatal(err)
	}
	return b
}

// put gives a file these bytes, and no more.
func put(t testing.TB, fsys vfs.FS, name string, b []byte) {
	t.Helper()
	f, err := fsys.Open(name, vfs.Create|vfs.Truncate)
	if err == nil {
		_, err = f.WriteAt(b, 0)
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), fsys.SyncDir(filepath.Dir(name)))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// flip changes one bit of a file.
func flip(t testing.TB, fsys vfs.FS, name string, at int) {
	t.Helper()
	f, err := fsys.Open(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], int64(at)); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << (at % 8)
	if _, err := f.WriteAt(b[:], int64(at)); err != nil {
		t.Fatal(err)
	}
}

// variants are all truncations of b, and b with each single bit flipped.
func variants(b []byte, f func(what string, at int, v []byte)) {
	for n := range b {
		f("cut to", n, b[:n])
	}
	for i := range b {
		for bit := range 8 {
			v := bytes.Clone(b)
			v[i] ^= 1 << bit
			f("bit flipped in byte", i, v)
		}
	}
}

// The identity of a disk is what was saved, or refused.
func TestSweepDiskIdentity(t *testing.T) {
	mem := vfs.NewMem()
	d, err := storage.OpenDisk(mem, crashDir)
	if err != nil {
		t.Fatal(err)
	}
	d.Identity.ClusterID, d.Identity.NodeID, d.Identity.Epoch = "cluster", 3, 9
	want := d.Identity
	if err := errors.Join(d.Save(), d.Close()); err != nil {
		t.Fatal(err)
	}
	mem = copyOf(mem) // as after a power loss: the directory's own name is durable
	path := crashDir + "/disk.json"
	served := 0
	variants(readBytes(t, mem, path), func(what string, at int, v []byte) {
		put(t, mem, path, v)
		d, err := storage.OpenDisk(mem, crashDir)
		if err != nil {
			if !errors.Is(err, storage.ErrDamaged) && !errors.Is(err, storage.ErrFormat) || !strings.Contains(err.Error(), crashDir) {
				t.Fatalf("%s %d: %v", what, at, err)
			}
			return
		}
		served++
		if d.Identity != want {
			t.Fatalf("%s %d: identity %+v", what, at, d.Identity)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	})
	if served > 200 { // white space, and case in keys
		t.Errorf("%d changes went unnoticed", served)
	}
}

// spillSample makes a small spill file.
func spillSample(t testing.TB) []byte {
	t.Helper()
	mem := newCrashFS(t)
	w := newWorld(t, mem, 3)
	w.append(w.parts[1], 50)
	w.append(w.parts[2], 70)
	w.append(w.parts[1], 20)
	w.settle()
	var b []byte
	for i := 0; i < 100 && b == nil; i++ {
		w.many(1, 6000)
		files, err := mem.List(crashDir + "/wal")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if strings.HasSuffix(f.Name(), "0001.wal") {
				b = readBytes(t, mem, crashDir+"/wal/"+f.Name())
			}
		}
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	if b == nil {
		t.Fatal("nothing was spilled")
	}
	return b
}

func scanSpill(t testing.TB, b []byte) (all [][]byte, err error) {
	t.Helper()
	mem := vfs.NewMem()
	put(t, mem, "/spill", b)
	_, err = storage.ScanSpill(mem, "/spill", func(e *wal.Entry, _ int64) error {
		all = append(all, bytes.Clone(e.Data))
		return nil
	})
	return all, err
}

func reportedSpill(err error) bool {
	return (errors.Is(err, storage.ErrDamaged) || errors.Is(err, wal.ErrVersion)) && strings.Contains(err.Error(), "/spill")
}

// A spill file gives every batch as it was written, or an error.
func TestSweepSpill(t *testing.T) {
	b := spillSample(t)
	want, err := scanSpill(t, b)
	if err != nil || len(want) < 3 {
		t.Fatalf("%d entries, %v", len(want), err)
	}
	for at := range b {
		for what, v := range map[string][]byte{"cut to": b[:at], "flipped": bytes.Clone(b)} {
			if what == "flipped" {
				v[at] ^= 1 << (at % 8)
			}
			got, err := scanSpill(t, v)
			if err != nil && !reportedSpill(err) || err == nil && len(got) != len(want) {
				t.Fatalf("%s %d: %d entries, %v", what, at, len(got), err)
			}
			for i := range got {
				if !bytes.Equal(got[i], want[i]) {
					t.Fatalf("%s %d: entry %d is another", what, at, i)
				}
			}
		}
	}
}

var sweepConfig = storage.LogConfig{SegmentBytes: 150 << 10, IndexInterval: 4096}

// sweepFS makes two partitions, each with two closed segments and an open one of
// which whole blocks are in the file. When they come there is up to the cleaner.
func sweepFS(t testing.TB) (mem *vfs.Mem, parts []*model) {
	t.Helper()
	for range 50 {
		mem, parts := makeSweepFS(t)
		ready := true
		for _, m := range parts {
			logs := logFiles(t, mem, m, ".log")
			ready = ready && len(logs) == 3 && len(readBytes(t, mem, logs[2])) >= 8192
		}
		if ready {
			return mem, parts
		}
	}
	t.Fatal("the open segments were never written")
	return nil, nil
}

func makeSweepFS(t testing.TB) (mem *vfs.Mem, parts []*model) {
	t.Helper()
	mem = newCrashFS(t)
	w := &world{t: t, rng: rand.New(rand.NewPCG(1, 1))}
	w.add(2)
	o := crashOptions(mem)
	o.WALSize = 512 << 10
	s, err := storage.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	w.store = s
	for _, m := range w.parts {
		if _, err := s.Create(m.tp, sweepConfig, 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		for _, m := range w.parts {
			w.appendAs(m, 2000, sweepConfig)
			w.settle()
		}
	}
	eventually(t, "segments", func() bool {
		for _, m := range w.parts {
			closed := s.Log(m.tp).ClosedSegments()
			if len(closed) != 2 {
				return false
			}
		}
		return true
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return copyOf(mem), w.parts
}

// logFiles returns the paths of a partition's files with a suffix, by offset.
func logFiles(t testing.TB, mem *vfs.Mem, m *model, suffix string) (out []string) {
	t.Helper()
	dir := filepath.Join(crashDir, "logs", m.tp.String())
	files, err := mem.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), suffix) {
			out = append(out, filepath.Join(dir, f.Name()))
		}
	}
	return out
}

// openSwept opens the store; nil when the error names the file.
func openSwept(t testing.TB, mem *vfs.Mem, file string) *storage.Store {
	t.Helper()
	s, err := storage.Open(crashOptions(mem))
	if err != nil && !strings.Contains(err.Error(), filepath.Base(file)) {
		t.Fatalf("%s: %v", file, err)
	}
	return s
}

// checkSwept reads every batch: it is what was appended, or ErrDamaged. It
// returns how many were refused.
func checkSwept(t testing.TB, s *storage.Store, m *model) (refused int) {
	t.Helper()
	l := s.Log(m.tp)
	if l == nil {
		t.Fatalf("%s is gone", m.tp)
	}
	for _, b := range m.batches {
		r, err := l.Read(context.Background(), b.base, 1, true)
		if err != nil {
			if !errors.Is(err, storage.ErrDamaged) || !strings.Contains(err.Error(), ".log") && !strings.Contains(err.Error(), "ends at offset") {
				t.Fatalf("%s at %d: %v", m.tp, b.base, err)
			}
			refused++
			continue
		}
		if r.Size < len(b.data) || !same(r.Data[0][:len(b.data)], b.data) {
			t.Fatalf("%s at %d: wrong bytes", m.tp, b.base)
		}
		r.Release()
	}
	return refused
}

// same compares all of two batches but the leader epoch: that is not under
// Kafka's checksum, and an open segment has no other.
func same(a, b []byte) bool {
	return bytes.Equal(a[:12], b[:12]) && bytes.Equal(a[16:], b[16:])
}

// A bit is flipped in a closed segment and in an open one.
func TestSweepLogs(t *testing.T) {
	mem, parts := sweepFS(t)
	closed, open := logFiles(t, mem, parts[0], ".log")[0], logFiles(t, mem, parts[1], ".log")[2]
	sizes := []int{len(readBytes(t, mem, closed)), len(readBytes(t, mem, open))}
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range 700 {
		at := []int{i, i} // the first batch wholly, then here and there
		if i > 200 {
			at = []int{rng.IntN(sizes[0]), rng.IntN(sizes[1])}
		}
		c := copyOf(mem)
		flip(t, c, closed, at[0])
		flip(t, c, open, at[1])
		s := openSwept(t, c, open)
		if s == nil {
			t.Fatalf("byte %v: a segment that can be read in part keeps the store from opening", at)
		}
		if n := checkSwept(t, s, parts[0]); n == 0 || n > 20 {
			t.Fatalf("byte %d of %s: %d batches refused", at[0], closed, n)
		}
		if n := checkSwept(t, s, parts[1]); n == 0 {
			// Repaired: the ring or a spill file had the batch too.
			if o := s.Log(parts[1].tp).Offsets(); o.End != parts[1].tried {
				t.Fatalf("byte %d of %s: %+v", at[1], open, o)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Segment files are cut, and their indexes cut and flipped.
func TestSweepCutsAndIndexes(t *testing.T) {
	mem, parts := sweepFS(t)
	logs := logFiles(t, mem, parts[0], ".log")
	idx := logFiles(t, mem, parts[0], ".idx")
	try := func(file, what string, at int, v []byte, mayOpen bool) {
		t.Helper()
		c := copyOf(mem)
		put(t, c, file, v)
		s := openSwept(t, c, file)
		if s == nil {
			return
		}
		if n := checkSwept(t, s, parts[0]); !mayOpen && n == 0 {
			t.Fatalf("%s: %s %d: nothing was noticed", file, what, at)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{logs[0], logs[2]} {
		b := readBytes(t, mem, file)
		for n := 0; n < len(b); n += 1021 {
			try(file, "cut to", n, b[:n], file == logs[2])
		}
		try(file, "cut to", len(b)-1, b[:len(b)-1], file == logs[2])
	}
	b := readBytes(t, mem, idx[0])
	for at := range b {
		try(idx[0], "cut to", at, b[:at], false)
		v := bytes.Clone(b)
		v[at] ^= 1 << (at % 8)
		try(idx[0], "flipped", at, v, false)
	}
}
