package httpgate_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	httpgate "github.com/cirrolog/cirrolog/gateway/http"
	"github.com/cirrolog/cirrolog/services/agent"
)

// gate is a gateway beside an agent in this process.
type gate struct {
	t     *testing.T
	s     *httpgate.Server
	url   string
	addr  string
	kafka string
	admin *kadm.Client
}

func start(t *testing.T, limits httpgate.Limits, options ...func(*agent.Config)) *gate {
	t.Helper()
	cfg := agent.Default()
	cfg.DataDir, cfg.KafkaAddr, cfg.AdminAddr, cfg.HTTPAddr = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0", ""
	cfg.WALSize, cfg.MemoryTail, cfg.ReadMemory, cfg.CacheMemory = 32<<20, 16<<20, 16<<20, 128<<20
	for _, o := range options {
		o(&cfg)
	}
	a, err := agent.Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := a.Shutdown(ctx); err != nil {
			t.Errorf("shut down: %v", err)
		}
	})
	g := startGateway(t, a.KafkaAddr(), limits)
	cl, err := kgo.NewClient(kgo.SeedBrokers(a.KafkaAddr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	g.admin = kadm.NewClient(cl)
	return g
}

// startGateway starts a gateway of the brokers at an address.
func startGateway(t *testing.T, brokers string, limits httpgate.Limits) *gate {
	t.Helper()
	return serveGateway(t, httpgate.Options{Brokers: []string{brokers}, Limits: limits}, func(ln net.Listener) net.Listener { return ln })
}

// serveGateway starts a gateway behind a listener that wrap may replace.
func serveGateway(t *testing.T, o httpgate.Options, wrap func(net.Listener) net.Listener) *gate {
	t.Helper()
	s, err := httpgate.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(wrap(ln)) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shut down: %v", err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return &gate{t: t, s: s, url: "http://" + ln.Addr().String(), addr: ln.Addr().String(), kafka: o.Brokers[0]}
}

func (g *gate) topic(name string, partitions int32) {
	g.t.Helper()
	if _, err := g.admin.CreateTopic(g.t.Context(), partitions, 1, nil, name); err != nil {
		g.t.Fatal(err)
	}
}

// do makes a request; headers are pairs of name and value.
func (g *gate) do(method, path string, body io.Reader, headers ...string) (int, string, http.Header) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.url+path, body)
	if err != nil {
		g.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return g.send(req)
}

// send makes a request and checks its answer against the OpenAPI document.
func (g *gate) send(req *http.Request) (int, string, http.Header) {
	g.t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	g.checkAnswer(req, resp.StatusCode, resp.Header, string(b))
	return resp.StatusCode, string(b), resp.Header
}

// want is do with the status and a part of the answer that must come.
func (g *gate) want(status int, part, method, path, body string, headers ...string) string {
	g.t.Helper()
	got, answer, _ := g.do(method, path, strings.NewReader(body), headers...)
	if got != status || !strings.Contains(answer, part) {
		g.t.Errorf("%s %s: %d %.300s, want %d with %s", method, path, got, answer, status, part)
	}
	return answer
}

const ndjson = "application/x-ndjson"

type page struct {
	Messages []struct {
		Partition int32
		Offset    int64
		Key       *string
		Value     *string
		Value64   *string `json:"value_base64"`
		Headers   []struct{ Key, Value string }
	}
	Next string
	More bool
}

func (g *gate) page(path string) (p page) {
	g.t.Helper()
	if err := json.Unmarshal([]byte(g.want(200, "", "GET", path, "")), &p); err != nil {
		g.t.Fatal(err)
	}
	return p
}

func testLines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "{\"n\":%d,\"sum\":\"%x\"}\n", i, sha256.Sum256(fmt.Append(nil, i)))
	}
	return b.String()
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want)); a != b {
		t.Fatalf("%s: %d bytes with SHA-256 %x, want %d with %x", what, len(got), a, len(want), b)
	}
}

// TestRaw stores bodies as they are and reads them back, keys and headers too.
func TestRaw(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("raw", 2)
	const path = "/api/v1/topics/raw/messages"
	g.want(200, `"offset":0`, "POST", path+"?partition=1&key=k%20%C3%A9", "hello", "X-Header-Trace", "abc")
	g.want(200, `{"topic":"raw","partition":1,"offset":1,"timestamp":1`, "POST", path+"?partition=1", "\xff\x00")
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	zw.Write([]byte("zipped"))
	zw.Close()
	g.want(200, `"offset":2`, "POST", path+"?partition=1", z.String(), "Content-Encoding", "gzip")
	enc, _ := zstd.NewWriter(nil)
	g.want(200, `"offset":3`, "POST", path+"?partition=1", string(enc.EncodeAll([]byte("zstd"), nil)), "Content-Encoding", "zstd")
	p := g.page(path + "?partition=1&offset=0")
	if len(p.Messages) != 4 || p.More {
		t.Fatalf("%d messages, more %v", len(p.Messages), p.More)
	}
	m := p.Messages
	if *m[0].Value != "hello" || *m[0].Key != "k é" || len(m[0].Headers) != 1 || m[0].Headers[0].Key != "trace" || m[0].Headers[0].Value != "abc" {
		t.Errorf("first message: %+v", m[0])
	}
	if m[1].Value != nil || *m[1].Value64 != "/wA=" || *m[2].Value != "zipped" || *m[3].Value != "zstd" {
		t.Errorf("messages: %+v", m[1:])
	}
	if p := g.page(path + "?partition=1&last=1"); len(p.Messages) != 1 || p.Messages[0].Offset != 3 {
		t.Errorf("last=1: %+v", p)
	}
}

// TestLines stores 20,000 lines and reads them back by cursor.
func TestLines(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("lines", 1)
	const path = "/api/v1/topics/lines/messages"
	all := testLines(20_000)
	_, answer, _ := g.do("POST", path, strings.NewReader(all), "Content-Type", ndjson)
	rows := strings.Split(strings.TrimSpace(answer), "\n")
	if len(rows) != 20_001 || rows[19_999] != `{"line":20000,"partition":0,"offset":19999}` || rows[20_000] != `{"done":true,"lines":20000,"produced":20000,"failed":0}` {
		t.Fatalf("%d rows, the last %s", len(rows), rows[len(rows)-1])
	}
	var got strings.Builder
	p := g.page(path + "?limit=7")
	for pages := 0; ; pages++ {
		for _, m := range p.Messages {
			got.WriteString(*m.Value + "\n")
		}
		if !p.More {
			break
		}
		p = g.page(path + "?limit=3000&cursor=" + p.Next)
	}
	same(t, "read by cursor", got.String(), all)
}

// TestBadLines: the answer tells which line is wrong and how many are stored,
// and nothing after the line is.
func TestBadLines(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("bad", 1)
	const path = "/api/v1/topics/bad/messages"
	for i, c := range []struct {
		line, records string
		code          int
	}{
		{line: `{"a":`, code: 42203},
		{line: `"x` + "\xff" + `"`, code: 42203},
		{line: `"x` + "\x00" + `"`, code: 42203},
		{line: `{"a":1} {"b":2}`, code: 42203},
		{line: "{}\f", code: 42203},
		{line: "\u00a0", code: 42203},
		{line: strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000), code: 42203},
		{line: `"` + strings.Repeat("x", 1_400_000) + `"`, code: 413},
		{line: `"` + strings.Repeat("y", 1_100_000) + `"`, code: 413},
		{line: `1`, records: "&format=records", code: 42203},
		{line: `{"valve":1}`, records: "&format=records", code: 42203},
		{line: `{"value":1,"value":2}`, records: "&format=records", code: 42203},
		{line: `{"value":1,"\u0076alue":2}`, records: "&format=records", code: 42203},
		{line: `{"key":"\ud800"}`, records: "&format=records", code: 42203},
		{line: `{"key":1}`, records: "&format=records", code: 42203},
		{line: `{"key":"a","key_base64":"YQ=="}`, records: "&format=records", code: 42203},
		{line: `{"value_base64":"_"}`, records: "&format=records", code: 42206},
		{line: `{"partition":-1}`, records: "&format=records", code: 42203},
		{line: `{"partition":1e9}`, records: "&format=records", code: 42203},
		{line: `{"partition":7}`, records: "&format=records", code: 40402},
		{line: `{"timestamp":1e400}`, records: "&format=records", code: 42203},
		{line: `{"timestamp":32503680000000}`, records: "&format=records", code: 40002},
		{line: `{"headers":[{"value":"x"}]}`, records: "&format=records", code: 42203},
		{line: `{"headers":[1]}`, records: "&format=records", code: 42203},
	} {
		good := `{"value":"v"}`
		body := strings.Join([]string{good, "", good, c.line, good, good}, "\n")
		got := g.want(200, `{"done":false,"lines":3,"produced":2,"failed":1,"line":4,"error_code":`+fmt.Sprint(c.code)+`,`, "POST", path+"?report=errors"+c.records, body, "Content-Type", ndjson)
		if rows := strings.Count(got, "\n"); rows != 2 || !strings.HasPrefix(got, `{"line":4,"error_code":`) {
			t.Errorf("line %.40q: %d rows: %.300s", c.line, rows, got)
		}
		if p := g.page(path + "?last=1"); p.Messages[0].Offset != int64(2*i+1) {
			t.Errorf("line %.40q: the last offset is %d, want %d", c.line, p.Messages[0].Offset, 2*i+1)
		}
	}
	g.want(200, `{"done":true,"lines":3,"produced":3,"failed":0}`, "POST", path,
		`{"a":1,"a":2}`+"\r\n"+`123456789012345678901234567890e999999`+"\n"+`"\u0000\ud800"`, "Content-Type", ndjson)
	if p := g.page(path + "?last=3"); *p.Messages[0].Value != `{"a":1,"a":2}` || *p.Messages[1].Value != `123456789012345678901234567890e999999` || *p.Messages[2].Value != `"\u0000\ud800"` {
		t.Errorf("values: %+v", p.Messages)
	}
}

// TestRecordLines: what a bounded read gives can be sent again and is the same.
func TestRecordLines(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("from", 1)
	g.topic("to", 1)
	lines := []string{
		`{"key":"k","value":{"a":[1]},"headers":[{"key":"h","value":"v"},{"key":"n","value":null},{"key":"b","value_base64":"/w=="}],"timestamp":1700000000000}`,
		`{"key":null,"value":null}`,
		`{"key_base64":"/wA=","value_base64":"gA=="}`,
		`{"key":"","value":"\u0000\"\\\n\u2028\ud83d\ude00 é","partition":0}`,
	}
	g.want(200, `"produced":4`, "POST", "/api/v1/topics/from/messages?format=records", strings.Join(lines, "\n"), "Content-Type", ndjson)
	first := g.want(200, "", "GET", "/api/v1/topics/from/messages?format=ndjson", "")
	g.want(200, `"produced":4`, "POST", "/api/v1/topics/to/messages?format=records", first, "Content-Type", ndjson)
	second := g.want(200, "", "GET", "/api/v1/topics/to/messages?format=ndjson", "")
	if second = strings.ReplaceAll(second, `"topic":"to"`, `"topic":"from"`); first != second || strings.Count(first, "\n") != 4 {
		t.Errorf("sent again: %s\nfirst: %s", second, first)
	}
	p := g.page("/api/v1/topics/to/messages")
	if m := p.Messages; *m[0].Value != `{"a":[1]}` || *m[0].Key != "k" || len(m[0].Headers) != 3 || m[1].Value != nil || *m[2].Value64 != "gA==" || *m[3].Value != "\x00\"\\\n\u2028\U0001F600 é" || *m[3].Key != "" {
		t.Errorf("records: %+v", m)
	}
}

// TestBadRequests: status and code of what can't be done.
func TestBadRequests(t *testing.T) {
	g := start(t, httpgate.Limits{MaxStream: 4 << 20})
	g.topic("t", 2)
	var bomb bytes.Buffer
	zw := gzip.NewWriter(&bomb)
	zw.Write(make([]byte, 64<<20))
	zw.Close()
	const path = "/api/v1/topics/t/messages"
	for _, c := range []struct {
		status             int
		part, method, path string
		body               string
		headers            []string
	}{
		{404, `"error_code":40401`, "POST", "/api/v1/topics/nope/messages", "x", nil},
		{404, `"error_code":40401`, "POST", "/api/v1/topics/a%2Fb/messages", "x", nil},
		{404, `"error_code":40402`, "POST", path + "?partition=2", "x", nil},
		{400, `partition`, "POST", path + "?partition=x", "x", nil},
		{413, `"error_code":413`, "POST", path, strings.Repeat("x", 1_000_001), nil},
		{413, `"error_code":413`, "POST", path + "?key=long", strings.Repeat("x", 1_000_000), nil},
		{200, `"offset"`, "POST", path, strings.Repeat("x", 1_000_000), nil},
		{413, `"error_code":413`, "POST", path, bomb.String(), []string{"Content-Encoding", "gzip"}},
		{400, `"error_code":400`, "POST", path, "no gzip", []string{"Content-Encoding", "gzip"}},
		{400, `"error_code":400`, "POST", path, "no zstd", []string{"Content-Encoding", "zstd"}},
		{415, `"error_code":415`, "POST", path, "x", []string{"Content-Encoding", "br"}},
		{415, `"error_code":415`, "POST", path, "{}", []string{"Content-Type", "application/cloudevents+json"}},
		{415, `"error_code":415`, "POST", path, "{}", []string{"Content-Type", "application/vnd.kafka.json.v2+json"}},
		{415, `"error_code":415`, "POST", path, "{}", []string{"Content-Type", "multipart/form-data; boundary=x"}},
		{200, `"done":false,"lines":0,"produced":0,"failed":0,"error_code":413`, "POST", path, bomb.String(), []string{"Content-Encoding", "gzip", "Content-Type", ndjson}},
		{404, `"error_code":404`, "GET", "/nothing", "", nil},
		{405, `"error_code":405`, "DELETE", path, "", nil},
		{416, `"error_code":416`, "GET", path + "?partition=0&offset=9", "", nil},
		{400, `needs a partition`, "GET", path + "?offset=0", "", nil},
		{400, `cursor`, "GET", path + "?cursor=%21", "", nil},
		{400, `limit`, "GET", path + "?limit=-1", "", nil},
	} {
		g.want(c.status, c.part, c.method, c.path, c.body, c.headers...)
	}
}

// TestSlowBody: a body that does not come frees its place, and while all
// places are taken others are told to come again.
func TestSlowBody(t *testing.T) {
	g := start(t, httpgate.Limits{MaxInFlight: 1, BodyTime: 2 * time.Second})
	g.topic("slow", 1)
	var conn net.Conn
	for deadline := time.Now().Add(10 * time.Second); ; {
		if conn == nil {
			var err error
			if conn, err = net.Dial("tcp", g.addr); err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "POST /api/v1/topics/slow/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
		}
		// The other request may have come first: then this one was refused.
		conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if n, _ := conn.Read(make([]byte, 1)); n > 0 {
			conn = nil
			continue
		}
		if status, answer, h := g.do("POST", "/api/v1/topics/slow/messages", strings.NewReader("x")); status == 429 {
			if h.Get("Retry-After") == "" || !strings.Contains(answer, "429001") {
				t.Errorf("busy: %s %v", answer, h)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("never busy")
		}
	}
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if b, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 408 ") {
		t.Errorf("slow body: %q, %v", b, err)
	}
	g.want(200, "offset", "POST", "/api/v1/topics/slow/messages", "x")
}
