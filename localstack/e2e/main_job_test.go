package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/storage/segment"
)

const minPackageIndex = 10 << 20 // bytes of a package index worth the name

// packageIndex returns the machine's Debian package index, one record per
// stanza, each ended by the returned delimiter, which occurs in none of them.
func packageIndex(t *testing.T) (stream []byte, records int, delim byte) {
	t.Helper()
	apt := testenv.Need(t, "apt-cache")
	dump := func() []byte {
		out, err := exec.Command(apt, "dumpavail").Output()
		if err != nil {
			t.Fatalf("apt-cache dumpavail: %v", err)
		}
		return out
	}
	raw := dump()
	if len(raw) < minPackageIndex && os.Geteuid() == 0 {
		if out, err := exec.Command("apt-get", "update", "-qq").CombinedOutput(); err != nil {
			t.Logf("apt-get update: %v\n%s", err, out)
		}
		raw = dump()
	}
	if len(raw) < minPackageIndex {
		testenv.Missing(t, "package index (apt-get update)")
	}
	for delim = 1; bytes.IndexByte(raw, delim) >= 0; delim++ {
	}
	var b bytes.Buffer
	for stanza := range bytes.SplitSeq(raw, []byte("\n\n")) {
		if stanza = bytes.Trim(stanza, "\n"); len(stanza) > 0 {
			b.Write(stanza)
			b.WriteByte(delim)
			records++
		}
	}
	return b.Bytes(), records, delim
}

// match is a writer that compares what comes with what should come.
type match struct {
	want  []byte
	delim byte
	sum   hash.Hash
	n     int
	bad   error
}

func (m *match) Write(p []byte) (int, error) {
	m.sum.Write(p)
	if m.bad == nil && (m.n+len(p) > len(m.want) || !bytes.Equal(p, m.want[m.n:m.n+len(p)])) {
		i := 0
		for i < len(p) && m.n+i < len(m.want) && p[i] == m.want[m.n+i] {
			i++
		}
		m.bad = fmt.Errorf("differs at byte %d, in record %d", m.n+i, bytes.Count(m.want[:min(m.n+i, len(m.want))], []byte{m.delim}))
	}
	m.n += len(p)
	return len(p), nil
}

func (m *match) end() error {
	if m.bad == nil && m.n != len(m.want) {
		m.bad = fmt.Errorf("ends after %d of %d bytes", m.n, len(m.want))
	}
	if want := sha256.Sum256(m.want); m.bad == nil && !bytes.Equal(m.sum.Sum(nil), want[:]) {
		m.bad = fmt.Errorf("SHA-256 %x, want %x", m.sum.Sum(nil), want)
	}
	return m.bad
}

// job is the main job on one kind of bucket.
type job struct {
	node   *Node
	bucket string
	stream []byte
	count  int
	delim  byte
}

const jobTopic = "packages"

func TestMainJob(t *testing.T) {
	kcat := testenv.Need(t, "kcat")
	stream, count, delim := packageIndex(t)
	t.Logf("%d records, %d bytes", count, len(stream))
	var server minio.Shared
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	for _, kind := range []string{"dir", "s3", "minio"} {
		t.Run(kind, func(t *testing.T) {
			j := &job{stream: stream, count: count, delim: delim}
			var env []string
			if kind == "dir" {
				j.bucket = "dir://" + filepath.Join(t.TempDir(), "bucket")
			} else {
				j.bucket, env = bucketOn(server.Start(t), kind)
			}
			j.node = NewNode(t, NodeOptions{Args: []string{"--bucket", j.bucket, "--retention-interval", "500ms"}, Env: env})
			j.run(t, kcat)
		})
	}
}

// bucketOn returns the URL of a bucket with a driver, and the environment that
// has its credentials.
func bucketOn(e minio.Endpoint, driver string) (url string, env []string) {
	return fmt.Sprintf("s3://%s/main/job?endpoint=%s&region=us-east-1&driver=%s", e.Bucket, e.URL, driver),
		[]string{"AWS_ACCESS_KEY_ID=" + e.AccessKey, "AWS_SECRET_ACCESS_KEY=" + e.SecretKey}
}

func (j *job) run(t *testing.T, kcat string) {
	n := j.node
	createTopic(t, n, jobTopic, 1, map[string]string{"segment.bytes": "1048576", "local.retention.bytes": "2097152"})
	step := stopwatch(t)
	produce := exec.Command(kcat, "-P", "-b", n.Kafka, "-t", jobTopic, "-p", "0", "-D", fmt.Sprintf(`\x%02x`, j.delim),
		"-X", "enable.idempotence=true", "-X", "queue.buffering.max.ms=5")
	produce.Stdin = bytes.NewReader(j.stream)
	if out, err := produce.CombinedOutput(); err != nil {
		t.Fatalf("kcat -P: %v\n%s", err, out)
	}
	step("kcat -P")
	eventually(t, time.Minute, "more than 90 % only in the bucket", func() bool {
		s := n.Storage(jobTopic)[0]
		return s.HighWatermark == int64(j.count) && s.LocalStart > int64(j.count)*9/10 && s.LocalBytes < int64(len(j.stream))/10
	})
	if s := n.Storage(jobTopic)[0]; s.LogStart != 0 || s.BucketBytes < int64(len(j.stream))*9/10 {
		t.Errorf("storage is %+v", s)
	}
	step("tiered")
	j.readAll(t, kcat)
	step("read")

	n.API(http.MethodPost, "/v1/topics/"+jobTopic+"/roll", nil)
	eventually(t, time.Minute, "everything in the bucket", func() bool {
		s := n.Storage(jobTopic)[0]
		return s.TieredEnd == s.HighWatermark
	})
	n.Stop()
	j.forget(t)
	j.check(t, "replay --bucket", func(w io.Writer) error {
		return n.CLI(w, "replay", jobTopic, "--bucket", j.bucket, "-f", j.format())
	})
	step("replay --bucket")
	n.Start()
	j.readAll(t, kcat)
	step("read after restart")
	n.Stop()
}

func stopwatch(t *testing.T) func(string) {
	began := time.Now()
	return func(what string) {
		t.Logf("%-20s %.1f s", what, time.Since(began).Seconds())
		began = time.Now()
	}
}

// forget deletes the block cache and every local log: all of it is tiered.
func (j *job) forget(t *testing.T) {
	if err := os.RemoveAll(filepath.Join(j.node.Dir, "cache")); err != nil {
		t.Fatal(err)
	}
	logs := localLogs(t, j.node)
	if len(logs) == 0 {
		t.Error("there is no local segment to delete")
	}
	for _, path := range logs {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// localLogs returns the .log files of a node, in order of their names.
func localLogs(t *testing.T, n *Node) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(n.Dir, "logs"), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if _, isIndex, err := segment.ParseName(d.Name()); err == nil && !isIndex {
			paths = append(paths, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func (j *job) format() string { return fmt.Sprintf(`%%v\x%02x`, j.delim) }

// check runs read and wants exactly the input.
func (j *job) check(t *testing.T, what string, read func(io.Writer) error) {
	t.Helper()
	m := &match{want: j.stream, delim: j.delim, sum: sha256.New()}
	if err := read(m); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if err := m.end(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// readAll reads the topic with four clients.
func (j *job) readAll(t *testing.T, kcat string) {
	j.check(t, "kcat -C", func(w io.Writer) error {
		cmd := exec.Command(kcat, "-C", "-q", "-e", "-b", j.node.Kafka, "-t", jobTopic, "-p", "0", "-o", "beginning", "-D", fmt.Sprintf(`\x%02x`, j.delim))
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = w, &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, stderr.Bytes())
		}
		return nil
	})
	j.check(t, "franz-go", func(w io.Writer) error {
		recs, err := fetchAll(j.node.Kafka, jobTopic, 0, j.count)
		for _, r := range recs {
			_, _ = w.Write(append(r.Value, j.delim)) // a match never fails
		}
		return err
	})
	j.check(t, "cirrolog consume", func(w io.Writer) error {
		return j.node.CLI(w, "consume", jobTopic, "-e", "-f", j.format())
	})
	j.check(t, "cirrolog replay", func(w io.Writer) error {
		return j.node.CLI(w, "replay", jobTopic, "-f", j.format())
	})
}

// fetchLimit bounds one read of a topic.
const fetchLimit = time.Minute

// fetchAll reads count records of a partition from offset 0 on.
func fetchAll(addr, topic string, partition int32, count int) ([]*kgo.Record, error) {
	return fetchFrom(addr, topic, partition, 0, count)
}

// fetchFrom reads count records of a partition from an offset on.
func fetchFrom(addr, topic string, partition int32, from int64, count int) ([]*kgo.Record, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(addr, ",")...), kgo.FetchMaxPartitionBytes(8<<20), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().At(from)}}))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	var out []*kgo.Record
	for len(out) < count {
		f := cl.PollFetches(ctx)
		if err := f.Err(); err != nil {
			return out, fmt.Errorf("fetch %s-%d, %d of %d records: %w", topic, partition, len(out), count, err)
		}
		out = append(out, f.Records()...)
	}
	return out, nil
}

// newClient returns a client that is closed at the end of the test.
func newClient(t testing.TB, addr string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(strings.Split(addr, ",")...)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// createTopic creates a topic with the raw request.
func createTopic(t testing.TB, n *Node, name string, partitions int32, configs map[string]string) {
	t.Helper()
	req := kmsg.NewPtrCreateTopicsRequest()
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = name, partitions, 1
	for k, v := range configs {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = k, &v
		topic.Configs = append(topic.Configs, c)
	}
	req.Topics = append(req.Topics, topic)
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		t.Fatalf("create topic %s: %v", name, err)
	}
	if c := resp.Topics[0].ErrorCode; c != 0 {
		t.Fatalf("create topic %s: error code %d", name, c)
	}
}
