package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

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

// TestKillWhileCompacting kills the node again and again while it compacts what
// clients write: the last acknowledged value of each key is there, or one that was
// sent after it and not answered, and nothing that a tombstone took comes back.
func TestKillWhileCompacting(t *testing.T) {
	n, _ := compactNode(t)
	configs := map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1", "delete.retention.ms": "300", "internal.segment.bytes": "4000"}
	createTopic(t, n, "table", 1, configs)
	rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
	possible := map[string]map[string]bool{} // by key, "" for none: what may be the last
	sent := 0
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1000+rng.IntN(1000))*time.Millisecond)
		cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka), kgo.DefaultProduceTopic("table"), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(50))
		if err != nil {
			t.Fatal(err)
		}
		for ctx.Err() == nil {
			var rs []*kgo.Record
			for k := range rng.IntN(10) {
				r := &kgo.Record{Key: fmt.Append(nil, "k", rng.IntN(4)*10+k)} // each key once in a batch
				if sent++; rng.IntN(5) > 0 {
					r.Value = fmt.Append(nil, "v", sent)
				}
				rs = append(rs, r)
				may := possible[string(r.Key)]
				if may == nil {
					may = map[string]bool{"": true}
					possible[string(r.Key)] = may
				}
				may[string(r.Value)] = true
			}
			for _, res := range cl.ProduceSync(ctx, rs...) {
				if res.Err == nil {
					possible[string(res.Record.Key)] = map[string]bool{string(res.Record.Value): true}
				}
			}
		}
		cancel()
		n.Kill()
		cl.Close()
		n.Start()
	}
	n.API(http.MethodPost, "/v1/topics/table/roll", nil)
	eventually(t, tierWait, "compacted", func() bool {
		s := n.Storage("table")[0]
		return s.TieredEnd == s.HighWatermark && s.LocalBytes == 0 && s.BucketSegments < 20
	})
	n.Kill()
	n.Start()
	end := n.Storage("table")[0].HighWatermark
	got, records := table(t, n, end)
	for key, may := range possible {
		if !may[got[key]] {
			t.Errorf("%s is %q, may be %v", key, got[key], may)
		}
	}
	if len(got) > len(possible) || records > 10*len(possible) {
		t.Errorf("%d records of %d keys, %d were written", records, len(got), len(possible))
	}
	t.Logf("%d records sent, end at %d, %d records are left of %d keys: %+v", sent, end, records, len(got), n.Storage("table")[0])
}

// table reads a topic of one partition from its start to its end.
func table(t *testing.T, n *Node, end int64) (last map[string]string, records int) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"table": {0: kgo.NewOffset().At(0)}}))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), fetchLimit)
	defer cancel()
	last = map[string]string{}
	for at := int64(0); at < end; {
		f := cl.PollFetches(ctx)
		if err := f.Err(); err != nil {
			t.Fatalf("read at %d of %d: %v", at, end, err)
		}
		f.EachRecord(func(r *kgo.Record) {
			records++
			at = r.Offset + 1
			if last[string(r.Key)] = string(r.Value); r.Value == nil {
				delete(last, string(r.Key))
			}
		})
	}
	return last, records
}
