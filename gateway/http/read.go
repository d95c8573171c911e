package httpgate

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	defaultLimit = 100
	maxLimit     = 10_000
	defaultBytes = 1 << 20
	maxBytes     = 16 << 20
	readTime     = 10 * time.Second // of a bounded read, without its timeout
	maxWait      = 30 * time.Second // of ?timeout=
)

// span is what a reader reads: from positions up to ends, both by partition.
type span struct {
	topic     string
	detail    kadm.TopicDetail
	next, end map[int32]int64
}

// readOrTail is a bounded read, or a stream if Accept asks for one.
func (s *Server) readOrTail(w http.ResponseWriter, r *http.Request) error {
	if wantsEvents(r) {
		return s.tail(w, r)
	}
	if !s.readers.take() {
		return errBusy
	}
	defer s.readers.release()
	return s.read(w, r)
}

// read is the bounded read: what is there now, up to limit and max_bytes.
func (s *Server) read(w http.ResponseWriter, r *http.Request) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fail(400, "The query can't be decoded.")
	}
	limit, err := number(q, "limit", defaultLimit, maxLimit)
	if err != nil {
		return err
	}
	size, err := number(q, "max_bytes", defaultBytes, maxBytes)
	if err != nil {
		return err
	}
	wait, err := number(q, "timeout", 0, maxWait.Milliseconds())
	if err != nil {
		return err
	}
	format := q.Get("format")
	if format != "" && format != "json" && format != "ndjson" {
		return fail(400, "format %q: want json or ndjson.", format)
	}
	ctx, cancel := context.WithTimeout(r.Context(), readTime+time.Duration(wait)*time.Millisecond)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	sp, _, err := s.startRead(ctx, r.PathValue("topic"), q)
	if err != nil {
		return err
	}
	recs, err := s.readSpan(ctx, sp, int(limit), size, time.Duration(wait)*time.Millisecond)
	if err != nil {
		return err
	}
	return s.answerRead(w, sp, recs, format == "ndjson")
}

// answerRead writes {"messages":[…],"next":CURSOR,"more":…}, or lines.
func (s *Server) answerRead(w http.ResponseWriter, sp *span, recs []*kgo.Record, lines bool) error {
	out := &stallWriter{w: w, rc: http.NewResponseController(w), stall: s.limits.StallTime}
	buf := make([]byte, 0, 2*answerBuffer)
	sep := ","
	if lines {
		w.Header().Set("Content-Type", mediaNDJSON)
		w.Header().Set("X-Next-Cursor", sp.cursor())
		sep = "\n"
	} else {
		w.Header().Set("Content-Type", mediaJSON)
		buf = append(buf, `{"messages":[`...)
	}
	for i, rec := range recs {
		if buf = appendRecord(buf, rec); lines || i < len(recs)-1 {
			buf = append(buf, sep...)
		}
		if len(buf) >= answerBuffer {
			if _, err := out.Write(buf); err != nil {
				return nil // the client is gone: nobody to tell
			}
			buf = buf[:0]
		}
	}
	if !lines {
		buf = append(append(append(buf, `],"next":"`...), sp.cursor()...), `","more":`...)
		buf = append(strconv.AppendBool(buf, sp.more()), "}\n"...)
	}
	_, _ = out.Write(buf)
	return nil
}

// stallWriter gives every write the time stall.
type stallWriter struct {
	w     io.Writer
	rc    *http.ResponseController
	stall time.Duration
}

func (s *stallWriter) Write(p []byte) (int, error) {
	_ = s.rc.SetWriteDeadline(time.Now().Add(s.stall))
	return s.w.Write(p)
}

// number takes a parameter from 0 to most.
func number(q url.Values, name string, def, most int64) (int64, error) {
	if !q.Has(name) {
		return def, nil
	}
	n, err := strconv.ParseInt(q.Get(name), 10, 64)
	if err != nil || n < 0 || n > most {
		return 0, fail(400, "%s %q: want a number from 0 to %d.", name, q.Get(name), most)
	}
	return n, nil
}

// startRead finds where a read begins: cursor, or partition with offset,
// timestamp or last. It returns the first offsets too.
func (s *Server) startRead(ctx context.Context, topic string, q url.Values) (sp *span, first map[int32]int64, err error) {
	sp, first, err = s.bounds(ctx, topic, q.Get("partition"))
	if err != nil {
		return nil, nil, err
	}
	sp.next = maps.Clone(first)
	given := 0 // of those that exclude each other
	for _, name := range []string{"cursor", "offset", "timestamp", "last"} {
		if q.Has(name) {
			given++
		}
	}
	switch {
	case given > 1:
		return nil, nil, fail(400, "cursor, offset, timestamp and last exclude each other.")
	case q.Has("cursor"):
		err = sp.fromCursor(q.Get("cursor"))
	case q.Has("timestamp"):
		ms, err := strconv.ParseInt(q.Get("timestamp"), 10, 64)
		if err != nil {
			return nil, nil, fail(400, "timestamp %q: want milliseconds.", q.Get("timestamp"))
		}
		return sp, first, s.fromTime(ctx, sp, ms)
	case q.Has("offset"), q.Has("last"):
		err = sp.fromNumber(q, first)
	}
	if err != nil {
		return nil, nil, err
	}
	for p, at := range sp.next {
		if at < first[p] || at > sp.end[p] {
			return nil, nil, fail(416, "Partition %d has offsets from %d to %d, not %d.", p, first[p], sp.end[p], at)
		}
	}
	return sp, first, nil
}

// fromNumber applies offset or last.
func (sp *span) fromNumber(q url.Values, first map[int32]int64) error {
	name := "offset"
	if q.Has("last") {
		name = "last"
	}
	n, err := strconv.ParseInt(q.Get(name), 10, 64)
	if err != nil || n < 0 {
		return fail(400, "%s %q: want a number from 0.", name, q.Get(name))
	}
	if name == "offset" && len(sp.end) > 1 {
		return fail(400, "offset needs a partition, one.")
	}
	for p := range sp.next {
		if sp.next[p] = n; name == "last" {
			sp.next[p] = max(first[p], sp.end[p]-n)
		}
	}
	return nil
}

// fromTime begins at the first records that are not older than ms.
func (s *Server) fromTime(ctx context.Context, sp *span, ms int64) error {
	at, err := s.admin.ListOffsetsAfterMilli(ctx, ms, sp.topic)
	if err != nil {
		return err
	}
	for p := range sp.next {
		o, ok := at.Lookup(sp.topic, p)
		if !ok || o.Err != nil {
			return errors.Join(kerr.LeaderNotAvailable, o.Err)
		}
		if sp.next[p] = o.Offset; o.Offset < 0 {
			sp.next[p] = sp.end[p]
		}
	}
	return nil
}

// bounds returns a topic's partitions, or those of a list like 0,3, with their end and
// first offsets.
func (s *Server) bounds(ctx context.Context, topic, partition string) (*span, map[int32]int64, error) {
	t, err := s.topics.get(ctx, topic)
	if err != nil {
		return nil, nil, err
	}
	parts := slices.Collect(maps.Keys(t.Partitions))
	if partition != "" {
		parts = parts[:0]
		for number := range strings.SplitSeq(partition, ",") {
			p, err := partitionOf(t, number)
			if err != nil {
				return nil, nil, err
			}
			parts = append(parts, p)
		}
	}
	first, err := s.admin.ListStartOffsets(ctx, topic)
	if err != nil {
		return nil, nil, err
	}
	end, err := s.admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, nil, err
	}
	sp, starts := &span{topic: topic, detail: t, end: map[int32]int64{}}, map[int32]int64{}
	for _, p := range parts {
		for _, l := range []struct {
			from kadm.ListedOffsets
			to   map[int32]int64
		}{{first, starts}, {end, sp.end}} {
			o, ok := l.from.Lookup(topic, p)
			if !ok {
				return nil, nil, kerr.LeaderNotAvailable
			}
			if o.Err != nil {
				return nil, nil, o.Err
			}
			l.to[p] = o.Offset
		}
	}
	return sp, starts, nil
}

// cursor is the place where the next read begins.
func (sp *span) cursor() string {
	b := appendPlaces([]byte(sp.topic+" "), sp.next)
	return base64.RawURLEncoding.EncodeToString(b)
}

// fromCursor moves next to the places of a cursor. Partitions that it does not
// name were empty then or are newer, and are read from their first offset.
func (sp *span) fromCursor(cursor string) error {
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	topic, places, ok := strings.Cut(string(b), " ")
	if err != nil || !ok {
		return errCursor
	}
	if topic != sp.topic {
		return fail(400, "The cursor is of another topic.")
	}
	at, ok := parsePlaces(places)
	if !ok {
		return errCursor
	}
	for p, o := range at {
		if _, ok := sp.next[p]; ok {
			sp.next[p] = o
		}
	}
	return nil
}

var errCursor = fail(400, "The cursor is damaged: send it as it came.")

// more tells whether there is something between next and end.
func (sp *span) more() bool {
	for p, at := range sp.next {
		if at < sp.end[p] {
			return true
		}
	}
	return false
}

// readSpan reads up to the ends of sp, limit records and about size bytes of
// them, and moves sp.next behind what it returns. If nothing is there it waits.
func (s *Server) readSpan(ctx context.Context, sp *span, limit int, size int64, wait time.Duration) ([]*kgo.Record, error) {
	waiting := !sp.more()
	if limit == 0 || waiting && wait == 0 {
		return nil, nil
	}
	cl, err := s.fetchers.get()
	if err != nil {
		return nil, err
	}
	defer s.fetchers.put(cl)
	var recs []*kgo.Record
	for until := time.Now().Add(wait); len(recs) < limit && size > 0; {
		var order []int32
		for _, p := range slices.Sorted(maps.Keys(sp.next)) {
			if waiting || sp.next[p] < sp.end[p] {
				order = append(order, p)
			}
		}
		if len(order) == 0 {
			break
		}
		poll := time.Second // for what is there: a cold read takes its time
		if waiting {
			poll = max(0, time.Until(until))
		}
		chunks, err := fetch(ctx, cl, sp.detail, order, sp.next, bounds{fetchBytes, limit - len(recs), size}, poll)
		if err != nil && ctx.Err() != nil {
			break // what is there is the answer; the cursor tells where it ends
		}
		if err != nil {
			return nil, err
		}
		for _, c := range chunks {
			if c.err != nil && len(recs) > 0 {
				return recs, nil // the next read finds it
			}
			if c.err != nil {
				return nil, c.err
			}
			recs, size = sp.take(c, recs, limit, size)
		}
		if waiting && (len(recs) > 0 || !time.Now().Before(until)) {
			break
		}
	}
	return recs, nil
}

// take adds the records of a chunk to recs while limit and size last, and moves
// next behind them.
func (sp *span) take(c chunk, recs []*kgo.Record, limit int, size int64) ([]*kgo.Record, int64) {
	for _, rec := range c.records {
		if len(recs) >= limit || size <= 0 {
			return recs, size
		}
		if sp.next[rec.Partition] = rec.Offset + 1; !rec.Attrs.IsControl() {
			recs = append(recs, rec)
			size -= recordSize(rec)
		}
	}
	sp.next[c.partition] = max(sp.next[c.partition], c.next)
	return recs, size
}
