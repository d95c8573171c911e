package cli

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// TestDamagedCheckpoint cuts a checkpoint everywhere and flips each of its bits:
// it is refused, or reads as it was written.
func TestDamagedCheckpoint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	if c, err := readCheckpoint(path); c != nil || err != nil {
		t.Fatal(c, err)
	}
	want := &checkpoint{Topic: "orders", TopicID: "ESVrZzkqns13v8aFRu4kAw", Request: `partitions=[] format="%v\\n"`,
		Ranges: []partRange{{0, 100, 2000}, {1, 7, 7}}, Total: 4000, Records: 1000, FileSize: 123456}
	if err := want.write(path); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	check := func(what string, at int, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readCheckpoint(path)
		if err != nil {
			refused++
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%s at %d: %+v", what, at, got)
		}
	}
	check("nothing", 0, whole)
	if refused > 0 {
		t.Fatal("a whole checkpoint is refused")
	}
	for i := range whole {
		check("cut", i, whole[:i])
		for bit := range 8 {
			b := append([]byte(nil), whole...)
			b[i] ^= 1 << bit
			check("flip", i, b)
		}
	}
	if refused < 8*len(whole) {
		t.Errorf("only %d of %d damaged ones are refused", refused, 9*len(whole))
	}
}
