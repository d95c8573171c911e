package e2e

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/localstack/e2e/faultproxy"
	"github.com/cirrolog/cirrolog/localstack/minio"
)

const (
	awayPartitions = 4
	awayBudget     = 64 << 20 // --disk-budget: the ring of 16 MiB and 48 MiB of segments
	awaySegment    = 1 << 20
	awaySpeed      = 10 << 20 // bytes per second: more than the budget takes for long
	// awaySlack is by how much the disk may exceed the budget: appends are
	// admitted while there is room for the batch, but not for what closing its
	// segment adds, nor for the copies that quiet batches get outside the ring.
	awaySlack = awayPartitions * awaySegment
)

// The bucket is away under load, OUTAGE_SECONDS long, with a small disk budget:
// producers wait, the disk does not fill, hot reads go on, the node says what is
// wrong, and all recovers by itself when the bucket is back. In the first half
// connections are refused, in the second they hang, some of them for ever.
func TestBucketAway(t *testing.T) {
	t.Parallel()
	length := envSeconds(t, "OUTAGE_SECONDS", 20*time.Second)
	f := newFixture(t, minio.Start(t), "s3", awayPartitions, 2, "--wal-size", "16MiB", "--disk-budget", "64MiB")
	idle := f.routines(context.Background())
	f.start(awaySpeed)
	eventually(t, time.Minute, "segments in the bucket and read back", func() bool { return f.passes.Load() > 0 && f.metric("cirrolog_tier_upload_seconds_count") > 4 })
	before := f.speed(2 * time.Second)
	for _, how := range []faultproxy.Presence{faultproxy.Refuses, faultproxy.Hangs} {
		end := time.Now().Add(length / 2)
		if err := f.proxy.Be(how); err != nil {
			t.Fatal(err)
		}
		f.away(end)
		time.Sleep(time.Until(end))
		f.node.MustRun()
	}
	if err := f.proxy.Be(faultproxy.Here); err != nil {
		t.Fatal(err)
	}
	f.back(before)
	f.finish(idle)
	if peak := f.peakDisk.Load(); peak > awayBudget+awaySlack {
		t.Errorf("ring and logs took %d KiB of disk, the budget is %d KiB", peak>>10, awayBudget>>10)
	}
}

// away checks the node while the bucket is away, until end.
func (f *fixture) away(end time.Time) {
	t := f.t
	t.Helper()
	began := time.Now()
	full := func() bool { return f.metric("cirrolog_disk_used_bytes") > awayBudget*.95 }
	for !full() || f.speed(time.Second) > 0 {
		if time.Now().After(end) {
			t.Error("producers never had to wait")
			return
		}
	}
	t.Logf("producers wait after %.1f s", time.Since(began).Seconds())
	f.hotReads()
	status, page, err := f.page(context.Background(), "/readyz?verbose")
	if err != nil || status != http.StatusServiceUnavailable || !strings.Contains(page, "[-] bucket") || !strings.Contains(page, "[-] disk: disk budget used up") ||
		!strings.Contains(page, "[+] storage ok") {
		t.Errorf("readyz: %d, %v\n%s", status, err, page)
	}
	if status, _, err := f.page(context.Background(), "/livez"); status != http.StatusOK || err != nil {
		t.Errorf("livez: %d, %v", status, err)
	}
	used, limit := f.metric("cirrolog_disk_used_bytes"), f.metric("cirrolog_disk_limit_bytes")
	lag := f.metric("cirrolog_tier_lag_bytes")
	failed := 0.0
	for _, outcome := range []string{"throttled", "unknown", "error"} { // a refused connection leaves nothing done, as a 503
		failed += f.metric("cirrolog_objstore_requests_total", `outcome="`+outcome+`"`)
	}
	if limit != awayBudget || used < limit*.95 || lag < limit/4 || failed == 0 {
		t.Errorf("metrics: %.0f bytes of disk used of %.0f, %.0f not tiered, %.0f failed bucket requests", used, limit, lag, failed)
	}
	t.Logf("meanwhile: %.1f MiB of disk used, %.1f MiB not tiered, %.0f failed bucket requests", used/(1<<20), lag/(1<<20), failed)
}

// hotReads reads what the local disk and memory have, which needs no bucket.
func (f *fixture) hotReads() {
	t := f.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	var from []kgo.Offset
	var reads []*reading
	ends, left := map[int32]int64{}, 0
	for _, s := range f.node.Storage(faultTopic) {
		from, reads = append(from, kgo.NewOffset().At(s.LocalStart)), append(reads, f.load.reading(s.Partition))
		ends[s.Partition] = s.HighWatermark
		left++
	}
	began, n := time.Now(), 0
	err := f.load.poll(ctx, f.node.Kafka, from, 0, nil, func(r *kgo.Record) (bool, error) {
		n++
		if r.Offset == ends[r.Partition]-1 {
			left--
		}
		return left == 0, reads[r.Partition].add(r)
	})
	if err != nil || left > 0 {
		t.Errorf("hot reads: %d records, %d partitions not to their ends: %v", n, left, err)
	}
	t.Logf("hot reads: %d records in %.1f s", n, time.Since(began).Seconds())
}

// back checks that all recovers, to half the speed of before at least.
func (f *fixture) back(before float64) {
	t := f.t
	t.Helper()
	began := time.Now()
	eventually(t, catchUp, "ready", func() bool {
		status, _, err := f.page(context.Background(), "/readyz")
		return err == nil && status == http.StatusOK
	})
	t.Logf("ready %.1f s after the bucket is back", time.Since(began).Seconds())
	eventually(t, catchUp, "producers at speed", func() bool { return f.speed(2*time.Second) > before/2 })
	t.Logf("producers at speed after %.1f s", time.Since(began).Seconds())
	f.stop()
	f.caughtUp(catchUp)
	t.Logf("uploads caught up after %.1f s", time.Since(began).Seconds())
}

// A budget that is smaller than a segment of each partition holds nothing that
// is closed: the node must close segments before their size, or producers would
// wait for ever with a bucket in good health.
func TestDiskBudgetBelowSegments(t *testing.T) {
	t.Parallel()
	n := NewNode(t, NodeOptions{Args: []string{"--wal-size", "16MiB", "--disk-budget", "40MiB", "--retention-interval", "500ms"}})
	const partitions = 3 // with segments of 64 MiB
	createTopic(t, n, faultTopic, partitions, nil)
	l := newLoad(faultTopic, partitions, 1)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var g group
	g.Go(func() error { return l.produce(ctx, n.Kafka, 0, 100<<20, time.Minute) })
	defer func() {
		stop()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		l.check(t, n.Kafka, time.Minute)
	}()
	eventually(t, time.Minute, "more than the budget acknowledged", func() bool { return l.acked.Load() > 60<<20 })
}
