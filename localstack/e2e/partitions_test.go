package e2e

import (
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestManyPartitions shows what idle partitions cost: memory and the time of a
// start.
func TestManyPartitions(t *testing.T) {
	const (
		topics    = 4
		each      = 500
		rssLimit  = 300 << 20
		used      = 50 // partitions of each topic that have a record
		usedTopic = "many-0"
	)
	n := NewNode(t, NodeOptions{Args: []string{"--bucket", "dir://" + filepath.Join(t.TempDir(), "bucket")}})
	report := func(when string) {
		t.Helper()
		now, peak, err := rss(n.Pid())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%-24s RSS %d MiB, peak %d MiB", when, now>>20, peak>>20)
		if now > rssLimit {
			t.Errorf("%s: RSS %d MiB, want at most %d", when, now>>20, rssLimit>>20)
		}
	}
	report("empty")
	step := stopwatch(t)
	for _, name := range []string{usedTopic, "many-1", "many-2", "many-3"}[:topics] {
		createTopic(t, n, name, each, nil)
	}
	step("2000 partitions made")
	report("2000 partitions")
	restart := func(when string) {
		t.Helper()
		n.Stop()
		began := time.Now()
		n.Start()
		t.Logf("%-24s ready after %d ms", when, time.Since(began).Milliseconds())
		report(when)
	}
	restart("started again")
	cl := newClient(t, n.Kafka, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	var records []*kgo.Record
	for p := range int32(used) {
		records = append(records, &kgo.Record{Topic: usedTopic, Partition: p, Value: []byte("one")})
	}
	if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	restart("with 50 records")
	for p, s := range n.Storage(usedTopic) {
		if want := int64(btoi(p < used)); s.HighWatermark != want {
			t.Errorf("partition %d ends at offset %d, want %d", p, s.HighWatermark, want)
		}
	}
	n.API(http.MethodGet, "/readyz", nil)
	n.Stop()
}
