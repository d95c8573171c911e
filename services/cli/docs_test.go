package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/services/agent"
)

// TestDocs makes sure that docs/cli.md tells what the program does.
func TestDocs(t *testing.T) {
	for _, v := range []string{"CIRROLOG_BROKERS", "CIRROLOG_ADMIN"} {
		t.Setenv(v, "")
	}
	path := filepath.Join("..", "..", "docs", "cli.md")
	want := Docs(Options{ServeDefaults: agent.Default()})
	if golden.Update() {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/cli.md is not current: run go test ./services/cli -run TestDocs -update")
	}
}
