package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// dumpLimit bounds Kafka's tool, the first time with its download.
const dumpLimit = 5 * time.Minute

// TestDumpLogSegments gives the node's own .log files to Kafka's
// DumpLogSegments: it must accept them, and `segment dump` must print the same
// line of every batch and every record.
func TestDumpLogSegments(t *testing.T) {
	testenv.Need(t, "java")
	testenv.Need(t, "mvn")
	n, _ := dirNode(t, false)
	for topic, kind := range map[string]string{"created": "CreateTime", "appended": "LogAppendTime"} {
		createTopic(t, n, topic, 1, map[string]string{"message.timestamp.type": kind, "local.retention.ms": "-1", "retention.ms": "-1"})
		for range 2 { // segments
			produceVariety(t, n, topic)
			n.API(http.MethodPost, "/v1/topics/"+topic+"/roll", nil)
		}
		eventually(t, tierWait, "segments of "+topic+" closed", func() bool {
			for _, s := range n.Segments(topic) {
				if s.State != "closed" {
					return false
				}
			}
			return true
		})
	}
	logs := localLogs(t, n)
	if len(logs) != 4 {
		t.Fatalf("there are the segments %v, want 4", logs)
	}
	seen := map[string]int{}
	theirs := kafkaDump(t, logs)
	for _, path := range logs {
		var out strings.Builder
		if err := n.CLI(&out, "segment", "dump", "--records", path); err != nil {
			t.Fatal(err)
		}
		ours := dumpLines(out.String())
		want := theirs[path]
		for i := range max(len(ours), len(want)) {
			if i >= len(ours) || i >= len(want) || ours[i] != want[i] {
				t.Errorf("%s, line %d:\n  Kafka %s\n  ours  %s", filepath.Base(path), i, at(want, i), at(ours, i))
				break
			}
		}
		for _, line := range want {
			for _, word := range []string{"compresscodec: none", "compresscodec: gzip", "compresscodec: snappy", "compresscodec: lz4", "compresscodec: zstd",
				"LogAppendTime", "CreateTime", "isvalid: true", "isvalid: false", "producerId: -1", "baseSequence: 0", "baseSequence: 7", "| offset"} {
				if strings.Contains(line, word) {
					seen[word]++
				}
			}
		}
	}
	if seen["isvalid: true"] < 4*varietyBatches || seen["isvalid: false"] > 0 || seen["| offset"] != 4*varietyBatches*varietyRecords {
		t.Errorf("Kafka's tool saw %d valid and %d invalid batches with %d records", seen["isvalid: true"], seen["isvalid: false"], seen["| offset"])
	}
	for _, word := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		if seen["compresscodec: "+word] == 0 {
			t.Errorf("there is no batch with codec %s", word)
		}
	}
	for _, word := range []string{"LogAppendTime", "CreateTime", "producerId: -1", "baseSequence: 0", "baseSequence: 7"} {
		if seen[word] == 0 {
			t.Errorf("there is no line with %s", word)
		}
	}
	t.Logf("equal lines: %v", seen)
	n.Stop()
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "(none)"
}

// What produceVariety makes.
const (
	varietyBatches = 5 * 2 * 2 // codecs, idempotence off and on, flushes of each, of at least a batch
	varietyRecords = 7         // of a flush
)

// produceVariety writes batches with each codec with and without idempotence, of
// records with and without key, value and headers.
func produceVariety(t *testing.T, n *Node, topic string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), fetchLimit)
	defer cancel()
	for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
		for _, idempotent := range []bool{false, true} {
			opts := []kgo.Opt{kgo.SeedBrokers(n.Kafka), kgo.ProducerBatchCompression(codec), kgo.ManualFlushing()}
			if !idempotent {
				opts = append(opts, kgo.DisableIdempotentWrite(), kgo.RequiredAcks(kgo.LeaderAck()))
			}
			cl, err := kgo.NewClient(opts...)
			if err != nil {
				t.Fatal(err)
			}
			for b := range 2 {
				for j := range varietyRecords {
					cl.Produce(ctx, variety(topic, i, b, j), func(_ *kgo.Record, err error) {
						if err != nil {
							t.Errorf("produce to %s: %v", topic, err)
						}
					})
				}
				if err := cl.Flush(ctx); err != nil {
					t.Errorf("produce to %s: %v", topic, err)
				}
			}
			cl.Close()
		}
	}
}

// variety is record j of a flush: text that shrinks well, so that no batch
// stays uncompressed, with time running in no order.
func variety(topic string, codec, b, j int) *kgo.Record {
	r := &kgo.Record{Topic: topic, Timestamp: time.UnixMilli(1_700_000_000_000 + int64(codec*1000+b*100+(j*5)%varietyRecords)),
		Key: fmt.Appendf(nil, "key %d of batch %d", j, b), Value: []byte(strings.Repeat(fmt.Sprintf("value %d, ", j), 40))}
	for h := range j % 3 {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: fmt.Sprintf("header-%d", h), Value: []byte("some value")})
	}
	switch j {
	case 1:
		r.Key = nil
	case 2:
		r.Value = nil
	case 3:
		r.Key, r.Value = []byte{}, []byte{}
	case 4:
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: "null"})
	}
	return r
}

// kafkaDump runs DumpLogSegments on the files and returns the lines of each.
func kafkaDump(t *testing.T, paths []string) map[string][]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), dumpLimit)
	defer cancel()
	script := filepath.Join(testenv.Root(), "localstack", "bench", "kafka", "kafka.sh")
	cmd := exec.CommandContext(ctx, script, "tool", "org.apache.kafka.tools.DumpLogSegments", "--deep-iteration", "--print-data-log", "--files", strings.Join(paths, ","))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("DumpLogSegments: %v\n%s\n%s", err, out, stderr.String())
	}
	lines := map[string][]string{}
	for part := range strings.SplitSeq("\n"+string(out), "\nDumping ") {
		path, rest, _ := strings.Cut(part, "\n")
		lines[path] = dumpLines(rest)
	}
	return lines
}

// dumpLines keeps the lines of batches and records.
func dumpLines(dump string) (lines []string) {
	for line := range strings.Lines(dump) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "baseOffset: ") || strings.HasPrefix(line, "| ") {
			lines = append(lines, line)
		}
	}
	return lines
}
