package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// tierGrace is how long dead objects stay in the bucket here.
const tierGrace = 700 * time.Millisecond

// tierTest is a node with topics whose records lie in three tiers: 0 to
// endOfBucket only in the bucket, to endOfDisk only on the disk, and the rest
// in memory (and the write-ahead ring).
type tierTest struct {
	node   *Node
	bucket string // directory
	cl     *kgo.Client
	topics map[string]*tierTopic
	old    []byte // the metadata database as it was before anything was deleted
}

// TestTiers shows that what moves or asks for offsets is right through all
// three tiers, while the process runs, over a restart, and with an older
// metadata database.
func TestTiers(t *testing.T) {
	bucket := filepath.Join(t.TempDir(), "bucket")
	x := &tierTest{bucket: bucket, topics: map[string]*tierTopic{}}
	x.node = NewNode(t, NodeOptions{Args: []string{"--bucket", "dir://" + bucket, "--retention-interval", "100ms",
		"--sweep-interval", "200ms", "--sweep-grace", tierGrace.String()}})
	x.cl = newClient(t, x.node.Kafka, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	hours := func(a, b, c int) [3]time.Duration {
		return [3]time.Duration{time.Duration(a) * time.Hour, time.Duration(b) * time.Hour, time.Duration(c) * time.Hour}
	}
	x.build(t, []*tierTopic{
		{name: "rising", ages: hours(10, 5, 1)}, {name: "falling", ages: hours(1, 5, 10)}, {name: "hill", ages: hours(10, 1, 5)},
		{name: "cut", ages: hours(10, 5, 1)}, {name: "cut-falling", ages: hours(1, 5, 10)}, {name: "age", ages: hours(10, 5, 1)},
		{name: "size", ages: hours(10, 5, 1)}, {name: "gone", ages: hours(10, 5, 1)}, {name: "late", ages: hours(10, 5, 1)},
	})
	for _, step := range []struct {
		name string
		f    func(*testing.T, *tierTest)
	}{
		{"served by", testTierServedBy}, {"list offsets", testTierListOffsets}, {"replay", testTierReplay},
		{"delete records", testTierDeleteRecords}, {"retention.ms", testTierRetentionMs}, {"retention.bytes", testTierRetentionBytes},
		{"delete topic", testTierDeleteTopic}, {"restart", testTierRestart}, {"older metadata", testTierOlderMetadata},
		{"lost metadata", testTierLostMetadata},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.f(t, x) }) {
			t.FailNow() // the next step builds on this one
		}
	}
	x.node.Stop()
}

// build writes the topics. The restart between disk and memory makes sure that
// nothing of the closed segments is in memory.
func (x *tierTest) build(t *testing.T, topics []*tierTopic) {
	for _, tt := range topics {
		x.topics[tt.name] = tt
		tt.began, tt.tiered = time.Now(), endOfBucket
		createTopic(t, x.node, tt.name, 1, map[string]string{"retention.ms": "-1", "local.retention.ms": "-1", "local.retention.bytes": "0"})
		tt.id = topicID(t, x.node, tt.name)
	}
	x.closed(t, topics, 0)
	for _, tt := range topics {
		eventually(t, tierWait, tt.name+" only in the bucket", func() bool {
			s := x.node.Storage(tt.name)[0]
			return s.TieredEnd == endOfBucket && s.LocalStart == endOfBucket && len(localBases(t, x.node, tt.id)) == 0
		})
		setConfig(t, x.cl, tt.name, map[string]string{"remote.log.copy.disable": "true", "local.retention.ms": "-2", "local.retention.bytes": "-2"})
	}
	x.closed(t, topics, 1)
	x.node.Stop()
	old, err := os.ReadFile(x.database())
	if err != nil {
		t.Fatal(err)
	}
	x.old = old
	x.node.Start()
	for _, tt := range topics {
		tt.write(t, x.cl, tt.next(tierMemory, tt.ages[2]))
	}
}

// closed writes tierSegs closed segments to each topic.
func (x *tierTest) closed(t *testing.T, topics []*tierTopic, tier int) {
	for i := range tierSegs {
		for _, tt := range topics {
			tt.write(t, x.cl, tt.next(tierPerSeg, tt.ages[tier]-time.Duration(i)*segmentStep))
			x.node.API(http.MethodPost, "/v1/topics/"+tt.name+"/roll", nil)
		}
	}
	for _, tt := range topics {
		eventually(t, tierWait, tt.name+": segments closed", func() bool {
			for _, s := range x.node.Segments(tt.name) {
				if s.State != "closed" {
					return false
				}
			}
			return true
		})
	}
}

func (x *tierTest) database() string { return filepath.Join(x.node.Dir, "meta.db") }

// check compares everything about a topic with its model.
func (x *tierTest) check(t *testing.T, tt *tierTopic) {
	t.Helper()
	tt.checkOffsets(t, x.cl, 7)
	if t.Failed() {
		t.FailNow() // what comes would only wait
	}
	tt.checkRecords(t, x.node)
	tt.checkReplay(t, x.node, tt.start, int64(len(tt.recs)))
}

// topicID returns the id of a topic as the bucket's keys have it.
func topicID(t testing.TB, n *Node, topic string) string {
	t.Helper()
	var s struct{ ID string }
	n.API(http.MethodGet, "/v1/topics/"+topic+"/storage", &s)
	return s.ID
}

// setConfig sets topic configs.
func setConfig(t testing.TB, cl *kgo.Client, topic string, configs map[string]string) {
	t.Helper()
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	for k, v := range configs {
		c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		c.Name, c.Value = k, &v
		r.Configs = append(r.Configs, c)
	}
	req.Resources = append(req.Resources, r)
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	resp, err := req.RequestWith(ctx, cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.Resources[0].ErrorCode)
	}
	if err != nil {
		t.Fatalf("set configs of %s to %v: %v", topic, configs, err)
	}
}

// reads returns how many reads each tier has served.
func (x *tierTest) reads(t *testing.T) map[string]int {
	t.Helper()
	resp, err := http.Get("http://" + x.node.Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for line := range strings.Lines(string(body)) {
		for _, tier := range []string{"cache", "local", "remote"} {
			if v, ok := strings.CutPrefix(line, fmt.Sprintf("cirrolog_fetch_tier_total{tier=%q} ", tier)); ok {
				if out[tier], err = strconv.Atoi(strings.TrimSpace(v)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return out
}

// testTierServedBy reads each part of a topic and wants it from its tier: the
// other subtests mean something only if this holds.
func testTierServedBy(t *testing.T, x *tierTest) {
	tt := x.topics["rising"]
	for _, c := range []struct {
		tier  string
		from  int64
		never []string // tiers that must have nothing to do with it
	}{{"remote", 0, nil}, {"local", endOfBucket, []string{"remote"}}, {"cache", endOfDisk, []string{"remote", "local"}}} {
		before := x.reads(t)
		got, err := fetchFrom(x.node.Kafka, tt.name, 0, c.from, endOfMemory-int(c.from))
		if err != nil {
			t.Error(err)
		}
		tt.compare(t, "fetch", got, c.from, endOfMemory)
		after := x.reads(t)
		if after[c.tier] == before[c.tier] {
			t.Errorf("records from %d on did not come from tier %s: %v, then %v", c.from, c.tier, before, after)
		}
		for _, tier := range c.never {
			if after[tier] != before[tier] {
				t.Errorf("records from %d on came from tier %s: %v, then %v", c.from, tier, before, after)
			}
		}
	}
}

// testTierListOffsets asks for every record's time, with the latest record in
// each of the tiers.
func testTierListOffsets(t *testing.T, x *tierTest) {
	for _, name := range []string{"rising", "falling", "hill"} {
		x.topics[name].checkOffsets(t, x.cl, 1)
	}
}

// tierEdges are offsets in and at the borders of segments, batches and tiers.
var tierEdges = []int64{0, 5, tierPerSeg, endOfBucket - 1, endOfBucket, endOfBucket + 7, endOfDisk - tierPerSeg, endOfDisk, endOfDisk + 13, endOfMemory}

func testTierReplay(t *testing.T, x *tierTest) {
	tt := x.topics["hill"]
	for i, from := range tierEdges {
		to := tierEdges[(i+3)%len(tierEdges)]
		if to < from {
			to = endOfMemory
		}
		tt.checkReplay(t, x.node, from, to, "--from", fmt.Sprint(from), "--to", fmt.Sprint(to))
	}
	for _, name := range []string{"rising", "falling", "hill"} {
		tt := x.topics[name]
		tt.replayTimes(t, x.node, nil, nil)
		tt.replayTimes(t, x.node, tt.recs[33], nil)
		tt.replayTimes(t, x.node, nil, tt.recs[endOfDisk+5])
		tt.replayTimes(t, x.node, tt.recs[endOfBucket+3], tt.recs[endOfDisk+3])
		tt.replayTimes(t, x.node, tt.recs[12], tt.recs[endOfBucket+33])
	}
}

// deleteRecords is DeleteRecords of partition 0.
func deleteRecords(t *testing.T, cl *kgo.Client, topic string, before int64) (low int64, err error) {
	t.Helper()
	req := kmsg.NewPtrDeleteRecordsRequest()
	rt := kmsg.NewDeleteRecordsRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewDeleteRecordsRequestTopicPartition()
	rp.Offset = before
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		t.Fatalf("delete records of %s: %v", topic, err)
	}
	p := resp.Topics[0].Partitions[0]
	return p.LowWatermark, kerr.ErrorForCode(p.ErrorCode)
}

func testTierDeleteRecords(t *testing.T, x *tierTest) {
	for _, name := range []string{"cut", "cut-falling"} {
		tt := x.topics[name]
		for _, before := range tierEdges {
			tt.start = before
			if low, err := deleteRecords(t, x.cl, tt.name, before); err != nil || low != before {
				t.Fatalf("delete records before %d: low watermark %d, %v", before, low, err)
			}
			x.check(t, tt)
			tt.checkGone(t, x.node, x.bucket)
		}
		if low, err := deleteRecords(t, x.cl, tt.name, 3); err != nil || low != tt.start {
			t.Errorf("delete records below the log start: low watermark %d, %v; want %d", low, err, tt.start)
		}
		if _, err := deleteRecords(t, x.cl, tt.name, endOfMemory+1); err != kerr.OffsetOutOfRange {
			t.Errorf("delete records beyond the end: %v, want OFFSET_OUT_OF_RANGE", err)
		}
		tt.write(t, x.cl, tt.next(tierBatch, time.Minute))
		x.check(t, tt)
		tt.start = int64(len(tt.recs))
		if low, err := deleteRecords(t, x.cl, tt.name, -1); err != nil || low != tt.start {
			t.Errorf("delete all records: low watermark %d, %v; want %d", low, err, tt.start)
		}
		tt.write(t, x.cl, tt.next(tierBatch, time.Minute))
		x.check(t, tt)
	}
}

// expire waits until retention has moved the log start, and checks everything.
func (x *tierTest) expire(t *testing.T, tt *tierTopic, start int64, config, value string) {
	t.Helper()
	setConfig(t, x.cl, tt.name, map[string]string{config: value})
	tt.start = start
	var got int64
	for end := time.Now().Add(tierWait); time.Now().Before(end) && got != start; time.Sleep(20 * time.Millisecond) {
		got = x.node.Storage(tt.name)[0].LogStart
	}
	if got != start {
		t.Fatalf("%s: %s=%s: the log starts at %d, want %d", tt.name, config, value, got, start)
	}
	time.Sleep(300 * time.Millisecond) // a few more runs of retention: nothing else may go
	x.check(t, tt)
	tt.checkGone(t, x.node, x.bucket)
}

func testTierRetentionMs(t *testing.T, x *tierTest) {
	tt := x.topics["age"]
	for _, c := range []struct {
		limit time.Duration
		start int64
	}{
		{11 * time.Hour, 0},
		{10*time.Hour - segmentStep/2, tierPerSeg},
		{8 * time.Hour, endOfBucket},
		{5*time.Hour - segmentStep*3/2, endOfBucket + 2*tierPerSeg},
		{3 * time.Hour, endOfDisk},
		{30 * time.Minute, endOfMemory}, // closes the active segment
	} {
		if t.Failed() {
			return
		}
		x.expire(t, tt, c.start, "retention.ms", fmt.Sprint(c.limit.Milliseconds()))
	}
	tt.write(t, x.cl, tt.next(tierBatch, time.Minute))
	x.check(t, tt)
}

func testTierRetentionBytes(t *testing.T, x *tierTest) {
	tt := x.topics["size"]
	var sizes []int64
	total := int64(0)
	for _, s := range x.node.Segments(tt.name) {
		sizes = append(sizes, s.Bytes)
		total += s.Bytes
	}
	if len(sizes) != 2*tierSegs+1 {
		t.Fatalf("there are %d segments, want %d: %v", len(sizes), 2*tierSegs+1, sizes)
	}
	for _, gone := range []int{0, 1, tierSegs, tierSegs + 1, 2*tierSegs - 1} {
		limit := total - sizes[gone]/2
		for _, s := range sizes[:gone] {
			limit -= s
		}
		x.expire(t, tt, int64(gone)*tierPerSeg, "retention.bytes", fmt.Sprint(limit))
	}
	x.expire(t, tt, endOfDisk, "retention.bytes", "1")   // the active segment stays
	x.expire(t, tt, endOfMemory, "retention.bytes", "0") // closes it
	setConfig(t, x.cl, tt.name, map[string]string{"retention.bytes": "-1"})
	tt.write(t, x.cl, tt.next(tierBatch, time.Minute))
	x.check(t, tt)
}

// testTierDeleteTopic deletes a topic; one of the same name is another one.
func testTierDeleteTopic(t *testing.T, x *tierTest) {
	tt := x.topics["gone"]
	tt.checkRecords(t, x.node) // so that the cache has blocks of it
	began := time.Now()
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TopicNames = []string{tt.name}
	rt := kmsg.NewDeleteTopicsRequestTopic()
	rt.Topic = &tt.name
	req.Topics = append(req.Topics, rt)
	ctx, cancel := context.WithTimeout(t.Context(), fetchLimit)
	defer cancel()
	resp, err := req.RequestWith(ctx, x.cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	if err != nil {
		t.Fatalf("delete topic: %v", err)
	}
	createTopic(t, x.node, tt.name, 1, nil)
	id := topicID(t, x.node, tt.name)
	if id == tt.id {
		t.Fatalf("the new topic has the old one's id %s", id)
	}
	eventually(t, tierWait, "bytes of the deleted topic are gone", func() bool {
		left, files := len(bucketKeys(t, x.bucket, tt.id)), len(localBases(t, x.node, tt.id))
		if left < tierSegs && time.Since(began) < tierGrace {
			t.Errorf("only %d objects are left %v after the deletion, the grace is %v", left, time.Since(began), tierGrace)
		}
		return left == 0 && files == 0
	})
	next := &tierTopic{name: tt.name, id: id, began: time.Now()}
	x.topics[tt.name] = next
	x.check(t, next)
	x.cl.PurgeTopicsFromClient(tt.name) // it remembers the id
	next.write(t, x.cl, next.next(3*tierBatch, time.Hour))
	x.check(t, next)
}

// testTierRestart wants all of it after a restart, and retention to go on.
func testTierRestart(t *testing.T, x *tierTest) {
	x.node.Stop()
	tt := x.topics["rising"]
	url := "dir://" + x.bucket
	replay := func(from, to int64, args ...string) { // only what is in the bucket
		whole := *tt
		whole.recs = whole.recs[:endOfBucket]
		whole.checkReplay(t, x.node, from, to, append(args, "--bucket", url)...)
	}
	replay(0, endOfBucket)
	replay(15, 47, "--from", "15", "--to", "47")
	from, _ := tt.since(tt.recs[11].Timestamp.UnixMilli())
	to, _ := tt.since(tt.recs[52].Timestamp.UnixMilli())
	replay(from, to, "--from-time", fmt.Sprint(tt.recs[11].Timestamp.UnixMilli()), "--to-time", fmt.Sprint(tt.recs[52].Timestamp.UnixMilli()))
	x.node.Start()
	x.checkAll(t)
	late := x.topics["late"]
	x.expire(t, late, 2*tierPerSeg, "retention.ms", fmt.Sprint((10*time.Hour - segmentStep*3/2).Milliseconds()))
	x.expire(t, late, endOfBucket+tierPerSeg, "retention.ms", fmt.Sprint((5*time.Hour - segmentStep/2).Milliseconds()))
}

func (x *tierTest) checkAll(t *testing.T) {
	t.Helper()
	for _, tt := range x.topics {
		x.check(t, tt)
	}
}

// testTierOlderMetadata starts with the metadata database of before the
// deletions: what the bucket says counts.
func testTierOlderMetadata(t *testing.T, x *tierTest) {
	x.node.Stop()
	if err := os.WriteFile(x.database(), x.old, 0o644); err != nil {
		t.Fatal(err)
	}
	x.node.Start()
	x.checkAll(t)
}

// testTierLostMetadata starts without the metadata database: that is refused,
// as long as nothing can rebuild it, and changes nothing.
func testTierLostMetadata(t *testing.T, x *tierTest) {
	x.node.Stop()
	db, err := os.ReadFile(x.database())
	if err == nil {
		err = os.Remove(x.database())
	}
	if err != nil {
		t.Fatal(err)
	}
	before := treeSums(t, x.bucket)
	says(t, x.node.refused(t), "metadata store is new", "original data directory")
	if after := treeSums(t, x.bucket); !bytes.Equal(before, after) {
		t.Errorf("the refused start changed the bucket from\n%s\nto\n%s", before, after)
	}
	if err := os.WriteFile(x.database(), db, 0o644); err != nil {
		t.Fatal(err)
	}
	x.node.Start()
	x.checkAll(t)
}
