package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/services/agent"
)

// node is an agent in this process, and the command line that talks to it.
type node struct {
	t      *testing.T
	agent  *agent.Agent
	dir    string
	bucket string
}

func startNode(t *testing.T) *node {
	t.Helper()
	cfg := agent.Default()
	cfg.DataDir, cfg.KafkaAddr, cfg.AdminAddr, cfg.HTTPAddr = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0", ""
	cfg.WALSize, cfg.MemoryTail, cfg.ReadMemory, cfg.CacheMemory = 16<<20, 16<<20, 16<<20, 128<<20
	a, err := agent.Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, agent: a, dir: cfg.DataDir, bucket: "dir://" + filepath.Join(cfg.DataDir, "bucket")}
	t.Cleanup(n.stop)
	return n
}

// stop ends the agent; a second call does nothing.
func (n *node) stop() {
	if n.agent == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := n.agent.Shutdown(ctx); err != nil {
		n.t.Errorf("shut down: %v", err)
	}
	n.agent = nil
}

// run runs a verb with stdin and returns what it printed and its exit code.
func (n *node) run(stdin string, args ...string) (stdout, stderr string, code int) {
	n.t.Helper()
	var out, errs bytes.Buffer
	if n.agent != nil {
		args = append(args, "--brokers", n.agent.KafkaAddr(), "--admin", n.agent.AdminAddr())
	}
	code = Main(n.t.Context(), args, Options{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs,
		Version: func() (string, string) { return "test", "none" }})
	return out.String(), errs.String(), code
}

// ok runs a verb that must succeed.
func (n *node) ok(stdin string, args ...string) string {
	n.t.Helper()
	out, errs, code := n.run(stdin, args...)
	if code != exitOK {
		n.t.Fatalf("%s: exit code %d\n%s", strings.Join(args, " "), code, errs)
	}
	return out
}

// until repeats f for 20 s until it is true.
func (n *node) until(what string, f func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("waited 20 s for %s", what)
		}
	}
}

// lines are n different lines of about 250 bytes.
func lines(prefix string, n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s%d %x\n", prefix, i, sha256.Sum256([]byte{byte(r.Uint32()), byte(r.Uint32()), byte(i), byte(i >> 8)}))
	}
	return b.String()
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %d bytes with SHA-256 %x, want %d with %x", what, len(got), sha256.Sum256([]byte(got)), len(want), sha256.Sum256([]byte(want)))
	}
}

// storage is what topic storage says of all partitions.
func (n *node) storage(topic string) (s topicStorage) {
	n.t.Helper()
	if err := json.Unmarshal([]byte(n.ok("", "topic", "storage", topic, "-o", "json")), &s); err != nil {
		n.t.Fatal(err)
	}
	return s
}

// TestMainJob creates a topic, produces, and gets every record back: by consume,
// by replay through the broker, and straight from the bucket with the agent stopped.
func TestMainJob(t *testing.T) {
	n := startNode(t)
	n.ok("", "topic", "create", "orders", "-p", "2", "-c", "segment.bytes=1MiB", "-c", "local.retention.bytes=1MiB")
	first, second := lines("a", 20_000), lines("b", 5_000)
	n.ok(first, "produce", "orders", "-p", "0", "-z", "zstd", "--batch-max", "64KiB")
	n.ok(strings.TrimSuffix(second, "\n"), "produce", "orders", "-p", "1", "--batch-max", "64KiB") // no newline at the end
	all := first + second

	same(t, "consume -p 0", n.ok("", "consume", "orders", "-p", "0", "-e"), first)
	same(t, "consume -p 1", n.ok("", "consume", "orders", "-p", "1", "-e"), second)
	same(t, "replay", n.ok("", "replay", "orders"), all)
	last := n.ok("", "consume", "orders", "-p", "1", "-e", "-o", "-2", "-f", "%o\n")
	same(t, "the last two offsets", last, "4998\n4999\n")

	resp, err := http.Post("http://"+n.agent.AdminAddr()+"/v1/topics/orders/roll", "", nil)
	if err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatal(resp, err)
	}
	_ = resp.Body.Close()
	n.until("all to be tiered", func() bool {
		for _, p := range n.storage("orders").Partitions {
			if p.TieredEnd < p.HighWatermark {
				return false
			}
		}
		return true
	})
	var plan replayPlan
	if err := json.Unmarshal([]byte(n.ok("", "replay", "orders", "--plan", "--bucket", n.bucket, "-o", "json")), &plan); err != nil {
		t.Fatal(err)
	}
	if plan.Offsets != 25_000 || plan.Gets < 2*int64(len(plan.Segments)) || len(plan.Segments) < 2 {
		t.Errorf("plan of everything: %d offsets, %d GETs, %d segments", plan.Offsets, plan.Gets, len(plan.Segments))
	}
	key := plan.Segments[0].Key
	if out := n.ok("", "segment", "dump", "--bucket", n.bucket, key); !strings.Contains(out, "baseOffset: 0 ") || strings.Contains(out, "isvalid: false") {
		t.Errorf("segment dump:\n%.500s", out)
	}
	n.ok("", "segment", "verify", "--bucket", n.bucket, key)
	n.stop()
	ring := filepath.Join(n.dir, "wal", "ring.wal")
	n.ok("", "segment", "verify", ring)
	n.ok("", "segment", "dump", ring)
	same(t, "replay from the bucket", n.ok("", "replay", "orders", "--bucket", n.bucket), all)
	part := n.ok("", "replay", "orders", "--bucket", n.bucket, "-p", "0", "--from", "7", "--to", "9", "-f", "%o %v\n")
	rows := strings.SplitAfter(first, "\n")
	same(t, "two records from the bucket", part, "7 "+rows[7]+"8 "+rows[8])
}

// TestReplayGoesOn interrupts a replay by a broken output and by bytes behind
// what the checkpoint says, and gets every record once.
func TestReplayGoesOn(t *testing.T) {
	n := startNode(t)
	n.ok("", "topic", "create", "t")
	want := lines("r", 3_000)
	n.ok(want, "produce", "t")
	dir := t.TempDir()
	file, ckpt := filepath.Join(dir, "out"), filepath.Join(dir, "ckpt")
	args := []string{"replay", "t", "--to-file", file, "--checkpoint", ckpt, "--checkpoint-interval", "0"}

	n.ok("", args...)
	c, err := readCheckpoint(ckpt)
	if err != nil || !c.Done || c.Records != 3000 || c.FileSize != int64(len(want)) {
		t.Fatalf("checkpoint at the end: %+v, %v", c, err)
	}
	// As after a crash: the checkpoint is from the middle, the file has more.
	at := strings.Index(want, "r1000 ")
	c.Done, c.Records, c.FileSize, c.Ranges[0].From = false, 1000, int64(at), 1000
	if err := c.write(ckpt); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, int64(at)+77); err != nil {
		t.Fatal(err)
	}
	n.ok(lines("late", 10), "produce", "t") // behind the end that was fixed at the start
	n.ok("", args...)
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "resumed replay", string(got), want)

	if _, stderr, code := n.run("", append(args, "--from", "5")...); code != exitUsage {
		t.Errorf("the checkpoint of another replay: exit code %d, %s", code, stderr)
	}
	c.Done = false
	c.FileSize = int64(len(want)) + 1
	if err := c.write(ckpt); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := n.run("", args...); code != exitError || !strings.Contains(stderr, "another file") {
		t.Errorf("a file that is too short: exit code %d, %s", code, stderr)
	}
}

func TestReplayToTopic(t *testing.T) {
	n := startNode(t)
	n.ok("", "topic", "create", "from", "-p", "2")
	n.ok("", "topic", "create", "to", "-p", "2")
	n.ok("k1 v1\nk2 v2\nk3 v3\n", "produce", "from", "-f", `%k %v\n`, "-H", "h:x", "-p", "1")
	n.ok("", "replay", "from", "--to-topic", "to", "-z", "lz4")
	const format = `%p %k %v %d %h{%k=%v}\n`
	same(t, "the copy", n.ok("", "consume", "to", "-e", "-f", format), n.ok("", "consume", "from", "-e", "-f", format))
	if _, _, code := n.run("", "replay", "from", "--to-topic", "from"); code != exitUsage {
		t.Errorf("a topic into itself: exit code %d, want %d", code, exitUsage)
	}
}

func TestExitCodes(t *testing.T) {
	n := startNode(t)
	n.ok("", "topic", "create", "there")
	for _, c := range []struct {
		code  int
		stdin string
		args  []string
		want  string // in stderr
	}{
		{exitPartial, "", []string{"topic", "create", "there", "new"}, "already exists"},
		{exitError, "", []string{"topic", "create", "a/b"}, "invalid topic name"},
		{exitError, "", []string{"topic", "describe", "nope"}, "nope"},
		{exitError, "", []string{"topic", "storage", "nope"}, "nope"},
		{exitError, "", []string{"topic", "config", "there", "--set", "bogus=1"}, "bogus"},
		{exitError, "n\n", []string{"topic", "rm", "there"}, "not confirmed"},
		{exitUsage, "", []string{"topic"}, "verb"},
		{exitUsage, "", []string{"topic", "ls", "-o", "xml"}, "xml"},
		{exitUsage, "", []string{"topic", "create"}, "requires"},
		{exitUsage, "", []string{"consume", "there", "-o", "x"}, "offset"},
		{exitUsage, "", []string{"consume", "there", "-p", "3", "-e"}, "no partition 3"},
		{exitUsage, "", []string{"produce", "there", "-z", "zip"}, "zip"},
		{exitUsage, "", []string{"ls", "--bogus"}, ""},
		{exitError, "", []string{"consume", "nope", "-e"}, "nope"},
		{exitOK, "", []string{"topic", "rm", "there", "--dry-run"}, "1 partitions"},
		{exitOK, "", []string{"topic", "rm", "there", "--yes"}, ""},
		{exitError, "", []string{"replay", "there", "--bucket", n.bucket}, "unknown topic"},
	} {
		if _, stderr, code := n.run(c.stdin, c.args...); code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: exit code %d, want %d, stderr %q, want %q in it", c.args, code, c.code, stderr, c.want)
		}
	}
	t.Setenv("CIRROLOG_BROKERS", n.agent.KafkaAddr())
	var comp bytes.Buffer
	Main(t.Context(), []string{"__complete", "topic", "describe", ""}, Options{Stdout: &comp, Stderr: io.Discard})
	if !strings.HasPrefix(comp.String(), "new\n") {
		t.Errorf("completion: %q, want topic new", comp.String())
	}
	if out := n.ok("", "topic", "ls", "-o", "yaml"); !strings.HasPrefix(out, "- name: new\n  id: ") {
		t.Errorf("yaml: %q", out)
	}
}
