// Package layers holds the promises of docs/architecture.md about the tree:
// imports go downwards, and functions, files and interfaces stay small.
package layers

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

const module = "github.com/cirrolog/cirrolog/"

// allowed lists, for each package (or, with "/…", all below it), what of this
// module it may import besides its own sub-packages' internals.
var allowed = map[string][]string{
	"storage/ids":                 {},
	"storage/lock":                {},
	"storage/vfs":                 {},
	"storage/batch":               {},
	"storage/wal":                 {"storage/ids"},
	"tiering/objstore":            {},
	"metadata/kv":                 {},
	"storage/wal/ring":            {"storage/wal", "storage/batch", "storage/vfs", "storage/ids"},
	"storage/segment":             {"storage/batch", "storage/ids"},
	"metadata/kv/bolt":            {"metadata/kv"},
	"metadata/kv/redis":           {"metadata/kv"},
	"metadata/kv/dynamo":          {"metadata/kv"},
	"metadata/kv/kvurl":           {"metadata/kv", "metadata/kv/redis", "metadata/kv/dynamo"},
	"tiering/objstore/dir":        {"tiering/objstore", "storage/vfs"},
	"tiering/objstore/internal/…": {"tiering/objstore"},
	"tiering/objstore/s3":         {"tiering/objstore", "tiering/objstore/internal/s3core"},
	"tiering/objstore/minio":      {"tiering/objstore", "tiering/objstore/internal/s3core"},
	"tiering/objstore/bucketurl":  {"tiering/objstore", "tiering/objstore/…", "storage/vfs"},
	"storage":                     {"storage/…"},
	// tiering uses the segment format, the bytes that disk and bucket share; see
	// docs/design/001-one-trailer.md.
	"tiering":           {"tiering/objstore", "storage/batch", "storage/segment", "storage/ids", "storage/lock", "storage/vfs", "storage/wal"},
	"tiering/wal":       {"tiering/objstore", "storage/wal", "storage/batch", "storage/ids"},
	"metadata":          {"metadata/kv", "tiering/objstore", "storage/ids"},
	"services/group":    {},
	"services/lead":     {"metadata", "tiering/wal", "tiering/objstore", "storage/ids", "storage/lock"},
	"services/broker":   {"services/group", "services/lead", "storage", "storage/…", "tiering", "tiering/objstore", "tiering/wal", "metadata"},
	"services/recovery": {"services/broker", "metadata", "metadata/kv", "tiering", "tiering/objstore", "tiering/wal", "storage/ids"},
	"gateway/kafka":     {"services/broker", "services/group", "metadata", "storage/batch", "storage/ids"},
	"gateway/http":      {},
	"gateway/rpc":       {"gateway/rpc/proto", "services/broker", "services/lead", "metadata", "storage/ids"},
	"gateway/rpc/proto": {},
	"services/cost":     {},
	"services/agent":    {"gateway/…", "services/broker", "services/group", "services/lead", "storage", "storage/…", "tiering", "tiering/…", "metadata", "metadata/…"},
	"services/cli":      {"gateway/http", "services/agent", "services/broker", "services/cost", "services/recovery", "storage", "storage/…", "tiering", "tiering/…", "metadata", "metadata/…"},
	"services/cirrolog": {"services/agent", "services/cli"},
	"infra/sbom":        {},
	// Functions share nothing with the agent; ingest is a Kafka client like the gateway.
	"services/lambda/httpevent": {},
	"services/lambda/function":  {"metadata", "metadata/kv", "tiering/objstore"},
	"services/lambda/ingest":    {"gateway/http", "services/lambda/…"},
	"services/lambda/sweep":     {"services/broker", "services/lambda/…", "storage/ids", "tiering", "tiering/objstore", "tiering/objstore/bucketurl", "tiering/wal", "metadata", "metadata/kv/kvurl"},
	"services/lambda/verify":    {"services/lambda/…", "storage/segment", "tiering", "tiering/objstore", "tiering/objstore/bucketurl"},
}

// testOnly packages serve tests: they may import anything, and nobody but
// tests may import them.
func testOnly(pkg string) bool {
	for _, s := range []string{"waltest", "crashtest", "objstoretest", "kvtest", "services/sim"} {
		if strings.HasSuffix("/"+pkg, "/"+s) {
			return true
		}
	}
	return strings.HasPrefix(pkg, "localstack/") || strings.HasPrefix(pkg, "internal/")
}

// only lists dependencies from outside that belong to certain packages.
var only = map[string][]string{
	"github.com/twmb/franz-go/pkg/kmsg": {"gateway/kafka", "gateway/http", "services/cli", "services/group"}, // the server's codec; the clients' requests; Kafka's record formats
	"github.com/aws/aws-sdk-go-v2":      {"tiering/objstore/s3", "tiering/objstore/internal/…", "metadata/kv/dynamo"},
	"github.com/aws/smithy-go":          {"tiering/objstore/s3", "tiering/objstore/internal/…", "metadata/kv/dynamo"},
	"github.com/aws/aws-lambda-go":      {"services/lambda/…"},
	"github.com/minio/":                 {"tiering/objstore/minio"},
	"go.etcd.io/bbolt":                  {"metadata/kv/bolt"},
	"github.com/redis/":                 {"metadata/kv/redis"},
	"google.golang.org/grpc":            {"gateway/rpc", "gateway/rpc/proto"},
	"google.golang.org/protobuf":        {"gateway/rpc", "gateway/rpc/proto"},
}

// large lists what may be over the budget, as "path: what", with the reason.
var large = map[string]string{}

func match(list []string, pkg string) bool {
	for _, p := range list {
		if p == pkg || strings.HasSuffix(p, "/…") && strings.HasPrefix(pkg, strings.TrimSuffix(p, "…")) {
			return true
		}
	}
	return false
}

type file struct {
	pkg, path string
	set       *token.FileSet
	ast       *ast.File
}

// sources parses all Go files of the module but tests.
func sources(t *testing.T) (out []file) {
	root := testenv.Root()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || rel == "localstack/bench" || d.Name() == "testdata" || rel == "data") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, "_test.go") {
			return nil
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		out = append(out, file{pkg: filepath.ToSlash(filepath.Dir(rel)), path: rel, set: set, ast: f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestImports(t *testing.T) {
	for _, f := range sources(t) {
		if testOnly(f.pkg) {
			continue
		}
		list, known := allowed[f.pkg]
		if !known {
			for p, l := range allowed {
				if match([]string{p}, f.pkg) {
					list, known = l, true
				}
			}
		}
		if !known {
			t.Errorf("%s: package %s has no layer: add it to the table and to docs/architecture.md", f.path, f.pkg)
			continue
		}
		for _, imp := range f.ast.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			for prefix, owners := range only {
				if strings.HasPrefix(path, prefix) && !match(owners, f.pkg) {
					t.Errorf("%s imports %s, which only %v may", f.path, path, owners)
				}
			}
			if pkg, ours := strings.CutPrefix(path, module); ours && !match(list, pkg) {
				t.Errorf("%s imports %s: not below package %s", f.path, pkg, f.pkg)
			}
		}
	}
}

const (
	maxFunction  = 70
	maxFile      = 600
	maxInterface = 6
)

// TestLinker makes sure that the linker can leave out what nobody calls, as `make build` builds: one package that
// calls methods by names of its data keeps all of them.
func TestLinker(t *testing.T) {
	cmd := exec.Command("go", "list", "-tags", "grpcnotrace", "-deps", module+"services/cirrolog")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		if dep == "html/template" || dep == "golang.org/x/net/trace" {
			t.Errorf("the program depends on %s", dep)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, f := range sources(t) {
		if strings.HasSuffix(f.path, ".pb.go") { // generated
			continue
		}
		over := func(what string, n, limit int) {
			if key := f.path + ": " + what; n > limit && large[key] == "" {
				t.Errorf("%s: %s has %d, the budget is %d: is it one thing?", f.path, what, n, limit)
			}
		}
		over(f.path+" lines", f.set.Position(f.ast.End()).Line, maxFile)
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				over(n.Name.Name+" lines", f.set.Position(n.End()).Line-f.set.Position(n.Pos()).Line+1, maxFunction)
			case *ast.TypeSpec:
				if i, ok := n.Type.(*ast.InterfaceType); ok {
					over(n.Name.Name+" methods", len(i.Methods.List), maxInterface)
				}
			}
			return true
		})
	}
}

func TestPackageComments(t *testing.T) {
	has := map[string]bool{}
	for _, f := range sources(t) {
		has[f.pkg] = has[f.pkg] || f.ast.Doc != nil
	}
	for pkg, ok := range has {
		if !ok {
			t.Errorf("package %s has no package comment", pkg)
		}
	}
}
