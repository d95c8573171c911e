package httpgate

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
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
	fetchBytes   = 1 << 20          // of a reader's fetch
)

// position is a place in a partition. In the id of an SSE event Offset is the
// last one delivered; in a cursor, the next one.
type position struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Timestamp *int64 `json:"timestamp,omitempty"` // ms; instead of an offset
}

// span is what a reader reads: from positions up to ends, both by partition.
type span struct {
	topic     string
	next, end map[int32]int64
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
	sp, err := s.startRead(ctx, r.PathValue("topic"), q)
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
// timestamp or last.
func (s *Server) startRead(ctx context.Context, topic string, q url.Values) (*span, error) {
	sp, first, err := s.bounds(ctx, topic, q.Get("partition"))
	if err != nil {
		return nil, err
	}
	sp.next = maps.Clone(first)
	given := 0
	for _, name := range []string{"cursor", "offset", "timestamp", "last"} {
		if q.Has(name) {
			given++
		}
	}
	switch {
	case given > 1:
		return nil, fail(400, "cursor, offset, timestamp and last exclude each other.")
	case q.Has("cursor"):
		err = sp.fromCursor(q.Get("cursor"))
	case q.Has("timestamp"):
		ms, err := strconv.ParseInt(q.Get("timestamp"), 10, 64)
		if err != nil {
			return nil, fail(400, "timestamp %q: want milliseconds.", q.Get("timestamp"))
		}
		return sp, s.fromTime(ctx, sp, ms)
	case q.Has("offset"), q.Has("last"):
		err = sp.fromNumber(q, first)
	}
	if err != nil {
		return nil, err
	}
	for p, at := range sp.next {
		if at < first[p] || at > sp.end[p] {
			return nil, fail(416, "Partition %d has offsets from %d to %d, not %d.", p, first[p], sp.end[p], at)
		}
	}
	return sp, nil
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
		return fail(400, "offset needs a partition.")
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

// bounds returns a topic's partitions, or one of them, with their end and
// first offsets.
func (s *Server) bounds(ctx context.Context, topic, partition string) (*span, map[int32]int64, error) {
	t, err := s.topics.get(ctx, topic)
	if err != nil {
		return nil, nil, err
	}
	parts := slices.Collect(maps.Keys(t.Partitions))
	if partition != "" {
		p, err := partitionOf(t, partition)
		if err != nil {
			return nil, nil, err
		}
		parts = []int32{p}
	}
	first, err := s.admin.ListStartOffsets(ctx, topic)
	if err != nil {
		return nil, nil, err
	}
	end, err := s.admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, nil, err
	}
	sp, starts := &span{topic: topic, end: map[int32]int64{}}, map[int32]int64{}
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
	b, err := json.Marshal(sp.positions(0))
	if err != nil {
		panic(err) // numbers and strings
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// positions lists the offsets, each plus d, by partition.
func (sp *span) positions(d int64) []position {
	var at []position
	for _, p := range slices.Sorted(maps.Keys(sp.next)) {
		at = append(at, position{Topic: sp.topic, Partition: p, Offset: sp.next[p] + d})
	}
	return at
}

// fromCursor moves next to the places of a cursor. Partitions that it does not
// name are newer than it and are read from their first offset.
func (sp *span) fromCursor(cursor string) error {
	var at []position
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	if err == nil {
		err = json.Unmarshal(b, &at)
	}
	if err != nil {
		return fail(400, "The cursor is damaged.")
	}
	for _, p := range at {
		if p.Topic != sp.topic {
			return fail(400, "The cursor is of another topic.")
		}
		if _, ok := sp.next[p.Partition]; ok {
			sp.next[p.Partition] = p.Offset
		}
	}
	return nil
}

// more tells whether there is something between next and end.
func (sp *span) more() bool {
	for p, at := range sp.next {
		if at < sp.end[p] {
			return true
		}
	}
	return false
}

// newReader makes a client that reads on from the positions of sp.
func (s *Server) newReader(sp *span, behind bool) (*kgo.Client, error) {
	at := map[int32]kgo.Offset{}
	for p, o := range sp.next {
		if !behind || o < sp.end[p] {
			at[p] = kgo.NewOffset().At(o)
		}
	}
	return kgo.NewClient(append([]kgo.Opt{kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{sp.topic: at}), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.KeepControlRecords(), kgo.FetchMaxBytes(fetchBytes), kgo.FetchMaxPartitionBytes(fetchBytes), kgo.MaxConcurrentFetches(1),
		kgo.FetchMaxWait(time.Second)}, s.kafka...)...)
}

// readSpan reads up to the ends of sp, limit records and about size bytes of
// them, and moves sp.next behind what it returns. If nothing is there it waits.
func (s *Server) readSpan(ctx context.Context, sp *span, limit int, size int64, wait time.Duration) ([]*kgo.Record, error) {
	waiting := !sp.more() && wait > 0
	if limit == 0 || !waiting && !sp.more() {
		return nil, nil
	}
	cl, err := s.newReader(sp, !waiting)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	poll := ctx
	if waiting {
		var cancel context.CancelFunc
		poll, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	var recs []*kgo.Record
	for len(recs) < limit && size > 0 {
		fetches := cl.PollRecords(poll, limit-len(recs))
		if poll.Err() != nil {
			break // what is there is the answer; the cursor tells where it ends
		}
		if err := fetches.Err0(); err != nil {
			return nil, err
		}
		for _, e := range fetches.Errors() {
			if len(recs) == 0 {
				return nil, e.Err
			}
		}
		for it := fetches.RecordIter(); !it.Done(); {
			rec := it.Next()
			if size <= 0 && len(recs) > 0 {
				continue
			}
			if sp.next[rec.Partition] = rec.Offset + 1; rec.Attrs.IsControl() {
				continue
			}
			recs = append(recs, rec)
			size -= int64(len(rec.Key) + len(rec.Value) + 64)
		}
		if waiting && len(recs) > 0 || !waiting && !sp.more() {
			break
		}
	}
	return recs, nil
}
