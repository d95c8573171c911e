package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/localstack/redis"
	"github.com/cirrolog/cirrolog/services/agent"
)

// classPartitions are so many that each of two agents leads some: leaders are drawn, and may lead a quarter more than their share.
const classPartitions = 8

// classTopic is a topic of one durability class and what was acknowledged of it.
type classTopic struct {
	c      *classes
	name   string
	l      *ledger
	loader *loader
}

// classes is two agents with a topic of each durability class.
type classes struct {
	failures
	nodes         []*Node
	object, local *classTopic
}

func newClasses(t *testing.T) *classes {
	bucket, env := bucketOn(minio.Start(t), "s3")
	kv := redis.Start(t)
	c := &classes{failures: failures{t: t}}
	for range 2 {
		c.nodes = append(c.nodes, NewNode(t, NodeOptions{Metadata: kv.URL("e2e"), Env: env,
			Args: []string{"--bucket", bucket, "--lease", "1s", "--wal-size", "64MiB", "--retention-interval", "500ms", "--auto-create=false"}}))
	}
	c.object = c.topic("class-object", nil)
	for _, n := range c.nodes {
		if _, err := os.Stat(filepath.Join(n.Dir, "local")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("an agent without a topic of class local has a ring: %v", err)
		}
	}
	c.local = c.topic("class-local", map[string]string{"durability": "local"})
	t.Cleanup(func() {
		for _, ct := range []*classTopic{c.object, c.local} {
			if ct != nil && ct.loader != nil {
				ct.loader.abandon()
			}
		}
	})
	return c
}

func (c *classes) addr() string { return c.nodes[0].Kafka + "," + c.nodes[1].Kafka }

func (c *classes) topic(name string, configs map[string]string) *classTopic {
	ct := &classTopic{c: c, name: name, l: &ledger{partitions: classPartitions}}
	createTopic(c.t, c.nodes[0], name, classPartitions, configs)
	ct.start()
	return ct
}

func (ct *classTopic) start() {
	p, err := ct.l.startLoader(ct.c.addr(), ct.name, rand.New(rand.NewPCG(7, 7)), ct.c.fail)
	if err != nil {
		ct.c.t.Fatal(err)
	}
	ct.loader = p
}

// load waits until each of the partitions has more records acknowledged.
func (ct *classTopic) load(more int) {
	ct.c.t.Helper()
	before := ct.l.acked()
	eventually(ct.c.t, loadLimit, fmt.Sprintf("%d more records in every partition of %s", more, ct.name), func() bool {
		ct.c.check()
		for p, n := range ct.l.acked() {
			if n < before[p]+more {
				return false
			}
		}
		return true
	})
}

// finish stops the producer and compares all partitions with what was acknowledged. It returns where they end.
func (ct *classTopic) finish() (ends [classPartitions]int64) {
	t := ct.c.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), loadLimit)
	defer cancel()
	if err := ct.loader.finish(ctx); err != nil {
		t.Fatal(err)
	}
	ct.loader = nil
	ct.c.check()
	for p := range ends {
		a := ct.l.audit(p)
		for _, lane := range a.must {
			ends[p] += int64(lane)
		}
		err := eachRecord(ct.c.addr(), ct.name, int32(p), 0, ends[p], func(r *kgo.Record) error { return a.add(r.Offset, r.Value) })
		if err == nil {
			err = a.end()
		}
		if err != nil {
			t.Error(err)
		}
	}
	t.Logf("%s: %v records acknowledged, all there once", ct.name, ends)
	return ends
}

// at asks one agent who leads the partitions of a topic: addresses, "" where there is no leader.
func (ct *classTopic) at(n *Node) (leaders [classPartitions]string) {
	t := ct.c.t
	t.Helper()
	resp, hosts := metadataOf(t, n.Kafka, ct.name)
	for _, p := range resp.Topics[0].Partitions {
		if p.ErrorCode == 0 {
			leaders[p.Partition] = hosts[p.Leader]
		} else if p.ErrorCode != kerr.LeaderNotAvailable.Code {
			t.Fatalf("partition %d has error %d", p.Partition, p.ErrorCode)
		}
	}
	return leaders
}

// fetch asks an agent for records of a partition, whoever leads it.
func (ct *classTopic) fetch(n *Node, partition int32, offset int64) *kmsg.FetchResponseTopicPartition {
	t := ct.c.t
	t.Helper()
	m, hosts := metadataOf(t, n.Kafka, ct.name)
	to := int32(-1)
	for node, addr := range hosts {
		if addr == n.Kafka {
			to = node
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), fetchLimit)
	defer cancel()
	cl := newClient(t, n.Kafka)
	defer cl.Close()
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MaxBytes, req.MinBytes = 2000, 1<<20, 1
	topic, part := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
	topic.Topic, topic.TopicID = ct.name, m.Topics[0].TopicID
	part.Partition, part.FetchOffset, part.PartitionMaxBytes = partition, offset, 1<<20
	topic.Partitions = append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	resp, err := cl.Broker(int(to)).RetriableRequest(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return &resp.(*kmsg.FetchResponse).Topics[0].Partitions[0]
}

// TestClusterClasses has a topic of each durability class on two agents. An agent that is killed and started again
// with its disk loses nothing of either. One whose disk is lost: its partitions of class object go on at
// the other agent at once, those of class local have no leader, and their tiered history is served by
// the other agent, until the disk is abandoned; then they go on behind that, and the disk is refused.
func TestClusterClasses(t *testing.T) {
	c := newClasses(t)
	c.object.load(100)
	c.local.load(100)
	victim, other := c.nodes[0], c.nodes[1]
	mine := c.local.at(other)
	victim.Kill()
	c.object.load(50) // without the other one
	if now := c.local.at(other); led(now, other) != led(mine, other) {
		t.Errorf("class local is led by %v, was by %v", now, mine)
	}
	victim.Start()
	c.object.load(100)
	c.local.load(100)
	if now := c.local.at(other); now != mine {
		t.Errorf("class local is led by %v, was by %v", now, mine)
	}
	c.local.finish()
	tiered := c.tierAll(mine)
	for p := range tiered { // something that is on the disks only
		c.put(p, 5)
	}
	for _, n := range c.nodes {
		eventually(t, 20*time.Second, "bytes at risk are told", func() bool {
			m := scrape(t, n)["cirrolog_wal_bytes_at_risk"]
			local, _ := value(m, "class=local")
			object, told := value(m, "class=object")
			return local > 0 && told && object == 0
		})
	}

	victim.Kill()
	lost := victim.Dir + ".lost"
	if err := os.Rename(victim.Dir, lost); err != nil {
		t.Fatal(err)
	}
	c.object.load(50)
	eventually(t, 20*time.Second, "class local without a leader where the disk is lost", func() bool { return led(c.local.at(other), victim) == 0 })
	time.Sleep(2 * time.Second) // two leases
	for p, addr := range c.local.at(other) {
		want := mine[p]
		if want == victim.Kafka {
			want = ""
		}
		if addr != want {
			t.Errorf("partition %d is led by %q, want %q", p, addr, want)
		}
		if want != "" {
			continue
		}
		if r := c.local.fetch(other, int32(p), 0); r.ErrorCode != 0 || len(r.RecordBatches) == 0 {
			t.Errorf("the other agent serves nothing of what is tiered of partition %d: error %d", p, r.ErrorCode)
		}
	}
	disk := c.away(other)
	victim.Start() // with an empty directory: another disk
	if n := led(c.local.at(other), victim); n != 0 {
		t.Errorf("a new disk leads %d partitions of the lost one", n)
	}
	var out bytes.Buffer
	if err := other.CLI(&out, "cluster", "abandon-disk", disk, "--yes"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "a leader for every partition", func() bool { return led(c.local.at(other), other)+led(c.local.at(other), victim) == classPartitions })
	for p, was := range mine {
		if was != victim.Kafka {
			continue
		}
		leader := other
		if c.local.at(other)[p] == victim.Kafka {
			leader = victim
		}
		eventually(t, 20*time.Second, "the end is what is tiered", func() bool {
			r := c.local.fetch(leader, int32(p), tiered[p])
			return r.ErrorCode == 0 && r.HighWatermark == tiered[p]
		})
		if r := c.local.fetch(leader, int32(p), tiered[p]+2); r.ErrorCode != kerr.OffsetOutOfRange.Code {
			t.Errorf("a fetch of what is lost of partition %d: error %d", p, r.ErrorCode)
		}
		c.put(p, 3)
	}
	c.object.finish()
	c.refused(victim, lost, disk)
}

// refused starts an agent on the abandoned disk, which must end with a line that says so.
func (c *classes) refused(n *Node, dir, disk string) {
	c.t.Helper()
	n.Stop()
	if err := os.RemoveAll(n.Dir); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(dir, n.Dir); err != nil {
		c.t.Fatal(err)
	}
	if err := n.launch(); err != nil {
		c.t.Fatal(err)
	}
	select {
	case <-n.proc.Done():
	case <-time.After(readyLimit):
		c.t.Fatal("the abandoned disk is not refused")
	}
	lines := strings.Split(strings.TrimSpace(n.Log()), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, "error:") || !strings.Contains(last, "abandoned") || !strings.Contains(last, "--data-dir") {
		c.t.Errorf("the agent on disk %s ended with %q", disk, last)
	}
}

func led(leaders [classPartitions]string, n *Node) (count int) {
	for _, addr := range leaders {
		if addr == n.Kafka {
			count++
		}
	}
	return count
}

// tierAll has all records of the local topic tiered and returns where its partitions end.
func (c *classes) tierAll(leaders [classPartitions]string) (ends [classPartitions]int64) {
	c.t.Helper()
	for _, n := range c.nodes {
		n.API(http.MethodPost, "/v1/topics/"+c.local.name+"/roll", nil)
	}
	eventually(c.t, time.Minute, "all of the local topic is tiered", func() bool {
		for _, n := range c.nodes {
			for _, p := range n.Storage(c.local.name) {
				if leaders[p.Partition] == n.Kafka {
					if ends[p.Partition] = p.HighWatermark; p.TieredEnd != p.HighWatermark {
						return false
					}
				}
			}
		}
		return true
	})
	return ends
}

// put has some records acknowledged by a partition of the local topic.
func (c *classes) put(partition, records int) {
	c.t.Helper()
	cl := newClient(c.t, c.addr(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(c.t.Context(), fetchLimit)
	defer cancel()
	for range records {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: c.local.name, Partition: int32(partition), Value: []byte("x")}).FirstErr(); err != nil {
			c.t.Fatalf("produce to partition %d of %s: %v", partition, c.local.name, err)
		}
	}
}

// away is the disk of an agent that is not there.
func (c *classes) away(n *Node) string {
	c.t.Helper()
	var list struct {
		Disks []agent.DiskInfo `json:"disks"`
	}
	n.API(http.MethodGet, "/v1/disks", &list)
	for _, d := range list.Disks {
		if d.State == "away" {
			return d.Disk
		}
	}
	c.t.Fatalf("no disk is away: %+v", list.Disks)
	return ""
}
