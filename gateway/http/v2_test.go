package httpgate_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	httpgate "github.com/cirrolog/cirrolog/gateway/http"
	"github.com/cirrolog/cirrolog/services/agent"
)

const (
	v2Meta   = "application/vnd.kafka.v2+json"
	v2Binary = "application/vnd.kafka.binary.v2+json"
	v2JSON   = "application/vnd.kafka.json.v2+json"
	v2Text   = "application/vnd.kafka.text.v2+json"
)

// v2Answer is the answer to a produce request.
type v2Answer struct {
	Offsets []struct {
		Partition *int32
		Offset    *int64
		Code      *int `json:"error_code"`
		Error     *string
	}
}

// codes lists what became of the records: ok or the code.
func (a v2Answer) codes() string {
	var out []string
	for _, o := range a.Offsets {
		switch {
		case o.Code != nil && o.Error != nil && o.Partition == nil && o.Offset == nil:
			out = append(out, fmt.Sprint(*o.Code))
		case o.Code == nil && o.Error == nil && o.Partition != nil && o.Offset != nil:
			out = append(out, "ok")
		default:
			out = append(out, "?")
		}
	}
	return strings.Join(out, " ")
}

func (g *gate) v2Produce(path, media, body string) (a v2Answer) {
	g.t.Helper()
	answer := g.want(200, "", "POST", path, body, "Content-Type", media, "Accept", v2Meta)
	if err := json.Unmarshal([]byte(answer), &a); err != nil {
		g.t.Fatal(err)
	}
	return a
}

// consume reads n records of a topic through the Kafka port.
func (g *gate) consume(topic string, n int) (recs []*kgo.Record) {
	g.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(g.kafka), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		g.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(g.t.Context(), 30*time.Second)
	defer cancel()
	for len(recs) < n {
		f := cl.PollFetches(ctx)
		if err := f.Err(); err != nil {
			g.t.Fatalf("%d of %d records: %v", len(recs), n, err)
		}
		recs = append(recs, f.Records()...)
	}
	return recs
}

// TestV2Recorded: the requests of Confluent's and Strimzi's documentation,
// with exactly the answers that it shows.
func TestV2Recorded(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("jsontest", 1)
	g.topic("parts", 3)
	for _, c := range []struct {
		name, method, path, body string
		headers                  []string
		want                     string
	}{
		{"root", "GET", "/", "", nil, `{}`},
		{"JSON", "POST", "/topics/jsontest", `{"records":[{"value":{"foo":"bar"}}]}`,
			[]string{"Content-Type", v2JSON, "Accept", v2Meta},
			`{"offsets":[{"partition":0,"offset":0,"error_code":null,"error":null}],"key_schema_id":null,"value_schema_id":null}`},
		{"binary, charset", "POST", "/topics/jsontest", `{"records":[{"key":"a2V5","value":"S2Fma2E="},{"value":"S2Fma2E="}]}`,
			[]string{"Content-Type", v2Binary + "; charset=utf-8", "Accept", v2Meta + ", application/vnd.kafka+json, application/json"},
			`{"offsets":[{"partition":0,"offset":1,"error_code":null,"error":null},{"partition":0,"offset":2,"error_code":null,"error":null}],"key_schema_id":null,"value_schema_id":null}`},
		{"schema fields that are null", "POST", "/topics/jsontest", `{"key_schema":null,"key_schema_id":null,"value_schema":null,"value_schema_id":null,"records":[{"value":null,"partition":null}]}`,
			[]string{"Content-Type", v2JSON},
			`{"offsets":[{"partition":0,"offset":3,"error_code":null,"error":null}],"key_schema_id":null,"value_schema_id":null}`},
		{"one partition", "POST", "/topics/parts/partitions/1", `{"records":[{"key":"a2V5","value":"Y29uZmx1ZW50"},{"value":"a2Fma2E=","partition":2}]}`,
			[]string{"Content-Type", v2Binary},
			`{"offsets":[{"partition":1,"offset":0,"error_code":null,"error":null},{"partition":2,"offset":0,"error_code":null,"error":null}],"key_schema_id":null,"value_schema_id":null}`},
		{"Strimzi", "POST", "/topics/jsontest", `{"records":[{"key":"k","value":"v","timestamp":1760000000000,"headers":[{"key":"h","value":"aGVhZGVy"}]}]}`,
			[]string{"Content-Type", v2Text},
			`{"offsets":[{"partition":0,"offset":4,"error_code":null,"error":null}],"key_schema_id":null,"value_schema_id":null}`},
		{"topics", "GET", "/topics", "", []string{"Accept", v2Meta}, `["jsontest","parts"]`},
		{"partitions", "GET", "/topics/parts/partitions", "", nil,
			`[{"partition":0,"leader":1,"replicas":[{"broker":1,"leader":true,"in_sync":true}]},{"partition":1,"leader":1,"replicas":[{"broker":1,"leader":true,"in_sync":true}]},{"partition":2,"leader":1,"replicas":[{"broker":1,"leader":true,"in_sync":true}]}]`},
		{"partition", "GET", "/topics/parts/partitions/2", "", nil, `{"partition":2,"leader":1,"replicas":[{"broker":1,"leader":true,"in_sync":true}]}`},
		{"offsets", "GET", "/topics/jsontest/partitions/0/offsets", "", nil, `{"beginning_offset":0,"end_offset":5}`},
		{"brokers", "GET", "/brokers", "", []string{"Accept", "application/json"}, `{"brokers":[1]}`},
		{"records", "GET", "/topics/parts/partitions/1/records?offset=0&timeout=1000&max_bytes=100000", "", []string{"Accept", v2Text},
			`[{"topic":"parts","key":"key","value":"confluent","partition":1,"offset":0,"timestamp":MS,"headers":[]}]`},
		{"ready", "GET", "/ready", "", nil, `{"status":"ready"}`},
		{"Redpanda ready", "GET", "/status/ready", "", nil, `{"status":"ready"}`},
		{"healthy", "GET", "/healthy", "", nil, `{"status":"healthy"}`},
	} {
		status, answer, _ := g.do(c.method, c.path, strings.NewReader(c.body), c.headers...)
		if before, rest, ok := strings.Cut(answer, `"timestamp":`); ok {
			_, after, _ := strings.Cut(rest, ",")
			answer = before + `"timestamp":MS,` + after
		}
		if status != 200 || strings.TrimSpace(answer) != c.want {
			t.Errorf("%s: %d %s, want %s", c.name, status, answer, c.want)
		}
	}
	recs := g.consume("jsontest", 5)
	for i, want := range []string{`<nil> {"foo":"bar"}`, `key Kafka`, `<nil> Kafka`, `<nil> <nil>`, `k v`} {
		if got := show(recs[i].Key) + " " + show(recs[i].Value); got != want {
			t.Errorf("record %d: %s, want %s", i, got, want)
		}
	}
	if r := recs[4]; r.Timestamp.UnixMilli() != 1760000000000 || len(r.Headers) != 1 || r.Headers[0].Key != "h" || string(r.Headers[0].Value) != "header" {
		t.Errorf("Strimzi's record: %+v", r)
	}
	var topic struct {
		Name       string
		Configs    map[string]*string
		Partitions []any
	}
	if err := json.Unmarshal([]byte(g.want(200, "", "GET", "/topics/parts", "")), &topic); err != nil {
		t.Fatal(err)
	}
	if p := topic.Configs["cleanup.policy"]; topic.Name != "parts" || len(topic.Partitions) != 3 || p == nil || *p != "delete" {
		t.Errorf("topic: %+v", topic)
	}
}

func show(b []byte) string {
	if b == nil {
		return "<nil>"
	}
	return string(b)
}

// TestV2Media: which media types are taken and which one is answered.
func TestV2Media(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("m", 1)
	const records = "/topics/m/partitions/0/records"
	const one = `{"records":[{"value":"eA=="}]}`
	for _, c := range []struct {
		status                      int
		method, path, content, want string
		accept                      []string
	}{
		{200, "GET", "/topics", "", v2Meta, nil},
		{200, "GET", "/topics", "", v2Meta, []string{"*/*"}},
		{200, "GET", "/topics", "", "application/json", []string{"application/json"}},
		{200, "GET", "/topics", "", "application/json", []string{"text/html, application/json;q=0.9, */*;q=0.1"}},
		{200, "GET", "/topics", "", "application/json", []string{"text/html", "Application/JSON ; Q=0.5"}},
		{200, "GET", "/topics", "", "application/json", []string{v2Meta + ";q=0, application/*"}},
		{406, "GET", "/topics", "", "application/json", []string{"text/html"}},
		{406, "GET", "/topics", "", "application/json", []string{"*/*;q=0"}},
		{406, "GET", "/topics", "", "application/json", []string{v2Binary}},
		{406, "GET", "/topics", "", "application/json", []string{"application/json;q=x"}},
		{406, "POST", "/topics/m", v2Binary, "application/json", []string{"text/plain"}},
		{404, "GET", "/topics/none", "", v2Meta, nil},
		{404, "GET", "/topics/none", "", "application/json", []string{"application/json"}},
		{200, "GET", records, "", v2Binary, nil},
		{200, "GET", records, "", v2Meta, []string{v2Meta}},
		{200, "GET", records, "", v2JSON, []string{v2JSON}},
		{200, "GET", records, "", v2Text, []string{v2Text + ", " + v2JSON + ";q=0.9"}},
		{406, "GET", records, "", "application/json", []string{"application/vnd.kafka.avro.v2+json"}},
		{200, "POST", "/topics/m", v2Binary, v2Meta, nil},
		{200, "POST", "/topics/m", "Application/Vnd.Kafka.Binary.V2+JSON;charset=utf-8", "application/json", []string{"application/json"}},
		{415, "POST", "/topics/m", "", v2Meta, nil},
		{415, "POST", "/topics/m", "application/json", v2Meta, nil},
		{415, "POST", "/topics/m", v2Meta, v2Meta, nil},
		{415, "POST", "/topics/m", "application/vnd.kafka.avro.v2+json", v2Meta, nil},
		{415, "POST", "/topics/m", "application/vnd.kafka.jsonschema.v2+json", v2Meta, nil},
		{415, "POST", "/topics/m", "application/vnd.kafka.protobuf.v2+json", v2Meta, nil},
		{415, "POST", "/topics/m/partitions/0", "text/plain; \xff", v2Meta, nil},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, g.url+c.path, strings.NewReader(one))
		if err != nil {
			t.Fatal(err)
		}
		if c.content != "" {
			req.Header.Set("Content-Type", c.content)
		}
		req.Header["Accept"] = c.accept
		status, answer, header := g.send(req)
		if status != c.status || header.Get("Content-Type") != c.want {
			t.Errorf("%s %s, Content-Type %q, Accept %q: %d %s %.200s, want %d %s", c.method, c.path, c.content, c.accept, status, header.Get("Content-Type"), answer, c.status, c.want)
		}
		if strings.Contains(c.content, "avro") && !strings.Contains(answer, "schema registry") {
			t.Errorf("Avro is refused without the reason: %s", answer)
		}
	}
}

// TestV2Accept: every route answers as application/vnd.kafka.v2+json and as
// application/json, and refuses other types.
func TestV2Accept(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("m", 1)
	for _, c := range [][2]string{
		{"GET", "/"}, {"GET", "/brokers"}, {"GET", "/topics"}, {"GET", "/topics/m"}, {"GET", "/topics/m/partitions"}, {"GET", "/topics/m/partitions/0"},
		{"GET", "/topics/m/partitions/0/offsets"}, {"GET", "/topics/m/partitions/0/records"}, {"POST", "/topics/m"}, {"POST", "/topics/m/partitions/0"},
	} {
		for _, accept := range []string{v2Meta, "application/json", "*/*"} {
			for _, content := range []string{v2Binary, v2JSON, v2Text} {
				status, answer, header := g.do(c[0], c[1], strings.NewReader(`{"records":[{"value":"YQ=="}]}`), "Accept", accept, "Content-Type", content)
				if got := header.Get("Content-Type"); status != 200 || got != accept && accept != "*/*" {
					t.Errorf("%s, Accept %s: %d %s %s", c, accept, status, got, answer)
				}
			}
		}
		g.want(406, `"error_code":406`, c[0], c[1], `{"records":[{"value":"YQ=="}]}`, "Accept", "text/csv", "Content-Type", v2Binary)
	}
}

// TestSlowBodies: a body that does not come is given up, with its connection.
func TestSlowBodies(t *testing.T) {
	g := start(t, httpgate.Limits{BodyTime: 200 * time.Millisecond})
	g.topic("slow", 1)
	for path, media := range map[string]string{"/topics/slow": v2JSON, "/topics/slow/partitions/0": v2Text, "/api/v1/topics/slow/messages": "text/plain"} {
		conn, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		req, err := http.NewRequestWithContext(t.Context(), "POST", g.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: 100\r\n\r\n%s", path, media, `{"records":[{"value":`)
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(conn), req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if resp.StatusCode != 408 || err != nil {
			t.Errorf("%s: %s %s, %v", path, resp.Status, b, err)
		}
		g.checkAnswer(req, resp.StatusCode, resp.Header, string(b))
	}
}

// TestV2BadRequests: status and code of what can't be done; nothing of it is
// stored and the gateway goes on.
func TestV2BadRequests(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("t", 2)
	var bomb bytes.Buffer
	zw := gzip.NewWriter(&bomb)
	fmt.Fprintf(zw, `{"records":[{"value":"`)
	zw.Write(bytes.Repeat([]byte("A"), 64<<20))
	fmt.Fprintf(zw, `"}]}`)
	zw.Close()
	const path = "/topics/t"
	deep := strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)
	for _, c := range []struct {
		status             int
		part, method, path string
		body               string
		headers            []string
	}{
		{422, `42203`, "POST", path, ``, nil},
		{422, `42203`, "POST", path, `null`, nil},
		{422, `42203`, "POST", path, `[]`, nil},
		{422, `42203`, "POST", path, `{"records":[{"value":1}`, nil},
		{422, `42203`, "POST", path, `{"records":[{"value":1}]} {}`, nil},
		{422, `42203`, "POST", path, `{"records":[{"value":1}]}x`, nil},
		{422, `42203`, "POST", path, `{"records":[{"value":1},]}`, nil},
		{422, `42203`, "POST", path, `{"records":[{"value":1}}`, nil},
		{422, `42203`, "POST", path, `{"records":{"value":1}}`, nil},
		{422, `42203`, "POST", path, `{"records":[{"value":1}],"records":[]}`, nil},
		{422, `records[1]: The record is not a JSON object`, "POST", path, `{"records":[{"value":1},2]}`, nil},
		{422, `records[0]: Unrecognized field: \"Value\"`, "POST", path, `{"records":[{"Value":1}]}`, nil},
		{422, `42203`, "POST", path, `{"record":[{"value":1}]}`, nil},
		{422, `42203`, "POST", path, `{"records":[{"value":1,"partition":"0"}]}`, nil},
		{422, `42203`, "POST", path, `{"records":[{"value":1,"partition":1.5}]}`, nil},
		{422, `42203`, "POST", path, `{"records":[{"value":1,"partition":4294967296}]}`, nil},
		{422, `42203`, "POST", path, `{"records":[{"value":1,"timestamp":"now"}]}`, nil},
		{422, `42203`, "POST", path, `{"records":[{"value":1,"headers":{"a":"b"}}]}`, nil},
		{422, `42203`, "POST", path, `{"records":[{"value":1,"headers":[{"name":"a"}]}]}`, nil},
		{422, `42206`, "POST", path, `{"records":[{"value":1,"headers":[{"key":"a","value":"%"}]}]}`, nil},
		{422, `42203`, "POST", path, "{\"records\":[{\"value\":\"x\xff\"}]}", nil},
		{422, `42203`, "POST", path, `{"records":[{"value":` + deep + `}]}`, nil},
		{422, `42203`, "POST", path, `{"records":` + deep + `}`, nil},
		{422, `42203`, "POST", path, `{"value_schema":` + deep + `}`, nil},
		{422, `"error_code":422,"message":"records must not be empty."`, "POST", path, `{"records":[]}`, nil},
		{422, `"error_code":422`, "POST", path, `{"records":null}`, nil},
		{422, `"error_code":422`, "POST", path, `{}`, nil},
		{422, `records[1]: value=\"=bad\" is not a base64 string.`, "POST", path, `{"records":[{"value":"QQ=="},{"value":"=bad"}]}`, []string{"Content-Type", v2Binary}},
		{422, `42206`, "POST", path, `{"records":[{"value":{"a":1}}]}`, []string{"Content-Type", v2Binary}},
		{422, `42206`, "POST", path, `{"records":[{"value":12}]}`, []string{"Content-Type", v2Text}},
		{413, `413`, "POST", path, `{"records":[` + strings.Repeat(`{},`, 60_000) + `{}]}`, nil},
		{413, `413`, "POST", path, `{"records":[{"value":"` + strings.Repeat("x", 9<<20) + `"}]}`, nil},
		{413, `413`, "POST", path, bomb.String(), []string{"Content-Type", v2Binary, "Content-Encoding", "gzip"}},
		{400, `400`, "POST", path, `{"records":[{"value":1}]}`, []string{"Content-Type", v2JSON, "Content-Encoding", "gzip"}},
		{415, `415`, "POST", path, `{"records":[{"value":1}]}`, []string{"Content-Type", v2JSON, "Content-Encoding", "br"}},
		{404, `40402`, "POST", path + "/partitions/2", `{"records":[{"value":1}]}`, nil},
		{404, `40402`, "POST", path + "/partitions/-1", `{"records":[{"value":1}]}`, nil},
		{404, `40402`, "POST", path + "/partitions/x", `{"records":[{"value":1}]}`, nil},
		{404, `40402`, "GET", path + "/partitions/2", ``, nil},
		{404, `40402`, "GET", path + "/partitions/99999999999/offsets", ``, nil},
		{404, `40402`, "GET", path + "/partitions/2/records", ``, nil},
		{404, `40401`, "GET", "/topics/none", ``, nil},
		{404, `40401`, "GET", "/topics/none/partitions", ``, nil},
		{404, `40401`, "GET", "/topics/none/partitions/0/offsets", ``, nil},
		{404, `40401`, "GET", "/topics/none/partitions/0/records", ``, nil},
		{404, `40401`, "GET", "/topics/a%2Fb", ``, nil},
		{404, `40401`, "GET", "/topics/%00%FF", ``, nil},
		{404, `40401`, "GET", "/topics/%E2%82%AC", ``, nil},
		{404, `40401`, "POST", "/topics/a%2Fb", `{"records":[{"value":1}]}`, nil},
		{404, `40401`, "POST", "/topics/" + strings.Repeat("x", 250), `{"records":[{"value":1}]}`, nil},
		{416, `416`, "GET", path + "/partitions/0/records?offset=5", ``, nil},
		{400, `400`, "GET", path + "/partitions/0/records?offset=-5", ``, nil},
		{400, `400`, "GET", path + "/partitions/0/records?timeout=x", ``, nil},
		{400, `400`, "GET", path + "/partitions/0/records?max_bytes=%zz", ``, nil},
		{405, `405`, "DELETE", path, ``, nil},
		{405, `405`, "PUT", "/topics", ``, nil},
		{404, `404`, "POST", "/consumers/g", `{}`, nil},
		{404, `404`, "GET", "/v3/clusters", ``, nil},
	} {
		if c.headers == nil {
			c.headers = []string{"Content-Type", v2JSON}
		}
		g.want(c.status, c.part, c.method, c.path, c.body, c.headers...)
		if c.method == "POST" && c.path == path {
			g.want(c.status, c.part, c.method, path+"/partitions/1", c.body, c.headers...)
		}
	}
	for p := range 2 {
		g.want(200, `{"beginning_offset":0,"end_offset":0}`, "GET", fmt.Sprintf("%s/partitions/%d/offsets", path, p), "")
	}
}

// TestV2Results: every record has its own result, in the order of the request,
// and one that fails takes no other with it.
func TestV2Results(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("r", 2)
	future := time.Now().Add(48 * time.Hour).UnixMilli()
	big := strings.Repeat("x", 1_100_000)
	a := g.v2Produce("/topics/r/partitions/0", v2JSON, fmt.Sprintf(
		`{"records":[{"value":"a"},{"value":"b","partition":7},{"value":"c"},{"value":"%s"},{"value":"d","timestamp":%d},{"value":"e","partition":-1},{"value":"f"}]}`, big, future))
	if got := a.codes(); got != "ok 50002 ok 50002 50002 50002 ok" {
		t.Errorf("results: %s", got)
	}
	recs := g.consume("r", 3)
	for i, want := range []string{`"a"`, `"c"`, `"f"`} {
		if string(recs[i].Value) != want || recs[i].Offset != int64(i) {
			t.Errorf("record %d: %s at %d", i, recs[i].Value, recs[i].Offset)
		}
	}
	if _, err := g.admin.CreateTopic(t.Context(), 1, 1, map[string]*string{"cleanup.policy": kadm.StringPtr("compact")}, "compacted"); err != nil {
		t.Fatal(err)
	}
	if got := g.v2Produce("/topics/compacted", v2JSON, `{"records":[{"key":1,"value":2},{"value":3},{"key":1}]}`).codes(); got != "ok 50002 ok" {
		t.Errorf("compacted: %s", got)
	}
}

// TestV2Order: a batch is stored in its order, by key, and JSON and bytes come
// back as they were.
func TestV2Order(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("order", 3)
	const n = 5000
	var body strings.Builder
	body.WriteString(`{"records":[`)
	for i := range n {
		if i > 0 {
			body.WriteByte(',')
		}
		fmt.Fprintf(&body, `{"key":"%s","value":"%s"}`, base64.StdEncoding.EncodeToString(fmt.Append(nil, i%7)), base64.RawStdEncoding.EncodeToString(fmt.Append(nil, i)))
	}
	body.WriteString(`]}`)
	a := g.v2Produce("/topics/order", v2Binary, body.String())
	if len(a.Offsets) != n {
		t.Fatalf("%d results", len(a.Offsets))
	}
	at := map[string]int{}
	for i, o := range a.Offsets {
		at[fmt.Sprint(*o.Partition, " ", *o.Offset)] = i
	}
	last := map[string]int{}
	for _, r := range g.consume("order", n) {
		i, ok := at[fmt.Sprint(r.Partition, " ", r.Offset)]
		if !ok || string(r.Value) != fmt.Sprint(i) || string(r.Key) != fmt.Sprint(i%7) {
			t.Fatalf("partition %d, offset %d is %s %s, answered as record %d (%v)", r.Partition, r.Offset, r.Key, r.Value, i, ok)
		}
		if l, ok := last[string(r.Key)]; ok && l >= i {
			t.Fatalf("key %s: %d after %d", r.Key, i, l)
		}
		last[string(r.Key)] = i
	}
	g.topic("exact", 1)
	g.v2Produce("/topics/exact", v2JSON, `{"records":[{"key":{ "b": 1 , "a":[1.50, 1e3, 12345678901234567890] },"value":" <\u00e9> "}]}`)
	if r := g.consume("exact", 1)[0]; string(r.Key) != `{"b":1,"a":[1.50,1e3,12345678901234567890]}` || string(r.Value) != `" <\u00e9> "` {
		t.Errorf("JSON: %s %s", r.Key, r.Value)
	}
	const read = "/topics/exact/partitions/0/records"
	g.want(200, `"key":{"b":1,"a":[1.50,1e3,12345678901234567890]}`, "GET", read, "", "Accept", v2JSON)
	g.v2Produce("/topics/exact", v2Binary, `{"records":[{"value":"/w=="}]}`)
	g.want(408, `"error_code":40801`, "GET", read+"?offset=1", "", "Accept", v2JSON)
	g.want(408, `"error_code":40801`, "GET", read+"?offset=1", "", "Accept", v2Text)
	g.want(200, `"key":null,"value":"/w=="`, "GET", read+"?offset=1&max_bytes=0", "")
}

// TestV2AutoCreate: an unknown topic is created by a produce request if the
// brokers do so, and by nothing else.
func TestV2AutoCreate(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.want(404, `40401`, "GET", "/topics/new", "")
	if got := g.v2Produce("/topics/new", v2JSON, `{"records":[{"value":1}]}`).codes(); got != "ok" {
		t.Errorf("first record of a topic: %s", got)
	}
	g.want(200, `"name":"new"`, "GET", "/topics/new", "")
	g.want(200, `["new"]`, "GET", "/topics", "")
	off := start(t, httpgate.Limits{}, func(c *agent.Config) { c.AutoCreate = false })
	off.want(404, `40401`, "POST", "/topics/new", `{"records":[{"value":1}]}`, "Content-Type", v2JSON)
	off.want(200, `[]`, "GET", "/topics", "")
}
