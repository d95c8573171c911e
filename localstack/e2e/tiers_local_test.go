package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestLocalRetention: local.retention.ms and local.retention.bytes take closed
// segments from the disk that are in the bucket, never others, and nobody who
// reads notices; also after a restart.
func TestLocalRetention(t *testing.T) {
	bucket := filepath.Join(t.TempDir(), "bucket")
	x := &tierTest{bucket: bucket, topics: map[string]*tierTopic{}}
	x.node = NewNode(t, NodeOptions{Args: []string{"--bucket", "dir://" + bucket, "--retention-interval", "100ms"}})
	x.cl = newClient(t, x.node.Kafka, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	ages := [3]time.Duration{10 * time.Hour, 5 * time.Hour, time.Hour}
	byTime, bySize := &tierTopic{name: "time", ages: ages}, &tierTopic{name: "size", ages: ages}
	kept := &tierTopic{name: "kept", ages: ages} // its segments do not move to the bucket
	topics := []*tierTopic{byTime, bySize, kept}
	for _, tt := range topics {
		configs := map[string]string{"retention.ms": "-1", "local.retention.ms": "-1"}
		if tt == kept {
			configs["remote.storage.enable"] = "false"
		}
		x.topics[tt.name] = tt
		tt.began = time.Now()
		createTopic(t, x.node, tt.name, 1, configs)
		tt.id = topicID(t, x.node, tt.name)
	}
	x.closed(t, topics, 0)
	x.closed(t, topics, 1)
	for _, tt := range topics {
		if tt != kept {
			eventually(t, tierWait, tt.name+" in the bucket", func() bool { return x.node.Storage(tt.name)[0].TieredEnd == endOfDisk })
		}
		tt.write(t, x.cl, tt.next(tierMemory, ages[2]))
		x.checkLocal(t, tt, 0, "before any limit")
	}
	setConfig(t, x.cl, kept.name, map[string]string{"local.retention.ms": "1", "local.retention.bytes": "0"})
	size := int64(0)
	for _, s := range x.node.Segments(bySize.name) {
		if s.Tier == "local" && s.State == "closed" {
			size = max(size, s.Bytes) // they differ by a few bytes
		}
	}
	limit := func(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }
	steps := []struct {
		tt            *tierTopic
		config, value string
		local         int64 // first offset left on the disk
	}{
		{byTime, "local.retention.ms", limit(10*time.Hour - segmentStep*3/2), 2 * tierPerSeg},
		{bySize, "local.retention.bytes", fmt.Sprint(5 * size), 2 * tierPerSeg}, // 3 closed ones and the active one, of 1.5 times the size
		{byTime, "local.retention.ms", limit(8 * time.Hour), endOfBucket},
		{byTime, "local.retention.ms", limit(30 * time.Minute), endOfDisk},
		{bySize, "local.retention.bytes", "0", endOfDisk},
	}
	for i, s := range steps {
		if i == 3 {
			x.node.Stop()
			x.node.Start()
			x.checkLocal(t, byTime, endOfBucket, "restart")
			x.checkLocal(t, bySize, 2*tierPerSeg, "restart")
			x.checkLocal(t, kept, 0, "restart")
		}
		setConfig(t, x.cl, s.tt.name, map[string]string{s.config: s.value})
		x.checkLocal(t, s.tt, s.local, s.config+"="+s.value)
	}
	x.checkLocal(t, kept, 0, "not in the bucket")
	// What is closed now goes too, once it is in the bucket.
	for _, tt := range []*tierTopic{byTime, bySize} {
		x.node.API(http.MethodPost, "/v1/topics/"+tt.name+"/roll", nil)
		x.checkLocal(t, tt, endOfMemory, "closed and in the bucket")
	}
	x.node.Stop()
}

// checkLocal waits until the disk has the records from offset local on and no
// closed segments below, and wants every record still to be read.
func (x *tierTest) checkLocal(t *testing.T, tt *tierTopic, local int64, what string) {
	t.Helper()
	var want []int64
	for base := local; base < endOfDisk; base += tierPerSeg {
		want = append(want, base)
	}
	state := func() (int64, []int64) {
		files := localBases(t, x.node, tt.id)
		return x.node.Storage(tt.name)[0].LocalStart, slices.DeleteFunc(files, func(base int64) bool { return base >= endOfDisk })
	}
	start, files := state()
	for end := time.Now().Add(tierWait); time.Now().Before(end) && (start != local || !slices.Equal(files, want)); start, files = state() {
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond) // a few more runs of retention: nothing else may go
	if start, files = state(); start != local || !slices.Equal(files, want) {
		t.Fatalf("%s: %s: the disk has offsets from %d on and the files %v, want %d, %v", tt.name, what, start, files, local, want)
	}
	for _, c := range []struct {
		name     string
		ts, want int64
	}{{"latest", -1, int64(len(tt.recs))}, {"earliest", -2, 0}, {"earliest local", -4, local}} {
		if o, _ := listOffset(t, x.cl, tt.name, c.ts); o != c.want {
			t.Errorf("%s: %s: %s is %d, want %d", tt.name, what, c.name, o, c.want)
		}
	}
	for i := 0; i < len(tt.recs); i += 7 {
		wantOffset, wantAt := tt.since(tt.recs[i].Timestamp.UnixMilli())
		if o, at := listOffset(t, x.cl, tt.name, tt.recs[i].Timestamp.UnixMilli()); o != wantOffset || at != wantAt {
			t.Errorf("%s: %s: the time of record %d is offset %d, %d; want %d, %d", tt.name, what, i, o, at, wantOffset, wantAt)
		}
	}
	tt.checkRecords(t, x.node)
}
