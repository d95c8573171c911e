// Package kafka is the Kafka wire server: framing with limits, one file per
// API (api_NN_name.go) that registers the versions it serves, kmsg as codec.
//
// Each connection has one reader and one writer goroutine. The reader handles
// requests one at a time, except that a Produce request does not wait for its
// acknowledgement: the reader goes on and many of them share a commit. The
// writer sends responses in the order of the requests, several at once.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/semaphore"
)

// Limits of a Server; zero values mean the defaults in the comments.
type Limits struct {
	MaxFrame       int           // bytes of a Produce request: 100 MiB (socket.request.max.bytes)
	MaxControl     int           // bytes of any other request: 4 MiB
	MaxInFlight    int64         // bytes of requests being read or handled, all connections: 512 MiB
	MaxConnections int           // in total: 10,000 (max.connections)
	MaxPerAddress  int           // per client address: 5,000 (max.connections.per.ip)
	MaxPipelined   int           // requests of a connection that wait for their answer: 256
	MaxFetchBytes  int           // bytes of one Fetch response: 55 MiB (fetch.max.bytes)
	MaxSessions    int           // incremental fetch sessions: 1,000 (max.incremental.fetch.session.cache.slots)
	MaxSessionRows int           // partitions in all of them: 500,000
	Idle           time.Duration // without a request: 10 min (connections.max.idle.ms)
	Frame          time.Duration // for a frame that has begun: 30 s
	Write          time.Duration // for MinProgress bytes of a response to leave, or the rest: 60 s
	MinProgress    int           // bytes: 8 MiB
}

func (l *Limits) setDefaults() {
	def(&l.MaxFrame, 100<<20)
	def(&l.MaxControl, 4<<20)
	def(&l.MaxInFlight, 512<<20)
	def(&l.MaxConnections, 10_000)
	def(&l.MaxPerAddress, 5_000)
	def(&l.MaxPipelined, 256)
	def(&l.MaxFetchBytes, 55<<20)
	def(&l.MaxSessions, 1_000)
	def(&l.MaxSessionRows, 500_000)
	def(&l.Idle, 10*time.Minute)
	def(&l.Frame, 30*time.Second)
	def(&l.Write, time.Minute)
	def(&l.MinProgress, 8<<20)
	l.MaxInFlight = max(l.MaxInFlight, int64(l.MaxFrame))
}

func def[T int | int64 | time.Duration](p *T, v T) {
	if *p == 0 {
		*p = v
	}
}

// Observer gets figures for metrics. Methods must not block.
type Observer interface {
	// Request is called for every answered request, with the first error code
	// in the response that is not 0.
	Request(api string, version int16, errorCode int16, took time.Duration)
	Produced(topic string, bytes int)
	Fetched(topic string, bytes int)
	Connections(open int)
}

// Options of a Server. Broker is required.
type Options struct {
	Broker   Broker
	Limits   Limits
	Observer Observer
	Logger   *slog.Logger
}

// handler handles one request. It returns the response, or an error that
// closes the connection.
type handler func(ctx context.Context, c *conn, req kmsg.Request) (kmsg.Response, error)

// api is one served API with its version range.
type api struct {
	key      int16
	min, max int16
	name     string
	handle   handler
	schema   []field // of the request; nil for Produce
}

// Server serves the Kafka protocol.
type Server struct {
	b        Broker
	limits   Limits
	observer Observer
	log      *slog.Logger
	apis     map[int16]*api
	inFlight *semaphore.Weighted
	frames   framePool
	calls    sync.Pool // of *produceCall
	sessions *sessionCache

	ctx    context.Context // ends when Shutdown begins
	cancel context.CancelFunc

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	perAddr   map[string]int
	closed    bool
	wg        sync.WaitGroup
}

// NewServer returns a server; call Serve with a listener.
func NewServer(o Options) *Server {
	o.Limits.setDefaults()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Observer == nil {
		o.Observer = noObserver{}
	}
	s := &Server{b: o.Broker, limits: o.Limits, observer: o.Observer, log: o.Logger, apis: map[int16]*api{},
		inFlight: semaphore.NewWeighted(o.Limits.MaxInFlight), sessions: newSessionCache(o.Limits.MaxSessions, o.Limits.MaxSessionRows),
		listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{}, perAddr: map[string]int{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	shapes := schemas()
	for _, a := range s.table() {
		a.schema = mustParseSchema(shapes[kmsg.Key(a.key)])
		s.apis[a.key] = &a
	}
	return s
}

// table lists the served APIs; what is not here is not advertised.
func (s *Server) table() []api {
	return []api{
		s.apiProduce(), s.apiFetch(), s.apiListOffsets(), s.apiMetadata(), s.apiOffsetCommit(), s.apiOffsetFetch(), s.apiFindCoordinator(),
		s.apiJoinGroup(), s.apiHeartbeat(), s.apiLeaveGroup(), s.apiSyncGroup(), s.apiDescribeGroups(), s.apiListGroups(), s.apiAPIVersions(),
		s.apiCreateTopics(), s.apiDeleteTopics(), s.apiDeleteRecords(), s.apiInitProducerID(),
		s.apiOffsetForLeaderEpoch(), s.apiDescribeConfigs(), s.apiAlterConfigs(), s.apiDescribeLogDirs(),
		s.apiCreatePartitions(), s.apiDeleteGroups(), s.apiIncrementalAlterConfigs(), s.apiOffsetDelete(), s.apiDescribeCluster(), s.apiDescribeTopicPartitions(),
	}
}

// Serve accepts connections until Shutdown; it returns nil then.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		l.Close()
		return nil
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	for {
		nc, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			closed := s.closed
			s.mu.Unlock()
			if closed {
				return nil
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				continue
			}
			s.log.Warn("accept failed", "err", err) // out of files: existing connections go on
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-s.ctx.Done():
				return nil
			}
		}
		s.start(nc)
	}
}

// start admits a connection, or closes it when a limit is reached.
func (s *Server) start(nc net.Conn) {
	host, _, err := net.SplitHostPort(nc.RemoteAddr().String())
	if err != nil {
		host = nc.RemoteAddr().String()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) >= s.limits.MaxConnections || s.perAddr[host] >= s.limits.MaxPerAddress {
		reset(nc)
		s.log.Debug("connection refused", "client", host, "open", len(s.conns), "of this address", s.perAddr[host])
		return
	}
	c := newConn(s, nc)
	s.conns[c] = struct{}{}
	s.perAddr[host]++
	s.observer.Connections(len(s.conns))
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		c.run()
		s.mu.Lock()
		delete(s.conns, c)
		if s.perAddr[host]--; s.perAddr[host] == 0 {
			delete(s.perAddr, host)
		}
		s.observer.Connections(len(s.conns))
		s.mu.Unlock()
	}()
}

// Shutdown stops accepting, lets requests that were read be answered, and
// closes the connections; when ctx ends it closes them at once.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.sessions.close() // when the last request is done
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	s.cancel()
	for c := range s.conns {
		c.stopReading()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		c.close()
	}
	s.mu.Unlock()
	<-done
	return fmt.Errorf("shut down kafka server: %w", context.Cause(ctx))
}

type noObserver struct{}

func (noObserver) Request(string, int16, int16, time.Duration) {}
func (noObserver) Produced(string, int)                        {}
func (noObserver) Fetched(string, int)                         {}
func (noObserver) Connections(int)                             {}
