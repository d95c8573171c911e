// Package emulator gives tests the S3 of emulators of AWS, each run for one test on loopback: LocalStack and moto. They
// are no stores: what they get wrong stands in docs/localstack.md, and the tests of this package show it.
package emulator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/localstack/minio"
)

const startLimit = 60 * time.Second

// LocalStack starts one, which ends with the test, or skips the test: it needs a Python of 3.13 or later.
func LocalStack(t testing.TB) minio.Endpoint {
	t.Helper()
	return start(t, "localstack", "LocalStack (Python 3.13 or later)", "/_localstack/health")
}

// Moto starts one, which ends with the test.
func Moto(t testing.TB) minio.Endpoint {
	t.Helper()
	return start(t, "moto", "moto", "/moto-api/")
}

func start(t testing.TB, name, title, health string) minio.Endpoint {
	t.Helper()
	if _, err := os.Stat(filepath.Join(testenv.Root(), ".cache", "clients", name, "bin", "python")); err != nil {
		testenv.Missing(t, title)
	}
	dir := t.TempDir()
	var err error
	for attempt := range 3 { // the free port may be taken by another meanwhile
		var url string
		if url, err = run(t, name, health, dir); err == nil {
			return minio.NewEndpoint(t, url, "cirrolog", "cirrolog-secret") // they take any
		}
		t.Logf("%s, attempt %d: %v", name, attempt+1, err)
	}
	t.Fatalf("start %s: %v", name, err)
	return minio.Endpoint{}
}

func run(t testing.TB, name, health, dir string) (string, error) {
	port, err := testenv.FreePort()
	if err != nil {
		return "", err
	}
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	cmd := exec.Command(filepath.Join(testenv.Root(), "localstack", "emulator", "run.sh"), name, fmt.Sprint(port), dir)
	var log testenv.Output
	cmd.Stdout, cmd.Stderr = &log, &log
	p, err := testenv.StartProcess(cmd)
	if err != nil {
		return "", err
	}
	if err := p.Await(startLimit, 100*time.Millisecond, func(ctx context.Context) error { return testenv.AnswersOK(ctx, url+health) }); err != nil {
		return "", errors.Join(err, p.Kill(), errors.New(log.String()))
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Errorf("stop %s: %v", name, err)
		}
		if t.Failed() {
			text := log.String()
			t.Logf("end of the log of %s:\n%s", name, text[max(0, len(text)-2000):])
		}
	})
	return url, nil
}
