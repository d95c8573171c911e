package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/cirrolog/cirrolog/storage/batch"
)

const (
	badTopic  = "bad"
	goodTopic = "good"
	// badConnections is --max-connections-per-ip.
	badConnections = 60
	badIdle        = 4 * time.Second // --idle-timeout
	// frameTime is how long the server waits for a frame that has begun.
	frameTime = 30 * time.Second
	// badMemory is what the node may take here: the records are few, so it is
	// the program and what it has mapped for them, and nothing of the 160 MiB of
	// frames that are only claimed or of the 512 MiB in the bomb.
	badMemory = 128 << 20
	grace     = 20 * time.Second // beside a deadline of the server, on a busy machine
)

// Bad input to a real process: each gets Kafka's error code or a closed
// connection, memory stays bounded, other clients are served meanwhile, and
// what was acknowledged is there afterwards.
func TestBadInput(t *testing.T) {
	t.Parallel()
	n := NewNode(t, NodeOptions{Args: append(memoryArgs(), "--max-connections-per-ip", fmt.Sprint(badConnections), "--idle-timeout", badIdle.String(), "--retention-interval", "500ms")})
	createTopic(t, n, goodTopic, 2, nil)
	createTopic(t, n, badTopic, 1, map[string]string{"max.message.bytes": "1048576"})
	l := newLoad(goodTopic, 2, 2)
	produce := func(producer int, d time.Duration) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		if err := l.produce(ctx, n.Kafka, producer, 4<<20, time.Minute); err != nil {
			t.Error(err)
		}
	}
	produce(0, time.Second)

	// Those that dawdle do so while the rest goes on.
	waiting := dawdle(t, n)
	t.Run("frames", func(t *testing.T) { badFrames(t, n) })
	t.Run("idle", func(t *testing.T) { idleConnections(t, n) })
	t.Run("batches", func(t *testing.T) { badBatches(t, n) })
	t.Run("halfopen", func(t *testing.T) { halfOpen(t, n) })
	produce(1, time.Second)
	t.Run("connections", func(t *testing.T) { tooManyConnections(t, n) })
	if err := waiting.Wait(); err != nil {
		t.Error(err)
	}
	n.MustRun()
	l.check(t, n.Kafka, time.Minute)
	_, peak, err := rss(n.Pid())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("peak of %d MiB resident", peak>>20)
	if peak > badMemory {
		t.Errorf("resident memory was %d MiB, want at most %d", peak>>20, badMemory>>20)
	}
	n.Stop()
}

// rawConn connects to the node; the connection is closed at the end of the test.
func rawConn(t *testing.T, n *Node) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", n.Kafka)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// closedIn waits until the server closes a connection, without an answer, and
// returns after how long.
func closedIn(c net.Conn, limit time.Duration) (time.Duration, error) {
	began := time.Now()
	if err := c.SetReadDeadline(began.Add(limit)); err != nil {
		return 0, err
	}
	n, err := c.Read(make([]byte, 1))
	switch {
	case n > 0:
		return 0, errors.New("got an answer")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, fmt.Errorf("still open after %v", limit)
	}
	return time.Since(began), nil
}

// be is the parts in network order.
func be(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		b, _ = binary.Append(b, binary.BigEndian, p)
	}
	return b
}

// frame is a whole request with a null client id.
func frame(key, version int16, body []byte) []byte {
	b := append(be(key, version, int32(7), int16(-1)), body...)
	return append(be(int32(len(b))), b...)
}

// dawdle begins frames that never end: their first bytes, a byte each second,
// and claims of megabytes of which little comes. Wait on the result tells
// whether each was cut off when its time was over, and not long before.
func dawdle(t *testing.T, n *Node) *group {
	g := &group{}
	begin := be(int32(200), kmsg.Metadata.Int16(), int16(1), int32(7), int16(-1))
	late := func(what string, sent []byte, drip []byte) {
		c := rawConn(t, n)
		g.Go(func() error {
			if _, err := c.Write(sent); err != nil {
				return err
			}
			if len(drip) > 0 {
				g.Go(func() error {
					for i := range drip {
						time.Sleep(time.Second)
						if _, err := c.Write(drip[i : i+1]); err != nil {
							return nil // cut off, as it should be
						}
					}
					return nil
				})
			}
			took, err := closedIn(c, frameTime+grace)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			if took < frameTime/2 {
				return fmt.Errorf("%s: cut off after %v", what, took)
			}
			return nil
		})
	}
	late("one byte", begin[:1], nil)
	late("a header", begin[:9], nil)
	late("a byte each second", begin[:1], append(begin[1:len(begin):len(begin)], make([]byte, 60)...))
	for range 20 { // 160 MiB in all
		late("8 MiB claimed", append(be(int32(8<<20), kmsg.Produce.Int16(), int16(9), int32(1), int16(-1)), make([]byte, 4<<10)...), nil)
	}
	return g
}

func badFrames(t *testing.T, n *Node) {
	const many = int32(math.MaxInt32)
	for name, sent := range map[string][]byte{
		"produce above --max-frame":  be(int32(8<<20+1), kmsg.Produce.Int16(), int16(9)),
		"2 GiB":                      be(many, kmsg.Produce.Int16(), int16(9)),
		"negative length":            be(int32(-1), kmsg.Metadata.Int16(), int16(1)),
		"other request of 5 MiB":     be(int32(5<<20), kmsg.Metadata.Int16(), int16(1)),
		"http":                       []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"unknown key":                frame(9999, 0, nil),
		"metadata of 2^31-1 topics":  frame(kmsg.Metadata.Int16(), 1, be(many)),
		"produce of 2^31-1 topics":   frame(kmsg.Produce.Int16(), 3, be(int16(-1), int16(-1), int32(0), many)),
		"records longer than frame":  frame(kmsg.Produce.Int16(), 3, be(int16(-1), int16(-1), int32(0), int32(1), int16(3), []byte(badTopic), int32(1), int32(0), many)),
		"fetch of 2^31-1 partitions": frame(kmsg.Fetch.Int16(), 4, be(int32(-1), int32(0), int32(0), int32(0), int8(0), int32(1), int16(3), []byte(badTopic), many)),
	} {
		c := rawConn(t, n)
		if _, err := c.Write(sent); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := closedIn(c, grace); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func idleConnections(t *testing.T, n *Node) {
	silent, once := rawConn(t, n), rawConn(t, n)
	if _, err := once.Write(frame(kmsg.Metadata.Int16(), 1, be(int32(0)))); err != nil {
		t.Fatal(err)
	}
	var size [4]byte
	if _, err := io.ReadFull(once, size[:]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, once, int64(binary.BigEndian.Uint32(size[:]))); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]net.Conn{"without a request": silent, "after a request": once} {
		if _, err := closedIn(c, badIdle+grace); err != nil {
			t.Errorf("connection %s: %v", name, err)
		}
	}
}

// halfOpen leaves clients that ask and never read, and clients that vanish.
func halfOpen(t *testing.T, n *Node) {
	fetch := kmsg.NewFetchRequest()
	fetch.Version, fetch.MaxBytes, fetch.MinBytes = 4, 50<<20, 1
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic = goodTopic
	for p := range int32(2) {
		part := kmsg.NewFetchRequestTopicPartition()
		part.Partition, part.PartitionMaxBytes = p, 50<<20
		topic.Partitions = append(topic.Partitions, part)
	}
	fetch.Topics = append(fetch.Topics, topic)
	ask := frame(fetch.Key(), fetch.Version, fetch.AppendTo(nil))
	for i := range 10 {
		c := rawConn(t, n)
		_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		for range 20 {
			_ = c.SetWriteDeadline(time.Now().Add(time.Second))
			if _, err := c.Write(ask); err != nil {
				break
			}
		}
		if i%2 == 0 { // vanishes; the others stay
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	}
}

func tooManyConnections(t *testing.T, n *Node) {
	ask := frame(kmsg.Metadata.Int16(), 1, be(int32(0)))
	answered := func() net.Conn {
		c, err := net.Dial("tcp", n.Kafka)
		if err != nil { // the reset of a refused one may come before the dial has ended
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Fatal(err)
			}
			return nil
		}
		_, err = c.Write(ask)
		if err == nil {
			_ = c.SetReadDeadline(time.Now().Add(grace))
			_, err = c.Read(make([]byte, 1))
		}
		if err != nil {
			_ = c.Close()
			return nil
		}
		return c
	}
	var open []net.Conn
	refused := false
	for range badConnections + 1 {
		c := answered()
		if refused = c == nil; refused {
			break
		}
		open = append(open, c)
	}
	if !refused || len(open) == 0 {
		t.Errorf("%d connections beside those that were open, of %d: the next was refused: %v", len(open), badConnections, refused)
	}
	for _, c := range open {
		_ = c.Close()
	}
	eventually(t, grace, "a connection when others have gone", func() bool {
		c := answered()
		if c != nil {
			_ = c.Close()
		}
		return c != nil
	})
}

// bomb is a batch of one record whose value is 512 MiB of zeros.
func bomb(t *testing.T) []byte {
	t.Helper()
	const value = 512 << 20
	head := []byte{0, 0, 0, 1} // attributes, timestamp and offset delta, null key
	head = binary.AppendVarint(head, value)
	raw := binary.AppendVarint(make([]byte, 0, value+64), int64(len(head)+value+1))
	raw = append(raw, head...)
	raw = raw[:len(raw)+value+1] // and no headers
	packed, err := batch.Compress(batch.CodecZstd, raw, false)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UnixMilli()
	return batch.Assemble(batch.Header{Magic: 2, Attributes: int16(batch.CodecZstd), BaseTimestamp: now, MaxTimestamp: now,
		ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, NumRecords: 1}, packed)
}

func badBatches(t *testing.T, n *Node) {
	b := bomb(t) // takes a while, and this node closes idle connections soon
	cl := newClient(t, n.Kafka, kgo.MaxVersions(kversion.V2_8_0()))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	send := func(b []byte) kmsg.ProduceResponseTopicPartition {
		t.Helper()
		req := kmsg.NewPtrProduceRequest()
		req.Acks, req.TimeoutMillis = -1, 10_000
		topic, part := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
		topic.Topic, part.Records = badTopic, b
		topic.Partitions = append(topic.Partitions, part)
		req.Topics = append(req.Topics, topic)
		resp, err := cl.SeedBrokers()[0].Request(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		return resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
	}
	records := []batch.Record{{Timestamp: time.Now().UnixMilli(), Value: []byte("a")}, {Timestamp: time.Now().UnixMilli(), Value: []byte("b")}}
	good, err := batch.Encode(records, batch.EncodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h, err := batch.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(h *batch.Header)) []byte {
		lie := h
		f(&lie)
		return batch.Assemble(lie, good[batch.HeaderSize:])
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	huge, err := batch.Encode([]batch.Record{{Timestamp: time.Now().UnixMilli(), Value: make([]byte, 2<<20)}}, batch.EncodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		b    []byte
		want *kerr.Error
	}{
		"wrong crc":               {flipped, kerr.CorruptMessage},
		"magic 1":                 {change(func(h *batch.Header) { h.Magic = 1 }), kerr.InvalidRecord},
		"magic 9":                 {change(func(h *batch.Header) { h.Magic = 9 }), kerr.CorruptMessage},
		"three records of two":    {change(func(h *batch.Header) { h.NumRecords, h.LastOffsetDelta = 3, 2 }), kerr.InvalidRecord},
		"2^31-1 records":          {change(func(h *batch.Header) { h.NumRecords, h.LastOffsetDelta = math.MaxInt32, math.MaxInt32-1 }), kerr.InvalidRecord},
		"cut off":                 {good[:len(good)-1], kerr.CorruptMessage},
		"more than one batch":     {append(bytes.Clone(good), good...), kerr.InvalidRecord},
		"unknown codec":           {change(func(h *batch.Header) { h.Attributes = 7 }), kerr.UnsupportedCompressionType},
		"above max.message.bytes": {huge, kerr.MessageTooLarge},
	} {
		if p := send(c.b); p.ErrorCode != c.want.Code || p.BaseOffset != -1 {
			t.Errorf("%s: error %v, offset %d, want %v", name, kerr.ErrorForCode(p.ErrorCode), p.BaseOffset, c.want)
		}
	}
	// What is compressed goes through as it is: nobody here expands the bomb.
	if p := send(b); p.ErrorCode != 0 || p.BaseOffset != 0 {
		t.Fatalf("bomb of %d bytes: error %v, offset %d", len(b), kerr.ErrorForCode(p.ErrorCode), p.BaseOffset)
	}
	if p := send(good); p.ErrorCode != 0 || p.BaseOffset != 1 {
		t.Errorf("a good batch: error %v, offset %d", kerr.ErrorForCode(p.ErrorCode), p.BaseOffset)
	}
	tierAll(t, n, badTopic)
	req := kmsg.NewPtrFetchRequest()
	req.MaxBytes, req.MinBytes = 10<<20, 1
	topic, part := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
	topic.Topic, part.PartitionMaxBytes = badTopic, 10<<20
	topic.Partitions = append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	resp, err := cl.SeedBrokers()[0].Request(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	got := resp.(*kmsg.FetchResponse).Topics[0].Partitions[0].RecordBatches
	if want := b[batch.HeadSize:]; len(got) < len(b) || !bytes.Equal(got[batch.HeadSize:len(b)], want) {
		t.Errorf("the bomb of %d bytes came back differently in %d", len(b), len(got))
	}
}

// tierAll moves what a topic has to the bucket.
func tierAll(t *testing.T, n *Node, topic string) {
	t.Helper()
	n.API("POST", "/v1/topics/"+topic+"/roll", nil)
	eventually(t, time.Minute, "everything in the bucket", func() bool {
		for _, s := range n.Storage(topic) {
			if s.TieredEnd != s.HighWatermark {
				return false
			}
		}
		return true
	})
}
