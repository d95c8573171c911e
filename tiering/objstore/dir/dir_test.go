package dir_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/dir"
	"github.com/cirrolog/cirrolog/tiering/objstore/objstoretest"
)

func open(t *testing.T, path string) *dir.Bucket {
	t.Helper()
	b, err := dir.New(vfs.OS(), path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestConformance(t *testing.T) {
	objstoretest.Run(t, func(t *testing.T) objstore.Bucket { return open(t, t.TempDir()) })
}

// TestTwoProcesses runs the suite's races over two buckets on one directory.
func TestTwoProcesses(t *testing.T) {
	path := t.TempDir()
	a, b := open(t, path), open(t, path)
	ctx := context.Background()
	if _, err := a.Put(ctx, "x/k", strings.NewReader("a"), objstore.PutOptions{IfNoneMatch: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(ctx, "x/k", strings.NewReader("b"), objstore.PutOptions{IfNoneMatch: true}); !errors.Is(err, objstore.ErrPrecondition) {
		t.Fatalf("second creator: %v", err)
	}
	info, err := b.Head(ctx, "x/k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(ctx, "x/k", strings.NewReader("b2"), objstore.PutOptions{IfMatch: info.ETag}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Put(ctx, "x/k", strings.NewReader("a2"), objstore.PutOptions{IfMatch: info.ETag}); !errors.Is(err, objstore.ErrPrecondition) {
		t.Fatalf("second swapper: %v", err)
	}
}

// TestNames: no key leaves the directory and none is another's file.
func TestNames(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "bucket")
	b := open(t, path)
	ctx := context.Background()
	keys := []string{"..", ".", "../x", "../../x", "/etc", "a/../b", "a//b", "a/", "/", "//", "a", "a/b", "a+", "a+/b", "%", "%2E%2E", "a\nb", "\xff\xfe", "tmp", "lock", "a\\b"}
	for _, k := range keys {
		if _, err := b.Put(ctx, k, strings.NewReader(k), objstore.PutOptions{IfNoneMatch: true}); err != nil {
			t.Fatalf("put %q: %v", k, err)
		}
	}
	for _, k := range keys {
		r, _, err := b.Get(ctx, k, 0, -1)
		if err != nil {
			t.Fatalf("get %q: %v", k, err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || string(got) != k {
			t.Fatalf("get %q: %q, %v", k, got, err)
		}
	}
	list, _, err := b.List(ctx, "", "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range list {
		got = append(got, o.Key)
	}
	slices.Sort(keys)
	if !slices.Equal(got, keys) {
		t.Fatalf("list: got  %q\nwant %q", got, keys)
	}
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != 1 {
		t.Fatalf("beside the bucket: %v, %v", entries, err)
	}
	if _, err := b.Put(ctx, strings.Repeat("x", 300), strings.NewReader("x"), objstore.PutOptions{}); !errors.Is(err, objstore.ErrInvalid) {
		t.Fatalf("too long an element: %v", err)
	}
}

func TestCorruption(t *testing.T) {
	path := t.TempDir()
	b := open(t, path)
	ctx := context.Background()
	if _, err := b.Put(ctx, "a/k", strings.NewReader("0123456789"), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(path, "objects", "a+", "k")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		data []byte
	}{
		{"a changed byte", slices.Concat([]byte{'x'}, data[1:])},
		{"a cut file", data[:len(data)-3]},
		{"a cut object", data[1:]},
		{"an empty file", nil},
	} {
		if err := os.WriteFile(name, c.data, 0o644); err != nil {
			t.Fatal(err)
		}
		r, _, err := b.Get(ctx, "a/k", 0, -1)
		if err == nil {
			_, err = io.ReadAll(r)
			r.Close()
		}
		if !errors.Is(err, objstore.ErrChecksum) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestTempFiles(t *testing.T) {
	path := t.TempDir()
	b := open(t, path)
	ctx := context.Background()
	wrong := uint32(1)
	_, err := b.Put(ctx, "k", strings.NewReader("x"), objstore.PutOptions{CRC32C: &wrong})
	if !errors.Is(err, objstore.ErrChecksum) {
		t.Fatal(err)
	}
	if _, err := b.Put(ctx, "k", strings.NewReader("x"), objstore.PutOptions{IfNoneMatch: true}); err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(path, "tmp")
	if entries, err := os.ReadDir(tmp); err != nil || len(entries) != 0 {
		t.Fatalf("left in tmp: %v, %v", entries, err)
	}
	for _, name := range []string{"old", "young"} {
		if err := os.WriteFile(filepath.Join(tmp, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(filepath.Join(tmp, "old"), old, old); err != nil {
		t.Fatal(err)
	}
	open(t, path)
	entries, err := os.ReadDir(tmp)
	if err != nil || len(entries) != 1 || entries[0].Name() != "young" {
		t.Fatalf("in tmp after open: %v, %v", entries, err)
	}
}
