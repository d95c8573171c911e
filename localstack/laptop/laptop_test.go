// Package laptop tests localstack.sh: a cluster on one machine from nothing, on
// what Terraform made at emulators; and the modules of terraform/.
package laptop

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

const (
	upLimit    = 3 * time.Minute
	agents     = 3
	services   = 4
	portsInUse = services + 4*agents
)

// laptop is a cluster of localstack.sh with a directory and ports of its own.
type laptop struct {
	t     *testing.T
	dir   string
	ports []int    // MinIO, Redis, DynamoDB, AWS; then Kafka, HTTP, admin, RPC of each agent
	env   []string // KEY=VALUE
}

// newLaptop skips the test without the programs.
func newLaptop(t *testing.T, env ...string) *laptop {
	t.Helper()
	for _, program := range []string{"minio", "redis-server", "tofu", "provider/terraform-provider-aws", "java", "curl"} {
		testenv.Need(t, program)
	}
	if _, err := os.Stat(filepath.Join(testenv.Root(), ".cache", "clients", "moto", "bin", "python")); err != nil {
		testenv.Missing(t, "moto")
	}
	l := &laptop{t: t, dir: filepath.Join(t.TempDir(), "localstack")}
	for range portsInUse {
		port, err := testenv.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		l.ports = append(l.ports, port)
	}
	of := func(first, n int) string { return strings.Trim(fmt.Sprint(l.ports[first:first+n]), "[]") }
	l.env = append([]string{
		"LOCALSTACK_DIR=" + l.dir, "CIRROLOG=" + testenv.Binary(t), "LAMBDA_ZIPS=" + zips(t), "ENGINE=native", "MINIO_PORT=" + of(0, 1), "REDIS_PORT=" + of(1, 1),
		"DYNAMODB_PORT=" + of(2, 1), "AWS_PORT=" + of(3, 1), "KAFKA_PORTS=" + of(4, 3), "HTTP_PORTS=" + of(7, 3),
		"ADMIN_PORTS=" + of(10, 3), "RPC_PORTS=" + of(13, 3), "CIRROLOG_BROKERS=" + strings.Join(l.brokers(), ","),
		fmt.Sprintf("CIRROLOG_ADMIN=127.0.0.1:%d", l.ports[10]), "AWS_ACCESS_KEY_ID=cirrolog", "AWS_SECRET_ACCESS_KEY=cirrolog-secret",
	}, env...)
	t.Cleanup(func() {
		if out, code := l.sh("down"); code != 0 {
			t.Errorf("down: exit code %d: %s", code, out)
		}
	})
	return l
}

func (l *laptop) brokers() []string {
	var out []string
	for _, port := range l.ports[4 : 4+agents] {
		out = append(out, fmt.Sprintf("127.0.0.1:%d", port))
	}
	return out
}

func (l *laptop) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = testenv.Root(), append(os.Environ(), l.env...)
	return cmd
}

// sh runs localstack.sh and returns all it printed and its exit code.
func (l *laptop) sh(args ...string) (string, int) {
	l.t.Helper()
	return l.run(l.command("localstack/localstack.sh", args...))
}

// run bounds a command: what it leaves in the background has not its output.
func (l *laptop) run(cmd *exec.Cmd) (string, int) {
	l.t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := testenv.StartProcess(cmd)
	if err != nil {
		l.t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(upLimit):
		_ = p.Kill()
		l.t.Fatalf("%v did not end in %v:\n%s", cmd.Args, upLimit, out.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// must runs localstack.sh and demands success.
func (l *laptop) must(args ...string) string {
	l.t.Helper()
	out, code := l.sh(args...)
	if code != 0 {
		l.t.Fatalf("localstack.sh %v: exit code %d:\n%s", args, code, out)
	}
	return out
}

// cirrolog runs a verb of the program and returns its standard output.
func (l *laptop) cirrolog(stdin string, args ...string) string {
	l.t.Helper()
	cmd := l.command(testenv.Binary(l.t), args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil {
		l.t.Fatalf("cirrolog %v: %v: %s", args, err, errs.String())
	}
	return out.String()
}

// pid of a service.
func (l *laptop) pid(name string) int {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, name+".pid"))
	if err != nil {
		l.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(b))[0])
	if err != nil {
		l.t.Fatal(err)
	}
	return pid
}

// kill ends a service as kill -9 does.
func (l *laptop) kill(name string) {
	l.t.Helper()
	pid := l.pid(name)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		l.t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); alive(pid); {
		if time.Now().After(end) {
			l.t.Fatalf("%s does not end", name)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// alive tells whether the process runs; a zombie does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// nothingLeft demands that nobody listens on the ports but the test itself, and no process of the directory runs.
func (l *laptop) nothingLeft(except ...int) {
	l.t.Helper()
	for _, port := range l.ports {
		if slices.Contains(except, port) {
			continue
		}
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = c.Close()
			l.t.Errorf("something still listens on port %d", port)
		}
	}
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		l.t.Fatal(err)
	}
	for _, path := range all {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), l.dir) {
			l.t.Errorf("still runs: %s", strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
}

// TestLaptop is what a newcomer does: up, produce, lose an agent, read all, replay, down.
func TestLaptop(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	began := time.Now()
	first := l.must("up")
	t.Logf("up in %.1f s", time.Since(began).Seconds())
	if again := l.must("up"); !strings.HasPrefix(again, "localstack: runs already\n") || !strings.HasSuffix(first, strings.TrimPrefix(again, "localstack: runs already\n")) {
		t.Errorf("a second up says:\n%s", again)
	}
	l.checkAWS()
	l.checkApplied()
	l.useIt()
	l.checkFunctions()
	if out := l.must("up"); !strings.Contains(out, "agent2 has died, starting it again") || !alive(l.pid("agent2")) {
		t.Errorf("up with an agent dead says:\n%s", out)
	}
	l.kill("redis")
	if out, code := l.sh("up"); code == 0 || strings.Count(out, "\n") != 1 || !strings.Contains(out, "redis has died") {
		t.Errorf("up with redis dead: exit code %d:\n%s", code, out)
	}
	for _, name := range []string{"agent1", "agent2", "agent3"} { // else they write into the bucket that destroy empties
		l.kill(name)
	}
	l.must("tofu", "destroy", "-no-color", "-auto-approve")
	l.checkDestroyed()
	if out := l.must("tofu", "state", "list"); out != "" {
		t.Errorf("destroy left in the state:\n%s", out)
	}
	l.down(3)
	if _, err := os.Stat(l.dir); err == nil {
		t.Errorf("down left %s", l.dir)
	}
	if out := l.must("down"); out != "localstack: nothing runs\n" {
		t.Errorf("down of nothing says: %s", out)
	}
}

// TestOnLocalStack is the same cluster on LocalStack's S3.
func TestOnLocalStack(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(filepath.Join(testenv.Root(), ".cache", "clients", "localstack", "bin", "python")); err != nil {
		testenv.Missing(t, "LocalStack (Python 3.13 or later)")
	}
	l := newLaptop(t, "STORE=localstack")
	began := time.Now()
	l.must("up")
	t.Logf("up in %.1f s", time.Since(began).Seconds())
	if server := l.server("_localstack/health"); !strings.Contains(server, `"version": "4.14.0"`) {
		t.Errorf("the store is not LocalStack: %s", server)
	}
	l.checkApplied()
	l.useIt()
	l.env = append(l.env, "STORE=minio") // a cluster that runs has the store that it has
	if out := l.must("up"); !strings.Contains(out, "agent2 has died, starting it again") {
		t.Errorf("up with an agent dead says:\n%s", out)
	}
	l.down(7)
}

// down stops so many processes, and leaves nothing.
func (l *laptop) down(processes int) {
	l.t.Helper()
	began := time.Now()
	if out := l.must("down"); out != fmt.Sprintf("localstack: stopped %d processes\n", processes) {
		l.t.Errorf("down says: %s", out)
	}
	l.t.Logf("down in %.1f s", time.Since(began).Seconds())
	l.nothingLeft()
}

// server asks the store over HTTP.
func (l *laptop) server(path string) string {
	l.t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/%s", l.ports[0], path))
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(b)
}

// useIt produces, kills an agent, and reads everything back, from the agents and from the bucket alone.
func (l *laptop) useIt() {
	t, records := l.t, 50000
	var in strings.Builder
	for i := range records {
		fmt.Fprintf(&in, "%0100d\n", i)
	}
	l.cirrolog("", "topic", "create", "words", "-p", "2", "-c", "segment.bytes=1048576")
	l.cirrolog(in.String(), "produce", "words")
	l.kill("agent2")
	for _, how := range [][]string{{"consume", "words", "-o", "start", "-e"}, {"replay", "words"}} {
		got := strings.Fields(l.cirrolog("", how...))
		seen := map[string]bool{}
		for _, v := range got {
			seen[v] = true
		}
		if len(got) != records || len(seen) != records {
			t.Errorf("%v reads %d records, %d different ones, not %d", how, len(got), len(seen), records)
		}
	}
	out := l.cirrolog("", "replay", "words", "--bucket", fmt.Sprintf("s3://cirrolog?region=us-east-1&endpoint=http://127.0.0.1:%d", l.ports[0]))
	if n := len(strings.Fields(out)); n == 0 || n > records {
		t.Errorf("replay from the bucket reads %d records", n)
	}
}

// TestRefused: one line, an exit code that is not 0, and nothing left running.
func TestRefused(t *testing.T) {
	t.Parallel()
	t.Run("port", func(t *testing.T) {
		l := newLaptop(t)
		taken, err := net.Listen("tcp", l.brokers()[1])
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		out, code := l.sh("up")
		l.refused(out, code, fmt.Sprintf("localstack: port %d for Kafka of agent 2 is taken: stop what listens there, or set KAFKA_PORTS", l.ports[5]))
		l.nothingLeft(l.ports[5])
	})
	t.Run("service", func(t *testing.T) {
		l := newLaptop(t, "LOCALSTACK_BIN="+binWith(t, "redis-server", "sleep 0.5; echo 'no memory for Redis'; exit 3"))
		out, code := l.sh("up")
		l.refused(out, code, "localstack: redis ended while starting: no memory for Redis (")
		l.nothingLeft()
	})
	t.Run("agent", func(t *testing.T) {
		program := filepath.Join(binWith(t, "cirrolog", "echo 'error: no disk'; exit 1"), "cirrolog")
		l := newLaptop(t, "CIRROLOG="+program)
		out, code := l.sh("up")
		l.refused(out, code, "localstack: agent1 ended while starting: error: no disk (")
		l.nothingLeft()
	})
	t.Run("terraform", func(t *testing.T) {
		l := newLaptop(t, "LOCALSTACK_BIN="+binWith(t, "provider/terraform-provider-aws", "exit 1"))
		out, code := l.sh("up")
		l.refused(out, code, "localstack: terraform: ")
		l.nothingLeft()
	})
	t.Run("network", func(t *testing.T) {
		if err := exec.Command("unshare", "-n", "true").Run(); err != nil {
			testenv.Missing(t, "network namespace (root)")
		}
		l := newLaptop(t, "LOCALSTACK_BIN="+t.TempDir(), "GOMODCACHE="+t.TempDir(), "GOFLAGS=-modcacherw")
		out, code := l.run(l.command("unshare", "-n", "localstack/localstack.sh", "up"))
		l.refused(out, code, "localstack: missing, and could not be installed (is there a network?): minio, OpenTofu, the Terraform provider (")
	})
	t.Run("arguments", func(t *testing.T) {
		l := newLaptop(t, "METADATA=etcd")
		out, code := l.sh("up")
		l.refused(out, code, "localstack: METADATA=etcd is neither dynamodb nor redis")
		l.env = append(l.env, "METADATA=redis", "STORE=ceph")
		out, code = l.sh("up")
		l.refused(out, code, "localstack: STORE=ceph is neither minio nor localstack")
		l.env = append(l.env, "STORE=", "ENGINE=podman")
		out, code = l.sh("up")
		l.refused(out, code, "localstack: ENGINE=podman is none of auto, docker and native")
		l.env = append(l.env, "ENGINE=", "RPC_PORTS=1 2")
		out, code = l.sh("up")
		l.refused(out, code, "localstack: RPC_PORTS must be three ports")
		l.env = append(l.env, "LOCALSTACK_DIR="+t.TempDir())
		out, code = l.sh("down")
		l.refused(out, code, "localstack: /")
		l.env = append(l.env, "LOCALSTACK_DIR="+l.dir)
		if out, code = l.sh("tofu", "plan"); code == 0 || !strings.Contains(out, "nothing was created") {
			t.Errorf("tofu of nothing: exit code %d: %s", code, out)
		}
	})
}

// TestInterrupted: Ctrl-C while it starts, at whatever moment.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"starting MinIO", "applying", "starting three agents"} {
		t.Run(at, func(t *testing.T) {
			l := newLaptop(t)
			cmd := l.command("localstack/localstack.sh", "up")
			var out testenv.Output
			cmd.Stdout, cmd.Stderr = &out, &out
			p, err := testenv.StartProcess(cmd)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Await(upLimit, 10*time.Millisecond, contains(&out, at)); err != nil {
				t.Fatal(err, out.String())
			}
			time.Sleep(rand.N(200 * time.Millisecond))
			if err := p.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			<-p.Done()
			l.refused(out.String(), cmd.ProcessState.ExitCode(), "localstack: interrupted")
			l.nothingLeft()
		})
	}
}

// refused demands an exit code and, behind what tells of progress, one line.
func (l *laptop) refused(out string, code int, want string) {
	l.t.Helper()
	lines := slices.DeleteFunc(strings.Split(strings.TrimSuffix(out, "\n"), "\n"), func(line string) bool {
		return strings.HasPrefix(line, "deps: ") || strings.HasPrefix(line, "localstack: starting ") || strings.HasPrefix(line, "localstack: applying ") || strings.HasPrefix(line, "localstack: creating ")
	})
	if code == 0 || len(lines) != 1 || !strings.HasPrefix(lines[0], want) {
		l.t.Errorf("exit code %d, want one line %q:\n%s", code, want, out)
	}
}
