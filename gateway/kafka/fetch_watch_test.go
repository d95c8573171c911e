package kafka

import (
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
)

// bigSession opens a session over n partitions that are empty.
func bigSession(h *harness, w *wire, a *broker.Topic, n int32) int32 {
	h.t.Helper()
	var parts []*fetchPart
	for p := range n {
		parts = append(parts, want(a, p, 0))
	}
	req := fetchReq(12, 0, parts...)
	req.SessionEpoch = 0
	resp := ask[*kmsg.FetchResponse](w, req)
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != int(n) {
		h.t.Fatalf("a full fetch of %d partitions: %s", n, summary(resp))
	}
	return resp.SessionID
}

// counts sums up how often the partitions were read, and their watchers.
func (h *harness) counts(a *broker.Topic, n int32) (reads int64, watchers int) {
	for p := range n {
		l := h.b.log(a.ID, p)
		reads += l.reads.Load()
		l.mu.Lock()
		watchers += len(l.watchers)
		l.mu.Unlock()
	}
	return reads, watchers
}

// An incremental fetch looks at the partitions that have changed, and at no
// others, however many the session has.
func TestFetchSessionCost(t *testing.T) {
	const n = 10_000
	h := serve(t, Limits{})
	a := h.b.topic("a", n)
	w := h.dial()
	id := bigSession(h, w, a, n)
	epoch := int32(0)
	step := func(what, want string, reads int64, wait time.Duration, parts ...*fetchPart) {
		t.Helper()
		epoch++
		before, _ := h.counts(a, n)
		req := fetchReq(12, wait, parts...)
		req.SessionID, req.SessionEpoch = id, epoch
		resp := ask[*kmsg.FetchResponse](w, req)
		after, _ := h.counts(a, n)
		if got := summary(resp); got != want || resp.ErrorCode != 0 {
			t.Errorf("%s: code %d, %q, want %q", what, resp.ErrorCode, got, want)
		}
		if after-before != reads {
			t.Errorf("%s: %d reads, want %d", what, after-before, reads)
		}
	}
	step("idle", "", 0, 0)
	step("idle, waiting", "", 0, 20*time.Millisecond)
	h.b.log(a.ID, 7777).append(1, 10)
	step("a record", "a-7777:78", 1, 0)
	step("the client did not move on", "a-7777:78", 1, 0)
	step("now it did", "", 1, 0, want(a, 7777, 1))
	step("idle again", "", 0, 0)
	go func() {
		time.Sleep(50 * time.Millisecond)
		h.b.log(a.ID, 42).append(1, 10)
	}()
	step("a record while it waits", "a-42:78", 1, time.Minute)
}

// Whatever ends a session, or takes a partition out of it, ends its watches.
func TestFetchSessionWatches(t *testing.T) {
	h := serve(t, Limits{MaxSessions: 2})
	a := h.b.topic("a", 10)
	w := h.dial()
	see := func(when string, want int) {
		t.Helper()
		if _, got := h.counts(a, 10); got != want {
			t.Errorf("%s: %d watchers, want %d", when, got, want)
		}
	}
	fetch := func(id, epoch int32, forget []*fetchPart, parts ...*fetchPart) int32 {
		t.Helper()
		resp := w.session(11, id, epoch, forget, parts...)
		if resp.ErrorCode != 0 {
			t.Fatalf("fetch %d/%d: code %d", id, epoch, resp.ErrorCode)
		}
		return resp.SessionID
	}
	one := bigSession(h, w, a, 10)
	see("begun", 10)
	fetch(one, 1, []*fetchPart{want(a, 0, 0), want(a, 1, 0)})
	see("two forgotten", 8)
	fetch(one, 2, nil, want(a, 0, 0), want(a, 5, 0))
	see("one is back, one changed", 9)
	two := fetch(one, 0, nil, want(a, 3, 0))
	see("replaced", 1)
	fetch(two, -1, nil, want(a, 3, 0))
	see("ended", 0)
	bigSession(h, w, a, 10)
	h.s.sessions.close()
	see("all dropped", 0)
}

// Records that come while requests of a session come and go are all told.
func TestFetchSessionMissesNothing(t *testing.T) {
	const partitions, each = 50, 40
	h := serve(t, Limits{})
	a := h.b.topic("a", partitions)
	w := h.dial()
	id := bigSession(h, w, a, partitions)
	var wg sync.WaitGroup
	for from := range int32(4) {
		wg.Go(func() {
			for range each {
				for p := from; p < partitions; p += 4 {
					h.b.log(a.ID, p).append(1, 10)
				}
			}
		})
	}
	defer wg.Wait()
	at := map[int32]int64{}
	var moved []*fetchPart
	for epoch, left := int32(1), partitions*each; left > 0; epoch++ {
		req := fetchReq(12, time.Minute, moved...)
		req.SessionID, req.SessionEpoch = id, epoch
		resp := ask[*kmsg.FetchResponse](w, req)
		moved = nil
		for _, topic := range resp.Topics {
			for _, p := range topic.Partitions {
				if n := p.HighWatermark - at[p.Partition]; len(p.RecordBatches) > 0 {
					at[p.Partition], left = p.HighWatermark, left-int(n)
					moved = append(moved, want(a, p.Partition, p.HighWatermark))
				}
			}
		}
		if len(moved) == 0 {
			t.Fatalf("nothing in a minute, %d records are left", left)
		}
	}
}
