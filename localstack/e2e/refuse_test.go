package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// refuseLimit bounds a start that must be refused.
const refuseLimit = 30 * time.Second

// refuseRun runs `cirrolog args…`, which must end by itself with exit code
// code and one line of output, and returns that line.
func refuseRun(t *testing.T, code int, env []string, args ...string) string {
	t.Helper()
	cmd := command(t, env, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(refuseLimit, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !late.Stop() {
		t.Fatalf("cirrolog %s still ran after %v:\n%s", strings.Join(args, " "), refuseLimit, out.String())
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("cirrolog %s: %v, want exit code %d", strings.Join(args, " "), err, code)
	}
	line, rest, _ := strings.Cut(out.String(), "\n")
	if line == "" || rest != "" {
		t.Errorf("cirrolog %s printed, where one line is wanted:\n%s", strings.Join(args, " "), out.String())
	}
	return line
}

// refused runs the node's command line, which must be refused.
func (n *Node) refused(t *testing.T) string {
	t.Helper()
	return refuseRun(t, 1, n.o.Env, n.args()...)
}

// says wants all words in the line.
func says(t *testing.T, line string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(line, w) {
			t.Errorf("the error is\n  %s\nwant in it %q", line, w)
		}
	}
}

// treeSums lists the files below directories with their checksums; what is not
// there is an empty list.
func treeSums(t *testing.T, dirs ...string) []byte {
	t.Helper()
	var b strings.Builder
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			sum := sha256.New()
			n, err := io.Copy(sum, f)
			fmt.Fprintf(&b, "%s %d %x\n", path, n, sum.Sum(nil))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return []byte(b.String())
}

// unchanged returns a function that wants the directories as they are now.
func unchanged(t *testing.T, dirs ...string) func() {
	t.Helper()
	before := treeSums(t, dirs...)
	return func() {
		t.Helper()
		if after := treeSums(t, dirs...); string(after) != string(before) {
			t.Errorf("the refused start changed the files from\n%s\nto\n%s", before, after)
		}
	}
}

// refuseTopic is what the tests write to see that nothing is lost.
const refuseTopic = "kept"

// writeSome produces a few values to refuseTopic.
func writeSome(t *testing.T, n *Node, values ...string) {
	t.Helper()
	cmd := command(t, nil, "produce", refuseTopic, "--brokers", n.Kafka)
	cmd.Stdin = strings.NewReader(strings.Join(values, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("produce: %v: %s", err, out)
	}
}

// readSome wants exactly the values in refuseTopic.
func readSome(t *testing.T, n *Node, values ...string) {
	t.Helper()
	var out strings.Builder
	if err := n.CLI(&out, "consume", refuseTopic, "-e"); err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(values, "\n") + "\n"; out.String() != want {
		t.Errorf("%s has %q, want %q", refuseTopic, out.String(), want)
	}
}

// dirNode is a node on a directory bucket beside its data.
func dirNode(t *testing.T, idle bool) (n *Node, bucket string) {
	t.Helper()
	bucket = filepath.Join(t.TempDir(), "bucket")
	n = idleNode(t, NodeOptions{Args: []string{"--bucket", "dir://" + bucket}})
	if !idle {
		n.Start()
	}
	return n, bucket
}

func TestRefuseDirectoryInUse(t *testing.T) {
	n, bucket := dirNode(t, false)
	writeSome(t, n, "one", "two")
	other := idleNode(t, NodeOptions{Args: []string{"--bucket", "dir://" + bucket}})
	other.Dir = n.Dir
	same := unchanged(t, bucket)
	says(t, other.refused(t), "in use by another process", n.Dir, "stop", "--data-dir")
	same()
	n.MustRun()
	readSome(t, n, "one", "two")
	// The second start must not have taken the lock away: a third is refused too.
	says(t, other.refused(t), "in use by another process")
	n.Kill() // a killed process leaves no lock behind
	n.Start()
	readSome(t, n, "one", "two")
	n.Stop()
}

func TestRefuseOtherCluster(t *testing.T) {
	a, bucketA := dirNode(t, false)
	b, bucketB := dirNode(t, false)
	writeSome(t, a, "of a")
	writeSome(t, b, "of b")
	a.Stop()
	b.Stop()
	empty := filepath.Join(t.TempDir(), "empty")
	for _, c := range []struct {
		name, bucket string
		words        []string
	}{
		{"bucket of another cluster", bucketB, []string{"bucket belongs to cluster", "data directory"}},
		{"bucket without a cluster", empty, []string{"bucket has no cluster", "check the bucket's name"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			own := a.o.Args
			a.o.Args = []string{"--bucket", "dir://" + c.bucket}
			same := unchanged(t, a.Dir, c.bucket)
			says(t, a.refused(t), c.words...)
			same()
			a.o.Args = own
		})
	}
	t.Run("new data directory", func(t *testing.T) {
		c := idleNode(t, NodeOptions{Args: []string{"--bucket", "dir://" + bucketA}})
		same := unchanged(t, bucketA)
		says(t, c.refused(t), "run with the original data directory", "another bucket or prefix")
		same()
	})
	for n, value := range map[*Node]string{a: "of a", b: "of b"} {
		n.Start()
		readSome(t, n, value)
		n.Stop()
	}
}

func TestRefuseOtherFormat(t *testing.T) {
	n, bucket := dirNode(t, false)
	writeSome(t, n, "one")
	n.Stop()
	for _, path := range []string{filepath.Join(n.Dir, "disk.json"), filepath.Join(bucket, "meta", "cluster")} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			bad := strings.Replace(strings.Replace(string(good), `"format": 1`, `"format": 77`, 1), `"format":1`, `"format":77`, 1)
			if bad == string(good) {
				t.Fatalf("%s has no format:\n%s", path, good)
			}
			if err := os.WriteFile(path, []byte(bad), 0o644); err != nil {
				t.Fatal(err)
			}
			same := unchanged(t, n.Dir, bucket)
			says(t, n.refused(t), "format", "77", "version")
			same()
			if err := os.WriteFile(path, good, 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
	n.Start()
	readSome(t, n, "one")
	n.Stop()
}

func TestRefusePortInUse(t *testing.T) {
	n, _ := dirNode(t, false)
	for _, c := range []struct{ flag, addr string }{{"--kafka-addr", n.Kafka}, {"--admin-addr", n.Admin}} {
		other, bucket := dirNode(t, true)
		other.o.Args = append(other.o.Args, c.flag, c.addr)
		says(t, other.refused(t), c.addr, "address already in use", c.flag)
		for _, dir := range []string{other.Dir, bucket} {
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the refused start made %s: %v", dir, err)
			}
		}
	}
	n.MustRun()
	n.Stop()
}

// mountLimit bounds mount and umount.
const mountLimit = 10 * time.Second

// mounted runs mount or umount; what is in the way is returned.
func mounted(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), mountLimit)
	defer cancel()
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
