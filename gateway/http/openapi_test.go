package httpgate_test

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"mime"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"go.yaml.in/yaml/v3"

	httpgate "github.com/cirrolog/cirrolog/gateway/http"
)

// document is the OpenAPI document and what the tests saw of it.
var document = sync.OnceValues(func() (*openapi3.T, error) {
	b, err := os.ReadFile("openapi.yaml")
	if err != nil {
		return nil, err
	}
	return openapi3.NewLoader().LoadFromData(b)
})

// seen are the answers that the tests saw: "METHOD /path status" and, of those
// that are no errors, the media type; and the bodies that were taken.
var seen struct {
	sync.Mutex
	answers, bodies map[string]bool
}

// TestMain checks, after all tests, that what the document promises was seen.
func TestMain(m *testing.M) {
	seen.answers, seen.bodies = map[string]bool{}, map[string]bool{}
	code := m.Run()
	all := flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.skip").Value.String() == "" &&
		flag.Lookup("test.fuzz").Value.String() == "" && flag.Lookup("test.list").Value.String() == ""
	if code == 0 && all {
		for _, miss := range unseen() {
			fmt.Printf("openapi.yaml has %s, but no test saw it\n", miss)
			code = 1
		}
	}
	os.Exit(code)
}

// unseen lists what is in the document and was not seen.
func unseen() (miss []string) {
	doc, err := document()
	if err != nil {
		return []string{err.Error()}
	}
	for _, path := range doc.Paths.InMatchingOrder() {
		for method, op := range doc.Paths.Value(path).Operations() {
			for status, resp := range op.Responses.Map() {
				switch {
				case status == "401", status == "403": // brokers with ACLs
				case status == "500": // brokers that fail or hang
				case status == "200":
					for media := range resp.Value.Content {
						if k := strings.Join([]string{method, path, status, media}, " "); !seen.answers[k] {
							miss = append(miss, k)
						}
					}
				case !seen.answers[strings.Join([]string{method, path, status}, " ")]:
					miss = append(miss, strings.Join([]string{method, path, status}, " "))
				}
			}
			if op.RequestBody == nil {
				continue
			}
			for media := range op.RequestBody.Value.Content {
				if k := method + " " + path + " " + media; media != "*/*" && !seen.bodies[k] {
					miss = append(miss, "body "+k)
				}
			}
		}
	}
	slices.Sort(miss)
	return miss
}

// operation finds the route of a request by the rules of http.ServeMux.
func operation(doc *openapi3.T, req *http.Request) (string, *openapi3.Operation) {
	best, item := "", (*openapi3.PathItem)(nil)
	parts := strings.Split(req.URL.EscapedPath(), "/")
	for path, it := range doc.Paths.Map() {
		want := strings.Split(path, "/")
		ok := len(want) == len(parts)
		for i := 0; ok && i < len(want); i++ {
			ok = want[i] == parts[i] || strings.HasPrefix(want[i], "{") && parts[i] != ""
		}
		if ok && (best == "" || strings.Count(path, "{") < strings.Count(best, "{")) {
			best, item = path, it
		}
	}
	if item == nil {
		return "", nil
	}
	if req.Method == http.MethodHead {
		return best, item.Get
	}
	return best, item.GetOperation(req.Method)
}

// checkAnswer holds an answer against the document: its status, media type and
// body must be there.
func (g *gate) checkAnswer(req *http.Request, status int, header http.Header, body string) {
	g.t.Helper()
	doc, err := document()
	if err != nil {
		g.t.Fatal(err)
	}
	path, op := operation(doc, req)
	what := fmt.Sprintf("%s %s (%s): %d %s", req.Method, req.URL.Path, path, status, header.Get("Content-Type"))
	if op == nil {
		want := http.StatusNotFound
		if path != "" {
			want = http.StatusMethodNotAllowed
		}
		if req.Method == http.MethodOptions {
			want = http.StatusNoContent
		}
		if status/100 != 3 && status != want {
			g.t.Errorf("%s: not in openapi.yaml", what)
		}
		if status >= 400 {
			g.checkBody(what, doc.Components.Schemas["Error"].Value, body)
		}
		return
	}
	resp := op.Responses.Value(fmt.Sprint(status))
	media, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	if resp == nil || resp.Value.Content[media] == nil {
		g.t.Errorf("%s: not in openapi.yaml", what)
		return
	}
	schema := resp.Value.Content[media].Schema.Value
	switch {
	case req.Method == http.MethodHead:
		return
	case media == "application/x-ndjson":
		lines := bufio.NewScanner(strings.NewReader(body))
		lines.Buffer(nil, 16<<20)
		for n := 0; lines.Scan() && n < 100; n++ { // the rest is like them
			g.checkBody(what, schema, lines.Text())
		}
	case strings.HasSuffix(media, "json"):
		g.checkBody(what, schema, body)
	}
	g.saw(req, path, status, media)
}

// saw notes an answer for unseen.
func (g *gate) saw(req *http.Request, path string, status int, media string) {
	seen.Lock()
	defer seen.Unlock()
	k := fmt.Sprintf("%s %s %d", req.Method, path, status)
	if status == http.StatusOK {
		k += " " + media
		sent, _, _ := mime.ParseMediaType(req.Header.Get("Content-Type"))
		seen.bodies[req.Method+" "+path+" "+sent] = true
	}
	seen.answers[k] = true
}

func (g *gate) checkBody(what string, schema *openapi3.Schema, body string) {
	g.t.Helper()
	var v any
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		g.t.Errorf("%s: %.200s: %v", what, body, err)
		return
	}
	if len(body) > 64<<10 {
		return // schemas of long answers were checked on short ones
	}
	if err := schema.VisitJSON(v, openapi3.EnableJSONSchema2020()); err != nil {
		g.t.Errorf("%s: %.300s: %v", what, body, err)
	}
}

// TestOpenAPIDocument: the document is valid OpenAPI 3.1, so are its examples,
// and the gateway serves it.
func TestOpenAPIDocument(t *testing.T) {
	doc, err := document()
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Error(err)
	}
	examples := 0
	check := func(where string, content openapi3.Content) {
		for media, m := range content {
			values := map[string]any{}
			if m.Example != nil {
				values["example"] = m.Example
			}
			for name, e := range m.Examples {
				values[name] = e.Value.Value
			}
			for name, v := range values {
				examples++
				if err := m.Schema.Value.VisitJSON(v, openapi3.EnableJSONSchema2020()); err != nil {
					t.Errorf("%s %s, example %s: %v", where, media, name, err)
				}
			}
			if len(values) == 0 && !strings.HasPrefix(media, "application/nd") && media != "application/jsonl" {
				t.Errorf("%s %s has no example", where, media)
			}
		}
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.RequestBody != nil {
				check(method+" "+path, op.RequestBody.Value.Content)
			}
			for status, r := range op.Responses.Map() {
				check(method+" "+path+" "+status, r.Value.Content)
			}
		}
	}
	if examples < 100 {
		t.Errorf("only %d examples were checked", examples)
	}
	g := start(t, httpgate.Limits{})
	onDisk, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got := g.want(200, "", "GET", "/openapi.yaml", ""); got != string(onDisk) {
		t.Error("/openapi.yaml is not the document")
	}
	var a, b any
	if err := json.Unmarshal([]byte(g.want(200, "", "GET", "/openapi.json", "")), &a); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(onDisk, &b); err != nil {
		t.Fatal(err)
	}
	ja, _ := json.Marshal(a)
	jb, _ := json.Marshal(b)
	if string(ja) != string(jb) {
		t.Error("/openapi.json is not /openapi.yaml")
	}
}

// TestOpenAPIRoutes: the document has the routes of the gateway and no others.
func TestOpenAPIRoutes(t *testing.T) {
	doc, err := document()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			have[method+" "+path] = true
		}
	}
	routes := map[string]bool{}
	for _, p := range httpgate.RoutePatterns() {
		routes[strings.TrimSuffix(p, "{$}")] = true
	}
	for _, r := range slices.Sorted(maps.Keys(routes)) {
		if !have[r] {
			t.Errorf("openapi.yaml misses the route %s", r)
		}
	}
	for _, r := range slices.Sorted(maps.Keys(have)) {
		if !routes[r] {
			t.Errorf("openapi.yaml has %s, which is no route", r)
		}
	}
	if len(routes) < 10 {
		t.Errorf("only %d routes", len(routes))
	}
}

// TestBusy: when all places are taken, every route that has places says so.
func TestBusy(t *testing.T) {
	g := start(t, httpgate.Limits{MaxInFlight: 1, MaxReaders: 1, MaxTails: 1})
	g.topic("busy", 1)
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer := bufio.NewReader(conn)
	const body = `{"records":[{"value":1}]}`
	fmt.Fprintf(conn, "POST /topics/busy HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", v2JSON, len(body))
	if line, err := answer.ReadString('\n'); err != nil || !strings.Contains(line, " 100 ") {
		t.Fatalf("%q, %v", line, err)
	} // the body is being read: the request has its place
	g.tail("/api/v1/topics/busy/stream", "") // has the only place of tails
	done := make(chan struct{})
	go func() { // has that of readers, as soon as none of those below has it
		defer close(done)
		for status := 0; status != 200; {
			status, _, _ = g.do("GET", "/api/v1/topics/busy/messages?timeout=30000", nil)
		}
	}()
	for _, c := range busyRoutes {
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			status, answer, h := g.do(c[0], c[1], strings.NewReader("{}"), "Content-Type", v2JSON)
			if status == 429 {
				if h.Get("Retry-After") == "" || !strings.Contains(answer, "429001") {
					t.Errorf("%s: %s %v", c, answer, h)
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is never busy: %d %s", c, status, answer)
			}
		}
	}
	fmt.Fprint(conn, body) // its record wakes the reader
	<-done
	if b, err := answer.Peek(17); err != nil || !strings.Contains(string(b), "HTTP/1.1 200 ") {
		t.Errorf("the request that had the place: %q, %v", b, err)
	}
}

var busyRoutes = [][2]string{
	{"GET", "/api/v1/topics/busy/messages"}, {"GET", "/topics/busy/partitions/0/records"}, {"GET", "/api/v1/topics/busy/stream"}, // first: who holds their place goes after a while
	{"GET", "/brokers"}, {"GET", "/topics"}, {"GET", "/topics/busy"}, {"POST", "/topics/busy"}, {"GET", "/topics/busy/partitions"},
	{"GET", "/topics/busy/partitions/0"}, {"POST", "/topics/busy/partitions/0"}, {"GET", "/topics/busy/partitions/0/offsets"},
}

// TestBrokersAway: without a broker every route that needs one says so; the
// gateway itself is healthy, but not ready.
func TestBrokersAway(t *testing.T) {
	g := startGateway(t, "127.0.0.1:1", httpgate.Limits{})
	var wg sync.WaitGroup
	for _, r := range append(slices.Clone(busyRoutes), [2]string{"POST", "/api/v1/topics/busy/messages"}) {
		media := v2JSON
		if strings.HasPrefix(r[1], "/api") {
			media = "text/plain"
		}
		wg.Go(func() {
			g.want(503, `"error_code":50302`, r[0], r[1], `{"records":[{"value":1}]}`, "Content-Type", media)
		})
	}
	for _, path := range []string{"/ready", "/status/ready"} {
		g.want(503, `"error_code":50302`, "GET", path, "")
	}
	g.want(200, "", "GET", "/healthy", "")
	wg.Wait()
}

// TestBrokerSilent: a broker that takes connections and says nothing is not
// ready, which is told soon, and does not keep the gateway from stopping.
func TestBrokerSilent(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	g := startGateway(t, silent.Addr().String(), httpgate.Limits{})
	for range 2 {
		g.want(503, `"error_code":50302`, "GET", "/ready", "")
	}
}

// TestNativeAnswers: what the other tests leave out of the native routes.
func TestNativeAnswers(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("n", 1)
	const path = "/api/v1/topics/n"
	g.want(404, `"error_code":40401`, "GET", "/api/v1/topics/none/messages", "")
	g.want(404, `"error_code":40402`, "GET", path+"/messages?partition=1", "")
	g.want(400, `"error_code":400`, "GET", path+"/stream?from=now", "")
	g.want(416, `"error_code":416`, "GET", path+"/stream?partition=0&offset=9", "")
	for _, media := range []string{"application/ndjson", "application/jsonl"} {
		g.want(200, `"produced":1`, "POST", path+"/messages", "1\n", "Content-Type", media)
	}
}
