package vfs_test

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cirrolog/cirrolog/storage/vfs"
)

// A Dir tells the same as the file system does, whatever kind it is.
func TestContractDir(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		var want []string
		for i := range 600 { // more than one read of the directory has
			want = append(want, fmt.Sprintf("%020d.idx", i))
			put(t, fsys, filepath.Join(dir, want[i]), "")
		}
		put(t, fsys, filepath.Join(dir, want[7]), "hello")
		must(t, fsys.MkdirAll(filepath.Join(dir, "z")))
		want = append(want, "z")

		d, err := vfs.OpenDir(fsys, dir)
		must(t, err)
		names, err := d.Names()
		must(t, err)
		if slices.Sort(names); !slices.Equal(names, want) {
			t.Fatalf("%d names, want %d: %q", len(names), len(want), names)
		}
		for size, want := range map[int]string{3: "hel", 5: "hello", 9: "hello"} {
			b := make([]byte, size)
			n, err := d.Head(names[7], b)
			if must(t, err); string(b[:n]) != want {
				t.Errorf("head of %d bytes: %q", size, b[:n])
			}
		}
		n, err := d.Head(names[8], make([]byte, 10))
		if must(t, err); n != 0 {
			t.Errorf("head of an empty file has %d bytes", n)
		}
		size, modified, err := d.Stat(names[7])
		must(t, err)
		info, err := fsys.Stat(filepath.Join(dir, names[7]))
		if must(t, err); size != 5 || !modified.Equal(info.ModTime()) {
			t.Errorf("stat: %d bytes of %v, want 5 of %v", size, modified, info.ModTime())
		}
		_, err = d.Head("no", make([]byte, 1))
		wantErr(t, err, fs.ErrNotExist)
		_, _, err = d.Stat("no")
		wantErr(t, err, fs.ErrNotExist)
		must(t, d.Close())

		d, err = vfs.OpenDir(fsys, filepath.Join(dir, "no"))
		if err == nil {
			_, err = d.Names()
			must(t, d.Close())
		}
		wantErr(t, err, fs.ErrNotExist)
	})
}
