package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	manyConnections = 12_000
	manyHalfOpen    = 4_000
	manyAddresses   = 8    // 127.0.0.2 and on
	manyProbes      = 1000 // produce requests of the client that is measured
	// manyMemory is what a connection that waits may take of the node.
	manyMemory = 24 << 10
	pollTopic  = "polls"
	// pollMemory is what a long poll may take beside its connection.
	pollMemory = 16 << 10
)

// dialFrom connects to the node from the i-th loopback address.
func dialFrom(n *Node, i int) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: grace, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%manyAddresses))}}
	c, err := d.Dial("tcp", n.Kafka)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// vanish ends a connection without a word to its peer, as a machine that loses
// its power does (TCP_REPAIR of Linux).
func vanish(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	const tcpRepair = 19
	var set error
	if err := raw.Control(func(fd uintptr) { set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpRepair, 1) }); err != nil {
		return err
	}
	_ = c.Close()
	return set
}

// probe returns the median and the 99th percentile of produce requests of one
// record, one after another.
func probe(t *testing.T, n *Node) (p50, p99 time.Duration) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka), kgo.DefaultProduceTopic(goodTopic), kgo.ProducerLinger(0))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var took []time.Duration
	for i := range manyProbes + 50 {
		began := time.Now()
		if err := cl.ProduceSync(ctx, kgo.StringRecord("probe")).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if i >= 50 {
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100]
}

// Thousands of connections from several addresses, thousands of half-open ones
// among them: the node has little memory for each and serves the others.
func TestManyConnections(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	idle, half := manyConnections, manyHalfOpen
	if spare := int(limit.Max) - 1000; idle+half > spare {
		t.Logf("this machine allows %d open files: fewer connections", limit.Max)
		idle, half = spare*3/4, spare/4
	}
	n := NewNode(t, NodeOptions{Args: append(memoryArgs(), "--max-connections", "20000", "--max-connections-per-ip", "5000")})
	createTopic(t, n, goodTopic, 1, nil)
	probe(t, n) // warms up
	p50, p99 := probe(t, n)
	before, _, err := rss(n.Pid())
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	ask := frame(kmsg.Metadata.Int16(), 1, be(int32(0)))
	var open []*net.TCPConn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for i := range idle {
		c, err := dialFrom(n, i)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		open = append(open, c)
		if err := askOnce(c, ask); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	gone := 0
	for i := range half {
		c, err := dialFrom(n, i)
		if err != nil {
			t.Fatalf("half-open connection %d: %v", i, err)
		}
		if _, err := c.Write(ask[:3+i%(len(ask)-4)]); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			open = append(open, c)
		} else if err := vanish(c); err == nil {
			gone++
		}
	}
	took := time.Since(began)
	with50, with99 := probe(t, n)
	now, peak, err := rss(n.Pid())
	if err != nil {
		t.Fatal(err)
	}
	each := (now - before) / int64(idle+half)
	t.Logf("%d connections, %d half-open (%d of them vanished) in %.1f s: %d MiB resident before, %d with them (%d bytes each), %d at most", idle, half, gone, took.Seconds(), before>>20, now>>20, each, peak>>20)
	t.Logf("produce of one record: p50 %v, p99 %v before; p50 %v, p99 %v with them (%.2fx, %.2fx)", p50, p99, with50, with99, float64(with50)/float64(p50), float64(with99)/float64(p99))
	if each > manyMemory {
		t.Errorf("%d bytes for each connection, want at most %d", each, manyMemory)
	}
	longPolls(t, n, open[:idle])
	for i, c := range open[:idle:idle] { // all are served still
		if i%100 == 0 {
			if err := askOnce(c, ask); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		}
	}
	n.MustRun()
}

// longPolls has every connection wait for the first record of a topic: a poll that waits takes little memory, others are
// served meanwhile, and each gets the record.
func longPolls(t *testing.T, n *Node, open []*net.TCPConn) {
	t.Helper()
	createTopic(t, n, pollTopic, 1, nil)
	fetch := kmsg.NewFetchRequest()
	fetch.Version, fetch.MaxWaitMillis, fetch.MaxBytes, fetch.MinBytes = 4, 300_000, 1<<20, 1
	topic, part := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
	topic.Topic, part.PartitionMaxBytes = pollTopic, 1<<20
	topic.Partitions = append(topic.Partitions, part)
	fetch.Topics = append(fetch.Topics, topic)
	ask := frame(fetch.Key(), fetch.Version, fetch.AppendTo(nil))
	before, _, err := rss(n.Pid())
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range open {
		_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
		if _, err := c.Write(ask); err != nil {
			t.Fatalf("poll %d: %v", i, err)
		}
	}
	p50, p99 := probe(t, n)
	now, _, err := rss(n.Pid())
	if err != nil {
		t.Fatal(err)
	}
	each := (now - before) / int64(len(open))
	began := time.Now()
	if _, _, err := (wire{t, n}).produce(pollTopic, encode(t, 0, false, 1, time.Now().UnixMilli(), nil)); err != nil {
		t.Fatal(err)
	}
	for i, c := range open {
		var size [4]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			t.Fatalf("poll %d: %v", i, err)
		}
		resp := kmsg.NewPtrFetchResponse()
		resp.Version = fetch.Version
		b := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatalf("poll %d: %v", i, err)
		}
		if err := resp.ReadFrom(b[4:]); err != nil || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions[0].RecordBatches) == 0 {
			t.Fatalf("poll %d got %+v, %v", i, resp, err)
		}
	}
	t.Logf("%d long polls: %d bytes each; produce of one record meanwhile: p50 %v, p99 %v; all had the record after %v", len(open), each, p50, p99, time.Since(began).Round(time.Millisecond))
	if each > pollMemory {
		t.Errorf("%d bytes for each long poll, want at most %d", each, pollMemory)
	}
}

// askOnce sends a request and reads its answer.
func askOnce(c net.Conn, ask []byte) error {
	if err := c.SetDeadline(time.Now().Add(grace)); err != nil {
		return err
	}
	if _, err := c.Write(ask); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	var size [4]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(size[:]))); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return nil
}
