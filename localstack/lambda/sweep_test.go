package lambda_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/localstack/lambda"
	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv/kvurl"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
)

// swept is the answer of the function.
type swept struct {
	Segments tiering.SweepReport `json:"segments"`
	Streams  broker.SweptStreams `json:"streams"`
	Expired  broker.Expired      `json:"expired"`
}

type sweeper struct {
	*cluster
	f *lambda.Function
}

func (s *sweeper) function(defaults string) *lambda.Function {
	return lambda.New(s.t, "sweep", append(s.credentials(), "CIRROLOG_BUCKET="+s.bucket, "CIRROLOG_METADATA="+s.metadata, "CIRROLOG_SWEEP_GRACE=1s", "CIRROLOG_TOPIC_CONFIG="+defaults)...)
}

func (s *sweeper) sweep(payload []byte) (r swept) {
	s.t.Helper()
	b, err := s.f.Invoke(payload)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		s.t.Fatalf("%v: %s", err, b)
	}
	return r
}

// tieredTo is up to where the bucket has the offsets of partition 0 of a topic.
func (c *cluster) tieredTo(prefix string) (end int64) {
	c.t.Helper()
	for _, key := range c.keys(prefix) {
		k, err := tiering.ParseSegmentKey(key)
		if err != nil {
			c.t.Fatal(err)
		}
		end = max(end, k.Last+1)
	}
	return end
}

// retain changes the retention of a topic with no agent running, which would apply it.
func (c *cluster) retain(topic, ms string) {
	c.t.Helper()
	ctx, b := context.Background(), c.objects
	store, _, err := kvurl.Open(ctx, c.metadata, slog.New(slog.DiscardHandler))
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	defaults, err := metadata.NewClusterDefaults(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	meta, err := metadata.OpenTool(ctx, metadata.Options{KV: store, Bucket: b, Incarnation: ids.NewIncarnation(), Defaults: defaults})
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = meta.Close() }()
	if err := meta.AlterConfig(ctx, topic, []metadata.ConfigOp{{Key: "retention.ms", Value: &ms, Kind: metadata.OpSet}}, false); err != nil {
		c.t.Fatal(err)
	}
}

// TestSweep stops the only agent and lets the function keep the bucket: what is too old goes, and what a deleted topic and
// a sealed stream had. What is left is served when the agent is back.
func TestSweep(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "--retention-interval", "1h", "--sweep-interval", "1h")
	small := map[string]string{"segment.bytes": "1048576"}
	gone := c.create("gone", 1, small)
	aging := c.create("aging", 1, map[string]string{"segment.bytes": "1048576", "retention.ms": "-1"})
	kept := c.create("kept", 1, map[string]string{"segment.bytes": "1048576", "retention.ms": "-1"})
	const n = 24 // 3 MiB of each
	for _, topic := range []string{"gone", "aging", "kept"} {
		c.fill(topic, n)
	}
	c.node.Kill()
	c.node.Start() // seals the stream of its first start and tiers what is in it
	prefixes := []string{gone, aging, kept}
	c.eventually("all in the bucket", func() bool {
		return !slices.ContainsFunc(prefixes, func(p string) bool { return c.tieredTo(p) < n })
	})
	s := &sweeper{cluster: c}
	s.f = s.function("none")
	if r := s.sweep([]byte(`{"dry_run":true}`)); r.Expired.Owned != 1 || r.Expired.Partitions != 0 {
		t.Errorf("while the agent lives: %+v", r.Expired)
	}
	if _, err := c.admin.DeleteTopic(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	c.node.Kill()
	c.retain("aging", "1")
	time.Sleep(1700 * time.Millisecond) // lease and grace
	s.agentless(gone, aging, kept)
	c.retain("aging", "-1")
	c.node.Start()
	if start, end := c.offset("aging", 0, false), c.offset("aging", 0, true); start != n || end != n {
		t.Errorf("the aged topic begins at %d and ends at %d", start, end)
	}
	if got := c.read("kept", 0); len(got) != n || got[n-1].Value[0] != n-1 {
		t.Errorf("%d records are left of the topic that does not age", len(got))
	}
	if err := c.client.ProduceSync(t.Context(), &kgo.Record{Topic: "aging", Value: []byte("new")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if got := c.read("aging", 0); len(got) != 1 || got[0].Offset != n {
		t.Errorf("what was written after the sweep: %d records", len(got))
	}
	s.fails()
}

// agentless sweeps twice, with no agent running.
func (s *sweeper) agentless(gone, aging, kept string) {
	t := s.t
	t.Helper()
	all, old, stay := s.keys(""), s.keys(aging), s.keys(kept)
	dry := s.sweep([]byte(`{"dry_run":true}`))
	if int(dry.Segments.Deleted.Objects) != len(s.keys(gone)) || dry.Expired.Segments != len(old) || !slices.Equal(s.keys(""), all) {
		t.Errorf("a dry run: %+v", dry)
	}
	schedule := event(t, "schedule.json", nil)
	// Agents that compact all by default have no retention, whatever a topic says of it; without their defaults nobody knows.
	for _, defaults := range []string{"", "cleanup.policy=compact,retention.ms=1"} {
		f := s.f
		s.f = s.function(defaults)
		if r := s.sweep([]byte(`{"dry_run":true}`)); r.Expired != (broker.Expired{}) {
			t.Errorf("defaults %q: %+v", defaults, r.Expired)
		}
		s.f = f
	}
	first := s.sweep(schedule)
	if int(first.Segments.Deleted.Objects) == 0 || len(s.keys(gone)) > 0 {
		t.Errorf("of the deleted topic %d segments were deleted, and %d are left", first.Segments.Deleted.Objects, len(s.keys(gone)))
	}
	if first.Streams.Objects == 0 {
		t.Errorf("of the sealed stream: %+v", first.Streams)
	}
	if first.Expired.Partitions != 1 || first.Expired.Segments != len(old) || !slices.Equal(s.keys(aging), old) {
		t.Errorf("expired: %+v, there were %d segments, %d are left", first.Expired, len(old), len(s.keys(aging)))
	}
	if r := s.sweep(schedule); !r.Expired.Early && r.Expired.Partitions > 0 {
		t.Errorf("at once again: %+v", r.Expired)
	}
	time.Sleep(1100 * time.Millisecond)
	second := s.sweep(schedule)
	if int(second.Segments.Deleted.Objects) != len(old) || len(s.keys(aging)) > 0 {
		t.Errorf("after the grace period %d of %d segments were deleted, %d are left", second.Segments.Deleted.Objects, len(old), len(s.keys(aging)))
	}
	if !slices.Equal(s.keys(kept), stay) {
		t.Errorf("of the topic that does not age %d of %d segments are left", len(s.keys(kept)), len(stay))
	}
	t.Logf("%d objects before, %d after; %d objects of the sealed stream", len(all), len(s.keys("")), first.Streams.Objects)
	coldStarts(t, "sweep", func() *lambda.Function { return s.function("none") }, func(f *lambda.Function) { s.f = f; s.sweep(schedule) })
}

// fails has the function with what it can't work with.
func (s *sweeper) fails() {
	bucket, store := "CIRROLOG_BUCKET="+s.bucket, "CIRROLOG_METADATA="+s.metadata
	before := s.keys("")
	denied := []string{"AWS_ACCESS_KEY_ID=" + s.endpoint.AccessKey, "AWS_SECRET_ACCESS_KEY=wrong"}
	for _, one := range []struct {
		kind, word string
		env        []string
	}{
		{"Cirrolog.Settings", "CIRROLOG_METADATA is not set", []string{bucket}},
		{"Cirrolog.Settings", "CIRROLOG_SWEEP_GRACE", append(s.credentials(), bucket, store, "CIRROLOG_SWEEP_GRACE=1")},
		{"Cirrolog.Settings", "retention.mss", append(s.credentials(), bucket, store, "CIRROLOG_TOPIC_CONFIG=retention.mss=1")},
		{"Cirrolog.Settings", "CIRROLOG_DRY_RUN", append(s.credentials(), bucket, store, "CIRROLOG_DRY_RUN=perhaps")},
		{"Cirrolog.Settings", "CIRROLOG_METADATA", append(s.credentials(), bucket, "CIRROLOG_METADATA=bolt://x")},
		{"Cirrolog.Settings", "unknown scheme", append(s.credentials(), store, "CIRROLOG_BUCKET=s4://x")},
		{"Cirrolog.Settings", "no such directory", append(s.credentials(), store, "CIRROLOG_BUCKET=dir:///tmp/none")},
		{"Cirrolog.Denied", "denied", append(denied, bucket, store)},
		{"Cirrolog.NoBucket", "bucket not found", append(s.credentials(), store, strings.Replace(bucket, s.endpoint.Bucket, "no-such-bucket", 1))},
		{"Cirrolog.ForeignBucket", "no cluster", append(s.credentials(), store, strings.Replace(bucket, "/main/job", "/other", 1))},
		{"Cirrolog.ForeignBucket", "another metadata store", append(s.credentials(), bucket, store+"x")},
		{"Cirrolog.Unavailable", "metadata store", append(s.credentials(), bucket, "CIRROLOG_METADATA=redis://127.0.0.1:1?namespace=x")},
	} {
		f := lambda.New(s.t, "sweep", one.env...)
		f.Timeout = 20 * time.Second
		_, err := f.Invoke(event(s.t, "schedule.json", nil))
		failedAs(s.t, err, one.word, one.kind, one.word)
	}
	_, err := s.f.Invoke([]byte(`[]`))
	failedAs(s.t, err, "an array", "Cirrolog.NotAnEvent")
	if after := s.keys(tiering.DataPrefix); !slices.Equal(after, slices.DeleteFunc(before, func(k string) bool { return !strings.HasPrefix(k, tiering.DataPrefix) })) {
		s.t.Errorf("%d segments are left", len(after))
	}
}
