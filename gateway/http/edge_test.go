package httpgate_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kadm"

	httpgate "github.com/cirrolog/cirrolog/gateway/http"
)

// wire is a connection on which the test writes bytes by itself.
type wire struct {
	net.Conn
	t  *testing.T
	in *bufio.Reader
}

func (g *gate) wire() *wire {
	g.t.Helper()
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return &wire{conn, g.t, bufio.NewReader(conn)}
}

func (w *wire) send(format string, args ...any) {
	w.t.Helper()
	if _, err := fmt.Fprintf(w.Conn, format, args...); err != nil {
		w.t.Fatal(err)
	}
}

// answer reads one answer; the error is that of its body.
func (w *wire) answer(method string) (*http.Response, string, error) {
	w.t.Helper()
	resp, err := http.ReadResponse(w.in, &http.Request{Method: method})
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func (w *wire) want(status int, part, method string) {
	w.t.Helper()
	resp, answer, err := w.answer(method)
	if err != nil || resp.StatusCode != status || !strings.Contains(answer, part) {
		w.t.Fatalf("%s: %v %.300s, %v, want %d with %s", method, resp.Status, answer, err, status, part)
	}
}

// TestPipelined: requests that come on one connection before their answers are
// answered in order, those behind an error too, whose body was not read.
func TestPipelined(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("pipe", 1)
	w := g.wire()
	const post = "POST /api/v1/topics/%s/messages%s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s"
	one := func(topic, query, media, body string) string {
		return fmt.Sprintf(post, topic, query, media, len(body), body)
	}
	var all strings.Builder
	for i := range 20 {
		all.WriteString(one("pipe", "", "text/plain", fmt.Sprint(i)))
	}
	all.WriteString(one("none", "", "text/plain", "GET / HTTP/1.1\r\n\r\n")) // 404 without a look at the body
	all.WriteString(one("pipe", "", "multipart/form-data; boundary=x", strings.Repeat("y", 100_000)))
	all.WriteString(one("pipe", "", ndjson, "101\n102\n"))
	all.WriteString("GET /api/v1/topics/pipe/messages?last=1 HTTP/1.1\r\nHost: x\r\n\r\n")
	w.send("%s", all.String())
	for i := range 20 {
		w.want(200, fmt.Sprintf(`"offset":%d,`, i), "POST")
	}
	w.want(404, "40401", "POST")
	w.want(415, "415", "POST")
	w.want(200, `{"line":2,"partition":0,"offset":21}`, "POST")
	w.want(200, `"value":"102"`, "GET")
	if got := g.values("pipe"); len(got) != 22 {
		t.Errorf("stored: %v", got)
	}
}

// TestKeptAfterError: after an error answer to a body that was not read, the
// connection serves the next request or is closed; the rest of the body is never
// taken for a request.
func TestKeptAfterError(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("kept", 1)
	smuggled := "POST /api/v1/topics/kept/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nsmuggled"
	for name, c := range map[string]struct {
		path, media, body string
		status            int
	}{
		"no topic, short":       {"/api/v1/topics/none/messages", "text/plain", smuggled, 404},
		"no topic, long":        {"/api/v1/topics/none/messages", "text/plain", strings.Repeat(smuggled, 10_000), 404},
		"too large":             {"/api/v1/topics/kept/messages", "text/plain", strings.Repeat(smuggled, 20_000), 413},
		"wrong line, long":      {"/api/v1/topics/kept/messages", ndjson, "{\n" + strings.Repeat(smuggled, 10_000), 200},
		"v2, wrong JSON, short": {"/topics/kept", v2JSON, smuggled, 422},
		"v2, wrong JSON, long":  {"/topics/kept", v2JSON, strings.Repeat(smuggled, 10_000), 422},
	} {
		t.Run(name, func(t *testing.T) {
			w := g.wire()
			w.t = t
			go func() { // the gateway may close while this writes
				fmt.Fprintf(w.Conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", c.path, c.media, len(c.body), c.body)
				fmt.Fprintf(w.Conn, "GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n")
			}()
			resp, answer, _ := w.answer("POST")
			if resp.StatusCode != c.status {
				t.Fatalf("%s %.300s", resp.Status, answer)
			}
			next, err := http.ReadResponse(w.in, &http.Request{Method: "GET"})
			if err == nil && (next.StatusCode != 200 || resp.Close) || err != nil && !resp.Close && len(c.body) < 200_000 {
				t.Errorf("next answer: %+v, %v, after Connection: close %v", next, err, resp.Close)
			}
		})
	}
	if got := g.values("kept"); len(got) != 0 {
		t.Errorf("stored: %v", got)
	}
}

// TestLinesSlow: a streamed body that stops coming is ended with 408 in the last
// line, and what came before is stored.
func TestLinesSlow(t *testing.T) {
	g := start(t, httpgate.Limits{StallTime: 500 * time.Millisecond})
	g.topic("slow", 1)
	w := g.wire()
	w.send("POST /api/v1/topics/slow/messages HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n", ndjson)
	for i := range 5 { // slow, but not too slow
		w.send("2\r\n%d\n\r\n", i)
		time.Sleep(100 * time.Millisecond)
	}
	w.send("1\r\n5\r\n")
	_, answer, err := w.answer("POST")
	if err != nil || !strings.Contains(answer, `{"line":5,"partition":0,"offset":4}`) || !strings.Contains(answer, `{"done":false,"lines":5,"produced":5,"failed":0,"error_code":408,`) {
		t.Errorf("%s, %v", answer, err)
	}
	if rest, err := io.ReadAll(w.in); err != nil || len(rest) > 0 {
		t.Errorf("behind the answer: %q, %v", rest, err)
	}
	if got, want := g.values("slow"), (map[string]int{"0": 1, "1": 1, "2": 1, "3": 1, "4": 1}); !maps.Equal(got, want) {
		t.Errorf("stored: %v", got)
	}
}

// TestLinesCut: a body cut in the middle stores the lines that are whole and
// tells how many, or the answer has no end; with a key nothing is stored, and
// the retry stores all, once.
func TestLinesCut(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("cut", 1)
	g.topic("keyed", 1)
	head := func(topic, more string, length int) string {
		return fmt.Sprintf("POST /api/v1/topics/%s/messages HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\n%sContent-Length: %d\r\n\r\n", topic, ndjson, more, length)
	}
	w := g.wire()
	w.send("%s10\n20\n30", head("cut", "", 100))
	if err := w.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, answer, err := w.answer("POST")
	if told := strings.Contains(answer, `{"done":false,"lines":2,"produced":2,"failed":0,"error_code":`); resp.StatusCode != 200 || strings.Contains(answer, `"done":true`) || !told && err == nil {
		t.Errorf("%s %s, %v", resp.Status, answer, err)
	}
	if got, want := g.values("cut"), (map[string]int{"10": 1, "20": 1}); !maps.Equal(got, want) {
		t.Errorf("stored: %v", got)
	}
	body := testLines(50)
	for _, part := range []int{0, 1, len(body) / 2, len(body) - 1} {
		w := g.wire()
		w.send("%s%s", head("keyed", "Idempotency-Key: cut\r\n", len(body)), body[:part])
		w.Conn.Close()
	}
	for range 2 {
		if status, answer, _ := g.ask("/api/v1/topics/keyed/messages", body, keyHeader, "cut", "Content-Type", ndjson); status != 200 || !strings.Contains(answer, `"produced":50,"failed":0`) {
			t.Errorf("retry: %d %s", status, answer)
		}
	}
	got := g.values("keyed")
	for line := range strings.Lines(body) {
		if got[strings.TrimSpace(line)] != 1 {
			t.Errorf("%s is stored %d times", line, got[strings.TrimSpace(line)])
		}
	}
	if len(got) != 50 {
		t.Errorf("%d values are stored", len(got))
	}
}

// TestZstdBomb: frames that grow or want too large a window are refused, and
// what is behind them does not matter.
func TestZstdBomb(t *testing.T) {
	g := start(t, httpgate.Limits{MaxStream: 4 << 20})
	g.topic("bomb", 1)
	const path = "/api/v1/topics/bomb/messages"
	zip := func(b []byte, o ...zstd.EOption) string {
		z, err := zstd.NewWriter(nil, o...)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		return string(z.EncodeAll(b, nil))
	}
	bomb := zip(make([]byte, 64<<20))
	var wide bytes.Buffer
	z, err := zstd.NewWriter(&wide, zstd.WithWindowSize(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	z.Write([]byte("1\n"))
	z.Flush()
	z.Write([]byte("2\n"))
	z.Close()
	for name, c := range map[string]struct {
		body, media, part string
		status            int
	}{
		"one record":  {bomb, "text/plain", `"error_code":413`, 413},
		"lines":       {bomb, ndjson, `{"done":false,"lines":0,"produced":0,"failed":0,"error_code":413`, 200},
		"many frames": {strings.Repeat(zip(bytes.Repeat([]byte("\n"), 1<<20)), 64), ndjson, `"error_code":413`, 200},
		"window":      {wide.String(), ndjson, `{"done":false,"lines":0,"produced":0,"failed":0,"error_code":400`, 200},
		"v2":          {bomb, v2JSON, "42203", 422},
	} {
		at := path
		if c.media == v2JSON {
			at = "/topics/bomb"
		}
		t.Run(name, func(t *testing.T) {
			g := &gate{t: t, url: g.url}
			g.want(c.status, c.part, "POST", at, c.body, "Content-Type", c.media, "Content-Encoding", "zstd")
		})
	}
	if p := g.page(path); len(p.Messages) != 0 {
		t.Errorf("stored: %+v", p.Messages)
	}
}

// TestTailGap: an id whose records retention has removed gets a gap, then what
// is there; so does a stream that was never told of more.
func TestTailGap(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("gap", 2)
	const path = "/api/v1/topics/gap/stream"
	for i := range 10 {
		g.want(200, "", "POST", "/api/v1/topics/gap/messages?partition=1", fmt.Sprint(i))
	}
	first := g.tail(path+"?from=earliest", "")
	first.record()
	first.record()
	id := first.id
	first.close()
	if _, err := g.admin.DeleteRecords(t.Context(), kadm.Offsets{"gap": {1: {Topic: "gap", Partition: 1, At: 7}}}); err != nil {
		t.Fatal(err)
	}
	s := g.tail(path, id)
	e, err := s.next()
	if err != nil || e.name != "gap" || e.data != `{"partition":1,"from":2,"to":7}` || e.id != `[{"topic":"gap","partition":1,"offset":6}]` {
		t.Fatalf("%+v, %v", e, err)
	}
	for at := int64(7); at < 10; at++ {
		if r := s.record(); r.Offset != at {
			t.Fatalf("%+v, want offset %d", r, at)
		}
	}
	if r := g.tail(path, e.id).record(); r.Offset != 7 { // the gap counts as delivered
		t.Errorf("behind the gap: %+v", r)
	}
}

// TestTailDeleted: the end of a topic ends its streams with an error event, and
// an id of it is not taken for the topic that follows under its name.
func TestTailDeleted(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("gone", 1)
	const path = "/api/v1/topics/gone/stream"
	g.lines("gone", "1\n2\n3\n")
	live, read := g.tail(path, ""), g.tail(path+"?from=earliest", "")
	for range 3 {
		read.record()
	}
	if _, err := g.admin.DeleteTopic(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*stream{"live": live, "read": read} {
		e, err := s.next()
		var envelope struct {
			Code    int `json:"error_code"`
			Message string
		}
		if err != nil || e.name != "error" || json.Unmarshal([]byte(e.data), &envelope) != nil || envelope.Code != 40401 || envelope.Message == "" {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
		if e, err := s.next(); err != io.EOF {
			t.Errorf("%s: behind the error: %+v, %v", name, e, err)
		}
	}
	g.want(404, "40401", "GET", path, "", "Last-Event-ID", read.id)
	g.topic("gone", 1)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if status, answer, _ := g.do("GET", path, nil, "Last-Event-ID", read.id, "Accept", "text/event-stream"); status == 416 && strings.Contains(answer, "made anew") {
			break
		} else if time.Now().After(deadline) || status != 404 {
			t.Fatalf("the old id: %d %s", status, answer)
		}
	}
	// The gateway's producer may take a moment to see that there is another topic.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		status, answer, _ := g.do("POST", "/api/v1/topics/gone/messages", strings.NewReader("4"))
		if status == 200 {
			break
		} else if time.Now().After(deadline) || status != 404 {
			t.Fatalf("produce to the new topic: %d %s", status, answer)
		}
	}
	if r := g.tail(path+"?from=earliest", "").record(); *r.Value != "4" || r.Offset != 0 {
		t.Errorf("the new topic: %+v", r)
	}
}
