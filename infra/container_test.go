package infra

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// container is a process in namespaces of its own, as a container engine makes them: an image's file tree for its
// root, volumes, a network that has nothing but loopback. This test binary is the engine: it runs itself
// (TestMain), and what it became then is the program of the image.
type container struct {
	Root     string            // directory of the image's tree; "/" leaves the machine's
	ReadOnly bool              // the root file system
	Mounts   map[string]string // place in the container → directory or file
	Hosts    []string          // names that are 127.0.0.1
	Args     []string
	Env      []string
	User     int    // uid and gid; 0 stays root
	Network  string // of another container: /proc/PID/ns/net; "" is a new one
	Idle     bool   // do nothing, but hold the network
}

// cleanUp is called after all tests.
var cleanUp []func()

const containerVariable = "CIRROLOG_TEST_CONTAINER"

func TestMain(m *testing.M) {
	spec := os.Getenv(containerVariable)
	if spec == "" {
		code := m.Run()
		for _, f := range cleanUp {
			f()
		}
		os.Exit(code)
	}
	runtime.LockOSThread() // namespaces are of the thread
	var c container
	err := json.Unmarshal([]byte(spec), &c)
	if err == nil {
		err = c.become()
	}
	fmt.Fprintln(os.Stderr, "container:", err)
	os.Exit(125)
}

// become turns this process into the container's. It returns only with an error.
func (c *container) become() error {
	// The engine may have ended already; then nobody would end this one.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil || os.Getppid() == 1 {
		return errors.Join(err, errors.New("the engine is gone"))
	}
	if err := c.joinNetwork(); err != nil {
		return err
	}
	if c.Idle {
		for {
			_ = unix.Pause() // in the kernel: Go takes a wait for nothing for a deadlock
		}
	}
	if err := c.mountAll(); err != nil {
		return err
	}
	if c.User != 0 {
		if err := dropRights(c.User); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil { // a change of user ends it
		return err
	}
	return fmt.Errorf("exec %s: %w", c.Args[0], unix.Exec(c.Args[0], c.Args, c.Env))
}

// dropRights leaves root for good: no capabilities, no groups, and no program that it runs gets more.
func dropRights(id int) error {
	for capability := 0; unix.Prctl(unix.PR_CAPBSET_READ, uintptr(capability), 0, 0, 0) == nil; capability++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return errors.Join(syscall.Setgroups([]int{id}), syscall.Setgid(id), syscall.Setuid(id))
}

func (c *container) joinNetwork() error {
	if c.Network != "" {
		f, err := os.Open(c.Network)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
	}
	// Also in another's network: that one may not be so far yet.
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	return nil
}

// mountAll makes the container's file system and goes there.
func (c *container) mountAll() error {
	// In a chroot the root is no mount (EINVAL), and what it lies on can't be named.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("private mounts: %w", err)
	}
	if c.Root == "/" {
		return nil
	}
	bind := func(from, to string, flags uintptr) error {
		if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", from, to, err)
		}
		if flags == 0 {
			return nil
		}
		return unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|flags, "")
	}
	flags := uintptr(0)
	if c.ReadOnly {
		flags = unix.MS_RDONLY
	}
	if err := bind(c.Root, c.Root, flags); err != nil {
		return err
	}
	for place, from := range c.Mounts {
		if err := bind(from, filepath.Join(c.Root, place), 0); err != nil {
			return err
		}
	}
	if err := bind("/proc", filepath.Join(c.Root, "proc"), 0); err != nil {
		return err
	}
	if err := unix.Chroot(c.Root); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// places makes in the tree what is mounted over: an engine does so too.
func (c *container) places(t *testing.T) {
	t.Helper()
	if c.Root == "/" {
		return
	}
	if c.Mounts == nil {
		c.Mounts = map[string]string{}
	}
	hosts := filepath.Join(t.TempDir(), "hosts")
	text := "127.0.0.1 localhost " + strings.Join(c.Hosts, " ") + "\n"
	if err := os.WriteFile(hosts, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c.Mounts["/etc/hosts"] = hosts
	for place, from := range c.Mounts {
		at := filepath.Join(c.Root, place)
		info, err := os.Stat(from)
		if err == nil && info.IsDir() {
			err = os.MkdirAll(at, 0o755)
		} else if err == nil {
			err = errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, nil, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (c *container) command(t *testing.T) *exec.Cmd {
	t.Helper()
	c.places(t)
	spec, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{containerVariable + "=" + string(spec)}
	return cmd
}

// namespaces are those that a new process gets.
func (c *container) namespaces() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if c.Network == "" {
		a.Cloneflags |= unix.CLONE_NEWNET
	}
	return a
}

// running is a container that was started.
type running struct {
	*testenv.Process
	network string
	log     *testenv.Output
}

// needNamespaces skips the test where no container can be made.
func needNamespaces(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		testenv.Missing(t, "root, who makes mounts")
	}
}

// start runs it until the test ends.
func (c container) start(t *testing.T) *running {
	t.Helper()
	c.Mounts = maps.Clone(c.Mounts)
	r := &running{log: &testenv.Output{}}
	cmd := c.command(t)
	cmd.Stdout, cmd.Stderr = r.log, r.log
	var err error
	if r.Process, err = testenv.StartProcessIn(cmd, c.namespaces()); err != nil {
		t.Fatal(err)
	}
	r.network = c.Network
	if r.network == "" {
		r.network = fmt.Sprintf("/proc/%d/ns/net", r.Pid())
	}
	t.Cleanup(func() {
		if err := r.Kill(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("%q wrote:\n%s", c.Args, r.log.String())
		}
	})
	return r
}

// run runs it to its end and returns stdout, stderr and the exit code.
func (c container) run(t *testing.T, stdin string) (stdout, stderr string, code int) {
	t.Helper()
	c.Mounts = maps.Clone(c.Mounts)
	cmd := c.command(t)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	p, err := testenv.StartProcessIn(cmd, c.namespaces())
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(time.Minute):
		t.Fatalf("%q does not end: %s", c.Args, errors.Join(p.Kill(), errors.New(errs.String())))
	}
	if exit := (&exec.ExitError{}); errors.As(p.Err(), &exit) {
		code = exit.ExitCode()
	} else if p.Err() != nil {
		t.Fatal(p.Err())
	}
	return out.String(), errs.String(), code
}

// must is run, and fails the test with another exit code than 0.
func (c container) must(t *testing.T, stdin string) string {
	t.Helper()
	out, errs, code := c.run(t, stdin)
	if code != 0 {
		t.Fatalf("%q: exit code %d: %s%s", c.Args, code, out, errs)
	}
	return out
}

// terminate ends it as engines do, with SIGTERM; it must end by itself within the limit.
func (r *running) terminate(t *testing.T, limit time.Duration) {
	t.Helper()
	if err := r.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.Done():
		if r.Err() != nil {
			t.Errorf("it ended with %v:\n%s", r.Err(), r.log.String())
		}
	case <-time.After(limit):
		t.Errorf("it did not end in %v", limit)
	}
}

// status returns lines of /proc/PID/status by their names.
func (r *running) status(t *testing.T) map[string]string {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", r.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			out[k] = strings.Join(strings.Fields(v), " ")
		}
	}
	return out
}
