package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/localstack/redis"
)

const (
	historyTopic      = "history"
	historyPartitions = 4
)

// history is a topic of a cluster whose records are only in the bucket.
type history struct {
	t     *testing.T
	nodes []*Node
	ends  [historyPartitions]int64
	bytes int64
}

// tier makes the topic, writes size bytes, and waits until no agent has any of it on its disk.
func (h *history) tier(size int64) {
	t := h.t
	createTopic(t, h.nodes[0], historyTopic, historyPartitions, map[string]string{"segment.bytes": "8388608", "local.retention.bytes": "0"})
	cl := newClient(t, h.nodes[0].Kafka, kgo.DefaultProduceTopic(historyTopic), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(1<<20), kgo.MaxBufferedBytes(64<<20))
	blob := make([]byte, coldValue)
	for i := range size / coldValue {
		for j := range blob {
			blob[j] = byte(int(i) + j*j>>3)
		}
		cl.Produce(context.Background(), &kgo.Record{Value: slices.Clone(blob)}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Errorf("produce: %v", err)
			}
		})
	}
	if err := cl.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, n := range h.nodes {
		n.API("POST", "/v1/topics/"+historyTopic+"/roll", nil)
	}
	eventually(t, time.Minute, "everything only in the bucket", func() bool {
		h.bytes = 0
		local := 0
		for _, n := range h.nodes {
			for _, s := range n.Storage(historyTopic) { // of the partitions that it leads
				h.ends[s.Partition] = s.HighWatermark
				h.bytes += s.BucketBytes
				if s.LocalStart < s.HighWatermark {
					local++
				}
			}
		}
		return local == 0 && h.bytes >= size
	})
}

// sent are the bytes of batches of the topic that each agent has sent to consumers.
func (h *history) sent() (all []float64) {
	for _, n := range h.nodes {
		all = append(all, metricOf(h.t, n, "cirrolog_kafka_fetch_bytes_total", `topic="`+historyTopic+`"`))
	}
	return all
}

// sum is the SHA-256 of the topic's batches as one agent has them, whoever leads them.
func (h *history) sum(n *Node) string {
	h.t.Helper()
	d := sha256.New()
	for p, end := range h.ends {
		if _, err := fetchColdly(n, historyTopic, int32(p), end, d); err != nil {
			h.t.Fatalf("partition %d: %v", p, err)
		}
	}
	return hex.EncodeToString(d.Sum(nil))
}

// TestClusterReads reads tiered history through each of three agents, all partitions, and gets the same
// bytes; and a consumer that says its rack is sent to the agent there: the others send nothing but the hint.
func TestClusterReads(t *testing.T) {
	t.Parallel()
	bucket, env := bucketOn(minio.Start(t), "s3")
	r := redis.Start(t, "--appendonly", "yes")
	h := &history{t: t}
	for i := range clusterAgents {
		h.nodes = append(h.nodes, NewNode(t, NodeOptions{Metadata: r.URL("e2e"), Env: env,
			Args: []string{"--bucket", bucket, "--retention-interval", "500ms", "--memory-tail", "16MiB", "--rack", fmt.Sprint("rack", i)}}))
	}
	h.tier(96 << 20) // no partition fits into an agent's memory
	sums := map[string]bool{}
	for _, n := range h.nodes {
		sums[h.sum(n)] = true
	}
	if len(sums) != 1 {
		t.Errorf("three agents sent different bytes: %v", sums)
	}
	for i, n := range h.nodes {
		before := h.sent()
		h.consume(fmt.Sprint("rack", i))
		var others float64
		for j, sent := range h.sent() {
			if j != i {
				others += sent - before[j]
			}
		}
		t.Logf("a consumer in the rack of %s: the other agents sent %.2f of %.2f MB", n.Kafka, others/1e6, float64(h.bytes)/1e6)
		if others > float64(h.bytes)/20 {
			t.Errorf("the other agents sent %.0f bytes of %d", others, h.bytes)
		}
	}
}

// consume reads the whole topic as a consumer in a rack.
func (h *history) consume(rack string) {
	h.t.Helper()
	at := map[int32]kgo.Offset{}
	left := 0
	for p, end := range h.ends {
		at[int32(p)] = kgo.NewOffset().At(0)
		left += int(end)
	}
	cl := newClient(h.t, h.nodes[0].Kafka, kgo.Rack(rack), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{historyTopic: at}))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for left > 0 {
		got := cl.PollFetches(ctx)
		if err := got.Err(); err != nil {
			h.t.Fatalf("consumer of %s, %d records left: %v", rack, left, err)
		}
		left -= got.NumRecords()
	}
}

// TestReaders measures a replay of READERS_MIB MiB through one reader and through two, half of the
// partitions each, each with READERS_RATE MiB/s of the store for itself: `make bench-readers`.
func TestReaders(t *testing.T) {
	size, err := strconv.Atoi(os.Getenv("READERS_MIB"))
	if err != nil {
		t.Skip("skipped: a measurement, run by `make bench-readers`")
	}
	rate, err := strconv.Atoi(os.Getenv("READERS_RATE"))
	if err != nil {
		t.Fatalf("READERS_RATE: %v", err)
	}
	e := minio.Start(t)
	r := redis.Start(t, "--appendonly", "yes")
	bucket, env := bucketOn(e, "s3")
	h := &history{t: t, nodes: []*Node{NewNode(t, NodeOptions{Metadata: r.URL("e2e"), Env: env, Args: []string{"--bucket", bucket, "--retention-interval", "500ms"}})}}
	h.tier(int64(size) << 20)
	for round := range envRounds() {
		for _, mib := range []int{rate, 0} {
			one, leader := h.readers(e, r, 1, mib)
			two, leader2 := h.readers(e, r, 2, mib)
			t.Logf("round %d, store %d MiB/s for each reader (0: as it goes): one reader %.0f MB/s, two %.0f MB/s: %.2f times; the leader sent %.0f bytes",
				round, mib, one/1e6, two/1e6, two/one, leader+leader2)
		}
	}
}

// readers replays the topic through so many new readers and returns bytes per second, and what the leader sent.
func (h *history) readers(e minio.Endpoint, r *redis.Server, count, mib int) (rate, leader float64) {
	var readers []*Node
	for range count {
		relay := startRelay(h.t, e.URL)
		relay.rate.Store(int64(mib) << 20)
		through := e
		through.URL = relay.url()
		bucket, env := bucketOn(through, "s3")
		readers = append(readers, NewNode(h.t, NodeOptions{Metadata: r.URL("e2e"), Env: env, Args: []string{"--bucket", bucket, "--role", "reader"}}))
	}
	before := h.sent()
	var g group
	began := time.Now()
	for p, end := range h.ends {
		g.Go(func() error {
			_, err := fetchColdly(readers[p%count], historyTopic, int32(p), end, nil)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		h.t.Fatal(err)
	}
	rate = float64(h.bytes) / time.Since(began).Seconds()
	for _, n := range readers {
		n.Stop()
	}
	return rate, h.sent()[0] - before[0]
}
