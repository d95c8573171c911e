// Package testenv tells tests what this machine has. A test that needs a
// program which is missing says so and skips; with REQUIRE_ALL=1, as in CI, it
// fails instead.
package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// Root returns the repository's root directory.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Missing skips the test because of what is missing, or fails it with REQUIRE_ALL=1.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatalf("REQUIRE_ALL=1, but there is no %s: run `make deps`", what)
	}
	t.Skipf("skipped: there is no %s (`make deps` installs it)", what)
}

// Need returns the path of a program, from .cache/bin or PATH.
func Need(t testing.TB, name string) string {
	t.Helper()
	local := filepath.Join(Root(), ".cache", "bin", name)
	if _, err := os.Stat(local); err == nil {
		return local
	}
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name)
	}
	return path
}

// build builds the program beside its place and moves it there whole: other
// test processes may be running the one that is there.
var build = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(Root(), ".cache", "test", "cirrolog")
	tmp := fmt.Sprintf("%s.%d", bin, os.Getpid())
	cmd := exec.Command("go", "build", "-o", tmp, "./services/cirrolog")
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		return string(out), err
	}
	return bin, os.Rename(tmp, bin)
})

// Binary builds the cirrolog program once per test process and returns its path.
func Binary(t testing.TB) string {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatalf("build cirrolog: %v\n%s", err, bin)
	}
	return bin
}
