package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// elsewhere is Leaders of a cluster in which another node leads everything.
type elsewhere struct{}

func (elsewhere) Leader(ids.TopicID, int32) (node, epoch int32) { return 2, 1 }
func (elsewhere) Nodes() []Node                                 { return nil }

// rowsReader reads what the index has, in segments of ten offsets.
type rowsReader struct {
	TieredReader
	index tiering.Index
	err   error
	empty bool // compaction has emptied all
	gone  int  // results not released

	mu    sync.Mutex
	reads int
}

func (r *rowsReader) Read(ctx context.Context, tp ids.TopicPartition, offset int64, _ int, _ bool) (tiering.ReadResult, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	if r.err != nil {
		return tiering.ReadResult{}, r.err
	}
	rows, err := r.index.Segments(ctx, tp, offset, 1)
	if err != nil || len(rows) == 0 || rows[0].Base > offset {
		return tiering.ReadResult{}, errors.Join(tiering.ErrNoSegment, err)
	}
	r.gone++
	res := tiering.ReadResult{NextOffset: rows[0].Last + 1, Release: func() { r.gone-- }}
	if !r.empty {
		res.Data, res.Size = [][]byte{fmt.Appendf(nil, "%d-%d", offset, rows[0].Last)}, 1
	}
	return res, nil
}

// followed is a broker that leads nothing, with a topic of one partition.
type followed struct {
	*Broker
	t     *testing.T
	topic *Topic
	tp    ids.TopicPartition
	meta  *metadata.Store
	rows  *rowsReader
	calls int // for the index
	fail  error

	mu  sync.Mutex
	now time.Time
}

func newFollowed(t *testing.T) *followed {
	f := &followed{t: t, now: time.Now()}
	store := kv.WithHooks(kv.NewMem(kv.MemOptions{}), kv.Hooks{Before: func(c kv.Call) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if c.Method != "Range" || !strings.HasPrefix(c.Keys[0], "seg/") {
			return nil
		}
		f.calls++
		return f.fail
	}})
	t.Cleanup(func() { store.Close() })
	discard := slog.New(slog.NewTextHandler(io.Discard, nil))
	meta, err := metadata.Open(t.Context(), metadata.Options{KV: store, Bucket: objstore.NewMem(), Incarnation: ids.NewIncarnation(), Tries: 1, Logger: discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { meta.Close() })
	f.meta = meta
	created, err := meta.CreateTopic(t.Context(), metadata.CreateTopic{Name: "a", Partitions: 1, ReplicationFactor: -1})
	if err != nil {
		t.Fatal(err)
	}
	f.topic = topicOf(created)
	f.topic.Config.RemoteStorage = true
	f.tp = ids.TopicPartition{Topic: f.topic.ID}
	f.rows = &rowsReader{index: NewIndex(meta)}
	f.Broker = &Broker{opts: Options{Meta: meta, Reader: f.rows, Leaders: elsewhere{}, Logger: discard, Now: func() time.Time {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.now
	}}}
	v := newView(1)
	v.add(f.topic, make([]*Partition, 1))
	f.view.Store(v)
	return f
}

func (f *followed) sleep(by time.Duration) {
	f.mu.Lock()
	f.now = f.now.Add(by)
	f.mu.Unlock()
}

// tier indexes n more segments from offset base on.
func (f *followed) tier(base int64, n int) {
	f.t.Helper()
	for i := range int64(n) {
		r := metadata.SegmentRow{TP: f.tp, SegmentID: metadata.SegmentID{Base: base + 10*i, Last: base + 10*i + 9, Epoch: 1, Incarnation: ids.NewIncarnation()}, Size: 100, LogSize: 50, Records: 10, MinTimestamp: 1, MaxTimestamp: 1}
		if err := f.meta.AddSegment(f.t.Context(), r); err != nil {
			f.t.Fatal(err)
		}
	}
}

// read reads at an offset: what the client gets.
func (f *followed) read(offset int64) string {
	f.t.Helper()
	p, err := f.Follower(f.topic.ID, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	o := ReadOptions{Offset: offset, MaxBytes: 1, MinOneBatch: true, CurrentEpoch: -1, LastFetchedEpoch: -1, CacheOnly: true}
	res := p.Read(f.t.Context(), o)
	if res.Tiered {
		if res.HighWatermark <= offset {
			f.t.Errorf("at %d: high watermark %d, though it can be read", offset, res.HighWatermark)
		}
		o.CacheOnly = false
		res = p.Read(f.t.Context(), o)
	}
	if res.Release != nil {
		defer res.Release()
	}
	if res.LastStable != res.HighWatermark {
		f.t.Errorf("last stable offset %d, high watermark %d", res.LastStable, res.HighWatermark)
	}
	switch {
	case errors.Is(res.Err, ErrNotLeader):
		return fmt.Sprintf("%d: leader", res.HighWatermark)
	case res.Err != nil:
		return res.Err.Error()
	}
	return fmt.Sprintf("%d: %s", res.HighWatermark, res.Data)
}

func (f *followed) want(offset int64, want string) {
	f.t.Helper()
	if got := f.read(offset); got != want {
		f.t.Errorf("at %d: %q, want %q", offset, got, want)
	}
}

// An agent that does not lead a partition serves what is indexed of it and
// nothing else; everything it can't serve it leaves to the leader.
func TestFollowerReads(t *testing.T) {
	f := newFollowed(t)
	f.want(0, "0: leader")
	f.tier(0, 3)
	f.sleep(followerMiss)
	f.want(0, "30: [0-9]")
	f.want(25, "30: [25-29]")
	f.want(30, "30: leader")
	f.want(1000, "30: leader")
	f.tier(40, 1) // a row between is missing
	f.sleep(followerMiss)
	f.want(30, "50: leader")
	f.want(41, "50: [41-49]")
	if err := f.meta.SetLogStart(t.Context(), f.tp, 1, 10); err != nil {
		t.Fatal(err)
	}
	f.want(9, "50: leader")
	f.want(10, "50: [10-19]")
	f.rows.empty = true
	f.want(10, "50: leader")
	f.rows.empty, f.rows.err = false, errors.New("the bucket is away")
	f.want(10, "50: leader")
	if f.rows.gone != 0 {
		t.Errorf("%d results are not released", f.rows.gone)
	}
}

// A client's lineage is checked by the leader; an old leader epoch is no matter.
func TestFollowerEpochs(t *testing.T) {
	f := newFollowed(t)
	f.tier(0, 1)
	p, err := f.Follower(f.topic.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	o := ReadOptions{MaxBytes: 1, MinOneBatch: true, CurrentEpoch: 99, LastFetchedEpoch: -1}
	if r := p.Read(t.Context(), o); r.Err != nil || len(r.Data) != 1 {
		t.Errorf("with another leader epoch: %+v", r)
	}
	o.LastFetchedEpoch = 1
	if r := p.Read(t.Context(), o); !errors.Is(r.Err, ErrNotLeader) {
		t.Errorf("with a lineage: %+v", r)
	}
}

// However often it is asked, the index is read now and then: soon for an offset
// that seems not to be there, seldom to tell the end.
func TestFollowerLooksSeldom(t *testing.T) {
	f := newFollowed(t)
	f.tier(0, 1)
	f.want(0, "10: [0-9]")
	count := func(offset int64) int {
		f.mu.Lock()
		f.calls = 0
		f.mu.Unlock()
		rows := f.rows.index
		f.rows.index, f.rows.err = nil, tiering.ErrNoSegment // the index alone counts
		for range 100 {
			f.read(offset)
		}
		f.rows.index, f.rows.err = rows, nil
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.calls
	}
	if n := count(0) + count(10); n != 0 {
		t.Errorf("the index was read %d times within %v", n, followerMiss)
	}
	f.sleep(followerMiss)
	if n := count(0); n != 0 {
		t.Errorf("the index was read %d times for what is there, after %v", n, followerMiss)
	}
	if n := count(10); n != 1 {
		t.Errorf("the index was read %d times for what is not there, after %v, want once", n, followerMiss)
	}
	f.tier(10, 1)
	f.want(10, "10: leader")
	f.sleep(followerMiss)
	f.want(10, "20: [10-19]")
	f.tier(20, 1)
	f.sleep(followerView)
	f.want(0, "30: [0-9]")
	f.mu.Lock()
	f.fail = kv.ErrUnavailable
	f.mu.Unlock()
	f.sleep(followerMiss)
	if n := count(30); n < 1 || n > 20 {
		t.Errorf("the index was read %d times while the store is away", n)
	}
	f.rows.err = nil
}

// Topics without remote storage, and agents that are alone, have no followers.
func TestFollowerOf(t *testing.T) {
	f := newFollowed(t)
	if _, err := f.Follower(f.topic.ID, 1); !errors.Is(err, ErrUnknownPartition) {
		t.Errorf("partition 1: %v", err)
	}
	if _, err := f.Follower(ids.NewTopicID(), 0); !errors.Is(err, ErrUnknownTopic) {
		t.Errorf("another topic: %v", err)
	}
	a, err := f.Follower(f.topic.ID, 0)
	if b, err2 := f.Follower(f.topic.ID, 0); err != nil || err2 != nil || a != b {
		t.Errorf("the same partition is %p and %p: %v, %v", a, b, err, err2)
	}
	for i := range int32(2 * manyFollowers) {
		f.followers.get(f.Broker, ids.TopicPartition{Topic: f.topic.ID, Partition: i})
		f.sleep(followerIdle / manyFollowers * 2)
	}
	if n := len(f.followers.m); n > manyFollowers+1 {
		t.Errorf("%d followers are kept", n)
	}
	f.topic.Config.RemoteStorage = false
	if _, err := f.Follower(f.topic.ID, 0); !errors.Is(err, ErrNotLeader) {
		t.Errorf("without remote storage: %v", err)
	}
	f.topic.Config.RemoteStorage = true
	f.opts.Leaders = nil
	if _, err := f.Follower(f.topic.ID, 0); !errors.Is(err, ErrNotLeader) {
		t.Errorf("alone: %v", err)
	}
}

func TestReplicas(t *testing.T) {
	tiered := &Topic{ID: ids.NewTopicID(), Config: metadata.TopicConfig{RemoteStorage: true}}
	nodes := func(racks ...string) (out []Node) {
		for i, r := range racks {
			out = append(out, Node{ID: int32(i + 1), Rack: r})
		}
		return out
	}
	racks := func(nodes []Node, got []int32) (out string) {
		for _, id := range got {
			out += nodes[id-1].Rack + " "
		}
		return out
	}
	for _, c := range []struct {
		nodes []Node
		want  string // racks of the replicas, the leader being node 1
	}{
		{nodes(""), " "},
		{nodes("", "", "", ""), "  "},
		{nodes("a"), "a "},
		{nodes("a", "b", "c"), "a b c "},
		{nodes("a", "a", "a", "b", "b"), "a a b "},
		{nodes("a", "", "b", ""), "a  b "},
	} {
		for p := range int32(20) {
			got := Replicas(tiered, p, 1, c.nodes)
			if got[0] != 1 || racks(c.nodes, got) != c.want {
				t.Errorf("%+v: partition %d gets %v", c.nodes, p, got)
			}
		}
		if got := Replicas(&Topic{}, 0, 1, c.nodes); len(got) != 1 || got[0] != 1 {
			t.Errorf("not tiered: %v", got)
		}
	}
	flat, count := nodes("", "", "", "", ""), map[int32]int{}
	for p := range int32(400) {
		count[Replicas(tiered, p, 1, flat)[1]]++
	}
	for id := range int32(4) {
		if n := count[id+2]; n < 50 || n > 150 {
			t.Errorf("node %d is the replica of %d of 400 partitions", id+2, n)
		}
	}
	flat[3].Reader = true
	for p := range int32(20) {
		if got := Replicas(tiered, p, 1, flat); got[1] != 4 {
			t.Errorf("partition %d gets %v, node 4 leads nothing", p, got)
		}
	}
}
