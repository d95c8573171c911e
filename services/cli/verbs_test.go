package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/cirrolog/cirrolog/services/agent"
)

// options are those of a program without a terminal.
func options(stdin io.Reader, stdout, stderr io.Writer) Options {
	return Options{Stdin: stdin, Stdout: stdout, Stderr: stderr, ServeDefaults: agent.Default(),
		Version: func() (string, string) { return "v1", "abc" },
		Serve: func(_ context.Context, cfg agent.Config, _ *slog.Logger) error {
			return fmt.Errorf("%w: --data-dir %s", agent.ErrConfig, cfg.DataDir)
		}}
}

// TestMistakes: each mistake has its exit code and one line that says what, where
// and what to do. No node is running.
func TestMistakes(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for _, c := range []struct {
		args string
		env  string
		code int
		want string
	}{
		{args: "topic lss", code: exitUsage, want: "unknown verb \"lss\", the nearest is `cirrolog topic ls`"},
		{args: "topic", code: exitUsage, want: "needs a verb"},
		{args: "group describ x", code: exitUsage, want: "the nearest is `cirrolog group describe`"},
		{args: "group offset-delete g", code: exitUsage, want: "--topic"},
		{args: "cluster abandon-disk x", code: exitUsage, want: "`cirrolog cluster disks` lists them"},
		{args: "segment dmp x", code: exitUsage, want: "the nearest is `cirrolog segment dump`"},
		{args: "bench e2", code: exitUsage, want: "the nearest is `cirrolog bench e2e`"},
		{args: "tpoic ls", code: exitUsage, want: "topic"},
		{args: "topic ls --brokrs x", code: exitUsage, want: "the nearest is --brokers"},
		{args: "topic ls", env: "CIRROLOG_BROKER=h:1", code: exitUsage, want: "unknown variable CIRROLOG_BROKER, the nearest is CIRROLOG_BROKERS"},
		{args: "version", env: "CIRROLOG_WAL_SIZE=1GiB", code: exitOK},
		{args: "version extra", code: exitUsage, want: "extra"},
		{args: "version -o xml", code: exitUsage, want: "want table, json or yaml"},
		{args: "serve --data-dir x", code: exitUsage, want: "--data-dir x"},
		{args: "topic ls --brokers 127.0.0.1:1", code: exitError, want: "`cirrolog serve` starts one"},
		{args: "topic storage x --admin 127.0.0.1:1", code: exitError, want: "--admin"},
		{args: "replay x --from 5 --to 3", code: exitUsage, want: "ends before it begins"},
		{args: "replay x --from-time -1h --to-time -2h", code: exitUsage, want: "ends before it begins"},
		{args: "replay x --to-file a --to-topic b", code: exitUsage, want: "can't be given together"},
		{args: "replay x --bucket dir://" + none, code: exitError, want: "dir://DATA-DIR/bucket"},
		{args: "segment verify --bucket dir://" + none + " data/x", code: exitError, want: "dir://DATA-DIR/bucket"},
		{args: "segment verify data/x/0/1-2-3-4", code: exitError, want: "give its bucket with --bucket"},
		{args: "produce x -z zip", code: exitUsage, want: "want none, gzip, snappy, lz4 or zstd"},
	} {
		t.Run(c.args, func(t *testing.T) {
			if k, v, ok := strings.Cut(c.env, "="); ok {
				t.Setenv(k, v)
			}
			var out, errs bytes.Buffer
			code := Main(t.Context(), strings.Fields(c.args), options(strings.NewReader(""), &out, &errs))
			if code != c.code || !strings.Contains(errs.String(), c.want) {
				t.Errorf("exit code %d, want %d, and %q in:\n%s", code, c.code, c.want, errs.String())
			}
		})
	}
	if _, err := os.Stat(none); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a verb that reads made the bucket: %v", err)
	}
}

// TestOutputs reads what every verb with -o prints.
func TestOutputs(t *testing.T) {
	n := startNode(t)
	n.ok("a\nb\n", "produce", "orders")
	dir := t.TempDir()
	for _, v := range []string{
		"topic ls", "topic describe orders", "topic config orders --all", "topic storage orders", "topic trim orders --before 1 --yes",
		"segment ls orders", "replay orders --plan", "version", "doctor --data-dir " + dir,
		"bench produce -d 100ms --size 100 -t b1", "bench consume -d 100ms --size 100B -t b2", "bench e2e -d 200ms --rate 100 -t b3",
		"topic create made-%s -p 2", "topic create dry --dry-run",
		"group reset g --topic orders --to-latest --yes", "group ls", "group describe g", "group offset-delete g --topic orders --dry-run",
	} {
		for _, form := range []string{"json", "yaml", "table"} {
			args := strings.Fields(strings.ReplaceAll(v, "%s", form))
			out := n.ok("", append(args, "-o", form)...)
			var any any
			var err error
			switch form {
			case "json":
				err = json.Unmarshal([]byte(out), &any)
			case "yaml":
				if err = yaml.Unmarshal([]byte(out), &any); strings.HasPrefix(out, "{") {
					err = errors.New("it is JSON")
				}
			case "table":
				if head, _, _ := strings.Cut(out, "\n"); head != strings.ToUpper(head) {
					err = errors.New("no header")
				}
			}
			if err != nil || out == "" || form != "table" && any == nil {
				t.Errorf("%s -o %s: %v in:\n%s", v, form, err, out)
			}
		}
	}
	if out := n.ok("", "topic", "ls", "-o", "json"); strings.Contains(out, `"b1"`) || strings.Contains(out, `"dry"`) || !strings.Contains(out, "made-yaml") {
		t.Errorf("topics in the end: %s", out)
	}
}

// TestVerifyWhatANodeLeaves stops a node in the middle of a segment: every file
// of it is whole, also the active segment that goes on in the write-ahead log;
// a flipped byte of a file of the bucket is found.
func TestVerifyWhatANodeLeaves(t *testing.T) {
	n := startNode(t)
	n.ok("", "topic", "create", "orders", "-p", "1", "-c", "segment.bytes=1MiB")
	n.ok(lines("a", 50_000), "produce", "orders", "--batch-max", "300KB")
	n.until("an upload", func() bool { return n.storage("orders").Partitions[0].TieredEnd > 0 })
	key := regexp.MustCompile(`data/\S+`).FindString(n.ok("", "segment", "ls", "orders"))
	n.stop()
	var files, objects []string
	err := filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
		switch ext := filepath.Ext(path); {
		case err != nil || d.IsDir():
		case strings.Contains(path, "/objects/data+/"):
			objects = append(objects, path)
		case ext == ".log" || ext == ".idx" || ext == ".wal":
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(objects) == 0 || len(files) < 4 {
		t.Fatal(err, files, objects)
	}
	out := n.ok("", append([]string{"segment", "verify"}, append(files, objects...)...)...)
	t.Log(out)
	if strings.Count(out, "  object ") != len(objects) || !strings.Contains(out, "wal ring") {
		t.Errorf("kinds of files:\n%s", out)
	}
	n.ok("", "segment", "verify", "--bucket", n.bucket, key)
	if out := n.ok("", "segment", "dump", objects[0]); !strings.Contains(out, "isvalid: true") || strings.Contains(out, "invalid bytes") {
		t.Errorf("dump of an object:\n%.1000s", out)
	}
	b, err := os.ReadFile(objects[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, errs, code := n.run("", "segment", "verify", bad); code != exitError {
		t.Errorf("verify of damage: exit code %d\n%s%s", code, out, errs)
	}
	// A batch that is cut in a segment without its .idx has its end in the ring;
	// one that is damaged is not excused, be it by the ring.
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !strings.HasSuffix(f, ".log") {
			continue
		}
		b[70] ^= 1 // in the first batch's records: a changed length would look like a cut
		if !slices.Contains(files, strings.TrimSuffix(f, "log")+"idx") {
			if err := os.WriteFile(f, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, _, code := n.run("", "segment", "verify", filepath.Join(n.dir, "wal", "ring.wal")); code != exitError || !strings.Contains(out, filepath.Base(f)) {
				t.Errorf("verify of a ring beside a damaged active segment: exit code %d\n%s", code, out)
			}
			continue
		}
		bad := filepath.Join(t.TempDir(), filepath.Base(f))
		if err := os.WriteFile(bad, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, _, code := n.run("", "segment", "verify", bad); code != exitError {
			t.Errorf("verify of a damaged active segment: exit code %d\n%s", code, out)
		}
	}
}

// TestProduceGivesUp loses the node while records are on the way: produce ends
// after its --timeout instead of waiting for ever.
func TestProduceGivesUp(t *testing.T) {
	n := startNode(t)
	n.ok("", "topic", "create", "orders")
	brokers, admin := n.agent.KafkaAddr(), n.agent.AdminAddr()
	in, feed := io.Pipe()
	var errs bytes.Buffer
	done := make(chan int, 1)
	go func() {
		done <- Main(t.Context(), []string{"produce", "orders", "--timeout", "2s", "--brokers", brokers, "--admin", admin}, options(in, io.Discard, &errs))
	}()
	stop := make(chan struct{})
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		for {
			select {
			case <-stop:
				_ = feed.Close()
				return
			default:
				if _, err := io.WriteString(feed, strings.Repeat("x", 200)+"\n"); err != nil {
					return
				}
			}
		}
	}()
	n.until("records", func() bool { return n.storage("orders").Partitions[0].HighWatermark > 1000 })
	n.stop()
	time.Sleep(100 * time.Millisecond) // some more are on the way
	close(stop)
	select {
	case code := <-done:
		if code != exitPartial || !strings.Contains(errs.String(), "records were not produced") {
			t.Errorf("exit code %d, want %d\n%s", code, exitPartial, errs.String())
		}
	case <-time.After(60 * time.Second):
		t.Error("produce still waits for a node that is gone")
	}
	_ = in.Close()
	<-fed
}

// terminal returns both ends of a pseudo-terminal.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here:", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	no, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", no), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

// TestProgress: replay shows its progress on a terminal, but not among records
// that are printed on it.
func TestProgress(t *testing.T) {
	n := startNode(t)
	n.ok(lines("a", 2000), "produce", "orders")
	for _, c := range []struct {
		name string
		args []string
		tty  bool // stdout is the terminal too
		want bool
	}{
		{"file", []string{"--to-file", filepath.Join(t.TempDir(), "f")}, true, true},
		{"pipe", nil, false, true},
		{"records on the terminal", []string{"--to", "3"}, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			master, slave := terminal(t)
			var shown bytes.Buffer
			read := make(chan struct{})
			go func() {
				defer close(read)
				_, _ = io.Copy(&shown, master) // ends with an error when the slave is closed
			}()
			o := options(strings.NewReader(""), io.Discard, slave)
			if c.tty {
				o.Stdout = slave
			}
			args := append([]string{"replay", "orders", "--brokers", n.agent.KafkaAddr(), "--admin", n.agent.AdminAddr()}, c.args...)
			code := Main(t.Context(), args, o)
			_ = slave.Close()
			<-read
			if got := strings.Contains(shown.String(), "offsets/"); code != exitOK || got != c.want || !strings.Contains(shown.String(), "replayed") {
				t.Errorf("exit code %d, progress %v, want %v:\n%q", code, got, c.want, shown.String())
			}
		})
	}
}
