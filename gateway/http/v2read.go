package httpgate

import (
	"context"
	"encoding/json"
	"net/url"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
)

// v2Message is a record that was read. Key and Value are in the format of the
// answer: Base64, JSON or a string, null for none.
type v2Message struct {
	Topic     string         `json:"topic"`
	Key       any            `json:"key"`
	Value     any            `json:"value"`
	Partition int32          `json:"partition"`
	Offset    int64          `json:"offset"`
	Timestamp int64          `json:"timestamp"` // ms
	Headers   []v2HeaderRead `json:"headers"`
}

type v2HeaderRead struct {
	Key   string `json:"key"`
	Value []byte `json:"value"` // Base64 in JSON
}

const codeUnserializable = 40801

// v2Read is Redpanda's read of a partition, without a consumer: what is there
// from an offset on.
func (s *Server) v2Read(c v2Call) ([]v2Message, error) {
	q, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return nil, fail(400, "The query can't be decoded.")
	}
	size, err := number(q, "max_bytes", defaultBytes, maxBytes)
	if err != nil {
		return nil, err
	}
	ms, err := number(q, "timeout", 0, maxWait.Milliseconds())
	if err != nil {
		return nil, err
	}
	wait := time.Duration(ms) * time.Millisecond
	ctx, cancel := context.WithTimeout(c.r.Context(), readTime+wait)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	topic := c.r.PathValue("topic")
	t, err := s.topics.get(ctx, topic)
	if err != nil {
		return nil, err
	}
	if _, err := pathPartition(t, c.r.PathValue("partition")); err != nil {
		return nil, err
	}
	from := url.Values{"partition": {c.r.PathValue("partition")}}
	if q.Has("offset") {
		from["offset"] = q["offset"]
	}
	sp, _, err := s.startRead(ctx, topic, from)
	if err != nil {
		return nil, err
	}
	recs, err := s.readSpan(ctx, sp, maxLimit, max(size, 1), wait) // the first record comes in any case
	if err != nil {
		return nil, err
	}
	answer := make([]v2Message, 0, len(recs))
	for _, r := range recs {
		m, err := newV2Message(c.media, r)
		if err != nil {
			return nil, err
		}
		answer = append(answer, m)
	}
	return answer, nil
}

func newV2Message(media string, r *kgo.Record) (v2Message, error) {
	m := v2Message{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp.UnixMilli(), Headers: []v2HeaderRead{}}
	for _, h := range r.Headers {
		m.Headers = append(m.Headers, v2HeaderRead{h.Key, h.Value})
	}
	var ok, ok2 bool
	m.Key, ok = extract(media, r.Key)
	m.Value, ok2 = extract(media, r.Value)
	if !ok || !ok2 {
		return m, fail(codeUnserializable, "The record at offset %d of partition %d can't be sent as %s: ask for %s.", r.Offset, r.Partition, media, mediaV2Binary)
	}
	return m, nil
}

// extract gives bytes in the format of media, unless they have another.
func extract(media string, b []byte) (any, bool) {
	if b == nil {
		return nil, true
	}
	switch media {
	case mediaV2JSON:
		return json.RawMessage(b), utf8.Valid(b) && json.Valid(b)
	case mediaV2Text:
		return string(b), utf8.Valid(b)
	}
	return b, true
}
