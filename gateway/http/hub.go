package httpgate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	hubBytes  = 2 << 20 // of events that a hub keeps; the newest stays in any case
	hubPoll   = 5 * time.Second
	hubLinger = 10 * time.Second // a hub without clients stays, for those that come back
	hubBatch  = 64 << 10         // bytes of events that a client takes at once
)

// event is a record on its way to the clients of a topic.
type event struct {
	partition int32
	offset    int64
	id        []byte // of a stream of all partitions, behind this record
	body      []byte // "event: …\ndata: …\n\n"
}

// hub is the one reader of a topic's new records that all its tails share, with
// the last of them. Events are numbered by the order in which they came. A
// client that falls behind the buffer has to read from the brokers itself: the
// hub never waits for anyone.
type hub struct {
	hubs   *hubs
	topic  string
	detail kadm.TopicDetail // of the start
	cl     *kgo.Client
	ready  chan struct{} // closed when begun or failed
	ctx    context.Context
	cancel context.CancelCauseFunc
	refs   int // guarded by hubs.mu

	mu     sync.Mutex
	events []event
	first  int64           // number of events[0]
	size   int64           // bytes of events
	tail   map[int32]int64 // next offsets in front of events[0]
	head   map[int32]int64 // and behind the last event
	headID []byte          // id of head
	more   chan struct{}   // closed when an event comes
}

// hubs are the hubs of a gateway, by topic.
type hubs struct {
	s     *Server
	limit int
	wg    sync.WaitGroup
	mu    sync.Mutex
	by    map[string]*hub
}

// get returns the topic's hub, begun; give it back with put.
func (hs *hubs) get(ctx context.Context, topic string) (*hub, error) {
	hs.mu.Lock()
	h := hs.by[topic]
	if h == nil {
		if len(hs.by) >= hs.limit || hs.s.ctx.Err() != nil {
			hs.mu.Unlock()
			return nil, errBusy
		}
		h = &hub{hubs: hs, topic: topic, ready: make(chan struct{}), more: make(chan struct{})}
		h.ctx, h.cancel = context.WithCancelCause(hs.s.ctx)
		hs.by[topic] = h
		hs.wg.Go(h.run)
	}
	h.refs++
	hs.mu.Unlock()
	select {
	case <-h.ready:
	case <-ctx.Done():
		hs.put(h)
		return nil, ctx.Err()
	}
	if h.ctx.Err() != nil {
		hs.put(h)
		return nil, context.Cause(h.ctx)
	}
	return h, nil
}

func (hs *hubs) put(h *hub) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if h.refs--; h.refs == 0 {
		time.AfterFunc(hubLinger, func() {
			hs.mu.Lock()
			defer hs.mu.Unlock()
			if h.refs == 0 {
				hs.drop(h)
				h.cancel(nil)
			}
		})
	}
}

// wait returns when all hubs have ended, once the server's context has.
func (hs *hubs) wait() {
	hs.mu.Lock() // a get that saw the context alive has started its hub
	hs.limit = 0
	hs.mu.Unlock()
	hs.wg.Wait()
}

// drop forgets a hub; callers hold mu.
func (hs *hubs) drop(h *hub) {
	if hs.by[h.topic] == h {
		delete(hs.by, h.topic)
	}
}

// run reads the topic until the hub is not needed or something is wrong.
func (h *hub) run() {
	err := h.begin()
	if err != nil {
		h.cancel(err)
	}
	close(h.ready)
	if err == nil {
		h.cancel(h.read())
	}
	if h.cl != nil {
		h.cl.Close()
	}
	h.hubs.mu.Lock()
	defer h.hubs.mu.Unlock()
	h.hubs.drop(h)
}

// begin finds the ends of the partitions.
func (h *hub) begin() error {
	s := h.hubs.s
	ctx, cancel := context.WithTimeout(h.ctx, adminTime)
	defer cancel()
	sp, _, err := s.bounds(ctx, h.topic, "")
	if err != nil {
		return err
	}
	h.detail, h.tail, h.head = sp.detail, maps.Clone(sp.end), maps.Clone(sp.end)
	h.headID = appendStreamID(nil, h.topic, h.head)
	at := map[int32]kgo.Offset{}
	for p, o := range sp.end {
		at[p] = kgo.NewOffset().At(o)
	}
	h.cl, err = kgo.NewClient(append([]kgo.Opt{kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{h.topic: at}), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.KeepControlRecords(), kgo.FetchMaxBytes(fetchBytes), kgo.FetchMaxPartitionBytes(fetchBytes), kgo.MaxDecompressBatchBytes(maxExpansion)}, s.kafka...)...)
	if err != nil {
		return fmt.Errorf("make Kafka client: %w", err)
	}
	return nil
}

// read takes records until the hub ends; it returns why.
func (h *hub) read() error {
	for checked := time.Now(); ; {
		poll, cancel := context.WithTimeout(h.ctx, hubPoll)
		fetches := h.cl.PollRecords(poll, 1000)
		cancel()
		if h.ctx.Err() != nil {
			return context.Cause(h.ctx)
		}
		for _, e := range fetches.Errors() {
			if errors.Is(e.Err, context.DeadlineExceeded) || kerr.IsRetriable(e.Err) {
				continue // the client goes on by itself
			}
			return e.Err
		}
		h.add(fetches.Records())
		if time.Since(checked) > hubPoll {
			if err := h.check(); err != nil {
				return err
			}
			checked = time.Now()
		}
	}
}

// check ends the hub of a topic that is gone or another one, and takes up new
// partitions.
func (h *hub) check() error {
	ctx, cancel := context.WithTimeout(h.ctx, adminTime)
	defer cancel()
	t, err := h.hubs.s.topics.get(ctx, h.topic)
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return err
	}
	if err != nil {
		return nil // brokers are away: the client waits for them
	}
	if t.ID != h.detail.ID {
		return kerr.UnknownTopicID
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for p := range t.Partitions {
		if _, ok := h.head[p]; !ok {
			h.head[p], h.tail[p] = 0, 0
			h.cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{h.topic: {p: kgo.NewOffset().At(0)}})
		}
	}
	return nil
}

// add appends records, drops the oldest events and wakes the clients.
func (h *hub) add(recs []*kgo.Record) {
	if len(recs) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range recs {
		if r.Offset < h.head[r.Partition] {
			continue
		}
		h.head[r.Partition] = r.Offset + 1
		if r.Attrs.IsControl() {
			continue
		}
		e := event{partition: r.Partition, offset: r.Offset, body: appendEvent(nil, r)}
		h.headID = appendStreamID(make([]byte, 0, len(h.headID)+8), h.topic, h.head)
		e.id = h.headID
		h.events = append(h.events, e)
		h.size += e.bytes()
	}
	drop := 0
	for ; h.size > hubBytes && drop < len(h.events)-1; drop++ {
		e := &h.events[drop]
		h.tail[e.partition] = e.offset + 1
		h.size -= e.bytes()
		*e = event{}
	}
	h.events, h.first = h.events[drop:], h.first+int64(drop)
	close(h.more)
	h.more = make(chan struct{})
}

func (e *event) bytes() int64 { return int64(len(e.id)+len(e.body)) + 96 }

// appendEvent adds all of an event but its id.
func appendEvent(b []byte, r *kgo.Record) []byte {
	if r.Value == nil {
		b = append(b, "event: delete\ndata: "...)
	} else {
		b = append(b, "event: message\ndata: "...)
	}
	return append(appendRecord(b, r), "\n\n"...)
}

// join finds where a stream that is at next can go on from the buffer: from the
// event with number at, leaving out what is in front of next. If the stream
// lags behind the buffer, lag tells the partitions it has to read itself.
// atHead: there is nothing to leave out and nothing to read.
func (h *hub) join(next map[int32]int64) (at int64, atHead bool, lag []int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, atHead = h.first, true
	for p, from := range next {
		if from != h.head[p] {
			atHead = false
		}
		if from < h.tail[p] {
			lag = append(lag, p)
		}
	}
	if atHead {
		at += int64(len(h.events))
	}
	return at, atHead, lag
}

// synced tells whether a stream of all partitions that has read the events in
// front of at is where the hub is, and under which id.
func (h *hub) synced(at int64, next map[int32]int64) (id []byte, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if at != h.first+int64(len(h.events)) || !maps.Equal(next, h.head) {
		return nil, false
	}
	return h.headID, true
}

// take returns events from number at on, hubBatch bytes or one of them, or a
// channel that is closed when there are some. It tells false if they are gone.
func (h *hub) take(at int64) ([]event, <-chan struct{}, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if at < h.first {
		return nil, nil, false
	}
	rest := h.events[at-h.first:]
	n, size := 0, int64(0)
	for n < len(rest) && (n == 0 || size+rest[n].bytes() <= hubBatch) {
		size += rest[n].bytes()
		n++
	}
	if n == 0 {
		return nil, h.more, true
	}
	return append([]event(nil), rest[:n]...), nil, true
}
