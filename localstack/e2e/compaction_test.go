package e2e

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/segment"
)

// compactNode is a node that compacts at once, beside its bucket.
func compactNode(t *testing.T) (n *Node, bucket string) {
	t.Helper()
	bucket = filepath.Join(t.TempDir(), "bucket")
	return NewNode(t, NodeOptions{Args: []string{"--bucket", "dir://" + bucket, "--compaction-interval", "100ms", "--retention-interval", "100ms"}}), bucket
}

// compacted waits until all closed segments of a topic are one rewritten one.
func compacted(t *testing.T, n *Node, topic string) (s broker.SegmentInfo) {
	t.Helper()
	n.API(http.MethodPost, "/v1/topics/"+topic+"/roll", nil)
	eventually(t, tierWait, topic+" compacted", func() bool {
		segs := n.Segments(topic)
		if len(segs) == 0 {
			return false
		}
		s = segs[0]
		return len(segs) == 1 && s.Tier == "bucket" && strings.Contains(s.Key, "-g")
	})
	return s
}

// TestDumpCompacted gives the batches of a compacted segment to Kafka's
// DumpLogSegments, as a .log: it must accept them, and `segment dump` must print
// the same lines, delete horizons among them.
func TestDumpCompacted(t *testing.T) {
	testenv.Need(t, "java")
	testenv.Need(t, "mvn")
	n, bucket := compactNode(t)
	createTopic(t, n, "table", 1, map[string]string{"min.cleanable.dirty.ratio": "0", "retention.ms": "-1", "local.retention.ms": "-1"})
	for range 2 {
		produceVariety(t, n, "table")
		n.API(http.MethodPost, "/v1/topics/table/roll", nil)
	}
	if err := n.CLI(&strings.Builder{}, "topic", "config", "table", "--set", "cleanup.policy=compact"); err != nil {
		t.Fatal(err)
	}
	s := compacted(t, n, "table")
	n.Stop()
	path := filepath.Join(t.TempDir(), segment.LogName(s.Base))
	if err := os.WriteFile(path, objectLog(t, bucket, s.Key), 0o644); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := n.CLI(&out, "segment", "dump", "--records", path); err != nil {
		t.Fatal(err)
	}
	ours, want := dumpLines(out.String()), kafkaDump(t, []string{path})[path]
	for i := range max(len(ours), len(want)) {
		if i >= len(ours) || i >= len(want) || ours[i] != want[i] {
			t.Fatalf("line %d:\n  Kafka %s\n  ours  %s", i, at(want, i), at(ours, i))
		}
	}
	all := strings.Join(want, "\n")
	if records := strings.Count(all, "| offset"); strings.Contains(all, "isvalid: false") || records < 8 || records > 20 ||
		!strings.Contains(all, "deleteHorizonMs: OptionalLong[") {
		t.Errorf("%d records in\n%s", records, all)
	}
}

// objectLog returns the batches of an object of a directory bucket.
func objectLog(t *testing.T, bucket, key string) []byte {
	t.Helper()
	dirs := strings.Split(key, "/")
	for i := range dirs[:len(dirs)-1] {
		dirs[i] += "+"
	}
	b, err := os.ReadFile(filepath.Join(append([]string{bucket, "objects"}, dirs...)...))
	if err != nil {
		t.Fatal(err)
	}
	b = b[:len(b)-16] // the file's own end
	_, idx, err := segment.Detect(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return b[:idx.Meta.LogSize]
}
