package laptop

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// TestPolicyTable: the code that the README of modules/iam names for each right is there.
func TestPolicyTable(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile(filepath.Join(testenv.Root(), "terraform", "modules", "iam", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z0-9_/]+\\.go)`(?:: ((?:`\\w+`(?:, )?)+))?").FindAllStringSubmatch(string(readme), -1)
	if len(named) < 30 {
		t.Fatalf("only %d places are named", len(named))
	}
	for _, m := range named {
		code, err := os.ReadFile(filepath.Join(testenv.Root(), filepath.FromSlash(m[1])))
		if err != nil {
			t.Error(err)
			continue
		}
		for name := range strings.SplitSeq(m[2], ", ") {
			if name = strings.Trim(name, "`"); name != "" && !regexp.MustCompile(`(?m)^func (\([^)]+\) )?`+name+`\(`).Match(code) {
				t.Errorf("%s has no function %s", m[1], name)
			}
		}
	}
}
