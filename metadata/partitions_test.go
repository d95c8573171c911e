package metadata

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

func segment(tp ids.TopicPartition, base, last int64, epoch int32) SegmentRow {
	return SegmentRow{
		TP: tp, SegmentID: SegmentID{Base: base, Last: last, Epoch: epoch, Incarnation: "01ARZ3NDEKTSV4RRFFQ69G5FAV"},
		Size: 1000 + last, LogSize: 900, Records: last - base + 1, MinTimestamp: -1, MaxTimestamp: 5, LastStable: last + 1, Uploaded: 77,
	}
}

func TestSegments(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := w.open()
		ctx := ctxT(t)
		topic := create(t, s, "t", 12)
		tp := ids.TopicPartition{Topic: topic.ID, Partition: 1}
		neighbour := ids.TopicPartition{Topic: topic.ID, Partition: 11}
		if _, ok, err := s.LastSegment(ctx, tp); ok || err != nil {
			t.Fatalf("last segment of none: %v, %v", ok, err)
		}
		var all []SegmentRow
		for i := range int64(30) {
			r := segment(tp, i*10, i*10+9, 1)
			all = append(all, r)
			mustNil(t, s.AddSegment(ctx, r))
			mustNil(t, s.AddSegment(ctx, segment(neighbour, i*10, i*10+9, 1)))
		}
		check := func(from int64, limit int, want []SegmentRow) {
			t.Helper()
			got, err := s.Segments(ctx, tp, from, limit)
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("segments from %d, at most %d: %v, %v", from, limit, got, err)
			}
		}
		check(0, 100, all)
		check(9, 100, all)
		check(10, 100, all[1:])
		check(155, 3, all[15:18])
		check(299, 3, all[29:])
		check(300, 3, nil)
		last, ok, err := s.LastSegment(ctx, tp)
		if err != nil || !ok || last != all[29] {
			t.Fatalf("last segment %+v, %v", last, err)
		}
		absent := all[0].SegmentID
		absent.Generation = 999
		mustNil(t, s.DropSegments(ctx, tp, []SegmentID{all[0].SegmentID, all[1].SegmentID, absent}))
		check(0, 100, all[2:])
		s = w.reopen(s)
		check(0, 100, all[2:])
		n := 0
		mustNil(t, s.ScanSegments(ctx, ids.TopicID{}, func(SegmentRow) error { n++; return nil }))
		stop := errors.New("stop")
		wantErr(t, "scan", s.ScanSegments(ctx, topic.ID, func(SegmentRow) error { return stop }), stop)
		if n != 58 {
			t.Fatalf("scan found %d rows", n)
		}
	})
}

func TestSegmentsBeyondOneRange(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	ctx := ctxT(t)
	topic := create(t, s, "t", 1)
	tp := ids.TopicPartition{Topic: topic.ID}
	var drop []SegmentID
	for i := range int64(2500) {
		r := segment(tp, i, i, 1)
		mustNil(t, s.AddSegment(ctx, r))
		drop = append(drop, r.SegmentID)
	}
	got, err := s.Segments(ctx, tp, 1, 2400)
	if err != nil || len(got) != 2400 || got[0].Base != 1 || got[2399].Base != 2400 {
		t.Fatalf("%d segments, %v", len(got), err)
	}
	mustNil(t, s.DropSegments(ctx, tp, drop[:2499]))
	if got, err := s.Segments(ctx, tp, 0, 10); err != nil || len(got) != 1 {
		t.Fatalf("%d segments are left, %v", len(got), err)
	}
}

func TestSegmentsFenced(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s, other := w.open(), w.open(func(o *Options) { o.NodeID = 2 })
		ctx := ctxT(t)
		tp := ids.TopicPartition{Topic: create(t, s, "t", 1).ID}
		mustNil(t, s.AddSegment(ctx, segment(tp, 0, 9, 3)))
		mustNil(t, s.AddSegment(ctx, segment(tp, 0, 9, 3))) // again: no error
		changed := segment(tp, 0, 9, 3)
		changed.Size++
		wantErr(t, "another segment of the same name", s.AddSegment(ctx, changed), ErrInvalidRequest)
		mustNil(t, other.RaiseEpoch(ctx, tp, 5))
		wantErr(t, "a deposed leader's segment", s.AddSegment(ctx, segment(tp, 10, 19, 3)), ErrFenced)
		wantErr(t, "a deposed leader's log start", s.SetLogStart(ctx, tp, 3, 5), ErrFenced)
		wantErr(t, "a deposed leader's return", s.RaiseEpoch(ctx, tp, 4), ErrFenced)
		mustNil(t, s.AddSegment(ctx, segment(tp, 10, 19, 6)))
		wantErr(t, "epoch 5 after a segment of epoch 6", other.AddSegment(ctx, segment(tp, 20, 29, 5)), ErrFenced)
		if got, err := s.Segments(ctx, tp, 0, 10); err != nil || len(got) != 2 || s.LeaderEpoch(tp) != 6 {
			t.Fatalf("%v, %v, epoch %d", got, err, s.LeaderEpoch(tp))
		}
		wantErr(t, "offsets", s.AddSegment(ctx, segment(tp, 10, 9, 6)), ErrInvalidRequest)
		wantErr(t, "incarnation", s.DropSegments(ctx, tp, []SegmentID{{Incarnation: "a/b"}}), ErrInvalidRequest)
	})
}

func TestParseSegmentRow(t *testing.T) {
	r := segment(ids.TopicPartition{Topic: ids.NewTopicID(), Partition: 7}, 10, 19, 3)
	v := []byte(`{"format":1,"size":1}`)
	good := r.row(r.TP)
	if got, err := parseSegmentRow(kv.Item{Key: good, Value: v}); err != nil || got.SegmentID != r.SegmentID || got.TP != r.TP {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, bad := range []string{
		"", "seg/", good + "/x", good[1:], strings.Replace(good, "-3-", "-03-", 1), strings.Replace(good, "/7/", "/07/", 1),
		strings.Replace(good, "19/", "09/", 1), strings.Replace(good, "01ARZ", "01arz", 1), good + "0-1",
	} {
		if got, err := parseSegmentRow(kv.Item{Key: bad, Value: v}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %+v, %v", bad, got, err)
		}
	}
	if _, err := parseSegmentRow(kv.Item{Key: good, Value: []byte(`{"format":9}`)}); !errors.Is(err, ErrVersion) {
		t.Error(err)
	}
}

func TestLogStarts(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := w.open()
		ctx := ctxT(t)
		topic, gone := create(t, s, "t", 3), create(t, s, "gone", 1)
		tp := ids.TopicPartition{Topic: topic.ID, Partition: 2}
		tpGone := ids.TopicPartition{Topic: gone.ID}
		durable := func() map[ids.TopicPartition]int64 {
			t.Helper()
			got, err := s.ReadLogStarts(ctx)
			mustNil(t, err)
			return got
		}
		mustNil(t, s.PublishLogStarts(ctx)) // nothing to say: no object
		if len(durable()) != 0 || len(w.bucket.keys(startsPrefix)) != 0 {
			t.Fatalf("objects %v", w.bucket.keys(startsPrefix))
		}
		mustNil(t, s.SetLogStart(ctx, tp, 1, 50))
		if s.LogStart(tp) != 50 {
			t.Fatalf("log start %d right after it was set", s.LogStart(tp))
		}
		mustNil(t, s.SetLogStart(ctx, tp, 1, 40)) // lower: nothing
		mustNil(t, s.SetLogStart(ctx, tpGone, 1, 7))
		if s.LogStart(tp) != 50 || len(durable()) != 0 {
			t.Fatalf("log start %d, durable %v", s.LogStart(tp), durable())
		}
		mustNil(t, s.PublishLogStarts(ctx))
		mustNil(t, s.PublishLogStarts(ctx)) // nothing new: no second object
		if got := durable(); got[tp] != 50 || got[tpGone] != 7 || len(w.bucket.keys(startsPrefix)) != 1 {
			t.Fatalf("durable %v in %v", got, w.bucket.keys(startsPrefix))
		}
		mustNil(t, s.DeleteTopic(ctx, gone.ID))
		for i := range int64(10) {
			mustNil(t, s.SetLogStart(ctx, tp, 1, 60+i))
			mustNil(t, s.PublishLogStarts(ctx))
			if got := durable(); got[tp] != 60+i || len(got) != 1 {
				t.Fatalf("durable %v", got)
			}
		}
		if got := w.bucket.keys(startsPrefix); len(got) != keptStarts {
			t.Fatalf("objects %v", got)
		}
		s = w.reopen(s)
		if s.LogStart(tp) != 69 {
			t.Fatalf("log start %d after restart", s.LogStart(tp))
		}
		// The rows are lost: the bucket's log start holds, and never goes back.
		_, err := w.kv.Commit(ctx, []kv.Op{{Key: partRow(tp), Delete: true}}, nil)
		mustNil(t, err)
		s = w.reopen(s)
		other := ids.TopicPartition{Topic: topic.ID}
		mustNil(t, s.SetLogStart(ctx, other, 1, 3))
		mustNil(t, s.PublishLogStarts(ctx))
		if got := durable(); s.LogStart(tp) != 69 || got[tp] != 69 || got[other] != 3 {
			t.Fatalf("log start %d, durable %v", s.LogStart(tp), got)
		}
	})
}

// TestLogStartsOfUnknownTopics: an agent that does not know a topic yet does not
// drop another agent's log start of it.
func TestLogStartsOfUnknownTopics(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	ctx := ctxT(t)
	tp := ids.TopicPartition{Topic: create(t, s, "t", 1).ID}
	unknown := ids.TopicPartition{Topic: ids.NewTopicID()}
	body, err := s.encodeLogStarts(logStarts{}, map[ids.TopicPartition]int64{unknown: 9})
	mustNil(t, err)
	w.bucket.replace(t, numbered(startsPrefix, 1), string(body))
	mustNil(t, s.SetLogStart(ctx, tp, 1, 5))
	mustNil(t, s.PublishLogStarts(ctx))
	if got, err := s.ReadLogStarts(ctx); err != nil || got[unknown] != 9 || got[tp] != 5 {
		t.Fatalf("durable %v, %v", got, err)
	}
}

// TestConcurrentLogStarts: agents publish at the same time; after each success
// what the agent had set is durable, and no log start ever goes back.
func TestConcurrentLogStarts(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	topic := create(t, s, "t", 4)
	var wg sync.WaitGroup
	for a := range 4 {
		agent := w.open(func(o *Options) { o.NodeID = int32(a + 1) })
		tp := ids.TopicPartition{Topic: topic.ID, Partition: int32(a)}
		wg.Go(func() {
			ctx := ctxT(t)
			seen := map[ids.TopicPartition]int64{}
			for i := range int64(25) {
				if err := errors.Join(agent.SetLogStart(ctx, tp, 1, i+1), agent.PublishLogStarts(ctx)); err != nil {
					t.Errorf("publish: %v", err)
					return
				}
				got, err := agent.ReadLogStarts(ctx)
				if err != nil || got[tp] != i+1 {
					t.Errorf("published %d, durable is %d, %v", i+1, got[tp], err)
				}
				if !covers(got, seen) {
					t.Errorf("log starts went back from %v to %v", seen, got)
				}
				seen = got
			}
		})
	}
	wg.Wait()
}

// TestSlowLogStartWriter: a writer whose put arrives after its number was
// replaced and deleted creates an object that nobody reads; it must not take
// that for success.
func TestSlowLogStartWriter(t *testing.T) {
	w := newWorld(t)
	slow, fast := w.open(), w.open(func(o *Options) { o.NodeID = 2 })
	ctx := ctxT(t)
	topic := create(t, fast, "t", 2)
	mine, theirs := ids.TopicPartition{Topic: topic.ID}, ids.TopicPartition{Topic: topic.ID, Partition: 1}
	mustNil(t, slow.SetLogStart(ctx, mine, 1, 5))
	// While slow's put of number 1 is on its way, fast publishes and cleans up.
	var once sync.Once
	w.bucket.faults(func(op, key string) error {
		if op == "put" && key == numbered(startsPrefix, 1) {
			once.Do(func() {
				w.bucket.faults(nil, nil)
				for i := range int64(6) {
					// Its rows do not show slow's log start: it is an agent that lags.
					body, err := fast.encodeLogStarts(logStarts{n: i}, map[ids.TopicPartition]int64{theirs: i + 1})
					mustNil(t, err)
					_, _, err = fast.create(ctx, numbered(startsPrefix, i+1), body)
					mustNil(t, err)
					fast.dropOldLogStarts(ctx, i+1)
				}
			})
		}
		return nil
	}, nil)
	mustNil(t, slow.PublishLogStarts(ctx))
	got, err := slow.ReadLogStarts(ctx)
	if err != nil || got[mine] != 5 || got[theirs] != 6 {
		t.Fatalf("a publish that succeeded is not durable: %v, %v", got, err)
	}
}

func TestForgetTopic(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	ctx := ctxT(t)
	topic, kept := create(t, s, "t", 2), create(t, s, "kept", 1)
	for i := range int64(150) {
		mustNil(t, s.AddSegment(ctx, segment(ids.TopicPartition{Topic: topic.ID, Partition: int32(i % 2)}, i, i, 1)))
	}
	mustNil(t, s.AddSegment(ctx, segment(ids.TopicPartition{Topic: kept.ID}, 0, 0, 1)))
	wantErr(t, "forget a live topic", s.ForgetTopic(ctx, topic.ID), ErrInvalidRequest)
	mustNil(t, s.DeleteTopic(ctx, topic.ID))
	mustNil(t, s.ForgetTopic(ctx, topic.ID))
	for _, prefix := range []string{segPrefix, partPrefix} {
		items, err := w.kv.Range(ctx, prefix, "", 100, false)
		if err != nil || len(items) != 1 || !strings.Contains(items[0].Key, kept.ID.String()) {
			t.Fatalf("rows under %s: %v, %v", prefix, fmt.Sprint(items), err)
		}
	}
	if got, err := s.DeletedTopics(ctx); err != nil || len(got) != 1 || got[0].ID != topic.ID {
		t.Fatalf("the proof of the deletion is gone: %v, %v", got, err)
	}
}
