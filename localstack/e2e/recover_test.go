package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	dynamoapi "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/localstack/dynamodb"
	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/services/agent"
	"github.com/cirrolog/cirrolog/services/recovery"
)

// TestRecoverRedis empties Redis under load and rebuilds it from the bucket.
func TestRecoverRedis(t *testing.T) {
	c := newCluster(t, 3)
	testRecover(c, c.nodes[0].o.Metadata, func() { flushAll(t, c.redis.Addr) })
}

// TestRecoverDynamo deletes the DynamoDB table under load and rebuilds it from the bucket.
func TestRecoverDynamo(t *testing.T) {
	var local dynamodb.Shared
	t.Cleanup(func() {
		if err := local.Stop(); err != nil {
			t.Error(err)
		}
	})
	endpoint := local.Start(t)
	metadata := "dynamodb://e2e?region=us-east-1&create=true&endpoint=" + endpoint
	e := minio.Start(t)
	c := newClusterOn(t, e, metadata, 3)
	testRecover(c, metadata, func() { deleteTable(t, endpoint, e) })
}

// flushAll empties a Redis.
func flushAll(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer := make([]byte, 5)
	if _, err := conn.Write([]byte("FLUSHALL\r\n")); err == nil {
		_, err = conn.Read(answer)
	}
	if string(answer) != "+OK\r\n" || err != nil {
		t.Fatalf("FLUSHALL: %q, %v", answer, err)
	}
}

// deleteTable deletes the table of a DynamoDB Local.
func deleteTable(t *testing.T, endpoint string, e minio.Endpoint) {
	t.Helper()
	api := dynamoapi.New(dynamoapi.Options{Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider(e.AccessKey, e.SecretKey, "")})
	if _, err := api.DeleteTable(t.Context(), &dynamoapi.DeleteTableInput{TableName: aws.String("e2e")}); err != nil {
		t.Fatal(err)
	}
}

// testRecover loses the metadata store under load: acknowledgements go on, `recover` brings it back while the
// agents run, and nothing is lost, forked or given twice.
func testRecover(c *cluster, store string, lose func()) {
	t := c.t
	c.members = startMembers(c.addr(), c.fail)
	c.load(300)
	eventually(t, time.Minute, "every partition has something in the bucket", c.tiered)
	before, epochs := clusterID(t, c.addr()), c.epochs()
	pids := map[int64]bool{}
	newProducerIDs(t, c, pids)
	if err := c.recover(&bytes.Buffer{}, store); err == nil || !strings.Contains(err.Error(), "nothing to recover") {
		t.Errorf("a metadata store that is whole: %v", err)
	}

	lose()
	c.load(50) // nobody needs it
	var out bytes.Buffer
	if err := c.recover(&out, store); err != nil {
		t.Fatal(err)
	}
	var r recovery.Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v: %s", err, out.Bytes())
	}
	t.Logf("recovered: %+v", r)
	if r.ClusterID != before || r.Generation != 1 || r.Segments == 0 || len(r.Lost) > 0 {
		t.Errorf("recovered %+v, the cluster is %s", r, before)
	}
	c.load(200)
	for p, e := range c.epochs() {
		if e < epochs[p] {
			t.Errorf("partition %d had epoch %d and has %d", p, epochs[p], e)
		}
	}
	newProducerIDs(t, c, pids)
	createTopic(t, c.nodes[0], "after", 3, nil)

	n, led := c.victim() // the cluster works as before: a leader may die
	n.Kill()
	if err := os.RemoveAll(n.Dir); err != nil {
		t.Fatal(err)
	}
	c.load(10)
	t.Logf("the leader of %v was killed", led)
	n.Start()
	if err := c.recover(&bytes.Buffer{}, store); err == nil || !strings.Contains(err.Error(), "nothing to recover") {
		t.Errorf("a metadata store that was recovered: %v", err)
	}
	c.load(200)
	if after := clusterID(t, c.addr()); after != before {
		t.Errorf("cluster %s was recovered as %s", before, after)
	}
	c.members.stop()
	c.members = nil
	c.finish()
	for _, n := range c.nodes {
		n.MustRun()
	}
}

// recover runs the verb on the cluster's bucket.
func (c *cluster) recover(out *bytes.Buffer, store string) error {
	return c.nodes[0].CLI(out, "recover", "--metadata", store, "--bucket", c.bucket, "-o", "json")
}

// tiered tells whether each partition of the topic has something in the bucket.
func (c *cluster) tiered() bool {
	var out bytes.Buffer
	if err := c.nodes[0].CLI(&out, "cluster", "partitions", "-t", crashTopic, "-o", "json"); err != nil {
		c.t.Log(err) // an agent may not know the topic yet
		return false
	}
	var s agent.ClusterPartitions
	if err := json.Unmarshal(out.Bytes(), &s); err != nil {
		c.t.Fatalf("%v: %s", err, out.Bytes())
	}
	return len(s.Partitions) == crashPartitions && !slices.ContainsFunc(s.Partitions, func(p agent.ClusterPartition) bool { return p.TieredEnd == 0 })
}

func clusterID(t *testing.T, addr string) string {
	t.Helper()
	resp, _ := metadataOf(t, addr, crashTopic)
	if resp.ClusterID == nil {
		t.Fatal("no cluster id")
	}
	return *resp.ClusterID
}

// epochs are the leader epochs of the topic's partitions.
func (c *cluster) epochs() map[int32]int32 {
	resp, _ := metadataOf(c.t, c.addr(), crashTopic)
	out := map[int32]int32{}
	for _, p := range resp.Topics[0].Partitions {
		out[p.Partition] = p.LeaderEpoch
	}
	return out
}

// newProducerIDs asks each agent for producer ids, none of which may be in given.
func newProducerIDs(t *testing.T, c *cluster, given map[int64]bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), fetchLimit)
	defer cancel()
	for _, n := range c.nodes {
		cl := newClient(t, n.Kafka)
		defer cl.Close()
		for range 3 {
			req := kmsg.NewPtrInitProducerIDRequest()
			req.TransactionTimeoutMillis = 1000
			resp, err := req.RequestWith(ctx, cl)
			if err == nil {
				err = kerr.ErrorForCode(resp.ErrorCode)
			}
			if err != nil {
				t.Fatalf("producer id: %v", err)
			}
			if given[resp.ProducerID] {
				t.Errorf("producer id %d was given twice: %v", resp.ProducerID, slices.Sorted(maps.Keys(given)))
			}
			given[resp.ProducerID] = true
		}
	}
}

// TestRecoverRefuses gives `recover` what it must not touch.
func TestRecoverRefuses(t *testing.T) {
	c := newCluster(t, 1)
	c.load(50)
	elsewhere := c.redis.URL("elsewhere")
	empty := "dir://" + t.TempDir()
	for _, one := range []struct{ name, store, bucket, want string }{
		{"agents of another metadata store", elsewhere, c.bucket, "in use by agents of another metadata store"},
		{"a store that is whole", c.nodes[0].o.Metadata, c.bucket, "nothing to recover"},
		{"no bucket", elsewhere, empty, "there is none"},
		{"no cluster", elsewhere, c.bucket + "&x", "unknown"},
		{"no store", "redis://127.0.0.1:1", c.bucket, "127.0.0.1:1"},
	} {
		err := c.nodes[0].CLI(&bytes.Buffer{}, "recover", "--metadata", one.store, "--bucket", one.bucket)
		if err == nil || !strings.Contains(err.Error(), one.want) {
			t.Errorf("%s: %v, want %q", one.name, err, one.want)
		}
	}
	c.load(50)
	createTopic(t, c.nodes[0], "more", 1, nil) // nothing was taken over
	c.finish()
}
