package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// validator is a program that checks a bill by CycloneDX's own schema, formats included.
const validator = `
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
sys.exit(JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read()))
`

func bill(t *testing.T, args ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := run(args, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestBill: the bill of our program is valid, has the modules that Go says it is made of and no others, and is the
// same every time.
func TestBill(t *testing.T) {
	program := testenv.Binary(t)
	text := bill(t, program, "v1.2.3")
	if !bytes.Equal(text, bill(t, program, "v1.2.3")) {
		t.Error("the same program has another bill")
	}
	var b bom
	if err := json.Unmarshal(text, &b); err != nil {
		t.Fatal(err)
	}
	if c := b.Metadata.Component; c.Name != "cirrolog" || c.Version != "v1.2.3" || len(c.Hashes) != 1 {
		t.Errorf("of %+v", c)
	}
	var have []string
	for _, c := range b.Components[1:] {
		have = append(have, c.Name+"@"+c.Version)
		if len(c.Hashes) != 1 {
			t.Errorf("%s has %d checksums", c.Name, len(c.Hashes))
		}
	}
	cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}@{{.Version}}{{end}}{{end}}", "./services/cirrolog")
	cmd.Dir = testenv.Root()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(out))
	slices.Sort(want)
	slices.Sort(have)
	if want = slices.Compact(want); !slices.Equal(have, want) {
		t.Errorf("modules\n%q, Go says\n%q", have, want)
	}
	python := filepath.Join(testenv.Root(), ".cache", "clients", "schemas", "bin", "python")
	if _, err := os.Stat(python); err != nil {
		testenv.Missing(t, "CycloneDX's schema")
	}
	for _, c := range []struct {
		text  []byte
		valid bool
	}{{text, true}, {bytes.Replace(text, []byte(`"alg"`), []byte(`"algo"`), 1), false}, {bytes.Replace(text, []byte("urn:uuid:"), []byte("urn:"), 1), false}} {
		check := exec.Command(python, "-c", validator)
		check.Stdin = bytes.NewReader(c.text)
		if out, err := check.CombinedOutput(); (err == nil) != c.valid {
			t.Errorf("valid: %v, want %v\n%s", err == nil, c.valid, out)
		}
	}
}

// TestMistakes: what is no Go program has no bill.
func TestMistakes(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "want PROGRAM [VERSION]"},
		{[]string{text}, "unrecognized file format"},
		{[]string{text + "2"}, "no such file"},
		{[]string{"a", "b", "c"}, "want PROGRAM [VERSION]"},
	} {
		if err := run(c.args, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}
