package sim

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// line is one event of a trace; it is written out when a seed has failed.
type line struct {
	at     time.Duration
	format string
	args   []any // values that nobody changes
}

// trace is all that happened, in order of fake time.
type trace struct {
	began time.Time

	mu         sync.Mutex
	lines      []line
	violations []string
}

func (t *trace) add(format string, args ...any) {
	at := time.Since(t.began)
	t.mu.Lock()
	t.lines = append(t.lines, line{at, format, args})
	t.mu.Unlock()
}

// maxViolations is how many of a seed are kept: the first ones tell.
const maxViolations = 20

// violate notes that a promise was broken.
func (t *trace) violate(format string, args ...any) {
	t.add("VIOLATION "+format, args...)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.violations) < maxViolations {
		t.violations = append(t.violations, fmt.Sprintf("%v ", time.Since(t.began))+fmt.Sprintf(format, args...))
	}
}

func (t *trace) failed() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.violations
}

// write puts plan and events into a file and returns its name.
func (t *trace) write(tb testing.TB, seed uint64) string {
	dir := os.Getenv("SIM_TRACE_DIR")
	if dir == "" {
		dir = os.TempDir()
	}
	name := filepath.Join(dir, fmt.Sprintf("cirrolog-sim-%d.trace", seed))
	f, err := os.Create(name)
	if err != nil {
		tb.Error(err)
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.lines {
		fmt.Fprintf(f, "%12.6f ", l.at.Seconds())
		fmt.Fprintf(f, l.format+"\n", l.args...)
	}
	if err := f.Close(); err != nil {
		tb.Error(err)
	}
	return name
}
