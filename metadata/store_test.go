package metadata

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/metadata/kv/bolt"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// world is what outlives an agent: a bucket and a key-value store.
type world struct {
	t      *testing.T
	bucket *fakeBucket
	kv     kv.Store
	hooks  *hooks
	path   string // of the bolt file; "": in memory
}

// hooks inject faults into the key-value store.
type hooks struct {
	mu            sync.Mutex
	before, after func(kv.Call) error
}

func (h *hooks) set(before, after func(kv.Call) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before, h.after = before, after
}

func (h *hooks) call(after bool, c kv.Call) error {
	h.mu.Lock()
	f := h.before
	if after {
		f = h.after
	}
	h.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(c)
}

// both runs a test on the in-memory and on the bolt driver.
func both(t *testing.T, f func(*testing.T, *world)) {
	t.Run("mem", func(t *testing.T) { f(t, newWorld(t)) })
	t.Run("bolt", func(t *testing.T) {
		w := newWorld(t)
		w.path = filepath.Join(t.TempDir(), "meta.db")
		w.newKV()
		f(t, w)
	})
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, bucket: newBucket(), hooks: &hooks{}}
	w.newKV()
	t.Cleanup(func() { w.kv.Close() })
	return w
}

// newKV replaces the key-value store: an empty one in memory, or the bolt file
// as a new process finds it.
func (w *world) newKV() {
	w.t.Helper()
	if w.kv != nil {
		w.kv.Close()
	}
	if w.path == "" {
		w.kv = kv.NewMem(kv.MemOptions{})
	} else {
		s, err := bolt.Open(w.path, bolt.Options{})
		if err != nil {
			w.t.Fatal(err)
		}
		w.kv = s
	}
	w.kv = kv.WithHooks(w.kv, kv.Hooks{
		Before: func(c kv.Call) error { return w.hooks.call(false, c) },
		After:  func(c kv.Call) error { return w.hooks.call(true, c) },
	})
}

func (w *world) options() Options {
	return Options{
		KV: w.kv, Bucket: w.bucket, Incarnation: ids.NewIncarnation(), NodeID: 1, Tries: 6,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

func (w *world) open(change ...func(*Options)) *Store {
	w.t.Helper()
	s, err := w.tryOpen(change...)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) tryOpen(change ...func(*Options)) (*Store, error) {
	o := w.options()
	for _, f := range change {
		f(&o)
	}
	s, err := Open(context.Background(), o)
	if err == nil {
		w.t.Cleanup(func() { s.Close() })
	}
	return s, err
}

// reopen is a restart of the process: bolt is closed and opened.
func (w *world) reopen(s *Store) *Store {
	w.t.Helper()
	s.Close()
	if w.path != "" {
		w.newKV()
	}
	return w.open(func(o *Options) { o.ClusterID, o.RememberedNodeID = s.ClusterID(), s.NodeID() })
}

func ctxT(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func create(t *testing.T, s *Store, name string, partitions int32, configs ...string) *Topic {
	t.Helper()
	topic, err := s.CreateTopic(ctxT(t), CreateTopic{Name: name, Partitions: partitions, ReplicationFactor: -1, Configs: nullable(configs...)})
	if err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	return topic
}

func nullable(pairs ...string) map[string]*string {
	out := map[string]*string{}
	for k, v := range parseConfigs(strings.Join(pairs, " ")) {
		out[k] = &v
	}
	return out
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: error %v, want %v", what, err, want)
	}
}

func mustNil(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTopicLife(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := w.open()
		ctx := ctxT(t)
		a := create(t, s, "orders", 3, "retention.ms=5000")
		if got := s.Snapshot().Topic("orders"); got == nil || got.ID != a.ID || got.Partitions != 3 || got.Config.RetentionMs != 5000 || got.Version != 1 {
			t.Fatalf("snapshot has %+v", got)
		}
		mustNil(t, s.AddPartitions(ctx, "orders", 5, false))
		mustNil(t, s.AlterConfig(ctx, "orders", []ConfigOp{op(OpSet, "segment.ms", "77")}, false))
		mustNil(t, s.AlterConfig(ctx, "orders", []ConfigOp{op(OpSet, "segment.ms", "77")}, false)) // nothing new
		mustNil(t, s.ReplaceConfig(ctx, "orders", nullable("segment.bytes=1048576"), false))
		s = w.reopen(s)
		got := s.Snapshot().TopicByID(a.ID)
		if got == nil || got.Partitions != 5 || got.Version != 4 || len(got.Configs) != 1 || got.Config.SegmentBytes != 1<<20 || got.Config.RetentionMs != 604800000 {
			t.Fatalf("after restart: %+v", got)
		}
		if len(got.Owners) != 1 || got.Owners[0].From != 0 || got.Owners[0].To != 5 {
			t.Fatalf("owners are %+v", got.Owners)
		}
		mustNil(t, s.DeleteTopic(ctx, a.ID))
		if len(s.Snapshot().Topics()) != 0 {
			t.Fatal("a deleted topic is in the snapshot")
		}
		wantErr(t, "delete again", s.DeleteTopic(ctx, a.ID), ErrUnknownTopic)
		b := create(t, s, "orders", 1)
		if b.ID == a.ID || b.Version != 6 {
			t.Fatalf("the new topic is %+v", b)
		}
		s = w.reopen(s)
		if got := s.Snapshot().Topic("orders"); got == nil || got.ID != b.ID || len(s.Snapshot().Topics()) != 1 || s.Snapshot().Partitions() != 1 {
			t.Fatalf("after restart: %+v", got)
		}
		deleted, err := s.DeletedTopics(ctx)
		if err != nil || len(deleted) != 1 || deleted[0].ID != a.ID || deleted[0].Partitions != 5 || deleted[0].At == 0 {
			t.Fatalf("deleted topics %+v, %v", deleted, err)
		}
	})
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	s := w.open(func(o *Options) { o.MaxTotalPartitions, o.DefaultPartitions, o.Agents = 10, 4, func() int { return 3 } })
	ctx := ctxT(t)
	create(t, s, "a.b", 1)
	try := func(what string, req CreateTopic, want error) {
		t.Helper()
		_, err := s.CreateTopic(ctx, req)
		wantErr(t, what, err, want)
	}
	try("exists", CreateTopic{Name: "a.b", Partitions: 1, ReplicationFactor: 1}, ErrTopicExists)
	try("collision", CreateTopic{Name: "a_b", Partitions: 1, ReplicationFactor: 1}, ErrInvalidTopic)
	try("path", CreateTopic{Name: "../x", Partitions: 1, ReplicationFactor: 1}, ErrInvalidTopic)
	try("0 partitions", CreateTopic{Name: "x", Partitions: 0, ReplicationFactor: 1}, ErrInvalidPartitions)
	try("negative partitions", CreateTopic{Name: "x", Partitions: -2, ReplicationFactor: 1}, ErrInvalidPartitions)
	try("100,001 partitions", CreateTopic{Name: "x", Partitions: 100001, ReplicationFactor: 1}, ErrInvalidPartitions)
	try("limit in total", CreateTopic{Name: "x", Partitions: 10, ReplicationFactor: 1}, ErrPolicy)
	try("replication 0", CreateTopic{Name: "x", Partitions: 1, ReplicationFactor: 0}, ErrInvalidReplication)
	try("replication 4 of 3", CreateTopic{Name: "x", Partitions: 1, ReplicationFactor: 4}, ErrInvalidReplication)
	try("config", CreateTopic{Name: "x", Partitions: 1, ReplicationFactor: 3, Configs: nullable("foo=1")}, ErrInvalidConfig)
	try("null config", CreateTopic{Name: "x", Partitions: 1, ReplicationFactor: 3, Configs: map[string]*string{"segment.ms": nil}}, ErrInvalidConfig)
	topic, err := s.CreateTopic(ctx, CreateTopic{Name: "x", Partitions: -1, ReplicationFactor: -1, ValidateOnly: true})
	if err != nil || topic.Partitions != 4 || s.Snapshot().Topic("x") != nil || len(w.bucket.keys("meta/topics/x/")) != 0 {
		t.Fatalf("validate only: %+v, %v", topic, err)
	}
	wantErr(t, "same partitions", s.AddPartitions(ctx, "a.b", 1, false), ErrInvalidPartitions)
	wantErr(t, "fewer partitions", s.AddPartitions(ctx, "a.b", -1, false), ErrInvalidPartitions)
	wantErr(t, "too many in total", s.AddPartitions(ctx, "a.b", 11, false), ErrPolicy)
	wantErr(t, "partitions of nothing", s.AddPartitions(ctx, "none", 2, false), ErrUnknownTopic)
	wantErr(t, "configs of a bad name", s.AlterConfig(ctx, "../..", nil, false), ErrUnknownTopic)
	wantErr(t, "bad config", s.AlterConfig(ctx, "a.b", []ConfigOp{op(OpSet, "segment.ms", "0")}, false), ErrInvalidConfig)
	mustNil(t, s.AddPartitions(ctx, "a.b", 10, true))
	mustNil(t, s.AlterConfig(ctx, "a.b", []ConfigOp{op(OpSet, "segment.ms", "1")}, true))
	if got := s.Snapshot().Topic("a.b"); got.Version != 1 || len(w.bucket.keys("meta/topics/a.b/")) != 1 {
		t.Fatalf("validate only changed the topic: %+v", got)
	}
}

// TestConcurrentCreators: several agents, several goroutines each; exactly one
// creates, the others are told that it exists, and all see the same id.
func TestConcurrentCreators(t *testing.T) {
	w := newWorld(t)
	agents := []*Store{w.open(), w.open(func(o *Options) { o.NodeID = 2 }), w.open(func(o *Options) { o.NodeID = 3 })}
	for round := range 10 {
		name := fmt.Sprint("topic", round)
		var won atomic.Int32
		var wg sync.WaitGroup
		for _, s := range agents {
			for range 3 {
				wg.Go(func() {
					_, err := s.CreateTopic(ctxT(t), CreateTopic{Name: name, Partitions: 1, ReplicationFactor: 1})
					if err == nil {
						won.Add(1)
					} else if !errors.Is(err, ErrTopicExists) {
						t.Errorf("create: %v", err)
					}
				})
			}
		}
		wg.Wait()
		if won.Load() != 1 || len(w.bucket.keys("meta/topics/"+name+"/")) != 1 {
			t.Fatalf("%d creators won", won.Load())
		}
		id := agents[0].Snapshot().Topic(name).ID
		for _, s := range agents {
			if got := s.Snapshot().Topic(name); got == nil || got.ID != id {
				t.Fatalf("an agent that was told the topic exists sees %+v", got)
			}
		}
	}
}

// TestConcurrentCollision: a.b and a_b can't both come to be.
func TestConcurrentCollision(t *testing.T) {
	s := newWorld(t).open()
	for round := range 10 {
		var won atomic.Int32
		var wg sync.WaitGroup
		for _, sep := range []string{".", "_"} {
			wg.Go(func() {
				_, err := s.CreateTopic(ctxT(t), CreateTopic{Name: fmt.Sprint("a", sep, round), Partitions: 1, ReplicationFactor: 1})
				if err == nil {
					won.Add(1)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d of two colliding topics were created", won.Load())
		}
	}
}

// TestConcurrentAlter: no agent's change is lost to another's.
func TestConcurrentAlter(t *testing.T) {
	w := newWorld(t)
	agents := []*Store{w.open(), w.open(func(o *Options) { o.NodeID = 2 })}
	create(t, agents[0], "t", 1)
	mustNil(t, agents[1].Refresh(ctxT(t)))
	keys := []string{"segment.ms", "retention.ms", "max.message.bytes", "delete.retention.ms", "file.delete.delay.ms", "index.interval.bytes"}
	var wg sync.WaitGroup
	for i, key := range keys {
		wg.Go(func() {
			if err := agents[i%2].AlterConfig(ctxT(t), "t", []ConfigOp{op(OpSet, key, "7777")}, false); err != nil {
				t.Errorf("alter %s: %v", key, err)
			}
		})
	}
	wg.Wait()
	got := w.open(func(o *Options) { o.NodeID = 3 }).Snapshot().Topic("t")
	if len(got.Configs) != len(keys) || got.Version != int64(len(keys))+1 {
		t.Fatalf("configs %v at version %d", got.Configs, got.Version)
	}
}

// TestCrashBetweenBucketAndKV: the topic is in the bucket and its row is not;
// the next start completes it. Likewise for a deletion.
func TestCrashBetweenBucketAndKV(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := w.open()
		create(t, s, "kept", 1)
		gone := create(t, s, "gone", 1)
		noTopicRows := func(c kv.Call) error {
			if c.Method == "Commit" && strings.HasPrefix(c.Keys[0], "topic/") {
				return kv.ErrUnavailable
			}
			return nil
		}
		w.hooks.set(noTopicRows, nil)
		ctx := ctxT(t)
		_, err := s.CreateTopic(ctx, CreateTopic{Name: "half", Partitions: 2, ReplicationFactor: 1})
		wantErr(t, "create", err, ErrUnavailable)
		wantErr(t, "delete", s.DeleteTopic(ctx, gone.ID), ErrUnavailable)
		wantErr(t, "alter", s.AddPartitions(ctx, "kept", 9, false), ErrUnavailable)
		w.hooks.set(nil, nil)
		s = w.reopen(s)
		snap := s.Snapshot()
		if snap.Topic("half") == nil || snap.Topic("half").Partitions != 2 || snap.Topic("gone") != nil || snap.Topic("kept").Partitions != 9 {
			t.Fatalf("after the crash: %v", snap.byName)
		}
		// The store was completed too, not only the snapshot.
		it, err := w.kv.Get(ctx, "topic/half")
		if err != nil || !strings.Contains(string(it.Value), snap.Topic("half").ID.String()) {
			t.Fatalf("row is %q, %v", it.Value, err)
		}
	})
}

// TestRetryAfterKVOutage: without a restart a retry of the client completes what
// the outage left, and finds that the topic exists.
func TestRetryAfterKVOutage(t *testing.T) {
	w := newWorld(t)
	s := w.open(func(o *Options) { o.Tries = 1 })
	w.hooks.set(func(c kv.Call) error {
		if c.Method == "Commit" {
			return kv.ErrUnavailable
		}
		return nil
	}, nil)
	req := CreateTopic{Name: "t", Partitions: 1, ReplicationFactor: 1}
	_, err := s.CreateTopic(ctxT(t), req)
	wantErr(t, "create", err, ErrUnavailable)
	if s.Snapshot().Topic("t") != nil {
		t.Fatal("the topic shows before others can know of it")
	}
	w.hooks.set(nil, nil)
	_, err = s.CreateTopic(ctxT(t), req)
	wantErr(t, "create again", err, ErrTopicExists)
	if s.Snapshot().Topic("t") == nil {
		t.Fatal("the retry did not complete the topic")
	}
}

// TestLostAnswers: every put and commit loses its answer now and then, some
// never arrive; operations succeed all the same, and once.
func TestLostAnswers(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		var n atomic.Int64
		w.bucket.faults(func(op, _ string) error {
			if n.Add(1)%11 == 0 {
				return objstore.ErrThrottled
			}
			if op == "put" && n.Load()%7 == 0 {
				return objstore.ErrUnknown
			}
			return nil
		}, func(op, _ string) error {
			if op == "put" && n.Add(1)%2 == 0 {
				if n.Load()%3 == 0 {
					return objstore.ErrPrecondition // a driver tried again itself and met its own object
				}
				return objstore.ErrUnknown
			}
			return nil
		})
		w.hooks.set(func(c kv.Call) error {
			if n.Add(1)%13 == 0 {
				return kv.ErrUnavailable
			}
			return nil
		}, func(c kv.Call) error {
			if c.Method == "Commit" && n.Add(1)%2 == 0 {
				return kv.ErrUnknown
			}
			return nil
		})
		s := w.open()
		ctx := ctxT(t)
		seen := map[int64]bool{}
		for i := range 20 {
			topic := create(t, s, fmt.Sprint("t", i), 1)
			mustNil(t, s.AddPartitions(ctx, topic.Name, 2, false))
			tp := ids.TopicPartition{Topic: topic.ID, Partition: 1}
			mustNil(t, s.AddSegment(ctx, segment(tp, 0, 9, 1)))
			mustNil(t, s.SetLogStart(ctx, tp, 1, int64(i)))
			pid, err := s.NextProducerID(ctx)
			if err != nil || seen[pid] {
				t.Fatalf("producer id %d, %v", pid, err)
			}
			seen[pid] = true
			s.pid.next = s.pid.end // the next one from a new block
			if i%2 == 0 {
				mustNil(t, s.DeleteTopic(ctx, topic.ID))
			}
		}
		mustNil(t, s.PublishLogStarts(ctx))
		w.bucket.faults(nil, nil)
		w.hooks.set(nil, nil)
		epoch := s.NodeEpoch()
		s = w.reopen(s)
		if len(s.Snapshot().Topics()) != 10 || s.NodeEpoch() != epoch+1 || len(w.bucket.keys(pidPrefix)) != 20 {
			t.Fatalf("%d topics, epoch %d after %d, %d blocks", len(s.Snapshot().Topics()), s.NodeEpoch(), epoch, len(w.bucket.keys(pidPrefix)))
		}
		for _, topic := range s.Snapshot().Topics() {
			if topic.Version != 2 {
				t.Errorf("topic %s is at version %d: something was done twice", topic.Name, topic.Version)
			}
		}
	})
}

func TestSubscribe(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	create(t, s, "first", 1)
	var mu sync.Mutex
	var got []string
	note := func(c Change) {
		mu.Lock()
		defer mu.Unlock()
		text := "-"
		if c.New != nil {
			text = fmt.Sprint(c.New.Name, "/", c.New.Partitions)
			if s.Snapshot().Topic(c.New.Name) != c.New {
				t.Errorf("called before the snapshot has %s", c.New.Name)
			}
		}
		if c.Old != nil {
			text = fmt.Sprint(c.Old.Name, "/", c.Old.Partitions, ">", text)
		}
		got = append(got, text)
	}
	cancel := s.Subscribe(note)
	b := create(t, s, "b", 2)
	mustNil(t, s.AddPartitions(ctxT(t), "b", 3, false))
	mustNil(t, s.DeleteTopic(ctxT(t), b.ID))
	want := []string{"first/1", "b/2", "b/2>b/3", "b/3>-"}
	if !slices.Equal(got, want) {
		t.Fatalf("changes %v, want %v", got, want)
	}
	cancel()
	create(t, s, "c", 1)
	if len(got) != len(want) {
		t.Fatal("called after cancel")
	}
}

// TestWatch: another agent's changes arrive without being asked for.
func TestWatch(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		a, b := w.open(), w.open(func(o *Options) { o.NodeID = 2 })
		topic := create(t, a, "t", 1)
		until(t, func() bool { return b.Snapshot().TopicByID(topic.ID) != nil })
		mustNil(t, a.AddPartitions(ctxT(t), "t", 2, false))
		until(t, func() bool { return b.Snapshot().Topic("t").Partitions == 2 })
		mustNil(t, a.DeleteTopic(ctxT(t), topic.ID))
		until(t, func() bool { return b.Snapshot().Topic("t") == nil })
	})
}

func until(t *testing.T, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen within 10 s")
		}
	}
}

func TestManyTopics(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 160 {
				create(t, s, fmt.Sprintf("t-%d-%d", g, i), 1)
			}
		})
	}
	wg.Wait()
	names := func(s *Store) []string {
		var out []string
		for _, topic := range s.Snapshot().Topics() {
			out = append(out, topic.Name)
		}
		return out
	}
	got := names(s)
	if len(got) != 1280 || !slices.IsSorted(got) || !slices.Equal(got, slices.Sorted(maps.Keys(s.Snapshot().byName))) {
		t.Fatalf("%d topics", len(got))
	}
	if again := names(w.reopen(s)); !slices.Equal(again, got) {
		t.Fatalf("%d topics after restart", len(again))
	}
}

// TestBucketFirst: what the bucket refused is nowhere else.
func TestBucketFirst(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := w.open()
		old := create(t, s, "old", 1)
		w.bucket.faults(func(op, _ string) error {
			if op == "put" {
				return objstore.ErrDenied
			}
			return nil
		}, nil)
		ctx := ctxT(t)
		_, err := s.CreateTopic(ctx, CreateTopic{Name: "t", Partitions: 1, ReplicationFactor: 1})
		wantErr(t, "create", err, ErrUnavailable)
		wantErr(t, "delete", s.DeleteTopic(ctx, old.ID), ErrUnavailable)
		_, err = s.NextProducerID(ctx)
		wantErr(t, "producer id", err, ErrUnavailable)
		if _, err := w.kv.Get(ctx, "topic/t"); !errors.Is(err, kv.ErrNotFound) {
			t.Fatalf("row of a topic that the bucket lacks: %v", err)
		}
		w.bucket.faults(nil, nil)
		s = w.reopen(s)
		if snap := s.Snapshot(); snap.Topic("t") != nil || snap.Topic("old") == nil {
			t.Fatalf("after restart: %v", snap.byName)
		}
	})
}

// TestLatePublish: an agent that wakes up with an old version in hand neither
// lowers the row nor brings a deleted topic back.
func TestLatePublish(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s, late := w.open(), w.open(func(o *Options) { o.NodeID = 2 })
		ctx := ctxT(t)
		topic := create(t, s, "t", 1)
		old, err := late.readTopic(ctx, topicObject("t", 1))
		mustNil(t, err)
		mustNil(t, s.DeleteTopic(ctx, topic.ID))
		before, err := w.kv.Get(ctx, topicRow("t"))
		mustNil(t, err)
		mustNil(t, late.publish(ctx, old))
		after, err := w.kv.Get(ctx, topicRow("t"))
		mustNil(t, err)
		if after.Revision != before.Revision || !strings.Contains(string(after.Value), opDelete) {
			t.Fatalf("the row went from %s to %s", before.Value, after.Value)
		}
		until(t, func() bool { return late.known("t") == 2 })
		if s.Snapshot().Topic("t") != nil || late.Snapshot().Topic("t") != nil {
			t.Fatal("a deleted topic came back")
		}
	})
}
