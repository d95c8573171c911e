// Package dynamodb gives tests a DynamoDB: the one that
// CIRROLOG_TEST_DYNAMODB_ENDPOINT names, or a DynamoDB Local of their own.
package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

const startLimit = 60 * time.Second

// Shared is one server for the tests of a package. A TestMain owns it:
//
//	code := m.Run(); server.Stop(); os.Exit(code)
type Shared struct {
	once sync.Once
	s    *server
}

// Start returns the URL of a server: CIRROLOG_TEST_DYNAMODB_ENDPOINT, or that
// of a DynamoDB Local in memory, run for this process and killed at its end.
// Without java, or without the jars and mvn, the test skips, or fails when
// REQUIRE_ALL=1. DynamoDB Local takes any credentials.
func (sh *Shared) Start(t testing.TB) string {
	t.Helper()
	if url := os.Getenv("CIRROLOG_TEST_DYNAMODB_ENDPOINT"); url != "" {
		return url
	}
	testenv.Need(t, "java")
	if _, err := os.Stat(jars()); err != nil {
		testenv.Need(t, "mvn")
	}
	sh.once.Do(func() { sh.s = launch(t) })
	if sh.s == nil {
		t.Fatal("DynamoDB Local did not start")
	}
	return sh.s.url
}

// Stop ends the server if one was started.
func (sh *Shared) Stop() error {
	if sh.s == nil {
		return nil
	}
	return sh.s.Kill()
}

func jars() string {
	if dir := os.Getenv("DYNAMODB_LIB"); dir != "" {
		return dir
	}
	home, _ := os.UserHomeDir()
	return filepath.Join(home, ".cache", "dynamodb-jars")
}

// server is a running DynamoDB Local.
type server struct {
	*testenv.Process
	url string
	log testenv.Output
}

func launch(t testing.TB) *server {
	t.Helper()
	var err error
	for attempt := range 3 { // the free port may be taken by another meanwhile
		s := &server{}
		if err = s.run(); err == nil {
			return s
		}
		t.Logf("DynamoDB Local, attempt %d: %v\n%s", attempt+1, err, s.log.String())
	}
	t.Fatalf("start DynamoDB Local: %v", err)
	return nil
}

func (s *server) run() error {
	port, err := testenv.FreePort()
	if err != nil {
		return err
	}
	s.url = fmt.Sprintf("http://127.0.0.1:%d", port)
	cmd := exec.Command(filepath.Join(testenv.Root(), "localstack", "dynamodb", "dynamodb.sh"), "run", fmt.Sprint(port))
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	if s.Process, err = testenv.StartProcess(cmd); err != nil {
		return err
	}
	if err := s.Await(startLimit, 50*time.Millisecond, s.ready); err != nil {
		return errors.Join(err, s.Kill())
	}
	return nil
}

// ready asks whether the server answers: to a request that says nothing, that it
// is a bad one.
func (s *server) ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		_ = resp.Body.Close()
	}
	return err
}
