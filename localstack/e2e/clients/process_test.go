package clients

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// process is a client's process. The kernel kills it when the test's thread
// ends, so that a killed test leaves none behind.
type process struct {
	name   string
	cmd    *exec.Cmd
	done   chan struct{}
	err    error // of the process or of parse; read after done
	stderr string
}

// start starts cmd and gives its stdout to parse, if there is one. It is killed
// at the end of the test, and its stderr is printed if the test failed.
func start(t *testing.T, name string, cmd *exec.Cmd, parse func(io.Reader) error) *process {
	t.Helper()
	p := &process{name: name, cmd: cmd, done: make(chan struct{}), stderr: filepath.Join(t.TempDir(), "stderr")}
	stderr, err := os.Create(p.stderr)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout io.Reader
	if parse != nil {
		if stdout, err = cmd.StdoutPipe(); err != nil {
			t.Fatal(err)
		}
	}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		defer stderr.Close()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		if parse != nil {
			if p.err = parse(stdout); p.err != nil {
				_ = cmd.Process.Kill()
			}
		}
		if err := cmd.Wait(); p.err == nil {
			p.err = err
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s: stderr of %s: %s", t.Name(), name, p.said())
		}
	})
	return p
}

// kill ends the process with SIGKILL.
func (p *process) kill() {
	select {
	case <-p.done:
		return // its pid may be another's
	default:
	}
	_ = p.cmd.Process.Kill() // fails only when the process has ended
	<-p.done
}

// stop ends the process with SIGTERM; a JVM then says 143.
func (p *process) stop(limit time.Duration) error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended by itself: %w", p.name, p.failure())
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	err := p.wait(limit)
	if p.cmd.ProcessState != nil && p.cmd.ProcessState.ExitCode() == 128+int(syscall.SIGTERM) {
		return nil
	}
	return err
}

// wait waits for the end of the process.
func (p *process) wait(limit time.Duration) error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		return fmt.Errorf("%s did not end in %v: %s", p.name, limit, p.said())
	}
}

func (p *process) failure() error {
	return fmt.Errorf("%v: %s", p.err, p.said())
}

// said is the end of what the process said on stderr.
func (p *process) said() []byte {
	b, err := os.ReadFile(p.stderr)
	if err != nil {
		return []byte(err.Error())
	}
	return bytes.TrimSpace(b[max(0, len(b)-4<<10):])
}
