package chaos

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// driver is a process of driver.py: a client of librdkafka.
type driver struct {
	name  string
	who   uint16
	rec   *recorder
	proc  *testenv.Process
	stdin io.WriteCloser
	read  chan struct{} // closed when all that it said was read

	pulse   atomic.Int64 // when a consumer said that it goes on, ns since 1970
	mu      sync.Mutex
	client  uint32
	stopped bool
	left    int // records that were never answered; after its end
}

// python is the interpreter that has the client library.
func python(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(testenv.Root(), ".cache", "clients", "python")
	if _, err := os.Stat(filepath.Join(dir, "stamp")); err != nil {
		testenv.Missing(t, "confluent-kafka of Python")
	}
	return filepath.Join(dir, "bin", "python")
}

// startDriver starts a client; its stderr goes to dir.
func startDriver(t testing.TB, rec *recorder, dir, name string, who uint16, args ...string) (*driver, error) {
	t.Helper()
	d := &driver{name: name, who: who, rec: rec, read: make(chan struct{})}
	d.pulse.Store(time.Now().UnixNano())
	if args[0] == "produce" {
		d.client = rec.clients.Add(1)
		args = append(args, strconv.FormatUint(uint64(d.client), 10))
	}
	cmd := exec.Command(python(t), append([]string{filepath.Join(testenv.Root(), "localstack", "chaos", "driver.py")}, args...)...)
	stderr, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer stderr.Close() // the process has its own
	cmd.Stderr = stderr
	// Pipes of our own: those of exec are closed by Wait, which may come before the last line is read.
	out, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	inR, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stdin, d.stdin = outW, inR, in
	if d.proc, err = testenv.StartProcess(cmd); err != nil {
		return nil, err
	}
	_, _ = outW.Close(), inR.Close()
	go d.listen(out)
	return d, nil
}

func (d *driver) listen(out *os.File) {
	defer close(d.read)
	defer out.Close()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if err := d.line(strings.Fields(lines.Text())); err != nil {
			d.rec.wrong("%s says %q: %v", d.name, lines.Text(), err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.stopped {
		d.rec.wrong("%s ended by itself", d.name)
	}
}

// line takes a line of its protocol; see driver.py.
func (d *driver) line(w []string) error {
	if len(w) < 2 {
		return fmt.Errorf("no event")
	}
	switch w[0] {
	case "P":
		d.pulse.Store(time.Now().UnixNano())
		return nil
	case "E":
		d.rec.wrong("%s: %s", d.name, strings.Join(w[1:], " "))
		return nil
	case "I":
		d.rec.say("%s: %s", d.name, strings.Join(w[1:], " "))
		return nil
	}
	var n [5]int64
	for i, s := range w[1:min(len(w), 6)] {
		if w[0] == "U" && i == 3 {
			if !strings.HasPrefix(s, "_PURGE") {
				d.rec.say("%s: a record of partition %s is given up: %s", d.name, w[2], s)
			}
			break
		}
		var err error
		if n[i], err = strconv.ParseInt(s, 10, 64); err != nil {
			return err
		}
	}
	e := Event{Library: Librdkafka, Who: d.who, Partition: int32(n[0]), Offset: n[1]}
	switch w[0] {
	case "A":
		e = Event{Kind: Acked, Library: Librdkafka, Partition: int32(n[1]), Record: Record{uint32(n[0]), uint32(n[2])}, Offset: n[3], Sum: uint32(n[4])}
	case "U":
		e = Event{Kind: Unknown, Library: Librdkafka, Partition: int32(n[1]), Record: Record{uint32(n[0]), uint32(n[2])}}
		if d.current() == e.Record.Client && !strings.HasPrefix(w[4], "_PURGE") {
			d.rec.wrong("%s: a record of partition %d is given up: %s", d.name, e.Partition, w[4])
		}
	case "N":
		e.Kind, e.Offset = Assigned, 0
	case "R":
		e.Kind, e.Record, e.Sum = Read, Record{uint32(n[2]), uint32(n[3])}, uint32(n[4])
	case "G":
		e.Kind = Garbled
	case "C":
		e.Kind, e.Who = Committed, uint16(Librdkafka)
	case "S":
		d.mu.Lock()
		defer d.mu.Unlock()
		d.stopped, d.left = true, int(n[0])
		return nil
	default:
		return fmt.Errorf("no event")
	}
	d.rec.add(e)
	return nil
}

func (d *driver) current() uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.client
}

// recycle makes a producer give up what is outstanding and go on as another client.
func (d *driver) recycle() error {
	d.mu.Lock()
	d.client = d.rec.clients.Add(1)
	n := d.client
	d.mu.Unlock()
	_, err := fmt.Fprintf(d.stdin, "recycle %d\n", n)
	return err
}

// hungAfter is how long a consumer may stand still. librdkafka may deadlock for good when a broker goes while a query for the
// end of an epoch is under way (its issue 5476, open); what it has read until then counts.
const hungAfter = 20 * time.Second

// hung tells whether a consumer stands still.
func (d *driver) hung() bool { return time.Since(time.Unix(0, d.pulse.Load())) > hungAfter }

// leave makes a consumer end, and kills it when it does not: by then it is known that its group has read everything.
func (d *driver) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := d.finish(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	d.rec.say("%s does not end, and is killed: librdkafka's issue 5476?", d.name)
	d.kill()
	return nil
}

// finish makes it end, and waits.
func (d *driver) finish(ctx context.Context) error {
	if _, err := io.WriteString(d.stdin, "stop\n"); err != nil {
		return fmt.Errorf("stop %s: %w", d.name, err)
	}
	select {
	case <-d.read:
	case <-ctx.Done():
		return fmt.Errorf("%s did not end: %w", d.name, ctx.Err())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.left > 0 {
		return fmt.Errorf("%s: %d records were never answered", d.name, d.left)
	}
	return nil
}

// kill ends it at once.
func (d *driver) kill() {
	d.mu.Lock()
	d.stopped = true
	d.mu.Unlock()
	_ = d.proc.Kill()
	_ = d.stdin.Close()
	select {
	case <-d.read:
	case <-time.After(10 * time.Second):
	}
}
