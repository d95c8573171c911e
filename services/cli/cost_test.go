package cli

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/services/agent"
	"github.com/cirrolog/cirrolog/services/cost"
)

// costOf runs cost without a node.
func costOf(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return (&node{t: t}).run("", append([]string{"cost"}, args...)...)
}

// costJSON is what cost prints with these flags.
func costJSON(t *testing.T, args ...string) (r costReport) {
	t.Helper()
	out, errs, code := costOf(t, append(args, "-o", "json")...)
	if code != exitOK {
		t.Fatalf("cost %s: exit code %d: %s", strings.Join(args, " "), code, errs)
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestCostFlags: every flag changes what it is about, and a value beyond its bounds is one line and exit code 2.
func TestCostFlags(t *testing.T) {
	base := costJSON(t, "--in", "50MiB", "--retention", "7d").Rows[0]
	for flag, moves := range map[string]func(r costRow) (was, is float64){
		"--in=60MiB":          func(r costRow) (float64, float64) { return base.Cirrolog.Storage, r.Cirrolog.Storage },
		"--retention=8d":      func(r costRow) (float64, float64) { return base.Kafka.Disks, r.Kafka.Disks },
		"--compression=2":     func(r costRow) (float64, float64) { return r.Cirrolog.Storage, base.Cirrolog.Storage },
		"--batch=8MiB":        func(r costRow) (float64, float64) { return r.Cirrolog.Rates.WALPuts, base.Cirrolog.Rates.WALPuts },
		"--fan-out=3":         func(r costRow) (float64, float64) { return base.Cirrolog.CrossZone, r.Cirrolog.CrossZone },
		"--cold=0.5":          func(r costRow) (float64, float64) { return base.Cirrolog.Reads, r.Cirrolog.Reads },
		"--partitions=1000":   func(r costRow) (float64, float64) { return base.Cirrolog.Puts, r.Cirrolog.Puts },
		"--agents=7":          func(r costRow) (float64, float64) { return base.Cirrolog.Instances, r.Cirrolog.Instances },
		"--zones=2":           func(r costRow) (float64, float64) { return r.Cirrolog.CrossZone, base.Cirrolog.CrossZone },
		"--wal-linger=25ms":   func(r costRow) (float64, float64) { return base.Cirrolog.Rates.WALPuts, r.Cirrolog.Rates.WALPuts },
		"--sweep-interval=1h": func(r costRow) (float64, float64) { return r.Cirrolog.Rates.Lists, base.Cirrolog.Rates.Lists },
		"--segment-bytes=1MiB": func(r costRow) (float64, float64) {
			return base.Cirrolog.Rates.SegmentPuts, r.Cirrolog.Rates.SegmentPuts
		},
		"--instance-cpus=0.1":      func(r costRow) (float64, float64) { return base.Cirrolog.Instances, r.Cirrolog.Instances },
		"--instance-network=60MiB": func(r costRow) (float64, float64) { return base.Kafka.Instances, r.Kafka.Instances },
		"--price-put=0.006":        func(r costRow) (float64, float64) { return base.Cirrolog.Puts, r.Cirrolog.Puts },
		"--price-get=0.0005":       func(r costRow) (float64, float64) { return base.Cirrolog.Reads, r.Cirrolog.Reads },
		"--price-storage=0.03":     func(r costRow) (float64, float64) { return base.Cirrolog.Storage, r.Cirrolog.Storage },
		"--price-cross-zone=0.03":  func(r costRow) (float64, float64) { return base.Kafka.CrossZone, r.Kafka.CrossZone },
		"--price-instance=1":       func(r costRow) (float64, float64) { return base.Cirrolog.Instances, r.Cirrolog.Instances },
		"--price-metadata=100":     func(r costRow) (float64, float64) { return base.Cirrolog.Metadata, r.Cirrolog.Metadata },
		"--kafka-brokers=6":        func(r costRow) (float64, float64) { return base.Kafka.Instances, r.Kafka.Instances },
		"--kafka-disk-fill=0.5":    func(r costRow) (float64, float64) { return base.Kafka.Disks, r.Kafka.Disks },
		"--kafka-follower-fetch=0": func(r costRow) (float64, float64) { return base.Kafka.CrossZone, r.Kafka.CrossZone },
		"--kafka-price-instance=1": func(r costRow) (float64, float64) { return base.Kafka.Instances, r.Kafka.Instances },
		"--kafka-price-disk=0.1":   func(r costRow) (float64, float64) { return base.Kafka.Disks, r.Kafka.Disks },
	} {
		r := costJSON(t, "--in", "50MiB", "--retention", "7d", flag)
		if was, is := moves(r.Rows[0]); !(was < is) {
			t.Errorf("%s: %v is to be less than %v", flag, was, is)
		}
	}
	fast := []string{"--in", "600MiB", "--retention", "7d", "--kafka-brokers", "3"}
	if a, b := costJSON(t, fast...), costJSON(t, append(fast, "--kafka-price-throughput", "1")...); !(a.Rows[0].Kafka.Disks < b.Rows[0].Kafka.Disks) {
		t.Error("--kafka-price-throughput changes nothing")
	}
	for args, want := range map[string]string{
		"--in 0":               "--in 0 B: want 1 B to 1.0 TiB",
		"--in 1MiB,2XB":        "--in: \"2XB\" is not a size",
		"--in 1MiB,,2MiB":      "--in: \"\" is not a size",
		"--in -1":              "--in: \"-1\" is not a size",
		"--retention 7":        "--retention: \"7\" is not a duration",
		"--retention 1s":       "--retention 1s: want 1m0s to 36500d",
		"--retention 99999d":   "--retention 99999d: want 1m0s to 36500d",
		"--compression 0.5":    "--compression 0.5: want 1 to 1000",
		"--compression NaN":    "--compression NaN: want 1 to 1000",
		"--fan-out -1":         "--fan-out -1: want 0 to 1000",
		"--fan-out +Inf":       "--fan-out +Inf: want 0 to 1000",
		"--cold 1.1":           "--cold 1.1: want 0 to 1",
		"--batch 1":            "--batch 1 B: want 100 B to 64 MiB",
		"--partitions 0":       "--partitions 0: want 1 to 1e+06",
		"--partitions many":    "--partitions: \"many\" is not a whole number",
		"--agents -1":          "--agents -1: want 0 to 10000",
		"--zones 0":            "--zones 0: want 1 to 6",
		"--wal-linger 0":       "--wal-linger 0s: want 1ms to 1m0s",
		"--sweep-interval 0":   "--sweep-interval 0s: want 1s to 365d",
		"--segment-bytes 1KiB": "--segment-bytes 1.0 KiB: want 1.0 MiB to 2.0 GiB",
		"--instance-cpus 0":    "--instance-cpus 0: want 0.1 to 10000",
		"--instance-network 1": "--instance-network 1 B: want 1.0 MiB to 1.0 TiB",
		"--kafka-brokers -3":   "--kafka-brokers -3: want 0 to 10000",
		"--kafka-disk-fill 0":  "--kafka-disk-fill 0: want 0.01 to 1",
		"--price-put -1":       "--price-put -1: want 0 to 1e+06",
		"--price-storage NaN":  "--price-storage NaN: want 0 to 1e+06",
		"--metrics h:1":        "--metrics goes with --live only",
		"--window 1m":          "--window goes with --live only",
		"--live --in 1MiB":     "--in does not go with --live",
		"--live --agents 3":    "--agents does not go with --live",
		"--live --window 1ms":  "--window 1ms: want 1s to 1d",
		"--lvie":               "the nearest is --live",
		"-o xml":               "want table, json or yaml",
		"extra":                "extra",
	} {
		out, errs, code := costOf(t, strings.Fields(args)...)
		if code != exitUsage || !strings.Contains(errs, want) || strings.Count(errs, "\n") != 1 || out != "" {
			t.Errorf("cost %s: exit code %d, %q, want %d and %q; stdout %q", args, code, errs, exitUsage, want, out)
		}
	}
}

// TestCostDocs makes the worked tables of docs/operations.md: what the verb prints, so that they are what it says.
func TestCostDocs(t *testing.T) {
	const path = "../../docs/operations.md"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	doc, found := string(b), 0
	for rest := doc; ; found++ {
		const begin, end = "<!-- printed by: cirrolog ", "<!-- end -->"
		_, after, ok := strings.Cut(rest, begin)
		if !ok {
			break
		}
		line, after, ok := strings.Cut(after, " -->\n")
		text, after, ok2 := strings.Cut(after, end)
		if !ok || !ok2 {
			t.Fatalf("%s: no end of %q", path, line)
		}
		args, filter, _ := strings.Cut(line, " | ")
		out, errs, code := (&node{t: t}).run("", strings.Fields(args)...)
		if code != exitOK {
			t.Fatalf("%s: exit code %d: %s", args, code, errs)
		}
		if filter == "head" { // the assumptions are printed once
			out, _, _ = strings.Cut(out, "\n\n")
			out += "\n"
		}
		var want strings.Builder
		fmt.Fprintf(&want, "\n    $ cirrolog %s\n", args)
		for l := range strings.Lines(out) {
			want.WriteString(strings.TrimRight("    "+l, " \n") + "\n")
		}
		want.WriteString("\n")
		if text != want.String() {
			if !golden.Update() {
				t.Errorf("%s: the figures of `cirrolog %s` are not current: run go test ./services/cli -run TestCostDocs -update", path, args)
			}
			doc = strings.Replace(doc, begin+line+" -->\n"+text+end, begin+line+" -->\n"+want.String()+end, 1)
		}
		rest = after
	}
	if found < 3 {
		t.Errorf("%s has %d tables", path, found)
	}
	if golden.Update() {
		if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCostLive counts a node: what it produced, its requests, and what is in its bucket.
func TestCostLive(t *testing.T) {
	n := startNode(t)
	n.ok("", "topic", "create", "orders", "-p", "1", "-c", "segment.bytes=1MiB")
	n.ok(lines("a", 20_000), "produce", "orders", "--batch-max", "300KB")
	n.until("an upload", func() bool { return n.storage("orders").Partitions[0].TieredEnd > 0 })
	var r costReport
	live := func(args ...string) {
		t.Helper()
		if err := json.Unmarshal([]byte(n.ok("", append([]string{"cost", "--live", "-o", "json"}, args...)...)), &r); err != nil {
			t.Fatal(err)
		}
	}
	n.until("the bytes in the bucket", func() bool { // they are measured in the background
		live("--window", "0")
		return r.Live.Rates.Stored > 0
	})
	c := r.Rows[0].Cirrolog
	if r.Live.Produced <= 0 || c.Rates.SegmentPuts <= 0 || c.Rates.WALPuts != 0 || c.Agents != 1 || len(r.Live.Nodes) != 1 || len(r.Live.Missing) != 0 {
		t.Errorf("%+v, %+v", r.Live, c)
	}
	if want := c.Rates.Stored / (1 << 30) * 0.023; math.Abs(c.Storage-want) > 1e-12 {
		t.Errorf("storage costs %v, want %v", c.Storage, want)
	}
	live("--window", "1s")
	if r.Live.Produced != 0 || r.Live.Seconds < 1 || r.Live.Seconds > 60 {
		t.Errorf("a quiet second: %+v", r.Live)
	}
	if out := n.ok("", "cost", "--live", "--window", "1s"); !strings.Contains(out, "KAFKA") {
		t.Error(out)
	}
}

// fakeAgent answers as one whose counters go on by themselves.
type fakeAgent struct {
	node    int32
	cluster string
	scrapes int
	text    func(scrape int) string
}

func (f *fakeAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/cluster/state" {
		s := agent.ClusterState{Cluster: f.cluster, Asked: f.node, Agents: make([]agent.ClusterAgent, 3)}
		for i := range s.Agents {
			s.Agents[i].Node = int32(i + 1)
		}
		_ = json.NewEncoder(w).Encode(s)
		return
	}
	f.scrapes++
	fmt.Fprint(w, f.text(f.scrapes))
}

// TestCostLiveCluster counts agents at their addresses, each once, however often it is named; those that are missing are told; one that
// was started in between counts from its start.
func TestCostLiveCluster(t *testing.T) {
	started := float64(time.Now().Add(-time.Hour).Unix())
	steady := func(n int) string {
		return fmt.Sprintf(`# TYPE cirrolog_objstore_requests_total counter
cirrolog_objstore_requests_total{op="put",outcome="ok"} %d
cirrolog_objstore_requests_total{op="put",outcome="throttled"} 1
cirrolog_objstore_requests_total{op="get",outcome="ok"} 5
# TYPE cirrolog_wal_put_seconds histogram
cirrolog_wal_put_seconds_bucket{le="+Inf"} %d
cirrolog_wal_put_seconds_sum 1
cirrolog_wal_put_seconds_count %d
# TYPE cirrolog_tier_remote_bytes gauge
cirrolog_tier_remote_bytes{topic="a"} 1073741824
# TYPE cirrolog_wal_used_bytes gauge
cirrolog_wal_used_bytes{class="object"} 1073741824
cirrolog_wal_used_bytes{class="local"} 99
# TYPE process_start_time_seconds gauge
process_start_time_seconds %f
`, 1000*n, 800*n, 800*n, started)
	}
	anew := func(n int) string {
		if n == 1 {
			return steady(7)
		}
		return strings.Replace(steady(0), fmt.Sprintf("%f", started), fmt.Sprintf("%f", float64(time.Now().UnixMilli())/1000), 1)
	}
	var addrs []string
	for _, f := range []*fakeAgent{{node: 1, cluster: "c", text: steady}, {node: 2, cluster: "c", text: anew}, {node: 3, cluster: "other", text: steady},
		{node: 4, cluster: "c", text: func(int) string { return "x 1\n" }}} {
		s := httptest.NewServer(f)
		defer s.Close()
		addrs = append(addrs, strings.TrimPrefix(s.URL, "http://"))
	}
	live := func(window string, addrs ...string) (string, string, int) {
		return costOf(t, "--live", "-o", "json", "--window", window, "--metrics", strings.Join(addrs, ","))
	}
	out, errs, code := live("1s", addrs[0], addrs[1], addrs[0])
	var r costReport
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err, out)
	}
	if code != exitPartial || !strings.Contains(errs, "agents [3] are registered and not counted") || fmt.Sprint(r.Live.Nodes) != "[1 2]" {
		t.Errorf("exit code %d, %s, nodes %v", code, errs, r.Live.Nodes)
	}
	c := r.Rows[0].Cirrolog
	if c.Rates.WALPuts < 400 || c.Rates.WALPuts > 800 || c.Rates.SegmentPuts < 100 || c.Rates.SegmentPuts > 202 || c.Rates.Stored != 4<<30 {
		t.Errorf("a second of 800 + 200 puts: %+v", c.Rates)
	}
	if want := 3 * 0.2136 * cost.Month.Hours(); math.Abs(c.Instances-want) > 1e-9 {
		t.Errorf("instances cost %v, want %v: those that are missing too", c.Instances, want)
	}
	for _, x := range []struct {
		addr string
		code int
		want string
	}{
		{addrs[2], exitError, "is an agent of cluster other"},
		{addrs[3], exitError, "is it an agent?"},
		{"127.0.0.1:1", exitError, "127.0.0.1:1"},
	} {
		if out, errs, code := live("1s", addrs[0], x.addr); code != x.code || !strings.Contains(errs, x.want) || out != "" {
			t.Errorf("%s: exit code %d, %s%s", x.addr, code, errs, out)
		}
	}
}
