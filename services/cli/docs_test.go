package cli

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/cirrolog/cirrolog/services/agent"
)

func updateFlag() *bool {
	if f := flag.Lookup("update"); f != nil {
		v := f.Value.(flag.Getter).Get().(bool)
		return &v
	}
	return flag.Bool("update", false, "write docs/cli.md")
}

func TestMain(m *testing.M) {
	updateFlag()
	os.Exit(m.Run())
}

// TestDocs makes sure that docs/cli.md tells what the program does.
func TestDocs(t *testing.T) {
	for _, v := range []string{"CIRROLOG_BROKERS", "CIRROLOG_ADMIN"} {
		t.Setenv(v, "")
	}
	path := filepath.Join("..", "..", "docs", "cli.md")
	want := Docs(Options{ServeDefaults: agent.Default()})
	if *updateFlag() {
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
