package e2e

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	dynamoapi "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/localstack/dynamodb"
	"github.com/cirrolog/cirrolog/localstack/minio"
)

// awsCalls are what roles have asked of AWS, as IAM names it: role, action, resource.
type awsCalls struct {
	mu   sync.Mutex
	seen map[string]map[string]int // role, "action resource"
}

func (c *awsCalls) add(role, action, resource string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen[role] == nil {
		c.seen[role] = map[string]int{}
	}
	c.seen[role][action+" "+resource]++
}

// recorder passes requests of a role on to a store. The host is that of the recorder, which the signature has.
func (c *awsCalls) recorder(t *testing.T, role, upstream string, note func(r *http.Request, body []byte, add func(action, resource string))) string {
	t.Helper()
	u, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Director: func(r *http.Request) { r.URL.Scheme, r.URL.Host = u.Scheme, u.Host }, ErrorLog: log.New(io.Discard, "", 0)}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		note(r, body, func(action, resource string) { c.add(role, action, resource) })
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// noteS3 tells the actions of a request by path, without prefix.
func noteS3(prefix string) func(*http.Request, []byte, func(action, resource string)) {
	room := func(key string) string { // what policies tell apart
		inside, ok := strings.CutPrefix(key, prefix)
		parts := strings.Split(inside, "/")
		if !ok || len(parts) < 2 {
			return "outside the prefix: " + key
		}
		if parts[0] == "meta" {
			return strings.TrimSuffix("meta/"+parts[1], "/")
		}
		return parts[0]
	}
	return func(r *http.Request, body []byte, add func(action, resource string)) {
		bucketName, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		q := r.URL.Query()
		switch {
		case key == "" && q.Has("delete"):
			var d struct {
				Object []struct{ Key string }
			}
			_ = xml.Unmarshal(body, &d)
			for _, o := range d.Object {
				add("s3:DeleteObject", room(o.Key))
			}
		case key == "" && r.Method == http.MethodGet && q.Get("list-type") == "2":
			add("s3:ListBucket", room(q.Get("prefix")))
		case key == "":
			add("s3:? "+r.Method+" "+r.URL.RawQuery, bucketName)
		case r.Method == http.MethodGet || r.Method == http.MethodHead:
			add("s3:GetObject", room(key))
		case r.Method == http.MethodPut || r.Method == http.MethodPost:
			add("s3:PutObject", room(key))
		case r.Method == http.MethodDelete && q.Has("uploadId"):
			add("s3:AbortMultipartUpload", room(key))
		case r.Method == http.MethodDelete:
			add("s3:DeleteObject", room(key))
		default:
			add("s3:? "+r.Method+" "+r.URL.RawQuery, room(key))
		}
	}
}

// noteDynamo tells the actions of a request: those of a transaction are asked for one by one.
func noteDynamo(r *http.Request, body []byte, add func(action, resource string)) {
	_, call, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	var in struct {
		TableName     string
		TransactItems []map[string]struct{ TableName string }
		RequestItems  map[string]any
	}
	_ = json.Unmarshal(body, &in)
	switch call {
	case "TransactWriteItems", "TransactGetItems":
		for _, one := range in.TransactItems {
			for kind, item := range one {
				add("dynamodb:"+map[string]string{"Put": "PutItem", "Update": "UpdateItem", "Delete": "DeleteItem", "ConditionCheck": "ConditionCheckItem", "Get": "GetItem"}[kind], item.TableName)
			}
		}
	case "BatchGetItem":
		for name := range in.RequestItems {
			add("dynamodb:"+call, name)
		}
	default:
		add("dynamodb:"+call, in.TableName)
	}
}

// policyRoles are those that ask something of AWS; a gateway does not. A verifier, which is a Lambda function, reads segments alone.
var policyRoles = []string{"agent", "reader", "sweeper", "operator"}

// unseen are rights that the run below does not need, and why they are there.
var unseen = map[string]string{
	"agent s3:AbortMultipartUpload data":            "a segment above 1 GiB whose upload fails: in parts",
	"agent s3:DeleteObject meta/log-start":          "old log starts go when there are many: dropOldLogStarts",
	"sweeper s3:PutObject meta/log-start":           "the Lambda function applies retention: PublishLogStarts",
	"sweeper s3:DeleteObject meta/log-start":        "as for agents: dropOldLogStarts",
	"sweeper s3:DeleteObject wal":                   "streams of the dead are swept, by agents if there are any: SweepSealed",
	"sweeper s3:GetObject data":                     "a segment without a row is read and indexed again: keep",
	"reader dynamodb:ConditionCheckItem policies":   "its sweep indexes again what has lost its row: Commit",
	"sweeper dynamodb:ConditionCheckItem policies":  "it indexes again what has lost its row: Commit",
	"sweeper dynamodb:BatchGetItem policies":        "rows are read in batches: Get",
	"operator dynamodb:BatchGetItem policies":       "rows are read in batches: Get",
	"operator dynamodb:ConditionCheckItem policies": "rows that hang on the row of the recovery: Commit",
	// Of agents and readers that sweep at once, one is first.
	"agent s3:DeleteObject data":  "segments that nobody needs: deleteObjects",
	"reader s3:DeleteObject data": "segments that nobody needs: deleteObjects",
	"reader s3:DeleteObject wal":  "streams of the dead: SweepSealed",
}

// rights are the policies of terraform/modules/iam: role, "action resource".
func rights(t *testing.T, table string) map[string][]string {
	t.Helper()
	tofu, provider := testenv.Need(t, "tofu"), testenv.Need(t, "provider/terraform-provider-aws")
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(testenv.Root(), "terraform", "modules", "iam"))); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "tofu.rc")
	if err := os.WriteFile(config, []byte("provider_installation {\n  dev_overrides {\n    \"hashicorp/aws\" = \""+filepath.Dir(provider)+"\"\n  }\n  direct {}\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const bucketARN, prefix, tables = "arn:aws:s3:::a-bucket", "main/job", "arn:aws:dynamodb:us-east-1:123456789012:table/"
	cmd := exec.Command(tofu, "console", "-var", "name=e2e", "-var", "bucket_arn="+bucketARN, "-var", "prefix="+prefix, "-var", "table_arn="+tables+table)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader("jsonencode(local.statements)\n")
	cmd.Env = append(os.Environ(), "TF_CLI_CONFIG_FILE="+config, "CHECKPOINT_DISABLE=1", "TF_DATA_DIR=")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("tofu console: %v\n%s", err, stderr.String())
	}
	text, err := strconv.Unquote(strings.TrimSpace(stdout.String()))
	if err != nil {
		t.Fatalf("%v: %s", err, stdout.String())
	}
	var roles map[string][]struct {
		Action, Resource []string
		Condition        struct{ StringLikeIfExists map[string][]string }
	}
	if err := json.Unmarshal([]byte(text), &roles); err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for role, statements := range roles {
		for _, s := range statements {
			on := s.Resource
			if s.Action[0] == "s3:ListBucket" {
				on = s.Condition.StringLikeIfExists["s3:prefix"]
			}
			for _, action := range s.Action {
				for _, r := range on {
					short := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(r, tables), bucketARN+"/"), prefix+"/"), "/*")
					out[role] = append(out[role], action+" "+short)
				}
			}
		}
	}
	return out
}

// covers tells whether a right, "action resource", covers a call.
func covers(right, call string) bool { return call == right || strings.HasPrefix(call, right+"/") }

// asked tells whether one of the calls needs a right.
func asked(calls map[string]int, right string) bool {
	for call := range calls {
		if covers(right, call) {
			return true
		}
	}
	return false
}

// sweeping are rights of which it is chance who uses them: one agent or reader sweeps at a time, for all, and may leave nothing to
// the sweeper, or still have the right to sweep streams when it is killed.
var sweeping = map[string][]string{
	"agent":   {"s3:ListBucket data", "s3:DeleteObject data", "s3:DeleteObject wal"}, // of the dead
	"reader":  {"s3:ListBucket data", "s3:DeleteObject data", "s3:DeleteObject wal"},
	"sweeper": {"s3:ListBucket wal", "s3:GetObject wal"},
}

// TestPolicies runs agents, a reader, sweeps, a recovery and what else operators do, each role with its own way to the stores, and
// compares what they ask for with the policies of terraform/modules/iam: all of it is allowed, and nothing is allowed that nobody asks for, but for
// what unseen names. The stores don't enforce policies; an action's name is made of the request.
func TestPolicies(t *testing.T) {
	const table = "policies"
	may := rights(t, table)
	local := &dynamodb.Shared{}
	t.Cleanup(func() { _ = local.Stop() })
	dynamo, e := local.Start(t), minio.Start(t)
	createTable(t, dynamo, table, e)
	calls := &awsCalls{seen: map[string]map[string]int{}}
	p := &policyRun{t: t, calls: calls, bucket: map[string]string{}, metadata: map[string]string{}}
	for _, role := range policyRoles {
		through := e
		through.URL = calls.recorder(t, role, e.URL, noteS3("main/job/"))
		p.bucket[role], p.env = bucketOn(through, "s3")
		p.metadata[role] = "dynamodb://" + table + "?region=us-east-1&endpoint=" + calls.recorder(t, role, dynamo, noteDynamo)
	}
	p.run(func() { clearTable(t, dynamo, table, e) })

	calls.mu.Lock()
	defer calls.mu.Unlock()
	for _, role := range policyRoles {
		for call, n := range calls.seen[role] {
			if !slices.ContainsFunc(may[role], func(right string) bool { return covers(right, call) }) {
				t.Errorf("%s asked %d times for %s, which its policy does not allow", role, n, call)
			}
		}
		for _, right := range may[role] {
			used := asked(calls.seen[role], right)
			if slices.Contains(sweeping[role], right) {
				used = asked(calls.seen["agent"], right) || asked(calls.seen["reader"], right)
			}
			if _, known := unseen[role+" "+right]; !used && !known {
				t.Errorf("%s is allowed %s and never asked for it", role, right)
			}
		}
	}
	if len(may["gateway"]) > 0 {
		t.Errorf("the gateway is a Kafka client, and is allowed %v", may["gateway"])
	}
	for k := range unseen {
		role, right, _ := strings.Cut(k, " ")
		if !slices.Contains(may[role], right) {
			t.Errorf("%s: unseen, and no right of the policies", k)
		}
	}
}

// policyRun is a cluster whose roles reach the stores each by itself.
type policyRun struct {
	t                *testing.T
	bucket, metadata map[string]string // by role
	env              []string
	calls            *awsCalls
}

// asked tells whether a role has needed a right by now.
func (p *policyRun) asked(role, right string) bool {
	p.calls.mu.Lock()
	defer p.calls.mu.Unlock()
	return asked(p.calls.seen[role], right)
}

func (p *policyRun) start(role string, args ...string) *Node {
	return NewNode(p.t, NodeOptions{Metadata: p.metadata[role], Env: p.env, Args: append([]string{"--bucket", p.bucket[role], "--lease", "1s", "--retention-interval", "300ms",
		"--sweep-interval", "1s", "--sweep-grace", "2s", "--compaction-interval", "300ms"}, args...)})
}

// cli runs a verb for a role, with its bucket and metadata store.
func (p *policyRun) cli(n *Node, role string, args ...string) {
	p.t.Helper()
	if args[0] != "replay" {
		args = append(args, "--metadata", p.metadata[role])
	}
	if err := n.CLI(io.Discard, append(args, "--bucket", p.bucket[role])...); err != nil {
		p.t.Error(err)
	}
}

func (p *policyRun) run(clear func()) {
	t := p.t
	a, b := p.start("agent"), p.start("agent")
	r := p.start("reader", "--role", "reader", "--rack", "x")
	topics := map[string]map[string]string{"kept": {"local.retention.bytes": "1048576"}, "gone": {}, "later": {}, "compacted": {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01"},
		"local": {"durability": "local"}}
	cl := newClient(t, a.Kafka, kgo.ProducerBatchCompression(kgo.NoCompression()))
	produce := func(topic string, n int) {
		for i := range n {
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Key: fmt.Append(nil, i%7), Value: make([]byte, 100<<10)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for topic, configs := range topics {
		configs["segment.bytes"] = "1048576"
		createTopic(t, a, topic, 2, configs)
		produce(topic, 60)
	}
	admin := kadm.NewClient(cl)
	drop := func(topic string) {
		if _, err := admin.DeleteTopic(t.Context(), topic); err != nil {
			t.Fatal(err)
		}
	}
	drop("gone")
	var off kadm.Offsets
	off.Add(kadm.Offset{Topic: "kept", Partition: 0, At: 3})
	if _, err := admin.DeleteRecords(t.Context(), off); err != nil {
		t.Fatal(err)
	}
	kept := &classTopic{c: &classes{failures: failures{t: t}}, name: "kept"}
	eventually(t, time.Minute, "the reader serves what is tiered", func() bool {
		kept.fetch(r, 0, 3)
		return p.asked("reader", "s3:GetObject data")
	})
	b.Kill() // its stream is sealed, and swept, half a minute later if it had the right to do that
	produce("kept", 40)
	eventually(t, 2*time.Minute, "its stream is swept", func() bool {
		return p.asked("agent", "s3:DeleteObject wal") || p.asked("reader", "s3:DeleteObject wal")
	})
	time.Sleep(6 * time.Second) // sweeps, compaction, what is tiered goes from the disk
	drop("later")
	a.Kill() // before its sweep may delete
	r.Kill()
	time.Sleep(3 * time.Second)
	p.cli(a, "sweeper", "sweep", "--grace", "1ms")
	p.cli(a, "sweeper", "sweep", "--grace", "1ms") // a log start counts from the second look on
	a.Start()
	p.cli(a, "operator", "doctor", "--data-dir", t.TempDir(), "--advertised-addr", "127.0.0.1:9")
	p.cli(a, "operator", "replay", "kept", "--to-file", filepath.Join(t.TempDir(), "f"))
	produce("kept", 1)
	clear()
	p.cli(a, "operator", "recover", "--take-over") // the reader died a moment ago
	produce("kept", 1)
	a.Stop()
}

func dynamoOf(endpoint string, e minio.Endpoint) *dynamoapi.Client {
	return dynamoapi.New(dynamoapi.Options{Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider(e.AccessKey, e.SecretKey, "")})
}

// createTable makes the table as terraform/modules/metadata does.
func createTable(t *testing.T, endpoint, table string, e minio.Endpoint) {
	t.Helper()
	api := dynamoOf(endpoint, e)
	if _, err := api.CreateTable(t.Context(), &dynamoapi.CreateTableInput{TableName: &table, BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("pk"), AttributeType: types.ScalarAttributeTypeS}, {AttributeName: aws.String("sk"), AttributeType: types.ScalarAttributeTypeB}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("pk"), KeyType: types.KeyTypeHash}, {AttributeName: aws.String("sk"), KeyType: types.KeyTypeRange}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.UpdateTimeToLive(t.Context(), &dynamoapi.UpdateTimeToLiveInput{TableName: &table,
		TimeToLiveSpecification: &types.TimeToLiveSpecification{AttributeName: aws.String("x"), Enabled: aws.Bool(true)}}); err != nil {
		t.Fatal(err)
	}
}

// clearTable deletes the table and makes it anew, empty.
func clearTable(t *testing.T, endpoint, table string, e minio.Endpoint) {
	t.Helper()
	if _, err := dynamoOf(endpoint, e).DeleteTable(t.Context(), &dynamoapi.DeleteTableInput{TableName: &table}); err != nil {
		t.Fatal(err)
	}
	createTable(t, endpoint, table, e)
}
