package chaos

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// recorder takes what all clients see: it writes the history, feeds the checker, and knows how far each is. Its
// methods may be called concurrently.
type recorder struct {
	clients  atomic.Uint32 // numbers given to producers
	question atomic.Uint32

	mu      sync.Mutex
	file    *os.File
	out     *bufio.Writer
	err     error // of the file
	buf     []byte
	checker *Checker
	now     progress
	lastAck []time.Time // by partition
	anyAck  time.Time
	windows []*window

	log    *os.File // what happened, in words
	began  time.Time
	wrongs []string // errors that no client should see, and clients that did not go on
}

// progress is how far everybody is.
type progress struct {
	acks      []int64 // by partition
	ackedEnd  []int64 // by partition: behind the last acknowledged record
	byClient  map[uint32]int64
	positions [libraries][]int64 // by partition: behind the last record that was read
	commits   [libraries]int64
	total     int64
}

// window is the time of a fault, until it has healed.
type window struct {
	kinds      []string
	start      time.Time
	worst, any time.Duration // without an acknowledgement, of one partition and of all
}

// newRecorder writes into dir.
func newRecorder(dir string, partitions int) (*recorder, error) {
	file, err := os.Create(filepath.Join(dir, "history"))
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "run.log"))
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	r := &recorder{file: file, out: bufio.NewWriterSize(file, 1<<20), checker: NewChecker(partitions), log: log, began: time.Now(), lastAck: make([]time.Time, partitions), anyAck: time.Now(),
		now: progress{acks: make([]int64, partitions), ackedEnd: make([]int64, partitions), byClient: map[uint32]int64{}}}
	for lib := range r.now.positions {
		r.now.positions[lib] = make([]int64, partitions)
	}
	for p := range r.lastAck {
		r.lastAck[p] = r.began
	}
	return r, nil
}

// add takes an event.
func (r *recorder) add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.buf = e.encode(r.buf[:0])
	if _, err := r.out.Write(r.buf); err != nil && r.err == nil {
		r.err = err
	}
	r.checker.Add(e)
	switch n := &r.now; e.Kind {
	case Acked:
		n.acks[e.Partition]++
		n.total++
		n.byClient[e.Record.Client]++
		n.ackedEnd[e.Partition] = max(n.ackedEnd[e.Partition], e.Offset+1)
		r.ackedLocked(e.Partition)
	case Read, Above:
		n.positions[e.Library][e.Partition] = max(n.positions[e.Library][e.Partition], e.Offset+1)
	case Committed:
		n.commits[e.Who]++
	}
}

func (r *recorder) ackedLocked(partition int32) {
	now := time.Now()
	later := func(a, b time.Time) time.Time {
		if a.After(b) {
			return a
		}
		return b
	}
	for _, w := range r.windows {
		w.worst = max(w.worst, now.Sub(later(r.lastAck[partition], w.start)))
		w.any = max(w.any, now.Sub(later(r.anyAck, w.start)))
	}
	r.lastAck[partition], r.anyAck = now, now
}

// open begins the window of a fault.
func (r *recorder) open(kinds ...string) *window {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := &window{kinds: kinds, start: time.Now()}
	r.windows = append(r.windows, w)
	return w
}

// close ends it.
func (r *recorder) close(w *window) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.windows = slices.DeleteFunc(r.windows, func(o *window) bool { return o == w })
}

// far tells how far everybody is now.
func (r *recorder) far() progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.now
	n.acks, n.ackedEnd = slices.Clone(n.acks), slices.Clone(n.ackedEnd)
	n.byClient = map[uint32]int64{}
	for c, acks := range r.now.byClient {
		n.byClient[c] = acks
	}
	for lib := range n.positions {
		n.positions[lib] = slices.Clone(n.positions[lib])
	}
	return n
}

// broken tells how many promises are broken so far.
func (r *recorder) broken() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.checker.Broken() + int64(len(r.wrongs))
}

// say writes a line into the run's log.
func (r *recorder) say(format string, args ...any) string {
	line := fmt.Sprintf(format, args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.log, "%s %7.2fs %s\n", time.Now().Format("15:04:05.000"), time.Since(r.began).Seconds(), line)
	return line
}

// wrong notes something that must not be and that no event tells.
func (r *recorder) wrong(format string, args ...any) {
	line := r.say("WRONG: "+format, args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrongs = append(r.wrongs, line)
}

// end closes the files and tells the verdict.
func (r *recorder) end() (*Verdict, []string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := errors.Join(r.err, r.out.Flush(), r.file.Close(), r.log.Close())
	return r.checker.Verdict(), r.wrongs, err
}

// behind says what does not go on compared with before: each of these producers, every partition, and
// the consumers and commits of each library. An empty answer means that all do.
func (now *progress) behind(before *progress, clients []uint32) (what []string) {
	for _, c := range clients {
		if now.byClient[c] <= before.byClient[c] {
			what = append(what, fmt.Sprintf("producer %d", c))
		}
	}
	var silent []int
	for p := range now.acks {
		if now.acks[p] <= before.acks[p] {
			silent = append(silent, p)
		}
	}
	if len(silent) > 0 {
		what = append(what, fmt.Sprintf("acknowledgements of partitions %v", silent))
	}
	for lib := range libraries {
		var late []int
		for p, at := range now.positions[lib] {
			if at < before.ackedEnd[p] {
				late = append(late, p)
			}
		}
		if len(late) > 0 {
			what = append(what, fmt.Sprintf("consumers of %s in partitions %v", libraryNames[lib], late))
		}
		if now.commits[lib] <= before.commits[lib] {
			what = append(what, "commits of "+libraryNames[lib])
		}
	}
	return what
}
