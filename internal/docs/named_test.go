// Package docs makes sure that the tests, mutants and make targets that pages of docs name as proofs are there.
package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// tree is what there is to be named.
type tree struct {
	tests    map[string]map[string]bool // packages by test
	literals map[string]bool            // strings of test code, as go test shows them in names
	targets  map[string]bool
	mutants  []string
	chaos    string // the source of the chaos runs; "" if there are none
}

func read(t *testing.T) *tree {
	t.Helper()
	root := testenv.Root()
	w := &tree{tests: map[string]map[string]bool{}, literals: map[string]bool{}, targets: map[string]bool{}}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if err == nil && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "data") {
				return filepath.SkipDir
			}
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if strings.HasPrefix(rel, "localstack/chaos/") {
			b, err := os.ReadFile(path)
			w.chaos += string(b)
			if err != nil {
				return err
			}
		}
		if name, ok := strings.CutSuffix(d.Name(), ".patch"); ok && strings.HasPrefix(rel, "localstack/mutants/") {
			w.mutants = append(w.mutants, name)
		}
		if strings.HasSuffix(rel, "_test.go") || strings.HasSuffix(rel, ".go") && strings.Contains(rel, "test/") {
			return w.source(path, filepath.ToSlash(filepath.Dir(rel)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^([a-z-]+):`).FindAllStringSubmatch(string(b), -1) {
		w.targets[m[1]] = true
	}
	return w
}

// source notes the tests and the strings of a file of a package.
func (w *tree) source(path, pkg string) error {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			w.literals[strings.ReplaceAll(strings.Trim(n.Value, "\"`"), " ", "_")] = true
		case *ast.FuncDecl:
			if name := n.Name.Name; n.Recv == nil && (strings.HasPrefix(name, "Test") || strings.HasPrefix(name, "Fuzz")) {
				if w.tests[name] == nil {
					w.tests[name] = map[string]bool{}
				}
				w.tests[name][pkg] = true
			}
		}
		return true
	})
	return nil
}

// quoted is one thing in backquotes, and what is behind it: a colon names a package whose tests follow.
var (
	quoted = regexp.MustCompile("`([^`]*)`(:?)")
	listed = regexp.MustCompile("mutants? (`[^`]*`(?:,? (?:and )?`[^`]*`)*)")
	kinds  = regexp.MustCompile("`make chaos` \\(([a-z, -]*)\\)")
	isTest = regexp.MustCompile(`^(Test|Fuzz)[A-Z]\w*(/.+)?$`)
)

// cell checks one cell of a table and returns how many proofs it names.
func (w *tree) cell(t *testing.T, cell string) (n int) {
	t.Helper()
	inList := map[string]bool{}
	for _, l := range listed.FindAllStringSubmatch(cell, -1) {
		for _, q := range quoted.FindAllStringSubmatch(l[1], -1) {
			inList[q[1]] = true
			n++
			if !w.mutant(q[1]) {
				t.Errorf("no mutant %s: %s", q[1], cell)
			}
		}
	}
	pkg := ""
	for _, q := range quoted.FindAllStringSubmatch(cell, -1) {
		name := q[1]
		target, isTarget := strings.CutPrefix(name, "make ")
		switch {
		case inList[name]:
		case q[2] == ":":
			if pkg = name; !w.hasPackage(pkg) {
				t.Errorf("no package %s with tests: %s", pkg, cell)
			}
		case isTarget && (w.chaos != "" || target != "chaos"):
			n++
			if !w.targets[target] {
				t.Errorf("no target %s: %s", name, cell)
			}
		case isTest.MatchString(name):
			n++
			test, sub, _ := strings.Cut(name, "/")
			switch in := w.tests[test]; {
			case len(in) == 0, pkg != "" && !in[pkg]:
				t.Errorf("no test %s in %q: %s", test, pkg, cell)
			case sub != "" && !w.literals[sub[strings.LastIndex(sub, "/")+1:]]:
				t.Errorf("no test %s: %s", name, cell)
			}
		}
	}
	for _, k := range kinds.FindAllStringSubmatch(cell, -1) {
		for _, kind := range strings.Split(k[1], ", ") {
			if n++; w.chaos != "" && !strings.Contains(w.chaos, `"`+kind+`"`) {
				t.Errorf("no chaos of kind %s: %s", kind, cell)
			}
		}
	}
	return n
}

// mutant tells whether there is a mutant of a name, or of a prefix that ends in an ellipsis.
func (w *tree) mutant(name string) bool {
	prefix, many := strings.CutSuffix(name, "…")
	for _, m := range w.mutants {
		if m == name || many && strings.HasPrefix(m, prefix) {
			return true
		}
	}
	return false
}

func (w *tree) hasPackage(pkg string) bool {
	for _, in := range w.tests {
		if in[pkg] {
			return true
		}
	}
	return false
}

// TestNamed reads the tables whose last column says what shows a row.
func TestNamed(t *testing.T) {
	w := read(t)
	for page, least := range map[string]int{"faults.md": 70, "protocol.md": 30} {
		b, err := os.ReadFile(filepath.Join(testenv.Root(), "docs", page))
		if err != nil {
			t.Fatal(err)
		}
		rows, shown := 0, false
		for line := range strings.Lines(string(b)) {
			cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
			last := strings.TrimSpace(cells[len(cells)-1])
			switch {
			case !strings.HasPrefix(line, "|"):
				shown = false
			case last == "shown by":
				shown = true
			case shown && strings.Trim(last, "-") != "":
				rows++
				if w.cell(t, last) == 0 && last != "not shown" {
					t.Errorf("%s: nothing is named: %s", page, line)
				}
			}
		}
		if rows < least {
			t.Errorf("%s has %d rows of proofs, want at least %d", page, rows, least)
		}
	}
}
