package metadata

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

func TestFirstBootsAgree(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	clusters, nodes := map[string]bool{}, map[int32]bool{}
	for range 8 {
		wg.Go(func() {
			s, err := w.tryOpen(func(o *Options) { o.NodeID, o.Tries = 0, 20 })
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			clusters[s.ClusterID()] = true
			nodes[s.NodeID()] = true
		})
	}
	wg.Wait()
	if len(clusters) != 1 || len(nodes) != 8 || len(w.bucket.keys(recoveryPrefix)) != 0 {
		t.Fatalf("clusters %v, nodes %v, recoveries %v", clusters, nodes, w.bucket.keys(recoveryPrefix))
	}
	for n := range nodes {
		if n < 1 || n > 8 {
			t.Errorf("node id %d", n)
		}
	}
}

func TestForeignBuckets(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := w.open()
		create(t, s, "t", 1)
		id := s.ClusterID()
		s.Close()

		// The bucket is away or another one.
		own := w.bucket
		w.bucket = newBucket()
		_, err := w.tryOpen()
		wantErr(t, "empty bucket", err, ErrForeignBucket)
		other := newWorld(t)
		create(t, other.open(), "t", 1)
		w.bucket = other.bucket
		_, err = w.tryOpen()
		wantErr(t, "bucket of another cluster", err, ErrForeignBucket)

		// The bucket is right, the metadata store is new.
		w.bucket = own
		fresh := newWorld(t)
		fresh.bucket = own
		_, err = fresh.tryOpen()
		wantErr(t, "new metadata store", err, ErrForeignBucket)
		if !strings.Contains(err.Error(), "original data directory") {
			t.Fatalf("error does not say what to do: %v", err)
		}
		_, err = w.tryOpen(func(o *Options) { o.ClusterID = "another" })
		wantErr(t, "data directory of another cluster", err, ErrForeignBucket)

		// The bucket was rolled back: it lacks a topic that was acknowledged.
		key := w.bucket.keys("meta/topics/t/")[0]
		body := w.bucket.body(t, key)
		w.bucket.remove(t, key)
		_, err = w.tryOpen()
		wantErr(t, "bucket rolled back", err, ErrForeignBucket)
		w.bucket.replace(t, key, body)
		if s := w.open(func(o *Options) { o.ClusterID = id }); s.ClusterID() != id || s.Snapshot().Topic("t") == nil {
			t.Fatal("the right pair does not open")
		}
	})
}

// TestEmptyClusterIsTakenOver: a new metadata store may take a bucket without
// topics over, and then the former one is told so and can't create anything.
func TestEmptyClusterIsTakenOver(t *testing.T) {
	w := newWorld(t)
	former := w.open()
	fresh := newWorld(t)
	fresh.bucket = w.bucket
	s := fresh.open()
	if s.ClusterID() != former.ClusterID() {
		t.Fatal("the cluster id changed")
	}
	create(t, s, "t", 1)
	_, err := former.CreateTopic(ctxT(t), CreateTopic{Name: "u", Partitions: 1, ReplicationFactor: 1})
	wantErr(t, "create by the former store", err, ErrForeignBucket)
	wantErr(t, "publish by the former store", former.PublishLogStarts(ctxT(t)), ErrForeignBucket)
	_, err = w.tryOpen()
	wantErr(t, "start of the former store", err, ErrForeignBucket)
	fresh.reopen(s)
}

func TestUnknownFormats(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	create(t, s, "t", 1)
	s.Close()
	for _, key := range append(w.bucket.keys("meta/cluster"), w.bucket.keys("meta/topics/")...) {
		old := w.bucket.body(t, key)
		fresh := newWorld(t)
		fresh.bucket = w.bucket
		fresh.kv = w.kv
		w.kv.Commit(ctxT(t), []kv.Op{{Key: "topic/t", Delete: true}}, nil)
		for body, want := range map[string]error{
			strings.Replace(old, `"format":1`, `"format":2`, 1): ErrVersion,
			`{"format":1`:  ErrDamaged,
			`{"format":1}`: ErrDamaged,
			"":             ErrDamaged,
		} {
			w.bucket.replace(t, key, body)
			_, err := fresh.tryOpen()
			wantErr(t, key+" = "+body, err, want)
			if errors.Is(err, ErrUnavailable) {
				t.Errorf("%v says to try again", err)
			}
		}
		w.bucket.replace(t, key, old)
	}
	w.open()
}

func TestNodeIDs(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		any := func(o *Options) { o.NodeID = 0 }
		one := w.open(any)
		seven := w.open(func(o *Options) { o.NodeID = 7 })
		eight := w.open(any)
		if one.NodeID() != 1 || seven.NodeID() != 7 || eight.NodeID() != 8 {
			t.Fatalf("node ids %d, %d, %d", one.NodeID(), seven.NodeID(), eight.NodeID())
		}
		again := w.open(func(o *Options) { o.NodeID, o.RememberedNodeID = 0, 1 })
		if again.NodeID() != 1 || again.NodeEpoch() != one.NodeEpoch()+1 {
			t.Fatalf("node %d at epoch %d after %d", again.NodeID(), again.NodeEpoch(), one.NodeEpoch())
		}
		_, err := w.tryOpen(func(o *Options) { o.NodeID, o.RememberedNodeID = 2, 1 })
		wantErr(t, "another node's disk", err, ErrNodeID)
		if got := w.bucket.keys(nodePrefix); len(got) != 3 {
			t.Fatalf("claims are %v", got)
		}
		disk := w.open(func(o *Options) { o.NodeID, o.MinEpoch = 7, 100 })
		if disk.NodeEpoch() != 100 {
			t.Fatalf("epoch %d, the disk asks for 100", disk.NodeEpoch())
		}
		if next := w.open(func(o *Options) { o.NodeID = 7 }); next.NodeEpoch() != 101 {
			t.Fatalf("epoch %d after 100", next.NodeEpoch())
		}
	})
}

func TestProducerIDs(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		seen := map[int64]bool{}
		var mu sync.Mutex
		take := func(s *Store, n int) {
			for range n {
				pid, err := s.NextProducerID(ctxT(t))
				mu.Lock()
				if err != nil || pid < 0 || seen[pid] {
					t.Errorf("producer id %d given twice, or %v", pid, err)
				}
				seen[pid] = true
				mu.Unlock()
			}
		}
		s, s2 := w.open(), w.open(func(o *Options) { o.NodeID = 2 })
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { take(s, 600) })
			wg.Go(func() { take(s2, 600) })
		}
		wg.Wait()
		s2.Close()
		s = w.reopen(s)
		take(s, 10)
		// The hint is lost, or wrong in either direction.
		for _, hint := range []string{"", `{"format":1,"next":0}`, `{"format":1,"next":500}`, `{"format":1,"next":2}`, `{"format":1,"next":-1}`, `damaged`} {
			ops := []kv.Op{{Key: rowPID, Value: []byte(hint), Delete: hint == ""}}
			if _, err := w.kv.Commit(ctxT(t), ops, nil); err != nil {
				t.Fatal(err)
			}
			s.pid.next = s.pid.end
			take(s, 3)
		}
	})
}

// FuzzDecoders: whatever stands in an object or row, it is refused with one of
// two errors or makes sense.
func FuzzDecoders(f *testing.F) {
	id := ids.NewTopicID().String()
	f.Add("meta/topics/t/00000000000000000001", []byte(`{"format":1,"version":1,"op":"create","name":"t","id":"`+id+`","partitions":3}`))
	f.Add("meta/log-start/00000000000000000001", []byte(`{"format":1,"n":1,"starts":{"`+id+`":{"2":100}}}`))
	f.Add("seg/"+id+"/2/00000000000000000199/00000000000000000100-1-01ARZ3NDEKTSV4RRFFQ69G5FAV-0", []byte(`{"format":1,"size":1199}`))
	f.Add("meta/cluster", []byte(`{"format":1,"cluster_id":"x","store":"y"}`))
	f.Fuzz(func(t *testing.T, key string, body []byte) {
		check := func(what string, err error) {
			if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
				t.Errorf("%s: %v", what, err)
			}
		}
		r, err := decodeTopic(key, body)
		check("topic", err)
		if err == nil && (r.Partitions < 1 || r.Partitions > MaxPartitions || ValidateTopicName(r.Name) != nil) {
			t.Errorf("topic %+v", r)
		}
		_, _, err = parseTopicObject(key)
		check("topic key", err)
		starts, err := decodeLogStarts(key, body)
		check("log starts", err)
		for tp, start := range starts.starts {
			if tp.Partition < 0 || start < 0 {
				t.Errorf("log start %d of %s", start, tp)
			}
		}
		seg, err := parseSegmentRow(kv.Item{Key: key, Value: body})
		check("segment", err)
		if err == nil && seg.row(seg.TP) != key {
			t.Errorf("segment %+v from %s", seg, key)
		}
		_, err = decodeCluster(key, body)
		check("cluster", err)
	})
}
