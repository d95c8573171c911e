package cli

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/cirrolog/cirrolog/internal/golden"
)

// TestGoldenCheckpoint reads a replay's checkpoint as an earlier program wrote it, and writes the same.
func TestGoldenCheckpoint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	want := &checkpoint{Topic: "orders", TopicID: "ESVrZzkqns13v8aFRu4kAw", Request: `partitions=[] format="%v\\n"`,
		Ranges: []partRange{{0, 100, 2000}, {1, 7, 7}}, Total: 4000, Records: 1000, FileSize: 123456, Done: true}
	if err := want.write(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, golden.Bytes(t, "checkpoint-v1.json", b), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := readCheckpoint(path); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}
