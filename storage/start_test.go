package storage_test

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// dirsFS counts what is asked of the logs' directories and their files.
type dirsFS struct {
	vfs.FS
	dirs, names, heads, stats atomic.Int64 // of the vfs.Dirs
	files                     atomic.Int64 // opened, listed or looked at by whole paths
	change                    func(b []byte) (n int)
}

func (c *dirsFS) count(name string) {
	if strings.Contains(name, "logs/") {
		c.files.Add(1)
	}
}

func (c *dirsFS) Open(name string, flag vfs.Flag) (vfs.File, error) {
	c.count(name)
	return c.FS.Open(name, flag)
}

func (c *dirsFS) Stat(name string) (fs.FileInfo, error) {
	c.count(name)
	return c.FS.Stat(name)
}

func (c *dirsFS) List(dir string) ([]fs.DirEntry, error) {
	c.count(dir)
	return c.FS.List(dir)
}

func (c *dirsFS) OpenDir(dir string) (vfs.Dir, error) {
	c.dirs.Add(1)
	d, err := vfs.OpenDir(c.FS, dir)
	return &countedDir{Dir: d, fs: c}, err
}

type countedDir struct {
	vfs.Dir
	fs *dirsFS
}

func (d *countedDir) Names() ([]string, error) {
	d.fs.names.Add(1)
	return d.Dir.Names()
}

func (d *countedDir) Head(name string, buf []byte) (int, error) {
	d.fs.heads.Add(1)
	n, err := d.Dir.Head(name, buf)
	if err == nil && d.fs.change != nil {
		n = d.fs.change(buf[:n])
	}
	return n, err
}

func (d *countedDir) Stat(name string) (int64, time.Time, error) {
	d.fs.stats.Add(1)
	return d.Dir.Stat(name)
}

// startLogs and startSegments are what closedLogs makes.
const startLogs, startSegments = 80, 2

// closedLogs makes a data directory of logs that have closed segments alone, and
// returns it with what each holds.
func closedLogs(t testing.TB) (dir string, want map[ids.TopicPartition][]byte) {
	dir, want = t.TempDir(), map[ids.TopicPartition][]byte{}
	s, err := storage.Open(storage.Options{FS: vfs.OS(), Dir: dir, WALSize: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var logs []*storage.Log
	for p := range int32(startLogs) {
		l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}, Partition: p}, storage.LogConfig{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, l)
	}
	for i := range startSegments {
		var wg sync.WaitGroup
		for p, l := range logs {
			appendOne(t, l, makeBatch(2, 100, uint64(10*p+i)), &wg)
		}
		wg.Wait()
		for _, l := range logs {
			l.RollIfOld(true)
		}
		eventually(t, "segments are closed", func() bool {
			return !slices.ContainsFunc(logs, func(l *storage.Log) bool { return len(l.ClosedSegments()) != i+1 })
		})
	}
	for _, l := range s.Logs() {
		want[l.TP()] = readAll(t, l)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, want
}

// reopen opens dir, compares the logs and closes it. It returns the bytes of
// disk that are counted.
func reopen(t testing.TB, fsys vfs.FS, dir string, want map[ids.TopicPartition][]byte) (used int64) {
	t.Helper()
	s, err := storage.Open(storage.Options{FS: fsys, Dir: dir, WALSize: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for tp, b := range want {
		l := s.Log(tp)
		if got := readAll(t, l); !bytes.Equal(got, b) {
			t.Errorf("%s has %d bytes, want %d", tp, len(got), len(b))
		}
		if c := l.ClosedSegments(); len(c) != startSegments || time.Since(c[0].ClosedAt) > time.Hour {
			t.Errorf("%s: closed segments %+v", tp, c)
		}
	}
	used = s.DiskUsed()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return used
}

// A start opens each log's directory once, reads the index of a closed segment by
// one read and asks once for the size of its file, all by short names.
func TestStartOperations(t *testing.T) {
	dir, want := closedLogs(t)
	fsys := &dirsFS{FS: vfs.OS()}
	s, err := storage.Open(storage.Options{FS: fsys, Dir: dir, WALSize: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(s.Logs()); n != len(want) {
		t.Errorf("%d logs, want %d", n, len(want))
	}
	got := [...]int64{fsys.dirs.Load(), fsys.names.Load(), fsys.heads.Load(), fsys.stats.Load(), fsys.files.Load()}
	if want := [...]int64{startLogs, startLogs, startLogs * startSegments, startLogs * startSegments, 0}; got != want {
		t.Errorf("directories opened, listed, indexes read, segments looked at, files by path: %v, want %v", got, want)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	reopen(t, vfs.OS(), dir, want)
}

// A first read that has not all of an index, or not as it is, is not taken for
// the truth: neither is a segment lost by it, nor anything believed of it.
func TestStartShortReads(t *testing.T) {
	dir, want := closedLogs(t)
	used := reopen(t, vfs.OS(), dir, want)
	for what, change := range map[string]func(b []byte) int{
		"nothing": func([]byte) int { return 0 },
		"half":    func(b []byte) int { return len(b) / 2 },
		"footer":  func(b []byte) int { return copy(b, b[len(b)-min(len(b), 192):]) },
		"flipped": func(b []byte) int { b[len(b)-150] ^= 1; return len(b) },
	} {
		fsys := &dirsFS{FS: vfs.OS(), change: change}
		if got := reopen(t, fsys, dir, want); got != used {
			t.Errorf("%s: %d bytes of disk counted, want %d", what, got, used)
		}
	}
}

// Damage to an index on the disk of the operating system is found at the start.
func TestStartDamage(t *testing.T) {
	dir, _ := closedLogs(t)
	idx, err := filepath.Glob(filepath.Join(dir, "logs", "*", "*.idx"))
	if err != nil || len(idx) != startLogs*startSegments {
		t.Fatal(len(idx), err)
	}
	whole := readBytes(t, vfs.OS(), idx[3])
	for _, v := range [][]byte{{}, whole[:len(whole)-1], whole[1:], append(bytes.Clone(whole), 0), append([]byte{0}, whole...)} {
		put(t, vfs.OS(), idx[3], v)
		s, err := storage.Open(storage.Options{FS: vfs.OS(), Dir: dir, WALSize: 64 << 20})
		if err == nil {
			err = errors.Join(errors.New("nothing was noticed"), s.Close())
		}
		if !errors.Is(err, segment.ErrCorrupt) || !strings.Contains(err.Error(), idx[3]) {
			t.Errorf("%d of %d bytes: %v", len(v), len(whole), err)
		}
	}
}

// BenchmarkStart opens a store of logs that have closed segments.
func BenchmarkStart(b *testing.B) {
	dir, _ := closedLogs(b)
	b.ReportAllocs()
	for b.Loop() {
		s, err := storage.Open(storage.Options{FS: vfs.OS(), Dir: dir, WALSize: 64 << 20})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
