package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/batch"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
)

func (l *memLog) append(n, size int) {
	l.Produce(context.Background(), batchOf(n, size), nil, func(broker.Produced) {})
}

// summary is a Fetch response in short: topic-partition:bytes or error.
func summary(r *kmsg.FetchResponse) string {
	var out []string
	for _, t := range r.Topics {
		for _, p := range t.Partitions {
			s := fmt.Sprint(len(p.RecordBatches))
			if p.ErrorCode != 0 {
				s = kerr.ErrorForCode(p.ErrorCode).(*kerr.Error).Message
			}
			out = append(out, fmt.Sprintf("%s-%d:%s", t.Topic, p.Partition, s))
		}
	}
	return strings.Join(out, " ")
}

// A long poll ends with the first record, not at its deadline, and reads the
// partition a few times, not all the time.
func TestLongPoll(t *testing.T) {
	h := serve(t, Limits{})
	a, b := h.b.topic("a", 1), h.b.topic("b", 1)
	l := h.b.log(b.ID, 0)
	w := h.dial()
	go func() {
		time.Sleep(300 * time.Millisecond)
		l.append(1, 10)
	}()
	began := time.Now()
	resp := ask[*kmsg.FetchResponse](w, fetchReq(11, 10*time.Second, want(a, 0, 0), want(b, 0, 0)))
	if took := time.Since(began); took < 250*time.Millisecond || took > 2*time.Second {
		t.Errorf("long poll took %v", took)
	}
	if got := summary(resp); got != "a-0:0 b-0:78" {
		t.Errorf("got %s", got)
	}
	if n := l.reads.Load(); n > 4 {
		t.Errorf("partition was read %d times in one long poll", n)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.watchers) != 0 {
		t.Errorf("%d watchers are left", len(l.watchers))
	}
}

func TestFetchWaits(t *testing.T) {
	h := serve(t, Limits{})
	a := h.b.topic("a", 1)
	l := h.b.log(a.ID, 0)
	w := h.dial()
	took := func(req *kmsg.FetchRequest) (time.Duration, string) {
		began := time.Now()
		resp := ask[*kmsg.FetchResponse](w, req)
		return time.Since(began), summary(resp)
	}
	if d, got := took(fetchReq(11, 300*time.Millisecond, want(a, 0, 0))); d < 300*time.Millisecond || d > time.Second || got != "a-0:0" {
		t.Errorf("empty partition: %v, %s", d, got)
	}
	if d, _ := took(fetchReq(11, 0, want(a, 0, 0))); d > 200*time.Millisecond {
		t.Errorf("max wait 0 took %v", d)
	}
	req := fetchReq(11, 5*time.Second, want(a, 0, 0))
	req.MinBytes = 0
	if d, _ := took(req); d > 200*time.Millisecond {
		t.Errorf("min bytes 0 took %v", d)
	}
	if d, got := took(fetchReq(11, 5*time.Second, want(a, 0, 5))); d > 200*time.Millisecond || got != "a-0:OFFSET_OUT_OF_RANGE" {
		t.Errorf("an error took %v: %s", d, got)
	}
	l.append(1, 10)
	req = fetchReq(11, 300*time.Millisecond, want(a, 0, 0))
	req.MinBytes = 1000
	if d, got := took(req); d < 300*time.Millisecond || got != "a-0:78" {
		t.Errorf("less than min bytes: %v, %s", d, got)
	}
	go func() {
		for range 20 {
			time.Sleep(10 * time.Millisecond)
			l.append(1, 100)
		}
	}()
	req.MaxWaitMillis = 10_000
	if d, got := took(req); d > 2*time.Second || got == "a-0:78" {
		t.Errorf("min bytes reached: %v, %s", d, got)
	}
}

// One byte budget for all partitions; the first with data gives a batch however
// small it is.
func TestFetchBudget(t *testing.T) {
	h := serve(t, Limits{})
	a := h.b.topic("a", 4)
	for p := range int32(3) {
		l := h.b.log(a.ID, p+1) // partition 0 is empty
		for range 4 {
			l.append(1, 1000)
		}
	}
	one := len(batchOf(1, 1000))
	w := h.dial()
	for _, c := range []struct {
		max, partition int
		want           string
	}{
		{0, 1 << 20, fmt.Sprintf("a-0:0 a-1:%d a-2:0 a-3:0", one)},
		{100, 1 << 20, fmt.Sprintf("a-0:0 a-1:%d a-2:0 a-3:0", one)},
		{5 * one, 1 << 20, fmt.Sprintf("a-0:0 a-1:%d a-2:%d a-3:0", 4*one, one)},
		{50 << 20, 2*one + 5, fmt.Sprintf("a-0:0 a-1:%d a-2:%d a-3:%d", 2*one, 2*one, 2*one)},
		{50 << 20, 10, fmt.Sprintf("a-0:0 a-1:%d a-2:0 a-3:0", one)},
		{50 << 20, 1 << 20, fmt.Sprintf("a-0:0 a-1:%d a-2:%d a-3:%d", 4*one, 4*one, 4*one)},
	} {
		req := fetchReq(4, time.Second)
		req.MaxBytes = int32(c.max)
		rt := kmsg.NewFetchRequestTopic()
		rt.Topic = a.Name
		for p := range int32(4) {
			rp := kmsg.NewFetchRequestTopicPartition()
			rp.Partition, rp.PartitionMaxBytes = p, int32(c.partition)
			rt.Partitions = append(rt.Partitions, rp)
		}
		req.Topics = append(req.Topics, rt)
		if got := summary(ask[*kmsg.FetchResponse](w, req)); got != c.want {
			t.Errorf("max bytes %d and %d: %s, want %s", c.max, c.partition, got, c.want)
		}
	}
}

// Tiered partitions are read at the same time, and one does not hold up what
// is there already.
func TestFetchCold(t *testing.T) {
	h := serve(t, Limits{})
	a := h.b.topic("a", 4)
	var parts []*fetchPart
	for p := range int32(4) {
		l := h.b.log(a.ID, p)
		l.append(1, 10)
		l.cold.Store(int64(200 * time.Millisecond))
		parts = append(parts, want(a, p, 0))
	}
	w := h.dial()
	for _, wait := range []time.Duration{0, 10 * time.Second} { // a client that does not wait gets them too
		began := time.Now()
		got := summary(ask[*kmsg.FetchResponse](w, fetchReq(11, wait, parts...)))
		if took := time.Since(began); took > 600*time.Millisecond || got != "a-0:78 a-1:78 a-2:78 a-3:78" {
			t.Errorf("max wait %v: %v, %s", wait, took, got)
		}
	}
	h.b.log(a.ID, 1).cold.Store(0)
	h.b.log(a.ID, 0).cold.Store(int64(10 * time.Second))
	began := time.Now()
	got := summary(ask[*kmsg.FetchResponse](w, fetchReq(11, 5*time.Second, parts[0], parts[1])))
	if took := time.Since(began); took > 400*time.Millisecond || got != "a-0:0 a-1:78" {
		t.Errorf("one hot, one cold: %v, %s", took, got)
	}
	began = time.Now()
	if got := summary(ask[*kmsg.FetchResponse](w, fetchReq(11, 700*time.Millisecond, parts[0]))); got != "a-0:0" || time.Since(began) > 2*time.Second {
		t.Errorf("a cold read that does not come: %v, %s", time.Since(began), got)
	}
}

func TestFetchErrors(t *testing.T) {
	h := serve(t, Limits{})
	a := h.b.topic("a", 1)
	h.b.log(a.ID, 0).append(1, 10)
	missing := &broker.Topic{Name: "missing", ID: [16]byte{1}}
	w := h.dial()
	fenced, diverged := want(a, 0, 0), want(a, 0, 1)
	fenced.epoch, diverged.lastEpoch = 4, 2
	for v := int16(4); v <= 18; v++ {
		unknown := kerr.UnknownTopicOrPartition
		if v >= 13 {
			unknown = kerr.UnknownTopicID
		}
		resp := ask[*kmsg.FetchResponse](w, fetchReq(v, 5*time.Second, want(missing, 0, 0), want(a, 7, 0), want(a, 0, 0)))
		var codes []int16
		for _, rt := range resp.Topics {
			for _, p := range rt.Partitions {
				codes = append(codes, p.ErrorCode)
			}
		}
		if fmt.Sprint(codes) != fmt.Sprint([]int16{unknown.Code, 3, 0}) {
			t.Errorf("v%d: codes %v", v, codes)
		}
		if v >= 9 {
			p := ask[*kmsg.FetchResponse](w, fetchReq(v, 5*time.Second, fenced)).Topics[0].Partitions[0]
			wantCode(t, fmt.Sprintf("v%d, old epoch", v), p.ErrorCode, kerr.FencedLeaderEpoch)
		}
		if v >= 12 {
			p := ask[*kmsg.FetchResponse](w, fetchReq(v, 5*time.Second, diverged)).Topics[0].Partitions[0]
			if p.DivergingEpoch.Epoch != 3 || p.DivergingEpoch.EndOffset != 1 {
				t.Errorf("v%d: diverging epoch %+v", v, p.DivergingEpoch)
			}
		}
	}
}

// What can't be read is a storage error, which versions up to 5 do not know (KIP-112).
func TestFetchStorageError(t *testing.T) {
	h := serve(t, Limits{})
	a := h.b.topic("a", 1)
	l := h.b.log(a.ID, 0)
	w := h.dial()
	// Whatever it wraps: Java's consumer ends with an exception at codes that Kafka never gives to a Fetch.
	for _, why := range []error{errors.New("disk"), batch.ErrCorrupt, batch.ErrMagic, batch.ErrInvalid, context.DeadlineExceeded, metadata.ErrUnavailable} {
		l.mu.Lock()
		l.err = fmt.Errorf("%w: %w", broker.ErrStorage, why)
		l.mu.Unlock()
		for v := int16(4); v <= 18; v++ {
			code := kerr.KafkaStorageError
			if v <= 5 {
				code = kerr.NotLeaderForPartition
			}
			p := ask[*kmsg.FetchResponse](w, fetchReq(v, time.Second, want(a, 0, 0))).Topics[0].Partitions[0]
			wantCode(t, fmt.Sprintf("%v, v%d", why, v), p.ErrorCode, code)
		}
	}
}

// session sends a request of a session.
func (w *wire) session(version int16, id, epoch int32, forget []*fetchPart, parts ...*fetchPart) *kmsg.FetchResponse {
	w.t.Helper()
	req := fetchReq(version, 0, parts...)
	req.SessionID, req.SessionEpoch = id, epoch
	for _, p := range forget {
		ft := kmsg.NewFetchRequestForgottenTopic()
		ft.Topic, ft.TopicID, ft.Partitions = p.name, p.id, []int32{p.partition}
		req.ForgottenTopics = append(req.ForgottenTopics, ft)
	}
	return ask[*kmsg.FetchResponse](w, req)
}

func TestFetchSession(t *testing.T) {
	h := serve(t, Limits{})
	a := h.b.topic("a", 3)
	w := h.dial()
	first := w.session(11, 0, 0, nil, want(a, 0, 0), want(a, 1, 0))
	id := first.SessionID
	if id <= 0 || summary(first) != "a-0:0 a-1:0" {
		t.Fatalf("full request: session %d, %s", id, summary(first))
	}
	step := func(epoch int32, want string, forget []*fetchPart, parts ...*fetchPart) {
		t.Helper()
		resp := w.session(11, id, epoch, forget, parts...)
		if got := summary(resp); got != want || resp.SessionID != id || resp.ErrorCode != 0 {
			t.Errorf("epoch %d: session %d, code %d, %q, want %q", epoch, resp.SessionID, resp.ErrorCode, got, want)
		}
	}
	step(1, "", nil) // nothing new
	h.b.log(a.ID, 1).append(1, 10)
	step(2, "a-1:78", nil)
	step(3, "a-1:78", nil)                                  // the client did not move on
	step(4, "", nil, want(a, 1, 1))                         // now it did
	step(5, "a-2:0", nil, want(a, 2, 0))                    // a partition more is always told
	step(6, "", []*fetchPart{want(a, 0, 0), want(a, 2, 0)}) // forgotten
	h.b.log(a.ID, 0).append(1, 10)                          // not in the session any more
	step(7, "", nil)                                        // so not told
	step(8, "a-1:OFFSET_OUT_OF_RANGE", nil, want(a, 1, 99)) // errors are told
	step(9, "a-1:OFFSET_OUT_OF_RANGE", nil)                 // each time
	step(10, "a-1:0", nil, want(a, 1, 1))                   // and that they are over
	step(11, "", nil)                                       // once
	if resp := w.session(11, id, 5, nil); resp.ErrorCode != kerr.InvalidFetchSessionEpoch.Code || resp.SessionID != 0 {
		t.Errorf("wrong epoch: %+v", resp)
	}
	step(12, "", nil) // which did no harm
	if resp := w.session(11, id+1, 1, nil); resp.ErrorCode != kerr.FetchSessionIDNotFound.Code {
		t.Errorf("unknown session: %+v", resp)
	}
	if resp := w.session(13, id, 13, nil); resp.ErrorCode != kerr.FetchSessionTopicIDError.Code {
		t.Errorf("by id in a session by name: %+v", resp)
	}
	if resp := w.session(11, id, -1, nil, want(a, 0, 0)); resp.SessionID != 0 || summary(resp) != "a-0:78" {
		t.Errorf("closing the session: %+v", resp)
	}
	if resp := w.session(11, id, 13, nil); resp.ErrorCode != kerr.FetchSessionIDNotFound.Code {
		t.Errorf("closed session: %+v", resp)
	}
}

// A full request with the id of a session takes its place.
func TestFetchSessionReplaced(t *testing.T) {
	h := serve(t, Limits{MaxSessions: 2})
	a := h.b.topic("a", 1)
	w := h.dial()
	id := w.session(15, 0, 0, nil, want(a, 0, 0)).SessionID
	for range 10 {
		next := w.session(15, id, 0, nil, want(a, 0, 0)).SessionID
		if next == 0 || next == id {
			t.Fatalf("session %d after %d", next, id)
		}
		id = next
	}
	if resp := w.session(15, id, 1, nil); resp.ErrorCode != 0 {
		t.Errorf("%+v", resp)
	}
}

// In a session, partitions take turns at a budget that is too small for all.
func TestFetchSessionFairness(t *testing.T) {
	h := serve(t, Limits{})
	a := h.b.topic("a", 4)
	var parts []*fetchPart
	for p := range int32(4) {
		for range 20 {
			h.b.log(a.ID, p).append(1, 1000)
		}
		parts = append(parts, want(a, p, 0))
	}
	w := h.dial()
	got := map[int32]int{}
	var id, epoch int32
	for i := range 8 {
		req := fetchReq(11, 0)
		if i == 0 {
			req = fetchReq(11, 0, parts...)
		}
		req.SessionID, req.SessionEpoch, req.MaxBytes = id, epoch, 1500
		resp := ask[*kmsg.FetchResponse](w, req)
		id, epoch = resp.SessionID, epoch+1
		for _, p := range resp.Topics {
			for _, p := range p.Partitions {
				if len(p.RecordBatches) > 0 {
					got[p.Partition]++
				}
			}
		}
	}
	if fmt.Sprint(got) != "map[0:2 1:2 2:2 3:2]" {
		t.Errorf("partitions were served %v times", got)
	}
}

func TestFetchSessionCache(t *testing.T) {
	topic := &broker.Topic{Name: "a"}
	parts := func(n int32) (out []*fetchPart) {
		for p := range n {
			out = append(out, want(topic, p, 0))
		}
		return out
	}
	now := time.Now()
	c := newSessionCache(2, 100)
	one, two := c.create(parts(10), false, now), c.create(parts(10), false, now)
	if one == nil || two == nil || c.create(parts(1), false, now.Add(minEvict-1)) != nil {
		t.Fatal("a third session in a cache of two, while both are young")
	}
	three := c.create(parts(1), false, now.Add(minEvict))
	if three == nil || c.get(one.id) != nil || c.get(two.id) == nil || c.rows != 11 {
		t.Fatalf("an old session did not give way: %d rows", c.rows)
	}
	later := now.Add(2 * minEvict)
	if c.create(parts(101), false, later) != nil {
		t.Fatal("a session larger than the cache")
	}
	c = newSessionCache(10, 100)
	s := c.create(parts(60), false, now)
	if c.create(parts(41), false, now) != nil {
		t.Error("more partitions than the cache may have")
	}
	req := fetchReq(11, 0, parts(101)...)
	req.SessionID, req.SessionEpoch = s.id, 1
	if _, err := c.open(req); err != kerr.FetchSessionIDNotFound || c.rows != 0 || len(c.byID) != 0 {
		t.Errorf("a session that grew too large: %v, %d rows", err, c.rows)
	}
}
