// Package lambda runs the programs of Lambda functions as Lambda runs them, on this machine: a local server of the runtime
// API gives them their invocations and stops the process between two of them.
//
// Source: https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html (API 2018-06-01) and .../lambda-runtime-environment.html.
package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// MaxPayload is what an invocation and its answer may have: 6 MB.
const MaxPayload = 6 << 20

// Failed is an invocation, or a start, that failed.
type Failed struct {
	Type    string `json:"errorType"`
	Message string `json:"errorMessage"`
}

func (f *Failed) Error() string { return f.Type + ": " + f.Message }

// ErrTimeout: the function did not answer in its time, and was killed.
var ErrTimeout = errors.New("the function timed out")

// Function is a function with one process, which starts with the first invocation, as after a cold start, and stands still
// between invocations.
type Function struct {
	Timeout time.Duration // of an invocation; 0: 30 s
	// Started is from the start of the process until it asked for its first invocation.
	Started time.Duration

	t      testing.TB
	bin    string
	env    []string
	server *http.Server
	addr   string
	log    testenv.Output
	began  time.Time
	proc   *testenv.Process

	mu      sync.Mutex
	waiting chan *invocation // what the process that asks is given
	asked   chan struct{}    // the process asks for an invocation
	failed  chan error       // its start has failed
	current *invocation
	calls   int
}

type invocation struct {
	id       string
	deadline time.Time
	payload  []byte
	answer   chan answer
}

type answer struct {
	body []byte
	err  error
}

// New returns services/lambda/NAME with these variables (KEY=VALUE) in its environment. The process ends with the test.
func New(t testing.TB, name string, env ...string) *Function {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &Function{t: t, bin: Binary(t, name), addr: ln.Addr().String(), waiting: make(chan *invocation), asked: make(chan struct{}, 1), failed: make(chan error, 1)}
	f.env = append([]string{"AWS_LAMBDA_RUNTIME_API=" + f.addr, "AWS_LAMBDA_FUNCTION_NAME=" + name, "AWS_LAMBDA_FUNCTION_VERSION=$LATEST", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=512",
		"AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1", "AWS_EXECUTION_ENV=AWS_Lambda_provided.al2023", "AWS_LAMBDA_LOG_FORMAT=JSON", "LAMBDA_TASK_ROOT=/var/task",
		"TZ=:UTC", "LANG=en_US.UTF-8", "PATH=/usr/local/bin:/usr/bin/:/bin:/opt/bin", "_HANDLER=bootstrap"}, env...)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2018-06-01/runtime/invocation/next", f.next)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/response", f.response)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/error", f.error)
	mux.HandleFunc("POST /2018-06-01/runtime/init/error", f.initError)
	f.server = &http.Server{Handler: mux}
	go func() { _ = f.server.Serve(ln) }()
	t.Cleanup(func() {
		f.kill()
		_ = f.server.Close()
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, f.log.String())
		}
	})
	return f
}

// Log is what the function has printed.
func (f *Function) Log() string { return f.log.String() }

// Pid is the process, for its figures.
func (f *Function) Pid() int { return f.proc.Pid() }

// Invoke gives the function one event and returns its answer. Errors are *Failed, as the function told them, ErrTimeout,
// or that the payload is too large, which a function never sees.
func (f *Function) Invoke(payload []byte) ([]byte, error) {
	f.t.Helper()
	if len(payload) > MaxPayload {
		return nil, &Failed{"RequestEntityTooLargeException", fmt.Sprintf("%d byte payload is too large for the RequestResponse invocation type (limit %d bytes)", len(payload), MaxPayload)}
	}
	limit := f.Timeout
	if limit == 0 {
		limit = 30 * time.Second
	}
	if err := f.ready(); err != nil {
		return nil, err
	}
	f.calls++
	f.thaw()
	inv := &invocation{id: fmt.Sprintf("8476a536-e9f4-11e8-9739-%012d", f.calls), deadline: time.Now().Add(limit), payload: payload, answer: make(chan answer, 1)}
	select {
	case f.waiting <- inv:
	case <-f.proc.Done():
	}
	select {
	case a := <-inv.answer:
		return a.body, a.err
	case <-f.proc.Done():
		return nil, &Failed{"Runtime.ExitError", fmt.Sprintf("the process ended: %v", f.proc.Err())}
	case <-time.After(limit):
		f.kill()
		return nil, ErrTimeout
	}
}

// startLimit is Lambda's for the start of a function.
const startLimit = 10 * time.Second

// ready starts the process if none runs and waits until it asks for an invocation.
func (f *Function) ready() error {
	if !f.proc.Running() {
		cmd := exec.Command(f.bin)
		cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = f.env, "/", &f.log, &f.log
		f.began, f.Started = time.Now(), 0
		f.mu.Lock()
		var err error
		f.proc, err = testenv.StartProcess(cmd)
		f.mu.Unlock()
		if err != nil {
			return err
		}
	}
	select {
	case <-f.asked:
		if f.Started == 0 {
			f.Started = time.Since(f.began)
		}
	case err := <-f.failed:
		<-f.proc.Done()
		return err
	case <-f.proc.Done():
		select {
		case err := <-f.failed:
			return err
		default:
			return &Failed{"Runtime.ExitError", fmt.Sprintf("the process ended: %v", f.proc.Err())}
		}
	case <-time.After(startLimit):
		f.kill()
		return ErrTimeout
	}
	return nil
}

// freeze stops the process: what the freezing of an execution environment looks like from within.
func (f *Function) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.proc.Signal(syscall.SIGSTOP) // it may have ended
}

func (f *Function) thaw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.proc.Signal(syscall.SIGCONT)
}

func (f *Function) kill() {
	if f.proc.Running() {
		if err := f.proc.Kill(); err != nil {
			f.t.Error(err)
		}
	}
	select {
	case <-f.asked:
	default:
	}
}

// next answers with the next invocation.
func (f *Function) next(w http.ResponseWriter, r *http.Request) {
	f.freeze() // before anybody knows that it asks, and so may wake it
	select {
	case f.asked <- struct{}{}:
	case <-r.Context().Done():
		return
	}
	select {
	case inv := <-f.waiting:
		f.mu.Lock()
		f.current = inv
		f.mu.Unlock()
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Lambda-Runtime-Aws-Request-Id", inv.id)
		h.Set("Lambda-Runtime-Deadline-Ms", fmt.Sprint(inv.deadline.UnixMilli()))
		h.Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:123456789012:function:"+filepath.Base(f.bin))
		h.Set("Lambda-Runtime-Trace-Id", "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1")
		_, _ = w.Write(inv.payload)
	case <-r.Context().Done():
	}
}

// take returns the invocation that is answered.
func (f *Function) take(w http.ResponseWriter, r *http.Request) *invocation {
	f.mu.Lock()
	defer f.mu.Unlock()
	inv := f.current
	if inv == nil || inv.id != r.PathValue("id") {
		http.Error(w, `{"errorType":"InvalidRequestID"}`, http.StatusBadRequest)
		return nil
	}
	f.current = nil
	return inv
}

func (f *Function) response(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	inv := f.take(w, r)
	switch {
	case inv == nil:
		return
	case err != nil:
		inv.answer <- answer{err: err}
	case len(body) > MaxPayload:
		http.Error(w, `{"errorType":"Function.ResponseSizeTooLarge"}`, http.StatusRequestEntityTooLarge)
		inv.answer <- answer{err: &Failed{"Function.ResponseSizeTooLarge", fmt.Sprintf("Response payload size (%d bytes) exceeded maximum allowed payload size (%d bytes).", len(body), MaxPayload)}}
		return
	default:
		inv.answer <- answer{body: body}
	}
	w.WriteHeader(http.StatusAccepted)
}

func failure(r *http.Request) error {
	e := new(Failed)
	if err := json.NewDecoder(r.Body).Decode(e); err != nil {
		return fmt.Errorf("an error that is no JSON: %w", err)
	}
	return e
}

func (f *Function) error(w http.ResponseWriter, r *http.Request) {
	e := failure(r)
	if inv := f.take(w, r); inv != nil {
		inv.answer <- answer{err: e}
		w.WriteHeader(http.StatusAccepted)
	}
}

func (f *Function) initError(w http.ResponseWriter, r *http.Request) {
	f.failed <- failure(r)
	w.WriteHeader(http.StatusAccepted)
}

var built struct {
	sync.Mutex
	path map[string]string
}

// Binary builds a function for this machine, once per test process, and returns the path of its program.
func Binary(t testing.TB, name string) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if p := built.path[name]; p != "" {
		return p
	}
	bin := filepath.Join(testenv.Root(), ".cache", "test", "lambda-"+name)
	tmp := fmt.Sprintf("%s.%d", bin, os.Getpid())
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "grpcnotrace,lambda.norpc", "-ldflags", "-s -w", "-o", tmp, "./services/lambda/"+name)
	cmd.Dir = testenv.Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	if err := os.Rename(tmp, bin); err != nil {
		t.Fatal(err)
	}
	if built.path == nil {
		built.path = map[string]string{}
	}
	built.path[name] = bin
	return bin
}
