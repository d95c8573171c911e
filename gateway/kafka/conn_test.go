package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
)

// prefixed puts the length before a frame.
func prefixed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// raw is a request header with a null client id, and a body.
func raw(key, version int16, body ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(key))
	b = binary.BigEndian.AppendUint16(b, uint16(version))
	b = binary.BigEndian.AppendUint32(b, 7)
	b = append(b, 0xff, 0xff)
	return prefixed(append(b, body...))
}

func be(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		b, _ = binary.Append(b, binary.BigEndian, p)
	}
	return b
}

// Frames that no client sends close the connection, without an answer, and the
// server goes on serving others.
func TestBadFrames(t *testing.T) {
	h := serve(t, Limits{})
	const many = int32(math.MaxInt32)
	for name, frame := range map[string][]byte{
		"unknown key":                  raw(9999, 0),
		"negative key":                 raw(-1, 0),
		"key not advertised":           raw(8, 2, be(int16(0))...),
		"fetch too old":                raw(1, 3),
		"metadata too new":             raw(3, 99),
		"negative version":             raw(3, -1),
		"length negative":              be(int32(-1), int16(3), int16(0)),
		"length zero":                  be(int32(0), int16(3), int16(0)),
		"length 7":                     be(int32(7), int16(3), int16(0), []byte{0, 0, 0}),
		"length 2 GiB":                 be(int32(math.MaxInt32), int16(0), int16(9)),
		"control of 5 MiB":             be(int32(5<<20), int16(3), int16(0)),
		"http":                         []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"no client id":                 prefixed(be(int16(3), int16(0), int32(7))),
		"client id too long":           prefixed(be(int16(3), int16(0), int32(7), int16(100), []byte("abc"))),
		"client id of length -2":       prefixed(be(int16(3), int16(0), int32(7), int16(-2), many)),
		"empty body":                   raw(1, 4),
		"metadata: 2^31-1 topics":      raw(3, 1, be(many)...),
		"metadata: compact 2^32-2":     raw(3, 9, 0, 0xff, 0xff, 0xff, 0xff, 0x0f),
		"fetch: 2^31-1 topics":         raw(1, 4, be(int32(-1), int32(0), int32(0), int32(0), int8(0), many)...),
		"fetch: 2^31-1 partitions":     raw(1, 4, be(int32(-1), int32(0), int32(0), int32(0), int8(0), int32(1), int16(1), []byte("a"), many)...),
		"produce: 2^31-1 topics":       raw(0, 3, be(int16(-1), int16(-1), int32(0), many)...),
		"produce: 2^31-1 partitions":   raw(0, 3, be(int16(-1), int16(-1), int32(0), int32(1), int16(1), []byte("a"), many)...),
		"produce: 2^31-1 records":      raw(0, 3, be(int16(-1), int16(-1), int32(0), int32(1), int16(1), []byte("a"), int32(1), int32(0), many)...),
		"header tags lie":              raw(3, 9, 0xff, 0xff, 0xff, 0xff, 0x0f),
		"header tag size lies":         raw(3, 9, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f),
		"produce: header tags lie":     raw(0, 9, 0xff, 0xff, 0xff, 0xff, 0x0f),
		"produce: unfinished varint":   raw(0, 9, 0, 0xff, 0xff, 0xff),
		"listoffsets: string of 32767": raw(2, 1, be(int32(-1), int32(1), int16(math.MaxInt16))...),
	} {
		w := h.dial()
		w.send(frame)
		w.wantClosed(name)
	}
	ask[*kmsg.MetadataResponse](h.dial(), kmsg.NewPtrMetadataRequest())
}

// A version of ApiVersions that is not served is answered in the form of v0.
func TestApiVersionsFallback(t *testing.T) {
	h := serve(t, Limits{})
	w := h.dial()
	for _, version := range []int16{5, 99, math.MaxInt16} {
		w.send(raw(18, version, 0xde, 0xad, 0xbe, 0xef))
		resp := kmsg.NewPtrApiVersionsResponse() // v0
		if corr := w.answer(resp); corr != 7 || resp.ErrorCode != kerr.UnsupportedVersion.Code {
			t.Fatalf("v%d: %+v", version, resp)
		}
		for _, k := range resp.ApiKeys {
			if k.ApiKey == 18 && (k.MinVersion != 0 || k.MaxVersion != 4) {
				t.Errorf("v%d: ApiVersions offered from %d to %d", version, k.MinVersion, k.MaxVersion)
			}
		}
	}
}

func TestApiVersions(t *testing.T) {
	h := serve(t, Limits{})
	w := h.dial()
	want := map[int16][2]int16{0: {0, 13}, 1: {4, 18}, 2: {1, 11}, 3: {0, 13}, 8: {2, 10}, 9: {1, 10}, 10: {0, 6}, 11: {0, 9}, 12: {0, 4}, 13: {0, 5}, 14: {0, 5}, 15: {0, 6}, 16: {0, 5}, 18: {0, 4}, 19: {2, 7}, 20: {1, 6}, 21: {0, 2}, 22: {0, 5},
		23: {2, 4}, 32: {1, 4}, 33: {0, 2}, 35: {1, 5}, 37: {0, 3}, 42: {0, 2}, 44: {0, 1}, 47: {0, 0}, 60: {0, 2}, 75: {0, 0}}
	for v := int16(0); v <= 4; v++ {
		req := kmsg.NewPtrApiVersionsRequest()
		req.Version, req.ClientSoftwareName, req.ClientSoftwareVersion = v, "apache-kafka-java", "4.1.0"
		resp := ask[*kmsg.ApiVersionsResponse](w, req)
		got := map[int16][2]int16{}
		for _, k := range resp.ApiKeys {
			got[k.ApiKey] = [2]int16{k.MinVersion, k.MaxVersion}
		}
		if len(got) != len(want) || resp.ErrorCode != 0 {
			t.Errorf("v%d: %d apis, code %d", v, len(got), resp.ErrorCode)
		}
		for k, r := range want {
			if got[k] != r {
				t.Errorf("v%d: api %d offered as %v, want %v", v, k, got[k], r)
			}
		}
	}
	for _, name := range []string{"", "-x", "x-", "a b", "a\n", "é"} {
		req := kmsg.NewPtrApiVersionsRequest()
		req.Version, req.ClientSoftwareName, req.ClientSoftwareVersion = 3, name, "1"
		wantCode(t, strconv.Quote(name), ask[*kmsg.ApiVersionsResponse](w, req).ErrorCode, kerr.InvalidRequest)
	}
}

// rss is this process's resident memory in bytes.
func rss(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skipf("no /proc: %v", err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// Frames that claim 100 MiB and counts that claim 2^31-1 cost the memory of
// what was sent, not of what was claimed.
func TestLyingLengthsMemory(t *testing.T) {
	h := serve(t, Limits{MaxInFlight: 4 << 30})
	before := rss(t)
	for range 30 {
		w := h.dial()
		w.send(be(int32(100<<20), int16(0), int16(9), int32(1)))
	}
	body := be(int16(-1), int16(-1), int32(0), int32(1<<20))
	body = append(body, make([]byte, 4<<20)...) // as many empty topics as fit
	for range 10 {
		w := h.dial()
		w.send(raw(0, 3, body...))
		w.wantClosed("a million topics")
	}
	if grown := rss(t) - before; grown > 256<<20 {
		t.Errorf("resident memory grew by %d MiB", grown>>20)
	}
}

// A frame that has begun must come; silence before one may last.
func TestSlowSenders(t *testing.T) {
	h := serve(t, Limits{Frame: 300 * time.Millisecond, Idle: 1500 * time.Millisecond})
	whole := frameOf(kmsg.NewPtrMetadataRequest(), 7)
	began := time.Now()
	for _, n := range []int{1, 5, 9, len(whole) - 1} {
		w := h.dial()
		w.send(whole[:n])
		w.wantClosed(strconv.Itoa(n) + " bytes of a frame")
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("slow senders were closed after %v", took)
	}
	w := h.dial()
	go func() { // one byte at a time: in time each, too slow as a whole
		for i := range whole {
			time.Sleep(100 * time.Millisecond)
			if _, err := w.nc.Write(whole[i : i+1]); err != nil {
				return
			}
		}
	}()
	w.wantClosed("a byte each 100 ms")
	idle := h.dial()
	time.Sleep(600 * time.Millisecond)
	ask[*kmsg.MetadataResponse](idle, kmsg.NewPtrMetadataRequest())
	began = time.Now()
	idle.wantClosed("an idle connection")
	if took := time.Since(began); took < time.Second {
		t.Errorf("idle connection closed after %v", took)
	}
}

func TestConnectionLimits(t *testing.T) {
	h := serve(t, Limits{MaxPerAddress: 3})
	var open []*wire
	for range 3 {
		w := h.dial()
		ask[*kmsg.MetadataResponse](w, kmsg.NewPtrMetadataRequest())
		open = append(open, w)
	}
	h.refused("a fourth connection")
	open[0].nc.Close()
	for range 100 {
		if nc, err := net.Dial("tcp", h.addr); err == nil {
			w := &wire{t, nc}
			defer nc.Close()
			_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
			nc.Write(frameOf(kmsg.NewPtrMetadataRequest(), 7))
			if _, _, err := w.read(); err == nil {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a closed connection still counts")
}

func TestConnectionLimitTotal(t *testing.T) {
	h := serve(t, Limits{MaxConnections: 2})
	for range 2 {
		ask[*kmsg.MetadataResponse](h.dial(), kmsg.NewPtrMetadataRequest())
	}
	h.refused("a third connection")
	if n := h.seen.most(); n != 2 {
		t.Errorf("observer saw %d connections", n)
	}
}

// A thousand requests in flight, acknowledged in random order, are answered in
// the order they were sent.
func TestPipeliningOrder(t *testing.T) {
	h := serve(t, Limits{MaxPipelined: 1000})
	topic := h.b.topic("logs", 1)
	l := h.b.log(topic.ID, 0)
	gate := make(chan time.Time)
	var n int
	l.ackAfter = func() <-chan time.Time { // all of the first 900 at once
		n++
		if n == 900 {
			close(gate)
		}
		return gate
	}
	w := h.dial()
	const total = 1000
	var all bytes.Buffer
	for i := range int32(total) {
		all.Write(frameOf(produceReq(9, -1, topic, 0, batchOf(1, 20)), i))
	}
	w.send(all.Bytes())
	for i := range int32(total) {
		resp := kmsg.NewPtrProduceResponse()
		resp.Version = 9
		if corr := w.answer(resp); corr != i {
			t.Fatalf("answer %d has correlation id %d", i, corr)
		}
		if p := resp.Topics[0].Partitions[0]; p.ErrorCode != 0 || p.BaseOffset != int64(i) {
			t.Fatalf("answer %d: %+v", i, p)
		}
	}
}

// A request behind produce requests is answered after them.
func TestAnswersInOrder(t *testing.T) {
	h := serve(t, Limits{})
	topic := h.b.topic("logs", 1)
	h.b.log(topic.ID, 0).ackAfter = func() <-chan time.Time { return time.After(100 * time.Millisecond) }
	w := h.dial()
	w.send(append(frameOf(produceReq(9, -1, topic, 0, batchOf(1, 20)), 1), frameOf(kmsg.NewPtrMetadataRequest(), 2)...))
	first := kmsg.NewPtrProduceResponse()
	first.Version = 9
	if corr := w.answer(first); corr != 1 {
		t.Fatalf("first answer is to %d", corr)
	}
	if corr := w.answer(kmsg.NewPtrMetadataResponse()); corr != 2 {
		t.Fatalf("second answer is to %d", corr)
	}
}

// No more than MaxPipelined requests are taken from one connection.
func TestPipelineIsBounded(t *testing.T) {
	h := serve(t, Limits{MaxPipelined: 4})
	topic := h.b.topic("logs", 1)
	l := h.b.log(topic.ID, 0)
	gate := make(chan time.Time)
	l.ackAfter = func() <-chan time.Time { return gate }
	w := h.dial()
	for i := range int32(50) {
		w.send(frameOf(produceReq(9, -1, topic, 0, batchOf(1, 20)), i))
	}
	time.Sleep(200 * time.Millisecond)
	l.mu.Lock()
	taken := l.next
	l.mu.Unlock()
	close(gate)
	if taken > 6 { // four queued, one at the writer, one at the reader
		t.Errorf("%d requests were taken", taken)
	}
	for i := range int32(50) {
		resp := kmsg.NewPtrProduceResponse()
		resp.Version = 9
		if corr := w.answer(resp); corr != i {
			t.Fatalf("answer %d is to %d", i, corr)
		}
	}
}

// The budget of bytes in flight holds over all connections, and comes back.
func TestBytesInFlight(t *testing.T) {
	h := serve(t, Limits{MaxFrame: 1 << 20, MaxControl: 1 << 10, MaxInFlight: 1 << 20, Frame: time.Second})
	hog := h.dial()
	hog.send(be(int32(1<<20), int16(0), int16(9))) // claims all, sends nothing
	time.Sleep(100 * time.Millisecond)
	w := h.dial()
	began := time.Now()
	ask[*kmsg.MetadataResponse](w, kmsg.NewPtrMetadataRequest())
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("answered after %v while the budget was taken", took)
	}
	hog.wantClosed("the hog")
	began = time.Now()
	ask[*kmsg.MetadataResponse](w, kmsg.NewPtrMetadataRequest())
	if took := time.Since(began); took > 500*time.Millisecond {
		t.Errorf("answered after %v when the budget was free", took)
	}
}

// Clients that go away while requests are under way leave nothing behind: the
// harness checks goroutines and results.
func TestHalfOpen(t *testing.T) {
	h := serve(t, Limits{Write: 300 * time.Millisecond})
	topic := h.b.topic("logs", 1)
	l := h.b.log(topic.ID, 0)
	l.ackAfter = func() <-chan time.Time { return time.After(50 * time.Millisecond) }
	big := batchOf(1, 900<<10)
	for range 20 {
		l.Produce(context.Background(), big, nil, func(broker.Produced) {})
	}
	for range 5 {
		w := h.dial()
		for i := range int32(20) {
			w.send(frameOf(produceReq(9, -1, topic, 0, batchOf(1, 20)), i))
		}
		w.nc.Close()
	}
	// One that asks for 20 MB again and again and never reads.
	w := h.dial()
	_ = w.nc.(*net.TCPConn).SetReadBuffer(4096)
	p := want(topic, 0, 0)
	p.maxBytes = 50 << 20
	req := frameOf(fetchReq(12, 0, p), 1)
	for range 50 {
		if _, err := w.nc.Write(req); err != nil {
			break
		}
	}
	time.Sleep(100 * time.Millisecond)
	if n := l.open.Load(); n > 1 {
		t.Errorf("%d results are held for a client that does not read", n)
	}
	for range 100 {
		if h.seen.count("Fetch 0") > 0 && l.open.Load() == 0 {
			return
		}
		time.Sleep(30 * time.Millisecond)
	}
	t.Error("a client that does not read was not cut off")
}

// Shutdown answers what was read, wakes long polls, and closes idle connections.
func TestShutdown(t *testing.T) {
	h := serve(t, Limits{})
	topic := h.b.topic("logs", 1)
	h.b.log(topic.ID, 0).ackAfter = func() <-chan time.Time { return time.After(300 * time.Millisecond) }
	idle, busy, poll, fresh, greeted := h.dial(), h.dial(), h.dial(), h.dial(), h.dial()
	ask[*kmsg.ApiVersionsResponse](greeted, kmsg.NewPtrApiVersionsRequest())
	ask[*kmsg.MetadataResponse](idle, kmsg.NewPtrMetadataRequest())
	ask[*kmsg.MetadataResponse](busy, kmsg.NewPtrMetadataRequest())
	poll.send(frameOf(fetchReq(12, time.Minute, want(topic, 0, 1)), 1))
	time.Sleep(50 * time.Millisecond)
	busy.send(frameOf(produceReq(9, -1, topic, 0, batchOf(1, 20)), 3))
	time.Sleep(50 * time.Millisecond)
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := h.s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("shutdown took %v", took)
	}
	resp := kmsg.NewPtrProduceResponse()
	resp.Version = 9
	if corr := busy.answer(resp); corr != 3 || resp.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Errorf("answer to %d: %+v", corr, resp)
	}
	idle.wantClosed("an idle connection")
	fresh.wantReset("a connection that was not answered yet") // an orderly end tells clients of a wrong security protocol
	greeted.wantReset("a connection of which only ApiVersions was answered")
}

// refused wants a new connection to be reset, which dialling may see already.
func (h *harness) refused(what string) {
	h.t.Helper()
	nc, err := net.Dial("tcp", h.addr)
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		h.t.Fatal(err)
	}
	defer nc.Close()
	(&wire{h.t, nc}).wantReset(what)
}

// wantReset wants the connection closed by a reset.
func (w *wire) wantReset(what string) {
	w.t.Helper()
	_ = w.nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, _, err := w.read(); !errors.Is(err, syscall.ECONNRESET) {
		w.t.Fatalf("%s: %v, want it reset", what, err)
	}
}
