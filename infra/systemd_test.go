package infra

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

const unitFile = "systemd/cirrolog@.service"

// unit returns the values of the unit's directives, in order.
func unit(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			out[k] = append(out[k], v)
		}
	}
	return out
}

// verify has systemd read a unit, on a root with systemd's own units and the program.
func verify(t *testing.T, text string) (string, error) {
	t.Helper()
	analyze := testenv.Need(t, "systemd-analyze")
	root := t.TempDir()
	sh(t, "cd "+root+" && mkdir -p usr/lib/systemd usr/bin etc/systemd/system && cp -r /usr/lib/systemd/system usr/lib/systemd/ && cp /bin/true usr/bin/cirrolog")
	if err := os.WriteFile(filepath.Join(root, "etc/systemd/system", filepath.Base(unitFile)), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", "--root="+root, "cirrolog@serve.service", "cirrolog@agent.service").CombinedOutput()
	return string(out), err
}

// TestUnit: systemd reads the unit without a word, and finds little that it exposes; its command lines are of the
// program, which has the time to end.
func TestUnit(t *testing.T) {
	b, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := verify(t, string(b)); err != nil || out != "" {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	for _, c := range []struct{ old, new string }{{"ProtectSystem=", "ProtectSystm="}, {"/usr/bin/cirrolog ", "/usr/bin/cirolog "}, {"Restart=on-failure", "Restart=on-failur"}, {"@system-service", "@sytem-service"}} {
		if out, err := verify(t, strings.Replace(string(b), c.old, c.new, 1)); err == nil && out == "" {
			t.Errorf("systemd takes %s", c.new)
		}
	}
	u := unit(t)
	for _, verb := range []string{"serve", "agent"} {
		words := strings.Fields(strings.ReplaceAll(u["ExecStart"][0], "%i", verb))
		checkArguments(t, unitFile, words[1:])
	}
	stop, err := time.ParseDuration(u["TimeoutStopSec"][0])
	if def := 30 * time.Second; err != nil || stop <= def { // of --shutdown-timeout
		t.Errorf("killed after %v, it may take %v to end", stop, def)
	}
	path := filepath.Join(t.TempDir(), "cirrolog@serve.service")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	// 1.5 of 10: the network and the machine's file tree, read-only, are what remains.
	if out, err := exec.Command(testenv.Need(t, "systemd-analyze"), "security", "--offline=true", "--no-pager", "--threshold=15", path).CombinedOutput(); err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}
