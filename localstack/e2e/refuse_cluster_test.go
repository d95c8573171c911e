package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	dynamoapi "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/cirrolog/cirrolog/localstack/dynamodb"
	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/localstack/redis"
)

// inFront is an HTTP server in front of another one that changes requests and answers; either may be nil.
func inFront(t *testing.T, server string, request func(*http.Request), answer func(*http.Response) error) string {
	t.Helper()
	to, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	p := &httputil.ReverseProxy{ModifyResponse: answer, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host // it is signed
		if request != nil {
			request(r.Out)
		}
	}}
	s := httptest.NewServer(p)
	t.Cleanup(s.Close)
	return s.URL
}

// shiftTimes makes the answers of a server those of a clock that is ahead.
func shiftTimes(ahead time.Duration) func(*http.Response) error {
	return func(r *http.Response) error {
		for _, name := range []string{"Date", "Last-Modified"} {
			if at, err := http.ParseTime(r.Header.Get(name)); err == nil {
				r.Header.Set(name, at.Add(ahead).UTC().Format(http.TimeFormat))
			}
		}
		return nil
	}
}

// lyingPuts says of puts that were refused for their condition that they were carried out.
func lyingPuts(r *http.Response) error {
	if r.Request.Method == http.MethodPut && r.StatusCode == http.StatusPreconditionFailed {
		r.StatusCode, r.Status = http.StatusOK, "200 OK"
		r.Header.Set("ETag", `"0123456789abcdef0123456789abcdef"`)
		r.Header.Set("Content-Length", "0")
		r.ContentLength, r.Body = 0, http.NoBody
	}
	return nil
}

var listed = regexp.MustCompile(`(?s)<Contents>.*?</Contents>`)

// disordered turns the order of lists around.
func disordered(r *http.Response) error {
	if r.Request.URL.Query().Get("list-type") != "2" {
		return nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	all := listed.FindAll(body, -1)
	i := len(all)
	body = listed.ReplaceAllFunc(body, func([]byte) []byte { i--; return all[i] })
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// shiftedRedis is a server in front of a Redis whose TIME is ahead.
func shiftedRedis(t *testing.T, to string, ahead time.Duration) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	answer := regexp.MustCompile(`\*2\r\n\$10\r\n[0-9]{10}\r\n\$`)
	serve := func(in net.Conn) {
		defer in.Close()
		out, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer out.Close()
		go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
		for buf := make([]byte, 64<<10); ; {
			n, err := out.Read(buf)
			if err != nil {
				return
			}
			b := answer.ReplaceAllFunc(buf[:n], func(m []byte) []byte {
				s, _ := strconv.ParseInt(string(m[9:19]), 10, 64)
				return fmt.Appendf(nil, "*2\r\n$10\r\n%d\r\n$", s+int64(ahead/time.Second))
			})
			if _, err := in.Write(b); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go serve(in)
		}
	}()
	return l.Addr().String()
}

// agentCase is a start of an agent that is refused, and what doctor says of it.
type agentCase struct {
	name             string
	bucket, metadata string
	env              []string
	check            string // of doctor
	words            []string
}

// refusedByBoth runs the agent and doctor with the same settings.
func (c agentCase) refusedByBoth(t *testing.T, n *Node) {
	t.Helper()
	n.o.Metadata, n.o.Env = c.metadata, c.env
	n.o.Args = append([]string{"--bucket", c.bucket}, n.o.Args...)
	says(t, n.refused(t), c.words...)
	c.doctor(t, n)
}

// doctor wants exactly one check to fail.
func (c agentCase) doctor(t *testing.T, n *Node, args ...string) {
	t.Helper()
	cmd := command(t, c.env, append([]string{"doctor", "-o", "json", "--data-dir", n.Dir, "--metadata", c.metadata, "--bucket", c.bucket, "--admin", n.Admin}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 1 || strings.Count(stderr.String(), "\n") != 1 {
		t.Errorf("doctor: %v, stderr %q", err, stderr.String())
	}
	var found []struct{ Check, Status, Detail string }
	if err := json.Unmarshal(stdout.Bytes(), &found); err != nil {
		t.Fatalf("doctor: %v\n%s", err, stdout.String())
	}
	failed := 0
	for _, f := range found {
		if f.Status == "fail" {
			failed++
			if f.Check != c.check || strings.Contains(f.Detail, "\n") {
				t.Errorf("doctor says of %s: %q", f.Check, f.Detail)
			}
			says(t, f.Detail, c.words...)
		}
	}
	if failed != 1 {
		t.Errorf("doctor: %d checks failed, want that of %s:\n%s", failed, c.check, stdout.String())
	}
}

func TestRefuseAgentStores(t *testing.T) {
	e := minio.Start(t)
	r := redis.Start(t, "--appendonly", "yes")
	evicting := redis.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	bucket, env := bucketOn(e, "s3")
	through := func(driver string, request func(*http.Request), answer func(*http.Response) error) string {
		front := e
		front.URL = inFront(t, e.URL, request, answer)
		b, _ := bucketOn(front, driver)
		return b
	}
	late := func(r *http.Request) {
		r.Header.Set("X-Amz-Date", time.Now().Add(-20*time.Minute).UTC().Format("20060102T150405Z"))
	}
	away := e
	away.Bucket = "no-such-bucket"
	missing, _ := bucketOn(away, "s3")
	wrong := append([]string{env[0]}, "AWS_SECRET_ACCESS_KEY=wrong-secret")
	for i, c := range []agentCase{
		{"wrong bucket", missing, "", env, "bucket", []string{"no-such-bucket", "bucket not found", "check the bucket's name"}},
		{"wrong credentials", bucket, "", wrong, "bucket", []string{e.Bucket, "access denied", "check AWS_ACCESS_KEY_ID"}},
		{"careless puts", through("s3", nil, lyingPuts), "", env, "bucket", []string{"If-None-Match", "was carried out", "choose a store"}},
		{"careless puts, minio", through("minio", nil, lyingPuts), "", env, "bucket", []string{"If-None-Match", "was carried out", "choose a store"}},
		{"lists out of order", through("s3", nil, disordered), "", env, "bucket", []string{"list", "order of keys", "choose a store"}},
		{"lists out of order, minio", through("minio", nil, disordered), "", env, "bucket", []string{"list", "order of keys", "choose a store"}},
		{"bucket's clock behind", through("s3", nil, shiftTimes(-10*time.Minute)), "", env, "bucket clock", []string{"the clock of this machine is", "ahead of that of the bucket", "NTP"}},
		{"bucket's clock ahead", through("minio", nil, shiftTimes(10*time.Minute)), "", env, "bucket clock", []string{"the clock of this machine is", "behind that of the bucket", "NTP"}},
		{"clock beyond what S3 takes", through("s3", late, nil), "", env, "bucket", []string{"RequestTimeTooSkewed", "the clocks of the store and of this machine differ", "NTP"}},
		{"clock beyond what S3 takes, minio", through("minio", late, nil), "", env, "bucket", []string{"the clocks of the store and of this machine differ", "NTP"}},
		{"redis that evicts", bucket, evicting.URL("a"), env, "metadata", []string{evicting.Addr, "maxmemory-policy is allkeys-lru", "set maxmemory-policy to noeviction"}},
		{"redis's clock", bucket, "redis://" + shiftedRedis(t, r.Addr, -6*time.Minute) + "?namespace=clock", env, "metadata clock", []string{"ahead of that of the metadata store", "NTP"}},
		{"no redis", bucket, "redis://127.0.0.1:1", env, "metadata", []string{"127.0.0.1:1", "connection refused"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.metadata == "" {
				c.metadata = r.URL(fmt.Sprint("case-", i))
			}
			c.refusedByBoth(t, idleNode(t, NodeOptions{}))
		})
	}
	t.Run("another cluster", func(t *testing.T) {
		other := strings.Replace(bucket, "/main/job", "/other", 1)
		for ns, b := range map[string]string{"one": bucket, "two": other} {
			n := NewNode(t, NodeOptions{Metadata: r.URL(ns), Env: env, Args: []string{"--bucket", b}})
			writeSome(t, n, "v")
			n.Stop()
		}
		agentCase{bucket: other, metadata: r.URL("one"), env: env, check: "cluster", words: []string{"bucket belongs to cluster", "metadata store to", "run with the bucket"}}.refusedByBoth(t, idleNode(t, NodeOptions{}))
		agentCase{bucket: bucket, metadata: r.URL("three"), env: env, check: "cluster", words: []string{"bucket holds cluster", "metadata store is new"}}.refusedByBoth(t, idleNode(t, NodeOptions{}))
	})
}

func TestRefuseAgentTables(t *testing.T) {
	var local dynamodb.Shared
	t.Cleanup(func() {
		if err := local.Stop(); err != nil {
			t.Error(err)
		}
	})
	endpoint := local.Start(t)
	env := []string{"AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test"}
	api := dynamoapi.New(dynamoapi.Options{Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")})
	if _, err := api.CreateTable(t.Context(), &dynamoapi.CreateTableInput{TableName: aws.String("foreign"), BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("id"), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("id"), KeyType: types.KeyTypeHash}}}); err != nil {
		t.Fatal(err)
	}
	late := inFront(t, endpoint, nil, shiftTimes(7*time.Minute))
	for _, c := range []agentCase{
		{"key schema", "", "dynamodb://foreign?region=us-east-1&create=true&endpoint=" + endpoint, env, "metadata", []string{`table "foreign"`, "(id S HASH), not (pk S HASH, sk B RANGE)", "use another table"}},
		{"no table", "", "dynamodb://absent?region=us-east-1&endpoint=" + endpoint, env, "metadata", []string{`no table "absent"`, "add create=true"}},
		{"clock", "", "dynamodb://late?region=us-east-1&create=true&endpoint=" + late, env, "metadata clock", []string{"behind that of the metadata store", "NTP"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.bucket = "dir://" + filepath.Join(t.TempDir(), "bucket")
			c.refusedByBoth(t, idleNode(t, NodeOptions{}))
		})
	}
}

// TestRefuseTwins starts a second agent with the data directory, the address or a copy of the data
// directory of one that runs: the second one is refused and the first goes on. A restart after a
// kill is not held up by it.
func TestRefuseTwins(t *testing.T) {
	bucket, env := bucketOn(minio.Start(t), "s3")
	r := redis.Start(t, "--appendonly", "yes")
	agent := func(args ...string) *Node {
		return idleNode(t, NodeOptions{Metadata: r.URL("twins"), Env: env, Args: append([]string{"--bucket", bucket, "--lease", "10s"}, args...)})
	}
	n := agent()
	n.Start()
	writeSome(t, n, "one")
	c := agentCase{bucket: bucket, metadata: r.URL("twins"), env: env}

	same := agent()
	same.Dir = n.Dir
	c.check, c.words = "data directory", []string{"in use by another process", n.Dir, "--data-dir"}
	says(t, same.refused(t), c.words...)
	c.doctor(t, same)

	address := agent("--advertised-addr", n.Kafka)
	c.check, c.words = "cluster", []string{"another agent is alive", "node 1 has the address " + n.Kafka, "--advertised-addr"}
	says(t, address.refused(t), c.words...)
	c.doctor(t, address, "--advertised-addr", n.Kafka)

	copied := agent()
	if err := os.CopyFS(copied.Dir, os.DirFS(n.Dir)); err != nil {
		t.Fatal(err)
	}
	c.words = []string{"another agent is alive", "node 1 (" + n.Kafka + ")", "a copy can't run beside its original", "--data-dir"}
	says(t, copied.refused(t), c.words...)
	c.doctor(t, copied)
	asked := agent("--node-id", "1")
	c.words = []string{"another agent is alive", "node 1 (" + n.Kafka + ")", "choose another --node-id"}
	says(t, asked.refused(t), c.words...)

	n.MustRun()
	readSome(t, n, "one")
	restart := func(what string) {
		t.Helper()
		n.Kill()
		began := time.Now()
		n.Start()
		if took := time.Since(began); took > 4*time.Second { // of a lease of 10 s
			t.Errorf("%s took %v", what, took)
		}
	}
	restart("a restart after a kill")
	eventually(t, time.Minute, "the partition has a leader", func() bool { return n.CLI(io.Discard, "consume", refuseTopic, "-e") == nil })
	readSome(t, n, "one")
	if err := os.RemoveAll(n.Dir); err != nil {
		t.Fatal(err)
	}
	restart("a restart after a kill with a wiped disk")
	n.Kill()
	copied.Start() // its original is dead
	copied.Stop()
}
