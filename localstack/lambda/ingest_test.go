package lambda_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/localstack/lambda"
)

const words = "words"

// response is the answer in all formats.
type response struct {
	StatusCode        int                 `json:"statusCode"`
	StatusDescription string              `json:"statusDescription"`
	Headers           map[string]string   `json:"headers"`
	MultiValueHeaders map[string][]string `json:"multiValueHeaders"`
	Body              string              `json:"body"`
	IsBase64Encoded   bool                `json:"isBase64Encoded"`
}

type ingest struct {
	*cluster
	f     *lambda.Function
	acked map[place]stored // what was acknowledged
}

type place struct {
	partition int32
	offset    int64
}

// stored is a record; its headers are key=value.
type stored struct {
	key, value string
	headers    string
}

func (i *ingest) invoke(payload []byte) response {
	i.t.Helper()
	b, err := i.f.Invoke(payload)
	if err != nil {
		i.t.Fatal(err)
	}
	var r response
	if err := json.Unmarshal(b, &r); err != nil {
		i.t.Fatalf("%v: %.200s", err, b)
	}
	return r
}

// ack notes what an answer acknowledges, in any of the dialects, as recs.
func (i *ingest) ack(r response, recs ...stored) {
	i.t.Helper()
	var got []place
	if r.StatusCode != 200 {
		i.t.Fatalf("answer %+v", r)
	}
	for line := range strings.Lines(r.Body) {
		var a struct {
			Partition *int32
			Offset    int64
			Done      *bool
			Offsets   []struct {
				Partition *int32
				Offset    int64
			}
		}
		if err := json.Unmarshal([]byte(line), &a); err != nil || a.Done != nil && !*a.Done {
			i.t.Fatalf("%v in %s", err, r.Body)
		}
		for _, o := range a.Offsets {
			if o.Partition == nil {
				i.t.Fatalf("answer %s", r.Body)
			}
			got = append(got, place{*o.Partition, o.Offset})
		}
		if a.Partition != nil {
			got = append(got, place{*a.Partition, a.Offset})
		}
	}
	if len(got) != len(recs) {
		i.t.Fatalf("%d records are acknowledged, want %d: %s", len(got), len(recs), r.Body)
	}
	for n, p := range got {
		if _, twice := i.acked[p]; twice {
			i.t.Errorf("offset %d of partition %d is given twice", p.offset, p.partition)
		}
		i.acked[p] = recs[n]
	}
}

// check reads the topic: every record in it was acknowledged, at its place, as it was sent, and nothing else was.
func (i *ingest) check() {
	i.t.Helper()
	found := map[place]stored{}
	for p := range int32(2) {
		for _, r := range i.read(words, p) {
			found[place{p, r.Offset}] = storedOf(r)
		}
	}
	for p, want := range i.acked {
		if got, ok := found[p]; !ok || got != want {
			i.t.Errorf("acknowledged at offset %d of partition %d: %.100q, found %v: %.100q", p.offset, p.partition, want, ok, got)
		}
	}
	if len(found) != len(i.acked) {
		i.t.Errorf("%d records are there, %d are acknowledged", len(found), len(i.acked))
	}
}

func storedOf(r *kgo.Record) stored {
	s := stored{key: string(r.Key), value: string(r.Value)}
	for _, h := range r.Headers {
		s.headers += h.Key + "=" + string(h.Value) + " "
	}
	return s
}

// TestIngest feeds the recorded events of every source to the function, in front of an agent of a cluster.
func TestIngest(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.create(words, 2, nil)
	i := &ingest{cluster: c, acked: map[place]stored{}, f: lambda.New(t, "ingest", "CIRROLOG_BROKERS="+c.node.Kafka)}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	fmt.Fprint(z, "packed")
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	i.ack(i.invoke(event(t, "function-url.json", nil)), stored{"café", "\x00\x01\xff~_\n", "source=function-url "})
	i.ack(i.invoke(event(t, "http-api.json", nil)), stored{`"k"`, `{"a":1}`, ""}, stored{"", `"zwei"`, ""})
	i.ack(i.invoke(event(t, "http-api-1.0.json", nil)), stored{"\x00\x01", "\xff\xff", ""})
	lines := i.invoke(event(t, "rest-api.json", nil))
	i.ack(lines, stored{"a&b=c", `{"n":1}`, "tag=one tag=two "}, stored{"a&b=c", `{"n":2}`, "tag=one tag=two "}, stored{"a&b=c", `"drei"`, "tag=one tag=two "})
	if lines.MultiValueHeaders["Content-Type"][0] != "application/x-ndjson" {
		t.Errorf("answer %+v", lines)
	}
	alb := i.invoke(event(t, "alb.json", nil))
	i.ack(alb, stored{"a&b c", "grüße", "source=alb "})
	if alb.StatusDescription != "200 OK" || alb.Headers["Content-Type"] != "application/json" || alb.MultiValueHeaders != nil {
		t.Errorf("answer %+v", alb)
	}
	multi := i.invoke(event(t, "alb-multi-value.json", nil, "GZIPPED", base64.StdEncoding.EncodeToString(packed.Bytes())))
	i.ack(multi, stored{"k", "packed", "tag=one tag=two "})
	if multi.MultiValueHeaders["Content-Type"][0] != "application/json" || multi.Headers != nil {
		t.Errorf("answer %+v", multi)
	}
	i.check()
	i.large()
	i.keyed()
	i.refused()
	coldStarts(t, "ingest", func() *lambda.Function { return lambda.New(t, "ingest", "CIRROLOG_BROKERS="+c.node.Kafka) }, func(f *lambda.Function) {
		i.f = f
		i.ack(i.invoke(event(t, "alb.json", nil)), stored{"a&b c", "grüße", "source=alb "})
	})
	i.check()
	i.unreachable()
	i.bucketGone()
}

// large sends bodies of the largest size that Lambda carries, and larger ones.
func (i *ingest) large() {
	i.t.Helper()
	value := strings.Repeat("x", 880_000)
	body := map[string]any{"records": []map[string]any{{"value": value + "1"}, {"value": value + "2"}, {"value": value + "3"}, {"value": value + "4"}, {"value": value + "5"}, {"value": value + "6"}}}
	text, err := json.Marshal(body)
	if err != nil {
		i.t.Fatal(err)
	}
	var recs []stored
	for n := range 6 {
		recs = append(recs, stored{"", fmt.Sprint(value, n+1), ""})
	}
	i.ack(i.invoke(event(i.t, "http-api.json", map[string]any{"headers.content-type": "application/vnd.kafka.text.v2+json", "body": string(text)})), recs...)
	i.refuse("record of 4.5 MB", event(i.t, "function-url.json", map[string]any{"body": base64.StdEncoding.EncodeToString(make([]byte, 4_500_000))}), 413, 413)
	_, err = i.f.Invoke(event(i.t, "function-url.json", map[string]any{"body": strings.Repeat("A", 6<<20)}))
	failedAs(i.t, err, "an event of more than 6 MB", "RequestEntityTooLargeException")
}

// keyed sends a request twice with one key. The process stands still after each answer, so nothing may be left to do.
func (i *ingest) keyed() {
	i.t.Helper()
	e := event(i.t, "function-url.json", map[string]any{"headers.idempotency-key": `"8e03978e-40d5-43dd-bc93-6894a57f9324"`, "rawQueryString": ""})
	first := i.invoke(e)
	i.ack(first, stored{"", "\x00\x01\xff~_\n", "source=function-url "})
	other := lambda.New(i.t, "ingest", "CIRROLOG_BROKERS="+i.node.Kafka) // another execution environment, while the first one is frozen
	b, err := other.Invoke(e)
	var again response
	if err == nil {
		err = json.Unmarshal(b, &again)
	}
	if err != nil || again.Body != first.Body || again.Headers["Idempotency-Replayed"] != "true" {
		i.t.Errorf("the same key again: %+v, %v; want %+v", again, err, first)
	}
}

// refuse sends an event that must be refused with this status and this code.
func (i *ingest) refuse(what string, payload []byte, status, code int) {
	i.t.Helper()
	r := i.invoke(payload)
	var e struct {
		Code    int    `json:"error_code"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal([]byte(r.Body), &e); err != nil || r.StatusCode != status || e.Code != code || e.Message == "" || r.IsBase64Encoded {
		i.t.Errorf("%s: status %d, %s; want %d with %d", what, r.StatusCode, r.Body, status, code)
	}
}

// refused sends what is wrong. check finds out that nothing of it is stored.
func (i *ingest) refused() {
	i.t.Helper()
	for _, one := range []struct {
		what, file   string
		set          map[string]any
		status, code int
	}{
		{"bad Base64, Function URL", "function-url.json", map[string]any{"body": "AAH/fl8K!"}, 400, 400},
		{"cut Base64, HTTP API", "http-api.json", map[string]any{"body": "eyJyZWNvcmRzI", "isBase64Encoded": true}, 400, 400},
		{"bad Base64, HTTP API 1.0", "http-api-1.0.json", map[string]any{"body": "~"}, 400, 400},
		{"bad Base64, REST API", "rest-api.json", map[string]any{"isBase64Encoded": true}, 400, 400},
		{"bad Base64, ALB", "alb.json", map[string]any{"isBase64Encoded": true}, 400, 400},
		{"bad Base64, ALB with multi-value headers", "alb-multi-value.json", map[string]any{"body": "=="}, 400, 400},
		{"bad Base64 in a record", "http-api-1.0.json", map[string]any{"body": `{"records":[{"value":"AA"},{"value":"%"}]}`, "isBase64Encoded": false}, 422, 42206},
		{"no body", "http-api.json", map[string]any{"body": nil}, 422, 42203},
		{"no headers", "http-api.json", map[string]any{"headers": nil}, 415, 415},
		{"no headers, 1.0", "http-api-1.0.json", map[string]any{"headers": nil, "multiValueHeaders": nil}, 415, 415},
		{"no method", "function-url.json", map[string]any{"requestContext.http.method": nil}, 400, 400},
		{"no path", "function-url.json", map[string]any{"rawPath": nil}, 400, 400},
		{"no path, REST API", "rest-api.json", map[string]any{"path": nil}, 400, 400},
		{"no method, ALB", "alb.json", map[string]any{"httpMethod": nil}, 400, 400},
		{"a body that is no text", "function-url.json", map[string]any{"body": 7}, 400, 400},
		{"no requestContext", "function-url.json", map[string]any{"requestContext": nil}, 400, 400},
		{"no such topic", "function-url.json", map[string]any{"rawPath": "/api/v1/topics/none/messages"}, 404, 40401},
		{"no such path", "alb.json", map[string]any{"path": "/hello"}, 404, 404},
		{"a wrong method", "rest-api.json", map[string]any{"httpMethod": "PUT"}, 405, 405},
		{"no gzip", "alb-multi-value.json", map[string]any{"body": "AAAA"}, 400, 400},
		{"a tail", "function-url.json", map[string]any{"rawPath": "/api/v1/topics/words/stream", "requestContext.http.method": "GET"}, 501, 501},
		{"no such partition", "function-url.json", map[string]any{"rawQueryString": "partition=9"}, 404, 40402},
	} {
		i.refuse(one.what, event(i.t, one.file, one.set), one.status, one.code)
	}
	i.refuse("bytes that are no UTF-8", bytes.Replace(event(i.t, "alb.json", nil), []byte("grüße"), []byte("gr\xfc\xdfe"), 1), 400, 400)
	for what, payload := range map[string]string{"another event": `{"Records":[]}`, "nothing": `{}`, "no object": `[1]`, "no JSON": `{`} {
		_, err := i.f.Invoke([]byte(payload))
		failedAs(i.t, err, what, "Cirrolog.NotAnEvent", "Function URL")
	}
	for what, env := range map[string]string{"is not set": "X=1", "want HOST:PORT": "CIRROLOG_BROKERS=localhost", "CIRROLOG_BROKER is not known": "CIRROLOG_BROKER=localhost:9092"} {
		_, err := lambda.New(i.t, "ingest", env).Invoke([]byte(`{}`))
		failedAs(i.t, err, what, "Cirrolog.Settings", what)
	}
}

// unreachable has brokers that don't answer: the function says so within its time.
func (i *ingest) unreachable() {
	i.t.Helper()
	f := lambda.New(i.t, "ingest", "CIRROLOG_BROKERS=127.0.0.1:1")
	f.Timeout = 3 * time.Second
	for _, file := range []string{"function-url.json", "http-api.json"} {
		b, err := f.Invoke(event(i.t, file, nil))
		var r response
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil || r.StatusCode/100 != 5 || !strings.Contains(r.Body, `"error_code":50`) {
			i.t.Errorf("%s: %+v, %v", file, r, err)
		}
	}
}

// bucketGone deletes the bucket under the agent: no record is acknowledged any more, in no dialect.
func (i *ingest) bucketGone() {
	i.t.Helper()
	cl, err := minio.New(strings.TrimPrefix(i.endpoint.URL, "http://"), &minio.Options{Creds: credentials.NewStaticV4(i.endpoint.AccessKey, i.endpoint.SecretKey, "")})
	if err != nil {
		i.t.Fatal(err)
	}
	if err := cl.RemoveBucketWithOptions(i.t.Context(), i.endpoint.Bucket, minio.RemoveBucketOptions{ForceDelete: true}); err != nil {
		i.t.Fatal(err)
	}
	i.f.Timeout = 3 * time.Second
	for _, file := range []string{"function-url.json", "http-api.json", "rest-api.json"} {
		b, err := i.f.Invoke(event(i.t, file, nil))
		var r response
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if errors.Is(err, lambda.ErrTimeout) || err != nil {
			i.t.Errorf("%s: %v", file, err)
			continue
		}
		var a struct {
			Code    int `json:"error_code"`
			Offsets []struct {
				Offset *int64
				Code   int `json:"error_code"`
			}
		}
		line, _, _ := strings.Cut(r.Body, "\n")
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			i.t.Errorf("%s: %v: %s", file, err, r.Body)
		}
		for _, o := range a.Offsets { // Confluent's dialect has a status for each record
			if a.Code = o.Code; o.Offset != nil {
				i.t.Errorf("%s: acknowledged: %s", file, r.Body)
			}
		}
		if a.Code/100 != 500 && a.Code/100 != 503 {
			i.t.Errorf("%s: status %d: %s", file, r.StatusCode, r.Body)
		}
	}
	i.f.Timeout = 0
}
