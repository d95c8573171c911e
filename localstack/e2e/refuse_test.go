package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/bucketurl"
)

// refuseLimit bounds a start that must be refused.
const refuseLimit = 30 * time.Second

// refuseRun runs `cirrolog args…`, which must end by itself with exit code
// code (-1: any but 0) and one line of output, and returns that line.
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
	if !errors.As(err, &exit) || code >= 0 && exit.ExitCode() != code {
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
			if err != nil || !d.Type().IsRegular() || d.Name() == "lock" {
				return err // the directory bucket's own lock is no content
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
	disk := filepath.Join(n.Dir, "disk.json")
	b, err := bucketurl.Open(t.Context(), "dir://"+bucket, bucketurl.Options{FS: vfs.OS()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = objstore.Close(b) }()
	for _, c := range []struct {
		name  string
		read  func() ([]byte, error)
		write func([]byte) error
	}{
		{"data directory", func() ([]byte, error) { return os.ReadFile(disk) }, func(v []byte) error { return os.WriteFile(disk, v, 0o644) }},
		{"bucket", func() ([]byte, error) {
			r, _, err := b.Get(t.Context(), clusterObject, 0, -1)
			if err != nil {
				return nil, err
			}
			v, err := io.ReadAll(r)
			return v, errors.Join(err, r.Close())
		}, func(v []byte) error {
			_, err := b.Put(t.Context(), clusterObject, bytes.NewReader(v), objstore.PutOptions{})
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			good, err := c.read()
			if err != nil {
				t.Fatal(err)
			}
			bad := regexp.MustCompile(`"format": ?1\b`).ReplaceAll(good, []byte(`"format":77`))
			if bytes.Equal(bad, good) {
				t.Fatalf("there is no format in\n%s", good)
			}
			if err := c.write(bad); err != nil {
				t.Fatal(err)
			}
			same := unchanged(t, n.Dir, bucket)
			says(t, n.refused(t), "format", "77", "version")
			same()
			if err := c.write(good); err != nil {
				t.Fatal(err)
			}
		})
	}
	n.Start()
	readSome(t, n, "one")
	n.Stop()
}

// clusterObject is the object that founds a cluster.
const clusterObject = "meta/cluster"

func TestRefusePortInUse(t *testing.T) {
	n, _ := dirNode(t, false)
	for _, c := range []struct{ flag, addr string }{{"--kafka-addr", n.Kafka}, {"--admin-addr", n.Admin}} {
		other, bucket := dirNode(t, true)
		other.o.Args = append(other.o.Args, c.flag, c.addr)
		says(t, other.refused(t), c.addr, "address already in use", c.flag)
		noDirs(t, other.Dir, bucket)
	}
	n.MustRun()
	n.Stop()
}

// noDirs wants that none of the directories is there.
func noDirs(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the refused start made %s: %v", dir, err)
		}
	}
}

// TestRefuseSettings gives wrong flags, variables and keys: the error names the
// nearest one there is, or what the value should be. Nothing is made.
func TestRefuseSettings(t *testing.T) {
	n, bucket := dirNode(t, true)
	for _, c := range []struct {
		args, env []string
		yaml      string
		words     []string
	}{
		{args: []string{"--retention-intervall", "3s"}, words: []string{"unknown flag --retention-intervall", "nearest is --retention-interval"}},
		{env: []string{"CIRROLOG_KAFKA_ADR=x:1"}, words: []string{"CIRROLOG_KAFKA_ADR", "nearest is CIRROLOG_KAFKA_ADDR"}},
		{yaml: "wal_size: 64MiB", words: []string{"c.yaml", "wal_size", "nearest is wal-size"}},
		{yaml: "cache: {memory: 1GB}", words: []string{"c.yaml", "cache.memory", "nearest is cache-memory"}},
		{yaml: "\tx", words: []string{"c.yaml"}},
		{args: []string{"--sweep-grace", "5"}, words: []string{"--sweep-grace", `"5"`, "want a number with a unit", "1h30m"}},
		{args: []string{"--cache-size", "big"}, words: []string{"--cache-size", `"big"`, "want a number with a unit", "512MiB"}},
		{args: []string{"--cache-size", "-1"}, words: []string{"--cache-size", `"-1"`, "want a number with a unit"}},
		{args: []string{"--wal-size", "1MiB"}, words: []string{"--wal-size", "at least 16MiB"}},
		{args: []string{"--cache-memory", "1MiB"}, words: []string{"--cache-memory", "at least 128MiB"}},
		{args: []string{"--disk-budget", "65MiB"}, words: []string{"--disk-budget", "at least twice --wal-size"}},
		{args: []string{"--node-id", "one"}, words: []string{"--node-id", `"one" is not a whole number`}},
		{args: []string{"--node-id", "99999999999"}, words: []string{"--node-id", "out of range"}},
		{args: []string{"--auto-create=maybe"}, words: []string{"--auto-create", `"maybe"`, "true or false"}},
		{args: []string{"--max-connections", "-5"}, words: []string{"--max-connections", "-5", "1 or greater"}},
		{args: []string{"--kafka-addr", "9092"}, words: []string{"--kafka-addr", "HOST:PORT"}},
		{args: []string{"--log-level", "chatty"}, words: []string{"--log-level", "debug, info, warn or error"}},
		{args: []string{"--topic-config", "retention.ms=soon"}, words: []string{"--topic-config", "retention.ms", "soon", "at least -1"}},
		{args: []string{"--bucket", "s4://b"}, words: []string{"s4", "did you mean"}},
		{args: []string{"--bucket", "s3://b?endpont=http://x"}, words: []string{"endpont", `did you mean "endpoint"`}},
		{env: []string{"CIRROLOG_SWEEP_INTERVAL=1 fortnight"}, words: []string{"CIRROLOG_SWEEP_INTERVAL", "1 fortnight", "want a number with a unit"}},
		{yaml: "sweep-interval: soon", words: []string{"c.yaml: sweep-interval", "soon", "want a number with a unit"}},
	} {
		t.Run(c.words[0], func(t *testing.T) {
			args := append(n.args(), c.args...)
			if c.yaml != "" {
				path := filepath.Join(t.TempDir(), "c.yaml")
				if err := os.WriteFile(path, []byte(c.yaml+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append(args, "--config", path)
			}
			says(t, refuseRun(t, -1, c.env, args...), c.words...)
			noDirs(t, bucket)
		})
	}
}

// mountLimit bounds mount and umount.
const mountLimit = 10 * time.Second

// mount runs mount or umount.
func mount(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), mountLimit)
	defer cancel()
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// smallDisk mounts a file system of a size (of mount's tmpfs) for the test.
func smallDisk(t *testing.T, size string) (dir string, resize func(size string)) {
	t.Helper()
	dir = t.TempDir()
	if err := mount("mount", "-t", "tmpfs", "-o", "size="+size, "cirrolog-test", dir); err != nil {
		// No registry gives this one, so it may be missing even with REQUIRE_ALL=1.
		t.Skipf("skipped: there is no right to mount a tmpfs (%v)", err)
	}
	t.Cleanup(func() {
		if err := mount("umount", dir); err != nil {
			t.Error(err)
		}
	})
	return dir, func(size string) {
		t.Helper()
		if err := mount("mount", "-o", "remount,size="+size, dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRefuseFullDisk(t *testing.T) {
	disk, resize := smallDisk(t, "8m")
	n, bucket := dirNode(t, true)
	n.Dir = filepath.Join(disk, "data")
	says(t, n.refused(t), "no space left", n.Dir, "free some space", "--data-dir", "--wal-size")
	if keys, err := filepath.Glob(filepath.Join(bucket, "objects", "*", "topics*")); err != nil || len(keys) > 0 {
		t.Errorf("the bucket has %v, %v", keys, err)
	}
	resize("200m")
	n.Start()
	writeSome(t, n, "one", "two")
	n.Stop()
	fill := filepath.Join(disk, "fill")
	if err := fillDisk(fill); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	same := unchanged(t, filepath.Join(n.Dir, "wal"), filepath.Join(n.Dir, "logs"), bucket)
	says(t, n.refused(t), "no space left", n.Dir, "free some space")
	same()
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	n.Start()
	readSome(t, n, "one", "two")
	writeSome(t, n, "three")
	readSome(t, n, "one", "two", "three")
	n.Stop()
}

// fillDisk writes a file until there is no room.
func fillDisk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	return errors.Join(err, f.Close())
}

// carelessStore is an S3 server that takes puts and carries them all out,
// whatever conditions they have.
type carelessStore struct {
	mu      sync.Mutex
	objects map[string][]byte
	touched []string // keys that were put or deleted
}

// ServeHTTP knows what the check of a bucket asks for up to its first put with a condition.
func (s *carelessStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("ETag", fmt.Sprintf(`"%d"`, len(s.touched)))
	switch r.Method {
	case http.MethodPut:
		s.objects[r.URL.Path] = body
		s.touched = append(s.touched, r.URL.Path)
	case http.MethodDelete:
		delete(s.objects, r.URL.Path)
		s.touched = append(s.touched, r.URL.Path)
		w.WriteHeader(http.StatusNoContent)
	default:
		got, ok := s.objects[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(got)))
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		_, _ = w.Write(got)
	}
}

func TestRefuseUnsafeBucket(t *testing.T) {
	for _, driver := range []string{"s3", "minio"} {
		t.Run(driver, func(t *testing.T) {
			store := &carelessStore{objects: map[string][]byte{}}
			server := httptest.NewServer(store)
			defer server.Close()
			url, env := bucketOn(minio.Endpoint{URL: server.URL, Bucket: "careless", AccessKey: "a", SecretKey: "b"}, driver)
			n := idleNode(t, NodeOptions{Args: []string{"--bucket", url}, Env: env})
			says(t, n.refused(t), "bucket s3://careless", "If-None-Match", "can't be used", "choose a store", "doctor")
			store.mu.Lock()
			defer store.mu.Unlock()
			if len(store.touched) < 2 || len(store.objects) > 0 {
				t.Errorf("%d puts and deletes; %d objects are left", len(store.touched), len(store.objects))
			}
			for _, key := range store.touched {
				if !strings.Contains(key, "/probe/") {
					t.Errorf("the refused start wrote %s", key)
				}
			}
		})
	}
}
