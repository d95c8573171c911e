// Package redis gives tests a real Redis server on loopback, which they may
// kill and start again.
package redis

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

const startLimit = 30 * time.Second

// Server is a redis-server with a directory of its own.
type Server struct {
	Addr string // 127.0.0.1:PORT

	path string
	dir  string
	args []string
	log  testenv.Output
	p    *testenv.Process
}

// Start runs the program .cache/bin/redis-server of the repository or
// redis-server on PATH, with the given arguments added to its configuration,
// until the test ends. Without arguments it keeps nothing over a restart. When
// the program is missing the test skips, or fails when REQUIRE_ALL=1.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s := launch(t, args)
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("stop redis: %v", err)
		}
	})
	return s
}

// Shared is one server for several tests of a package, each with a namespace
// of its own. A TestMain owns it: code := m.Run(); server.Stop(); os.Exit(code).
type Shared struct {
	once sync.Once
	s    *Server
}

// Start is as Start of the package, on the shared server.
func (sh *Shared) Start(t testing.TB) *Server {
	t.Helper()
	testenv.Need(t, "redis-server")
	sh.once.Do(func() { sh.s = launch(t, nil) })
	if sh.s == nil {
		t.Fatal("redis did not start")
	}
	return sh.s
}

// Stop ends the server if one was started.
func (sh *Shared) Stop() error {
	if sh.s == nil {
		return nil
	}
	return sh.s.stop()
}

// URL of the server, of the given namespace.
func (s *Server) URL(namespace string) string { return "redis://" + s.Addr + "?namespace=" + namespace }

// Kill ends the server at once, as kill -9 does.
func (s *Server) Kill() error { return s.p.Kill() }

// Restart starts a killed server again, on the same port and directory.
func (s *Server) Restart() error { return s.run() }

// Do sends one command and returns the answer: a string, or the first line of
// anything else. An answer that is an error is one.
func (s *Server) Do(args ...string) (string, error) {
	c, err := net.DialTimeout("tcp", s.Addr, startLimit)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(startLimit)); err != nil {
		return "", err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := c.Write(b.Bytes()); err != nil {
		return "", err
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSpace(line)
	var size int
	switch _, err := fmt.Sscanf(line, "$%d", &size); {
	case strings.HasPrefix(line, "-"):
		return "", errors.New(line[1:])
	case err != nil || size < 0:
		return strings.TrimLeft(line, "+:"), nil
	}
	text := make([]byte, size)
	_, err = io.ReadFull(r, text)
	return string(text), err
}

// Log returns what the server wrote.
func (s *Server) Log() string { return s.log.String() }

func launch(t testing.TB, args []string) *Server {
	t.Helper()
	path := testenv.Need(t, "redis-server")
	dir, err := os.MkdirTemp("", "cirrolog-redis-")
	if err != nil {
		t.Fatal(err)
	}
	for attempt := range 3 { // the free port may be taken by another meanwhile
		s := &Server{path: path, dir: dir, args: args}
		if s.Addr, err = freeAddr(); err != nil {
			break
		}
		if err = s.run(); err == nil {
			return s
		}
		t.Logf("redis, attempt %d: %v\n%s", attempt+1, err, s.Log())
	}
	_ = os.RemoveAll(dir)
	t.Fatalf("start redis: %v", err)
	return nil
}

// freeAddr finds a port that leaves room for the one of the cluster bus, 10,000
// above.
func freeAddr() (string, error) {
	for range 100 {
		port, err := testenv.FreePort()
		if err != nil {
			return "", err
		}
		if port < 55000 {
			return fmt.Sprintf("127.0.0.1:%d", port), nil
		}
	}
	return "", errors.New("no free port below 55000")
}

func (s *Server) run() error {
	_, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return err
	}
	args := append([]string{
		"--bind", "127.0.0.1", "--port", port, "--dir", s.dir, "--save", "", "--appendonly", "no", "--daemonize", "no",
	}, s.args...)
	cmd := exec.Command(s.path, args...)
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	if s.p, err = testenv.StartProcess(cmd); err != nil {
		return err
	}
	if err := s.p.Await(startLimit, 10*time.Millisecond, s.ready); err != nil {
		return errors.Join(err, s.Kill())
	}
	return nil
}

// ready asks the server whether it answers; one that still reads its file does not.
func (s *Server) ready(context.Context) error {
	_, err := s.Do("PING")
	if err != nil && strings.HasPrefix(err.Error(), "NOAUTH") {
		err = nil
	}
	return err
}

func (s *Server) stop() error { return errors.Join(s.Kill(), os.RemoveAll(s.dir)) }
