package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Process is a program that a test runs beside itself.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of the end; read after done
}

// StartProcess starts cmd. The kernel kills the process when the thread that started
// it ends, so a test binary that is killed leaves none behind; hence the locked thread.
func StartProcess(cmd *exec.Cmd) (*Process, error) {
	return StartProcessIn(cmd, &syscall.SysProcAttr{})
}

// StartProcessIn is StartProcess with more attributes, as namespaces.
func StartProcessIn(cmd *exec.Cmd, attr *syscall.SysProcAttr) (*Process, error) {
	attr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr = attr
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how it ended, nil for exit code 0. Call it after Done.
func (p *Process) Err() error { return p.err }

// Pid is its process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Signal sends it a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// killLimit bounds the wait for the end of a killed process.
const killLimit = 10 * time.Second

// Kill ends it as kill -9 does; one that has ended is no error.
func (p *Process) Kill() error {
	err := p.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-p.done:
	case <-time.After(killLimit):
		return errors.Join(err, fmt.Errorf("%s does not end", p.cmd.Path))
	}
	return err
}

// Await asks ok, with pauses, until it returns nil, the process ends, or limit is over.
func (p *Process) Await(limit, pause time.Duration, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended", p.cmd.Path)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready in %v: %w", p.cmd.Path, limit, err)
		case <-time.After(pause):
		}
	}
}

// Running tells whether the process runs; a nil one does not.
func (p *Process) Running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// AnswersOK asks an HTTP server, over a connection of its own, and returns nil when it answers 200.
func AnswersOK(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// Output keeps the last of what a process writes, up to 1 MiB. It is safe for concurrent use.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.b.Len() > 1<<20 {
		o.b.Reset()
	}
	return o.b.Write(p)
}

// String returns what is kept.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// The ports that FreePort gives: below those that the kernel gives to outgoing connections, so that a
// server that starts again finds its port free. A test process has a block for itself
// as long as it listens on the block's first port.
const (
	firstPort   = 12000
	portsABlock = 500
	portBlocks  = 40
)

var ports struct {
	sync.Mutex
	guard net.Listener // on the first port of the block
	next  int
}

// FreePort returns a loopback port that nobody else is given. Safe for concurrent use.
func FreePort() (int, error) {
	ports.Lock()
	defer ports.Unlock()
	for i := range portBlocks {
		if ports.guard != nil {
			break
		}
		if l, err := listen(firstPort + (os.Getpid()+i)%portBlocks*portsABlock); err == nil {
			ports.guard = l
		}
	}
	if ports.guard == nil {
		return 0, errors.New("every block of ports for tests is in use")
	}
	base := ports.guard.Addr().(*net.TCPAddr).Port
	for range portsABlock - 1 {
		port := base + 1 + ports.next%(portsABlock-1)
		ports.next++
		if l, err := listen(port); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("every port from %d to %d is in use", base, base+portsABlock-1)
}

func listen(port int) (net.Listener, error) {
	return net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
}
