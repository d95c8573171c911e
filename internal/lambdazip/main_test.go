package main

import (
	"archive/zip"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// program is one that has what makes builds differ: its source's path, and the module's version.
const program = `package main

import (
	"os"
	"runtime"
)

func main() {
	_, file, _, _ := runtime.Caller(0)
	os.Stdout.WriteString(file)
}
`

// TestSameBytes builds a program from two directories: the zip files are equal, and hold what Lambda starts. With
// LAMBDA_ZIPS=1 it does so with the functions themselves, each time from nothing.
func TestSameBytes(t *testing.T) {
	roots, names := []string{module(t), module(t)}, []string{"x"}
	if os.Getenv("LAMBDA_ZIPS") == "1" {
		roots, names = []string{testenv.Root(), copied(t)}, []string{"ingest", "sweep", "verify"}
	}
	for _, name := range names {
		var zips [][]byte
		for _, root := range roots {
			if len(names) > 1 {
				t.Setenv("GOCACHE", t.TempDir())
			}
			path, n, err := build(root, t.TempDir(), name, "arm64")
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			zips = append(zips, b)
			t.Logf("%s: %d bytes, program %d", name, len(b), n)
		}
		if !bytes.Equal(zips[0], zips[1]) {
			t.Errorf("%s: built twice, the bytes differ", name)
		}
		z, err := zip.NewReader(bytes.NewReader(zips[0]), int64(len(zips[0])))
		if err != nil || len(z.File) != 1 || z.File[0].Name != "bootstrap" || z.File[0].Mode() != 0o755 {
			t.Fatalf("%s: %v, %+v", name, err, z.File)
		}
		r, err := z.File[0].Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil || len(b) < 20 || string(b[:4]) != "\x7fELF" || b[18] != 183 { // e_machine: AArch64
			t.Errorf("%s: %v, it begins with %x", name, err, b[:min(20, len(b))])
		}
	}
}

// module writes a module whose function imports little.
func module(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module example.org/x\n\ngo 1.26\n", "services/lambda/x/main.go": program} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// copied is a copy of this module, without git.
func copied(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"gateway", "metadata", "services", "storage", "tiering"} {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(testenv.Root(), name))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(testenv.Root(), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
