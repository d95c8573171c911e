package lambda_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/localstack/e2e"
	"github.com/cirrolog/cirrolog/localstack/lambda"
	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/localstack/redis"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/bucketurl"
)

var (
	minioServer minio.Shared
	redisServer redis.Shared
)

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "3") // they wait for times to pass, all three at once
	code := m.Run()
	if err := errors.Join(minioServer.Stop(), redisServer.Stop()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// cluster is an agent on a bucket and a metadata store of its own.
type cluster struct {
	t                *testing.T
	node             *e2e.Node
	endpoint         minio.Endpoint
	bucket, metadata string // URLs
	objects          objstore.Bucket
	client           *kgo.Client
	admin            *kadm.Client
}

func newCluster(t *testing.T, args ...string) *cluster {
	t.Helper()
	e, r := minioServer.Start(t), redisServer.Start(t)
	c := &cluster{t: t, endpoint: e, metadata: r.URL(e.Bucket), bucket: fmt.Sprintf("s3://%s/main/job?endpoint=%s&region=us-east-1", e.Bucket, e.URL)}
	c.node = e2e.NewNode(t, e2e.NodeOptions{Metadata: c.metadata, Env: c.credentials(), Args: append([]string{"--bucket", c.bucket, "--lease", "1s"}, args...)})
	var err error
	if c.objects, err = bucketurl.Open(t.Context(), c.bucket, bucketurl.Options{AccessKey: e.AccessKey, SecretKey: e.SecretKey}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = objstore.Close(c.objects) })
	if c.client, err = kgo.NewClient(kgo.SeedBrokers(c.node.Kafka), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.client.Close)
	c.admin = kadm.NewClient(c.client)
	return c
}

func (c *cluster) credentials() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + c.endpoint.AccessKey, "AWS_SECRET_ACCESS_KEY=" + c.endpoint.SecretKey}
}

// create makes a topic and returns the prefix of its segments in the bucket.
func (c *cluster) create(topic string, partitions int32, configs map[string]string) string {
	c.t.Helper()
	all := map[string]*string{}
	for k, v := range configs {
		all[k] = &v
	}
	r, err := c.admin.CreateTopic(context.Background(), partitions, 1, all, topic)
	if err == nil {
		err = r.Err
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return fmt.Sprintf("data/%s/", idText(r.ID))
}

// fill writes n records of 128 KiB into partition 0.
func (c *cluster) fill(topic string, n int) {
	c.t.Helper()
	for i := range n {
		value := make([]byte, 128<<10)
		value[0] = byte(i)
		if err := c.client.ProduceSync(context.Background(), &kgo.Record{Topic: topic, Value: value}).FirstErr(); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *cluster) keys(prefix string) (out []string) {
	c.t.Helper()
	page, more, err := c.objects.List(context.Background(), prefix, "", 1000)
	if err != nil || more {
		c.t.Fatal(err, more)
	}
	for _, o := range page {
		out = append(out, o.Key)
	}
	return out
}

func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("not in a minute: %s", what)
		}
	}
}

// offsets returns the first offset, or the end, of a partition.
func (c *cluster) offset(topic string, partition int32, end bool) int64 {
	c.t.Helper()
	list := c.admin.ListStartOffsets
	if end {
		list = c.admin.ListEndOffsets
	}
	all, err := list(context.Background(), topic)
	if err != nil {
		c.t.Fatal(err)
	}
	o, ok := all.Lookup(topic, partition)
	if !ok || o.Err != nil {
		c.t.Fatal(topic, ok, o.Err)
	}
	return o.Offset
}

// read reads a partition from its first record to its end.
func (c *cluster) read(topic string, partition int32) (out []*kgo.Record) {
	c.t.Helper()
	end := c.offset(topic, partition, true)
	if c.offset(topic, partition, false) == end {
		return nil
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.node.Kafka), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().AtStart()}}))
	if err != nil {
		c.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for len(out) == 0 || out[len(out)-1].Offset < end-1 {
		f := cl.PollFetches(ctx)
		if err := f.Err(); err != nil {
			c.t.Fatal(err)
		}
		out = append(out, f.Records()...)
	}
	return out
}

// event reads a recorded event with changes: values by path, "a.b"; nil takes a field out. Texts in replace are replaced.
func event(t *testing.T, file string, set map[string]any, replace ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	b = []byte(strings.NewReplacer(replace...).Replace(string(b)))
	var e map[string]any
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	for path, v := range set {
		at, names := e, strings.Split(path, ".")
		for _, n := range names[:len(names)-1] {
			at = at[n].(map[string]any)
		}
		if last := names[len(names)-1]; v == nil {
			delete(at, last)
		} else {
			at[last] = v
		}
	}
	if b, err = json.Marshal(e); err != nil {
		t.Fatal(err)
	}
	return b
}

// failedAs fails the test unless err is a failure of this type that has these words.
func failedAs(t *testing.T, err error, what, kind string, words ...string) {
	t.Helper()
	f, ok := errors.AsType[*lambda.Failed](err)
	if !ok || f.Type != kind {
		t.Errorf("%s: got %v, want %s", what, err, kind)
		return
	}
	if i := slices.IndexFunc(words, func(w string) bool { return !strings.Contains(f.Message, w) }); i >= 0 || strings.Contains(f.Message, "\n") {
		t.Errorf("%s: %s: want one line with %q", what, f, words)
	}
}

// coldStarts prints what a function's first invocation takes, in the middle of five, and the memory of the process.
func coldStarts(t *testing.T, name string, start func() *lambda.Function, invoke func(*lambda.Function)) {
	t.Helper()
	var asked, answered []time.Duration
	var memory int
	for range 5 {
		f := start()
		began := time.Now()
		invoke(f)
		asked, answered = append(asked, f.Started), append(answered, time.Since(began))
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				if _, err := fmt.Sscanf(v, "%d kB", &memory); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	slices.Sort(asked)
	slices.Sort(answered)
	t.Logf("%s: cold, asked for work after %v, answered after %v; %d MiB", name, asked[2].Round(100*time.Microsecond), answered[2].Round(100*time.Microsecond), memory>>10)
}

// idText is a topic's id as keys of the bucket have it.
func idText(id kadm.TopicID) string { return ids.TopicID(id).String() }
