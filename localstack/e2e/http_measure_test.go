package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	sideLine   = 1024      // bytes of a JSON value, with its newline
	sideBody   = 1024      // lines of an NDJSON body
	sideLarge  = 1_000_000 // bytes of the largest record
	sideStored = 32 << 10  // lines of each partition that is read
	sideReads  = 4         // partitions, each with a reader
	pageBytes  = 1 << 20   // of a bounded read and of a fetch
)

// work is what one worker does again and again: one request or its counterpart.
// It returns the records and bytes of values that went through.
type work func(worker int) (records, size int64, err error)

// side is one row: the same records through both ports.
type side struct {
	name    string
	file    string // of its profile: HTTP_PROFILE.FILE
	workers int
	// begin makes what a run needs on a fresh topic; with kafka for that port.
	begin func(b *beside, topic string, kafka bool) (work, func())
	runs  [2][]sideRun // HTTP, Kafka
}

// sideRun is a run of one port: rates per second.
type sideRun struct{ requests, records, bytes, cpuGiB, cpuRequest float64 }

// beside is the measurement of the HTTP gateway beside the Kafka port of one node.
type beside struct {
	t        *testing.T
	n        *Node
	time     time.Duration // of a run
	lines    []byte        // sideBody different lines
	topics   int
	requests atomic.Int64 // Produce and Fetch requests that went to the Kafka port
}

// TestHTTPBesideKafka measures the native HTTP routes and the Kafka port of one
// node with the same records in turn, HTTP_SECONDS each, and prints a table. It
// asserts nothing but that all requests succeed: `make bench-http`.
func TestHTTPBesideKafka(t *testing.T) {
	seconds, err := strconv.ParseFloat(os.Getenv("HTTP_SECONDS"), 64)
	if err != nil {
		t.Skip("skipped: a measurement, run by `make bench-http`")
	}
	rounds, err := strconv.Atoi(os.Getenv("HTTP_ROUNDS"))
	if err != nil {
		rounds = 3
	}
	b := &beside{t: t, time: time.Duration(seconds * float64(time.Second)), lines: logLines(sideBody)}
	b.n = NewNode(t, NodeOptions{Args: []string{"--wal-size", "512MiB", "--memory-tail", "1GiB"}})
	sides := []*side{
		{name: "NDJSON, 1 MiB of 1 KiB values, 4 at once", file: "ndjson", workers: 4, begin: (*beside).lineBodies},
		{name: "raw body of 1 KiB, 64 at once", file: "raw1k", workers: 64, begin: func(b *beside, topic string, kafka bool) (work, func()) {
			return b.bodies(topic, kafka, b.lines[:sideLine])
		}},
		{name: "raw body of 1,000,000 bytes, 4 at once", file: "raw1m", workers: 4, begin: func(b *beside, topic string, kafka bool) (work, func()) {
			return b.bodies(topic, kafka, b.lines[:sideLarge])
		}},
		{name: "read by cursor, 1 MiB a page, 4 readers", file: "read", workers: sideReads, begin: (*beside).pages},
	}
	sides = slices.DeleteFunc(sides, func(s *side) bool { return !strings.HasPrefix(s.file, os.Getenv("HTTP_ROW")) })
	for round := range rounds {
		for i, s := range sides {
			first := (round + i) % 2 // the port that is first changes
			for _, port := range []int{first, 1 - first} {
				s.runs[port] = append(s.runs[port], b.run(s, port, round))
			}
		}
	}
	t.Logf("median of %d rounds of %v each\n%s", rounds, b.time, sideTable(sides))
}

// logLines returns lines as a service logs them, all of one length.
func logLines(n int) []byte {
	random := rand.New(rand.NewPCG(1, 2))
	words := strings.Fields("order payment retried because upstream answered late cart user session token expired cache miss shard replica leader moved queue depth above limit while draining connection pool")
	var all []byte
	for i := range n {
		line := fmt.Appendf(nil, `{"time":"2026-01-02T03:04:%02d.%03dZ","level":"info","service":"checkout","trace":"%016x%016x","user":"%08x","path":"/api/v1/orders/%d","status":200,"took_us":%d,"message":"`,
			i%60, i%1000, random.Uint64(), random.Uint64(), random.Uint32(), random.IntN(1e9), random.IntN(1e6))
		for len(line) < sideLine {
			line = append(append(line, words[random.IntN(len(words))]...), ' ')
		}
		all = append(append(all, line[:sideLine-3]...), "\"}\n"...)
	}
	return all
}

// run lets the workers of a row work for a while on one port.
func (b *beside) run(s *side, port, round int) sideRun {
	kafka := port == 1
	b.topics++
	topic := fmt.Sprint("beside-", b.topics)
	createTopic(b.t, b.n, topic, sideReads, map[string]string{"remote.storage.enable": "false"})
	defer func() {
		if err := b.n.CLI(io.Discard, "topic", "delete", topic, "--yes"); err != nil {
			b.t.Fatal(err)
		}
	}()
	do, end := s.begin(b, topic, kafka)
	defer end()
	for w := range s.workers { // connections and what the gateway looks up first
		if _, _, err := do(w); err != nil {
			b.t.Fatalf("%s: %v", s.name, err)
		}
	}
	var g group
	var u usage
	var requests, records, size atomic.Int64
	b.requests.Store(0)
	wait := b.profile(s, port, round)
	u.begin(b.t, b.n)
	for w := range s.workers {
		g.Go(func() error {
			for time.Since(u.at) < b.time {
				n, bytes, err := do(w)
				if err != nil {
					return err
				}
				requests.Add(1)
				records.Add(n)
				size.Add(bytes)
			}
			return nil
		})
	}
	err := g.Wait()
	took := time.Since(u.at).Seconds()
	u.end(b.t, b.n)
	wait()
	if err != nil {
		b.t.Fatalf("%s: %v", s.name, err)
	}
	if kafka {
		requests.Store(b.requests.Load())
	}
	return sideRun{float64(requests.Load()) / took, float64(records.Load()) / took, float64(size.Load()) / took,
		u.cpu / (float64(size.Load()) / (1 << 30)), u.cpu / float64(requests.Load()) * 1e6}
}

// profile takes CPU profiles of the node's HTTP runs into files HTTP_PROFILE.FILE.
func (b *beside) profile(s *side, port, round int) (wait func()) {
	path := os.Getenv("HTTP_PROFILE")
	if path == "" || port == 1 || round > 0 {
		return func() {}
	}
	var g group
	g.Go(func() error {
		resp, err := http.Get(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", b.n.Admin, max(1, int(b.time.Seconds()))))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		p, err := io.ReadAll(resp.Body)
		return errors.Join(err, os.WriteFile(path+"."+s.file, p, 0o600))
	})
	return func() {
		if err := g.Wait(); err != nil {
			b.t.Error(err)
		}
	}
}

// client is a Kafka client with the settings of the gateway's own that count here.
func (b *beside) client(opts ...kgo.Opt) *kgo.Client {
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(b.n.Kafka), kgo.WithHooks(sideHook{&b.requests}), kgo.ProducerLinger(time.Millisecond),
		kgo.MaxBufferedBytes(64 << 20), kgo.MaxBufferedRecords(100_000), kgo.ProducerBatchMaxBytes(1 << 20)}, opts...)...)
	if err != nil {
		b.t.Fatal(err)
	}
	return cl
}

// sideHook counts Produce and Fetch requests.
type sideHook struct{ n *atomic.Int64 }

func (h sideHook) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if key <= 1 && err == nil {
		h.n.Add(1)
	}
}

// lineBodies produces sideBody records at once: an NDJSON body, or as many
// records that one caller waits for.
func (b *beside) lineBodies(topic string, kafka bool) (work, func()) {
	if kafka {
		cl := b.client(kgo.DefaultProduceTopic(topic))
		return func(int) (int64, int64, error) {
			recs := make([]*kgo.Record, 0, sideBody)
			for line := range bytes.Lines(b.lines) {
				recs = append(recs, kgo.SliceRecord(line[:len(line)-1]))
			}
			return sideBody, sideBody * sideLine, cl.ProduceSync(context.Background(), recs...).FirstErr()
		}, cl.Close
	}
	end := fmt.Appendf(nil, `{"done":true,"lines":%d,"produced":%d,"failed":0}`+"\n", sideBody, sideBody)
	return b.posts(topic, "application/x-ndjson", b.lines, func(answer []byte) (int64, error) {
		if !bytes.HasSuffix(answer, end) {
			return 0, fmt.Errorf("produce lines: %.200q", answer[max(0, len(answer)-200):])
		}
		return sideBody, nil
	})
}

// bodies produces one record at a time.
func (b *beside) bodies(topic string, kafka bool, value []byte) (work, func()) {
	if kafka {
		cl := b.client(kgo.DefaultProduceTopic(topic))
		return func(int) (int64, int64, error) {
			return 1, int64(len(value)), cl.ProduceSync(context.Background(), kgo.SliceRecord(value)).FirstErr()
		}, cl.Close
	}
	return b.posts(topic, "application/octet-stream", value, func([]byte) (int64, error) { return 1, nil })
}

// posts sends one body again and again, each worker on a connection of its own.
func (b *beside) posts(topic, media string, body []byte, check func(answer []byte) (int64, error)) (work, func()) {
	req := fmt.Appendf(nil, "POST /api/v1/topics/%s/messages HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", topic, media, len(body), body)
	conns := sideConns{b: b, conns: make([]*sideConn, 64)}
	return func(w int) (int64, int64, error) {
		answer, err := conns.do(w, req)
		if err != nil {
			return 0, 0, err
		}
		n, err := check(answer)
		return n, int64(len(body)), err
	}, conns.close
}

// pages reads the partitions again and again, each worker one of them: page
// after page by cursor, or fetch after fetch.
func (b *beside) pages(topic string, kafka bool) (work, func()) {
	cl := b.client(kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	defer cl.Close()
	var recs []*kgo.Record
	for i := range sideReads * sideStored / sideBody {
		for line := range bytes.Lines(b.lines) {
			recs = append(recs, &kgo.Record{Partition: int32(i % sideReads), Value: line[:len(line)-1]})
		}
	}
	if err := cl.ProduceSync(context.Background(), recs...).FirstErr(); err != nil {
		b.t.Fatal(err)
	}
	if kafka {
		return b.fetches(topic)
	}
	conns := sideConns{b: b, conns: make([]*sideConn, sideReads)}
	cursors := make([]string, sideReads)
	return func(w int) (int64, int64, error) {
		answer, err := conns.do(w, fmt.Appendf(nil, "GET /api/v1/topics/%s/messages?partition=%d&limit=10000&max_bytes=%d%s HTTP/1.1\r\nHost: x\r\n\r\n", topic, w, pageBytes, cursors[w]))
		if err != nil {
			return 0, 0, err
		}
		at := bytes.LastIndex(answer, []byte(`],"next":"`))
		if at < 0 {
			return 0, 0, fmt.Errorf("read: %.200q", answer)
		}
		next, more, _ := strings.Cut(string(answer[at+10:]), `"`)
		if cursors[w] = "&cursor=" + next; !strings.Contains(more, "true") {
			cursors[w] = "" // again
		}
		n := int64(bytes.Count(answer, []byte(`{"topic":`)))
		return n, n * (sideLine - 1), nil
	}, conns.close
}

// fetches is the counterpart of pages: a consumer of each partition.
func (b *beside) fetches(topic string) (work, func()) {
	clients := make([]*kgo.Client, sideReads)
	left := make([]int, sideReads)
	return func(w int) (n, size int64, err error) {
			if left[w] == 0 {
				if clients[w] != nil {
					clients[w].Close()
				}
				clients[w] = b.client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {int32(w): kgo.NewOffset().AtStart()}}),
					kgo.FetchMaxBytes(pageBytes), kgo.FetchMaxPartitionBytes(pageBytes))
				left[w] = sideStored
			}
			f := clients[w].PollFetches(context.Background())
			if err := f.Err(); err != nil {
				return 0, 0, err
			}
			n = int64(f.NumRecords())
			left[w] -= int(n)
			return n, n * (sideLine - 1), nil
		}, func() {
			for _, cl := range clients {
				if cl != nil {
					cl.Close()
				}
			}
		}
}

// sideConns are HTTP connections, one for each worker, of a client that takes
// as little of the machine as it can.
type sideConns struct {
	b     *beside
	conns []*sideConn
}

type sideConn struct {
	net.Conn
	in  *bufio.Reader
	buf bytes.Buffer
}

// do makes one request; its answer is valid until the worker's next one.
func (c *sideConns) do(w int, req []byte) ([]byte, error) {
	conn := c.conns[w]
	if conn == nil {
		nc, err := net.Dial("tcp", c.b.n.HTTP)
		if err != nil {
			return nil, err
		}
		conn = &sideConn{Conn: nc, in: bufio.NewReaderSize(nc, 64<<10)}
		c.conns[w] = conn
	}
	if _, err := conn.Write(req); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(conn.in, nil)
	if err != nil {
		return nil, err
	}
	conn.buf.Reset()
	_, err = conn.buf.ReadFrom(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", resp.Status, conn.buf.Bytes())
	}
	return conn.buf.Bytes(), err
}

func (c *sideConns) close() {
	for _, conn := range c.conns {
		if conn != nil {
			_ = conn.Close()
		}
	}
}

// sideTable has a line for each row and port, and the ratios HTTP : Kafka of
// the rounds as their median and range.
func sideTable(sides []*side) string {
	var out strings.Builder
	out.WriteString("| | port | requests/s | records/s | MB/s | server CPU-s/GiB | CPU us a request | records/s, HTTP : Kafka | CPU, HTTP : Kafka |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range sides {
		for port, name := range []string{"HTTP", "Kafka"} {
			of := func(f func(sideRun) float64) float64 {
				m, _, _ := spread(s.runs[port], f)
				return m
			}
			fmt.Fprintf(&out, "| %s | %s | %.0f | %.0f | %.1f | %.2f | %.0f |", s.name, name, of(func(r sideRun) float64 { return r.requests }), of(func(r sideRun) float64 { return r.records }),
				of(func(r sideRun) float64 { return r.bytes })/1e6, of(func(r sideRun) float64 { return r.cpuGiB }), of(func(r sideRun) float64 { return r.cpuRequest }))
			if port == 1 {
				out.WriteString(" | |\n")
				continue
			}
			for _, f := range []func(sideRun) float64{func(r sideRun) float64 { return r.records }, func(r sideRun) float64 { return r.cpuGiB }} {
				ratios := make([]float64, len(s.runs[0]))
				for i := range ratios {
					ratios[i] = f(s.runs[0][i]) / f(s.runs[1][i])
				}
				m, low, high := spread(ratios, func(v float64) float64 { return v })
				fmt.Fprintf(&out, " %.2f (%.2f - %.2f) |", m, low, high)
			}
			out.WriteString("\n")
		}
	}
	return out.String()
}

// spread returns the median and the range of what f says of all.
func spread[T any](all []T, f func(T) float64) (median, low, high float64) {
	v := make([]float64, len(all))
	for i := range all {
		v[i] = f(all[i])
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2, v[0], v[len(v)-1]
}
