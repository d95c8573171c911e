package httpgate_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	httpgate "github.com/cirrolog/cirrolog/gateway/http"
)

// sseEvent is an event as a browser sees it.
type sseEvent struct {
	id, name, data string
}

type sseRecord struct {
	Partition int32
	Offset    int64
	Key       *string
	Value     *string
}

// stream is an SSE client of the least kind.
type stream struct {
	t    *testing.T
	body io.ReadCloser
	in   *bufio.Reader
	id   string // last event id
	stop context.CancelFunc
}

// tail opens a stream; id is the Last-Event-ID, "" for none.
func (g *gate) tail(path, id string) *stream {
	g.t.Helper()
	ctx, cancel := context.WithCancel(g.t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", g.url+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	if id != "" {
		req.Header.Set("Last-Event-ID", id)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Cache-Control") != "no-store" {
		b, _ := io.ReadAll(resp.Body)
		g.t.Fatalf("tail: %s %v %s", resp.Status, resp.Header, b)
	}
	g.checkAnswer(req, resp.StatusCode, resp.Header, "")
	s := &stream{g.t, resp.Body, bufio.NewReader(resp.Body), id, cancel}
	g.t.Cleanup(s.close)
	return s
}

func (s *stream) close() {
	s.stop()
	s.body.Close()
}

// next returns the next event that has data.
func (s *stream) next() (e sseEvent, err error) {
	for {
		line, err := s.in.ReadString('\n')
		if err != nil {
			return e, err
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "\n" && e.data != "":
			e.id = s.id
			return e, nil
		case name == "id":
			s.id = value
		case name == "event":
			e.name = value
		case name == "data":
			e.data += value
		}
	}
}

// record is next for a record.
func (s *stream) record() (r sseRecord) {
	s.t.Helper()
	e, err := s.next()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(e.data), &r); err != nil {
		s.t.Fatalf("%q: %v", e.data, err)
	}
	return r
}

func (g *gate) lines(topic, lines string) {
	g.t.Helper()
	g.want(200, `"done":true`, "POST", "/api/v1/topics/"+topic+"/messages?report=errors", lines, "Content-Type", ndjson)
}

// TestTail: where streams begin, what events look like, filters.
func TestTail(t *testing.T) {
	g := start(t, httpgate.Limits{Heartbeat: 50 * time.Millisecond})
	g.topic("s", 3)
	const path = "/api/v1/topics/s/messages"
	g.want(200, "", "POST", path+"?partition=1&key=k", "one")
	latest := g.tail(path, "")
	g.want(200, "", "POST", path+"?partition=1", "two")
	if r := latest.record(); r.Partition != 1 || r.Offset != 1 || *r.Value != "two" {
		t.Errorf("latest: %+v", r)
	}
	first := g.tail("/api/v1/topics/s/stream?from=earliest", "")
	e, err := first.next()
	if err != nil || e.id != `[{"topic":"s","partition":1,"offset":0}]` || e.name != "message" || !strings.HasPrefix(e.data, `{"topic":"s","partition":1,"offset":0,"timestamp":1`) || !strings.HasSuffix(e.data, `,"key":"k","value":"one"}`) {
		t.Errorf("first event: %+v, %v", e, err)
	}
	filtered := g.tail(path+"?partition=0,2&from=earliest", "")
	g.lines("s", "1\n2\n3\n4\n")
	g.want(200, "", "POST", path+"?partition=2", "in 2")
	g.want(200, "", "POST", path+"?partition=1", "in 1")
	g.want(200, "", "POST", path+"?partition=0", "in 0")
	for left := 2; left > 0; { // in order within each partition only
		r := filtered.record()
		if r.Partition == 1 {
			t.Fatalf("filtered: %+v", r)
		}
		if strings.HasPrefix(*r.Value, "in ") {
			left--
		}
	}
	g.want(200, `"produced":1`, "POST", path+"?format=records", `{"key":"gone","value":null,"partition":0}`, "Content-Type", ndjson)
	if e, err := filtered.next(); err != nil || e.name != "delete" {
		t.Errorf("tombstone: %+v, %v", e, err)
	}
	if r := g.tail(path+"?partition=1&offset=1", "").record(); *r.Value != "two" {
		t.Errorf("offset: %+v", r)
	}
	if r := g.tail(path+"?partition=1&since=2000-01-01T00:00:00Z", "").record(); *r.Value != "one" {
		t.Errorf("since: %+v", r)
	}
	if r := g.tail(path+"?partition=1&offset=0", `[{"topic":"s","partition":1,"offset":0}]`).record(); *r.Value != "two" {
		t.Errorf("id before offset: %+v", r)
	}
	if r := g.tail(path+"?partition=1", `[{"topic":"s","partition":1,"timestamp":0}]`).record(); *r.Value != "one" {
		t.Errorf("timestamp in id: %+v", r)
	}
	for _, bad := range []string{"x", `[{"topic":"s"}]`, `[{"topic":"t","partition":0,"offset":1}]`, "v1:0", "v1:0=-1", `[{"topic":"s","partition":0,"offset":-7}]`} {
		g.want(400, "Last-Event-ID", "GET", path, "", "Accept", "text/event-stream", "Last-Event-ID", bad)
	}
	g.want(416, "made anew", "GET", path, "", "Accept", "text/event-stream", "Last-Event-ID", `[{"topic":"s","partition":0,"offset":1000}]`)
	g.want(400, "from", "GET", path+"?from=now", "", "Accept", "text/event-stream")
	g.want(404, "40401", "GET", "/api/v1/topics/none/stream", "")
	if status, body, h := g.do("HEAD", "/api/v1/topics/s/stream", nil); status != 200 || body != "" || h.Get("Content-Type") != "text/event-stream" {
		t.Errorf("HEAD: %d %q %v", status, body, h)
	}
	raw := g.tail(path, "")
	for _, want := range []string{"retry: 3000\n", "id: [", "\n", ": hb\n", "\n", ": hb\n"} {
		if line, err := raw.in.ReadString('\n'); err != nil || !strings.HasPrefix(line, want) {
			t.Fatalf("idle stream: %q, %v, want %q", line, err, want)
		}
	}
	latest.close()
	g.lines("s", testLines(3000))
	for seen := 0; seen < 3000; { // first is as it was: nothing is lost to it
		r := first.record()
		if r.Value != nil && strings.HasPrefix(*r.Value, `{"n"`) {
			seen++
		}
	}
}

// counted checks that each partition's records come once and in order.
type counted map[int32]int64

func (c counted) add(t *testing.T, r sseRecord) {
	t.Helper()
	if r.Offset != c[r.Partition] {
		t.Fatalf("partition %d: offset %d follows %d", r.Partition, r.Offset, c[r.Partition]-1)
	}
	c[r.Partition]++
}

// TestTailCuts cuts streams of many partitions again and again, among them
// some that begin far behind the shared buffer: nothing is lost or repeated.
func TestTailCuts(t *testing.T) {
	for _, partitions := range []int32{3, 20} {
		t.Run(fmt.Sprint(partitions), func(t *testing.T) {
			g := start(t, httpgate.Limits{MaxCatchUps: 2})
			g.topic("cuts", partitions)
			pad := strings.Repeat("x", 1000)
			var b strings.Builder
			const n = 6000 // of 1 KB each: three times the buffer
			for i := range n {
				fmt.Fprintf(&b, "{\"key\":\"k%d\",\"value\":\"%s\"}\n", i, pad)
			}
			lines := strings.SplitAfter(b.String(), "\n")
			send := func(lines []string) {
				g.want(200, `"done":true`, "POST", "/api/v1/topics/cuts/messages?format=records&report=errors", strings.Join(lines, ""), "Content-Type", ndjson)
			}
			send(lines[:n/2])
			done := make(chan struct{})
			go func() {
				defer close(done)
				for at := n / 2; at < n; at += n / 20 {
					send(lines[at : at+n/20])
				}
			}()
			defer func() { <-done }()
			seen, total, id := counted{}, 0, ""
			whole := g.tail("/api/v1/topics/cuts/stream?from=earliest", "")
			for cut := 0; total < n; cut++ {
				s := g.tail("/api/v1/topics/cuts/stream?from=earliest", id)
				for range 40 + cut*3 {
					seen.add(t, s.record())
					if total++; total == n {
						break
					}
				}
				id = s.id
				s.close()
			}
			seen = counted{}
			for range n {
				seen.add(t, whole.record())
			}
		})
	}
}

// TestTailStalled: a client that never reads is cut off, and one beside it gets
// everything.
func TestTailStalled(t *testing.T) {
	g := start(t, httpgate.Limits{StallTime: time.Second})
	g.topic("stall", 1)
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /api/v1/topics/stall/stream HTTP/1.1\r\nHost: x\r\n\r\n")
	good := g.tail("/api/v1/topics/stall/stream", "")
	line := `"` + strings.Repeat("z", 100_000) + "\"\n"
	seen := counted{}
	for range 30 {
		g.lines("stall", strings.Repeat(line, 10))
		for range 10 {
			seen.add(t, good.record())
		}
	}
	time.Sleep(1500 * time.Millisecond)
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, err := io.Copy(io.Discard, conn)
	if errors.Is(err, os.ErrDeadlineExceeded) || n >= 30*10*100_000 {
		t.Errorf("the stalled client got %d bytes, %v", n, err)
	}
}
