package httpgate

import (
	"context"
	"encoding/base64"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const mediaJSON = "application/json"

// headerPrefix marks request headers that become record headers.
const headerPrefix = "X-Header-"

// produced is the answer to one record.
type produced struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Timestamp int64  `json:"timestamp"` // ms
}

// produce stores the body as one record, or, by its media type, its lines.
func (s *Server) produce(w http.ResponseWriter, r *http.Request) error {
	slots, serve := s.inFlight, s.produceRaw
	media := mediaType(r)
	switch {
	case isNDJSON(media):
		slots, serve = s.streams, s.produceLines
	case strings.HasPrefix(media, "application/cloudevents"), r.Header.Get("Ce-Specversion") != "":
		return fail(415, "CloudEvents are not supported.")
	case strings.HasPrefix(media, "multipart/"), strings.HasPrefix(media, "application/vnd.kafka."):
		return fail(415, "Content-Type %.80q: the body is stored as it is, so it can't be a form or records of another dialect; send the bytes themselves, or lines as %s.", media, mediaNDJSON)
	}
	if r.Header.Values(headerKey) != nil {
		serve = s.produceKeyed
	}
	if !slots.take() {
		return errBusy
	}
	defer slots.release()
	return serve(w, r)
}

func isNDJSON(media string) bool {
	return media == mediaNDJSON || media == "application/ndjson" || media == "application/jsonl"
}

func mediaType(r *http.Request) string {
	m, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return strings.ToLower(r.Header.Get("Content-Type"))
	}
	return m
}

func (s *Server) produceRaw(w http.ResponseWriter, r *http.Request) error {
	rec, t, err := s.template(r)
	if err != nil {
		return err
	}
	if rec.Value, err = s.readAll(w, r, min(s.limits.MaxBody, maxRecord)); err != nil {
		return err
	}
	if err := s.rules.get(r.Context(), t.Topic).check(t, rec); err != nil {
		return err
	}
	// A client that goes away leaves a record that is stored or not; it can't
	// be called back.
	if err := s.store(s.delivery.within(r.Context()), rec); err != nil {
		return err
	}
	return writeJSON(w, mediaJSON, produced{rec.Topic, rec.Partition, rec.Offset, rec.Timestamp.UnixMilli()})
}

// store produces records and waits for all of them. It fails at once when too
// much is on its way to the brokers.
func (s *Server) store(ctx context.Context, recs ...*kgo.Record) error {
	var wg sync.WaitGroup
	errs := make([]error, len(recs))
	for i, rec := range recs {
		wg.Add(1)
		s.client.TryProduce(ctx, rec, func(_ *kgo.Record, err error) {
			errs[i] = err
			wg.Done()
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// template is a record with what the request says of all its records: topic,
// key, partition (-1: by the key, or any) and headers.
func (s *Server) template(r *http.Request) (*kgo.Record, kadm.TopicDetail, error) {
	rec := &kgo.Record{Topic: r.PathValue("topic"), Partition: -1}
	var none kadm.TopicDetail
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, none, fail(400, "The query can't be decoded.")
	}
	if q.Has("key") {
		rec.Key = []byte(q.Get("key"))
	}
	if q.Has("key_base64") {
		if rec.Key, err = base64.StdEncoding.DecodeString(q.Get("key_base64")); err != nil {
			return nil, none, fail(400, "key_base64 is not Base64.")
		}
	}
	t, err := s.topics.get(r.Context(), rec.Topic)
	if err != nil {
		return nil, none, err
	}
	if q.Has("partition") {
		if rec.Partition, err = partitionOf(t, q.Get("partition")); err != nil {
			return nil, none, err
		}
	}
	for name, values := range r.Header {
		if key, ok := strings.CutPrefix(name, headerPrefix); ok {
			for _, v := range values {
				rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: strings.ToLower(key), Value: []byte(v)})
			}
		}
	}
	return rec, t, nil
}

// partitionOf checks the number of a partition.
func partitionOf(t kadm.TopicDetail, s string) (int32, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0, fail(400, "partition %q is not a number.", s)
	}
	if _, ok := t.Partitions[int32(n)]; !ok {
		return 0, fail(codeNoPartition, "Partition not found.")
	}
	return int32(n), nil
}

// topicCache keeps what the brokers said of topics for a moment.
type topicCache struct {
	admin *kadm.Client
	anew  func(name string) // another topic has the name now; may be nil
	mu    sync.Mutex
	known map[string]cachedTopic
}

type cachedTopic struct {
	detail kadm.TopicDetail
	until  time.Time
}

const (
	topicTime   = 2 * time.Second
	topicsKnown = 4096
	adminTime   = 10 * time.Second
)

func newTopicCache(admin *kadm.Client) *topicCache {
	return &topicCache{admin: admin, known: map[string]cachedTopic{}}
}

// get returns a topic of the cluster, at most topicTime old.
func (c *topicCache) get(ctx context.Context, name string) (kadm.TopicDetail, error) {
	now := time.Now()
	c.mu.Lock()
	k, ok := c.known[name]
	c.mu.Unlock()
	if ok && now.Before(k.until) {
		return k.detail, nil
	}
	if !validTopic(name) {
		return kadm.TopicDetail{}, kerr.InvalidTopicException
	}
	ctx, cancel := context.WithTimeout(ctx, adminTime)
	defer cancel()
	// With authorized operations the client asks the brokers; otherwise it
	// would answer from a cache of its own, of 5 s, unknown topics too.
	all, err := c.admin.ListTopicsWithInternal(kadm.WithAuthorizedOps(ctx), name)
	if err != nil {
		return kadm.TopicDetail{}, err
	}
	t, ok := all[name]
	if !ok {
		return t, kerr.UnknownTopicOrPartition
	}
	if t.Err != nil {
		return t, t.Err
	}
	c.mu.Lock()
	old, ok := c.known[name]
	if len(c.known) >= topicsKnown {
		clear(c.known)
	}
	c.known[name] = cachedTopic{t, now.Add(topicTime)}
	c.mu.Unlock()
	if ok && old.detail.ID != t.ID && c.anew != nil {
		c.anew(name)
	}
	return t, nil
}

// forget makes the next get ask the brokers.
func (c *topicCache) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k, ok := c.known[name]; ok { // its id is still of use
		k.until = time.Time{}
		c.known[name] = k
	}
}

// validTopic tells whether Kafka allows the name of a topic.
func validTopic(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > 249 {
		return false
	}
	return strings.IndexFunc(name, func(c rune) bool {
		return c != '.' && c != '_' && c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	}) < 0
}

// deliveries gives records the time in which they must be stored. (The
// client's own setting counts from the record's timestamp, which users choose.)
type deliveries struct {
	limit time.Duration
	mu    sync.Mutex
	ctx   context.Context
	until time.Time // of handing ctx out
}

// context ends limit from now, or up to deliverySlack later: it is shared.
func (d *deliveries) context() context.Context {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); d.ctx == nil || now.After(d.until) {
		ctx, cancel := context.WithTimeout(context.Background(), d.limit+deliverySlack)
		context.AfterFunc(ctx, cancel)
		d.ctx, d.until = ctx, now.Add(deliverySlack)
	}
	return d.ctx
}

const deliverySlack = time.Second

// within is context, or ends with the deadline of ctx where that is earlier. That ctx is cancelled does not end it: what
// is on its way can't be called back.
func (d *deliveries) within(ctx context.Context) context.Context {
	shared := d.context()
	end, ok := ctx.Deadline()
	if until, _ := shared.Deadline(); !ok || until.Before(end) {
		return shared
	}
	own, cancel := context.WithDeadline(shared, end)
	context.AfterFunc(own, cancel)
	return own
}

// detached goes on when ctx is cancelled, for as long as limit and the deadline of ctx allow.
func detached(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(end))
	}
	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}
