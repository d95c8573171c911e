package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/storage/batch"
)

// relay passes TCP connections on to a server, the answers not faster than a
// rate in all; they do not pass through this process's memory.
type relay struct {
	ln     net.Listener
	target string
	rate   atomic.Int64 // bytes per second, 0 for no bound
	wg     sync.WaitGroup

	mu   sync.Mutex
	next time.Time // when the next bytes may pass
	open map[net.Conn]bool
}

const relayChunk = 128 << 10

func startRelay(t *testing.T, target string) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{ln: ln, target: strings.TrimPrefix(target, "http://"), open: map[net.Conn]bool{}}
	r.wg.Go(r.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		r.mu.Lock()
		for c := range r.open {
			_ = c.Close()
		}
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

func (r *relay) url() string { return "http://" + r.ln.Addr().String() }

func (r *relay) keep(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open[c] = true
}

func (r *relay) shut(conns ...net.Conn) {
	for _, c := range conns {
		_ = c.Close()
		r.mu.Lock()
		delete(r.open, c)
		r.mu.Unlock()
	}
}

func (r *relay) accept() {
	for {
		down, err := r.ln.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", r.target)
		if err != nil {
			_ = down.Close()
			continue
		}
		r.keep(up)
		r.keep(down)
		r.wg.Go(func() {
			_, _ = io.Copy(up, down)
			r.shut(up, down)
		})
		r.wg.Go(func() {
			for {
				r.wait()
				if n, err := io.CopyN(down, up, relayChunk); n == 0 || err != nil {
					break
				}
			}
			r.shut(up, down)
		})
	}
}

// wait waits until a chunk may pass.
func (r *relay) wait() {
	rate := r.rate.Load()
	if rate == 0 {
		return
	}
	r.mu.Lock()
	now := time.Now()
	if r.next.Before(now.Add(-20 * time.Millisecond)) { // what was not used is gone
		r.next = now
	}
	at := r.next
	r.next = at.Add(time.Duration(relayChunk) * time.Second / time.Duration(rate))
	r.mu.Unlock()
	time.Sleep(time.Until(at))
}

const (
	coldTopic      = "cold"
	coldPartitions = 4
	coldValue      = 16 << 10
	coldRange      = 8 << 20 // of the plain loop's GETs
	coldParallel   = 16
)

// cold is the measurement of a replay from the bucket.
type cold struct {
	t     *testing.T
	e     minio.Endpoint
	n     *Node
	relay *relay
	bytes int64 // of the objects
	keys  []object
}

type object struct {
	key  string
	size int64
}

// TestColdReplay measures: a replay of COLD_MIB MiB that are only in the bucket
// by Fetch, beside a plain loop of parallel ranged GETs on the same store, with
// the store's rate capped to COLD_RATE MiB/s and without; and what produce
// requests wait meanwhile, beside what a bare write and echo of another process waits
// (see TestColdProbe). It asserts nothing but that all came: `make bench-cold`.
func TestColdReplay(t *testing.T) {
	size, err := strconv.Atoi(os.Getenv("COLD_MIB"))
	if err != nil {
		t.Skip("skipped: a measurement, run by `make bench-cold`")
	}
	rate, err := strconv.Atoi(os.Getenv("COLD_RATE"))
	if err != nil {
		t.Fatalf("COLD_RATE: %v", err)
	}
	c := &cold{t: t, e: minio.Start(t)}
	c.relay = startRelay(t, c.e.URL)
	through := c.e
	through.URL = c.relay.url()
	url, env := bucketOn(through, "s3")
	c.n = NewNode(t, NodeOptions{Disk: os.Getenv("COLD_DISK"), Env: env, Args: []string{"--bucket", url, "--retention-interval", "500ms", "--cache-size", "256MiB"}})
	c.fill(int64(size) << 20)
	t.Logf("%d MiB in %d objects", c.bytes>>20, len(c.keys))
	t.Logf("| store | GET loop MB/s | replay MB/s | ratio | node CPU-s/GiB | machine | produce p50, p99 without | with | ratio of p99 | bare write and echo p50, p99 without | with | ratio of p99 |")
	for round := range envRounds() {
		for _, mib := range []int{rate, 0} {
			c.relay.rate.Store(int64(mib) << 20)
			c.round(round, mib)
		}
	}
}

func (c *cold) round(round, mib int) {
	var loop, replay float64
	var u usage
	took := 2 * time.Second // of the replay, about
	if mib > 0 {
		took = time.Duration(float64(c.bytes) / float64(mib<<20) * float64(time.Second))
	}
	quiet, bareQuiet := c.produceWhile(took, func() {})
	var busy, bareBusy probeWaits
	measureReplay := func() {
		c.forget()
		u.begin(c.t, c.n)
		stop := c.profile(mib)
		defer stop()
		busy, bareBusy = c.produceWhile(took, func() { replay = c.replay() })
		u.end(c.t, c.n)
	}
	if round%2 == 0 {
		loop = c.loop()
		measureReplay()
	} else {
		measureReplay()
		loop = c.loop()
	}
	store := "uncapped"
	if mib > 0 {
		store = fmt.Sprintf("%d MiB/s", mib)
	}
	c.t.Logf("| %s | %.0f | %.0f | %.2f | %.2f | %.2f cores | %s | %s |", store, loop/1e6, replay/1e6, replay/loop,
		u.cpu/(float64(c.bytes)/(1<<30)), u.machine, compared(quiet, busy), compared(bareQuiet, bareBusy))
}

// compared is three cells of the table.
func compared(without, with probeWaits) string {
	return fmt.Sprintf("%v, %v | %v, %v | %.2f", without.P50, without.P99, with.P50, with.P99, float64(with.P99)/float64(without.P99))
}

// profile takes a CPU profile of the node's next 3 seconds into the file COLD_PROFILE.RATE.
func (c *cold) profile(mib int) (wait func()) {
	path := fmt.Sprintf("%s.%d", os.Getenv("COLD_PROFILE"), mib)
	if os.Getenv("COLD_PROFILE") == "" {
		return func() {}
	}
	var g group
	g.Go(func() error {
		resp, err := http.Get("http://" + c.n.Admin + "/debug/pprof/profile?seconds=3")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return errors.Join(err, os.WriteFile(path, b, 0o600))
	})
	return func() {
		if err := g.Wait(); err != nil {
			c.t.Error(err)
		}
	}
}

// usage is the CPU that the node and the machine took.
type usage struct {
	cpu, machine float64 // seconds; cores
	node0, all0  float64
	at           time.Time
}

func cpuOf(t *testing.T, pid int) (node, all float64) {
	t.Helper()
	const hz = 100
	sum := func(path string, from, to int) (ticks float64) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		line, _, _ := strings.Cut(string(b), "\n")
		if i := strings.LastIndexByte(line, ')'); i >= 0 {
			line = line[i+1:]
		}
		for i, f := range strings.Fields(line) {
			if i >= from && i < to && i != 4 && i != 5 { // idle and iowait of /proc/stat
				v, err := strconv.ParseFloat(f, 64)
				if err != nil {
					t.Fatal(err)
				}
				ticks += v
			}
		}
		return ticks / hz
	}
	return sum(fmt.Sprintf("/proc/%d/stat", pid), 11, 13), sum("/proc/stat", 1, 8)
}

func (u *usage) begin(t *testing.T, n *Node) {
	u.node0, u.all0 = cpuOf(t, n.Pid())
	u.at = time.Now()
}

func (u *usage) end(t *testing.T, n *Node) {
	node, all := cpuOf(t, n.Pid())
	u.cpu, u.machine = node-u.node0, (all-u.all0)/time.Since(u.at).Seconds()
}

// fill writes the topic and waits until all of it is only in the bucket.
func (c *cold) fill(size int64) {
	t := c.t
	createTopic(t, c.n, coldTopic, coldPartitions, map[string]string{"segment.bytes": "67108864", "local.retention.bytes": "0"})
	createTopic(t, c.n, goodTopic, 1, nil)
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.n.Kafka), kgo.DefaultProduceTopic(coldTopic), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(1<<20), kgo.MaxBufferedBytes(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	blob := make([]byte, coldValue)
	for i := range blob {
		blob[i] = byte(i * i >> 3)
	}
	for range size / coldValue {
		cl.Produce(context.Background(), &kgo.Record{Value: blob}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Errorf("produce: %v", err)
			}
		})
	}
	if err := cl.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.n.API(http.MethodPost, "/v1/topics/"+coldTopic+"/roll", nil)
	eventually(t, time.Minute, "all only in the bucket", func() bool {
		for _, s := range c.n.Storage(coldTopic) {
			if s.LocalStart < s.HighWatermark {
				return false
			}
		}
		return true
	})
	for _, s := range c.n.Segments(coldTopic) {
		if s.Key != "" {
			c.keys = append(c.keys, object{s.Key, s.Bytes})
			c.bytes += s.Bytes
		}
	}
}

// forget makes the node's cache cold.
func (c *cold) forget() {
	c.n.Stop()
	if err := os.RemoveAll(filepath.Join(c.n.Dir, "cache")); err != nil {
		c.t.Fatal(err)
	}
	c.n.Start()
}

// loop reads all objects by ranged GETs, some at once, and returns bytes per second.
func (c *cold) loop() float64 {
	cl := awss3.New(awss3.Options{BaseEndpoint: aws.String(c.relay.url()), Region: "us-east-1", UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(c.e.AccessKey, c.e.SecretKey, "")})
	type part struct {
		object
		at int64
	}
	parts := make(chan part)
	var g group
	var got atomic.Int64
	began := time.Now()
	for range coldParallel {
		g.Go(func() error {
			for p := range parts {
				out, err := cl.GetObject(context.Background(), &awss3.GetObjectInput{Bucket: &c.e.Bucket, Key: aws.String("main/job/" + p.key),
					Range: aws.String(fmt.Sprintf("bytes=%d-%d", p.at, min(p.at+coldRange, p.size)-1))})
				if err != nil {
					return err
				}
				n, err := io.Copy(io.Discard, out.Body)
				got.Add(n)
				if err = errors.Join(err, out.Body.Close()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for _, k := range c.keys {
		for at := int64(0); at < k.size; at += coldRange {
			parts <- part{k, at}
		}
	}
	close(parts)
	if err := g.Wait(); err != nil {
		c.t.Fatal(err)
	}
	if got.Load() != c.bytes {
		c.t.Fatalf("the loop read %d bytes of %d", got.Load(), c.bytes)
	}
	return float64(c.bytes) / time.Since(began).Seconds()
}

// replay reads every partition by Fetch, each on a connection of its own, and
// returns bytes per second.
func (c *cold) replay() float64 {
	var g group
	var got atomic.Int64
	began := time.Now()
	for _, s := range c.n.Storage(coldTopic) {
		g.Go(func() error {
			n, err := fetchColdly(c.n, coldTopic, s.Partition, s.HighWatermark, nil)
			got.Add(n)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		c.t.Fatal(err)
	}
	if got.Load() < c.bytes*99/100 {
		c.t.Fatalf("the replay read %d bytes of %d", got.Load(), c.bytes)
	}
	return float64(c.bytes) / time.Since(began).Seconds()
}

// fetchColdly reads a partition below end by Fetch requests of 8 MiB to this node, whoever leads it, and
// looks at the batches' headers only. The batches go to w, if it is not nil.
func fetchColdly(n *Node, topic string, partition int32, end int64, w io.Writer) (size int64, err error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka), kgo.BrokerMaxReadBytes(64<<20), kgo.MaxVersions(kversion.V3_0_0())) // names topics by name
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	for at := int64(0); at < end; {
		req := kmsg.NewPtrFetchRequest()
		req.MaxBytes, req.MinBytes, req.MaxWaitMillis, req.SessionEpoch = 16<<20, 1, 1000, -1
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes = partition, at, 8<<20
		t := kmsg.NewFetchRequestTopic()
		t.Topic, t.Partitions = topic, []kmsg.FetchRequestTopicPartition{p}
		req.Topics = []kmsg.FetchRequestTopic{t}
		resp, err := cl.SeedBrokers()[0].Request(context.Background(), req)
		if err != nil {
			return size, err
		}
		got := resp.(*kmsg.FetchResponse).Topics[0].Partitions[0]
		if got.ErrorCode != 0 {
			return size, fmt.Errorf("fetch offset %d: error %d", at, got.ErrorCode)
		}
		for b := got.RecordBatches; ; {
			h, err := batch.Parse(b)
			if err != nil || h.Size() > len(b) { // the end, or a batch that was cut
				break
			}
			at = h.LastOffset() + 1
			size += int64(h.Size())
			if w != nil {
				_, _ = w.Write(b[:h.Size()]) // a hash
			}
			b = b[h.Size():]
		}
	}
	return size, nil
}

// produceWhile sends single records, 500 a second, from a process of its own while
// f runs, and returns what they waited, from when each was due, and what the bare
// exchanges of another process waited beside them.
func (c *cold) produceWhile(d time.Duration, f func()) (produce, bare probeWaits) {
	var g group
	var got struct {
		P50 float64 `json:"p50_ms"`
		P99 float64 `json:"p99_ms"`
	}
	g.Go(func() error {
		var out bytes.Buffer
		err := c.n.CLI(&out, "bench", "produce", "-t", goodTopic, "--keep", "--rate", "500", "--linger", "0s", "--size", "1024", "-d", d.String(), "-o", "json")
		return errors.Join(err, json.Unmarshal(out.Bytes(), &got))
	})
	g.Go(func() (err error) {
		bare, err = runProbe(filepath.Dir(c.n.Dir), d)
		return err
	})
	f()
	if err := g.Wait(); err != nil {
		c.t.Fatal(err)
	}
	ms := func(v float64) time.Duration { return time.Duration(v * float64(time.Millisecond)) }
	return probeWaits{ms(got.P50), ms(got.P99)}.round(), bare.round()
}

func (w probeWaits) round() probeWaits {
	return probeWaits{w.P50.Round(10 * time.Microsecond), w.P99.Round(10 * time.Microsecond)}
}

// envRounds is COLD_ROUNDS, or 3.
func envRounds() int {
	if n, err := strconv.Atoi(os.Getenv("COLD_ROUNDS")); err == nil {
		return n
	}
	return 3
}
