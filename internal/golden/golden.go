// Package golden keeps bytes of every format in testdata/golden of the package that writes it, so that a test
// sees that today's program reads what an earlier one wrote, and still writes the same. `go test -update` writes
// files that are missing or differ: of a format that is out, only with a new version.
package golden

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files, and the pages of docs that tests write")

// Update says that the tests are to write what they compare with.
func Update() bool { return *update }

// Bytes returns the golden file of a name, and fails the test if got, what today's program writes,
// differs from it.
func Bytes(t testing.TB, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	want, err := os.ReadFile(path)
	if *update && (err != nil || !bytes.Equal(got, want)) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, got, 0o644)); err != nil {
			t.Fatal(err)
		}
		return got
	}
	if errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s is missing: write it with go test -update", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		at := 0
		for at < len(got) && at < len(want) && got[at] == want[at] {
			at++
		}
		t.Errorf("%s: today's program writes %d bytes, the file has %d; they differ from byte %d on:\n got %q\nwant %q", path, len(got), len(want), at, around(got, at), around(want, at))
	}
	return want
}

func around(b []byte, at int) []byte { return b[max(0, at-16):min(len(b), at+32)] }
