package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/bucketurl"
)

// How a tierTopic is laid out: segments of records in the bucket, then as many
// on the disk, then records of the active segment.
const (
	tierSegs    = 3
	tierPerSeg  = 20 // records
	tierBatch   = 10 // records
	tierMemory  = 30 // records
	tierPayload = 1000

	endOfBucket = tierSegs * tierPerSeg
	endOfDisk   = 2 * endOfBucket
	endOfMemory = endOfDisk + tierMemory
)

// tierWait bounds the wait for something that the node does by itself.
const tierWait = 20 * time.Second

// tierTopic is a topic of one partition and what was written to it: the index
// in recs is the offset.
type tierTopic struct {
	name   string
	id     string
	ages   [3]time.Duration // of the records in bucket, on disk and in memory
	began  time.Time
	recs   []*kgo.Record
	start  int64 // log start offset
	tiered int64 // behind the last record in the bucket
}

// segmentStep is the time between the records of two segments.
const segmentStep = 20 * time.Minute

// next returns the records that come next: about age old, in no strict order of time.
func (tt *tierTopic) next(n int, age time.Duration) []*kgo.Record {
	base := int64(len(tt.recs))
	var out []*kgo.Record
	for i := range int64(n) {
		at := tt.began.Add(-age + time.Duration(i)*time.Second + time.Duration(rand.IntN(10_000)-5000)*time.Millisecond)
		value := fmt.Sprintf("%s %d %s", tt.name, base+i, strings.Repeat(string(rune('a'+i%26)), tierPayload))
		out = append(out, &kgo.Record{Topic: tt.name, Timestamp: at.Truncate(time.Millisecond), Value: []byte(value)})
	}
	tt.recs = append(tt.recs, out...)
	return out
}

// write produces records in batches of tierBatch and checks their offsets.
func (tt *tierTopic) write(t *testing.T, cl *kgo.Client, recs []*kgo.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), fetchLimit)
	defer cancel()
	want := int64(len(tt.recs) - len(recs))
	for b := range slices.Chunk(recs, tierBatch) {
		for _, r := range cl.ProduceSync(ctx, b...) {
			if r.Err != nil {
				t.Fatalf("produce to %s: %v", tt.name, r.Err)
			}
			if r.Record.Offset != want {
				t.Fatalf("produced to %s at offset %d, want %d", tt.name, r.Record.Offset, want)
			}
			want++
		}
	}
}

// since is the first offset at or after a time (ms since 1970), and that
// record's time; -1, -1 when there is none.
func (tt *tierTopic) since(ms int64) (offset, at int64) {
	for i := tt.start; i < int64(len(tt.recs)); i++ {
		if ts := tt.recs[i].Timestamp.UnixMilli(); ts >= ms {
			return i, ts
		}
	}
	return -1, -1
}

// latest is the greatest timestamp there is, -1 for none.
func (tt *tierTopic) latest() int64 {
	if tt.start == int64(len(tt.recs)) {
		return -1
	}
	return slices.MaxFunc(tt.recs[tt.start:], func(a, b *kgo.Record) int { return a.Timestamp.Compare(b.Timestamp) }).Timestamp.UnixMilli()
}

// listOffset is ListOffsets of partition 0.
func listOffset(t testing.TB, cl *kgo.Client, topic string, ts int64) (offset, at int64) {
	t.Helper()
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewListOffsetsRequestTopicPartition()
	rp.Timestamp = ts
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	resp, err := req.RequestWith(ctx, cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
	}
	if err != nil {
		t.Fatalf("list offsets of %s at %d: %v", topic, ts, err)
	}
	p := resp.Topics[0].Partitions[0]
	return p.Offset, p.Timestamp
}

// checkOffsets compares ListOffsets with the model: the special timestamps and
// every step-th record's time, with the ms before and after.
func (tt *tierTopic) checkOffsets(t *testing.T, cl *kgo.Client, step int) {
	t.Helper()
	check := func(what string, ts, wantOffset, wantAt int64) {
		t.Helper()
		if o, at := listOffset(t, cl, tt.name, ts); o != wantOffset || at != wantAt {
			t.Errorf("%s: %s (%d) is offset %d, timestamp %d; want %d, %d", tt.name, what, ts, o, at, wantOffset, wantAt)
		}
	}
	check("latest", -1, int64(len(tt.recs)), -1)
	check("earliest", -2, tt.start, -1)
	latest, at := tt.since(tt.latest())
	if tt.latest() < 0 {
		latest, at = -1, -1
	}
	check("max timestamp", -3, latest, at)
	check("earliest local", -4, max(tt.tiered, tt.start), -1)
	if tt.start < tt.tiered { // else it depends on whether the index still has dead rows
		check("latest tiered", -5, tt.tiered-1, -1)
	}
	check("earliest pending upload", -6, max(tt.tiered, tt.start), -1)
	times := []int64{0, time.Now().UnixMilli() + time.Hour.Milliseconds()}
	for i := 0; i < len(tt.recs); i += step {
		ms := tt.recs[i].Timestamp.UnixMilli()
		times = append(times, ms-1, ms, ms+1)
	}
	for _, ms := range times {
		o, at := tt.since(ms)
		check("by time", ms, o, at)
		if t.Failed() {
			return // one line says enough
		}
	}
}

// checkRecords reads everything from the log start on, and below it nothing.
func (tt *tierTopic) checkRecords(t *testing.T, n *Node) {
	t.Helper()
	got, err := fetchFrom(n.Kafka, tt.name, 0, tt.start, len(tt.recs)-int(tt.start))
	if err != nil {
		t.Error(err)
	}
	tt.compare(t, "fetch", got, tt.start, int64(len(tt.recs)))
	if tt.start > 0 {
		if _, err := fetchFrom(n.Kafka, tt.name, 0, tt.start-1, 1); !errors.Is(err, kerr.OffsetOutOfRange) {
			t.Errorf("%s: fetch at %d, below the log start: %v, want OFFSET_OUT_OF_RANGE", tt.name, tt.start-1, err)
		}
	}
}

// compare wants the records from offset from up to (without) to.
func (tt *tierTopic) compare(t *testing.T, what string, got []*kgo.Record, from, to int64) {
	t.Helper()
	if int64(len(got)) != to-from {
		t.Errorf("%s: %s gives %d records, want %d", tt.name, what, len(got), to-from)
		return
	}
	for i, r := range got {
		if w := tt.recs[from+int64(i)]; r.Offset != from+int64(i) || !r.Timestamp.Equal(w.Timestamp) || !bytes.Equal(r.Value, w.Value) {
			t.Errorf("%s: %s gives offset %d, %d, %.40q where offset %d, %d, %.40q should be", tt.name, what, r.Offset, r.Timestamp.UnixMilli(), r.Value,
				from+int64(i), w.Timestamp.UnixMilli(), w.Value)
			return
		}
	}
}

// checkReplay runs `cirrolog replay` with a range, and wants what the model has.
func (tt *tierTopic) checkReplay(t *testing.T, n *Node, from, to int64, args ...string) {
	t.Helper()
	from = max(from, tt.start)
	var want strings.Builder
	for i := from; i < max(from, min(to, int64(len(tt.recs)))); i++ {
		fmt.Fprintf(&want, "%d %d %s\n", i, tt.recs[i].Timestamp.UnixMilli(), tt.recs[i].Value)
	}
	var got bytes.Buffer
	if err := n.CLI(&got, append([]string{"replay", tt.name, "-f", `%o %d %v\n`}, args...)...); err != nil {
		t.Error(err)
	}
	if got.String() != want.String() {
		first, _, _ := strings.Cut(got.String(), " ")
		t.Errorf("replay %s %s: %d records from %q on; want %d from %d on", tt.name, strings.Join(args, " "),
			strings.Count(got.String(), "\n"), first, strings.Count(want.String(), "\n"), from)
	}
}

// replayTimes runs replay for a range of time; nil is an open end.
func (tt *tierTopic) replayTimes(t *testing.T, n *Node, from, to *kgo.Record, extra ...string) {
	t.Helper()
	if from != nil && to != nil && to.Timestamp.Before(from.Timestamp) {
		from, to = to, from // a range that ends before it begins is a mistake
	}
	first, last := tt.start, int64(len(tt.recs))
	args := extra
	if from != nil {
		ms := from.Timestamp.UnixMilli()
		if o, _ := tt.since(ms); o >= 0 {
			first = o
		} else {
			first = last
		}
		args = append(args, "--from-time", fmt.Sprint(ms))
	}
	if to != nil {
		ms := to.Timestamp.UnixMilli()
		if o, _ := tt.since(ms); o >= 0 {
			last = o
		}
		args = append(args, "--to-time", fmt.Sprint(ms))
	}
	tt.checkReplay(t, n, first, last, args...)
}

// bucketKeys lists the segments of a topic id in a directory bucket, by base.
func bucketKeys(t testing.TB, dir, id string) (keys []tiering.SegmentKey) {
	t.Helper()
	b, err := bucketurl.Open(t.Context(), "dir://"+dir, bucketurl.Options{FS: vfs.OS()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = objstore.Close(b) }()
	list, more, err := b.List(t.Context(), tiering.DataPrefix+id+"/", "", 1000)
	if err != nil || more {
		t.Fatalf("list bucket: more %t, %v", more, err)
	}
	for _, o := range list {
		k, err := tiering.ParseSegmentKey(o.Key)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b tiering.SegmentKey) int { return cmp.Compare(a.Base, b.Base) })
	return keys
}

// localBases lists the first offsets of a topic id's .log files.
func localBases(t *testing.T, n *Node, id string) (bases []int64) {
	t.Helper()
	for _, path := range localLogs(t, n) {
		if strings.Contains(path, id) {
			base, _, err := segment.ParseName(filepath.Base(path))
			if err != nil {
				t.Fatal(err)
			}
			bases = append(bases, base)
		}
	}
	return bases
}

// checkGone waits until exactly the segments that reach beyond the log start
// are left in the bucket and on the disk.
func (tt *tierTopic) checkGone(t *testing.T, n *Node, bucket string) {
	t.Helper()
	var objects, files []int64
	for base := int64(0); base < endOfDisk; base += tierPerSeg {
		switch {
		case base+tierPerSeg <= tt.start:
		case base < tt.tiered:
			objects = append(objects, base)
		default:
			files = append(files, base)
		}
	}
	var gotObjects, gotFiles []int64
	for end := time.Now().Add(tierWait); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		gotObjects = nil
		for _, k := range bucketKeys(t, bucket, tt.id) {
			gotObjects = append(gotObjects, k.Base)
		}
		gotFiles = slices.DeleteFunc(localBases(t, n, tt.id), func(base int64) bool { return base >= endOfDisk })
		if slices.Equal(objects, gotObjects) && slices.Equal(files, gotFiles) {
			return
		}
	}
	t.Fatalf("%s: log start %d: objects of the bases %v and files %v are there, want %v and %v", tt.name, tt.start, gotObjects, gotFiles, objects, files)
}
