package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func testConfig(t testing.TB) Config {
	cfg := Default()
	cfg.DataDir, cfg.KafkaAddr, cfg.AdminAddr, cfg.HTTPAddr = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.WALSize, cfg.MemoryTail, cfg.ReadMemory = 16<<20, 16<<20, 16<<20
	cfg.MeasureInterval = 20 * time.Millisecond
	return cfg
}

func get(t *testing.T, method, url string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// wantMetrics are the names and labels that dashboards rely on.
var wantMetrics = []string{
	`cirrolog_kafka_requests_total{api="Produce",error="NONE",version=`,
	`cirrolog_kafka_request_seconds_count{api="Produce"}`,
	`cirrolog_kafka_produce_bytes_total{topic="orders"}`,
	`cirrolog_kafka_fetch_bytes_total{topic="orders"}`,
	`cirrolog_connections `,
	`cirrolog_partition_log_start_offset{partition="0",topic="orders"} 0`,
	`cirrolog_partition_high_watermark_offset{partition="0",topic="orders"} 1`,
	`cirrolog_partition_local_start_offset{partition="0",topic="orders"} 0`,
	`cirrolog_tier_upload_seconds_count{topic="orders"} 1`,
	`cirrolog_tier_upload_bytes_total{topic="orders"}`,
	`cirrolog_tier_upload_failures_total{topic="orders"} 0`,
	`cirrolog_tier_lag_bytes{topic="orders"} 0`, `cirrolog_tier_lag_seconds{topic="orders"} 0`,
	`cirrolog_tier_remote_bytes{topic="orders"}`, `cirrolog_tier_local_bytes{topic="orders"}`,
	`cirrolog_fetch_tier_total{tier="cache"} `, `cirrolog_fetch_tier_total{tier="local"} `, `cirrolog_fetch_tier_total{tier="remote"} `,
	`cirrolog_objstore_request_seconds_count{op="put",outcome="ok"}`, `cirrolog_objstore_requests_total{op="put",outcome="ok"}`,
	`cirrolog_meta_op_seconds_count{op="commit",store="bolt"}`,
	`cirrolog_disk_used_bytes `, `cirrolog_disk_limit_bytes `,
	`cirrolog_build_info{commit=`,
}

// TestAdminPort asks for everything on the admin port but the segments API.
func TestAdminPort(t *testing.T) {
	a, err := Start(t.Context(), testConfig(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() error {
		stopped = true
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return a.Shutdown(ctx)
	}
	defer func() {
		if !stopped {
			_ = stop()
		}
	}()
	base := "http://" + a.AdminAddr()

	cl, err := kgo.NewClient(kgo.SeedBrokers(a.KafkaAddr()), kgo.AllowAutoTopicCreation(), kgo.ConsumeTopics("orders"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "orders", Value: []byte("v")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if f := cl.PollFetches(ctx); f.NumRecords() != 1 {
		t.Fatal(f.Errors())
	}
	if status, body := get(t, http.MethodPost, base+"/v1/topics/orders/roll"); status != http.StatusAccepted {
		t.Fatal(status, body)
	}
	var page string
	missing := func() (out []string) {
		_, page = get(t, http.MethodGet, base+"/metrics")
		for _, want := range wantMetrics {
			if !strings.Contains(page, "\n"+want) {
				out = append(out, want)
			}
		}
		return out
	}
	for deadline := time.Now().Add(20 * time.Second); len(missing()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no metrics %q in 20 s", missing())
		}
	}
	for path, want := range map[string]struct {
		status int
		body   string
	}{
		"/livez": {200, "ok\n"}, "/healthy": {200, "ok\n"}, "/startupz": {200, "ok\n"},
		"/readyz": {200, "ready\n"}, "/ready": {200, "ready\n"}, "/status/ready": {200, "ready\n"}, "/v1/status": {200, "ready\n"},
		"/readyz?verbose": {200, "[+] draining ok\n[+] storage ok\n[+] bucket ok\n[+] metadata ok\n[+] disk ok\nready\n"},
		"/debug/pprof/":   {200, "goroutine"}, "/debug/pprof/cmdline": {200, "agent"}, "/debug/pprof/heap?debug=1": {200, "heap profile"},
		"/debug/vars": {200, "memstats"}, "/debug/flight": {404, "--flight-recorder"},
		"/v1/topics/orders/segments?partition=1": {404, "partitions 0 to 0"},
		"/v1/topics/orders/segments?partition=x": {400, `partition=\"x\"`},
		"/v1/topics/nosuch/storage":              {404, "nosuch"},
	} {
		status, body := get(t, http.MethodGet, base+path)
		exact := strings.HasSuffix(want.body, "\n")
		if status != want.status || exact && body != want.body || !strings.Contains(body, want.body) {
			t.Errorf("GET %s: %d %.300q, want %d %q", path, status, body, want.status, want.body)
		}
	}
	if err := a.bucket.Delete(t.Context(), "meta/cluster"); err != nil {
		t.Fatal(err)
	}
	if status, body := get(t, http.MethodGet, base+"/readyz"); status != 503 || !strings.Contains(body, "[-] bucket: the bucket has lost meta/cluster") {
		t.Errorf("readyz without meta/cluster: %d %q", status, body)
	}
	if status, _ := get(t, http.MethodGet, base+"/livez"); status != 200 {
		t.Errorf("livez asks the bucket: %d", status)
	}
	if err := stop(); err != nil {
		t.Errorf("shut down: %v", err)
	}
}

// TestBucketIsClosed sees the connections to a bucket gone after a start that
// failed; and that the error has no password.
func TestBucketIsClosed(t *testing.T) {
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	requests := 0
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		requests++
		mu.Unlock()
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>no</Message></Error>`)
	}))
	s.Config.ConnState = func(c net.Conn, st http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if open[c] = st != http.StateClosed; !open[c] {
			delete(open, c)
		}
	}
	s.Start()
	defer s.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	cfg := testConfig(t)
	cfg.Bucket = "s3://b/p?region=us-east-1&driver=s3&endpoint=" + s.URL
	_, err := Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "bucket s3://b/p") {
		t.Fatal(err)
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(open)
	}
	for deadline := time.Now().Add(5 * time.Second); count() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections to the bucket are open after the agent", count())
		}
	}
	if mu.Lock(); requests == 0 {
		t.Error("the bucket was not asked")
	}
	mu.Unlock()

	cfg.Bucket = "s3://user:secret@b/p"
	_, err = Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

func TestRoles(t *testing.T) {
	for role, want := range map[Role]bool{"": true, RoleLeader: true, RoleReader: true, "other": false} {
		cfg := Default()
		cfg.Metadata, cfg.Bucket, cfg.Role = "redis://127.0.0.1:1", "dir:///b", role
		if err := cfg.validate(); (err == nil) != want {
			t.Errorf("role %q: %v", role, err)
		}
	}
	cfg := Default()
	cfg.Role = RoleReader
	if cfg.validate() == nil {
		t.Error("a reader that is alone is accepted")
	}
}
