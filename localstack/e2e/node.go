// Package e2e tests the real program: `cirrolog serve` as a process of its own,
// with real clients, real kills and real object stores. This file runs it.
package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/services/broker"
)

const (
	readyLimit = 60 * time.Second
	stopLimit  = 60 * time.Second
	logTail    = 24 << 10 // bytes of the node's log that a failed test prints
)

// NodeOptions of NewNode; the zero value is a node with a directory bucket.
type NodeOptions struct {
	Args []string // of serve, behind those that NewNode gives
	Env  []string // KEY=VALUE beside the environment
	Disk string   // directory to put the data directory in; a temporary one otherwise
	// Metadata, when set, makes it an agent of a cluster that shares this metadata store.
	Metadata string
}

// Node is one `cirrolog serve` on loopback ports that stay the same over its
// starts, with a data directory of its own. Only the test's goroutine may start
// and stop it.
type Node struct {
	Kafka, Admin, HTTP string // HOST:PORT
	RPC                string // of an agent of a cluster
	Dir                string // data directory

	t    testing.TB
	o    NodeOptions
	log  string           // path of the captured output
	proc *testenv.Process // nil before the first start
}

// NewNode starts a node and waits until it is ready. It is killed at the end of
// the test, and its log is printed if the test failed.
func NewNode(t testing.TB, o NodeOptions) *Node {
	t.Helper()
	n := idleNode(t, o)
	n.Start()
	return n
}

// idleNode is NewNode without its start.
func idleNode(t testing.TB, o NodeOptions) *Node {
	t.Helper()
	dir := t.TempDir()
	n := &Node{t: t, o: o, Dir: filepath.Join(cmp.Or(o.Disk, dir), "data"), log: filepath.Join(dir, "node.log"), Kafka: freeAddr(t), Admin: freeAddr(t), HTTP: freeAddr(t), RPC: freeAddr(t)}
	testenv.Binary(t) // builds it outside the time limits below
	t.Cleanup(func() {
		if n.Running() {
			n.Kill()
		}
		if t.Failed() {
			t.Logf("log of the node:\n%s", n.Log())
		}
	})
	return n
}

// freeAddr returns a loopback address that stays free for who is given it.
func freeAddr(t testing.TB) string {
	t.Helper()
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// command returns `cirrolog args…`, without the caller's own settings.
func command(t testing.TB, env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(testenv.Binary(t), args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "CIRROLOG_") }), env...)
	return cmd
}

// Start starts the process and waits until it is ready.
func (n *Node) Start() {
	n.t.Helper()
	if err := n.start(); err != nil {
		n.t.Fatalf("start node: %v", err)
	}
}

// args is the command line.
func (n *Node) args() []string {
	verb := []string{"serve", "--wal-size", "64MiB"}
	if n.o.Metadata != "" {
		verb = []string{"agent", "--metadata", n.o.Metadata, "--rpc-addr", n.RPC}
	}
	args := append(verb, "--data-dir", n.Dir, "--kafka-addr", n.Kafka, "--admin-addr", n.Admin, "--http-addr", n.HTTP, "--memory-tail", "32MiB")
	return append(args, n.o.Args...)
}

func (n *Node) start() error {
	if err := n.launch(); err != nil {
		return err
	}
	return n.ready()
}

// launch starts the process and does not wait for it.
func (n *Node) launch() error {
	out, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd := command(n.t, n.o.Env, n.args()...)
	defer out.Close() // the process has its own
	cmd.Stdout, cmd.Stderr = out, out
	n.proc, err = testenv.StartProcess(cmd)
	return err
}

// ready waits until the node answers that it is.
func (n *Node) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), readyLimit)
	defer cancel()
	for {
		last := n.call(ctx, http.MethodGet, "/readyz", nil)
		if last == nil {
			return nil
		}
		select {
		case <-n.proc.Done():
			return fmt.Errorf("the process ended: %w", n.proc.Err())
		case <-ctx.Done():
			return fmt.Errorf("not ready in %v: %w", readyLimit, last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// call makes one request of the admin API; into may be nil.
func (n *Node) call(ctx context.Context, method, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+n.Admin+path, nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, body)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

// API makes one request of the admin API that must succeed.
func (n *Node) API(method, path string, into any) {
	n.t.Helper()
	if err := n.call(context.Background(), method, path, into); err != nil {
		n.t.Fatal(err)
	}
}

// Storage tells where the records of a topic's partitions are.
func (n *Node) Storage(topic string) []broker.PartitionStorage {
	n.t.Helper()
	var s struct {
		Partitions []broker.PartitionStorage `json:"partitions"`
	}
	n.API(http.MethodGet, "/v1/topics/"+topic+"/storage", &s)
	return s.Partitions
}

// Segments lists a topic's segments of both tiers.
func (n *Node) Segments(topic string) []broker.SegmentInfo {
	n.t.Helper()
	var s struct {
		Segments []broker.SegmentInfo `json:"segments"`
	}
	n.API(http.MethodGet, "/v1/topics/"+topic+"/segments", &s)
	return s.Segments
}

// Running tells whether the process runs.
func (n *Node) Running() bool { return n.proc.Running() }

// Pid is the process id of the running node.
func (n *Node) Pid() int { return n.proc.Pid() }

// Kill ends the process as a power cut would end it, except for the disk's
// cache: kill -9.
func (n *Node) Kill() {
	n.t.Helper()
	if err := n.proc.Kill(); err != nil {
		n.t.Errorf("kill node: %v", err)
	}
}

// Stop ends the node with SIGTERM; it must end by itself and without an error.
func (n *Node) Stop() {
	n.t.Helper()
	if err := n.proc.Signal(syscall.SIGTERM); err != nil {
		n.t.Fatalf("stop node: %v", err)
	}
	select {
	case <-n.proc.Done():
		if n.proc.Err() != nil {
			n.t.Fatalf("the node ended with %v", n.proc.Err())
		}
	case <-time.After(stopLimit):
		n.t.Fatalf("the node did not end in %v", stopLimit)
	}
}

// MustRun fails the test if the process has ended by itself.
func (n *Node) MustRun() {
	n.t.Helper()
	if !n.Running() {
		n.t.Fatalf("the node ended: %v", n.proc.Err())
	}
}

// Log returns the end of what the node has printed.
func (n *Node) Log() string {
	b, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-logTail):])
}

// CLI runs `cirrolog args…` against the node, with stdout into out.
func (n *Node) CLI(out io.Writer, args ...string) error {
	cmd := command(n.t, n.o.Env, append(args, "--brokers", n.Kafka, "--admin", n.Admin)...)
	var stderr strings.Builder
	cmd.Stdout, cmd.Stderr = out, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("cirrolog %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return nil
}

// eventually waits until ok tells true, at most limit.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in %v: %s", limit, what)
		}
	}
}

// rss returns the resident memory of a process now and at its peak, in bytes.
func rss(pid int) (now, peak int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		for prefix, into := range map[string]*int64{"VmRSS:": &now, "VmHWM:": &peak} {
			if v, ok := strings.CutPrefix(line, prefix); ok {
				if _, err := fmt.Sscanf(v, "%d kB", into); err != nil {
					return 0, 0, err
				}
				*into <<= 10
			}
		}
	}
	return now, peak, nil
}

// group runs goroutines and keeps the first error.
type group struct {
	wg  sync.WaitGroup
	mu  sync.Mutex
	err error
}

func (g *group) Go(f func() error) {
	g.wg.Go(func() {
		if err := f(); err != nil {
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.err == nil {
				g.err = err
			}
		}
	})
}

func (g *group) Wait() error {
	g.wg.Wait()
	return g.err
}
