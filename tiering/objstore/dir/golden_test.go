package dir

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// TestGolden reads an object as an earlier program wrote it, under the name that it gave, and writes the same.
func TestGolden(t *testing.T) {
	root := t.TempDir()
	b, err := New(vfs.OS(), root)
	if err != nil {
		t.Fatal(err)
	}
	const key, body = "data/AQID/7/a b+ä", "an object"
	if _, err := b.Put(t.Context(), key, bytes.NewReader([]byte(body)), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "objects", "data+", "AQID+", "7+", "a%20b%2B%C3%A4")
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, golden.Bytes(t, "object.bin", written), 0o644); err != nil {
		t.Fatal(err)
	}
	r, _, err := b.Get(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != body {
		t.Errorf("%q, %v", got, err)
	}
	if list, _, err := b.List(t.Context(), "", "", 10); err != nil || len(list) != 1 || list[0].Key != key {
		t.Errorf("list: %v, %v", list, err)
	}
}
