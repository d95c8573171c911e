package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/localstack/dynamodb"
	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/localstack/redis"
	"github.com/cirrolog/cirrolog/services/recovery"
)

// measured skips a test that measures a cluster; `make measure-cluster` runs it.
func measured(t *testing.T) {
	if os.Getenv("MEASURE_CLUSTER") == "" {
		t.Skip("takes minutes: `make measure-cluster` runs it")
	}
}

// gang is a cluster whose agents are started one by one.
type gang struct {
	t     *testing.T
	store string // metadata
	e     minio.Endpoint
	args  []string
	nodes []*Node
}

func (g *gang) bucket() string {
	bucket, _ := bucketOn(g.e, "s3")
	return bucket
}

// node is a new agent that does not run yet.
func (g *gang) node() *Node {
	bucket, env := bucketOn(g.e, "s3")
	n := idleNode(g.t, NodeOptions{Metadata: g.store, Env: env, Args: append([]string{"--bucket", bucket, "--memory-tail", "128MiB"}, g.args...)})
	g.nodes = append(g.nodes, n)
	return n
}

// requests counts the requests of agents to the bucket so far, by operation.
func requests(t *testing.T, nodes ...*Node) map[string]float64 {
	out := map[string]float64{}
	for _, n := range nodes {
		for _, op := range []string{"put", "get", "head", "list", "delete", "delete_many"} {
			if v := metricOf(t, n, "cirrolog_objstore_requests_total", `op="`+op+`"`); v > 0 {
				out[op] += v
			}
		}
	}
	return out
}

// everyPartition sends a record to each partition and returns when each was acknowledged, after began.
func everyPartition(t *testing.T, addr, topic string, partitions int, began time.Time) []time.Duration {
	t.Helper()
	cl := newClient(t, addr, kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.UnknownTopicRetries(-1), kgo.MaxBufferedRecords(partitions+1),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }), kgo.MetadataMinAge(50*time.Millisecond))
	out := make([]time.Duration, partitions)
	var mu sync.Mutex
	for p := range partitions {
		cl.Produce(context.Background(), &kgo.Record{Partition: int32(p), Value: make([]byte, 100)}, func(_ *kgo.Record, err error) {
			mu.Lock()
			defer mu.Unlock()
			if out[p] = time.Since(began); err != nil {
				t.Errorf("partition %d: %v", p, err)
			}
		})
	}
	if err := cl.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// TestMeasureFailover kills the agent that leads 10 partitions, or 10,000, and counts what the failover asks of the
// bucket, and how long the last partition waits for its next acknowledgement.
func TestMeasureFailover(t *testing.T) {
	measured(t)
	for _, partitions := range []int{10, 10_000} {
		t.Run(fmt.Sprint(partitions), func(t *testing.T) {
			r := redis.Start(t, "--appendonly", "yes")
			g := &gang{t: t, store: r.URL("e2e"), e: minio.Start(t)}
			for range clusterAgents {
				g.node().Start()
			}
			for _, node := range []string{"2", "3"} { // so that the first leads everything
				if err := g.nodes[0].CLI(io.Discard, "cluster", "drain", node); err != nil {
					t.Fatal(err)
				}
			}
			createTopic(t, g.nodes[0], "many", int32(partitions), nil)
			everyPartition(t, g.nodes[0].Kafka, "many", partitions, time.Now())
			time.Sleep(5 * time.Second)
			before := requests(t, g.nodes[1:]...)
			idle := time.Now()
			time.Sleep(10 * time.Second)
			quiet := total(requests(t, g.nodes[1:]...)) - total(before)
			pause := time.Since(idle)

			before = requests(t, g.nodes[1:]...)
			began := time.Now()
			g.nodes[0].Kill()
			if err := os.RemoveAll(g.nodes[0].Dir); err != nil {
				t.Fatal(err)
			}
			acked := everyPartition(t, g.nodes[1].Kafka+","+g.nodes[2].Kafka, "many", partitions, began)
			took := time.Since(began)
			after := requests(t, g.nodes[1:]...)
			for op := range after {
				after[op] -= before[op]
			}
			t.Logf("%d partitions: next acknowledgement after %.2f s (first), %.2f (median), %.2f (last); requests to the bucket in %.1f s: %.0f, of them %v; %.1f a second when quiet",
				partitions, acked[0].Seconds(), acked[len(acked)/2].Seconds(), acked[len(acked)-1].Seconds(), took.Seconds(), total(after), after, quiet/pause.Seconds())
		})
	}
}

func total(m map[string]float64) (sum float64) {
	for v := range maps.Values(m) {
		sum += v
	}
	return sum
}

// firstFetch starts an agent that has never run and returns when it was ready, and when it had answered a fetch of a topic's first
// records, which only the bucket has; both from the start of the process.
func (g *gang) firstFetch(topic string, partition int32) (ready, fetched time.Duration) {
	g.t.Helper()
	n := g.node()
	began := time.Now()
	n.Start()
	ready = time.Since(began)
	if size, err := fetchColdly(n, topic, partition, 1, nil); err != nil || size == 0 {
		g.t.Fatalf("fetched %d bytes: %v", size, err)
	}
	return ready, time.Since(began)
}

// segments makes a topic with n segments in the bucket: a record and a roll each, many partitions at a time.
func (g *gang) segments(topic string, n int) {
	t := g.t
	partitions := min(n/10, 500)
	createTopic(t, g.nodes[0], topic, int32(partitions), map[string]string{"local.retention.bytes": "0", "retention.ms": "-1"})
	tiered := func() (done int) {
		for _, s := range g.nodes[0].Storage(topic) {
			done += int(s.BucketSegments)
		}
		return done
	}
	for made := 0; made < n; made += partitions {
		everyPartition(t, g.nodes[0].Kafka, topic, partitions, time.Now())
		g.nodes[0].API("POST", "/v1/topics/"+topic+"/roll", nil)
	}
	eventually(t, 10*time.Minute, "all segments in the bucket", func() bool { return tiered() >= n })
}

// TestMeasureSegments measures how long agents take to start, and `recover` to rebuild the metadata store, with many segments in the bucket.
func TestMeasureSegments(t *testing.T) {
	measured(t)
	for _, kind := range []string{"redis", "dynamo"} {
		for _, n := range []int{1000, 50_000} {
			t.Run(fmt.Sprintf("%s-%d", kind, n), func(t *testing.T) {
				g := &gang{t: t, e: minio.Start(t)}
				lose := g.metadataOf(kind)
				g.node().Start()
				began := time.Now()
				g.segments("old", n)
				t.Logf("%s: made %d segments in %.0f s", kind, n, time.Since(began).Seconds())
				ready, fetched := g.firstFetch("old", 3)
				t.Logf("%s, %d segments: a fresh agent is ready after %.3f s, and has answered a tiered fetch after %.3f s", kind, n, ready.Seconds(), fetched.Seconds())
				lose()
				var out bytes.Buffer
				if err := g.nodes[0].CLI(&out, "recover", "--metadata", g.store, "--bucket", g.bucket(), "-o", "json"); err != nil {
					t.Fatalf("%v: %s", err, out.String())
				}
				var r recovery.Report
				if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Segments < n || len(r.Lost) > 0 {
					t.Fatalf("%v: %s", err, out.String())
				}
				t.Logf("%s, %d segments: recovered %d in %.2f s", kind, n, r.Segments, r.Took.Seconds())
				ready, fetched = g.firstFetch("old", 5)
				t.Logf("%s, %d segments, recovered: a fresh agent is ready after %.3f s, and has answered a tiered fetch after %.3f s", kind, n, ready.Seconds(), fetched.Seconds())
			})
		}
	}
}

// metadataOf starts a metadata store, and returns what loses all that it has.
func (g *gang) metadataOf(kind string) (lose func()) {
	t := g.t
	if kind == "redis" {
		r := redis.Start(t, "--appendonly", "yes")
		g.store = r.URL("e2e")
		return func() { flushAll(t, r.Addr) }
	}
	var local dynamodb.Shared
	t.Cleanup(func() {
		if err := local.Stop(); err != nil {
			t.Error(err)
		}
	})
	endpoint := local.Start(t)
	g.store = "dynamodb://e2e?region=us-east-1&create=true&endpoint=" + endpoint
	return func() { deleteTable(t, endpoint, g.e) }
}

// TestMeasureJoin lets an agent with an empty disk join a cluster that has 10 GiB in the bucket.
func TestMeasureJoin(t *testing.T) {
	measured(t)
	const size = 10 << 30
	r := redis.Start(t, "--appendonly", "yes")
	g := &gang{t: t, store: r.URL("e2e"), e: minio.Start(t), args: []string{"--retention-interval", "500ms"}}
	g.node().Start()
	createTopic(t, g.nodes[0], "big", 8, map[string]string{"local.retention.bytes": "0", "retention.ms": "-1"})
	began := time.Now()
	cl := newClient(t, g.nodes[0].Kafka, kgo.DefaultProduceTopic("big"), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(1<<20), kgo.MaxBufferedBytes(64<<20))
	value := make([]byte, 64<<10)
	for range size / len(value) {
		cl.Produce(context.Background(), &kgo.Record{Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Errorf("produce: %v", err)
			}
		})
	}
	if err := cl.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	g.nodes[0].API("POST", "/v1/topics/big/roll", nil)
	var bytes int64
	eventually(t, 10*time.Minute, "10 GiB in the bucket only", func() bool {
		bytes = 0
		local := int64(0)
		for _, s := range g.nodes[0].Storage("big") {
			bytes += s.BucketBytes
			local += s.HighWatermark - s.LocalStart
		}
		return bytes >= size && local == 0
	})
	t.Logf("%.2f GiB in the bucket after %.0f s", float64(bytes)/(1<<30), time.Since(began).Seconds())
	for i := range int32(3) {
		ready, fetched := g.firstFetch("big", i)
		t.Logf("a fresh agent is ready after %.3f s, and has answered a tiered fetch after %.3f s", ready.Seconds(), fetched.Seconds())
	}
}
