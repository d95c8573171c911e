package httpgate

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	mediaSSE     = "text/event-stream"
	tailRetry    = "retry: 3000\n" // ms until a browser comes back
	tailBuffer   = 32 << 10        // bytes written at once
	catchUpTurn  = 10 * time.Second
	catchUpPause = 200 * time.Millisecond // after an error of the brokers
)

// buffers are for what a tail writes; an idle one has none.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() *[]byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, 0, tailBuffer+4<<10)
	return &p
}

func (b *buffers) put(p *[]byte) {
	if cap(*p) <= 4*tailBuffer {
		*p = (*p)[:0]
		b.pool.Put(p)
	}
}

// tail is a stream of server-sent events (WHATWG HTML, 9.2) of one topic. It
// reads from the topic's hub; while it is behind the hub's buffer, from the
// brokers.
type tail struct {
	s    *Server
	h    *hub
	ctx  context.Context
	out  *stallWriter
	buf  *[]byte         // while there is something to write
	all  bool            // all partitions, those that come later too
	next map[int32]int64 // where the stream is; nil: it is as far as the hub was at lastID
	// lastID is the id under which the stream has come to where the hub is.
	lastID []byte
	at     int64 // number of the hub's event that follows
}

// tail streams a topic's records from where the request says, without end.
func (s *Server) tail(w http.ResponseWriter, r *http.Request) error {
	if s.whole {
		return fail(501, "There are no streams here: answers are sent as a whole. Read with cursors.")
	}
	if !s.tails.take() {
		return errBusy
	}
	defer s.tails.release()
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fail(400, "The query can't be decoded.")
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	sp, gaps, err := s.startTail(ctx, r.PathValue("topic"), q, r.Header.Get("Last-Event-ID"))
	if err != nil {
		return err
	}
	h, err := s.hubs.get(ctx, sp.topic)
	if err != nil {
		return err
	}
	defer s.hubs.put(h)
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{})
	t := &tail{s: s, h: h, ctx: ctx, out: &stallWriter{w: w, rc: rc, stall: s.limits.StallTime}, all: !q.Has("partition"), next: sp.next}
	header := w.Header()
	header.Set("Content-Type", mediaSSE)
	header.Set("Cache-Control", "no-store")
	header.Set("X-Accel-Buffering", "no")
	if r.Method == http.MethodHead {
		return nil
	}
	t.put(append(appendStreamID([]byte(tailRetry+"id: "), h.topic, t.next), "\n\n"...))
	for _, g := range gaps {
		t.gap(g)
	}
	if err := t.flush(); err == nil {
		t.run()
	}
	return nil
}

// startTail finds where a tail begins: Last-Event-ID before from, cursor,
// offset, timestamp or since, last; otherwise at the end. What an id asks for
// and is no longer there comes back as gaps.
func (s *Server) startTail(ctx context.Context, topic string, q url.Values, id string) (*span, []gap, error) {
	if since := q.Get("since"); since != "" && !q.Has("timestamp") {
		ms, err := strconv.ParseInt(since, 10, 64)
		if t, timeErr := time.Parse(time.RFC3339, since); err != nil && timeErr == nil {
			ms, err = t.UnixMilli(), nil
		}
		if err != nil {
			return nil, nil, fail(400, "since %q: want RFC 3339 or milliseconds.", since)
		}
		q.Set("timestamp", strconv.FormatInt(ms, 10))
	}
	from := q.Get("from")
	if from != "" && from != "earliest" && from != "latest" {
		return nil, nil, fail(400, "from %q: want earliest or latest.", from)
	}
	if id != "" {
		for _, name := range []string{"cursor", "offset", "timestamp", "last"} {
			q.Del(name)
		}
	}
	sp, first, err := s.startRead(ctx, topic, q)
	if err != nil {
		return nil, nil, err
	}
	if len(sp.next) > tailPartitions {
		return nil, nil, fail(400, "The topic has %d partitions, a stream at most %d: choose some with partition=0,1,….", len(sp.next), tailPartitions)
	}
	switch {
	case id != "":
		gaps, err := s.resume(ctx, sp, first, id)
		return sp, gaps, err
	case from == "earliest", q.Has("cursor"), q.Has("offset"), q.Has("timestamp"), q.Has("last"):
	default:
		sp.next = maps.Clone(sp.end)
	}
	return sp, nil, nil
}

// gap is a range of offsets that are asked for and not there any more.
type gap struct {
	partition int32
	from, to  int64 // to: the first that is there
}

// resume moves sp.next to where an id was. Partitions it does not name are
// read from their first offset.
func (s *Server) resume(ctx context.Context, sp *span, first map[int32]int64, id string) (gaps []gap, err error) {
	next, times, err := parseStreamID(id, sp.topic)
	if err != nil {
		return nil, err
	}
	for _, ms := range slices.Sorted(maps.Values(times)) {
		at := &span{topic: sp.topic, next: maps.Clone(sp.next), end: sp.end}
		if err := s.fromTime(ctx, at, ms); err != nil {
			return nil, err
		}
		for p := range times {
			if times[p] == ms {
				next[p] = at.next[p]
			}
		}
	}
	for _, p := range slices.Sorted(maps.Keys(sp.next)) {
		at, named := next[p]
		if at > sp.end[p] {
			return nil, fail(416, "Partition %d ends at offset %d, the Last-Event-ID is behind: the topic was made anew.", p, sp.end[p])
		}
		if named && at < first[p] {
			gaps = append(gaps, gap{p, at, first[p]})
		}
		sp.next[p] = max(at, first[p])
	}
	return gaps, nil
}

// run sends events until the client or the hub is gone.
func (t *tail) run() {
	for {
		at, atHead, lag := t.h.join(t.next)
		var err error
		if len(lag) > 0 {
			err = t.catchUp()
		} else {
			if t.at = at; atHead {
				t.sync()
			}
			err = t.live()
		}
		if err != nil {
			return
		}
	}
}

// sync gives up the stream's own offsets if it is where the hub is.
func (t *tail) sync() {
	if t.next == nil || !t.all {
		return
	}
	if id, ok := t.h.synced(t.at, t.next); ok {
		t.next, t.lastID = nil, id
	}
}

// live sends what the hub has until the stream is behind the hub's buffer.
func (t *tail) live() error {
	beat := time.NewTimer(t.s.limits.Heartbeat)
	defer beat.Stop()
	for {
		events, more, ok := t.h.take(t.at)
		if !ok {
			return t.behind()
		}
		if more == nil {
			for i := range events {
				t.event(&events[i])
			}
			t.at += int64(len(events))
			if t.buf == nil || len(*t.buf) < tailBuffer {
				continue
			}
		}
		if err := t.flush(); err != nil {
			return err
		}
		if more == nil {
			continue
		}
		t.sync()
		beat.Reset(t.s.limits.Heartbeat)
		select {
		case <-more:
		case <-beat.C:
			t.put([]byte(": hb\n\n"))
			if err := t.flush(); err != nil {
				return err
			}
		case <-t.ctx.Done():
			return t.ctx.Err()
		case <-t.h.ctx.Done():
			return t.end(context.Cause(t.h.ctx))
		}
	}
}

// behind takes up the stream's own offsets again.
func (t *tail) behind() error {
	if t.next != nil {
		return t.flush()
	}
	next, _, err := parseStreamID(string(t.lastID), t.h.topic)
	if err != nil {
		return err
	}
	for p := range t.h.detail.Partitions { // those that the id leaves out
		next[p] += 0
	}
	t.next = next
	return t.flush()
}

// event adds an event of the hub to the buffer, unless it is filtered out or
// was sent before.
func (t *tail) event(e *event) {
	id := e.id
	if t.next != nil {
		at, ok := t.next[e.partition]
		if !ok && !t.all || e.offset < at {
			return
		}
		t.next[e.partition] = e.offset + 1
		id = nil
	} else {
		t.lastID = id
	}
	t.emit(id, e.body)
}

// emit adds an event under id; nil: that of t.next.
func (t *tail) emit(id, body []byte) {
	t.put([]byte("id: "))
	if id != nil {
		t.put(id)
	} else {
		*t.buf = appendStreamID(*t.buf, t.h.topic, t.next)
	}
	*t.buf = append(append(*t.buf, '\n'), body...)
}

func (t *tail) put(b []byte) {
	if t.buf == nil {
		t.buf = t.s.buffers.get()
	}
	*t.buf = append(*t.buf, b...)
}

// flush sends the buffer and gives it back.
func (t *tail) flush() error {
	if t.buf == nil {
		return nil
	}
	_, err := t.out.Write(*t.buf)
	if err == nil {
		err = t.out.rc.Flush()
	}
	t.s.buffers.put(t.buf)
	t.buf = nil
	return err
}

// end tells the client why the stream ends.
func (t *tail) end(err error) error {
	if t.ctx.Err() == nil && !errors.Is(err, context.Canceled) {
		e := toAPI(err)
		b := strconv.AppendInt([]byte("event: error\ndata: {\"error_code\":"), int64(e.Code), 10)
		b = appendString(append(b, `,"message":`...), e.Message)
		t.put(append(b, "}\n\n"...))
		_ = t.flush() // it ends anyway
	}
	return errors.Join(errTailEnd, err)
}

var errTailEnd = errors.New("the stream ends")

// gap tells the client of records that are gone.
func (t *tail) gap(g gap) {
	t.next[g.partition] = g.to
	b := strconv.AppendInt([]byte("event: gap\ndata: {\"partition\":"), int64(g.partition), 10)
	b = strconv.AppendInt(append(b, `,"from":`...), g.from, 10)
	b = strconv.AppendInt(append(b, `,"to":`...), g.to, 10)
	t.emit(nil, append(b, "}\n\n"...))
}

// waiting takes a place among the streams that catch up; meanwhile it keeps
// the connection alive.
func (t *tail) waiting() error {
	beat := time.NewTicker(t.s.limits.Heartbeat)
	defer beat.Stop()
	t.s.queued.Add(1)
	defer t.s.queued.Add(-1)
	for {
		select {
		case t.s.catchUps <- struct{}{}:
			return nil
		case <-beat.C:
			t.put([]byte(": hb\n\n"))
			if err := t.flush(); err != nil {
				return err
			}
		case <-t.ctx.Done():
			return t.ctx.Err()
		case <-t.h.ctx.Done():
			return t.end(context.Cause(t.h.ctx))
		}
	}
}

// catchUp reads from the brokers until the stream is no longer behind the
// hub's buffer, or, if others wait, for catchUpTurn.
func (t *tail) catchUp() error {
	if err := t.waiting(); err != nil {
		return err
	}
	defer t.s.catchUps.release()
	cl, err := t.s.fetchers.get()
	if err != nil {
		return t.end(err)
	}
	defer t.s.fetchers.put(cl)
	began, failing := time.Now(), time.Time{}
	for turn := 0; ; turn++ {
		_, _, lag := t.h.join(t.next)
		if len(lag) == 0 || t.s.queued.Load() > 0 && time.Since(began) > catchUpTurn {
			return nil
		}
		slices.Sort(lag)
		lag = append(lag[turn%len(lag):], lag[:turn%len(lag)]...)
		err := t.fetch(cl, lag)
		switch {
		case err == nil:
			failing = time.Time{}
			continue
		case errors.Is(err, errTailEnd) || t.ctx.Err() != nil:
			return err
		case failing.IsZero():
			failing = time.Now()
		case time.Since(failing) > t.s.limits.DeliveryTime:
			return t.end(err)
		}
		select {
		case <-time.After(catchUpPause):
		case <-t.ctx.Done():
			return t.ctx.Err()
		}
	}
}

// fetch sends what one fetch gives of the partitions.
func (t *tail) fetch(cl *kgo.Client, order []int32) error {
	detail, err := t.s.topics.get(t.ctx, t.h.topic)
	if err != nil {
		return err
	}
	if detail.ID != t.h.detail.ID {
		return t.end(kerr.UnknownTopicID)
	}
	ctx, cancel := context.WithTimeout(t.ctx, t.s.limits.StallTime)
	defer cancel()
	chunks, err := fetch(ctx, cl, detail, order, t.next, bounds{answer: fetchBytes}, time.Second)
	if err != nil {
		return err
	}
	for _, c := range chunks {
		if errors.Is(c.err, kerr.OffsetOutOfRange) && t.next[c.partition] < c.first {
			t.gap(gap{c.partition, t.next[c.partition], c.first})
			continue
		}
		if errors.Is(c.err, kerr.OffsetOutOfRange) {
			return t.end(c.err)
		}
		if c.err != nil {
			return c.err
		}
		for _, r := range c.records {
			if r.Offset < t.next[r.Partition] || r.Attrs.IsControl() {
				continue
			}
			t.next[r.Partition] = r.Offset + 1
			t.emit(nil, appendEvent(nil, r))
			if len(*t.buf) >= tailBuffer {
				if err := t.flush(); err != nil {
					return errors.Join(errTailEnd, err)
				}
			}
		}
		t.next[c.partition] = max(t.next[c.partition], c.next)
	}
	if err := t.flush(); err != nil {
		return errors.Join(errTailEnd, err)
	}
	return nil
}

// wantsEvents tells whether a GET of messages asks for a stream.
func wantsEvents(r *http.Request) bool {
	for _, list := range r.Header.Values("Accept") {
		for media := range strings.SplitSeq(list, ",") {
			media, _, _ = strings.Cut(media, ";")
			if strings.EqualFold(strings.TrimSpace(media), mediaSSE) {
				return true
			}
		}
	}
	return false
}
