package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// scaleServer is a server whose cost is measured.
type scaleServer interface {
	addr() string
	pid() int
	launch() error // does not wait
	stop()         // with SIGTERM, until it has ended
	kill()         // with SIGKILL, until it has ended
}

// ours is `cirrolog serve`.
type ours struct{ *Node }

func (o ours) addr() string  { return o.Kafka }
func (o ours) pid() int      { return o.Pid() }
func (o ours) launch() error { return o.Node.launch() }
func (o ours) stop()         { o.Stop() }
func (o ours) kill()         { o.Kill() }

// apache is a node of Apache Kafka, started by kafka.sh.
type apache struct {
	t    testing.TB
	dir  string
	port string
	cmd  *exec.Cmd
}

func newApache(t testing.TB) *apache {
	addr := freeAddr(t)
	a := &apache{t: t, dir: filepath.Join(t.TempDir(), "kafka"), port: addr[strings.LastIndex(addr, ":")+1:]}
	t.Cleanup(func() {
		if a.cmd != nil {
			a.kill()
		}
	})
	return a
}

func (a *apache) addr() string { return "127.0.0.1:" + a.port }

// pid is that of the JVM, which kafka.sh notes.
func (a *apache) pid() int {
	b, err := os.ReadFile(filepath.Join(a.dir, "pid"))
	if err != nil {
		a.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		a.t.Fatal(err)
	}
	return pid
}

// launch formats the directory the first time, which is not part of a start.
func (a *apache) launch() error {
	_ = os.Remove(filepath.Join(a.dir, "pid"))
	a.cmd = exec.Command(filepath.Join(testenv.Root(), "localstack", "bench", "kafka", "kafka.sh"), "start", a.dir, a.port)
	if err := a.cmd.Start(); err != nil {
		return err
	}
	for range 1000 {
		if b, err := os.ReadFile(filepath.Join(a.dir, "pid")); err == nil && len(bytes.TrimSpace(b)) > 0 {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("kafka.sh started nothing in %s", a.dir)
}

func (a *apache) stop() { a.end(syscall.SIGTERM) }
func (a *apache) kill() { a.end(syscall.SIGKILL) }

func (a *apache) end(sig syscall.Signal) {
	pid := a.pid()
	_ = syscall.Kill(pid, sig)
	for end := time.Now().Add(2 * time.Minute); syscall.Kill(pid, 0) == nil && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
	}
	_ = a.cmd.Wait()
	a.cmd = nil
}

// cpu is the time that the process has used, all threads together.
func cpu(pid int) (sum time.Duration) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // a thread that has just ended
		}
		f := strings.Fields(string(b))
		if len(f) > 0 {
			ns, _ := strconv.ParseInt(f[0], 10, 64)
			sum += time.Duration(ns)
		}
	}
	return sum
}

// procStatus reads numbers of /proc/PID/status.
func procStatus(pid int, name string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n
		}
	}
	return -1
}

// fds counts the open files of a process.
func fds(pid int) int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return -1
	}
	return len(entries)
}

// page reads a page of the admin port.
func (n *Node) page(path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Admin+path, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// goroutines is the number of goroutines of the node.
func (n *Node) goroutines() (count int) {
	n.t.Helper()
	b, err := n.page("/debug/pprof/goroutine?debug=1")
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(b), "goroutine profile: total %d", &count); err != nil {
		n.t.Fatal(err)
	}
	return count
}
