package laptop

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// terraform is a copy of terraform/ with the stand-in provider.
func terraform(t *testing.T) (dir string, tofu func(in string, args ...string) (string, error)) {
	t.Helper()
	program, provider := testenv.Need(t, "tofu"), testenv.Need(t, "provider/terraform-provider-aws")
	dir = t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "terraform"), os.DirFS(filepath.Join(testenv.Root(), "terraform"))); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "tofu.rc")
	text := "provider_installation {\n  dev_overrides {\n    \"hashicorp/aws\" = \"" + filepath.Dir(provider) + "\"\n  }\n  direct {}\n}\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "terraform"), func(in string, args ...string) (string, error) {
		cmd := exec.Command(program, args...)
		if args[0] == "console" { // the last argument is what it is asked
			cmd = exec.Command(program, args[:len(args)-1]...)
			cmd.Stdin = strings.NewReader(args[len(args)-1] + "\n")
		}
		cmd.Dir, cmd.Env = in, append(os.Environ(), "TF_CLI_CONFIG_FILE="+config, "CHECKPOINT_DISABLE=1", "TF_DATA_DIR=")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

// TestModules: every module, the root and every example are formatted and valid by the published schema of the AWS
// provider, and the modules' own tests pass, those of every validation among them.
func TestModules(t *testing.T) {
	t.Parallel()
	dir, tofu := terraform(t)
	if out, err := tofu(dir, "fmt", "-check", "-recursive", "-diff", "-no-color"); err != nil {
		t.Errorf("tofu fmt: %v\n%s", err, out)
	}
	roots := []string{dir}
	for _, pattern := range []string{"modules/*", "modules/*/examples/*", "examples/*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, found...)
	}
	if len(roots) < 20 {
		t.Errorf("looked at %v only", roots)
	}
	var work errgroup.Group
	work.SetLimit(2)
	for _, root := range roots {
		work.Go(func() error { checkRoot(t, root, tofu); return nil })
	}
	_ = work.Wait()
}

// checkRoot has a module or example validated, and a module's tests run.
func checkRoot(t *testing.T, root string, tofu func(in string, args ...string) (string, error)) {
	for _, args := range [][]string{{"get", "-no-color"}, {"validate", "-no-color"}} {
		if out, err := tofu(root, args...); err != nil {
			t.Errorf("%s: tofu %v: %v\n%s", root, args, err, out)
			return
		}
	}
	if filepath.Base(filepath.Dir(root)) == "examples" {
		return
	}
	if out, err := tofu(root, "test", "-no-color"); err != nil || !strings.Contains(out, "Success!") || strings.Contains(out, "Success! 0 passed") {
		t.Errorf("%s: tofu test: %v\n%s", root, err, out)
	}
	checkReadme(t, root)
}

// checkReadme demands that a module's README names every variable and output, and that every validation has a test.
func checkReadme(t *testing.T, root string) {
	t.Helper()
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	readme, tests := read("README.md"), ""
	found, err := filepath.Glob(filepath.Join(root, "tests", "*.tftest.hcl"))
	if err != nil {
		t.Error(err)
	}
	for _, path := range found {
		tests += read(filepath.Join("tests", filepath.Base(path)))
	}
	for file, kind := range map[string]string{"variables.tf": "variable", "outputs.tf": "output"} {
		for _, block := range strings.Split("\n"+read(file), "\n"+kind+" \"")[1:] {
			name, body, _ := strings.Cut(block, "\"")
			if !strings.Contains(readme, "| `"+name+"`") {
				t.Errorf("%s/README.md lacks the %s %s", root, kind, name)
			}
			if !strings.Contains(body, "description") {
				t.Errorf("%s: %s %s has no description", root, kind, name)
			}
			if want, have := strings.Count(body, "validation {"), strings.Count(tests, "expect_failures = [var."+name+"]"); have < want {
				t.Errorf("%s: variable %s has %d validations and %d tests of them", root, name, want, have)
			}
		}
	}
}

// TestAlertsTable: the README of modules/observability says of every alert of Prometheus what CloudWatch has of it.
func TestAlertsTable(t *testing.T) {
	t.Parallel()
	rules, err := os.ReadFile(filepath.Join(testenv.Root(), "infra", "prometheus", "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(testenv.Root(), "terraform", "modules", "observability", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`(?m)- alert: (\w+)$`).FindAllStringSubmatch(string(rules), -1)
	for _, m := range alerts {
		if !strings.Contains(string(readme), "| "+m[1]+" |") {
			t.Errorf("the README of modules/observability lacks %s", m[1])
		}
	}
	if len(alerts) < 10 {
		t.Errorf("only %d alerts", len(alerts))
	}
}

// TestStandIn: what the provider of localstack/provider does not carry out, it says in the plan.
func TestStandIn(t *testing.T) {
	t.Parallel()
	dir, tofu := terraform(t)
	for name, c := range map[string]struct{ provider, resource, want string }{
		"argument":   {"", `resource "aws_s3_bucket" "x" { acl = "public-read" }`, "does not carry out acl:"},
		"expiry":     {"", "resource \"aws_s3_bucket_lifecycle_configuration\" \"x\" {\n bucket = \"b\"\n rule {\n  id = \"a\"\n  status = \"Enabled\"\n  expiration { days = 1 }\n }\n}", "does not carry out rule.expiration"},
		"resource":   {"", "resource \"aws_elasticache_subnet_group\" \"x\" {\n name = \"a\"\n subnet_ids = [\"b\"]\n}", "aws_elasticache_subnet_group, and can't create one"},
		"provider":   {`profile = "prod"`, `resource "aws_s3_bucket" "x" { bucket = "b" }`, "does not carry out profile:"},
		"misspelled": {"", `resource "aws_s3_bucket" "x" { buckt = "b" }`, `An argument named "buckt" is not expected here`},
	} {
		in := filepath.Join(dir, name)
		if err := os.Mkdir(in, 0o755); err != nil {
			t.Fatal(err)
		}
		text := "terraform {\n  required_providers {\n    aws = { source = \"hashicorp/aws\" }\n  }\n}\nprovider \"aws\" {\n region = \"us-east-1\"\n " + c.provider + "\n}\n" + c.resource + "\n"
		if err := os.WriteFile(filepath.Join(in, "main.tf"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := tofu(in, "plan", "-no-color", "-input=false")
		if flat := strings.Join(strings.Fields(strings.ReplaceAll(out, "│", " ")), " "); err == nil || !strings.Contains(flat, c.want) {
			t.Errorf("%s: %v, want %q:\n%s", name, err, c.want, out)
		}
	}
	// Without an endpoint it talks to nobody.
	in := filepath.Join(dir, "aws")
	if err := os.Mkdir(in, 0o755); err != nil {
		t.Fatal(err)
	}
	text := "terraform {\n  required_providers {\n    aws = { source = \"hashicorp/aws\" }\n  }\n}\nprovider \"aws\" { region = \"us-east-1\" }\nresource \"aws_s3_bucket\" \"x\" { bucket = \"b\" }\n"
	if err := os.WriteFile(filepath.Join(in, "main.tf"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := tofu(in, "apply", "-no-color", "-auto-approve", "-input=false"); err == nil || !strings.Contains(out, "does not talk to") {
		t.Errorf("apply without endpoints: %v\n%s", err, out)
	}
}
