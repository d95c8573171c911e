package vfs_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/storage/vfs"
)

// outcomes returns what look found in many crash clones.
func outcomes(t *testing.T, m *vfs.Mem, look func(c *vfs.Mem) string) map[string]int {
	t.Helper()
	out := map[string]int{}
	for seed := range uint64(300) {
		out[look(m.CrashClone(rand.New(rand.NewPCG(seed, 1))))]++
	}
	return out
}

// wantOutcomes fails unless exactly these were found.
func wantOutcomes(t *testing.T, got map[string]int, want ...string) {
	t.Helper()
	for _, w := range want {
		if got[w] == 0 {
			t.Errorf("never found %q", w)
		}
		delete(got, w)
	}
	for g, n := range got {
		t.Errorf("found %q %d times", g, n)
	}
}

func TestCrashNames(t *testing.T) {
	m := memWithDir(t)
	put(t, m, "/data/a", "1")
	f := open(t, m, "/data/a", 0)
	must(t, f.Sync())
	look := func(c *vfs.Mem) string { return get(t, c, "/data/a") }
	// Bytes are synced, the name is not.
	wantOutcomes(t, outcomes(t, m, look), "-", "1")
	must(t, m.SyncDir("/data"))
	wantOutcomes(t, outcomes(t, m, look), "1")
	must(t, m.Remove("/data/a"))
	wantOutcomes(t, outcomes(t, m, look), "-", "1")
	must(t, m.SyncDir("/data"))
	wantOutcomes(t, outcomes(t, m, look), "-")
}

// Changes of one directory survive in their order.
func TestCrashOrder(t *testing.T) {
	m := memWithDir(t)
	put(t, m, "/data/a", "")
	put(t, m, "/data/b", "")
	must(t, m.Rename("/data/a", "/data/c"))
	must(t, m.Link("/data/c", "/data/d"))
	must(t, m.Remove("/data/b"))
	got := outcomes(t, m, func(c *vfs.Mem) string {
		entries, err := c.List("/data")
		must(t, err)
		s := ""
		for _, e := range entries {
			s += e.Name()
		}
		return s
	})
	wantOutcomes(t, got, "", "a", "ab", "bc", "bcd", "cd")
}

// A rename between directories leaves the file in one or both, never in none.
func TestCrashRenameAcross(t *testing.T) {
	build := func() *vfs.Mem {
		m := memWithDir(t)
		must(t, m.MkdirAll("/data/x"))
		must(t, m.MkdirAll("/data/y"))
		f := open(t, m, "/data/x/a", vfs.Create)
		write(t, f, "1", 0)
		must(t, f.Sync())
		must(t, m.SyncDir("/data/x"))
		must(t, m.SyncDir("/data"))
		must(t, m.Rename("/data/x/a", "/data/y/b"))
		return m
	}
	look := func(c *vfs.Mem) string { return get(t, c, "/data/x/a") + get(t, c, "/data/y/b") }
	wantOutcomes(t, outcomes(t, build(), look), "1-", "-1", "11")
	m := build()
	must(t, m.SyncDir("/data/y"))
	wantOutcomes(t, outcomes(t, m, look), "-1", "11")
	m = build()
	must(t, m.SyncDir("/data/x"))
	wantOutcomes(t, outcomes(t, m, look), "-1")
}

func TestCrashDirectoryItself(t *testing.T) {
	m := memWithDir(t)
	must(t, m.MkdirAll("/data/d"))
	put(t, m, "/data/d/a", "1")
	f := open(t, m, "/data/d/a", 0)
	must(t, f.Sync())
	must(t, m.SyncDir("/data/d"))
	wantOutcomes(t, outcomes(t, m, func(c *vfs.Mem) string { return get(t, c, "/data/d/a") }), "-", "1")
}

func TestCrashBytes(t *testing.T) {
	m := memWithDir(t)
	put(t, m, "/data/a", strings.Repeat("o", 1024))
	f := open(t, m, "/data/a", 0)
	must(t, f.Sync())
	must(t, m.SyncDir("/data"))
	write(t, f, strings.Repeat("n", 600), 0) // two sectors
	look := func(c *vfs.Mem) string {
		b := get(t, c, "/data/a")
		s := ""
		for i := 0; i < len(b); {
			j := i
			for j < len(b) && b[j] == b[i] {
				j++
			}
			s += fmt.Sprintf("%q%d ", b[i], j-i)
			i = j
		}
		return s
	}
	torn := []string{`'o'1024 `, `'n'600 'o'424 `, `'n'512 'o'512 `, `'o'512 'n'88 'o'424 `}
	wantOutcomes(t, outcomes(t, m, look), torn...)
	must(t, f.Sync())
	wantOutcomes(t, outcomes(t, m, look), torn[1])
	must(t, f.Truncate(10))
	wantOutcomes(t, outcomes(t, m, look), torn[1], `'n'10 `)
	must(t, f.Sync())
	wantOutcomes(t, outcomes(t, m, look), `'n'10 `)
	// Growth survives or not, for itself: zeros where the bytes did not.
	write(t, f, "zz", 10)
	wantOutcomes(t, outcomes(t, m, look), `'n'10 `, `'n'10 '\x00'2 `, `'n'10 'z'2 `)
}

// A write with Dsync survives, what was written before it without Sync may not.
func TestCrashDsync(t *testing.T) {
	m := memWithDir(t)
	must(t, open(t, m, "/data/a", vfs.Create).Close())
	must(t, m.SyncDir("/data"))
	plain, dsync := open(t, m, "/data/a", 0), open(t, m, "/data/a", vfs.Dsync)
	write(t, dsync, "1", 0)
	look := func(c *vfs.Mem) string { return get(t, c, "/data/a") }
	wantOutcomes(t, outcomes(t, m, look), "1")
	write(t, plain, "2", 0)
	write(t, dsync, "3", 1)
	wantOutcomes(t, outcomes(t, m, look), "13", "23")
	write(t, dsync, "4", 0)
	wantOutcomes(t, outcomes(t, m, look), "43")
	write(t, plain, "5", 0)
	if n, err := plain.(vfs.SyncWriter).WriteAtSync([]byte("6"), 1); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	wantOutcomes(t, outcomes(t, m, look), "46", "56")
}

// The hook sees every change, and a clone taken in it is of that moment.
func TestHook(t *testing.T) {
	m := memWithDir(t)
	must(t, open(t, m, "/data/a", vfs.Create).Close())
	must(t, m.SyncDir("/data"))
	var events []string
	rng := rand.New(rand.NewPCG(1, 1))
	middle := map[string]bool{}
	m.OnOp(func(e vfs.Event) {
		events = append(events, e.String())
		if e.Kind != vfs.EventWrite || e.Path != "/data/a" {
			return
		}
		for range 50 {
			got := get(t, m.CrashClone(rng), "/data/a")
			switch {
			case e.Phase == vfs.Middle:
				middle[got] = true
			case e.Phase == vfs.Before && got != "", e.Phase == vfs.After && got != "1":
				t.Errorf("%s: clone has %q", e, got)
			}
		}
	})
	f := open(t, m, "/data/a", vfs.Dsync)
	write(t, f, "1", 0)
	if !middle[""] || !middle["1"] || len(middle) > 3 {
		t.Errorf("clones in the middle of a write have %v", middle)
	}
	must(t, f.Sync())
	must(t, f.Truncate(0))
	must(t, f.Close())
	must(t, m.Rename("/data/a", "/data/b"))
	must(t, m.Link("/data/b", "/data/c"))
	must(t, m.Remove("/data/b"))
	must(t, m.MkdirAll("/data/d"))
	must(t, m.MkdirAll("/data/d")) // nothing to do
	must(t, m.RemoveAll("/data/d"))
	must(t, m.SyncDir("/data"))
	put(t, m, "/data/e", "")
	want := ""
	for _, e := range []string{"write /data/a [0,1)", "sync /data/a", "truncate /data/a to 0", "rename /data/a -> /data/b",
		"link /data/b -> /data/c", "remove /data/b", "mkdir /data/d", "removeall /data/d", "syncdir /data", "create /data/e", "write /data/e [0,0)"} {
		want += "before " + e + "\n"
		if strings.HasPrefix(e, "write /data/a") {
			want += "middle of " + e + "\n"
		}
		want += "after " + e + "\n"
	}
	if got := strings.Join(events, "\n") + "\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestCrashCloneIsReproducible(t *testing.T) {
	m := memWithDir(t)
	for i := range 20 {
		put(t, m, fmt.Sprintf("/data/%d", i), strings.Repeat("x", i*300))
	}
	dump := func() string {
		c := m.CrashClone(rand.New(rand.NewPCG(7, 7)))
		entries, err := c.List("/data")
		must(t, err)
		s := ""
		for _, e := range entries {
			s += e.Name() + get(t, c, "/data/"+e.Name())
		}
		return s
	}
	want := dump()
	for range 20 {
		if dump() != want {
			t.Fatal("the same seed gave another clone")
		}
	}
}
