package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

func itoa(n int) string { return strconv.Itoa(n) }

// lease is that of the agents. On two cores DynamoDB Local needs more than half a second for some answers while agents join and go; leases of
// a second were lost then by agents that lived.
var lease = time.Second

const dynamoLease = 2 * time.Second

const (
	readyWait = 30 * time.Second
	stopWait  = 60 * time.Second // --shutdown-timeout and some
	bootWait  = 300 * time.Millisecond
)

// member is one agent and its ways to everything else. A supervisor starts it again when it ends by itself, as
// systemd or Kubernetes would.
type member struct {
	name              string
	dir               string // of its own; the data directory is below
	disk              string // "", or where a small file system is mounted
	kafka, admin, rpc string
	meta, bucket      *tcpProxy
	peers             *tcpProxy // from the others to it
	args, env         []string
	binary            string
	rec               *recorder

	mu     sync.Mutex
	proc   *testenv.Process
	wanted bool
	busy   bool // a fault has it
	ended  int  // times it ended by itself
}

func (m *member) data() string {
	if m.disk != "" {
		return filepath.Join(m.disk, "data")
	}
	return filepath.Join(m.dir, "data")
}

// clockPath is the file that says how far its clock is wrong.
func (m *member) clockPath() string { return filepath.Join(m.dir, "clock") }

func (m *member) logPath() string { return filepath.Join(m.dir, "agent.log") }

// launchLocked starts the process.
func (m *member) launchLocked() error {
	out, err := os.OpenFile(m.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close() // the process has its own
	cmd := exec.Command(m.binary, append([]string{"agent", "--data-dir", m.data(), "--kafka-addr", m.kafka, "--admin-addr", m.admin, "--http-addr", "", "--rpc-addr", m.rpc, "--rpc-advertised-addr", m.peers.addr}, m.args...)...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "CIRROLOG_") }), m.env...)
	cmd.Env = append(cmd.Env, "CIRROLOG_TEST_CLOCK="+m.clockPath())
	cmd.Stdout, cmd.Stderr = out, out
	m.proc, err = testenv.StartProcess(cmd)
	return err
}

// supervise keeps the process running while it is wanted.
func (m *member) supervise(ctx context.Context) {
	for ctx.Err() == nil {
		m.mu.Lock()
		if m.wanted && !m.proc.Running() {
			if m.proc != nil {
				m.ended++
				m.rec.say("%s ended by itself (%v): %s", m.name, m.proc.Err(), lastLine(m.logPath()))
			}
			if err := m.launchLocked(); err != nil {
				m.rec.wrong("start %s: %v", m.name, err)
			}
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(bootWait):
		}
	}
}

// start begins to want the process.
func (m *member) start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wanted = true
	if m.proc.Running() {
		return nil
	}
	return m.launchLocked()
}

// kill is kill -9.
func (m *member) kill() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wanted = false
	if m.proc == nil {
		return nil
	}
	return m.proc.Kill()
}

// stop is SIGTERM; the process must end by itself and without an error.
func (m *member) stop() error {
	m.mu.Lock()
	m.wanted = false
	p, running := m.proc, m.proc.Running()
	m.mu.Unlock()
	if !running {
		return nil
	}
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.Done():
		last := lastLine(m.logPath())
		if p.Err() != nil && strings.Contains(last, "sealed by another agent") { // the others took it for dead meanwhile, on a machine that is busy
			m.rec.say("%s ended with %v after SIGTERM: %s", m.name, p.Err(), last)
			return nil
		}
		if p.Err() != nil {
			return fmt.Errorf("%s ended with %w after SIGTERM: %s", m.name, p.Err(), last)
		}
		return nil
	case <-time.After(stopWait):
		return errors.Join(fmt.Errorf("%s did not end in %v after SIGTERM", m.name, stopWait), p.Kill())
	}
}

// signal sends a signal to the running process.
func (m *member) signal(s syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.proc.Running() {
		return fmt.Errorf("%s does not run", m.name)
	}
	return m.proc.Signal(s)
}

// ready asks whether it serves.
func (m *member) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := testenv.AnswersOK(ctx, "http://"+m.admin+"/readyz"); err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	return nil
}

func (m *member) awaitReady(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		err := m.ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready in %v: %w: %s", m.name, limit, err, lastLine(m.logPath()))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// wipe removes what is on its disk.
func (m *member) wipe() error { return os.RemoveAll(m.data()) }

// lastLine is the last line of a log.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	b := make([]byte, min(info.Size(), 4<<10))
	if _, err := f.ReadAt(b, info.Size()-int64(len(b))); err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}
