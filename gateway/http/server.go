// Package httpgate is the HTTP gateway: producing, bounded reading and tailing
// over HTTP, in a native dialect and in that of Confluent's REST proxy, v2. It
// is a Kafka client of the cluster and shares nothing with the brokers.
package httpgate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Options of New.
type Options struct {
	Brokers []string // HOST:PORT of some brokers of the cluster
	// Dial replaces the dialer of the connections to the brokers; may be nil.
	Dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	Limits Limits
	Logger *slog.Logger // nil: none
	// Observe is told of every answered request, for metrics: route is the
	// path of the route that took it, other if none did. May be nil.
	Observe func(route string, status int, took time.Duration)
	// Whole: an answer is sent when it is complete, and behind it the process may stand still, as a Lambda does. Tails
	// are refused, and nothing is left for after the answer.
	Whole bool
}

// Limits of a gateway; zeros stand for the defaults.
type Limits struct {
	MaxBody      int64         // bytes of a body that is read as a whole, after expansion; 8 MiB
	MaxStream    int64         // bytes of an NDJSON body, after expansion; 1 GiB
	MaxInFlight  int           // requests at work, streams apart; 512
	MaxStreams   int           // NDJSON bodies at work; 128
	MaxReaders   int           // bounded reads at work; 64
	MaxTails     int           // SSE clients; 20,000
	MaxTopics    int           // that are tailed; 256
	MaxCatchUps  int           // SSE clients that read the past; others wait their turn; 32
	MaxKeys      int           // idempotency keys that are remembered, about 100 bytes each; 1,000,000
	MaxDecoded   int64         // bytes that all v2 bodies that are decoded take; 256 MiB
	BodyTime     time.Duration // for a body that is read as a whole; 60 s
	StallTime    time.Duration // between two reads of a streamed body, and for one write; 30 s
	HeaderTime   time.Duration // 10 s
	IdleTime     time.Duration // of a kept connection; 2 min
	Heartbeat    time.Duration // of an SSE stream without events; 15 s
	DeliveryTime time.Duration // until a record that is not stored is given up; 30 s
}

func (l Limits) withDefaults() Limits {
	return Limits{
		MaxBody: cmp.Or(l.MaxBody, 8<<20), MaxStream: cmp.Or(l.MaxStream, 1<<30),
		MaxInFlight: cmp.Or(l.MaxInFlight, 512), MaxStreams: cmp.Or(l.MaxStreams, 128),
		MaxReaders: cmp.Or(l.MaxReaders, 64), MaxTails: cmp.Or(l.MaxTails, 20_000), MaxDecoded: cmp.Or(l.MaxDecoded, 256<<20),
		MaxKeys: cmp.Or(l.MaxKeys, 1_000_000), MaxTopics: cmp.Or(l.MaxTopics, 256), MaxCatchUps: cmp.Or(l.MaxCatchUps, 32),
		BodyTime: cmp.Or(l.BodyTime, time.Minute), StallTime: cmp.Or(l.StallTime, 30*time.Second),
		HeaderTime: cmp.Or(l.HeaderTime, 10*time.Second), IdleTime: cmp.Or(l.IdleTime, 2*time.Minute),
		Heartbeat: cmp.Or(l.Heartbeat, 15*time.Second), DeliveryTime: cmp.Or(l.DeliveryTime, 30*time.Second),
	}
}

const (
	maxHeader      = 32 << 10  // bytes of a request's header
	maxRecord      = 1_000_000 // bytes of a record: key, value and headers
	maxBatch       = 1_048_576 // bytes of a batch; topics take 12 more unless configured otherwise
	maxBuffered    = 64 << 20  // bytes of records on their way to the brokers
	metadataMaxAge = time.Minute
	metadataMinAge = 250 * time.Millisecond // how soon after an error of the brokers the client looks for another leader
)

// Server is a gateway. All methods are safe for concurrent use.
type Server struct {
	limits   Limits
	whole    bool
	log      *slog.Logger
	kafka    []kgo.Opt // of every client
	client   *kgo.Client
	admin    *kadm.Client
	topics   *topicCache
	delivery deliveries
	fetchers fetchers
	http     *http.Server

	ctx    context.Context // ends at Shutdown: streams and reads stop
	cancel context.CancelFunc
	close  sync.Once

	inFlight, streams, readers, tails, zstds, catchUps slots

	hubs    hubs
	buffers buffers
	keys    *keys
	queued  atomic.Int64 // tails that wait for catchUps

	rules    rulesCache
	v2Memory budget
	ready    readiness
}

// New makes a gateway. It connects when the first request comes.
func New(o Options) (*Server, error) {
	s := &Server{limits: o.Limits.withDefaults(), whole: o.Whole, log: o.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.kafka = []kgo.Opt{kgo.SeedBrokers(o.Brokers...), kgo.ClientID("cirrolog-http"), kgo.MetadataMaxAge(metadataMaxAge), kgo.MetadataMinAge(metadataMinAge)}
	if o.Dial != nil {
		s.kafka = append(s.kafka, kgo.Dialer(o.Dial))
	}
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.RecordPartitioner(partitioner{kgo.StickyKeyPartitioner(nil)}), kgo.ProducerLinger(time.Millisecond),
		kgo.MaxBufferedBytes(maxBuffered), kgo.ProducerBatchMaxBytes(maxBatch),
		// Without it a record that was sent once waits for its brokers without end.
		kgo.AllowIdempotentProduceCancellation(), kgo.MaxBufferedRecords(100_000),
	}, s.kafka...)...)
	if err != nil {
		return nil, fmt.Errorf("make Kafka client: %w", err)
	}
	s.client, s.admin = client, kadm.NewClient(client)
	s.fetchers = fetchers{opts: append([]kgo.Opt{kgo.MaxDecompressBatchBytes(maxExpansion)}, s.kafka...), idle: make(chan *kgo.Client, idleFetchers)}
	s.topics = newTopicCache(s.admin)
	// The client goes on looking for a topic that was deleted, by its id.
	s.topics.anew = func(name string) { client.PurgeTopicsFromProducing(name) }
	s.delivery.limit = s.limits.DeliveryTime
	s.rules = rulesCache{admin: s.admin, known: map[string]cachedRules{}}
	s.v2Memory.left.Store(s.limits.MaxDecoded)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.inFlight, s.streams = make(slots, s.limits.MaxInFlight), make(slots, s.limits.MaxStreams)
	s.readers, s.tails = make(slots, s.limits.MaxReaders), make(slots, s.limits.MaxTails)
	s.zstds, s.catchUps = make(slots, zstdBodies), make(slots, s.limits.MaxCatchUps)
	s.keys = newKeys(s)
	s.hubs = hubs{s: s, limit: s.limits.MaxTopics, by: map[string]*hub{}}
	s.http = &http.Server{Handler: observed(s.handler(), o.Observe), ReadHeaderTimeout: s.limits.HeaderTime, IdleTimeout: s.limits.IdleTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	return s, nil
}

// Handler is what Serve answers with, for callers that have requests from elsewhere. A deadline of a request's context
// bounds the time in which its records must be stored. Shutdown ends it too.
func (s *Server) Handler() http.Handler { return s.http.Handler }

// Serve answers requests on ln until Shutdown.
func (s *Server) Serve(ln net.Listener) error {
	err := s.http.Serve(ln)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve HTTP: %w", err)
}

// Shutdown ends streams at once and lets other requests finish while ctx
// lasts; then it closes the connections. A second call does nothing.
func (s *Server) Shutdown(ctx context.Context) error {
	s.cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("shut down HTTP: %w", err), s.http.Close())
	}
	s.close.Do(func() {
		s.hubs.wait()
		s.keys.close()
		s.fetchers.close()
		s.client.Close()
		s.ready.stop()
	})
	return err
}

// slots counts what is at work.
type slots chan struct{}

// take takes a slot if one is free; give it back with release.
func (s slots) take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) release() { <-s }

// route is one line of the table of routes.
type route struct {
	pattern string // METHOD /path of http.ServeMux
	slots   slots
	serve   func(http.ResponseWriter, *http.Request) error
}

func (s *Server) routes() []route {
	return append([]route{
		{"POST /api/v1/topics/{topic}/messages", nil, s.produce},
		{"GET /api/v1/topics/{topic}/messages", nil, s.readOrTail},
		{"GET /api/v1/topics/{topic}/stream", nil, s.tail},
	}, append(s.v2Routes(), openapiRoutes()...)...)
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range s.routes() {
		mux.HandleFunc(r.pattern, s.guard(r))
	}
	return fallback{mux}
}

// guard bounds what is at work and turns errors into answers. The deadline of a
// write stays with the connection, so each request begins without one and
// leaves one behind for what is still buffered.
func (s *Server) guard(r route) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.SetWriteDeadline(time.Time{})
		defer func() {
			_ = rc.SetWriteDeadline(time.Now().Add(s.limits.StallTime))
			if p := recover(); p != nil {
				s.log.Error("a request failed in the gateway: this is a bug", "pattern", r.pattern, "panic", p, "stack", string(debug.Stack()))
				panic(http.ErrAbortHandler)
			}
		}()
		if r.slots != nil {
			if !r.slots.take() {
				writeError(w, errBusy)
				return
			}
			defer r.slots.release()
		}
		if err := r.serve(w, req); err != nil {
			writeError(w, err)
		}
	}
}

// fallback answers what no route takes in the envelope of all errors.
type fallback struct{ mux *http.ServeMux }

func (f fallback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, pattern := f.mux.Handler(r); pattern != "" {
		f.mux.ServeHTTP(w, r)
		return
	}
	probe := &statusOnly{header: http.Header{}}
	f.mux.ServeHTTP(probe, r)
	for _, h := range []string{"Allow", "Location"} {
		if v := probe.header.Get(h); v != "" {
			w.Header().Set(h, v)
		}
	}
	if probe.status/100 == 3 {
		w.WriteHeader(probe.status)
		return
	}
	if r.Method == http.MethodOptions && probe.status == http.StatusMethodNotAllowed {
		w.WriteHeader(http.StatusNoContent) // Allow is the answer
		return
	}
	writeError(w, statusError(cmp.Or(probe.status, http.StatusNotFound)))
}

// statusOnly keeps what the mux would answer.
type statusOnly struct {
	header http.Header
	status int
}

func (s *statusOnly) Header() http.Header         { return s.header }
func (s *statusOnly) Write(b []byte) (int, error) { return len(b), nil }
func (s *statusOnly) WriteHeader(status int)      { s.status = status }

// partitioner keeps a partition that the request chose and leaves the others
// (Partition -1) to the one inside.
type partitioner struct{ inner kgo.Partitioner }

func (p partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	return &topicPartitioner{p.inner.ForTopic(topic)}
}

type topicPartitioner struct{ kgo.TopicPartitioner }

func (p *topicPartitioner) RequiresConsistency(r *kgo.Record) bool {
	return r.Partition >= 0 || p.TopicPartitioner.RequiresConsistency(r)
}

func (p *topicPartitioner) Partition(r *kgo.Record, n int) int {
	if r.Partition >= 0 {
		return int(r.Partition)
	}
	return p.TopicPartitioner.Partition(r, n)
}

// OnNewBatch lets the sticky partitioner go on to another partition.
func (p *topicPartitioner) OnNewBatch() {
	if t, ok := p.TopicPartitioner.(kgo.TopicPartitionerOnNewBatch); ok {
		t.OnNewBatch()
	}
}
