package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/localstack/redis"
	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv/kvurl"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/bucketurl"
)

// TestSweepWithoutAgents deletes a topic, stops every agent, and sweeps the bucket with nothing but the metadata
// store: the topic's segments go, everything else stays and is served when the agents are back.
func TestSweepWithoutAgents(t *testing.T) {
	e, r := minio.Start(t), redis.Start(t, "--appendonly", "yes")
	c := newClusterOn(t, e, r.URL("e2e"), 2, "--lease", "1s")
	const gone = "gone"
	createTopic(t, c.nodes[0], gone, 2, map[string]string{"segment.bytes": "1048576"})
	cl := newClient(t, c.nodes[0].Kafka, kgo.DefaultProduceTopic(gone), kgo.ProducerBatchCompression(kgo.NoCompression()))
	for range 64 {
		if err := cl.ProduceSync(context.Background(), &kgo.Record{Value: make([]byte, 128<<10)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	c.load(100)
	keys := keysOf(t, e, c.bucket)
	admin := kadm.NewClient(cl)
	topics, err := admin.ListTopics(context.Background(), gone)
	if err != nil {
		t.Fatal(err)
	}
	prefix := tiering.DataPrefix + ids.TopicID(topics[gone].ID).String() + "/"
	eventually(t, time.Minute, "segments of the topic in the bucket", func() bool { return len(keys(prefix)) >= 2 })
	if _, err := admin.DeleteTopic(context.Background(), gone); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		n.Kill()
	}
	before := keys(tiering.DataPrefix)
	sweep := func(args ...string) (r struct {
		Segments tiering.SweepReport `json:"segments"`
		Streams  broker.SweptStreams `json:"streams"`
	}) {
		t.Helper()
		var out bytes.Buffer
		if err := c.nodes[0].CLI(&out, append([]string{"sweep", "--metadata", c.nodes[0].o.Metadata, "--bucket", c.bucket, "-o", "json"}, args...)...); err != nil {
			t.Fatalf("%v: %s", err, out.String())
		}
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatalf("%v: %s", err, out.String())
		}
		return r
	}
	if r := sweep(); r.Segments.Deleted.Objects != 0 || int(r.Segments.Seen.Objects) != len(before) {
		t.Errorf("within the grace period: %+v, there are %d", r, len(before))
	}
	if r := sweep("--dry-run", "--grace", "1ms"); r.Segments.Deleted.Objects == 0 || !slices.Equal(keys(tiering.DataPrefix), before) {
		t.Errorf("a dry run: %+v", r)
	}
	swept := sweep("--grace", "1ms")
	after := keys(tiering.DataPrefix)
	t.Logf("swept %d of %d objects", swept.Segments.Deleted.Objects, len(before))
	if want := slices.DeleteFunc(slices.Clone(before), func(k string) bool { return strings.HasPrefix(k, prefix) }); !slices.Equal(after, want) {
		t.Errorf("%d objects are left of %d, want %d", len(after), len(before), len(want))
	}
	var out bytes.Buffer
	if err := c.nodes[0].CLI(&out, "sweep", "--metadata", c.nodes[0].o.Metadata, "--bucket", strings.Replace(c.bucket, "/main/job", "/other/job", 1)); err == nil || !strings.Contains(err.Error(), "but the bucket has no cluster") {
		t.Errorf("another bucket: %v", err)
	}
	c.sweepsElsewhere()
	if r := sweep(); !r.Streams.Elsewhere {
		t.Errorf("beside another sweep: %+v", r)
	}
	for _, n := range c.nodes {
		n.Start()
	}
	c.load(50)
	c.finish()
}

// sweepsElsewhere takes the right to sweep streams, as another sweep.
func (c *cluster) sweepsElsewhere() {
	t := c.t
	t.Helper()
	store, _, err := kvurl.Open(t.Context(), c.nodes[0].o.Metadata, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	b, err := bucketurl.Open(t.Context(), c.bucket, bucketurl.Options{FS: vfs.OS()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = objstore.Close(b) })
	meta, err := metadata.OpenTool(t.Context(), metadata.Options{KV: store, Bucket: b, Incarnation: ids.NewIncarnation()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = meta.Close() })
	if ok, err := meta.TryDuty(t.Context(), metadata.SweepStreams, time.Minute); !ok || err != nil {
		t.Fatalf("took the right to sweep streams: %t, %v", ok, err)
	}
}

// keysOf returns what lists the keys under a prefix of a bucket.
func keysOf(t *testing.T, e minio.Endpoint, bucket string) func(prefix string) []string {
	t.Setenv("AWS_ACCESS_KEY_ID", e.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", e.SecretKey)
	b, err := bucketurl.Open(t.Context(), bucket, bucketurl.Options{FS: vfs.OS()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = objstore.Close(b) })
	return func(prefix string) (out []string) {
		for after := ""; ; {
			page, more, err := b.List(t.Context(), prefix, after, 1000)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range page {
				out, after = append(out, o.Key), o.Key
			}
			if !more {
				return out
			}
		}
	}
}
