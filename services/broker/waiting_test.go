package broker

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// diskBroker is a broker of one topic that has its storage and nothing else.
type diskBroker struct {
	*Broker
	t     *testing.T
	topic *Topic
	parts []*Partition

	mu  sync.Mutex
	now time.Time
}

func newDiskBroker(t *testing.T, partitions int32, cfg metadata.TopicConfig) *diskBroker {
	d := &diskBroker{t: t, now: time.Now()}
	clock := func() time.Time {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.now
	}
	store, err := storage.Open(storage.Options{FS: vfs.NewMem(), Dir: "/data", WALSize: 32 << 20, TailBytes: 32 << 20, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	d.Broker = &Broker{opts: Options{Store: store, Now: clock}, waiting: newWaitingList()}
	d.ctx = t.Context()
	d.house.init()
	d.topic = &Topic{Name: "a", ID: ids.NewTopicID(), Partitions: partitions, Config: cfg}
	v := newView(1)
	for i := range partitions {
		p := &Partition{b: d.Broker, tp: ids.TopicPartition{Topic: d.topic.ID, Partition: i}}
		p.topic.Store(d.topic)
		if p.log, err = store.Create(p.tp, logConfig(d.topic), 0); err != nil {
			t.Fatal(err)
		}
		d.parts = append(d.parts, p)
	}
	v.add(d.topic, d.parts)
	d.view.Store(v)
	return d
}

func (d *diskBroker) sleep(by time.Duration) {
	d.mu.Lock()
	d.now = d.now.Add(by)
	d.mu.Unlock()
}

// write appends one record, now, to each of the partitions.
func (d *diskBroker) write(parts ...*Partition) {
	d.t.Helper()
	var wg sync.WaitGroup
	for _, p := range parts {
		b, err := batch.Encode([]batch.Record{{Timestamp: d.opts.Now().UnixMilli(), Value: []byte("v")}}, batch.EncodeOptions{})
		if err != nil {
			d.t.Fatal(err)
		}
		h, err := batch.Parse(b)
		if err != nil {
			d.t.Fatal(err)
		}
		wg.Add(1)
		if err := p.log.Append(d.t.Context(), b, h, storage.AppendOptions{}, func(storage.AppendResult) { wg.Done() }); err != nil {
			d.t.Fatal(err)
		}
	}
	wg.Wait()
}

// closed waits until the files of n segments are closed, of all partitions.
func (d *diskBroker) closed(n int) {
	d.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		have := 0
		for _, p := range d.parts {
			have += len(p.log.ClosedSegments())
		}
		if have == n {
			return
		}
		if time.Now().After(end) {
			d.t.Fatalf("%d segments are closed, want %d", have, n)
		}
	}
}

// upload does what the uploader does with the first that waits.
func (d *diskBroker) upload() (partition int32) {
	d.t.Helper()
	s := (*localTier)(d.Broker).Closed(1)
	if len(s) == 0 {
		d.t.Fatal("nothing waits")
	}
	(*localTier)(d.Broker).Tiered(tiering.Segment{SegmentKey: tiering.SegmentKey{TP: s[0].TP, Base: s[0].Base, Last: s[0].Last}, Size: s[0].Bytes})
	d.parts[s[0].TP.Partition].bucketCount.Store(0) // there is no index that retention could read
	return s[0].TP.Partition
}

func (d *diskBroker) listed() string {
	var out []string
	for _, s := range (*localTier)(d.Broker).Closed(100) {
		out = append(out, fmt.Sprintf("%d:%d-%d", s.TP.Partition, s.Base, s.Last))
	}
	return strings.Join(out, " ")
}

func tieredConfig() metadata.TopicConfig {
	return metadata.TopicConfig{SegmentBytes: 64 << 20, SegmentMs: time.Hour.Milliseconds(), RetentionMs: -1, RetentionBytes: -1, LocalRetentionMs: -1,
		LocalRetentionBytes: -1, RemoteStorage: true}
}

// Partitions with closed segments take turns at the uploader, and leave the
// list when nothing of them is to be uploaded any more.
func TestWaitingList(t *testing.T) {
	d := newDiskBroker(t, 4, tieredConfig())
	for range 2 {
		for _, p := range d.parts[:2] {
			d.write(p)
			p.log.RollIfOld(true)
		}
	}
	d.write(d.parts[2], d.parts[3])
	d.parts[2].log.RollIfOld(true)
	d.closed(5)
	if got := d.listed(); got != "" {
		t.Fatalf("before anyone looked: %s", got)
	}
	d.waiting.add(d.parts[1])
	d.waiting.add(d.parts[1])
	d.waiting.find(d.view.Load())
	if got := d.listed(); got != "1:0-0 0:0-0 2:0-0" {
		t.Errorf("listed %s", got)
	}
	lag := (*localTier)(d.Broker).Lag()
	if lag.Segments != 5 || lag.Bytes == 0 || lag.Oldest.IsZero() {
		t.Errorf("lag %+v", lag)
	}
	var order []int32
	for range 5 {
		order = append(order, d.upload())
	}
	if fmt.Sprint(order) != "[1 0 2 1 0]" || d.waiting.len() != 0 || d.listed() != "" {
		t.Errorf("uploaded %v, then %d wait: %s", order, d.waiting.len(), d.listed())
	}
	d.parts[3].log.RollIfOld(true)
	d.closed(6)
	d.waiting.add(d.parts[3])
	off := *d.topic
	off.Config.RemoteCopyDisabled = true
	d.parts[3].topic.Store(&off)
	if got := d.listed(); got != "" || d.waiting.len() != 0 {
		t.Errorf("with remote.log.copy.disable: %s", got)
	}
	d.parts[3].topic.Store(d.topic)
	d.waiting.find(d.view.Load())
	if got := d.listed(); got != "3:0-0" {
		t.Errorf("copied again: %s", got)
	}
	d.parts[3].gone.Store(true)
	if got := d.listed(); got != "" {
		t.Errorf("deleted: %s", got)
	}
}

// Segments that grow too old all at once are closed as fast as the uploader
// takes them.
func TestRollsArePaced(t *testing.T) {
	const more = 50
	d := newDiskBroker(t, maxWaiting+more, tieredConfig())
	d.write(d.parts...)
	d.retain(nil, true)
	d.closed(0)
	d.sleep(2 * time.Hour)
	d.retain(nil, true)
	d.closed(maxWaiting)
	d.retain(nil, true) // finds them, and closes no more
	if d.waiting.len() != maxWaiting {
		t.Errorf("%d partitions wait, want %d", d.waiting.len(), maxWaiting)
	}
	d.closed(maxWaiting)
	for range more - 10 {
		d.upload()
	}
	d.retain(nil, true)
	d.closed(maxWaiting + more - 10)
	for range 20 {
		d.upload()
	}
	d.retain(nil, true)
	d.closed(maxWaiting + more)
}

// Retention looks at a partition when something has happened to it or a limit
// has come, and not each time.
func TestRetentionLooksWhenDue(t *testing.T) {
	cfg := tieredConfig()
	cfg.RetentionMs = 20 * time.Minute.Milliseconds()
	d := newDiskBroker(t, 20, cfg)
	due := func() (out []int32) {
		for _, p := range d.parts {
			if p.check.due(p, d.opts.Now().UnixMilli()) {
				out = append(out, p.tp.Partition)
			}
		}
		return out
	}
	want := func(when, want string) {
		t.Helper()
		if got := fmt.Sprint(due()); got != want {
			t.Errorf("%s: due %s, want %s", when, got, want)
		}
		d.retain(nil, true)
	}
	if got := due(); len(got) != 20 {
		t.Errorf("at the start: due %v, want all", got)
	}
	d.retain(nil, true)
	want("nothing happened", "[]")
	d.write(d.parts[3], d.parts[5])
	want("two were written", "[3 5]")
	want("nothing more", "[]")
	d.sleep(10 * time.Minute)
	want("half of the retention", "[]")
	other := *d.topic
	d.parts[7].topic.Store(&other)
	want("new config", "[7]")
	d.parts[8].check.stir.Store(true)
	want("a segment was closed", "[8]")
	d.sleep(11 * time.Minute)
	if got := fmt.Sprint(due()); got != "[3 5]" {
		t.Errorf("over the retention: due %s", got)
	}
	d.sleep(2 * recheck)
	if got := due(); len(got) != 20 {
		t.Errorf("after a long time: due %v, want all", got)
	}
}

// The rows of a partition are read when something of them may go, not whenever records came.
func TestRetentionSparesRows(t *testing.T) {
	cfg := tieredConfig()
	cfg.RetentionMs, cfg.RetentionBytes, cfg.LocalRetentionMs = 20*time.Minute.Milliseconds(), -1, -2
	d := newDiskBroker(t, 1, cfg)
	var reads atomic.Int64
	store := kv.WithHooks(kv.NewMem(kv.MemOptions{}), kv.Hooks{Before: func(c kv.Call) error {
		if c.Method == "Range" && strings.HasPrefix(c.Keys[0], "seg/") {
			reads.Add(1)
		}
		return nil
	}})
	meta, err := metadata.Open(t.Context(), metadata.Options{KV: store, Bucket: objstore.NewMem(), Incarnation: ids.NewIncarnation()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { meta.Close() })
	d.opts.Meta, d.opts.Logger, d.index = meta, slog.New(slog.DiscardHandler), &metaIndex{meta: meta}
	p, began := d.parts[0], d.opts.Now().UnixMilli()
	for i := range int64(2) { // written ten minutes apart
		row := metadata.SegmentRow{TP: p.tp, SegmentID: metadata.SegmentID{Base: i, Last: i, Incarnation: ids.NewIncarnation()}, Size: 1, LogSize: 1, Records: 1, MaxTimestamp: began + i*10*time.Minute.Milliseconds()}
		if err := meta.IndexSegments(t.Context(), []metadata.SegmentRow{row}); err != nil {
			t.Fatal(err)
		}
	}
	p.bucketCount.Store(2)
	pass := func(when string, want int64) {
		t.Helper()
		d.write(p)
		before := reads.Load()
		d.retain(nil, true)
		if got := reads.Load() - before; got != want {
			t.Errorf("%s: the rows were read %d times, want %d", when, got, want)
		}
	}
	pass("first", 1)
	pass("more records", 0)
	d.sleep(19 * time.Minute)
	pass("before the first is too old", 0)
	other := *d.topic
	p.topic.Store(&other)
	pass("new config", 1)
	pass("more records", 0)
	d.sleep(61 * time.Second)
	pass("the first is too old", 1)
}
