// Package minio gives tests a real S3 server: the one that
// CIRROLOG_TEST_S3_ENDPOINT names, or a MinIO of their own on loopback.
package minio

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/s3"
)

const startLimit = 30 * time.Second

// Endpoint is a server and a fresh bucket on it.
type Endpoint struct {
	URL       string // http://host:port
	AccessKey string
	SecretKey string
	Bucket    string
}

// Start returns an endpoint for the test, with a bucket of its own. The
// environment decides which: CIRROLOG_TEST_S3_ENDPOINT with AWS_ACCESS_KEY_ID
// and AWS_SECRET_ACCESS_KEY, whose bucket CIRROLOG_TEST_S3_BUCKET is used if
// set and else created; or else the program .cache/bin/minio of the repository
// or minio on PATH, run for this test and killed at its end. Without any the
// test skips, or fails when REQUIRE_ALL=1.
//
// A start takes about a second; tests of one package share it by calling Start
// in a parent test, or by a Shared.
func Start(t testing.TB) Endpoint {
	t.Helper()
	if url := os.Getenv("CIRROLOG_TEST_S3_ENDPOINT"); url != "" {
		return given(t, url)
	}
	s := launch(t)
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("stop minio: %v", err)
		}
	})
	return s.endpoint(t)
}

func given(t testing.TB, url string) Endpoint {
	t.Helper()
	e := Endpoint{
		URL: url, AccessKey: os.Getenv("AWS_ACCESS_KEY_ID"), SecretKey: os.Getenv("AWS_SECRET_ACCESS_KEY"),
		Bucket: os.Getenv("CIRROLOG_TEST_S3_BUCKET"),
	}
	if e.AccessKey == "" || e.SecretKey == "" {
		t.Fatal("CIRROLOG_TEST_S3_ENDPOINT needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	if e.Bucket == "" {
		e.Bucket = newBucket(t, e)
	}
	return e
}

// Shared is one server for several tests of a package. A TestMain owns it:
//
//	code := m.Run(); server.Stop(); os.Exit(code)
type Shared struct {
	once sync.Once
	s    *server
}

// Start is as Start of the package, on the shared server.
func (sh *Shared) Start(t testing.TB) Endpoint {
	t.Helper()
	if url := os.Getenv("CIRROLOG_TEST_S3_ENDPOINT"); url != "" {
		return given(t, url)
	}
	testenv.Need(t, "minio")
	sh.once.Do(func() { sh.s = launch(t) })
	if sh.s == nil {
		t.Fatal("minio did not start")
	}
	return sh.s.endpoint(t)
}

// Stop ends the server if one was started.
func (sh *Shared) Stop() error {
	if sh.s == nil {
		return nil
	}
	return sh.s.stop()
}

// server is a running MinIO.
type server struct {
	*testenv.Process
	dir string
	url string
	key string
	log testenv.Output
}

func launch(t testing.TB) *server {
	t.Helper()
	path := testenv.Need(t, "minio")
	dir, err := os.MkdirTemp("", "cirrolog-minio-")
	if err != nil {
		t.Fatal(err)
	}
	for attempt := range 3 { // the free port may be taken by another meanwhile
		s := &server{dir: dir, key: "test" + strings.ToLower(rand.Text()[:16])} // letters and digits: DynamoDB Local takes it too
		if err = s.run(path); err == nil {
			return s
		}
		t.Logf("minio, attempt %d: %v\n%s", attempt+1, err, s.log.String())
	}
	_ = os.RemoveAll(dir)
	t.Fatalf("start minio: %v", err)
	return nil
}

func (s *server) run(path string) error {
	port, err := testenv.FreePort()
	if err != nil {
		return err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	s.url = "http://" + addr
	cmd := exec.Command(path, "server", "--quiet", "--address", addr, "--console-address", "127.0.0.1:0", s.dir)
	cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+s.key, "MINIO_ROOT_PASSWORD="+s.key, "MINIO_BROWSER=off", "HOME="+s.dir)
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	if s.Process, err = testenv.StartProcess(cmd); err != nil {
		return err
	}
	if err := s.Await(startLimit, 50*time.Millisecond, s.ready); err != nil {
		return errors.Join(err, s.Kill())
	}
	return nil
}

// ready asks the server whether it is.
func (s *server) ready(ctx context.Context) error {
	return testenv.AnswersOK(ctx, s.url+"/minio/health/ready")
}

func (s *server) stop() error {
	return errors.Join(s.Kill(), os.RemoveAll(s.dir))
}

func (s *server) endpoint(t testing.TB) Endpoint {
	t.Helper()
	return NewEndpoint(t, s.url, s.key, s.key)
}

// NewEndpoint makes a bucket on a server of S3.
func NewEndpoint(t testing.TB, url, accessKey, secretKey string) Endpoint {
	t.Helper()
	e := Endpoint{URL: url, AccessKey: accessKey, SecretKey: secretKey}
	e.Bucket = newBucket(t, e)
	return e
}

func newBucket(t testing.TB, e Endpoint) string {
	t.Helper()
	name := "test-" + strings.ToLower(rand.Text()[:16])
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	b, err := s3.New(ctx, s3.Options{Bucket: name, Endpoint: e.URL, Region: "us-east-1", AccessKey: e.AccessKey, SecretKey: e.SecretKey})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for {
		err := b.CreateBucket(ctx)
		if err == nil {
			return name
		}
		// A server that has just started says that it is ready a little early.
		if !errors.Is(err, objstore.ErrThrottled) || ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
