package vfs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cirrolog/cirrolog/storage/vfs"
)

// eachFS runs f on every implementation, with an empty directory.
func eachFS(t *testing.T, f func(t *testing.T, fsys vfs.FS, dir string)) {
	t.Run("OS", func(t *testing.T) { f(t, vfs.OS(), t.TempDir()) })
	t.Run("Mem", func(t *testing.T) { f(t, memWithDir(t), "/data") })
	t.Run("Fault", func(t *testing.T) { f(t, vfs.NewFault(memWithDir(t)), "/data") })
}

func memWithDir(t *testing.T) *vfs.Mem {
	m := vfs.NewMem()
	must(t, m.MkdirAll("/data"))
	must(t, m.SyncDir("/"))
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, fsys vfs.FS, name string, flag vfs.Flag) vfs.File {
	t.Helper()
	f, err := fsys.Open(name, flag)
	must(t, err)
	return f
}

func write(t testing.TB, f vfs.File, b string, off int64) {
	t.Helper()
	if n, err := f.WriteAt([]byte(b), off); n != len(b) || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
}

func put(t testing.TB, fsys vfs.FS, name, b string) {
	t.Helper()
	f := open(t, fsys, name, vfs.Create|vfs.Truncate)
	write(t, f, b, 0)
	must(t, f.Close())
}

// get returns a file's bytes, or "-" when it is missing.
func get(t testing.TB, fsys vfs.FS, name string) string {
	t.Helper()
	f, err := fsys.Open(name, vfs.ReadOnly)
	if errors.Is(err, fs.ErrNotExist) {
		return "-"
	}
	must(t, err)
	defer f.Close()
	size, err := f.Size()
	must(t, err)
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); int64(n) != size || err != nil && err != io.EOF {
		t.Fatalf("read %s: %d of %d, %v", name, n, size, err)
	}
	return string(b)
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func TestContractOpen(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "a")
		_, err := fsys.Open(name, 0)
		wantErr(t, err, fs.ErrNotExist)
		_, err = fsys.Open(filepath.Join(dir, "no", "a"), vfs.Create)
		wantErr(t, err, fs.ErrNotExist)
		f := open(t, fsys, name, vfs.Create|vfs.Excl)
		write(t, f, "hello", 0)
		must(t, f.Close())
		wantErr(t, f.Close(), fs.ErrClosed)
		_, err = f.WriteAt([]byte("x"), 0)
		wantErr(t, err, fs.ErrClosed)
		_, err = fsys.Open(name, vfs.Create|vfs.Excl)
		wantErr(t, err, fs.ErrExist)
		f = open(t, fsys, name, vfs.Create)
		write(t, f, "J", 0)
		must(t, f.Close())
		if got := get(t, fsys, name); got != "Jello" {
			t.Fatalf("got %q", got)
		}
		f = open(t, fsys, name, vfs.ReadOnly)
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Fatal("write to a read-only file")
		}
		must(t, f.Close())
		must(t, open(t, fsys, name, vfs.Truncate).Close())
		if got := get(t, fsys, name); got != "" {
			t.Fatalf("got %q after truncation", got)
		}
	})
}

func TestContractReadWrite(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		f := open(t, fsys, filepath.Join(dir, "a"), vfs.Create)
		defer f.Close()
		write(t, f, "tail", 10000)
		b := make([]byte, 20)
		n, err := f.ReadAt(b, 9990)
		if n != 14 || err != io.EOF || string(b[:n]) != strings.Repeat("\x00", 10)+"tail" {
			t.Fatalf("read %d %q, %v", n, b[:n], err)
		}
		if n, err := f.ReadAt(b, 20000); n != 0 || err != io.EOF {
			t.Fatalf("read behind the end: %d, %v", n, err)
		}
		if n, err := f.ReadAt(b[:4], 10000); n != 4 || err != nil {
			t.Fatalf("read to the end: %d, %v", n, err)
		}
		if _, err := f.ReadAt(b, -1); err == nil {
			t.Fatal("read at a negative offset")
		}
		must(t, f.Truncate(10002))
		must(t, f.Truncate(10004))
		if n, _ := f.ReadAt(b[:4], 10000); n != 4 || string(b[:4]) != "ta\x00\x00" {
			t.Fatalf("after two truncations %q", b[:n])
		}
		must(t, f.Sync())
		if p, ok := f.(vfs.Preallocator); ok {
			must(t, p.Preallocate(20000))
			if size, err := f.Size(); size != 20000 || err != nil {
				t.Fatalf("preallocated %d, %v", size, err)
			}
		}
	})
}

func TestContractNames(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		at := func(s string) string { return filepath.Join(dir, s) }
		put(t, fsys, at("a"), "1")
		put(t, fsys, at("b"), "2")
		wantErr(t, fsys.Link(at("a"), at("b")), fs.ErrExist)
		wantErr(t, fsys.Link(at("none"), at("c")), fs.ErrNotExist)
		must(t, fsys.Link(at("a"), at("c")))
		must(t, fsys.Remove(at("a")))
		wantErr(t, fsys.Remove(at("a")), fs.ErrNotExist)
		if got := get(t, fsys, at("c")); got != "1" {
			t.Fatalf("linked file has %q", got)
		}
		must(t, fsys.Rename(at("c"), at("b")))
		wantErr(t, fsys.Rename(at("c"), at("b")), fs.ErrNotExist)
		if got := get(t, fsys, at("b")); got != "1" {
			t.Fatalf("renamed file has %q", got)
		}
		must(t, fsys.MkdirAll(at("d/e")))
		must(t, fsys.MkdirAll(at("d/e")))
		put(t, fsys, at("d/e/f"), "3")
		must(t, fsys.Rename(at("d/e/f"), at("d/g")))
		entries, err := fsys.List(at("d"))
		must(t, err)
		if len(entries) != 2 || entries[0].Name() != "e" || !entries[0].IsDir() || entries[1].Name() != "g" || entries[1].IsDir() {
			t.Fatalf("listed %v", entries)
		}
		_, err = fsys.List(at("none"))
		wantErr(t, err, fs.ErrNotExist)
		must(t, fsys.SyncDir(at("d")))
		wantErr(t, fsys.SyncDir(at("none")), fs.ErrNotExist)
		if err := fsys.Remove(at("d")); err == nil {
			t.Fatal("removed a directory that is not empty")
		}
		must(t, fsys.RemoveAll(at("d")))
		must(t, fsys.RemoveAll(at("d")))
		_, err = fsys.Stat(at("d"))
		wantErr(t, err, fs.ErrNotExist)
		info, err := fsys.Stat(at("b"))
		must(t, err)
		if info.Size() != 1 || info.IsDir() || info.ModTime().IsZero() {
			t.Fatalf("stat %v", info)
		}
	})
}

// A file that is removed or replaced stays readable by who has it open.
func TestContractUnlinked(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		put(t, fsys, filepath.Join(dir, "a"), "old")
		f := open(t, fsys, filepath.Join(dir, "a"), vfs.ReadOnly)
		defer f.Close()
		put(t, fsys, filepath.Join(dir, "b"), "new")
		must(t, fsys.Rename(filepath.Join(dir, "b"), filepath.Join(dir, "a")))
		b := make([]byte, 3)
		if n, err := f.ReadAt(b, 0); n != 3 || err != nil || string(b) != "old" {
			t.Fatalf("read %q, %v", b, err)
		}
	})
}

func TestContractLock(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "LOCK")
		l, err := fsys.Lock(name)
		must(t, err)
		_, err = fsys.Lock(name)
		wantErr(t, err, vfs.ErrLocked)
		must(t, l.Close())
		l, err = fsys.Lock(name)
		must(t, err)
		must(t, l.Close())
	})
}

func TestContractUsage(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		free, total, err := fsys.Usage(dir)
		if err != nil || free <= 0 || total < free {
			t.Fatalf("free %d, total %d, %v", free, total, err)
		}
		_, _, err = fsys.Usage(filepath.Join(dir, "none"))
		wantErr(t, err, fs.ErrNotExist)
	})
}

func TestContractDirect(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		f := open(t, fsys, filepath.Join(dir, "a"), vfs.Create|vfs.Direct|vfs.Dsync)
		defer f.Close()
		b := vfs.AlignedBytes(2 * vfs.BlockSize)
		for i := range b {
			b[i] = byte(i * 7)
		}
		if n, err := f.WriteAt(b, vfs.BlockSize); n != len(b) || err != nil {
			t.Fatalf("write %d, %v", n, err)
		}
		got := vfs.AlignedBytes(4 * vfs.BlockSize)
		n, err := f.ReadAt(got, 0)
		if n != 3*vfs.BlockSize || err != io.EOF || !bytes.Equal(got[vfs.BlockSize:n], b) {
			t.Fatalf("read %d, %v", n, err)
		}
		// A file closed by a Truncate to its exact size is read up to it.
		must(t, f.Truncate(vfs.BlockSize+5))
		if n, err := f.ReadAt(got, 0); n != vfs.BlockSize+5 || err != io.EOF {
			t.Fatalf("read %d, %v", n, err)
		}
	})
}

// blocksOf returns the bytes that a file takes on the disk, -1 when they are not known.
func blocksOf(t testing.TB, fsys vfs.FS, name string) int64 {
	info, err := fsys.Stat(name)
	must(t, err)
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return -1
}

// WriteAtSync writes as WriteAt does, also with direct I/O.
func TestContractWriteAtSync(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "a")
		f := open(t, fsys, name, vfs.Create|vfs.Direct)
		defer f.Close()
		b := vfs.AlignedBytes(3 * vfs.BlockSize)
		for i := range b {
			b[i] = byte('a' + i/vfs.BlockSize)
		}
		w, ok := f.(vfs.SyncWriter)
		if !ok {
			t.Fatal("no SyncWriter")
		}
		for _, at := range []int64{2 * vfs.BlockSize, 0} {
			if n, err := w.WriteAtSync(b, at); n != len(b) || err != nil {
				t.Fatalf("wrote %d, %v", n, err)
			}
		}
		want := string(b) + string(b[vfs.BlockSize:])
		if got := get(t, fsys, name); got != want {
			t.Fatalf("%d bytes, not those written", len(got))
		}
		must(t, f.Close())
		if _, err := w.WriteAtSync(b, 0); err == nil {
			t.Fatal("a write to a closed file")
		}
	})
}

// Reserved space takes room, but is no part of the file; Truncate gives it back.
func TestContractReserve(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "a")
		f := open(t, fsys, name, vfs.Create)
		defer f.Close()
		write(t, f, "hello", 0)
		r, ok := f.(vfs.Reserver)
		if !ok {
			t.Fatal("no Reserver")
		}
		err := r.Reserve(1 << 20)
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skip("the file system can't reserve space")
		}
		must(t, err)
		must(t, r.Reserve(4096)) // less than there is
		if got := get(t, fsys, name); got != "hello" {
			t.Fatalf("%d bytes after Reserve", len(got))
		}
		if n := blocksOf(t, fsys, name); n >= 0 && n < 1<<20 {
			t.Errorf("%d bytes reserved", n)
		}
		write(t, f, "far", 10_000)
		if size, err := f.Size(); size != 10_003 || err != nil {
			t.Fatalf("size %d, %v", size, err)
		}
		must(t, f.Truncate(10_003))
		if n := blocksOf(t, fsys, name); n >= 1<<20 {
			t.Errorf("%d bytes are taken after Truncate", n)
		}
		if got := get(t, fsys, name); got != "hello"+strings.Repeat("\x00", 9995)+"far" {
			t.Fatalf("%d bytes, not those written", len(got))
		}
	})
}

func TestMemReserve(t *testing.T) {
	m := memWithDir(t)
	m.SetLimit(100_000)
	wantFree := func(want int64) {
		t.Helper()
		if free, _, _ := m.Usage("/data"); free != want {
			t.Fatalf("free %d, want %d", free, want)
		}
	}
	f := open(t, m, "/data/a", vfs.Create)
	r := f.(vfs.Reserver)
	wantErr(t, r.Reserve(100_001), syscall.ENOSPC)
	wantFree(100_000)
	must(t, r.Reserve(60_000))
	wantFree(40_000)
	must(t, r.Reserve(60_000))
	wantFree(40_000)
	other := open(t, m, "/data/b", vfs.Create)
	write(t, other, strings.Repeat("x", 40_000), 0)
	_, err := other.WriteAt([]byte("x"), 40_000)
	wantErr(t, err, syscall.ENOSPC)
	wantErr(t, r.Reserve(60_001), syscall.ENOSPC)
	write(t, f, strings.Repeat("y", 60_000), 0) // never finds the disk full
	_, err = f.WriteAt([]byte("y"), 60_000)
	wantErr(t, err, syscall.ENOSPC)
	wantFree(0)
	must(t, f.Truncate(10_000))
	wantFree(50_000)
	must(t, r.Reserve(30_000))
	wantFree(30_000)
	must(t, f.Truncate(10_000)) // of the same size
	wantFree(50_000)
	must(t, r.Reserve(30_000))
	must(t, m.Remove("/data/a"))
	wantFree(30_000)
	must(t, f.Close())
	wantFree(60_000)
}

func TestMemRefusesUnaligned(t *testing.T) {
	m := memWithDir(t)
	f := open(t, m, "/data/a", vfs.Create|vfs.Direct)
	b := vfs.AlignedBytes(2 * vfs.BlockSize)
	for name, try := range map[string]func() (int, error){
		"offset":      func() (int, error) { return f.WriteAt(b, 512) },
		"length":      func() (int, error) { return f.WriteAt(b[:512], 0) },
		"memory":      func() (int, error) { return f.WriteAt(b[8:8+vfs.BlockSize], 0) },
		"read offset": func() (int, error) { return f.ReadAt(b, 512) },
		"read length": func() (int, error) { return f.ReadAt(b[:512], 0) },
		"read memory": func() (int, error) { return f.ReadAt(b[8:8+vfs.BlockSize], 0) },
	} {
		if n, err := try(); n != 0 || !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}

func TestMemLimit(t *testing.T) {
	m := memWithDir(t)
	m.SetLimit(100)
	f := open(t, m, "/data/a", vfs.Create)
	write(t, f, strings.Repeat("x", 90), 0)
	_, err := f.WriteAt(make([]byte, 20), 85)
	wantErr(t, err, syscall.ENOSPC)
	wantErr(t, f.Truncate(101), syscall.ENOSPC)
	if size, _ := f.Size(); size != 90 {
		t.Fatalf("size %d after a refused write", size)
	}
	write(t, f, strings.Repeat("y", 90), 0) // no growth
	if free, total, _ := m.Usage("/data"); free != 10 || total != 100 {
		t.Fatalf("free %d, total %d", free, total)
	}
	must(t, m.Link("/data/a", "/data/b"))
	must(t, m.Remove("/data/a"))
	must(t, m.Remove("/data/b"))
	if free, _, _ := m.Usage("/data"); free != 10 {
		t.Fatalf("free %d while the file is open", free)
	}
	must(t, f.Close())
	if free, _, _ := m.Usage("/data"); free != 100 {
		t.Fatalf("free %d", free)
	}
}
