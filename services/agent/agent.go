// Package agent wires one agent together: data directory, storage, metadata,
// tiering, broker and listeners, opened in this order and closed in reverse.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/trace"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	httpgate "github.com/cirrolog/cirrolog/gateway/http"
	"github.com/cirrolog/cirrolog/gateway/kafka"
	"github.com/cirrolog/cirrolog/gateway/rpc"
	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/bucketurl"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// Agent is a running agent.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	disk    *storage.Disk
	kv      kv.Store
	kvName  string // its kind
	meta    *metadata.Store
	bucket  objstore.Bucket
	store   *storage.Store               // of class object in a cluster, else of class local
	local   *localStore                  // of a cluster's agent
	stream  *wal.Stream                  // of a cluster's agent
	leading atomic.Pointer[lead.Manager] // of a cluster's agent
	reader  *tiering.Reader
	broker  *broker.Broker
	closed  atomic.Pointer[broker.Broker] // told of closed segments
	kafka   *kafka.Server
	metrics *metrics
	monitor monitor
	flight  *trace.FlightRecorder // nil: off
	open    atomic.Bool           // all of the above is there

	kafkaListener net.Listener
	admin         *http.Server
	adminListener net.Listener
	http          *httpgate.Server // nil: off
	httpListener  net.Listener
	rpcListener   net.Listener
	rpcTLS        *rpc.TLS // nil: none
	rpcToken      string
	peers         *rpc.Peers // nil: agents are not called
	incarnation   ids.Incarnation
	clock         *leaseClock
	failed        chan error
	draining      chan struct{}
	closers       []func() error // in order of opening
	serving       chan error
}

// Start opens everything and begins to serve. On an error nothing is left
// running.
func Start(ctx context.Context, cfg Config, log *slog.Logger) (_ *Agent, err error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if err := cfg.ownAddresses(net.InterfaceAddrs); err != nil {
		return nil, err
	}
	agent := &Agent{cfg: cfg, log: slog.New(newSampler(log.Handler())), incarnation: ids.NewIncarnation(), clock: newLeaseClock(sinceBoot), failed: make(chan error, 1), draining: make(chan struct{}), serving: make(chan error, 3)}
	defer func() {
		if err != nil {
			err = errors.Join(err, agent.closeAll())
		}
	}()
	// The listeners come first: a taken port is the commonest mistake.
	for _, step := range []func(context.Context) error{agent.listen, agent.openRPC, agent.startFlightRecorder, agent.openDisk, agent.openBucket, agent.openMetadata, agent.openStorage, agent.openBroker, agent.listenKafka, agent.startLeading, agent.startMonitor, agent.serve} {
		if err := step(ctx); err != nil {
			if errors.Is(err, syscall.ENOSPC) {
				err = fmt.Errorf("%w: free some space there, or choose another --data-dir (or --bucket) or a smaller --wal-size", err)
			}
			return nil, err
		}
	}
	return agent, nil
}

func (a *Agent) onClose(f func() error) { a.closers = append(a.closers, f) }

func (a *Agent) closeAll() error {
	var errs []error
	for i := len(a.closers) - 1; i >= 0; i-- {
		errs = append(errs, a.closers[i]())
	}
	a.closers = nil
	return errors.Join(errs...)
}

func (a *Agent) listen(ctx context.Context) error {
	var lc net.ListenConfig
	for _, l := range []struct {
		addr string
		flag string
		to   *net.Listener
	}{{a.cfg.KafkaAddr, "--kafka-addr", &a.kafkaListener}, {a.cfg.AdminAddr, "--admin-addr", &a.adminListener}, {a.cfg.HTTPAddr, "--http-addr", &a.httpListener}, {a.cfg.RPC.Addr, "--rpc-addr", &a.rpcListener}} {
		if l.addr == "" {
			continue // the HTTP gateway, or the agents' own protocol, is off
		}
		ln, err := lc.Listen(ctx, "tcp", l.addr)
		if err != nil {
			return fmt.Errorf("listen on %s: %w: stop what uses it or choose another %s", l.addr, err, l.flag)
		}
		*l.to = ln
		if l.to == &a.kafkaListener && !anyPort(l.addr) { // another process might get the port that the system chose
			ln.Close() // its address stays
			continue
		}
		a.onClose(func() error { ln.Close(); return nil }) // closed already by its server
	}
	return nil
}

// anyPort tells that the system chooses the port of an address.
func anyPort(addr string) bool {
	_, port, _ := net.SplitHostPort(addr)
	return port == "0"
}

// listenKafka listens for Kafka clients again. Until now they were refused: who was let in while the bucket, or the metadata store,
// is waited for would wait for an answer instead of asking another agent.
func (a *Agent) listenKafka(ctx context.Context) error {
	if anyPort(a.cfg.KafkaAddr) {
		return nil
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", a.kafkaListener.Addr().String())
	if err != nil {
		return fmt.Errorf("listen on %s: %w: stop what uses it or choose another --kafka-addr", a.kafkaListener.Addr(), err)
	}
	a.kafkaListener = ln
	a.onClose(func() error { ln.Close(); return nil }) // closed already by its server
	return nil
}

func (a *Agent) openDisk(context.Context) error {
	d, err := storage.OpenDisk(vfs.OS(), a.cfg.DataDir)
	if err != nil {
		return err
	}
	a.disk = d
	a.onClose(d.Close)
	return nil
}

func (a *Agent) openBucket(ctx context.Context) error {
	b, err := bucketurl.Open(ctx, a.cfg.bucketURL(), bucketurl.Options{FS: vfs.OS()})
	if err != nil {
		return err
	}
	a.metrics = newMetrics(a)
	a.bucket = objstore.Observe(b, a.metrics.bucketRequest)
	a.onClose(func() error { return objstore.Close(a.bucket) })
	ahead, err := probeBucket(ctx, b, a.cfg.bucketURL())
	if err != nil {
		return err
	}
	return a.checkClock("bucket "+bucketurl.Redact(a.cfg.bucketURL()), ahead)
}

func (a *Agent) openMetadata(ctx context.Context) error {
	store, name, err := a.openKV(ctx)
	if err != nil {
		return fmt.Errorf("open metadata: %w", err)
	}
	a.kvName = name
	a.kv = observedStore{Store: store, name: name, took: a.metrics.metaOp}
	a.onClose(store.Close)
	ahead, err := storeAhead(ctx, store)
	if err == nil {
		err = a.checkClock("metadata store", ahead)
	}
	if err != nil {
		return err
	}
	defaults, err := a.cfg.defaults()
	if err != nil {
		return fmt.Errorf("--topic-config: %w", err)
	}
	self, err := a.self()
	if err != nil {
		return err
	}
	id := &a.disk.Identity
	reached, err := a.rpcAddr()
	if err != nil {
		return err
	}
	o := a.cfg.metadataOptions(id, a.kv, a.bucket)
	if a.clustered() {
		o.Advertised = net.JoinHostPort(self.Host, strconv.Itoa(int(self.Port)))
	}
	o.Now, o.RPC, o.Incarnation, o.Defaults, o.DefaultPartitions, o.Place, o.Agents, o.Logger = a.cfg.Now, reached, a.incarnation, defaults, a.cfg.NumPartitions, a.place(), a.agents(), a.component("metadata")
	meta, err := metadata.Open(ctx, o)
	if err != nil {
		return err
	}
	a.meta = meta
	a.log = a.log.With("agent", meta.NodeID())
	a.onClose(meta.Close)
	id.ClusterID, id.NodeID, id.Epoch = meta.ClusterID(), meta.NodeID(), meta.NodeEpoch()
	if err := a.disk.Save(); err != nil {
		return err
	}
	return a.checkDisk(ctx)
}

func (a *Agent) fail(err error) {
	select {
	case a.failed <- err:
	default:
	}
}

func (a *Agent) openBroker(ctx context.Context) error {
	r, err := tiering.NewReader(tiering.ReaderOptions{Bucket: a.bucket, Index: broker.NewIndex(a.meta), FS: vfs.OS(),
		CacheDir: filepath.Join(a.cfg.DataDir, "cache"), CacheBytes: a.cfg.CacheSize, MemoryBytes: a.cfg.CacheMemory, Now: a.cfg.Now, Logger: a.component("tiering")})
	if err != nil {
		return fmt.Errorf("open tiered reader: %w", err)
	}
	a.reader = r
	a.onClose(r.Close)
	self, err := a.self()
	if err != nil {
		return err
	}
	b, err := broker.New(ctx, broker.Options{Store: a.store, Local: a.localStores(), Meta: a.meta, Bucket: a.bucket, Incarnation: a.incarnation, Epoch: a.meta.NodeEpoch(),
		Self: self, Reader: r, AutoCreate: a.cfg.AutoCreate, Settings: a.settings(self), DataDir: a.cfg.DataDir, BucketName: bucketurl.Redact(a.cfg.bucketURL()),
		RetentionInterval: a.cfg.RetentionInterval, SweepInterval: a.cfg.SweepInterval, SweepGrace: a.cfg.SweepGrace, CompactInterval: a.cfg.CompactInterval,
		UploadObserver: a.metrics.uploaded, Leaders: a.leaders(), Live: a.live(), OnTiered: a.onTiered(), SetLogStart: a.setLogStart(), Groups: a.cfg.Groups, Now: a.cfg.Now, Logger: a.component("broker")})
	if err != nil {
		return err
	}
	a.broker = b
	a.closed.Store(b)
	b.FindClosed()
	a.onClose(b.Close)
	return nil
}

// self is this agent as clients reach it: the advertised address, or the one
// it listens on.
func (a *Agent) self() (broker.Node, error) {
	n := broker.Node{Rack: a.cfg.Rack}
	if a.meta != nil {
		n.ID = a.meta.NodeID()
	}
	addr := a.cfg.AdvertisedAddr
	if addr == "" {
		addr = a.kafkaListener.Addr().String()
		host, _, _ := net.SplitHostPort(addr)
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			return n, fmt.Errorf("--kafka-addr %s listens on all addresses: say with --advertised-addr which one clients reach", a.cfg.KafkaAddr)
		}
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return n, fmt.Errorf("--advertised-addr %q: want HOST:PORT: %w", addr, err)
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || host == "" {
		return n, fmt.Errorf("--advertised-addr %q: want HOST:PORT", addr)
	}
	n.Host, n.Port = host, int32(p)
	if p == 0 {
		n.Port = int32(a.kafkaListener.Addr().(*net.TCPAddr).Port)
	}
	return n, nil
}

func (a *Agent) settings(self broker.Node) map[string]string {
	return map[string]string{
		"node.id": strconv.Itoa(int(self.ID)), "broker.id": strconv.Itoa(int(self.ID)), "num.partitions": strconv.Itoa(int(a.cfg.NumPartitions)),
		"auto.create.topics.enable": strconv.FormatBool(a.cfg.AutoCreate), "listeners": "PLAINTEXT://" + a.cfg.KafkaAddr,
		"advertised.listeners": fmt.Sprintf("PLAINTEXT://%s", net.JoinHostPort(self.Host, strconv.Itoa(int(self.Port)))),
		"log.dirs":             a.cfg.DataDir, "broker.rack": self.Rack,
		"offsets.topic.num.partitions": strconv.Itoa(int(a.cfg.Groups.Partitions)), "offsets.retention.minutes": strconv.Itoa(int(a.cfg.Groups.Config.OffsetRetention / time.Minute)),
		"group.initial.rebalance.delay.ms": strconv.FormatInt(a.cfg.Groups.Config.InitialRebalanceDelay.Milliseconds(), 10),
		"group.max.size":                   strconv.Itoa(a.cfg.Groups.Config.MaxSize),
		"group.min.session.timeout.ms":     strconv.FormatInt(a.cfg.Groups.Config.MinSessionTimeout.Milliseconds(), 10),
		"group.max.session.timeout.ms":     strconv.FormatInt(a.cfg.Groups.Config.MaxSessionTimeout.Milliseconds(), 10),
	}
}

func (a *Agent) serve(context.Context) error {
	a.kafka = kafka.NewServer(kafka.Options{Broker: kafka.Adapt(a.broker), Limits: a.cfg.Limits, Observer: a.metrics, Logger: a.component("kafka")})
	a.admin = &http.Server{Handler: a.adminHandler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	go func() { a.serving <- a.kafka.Serve(a.kafkaListener) }()
	go func() {
		err := a.admin.Serve(a.adminListener)
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
		a.serving <- err
	}()
	if err := a.serveHTTP(); err != nil {
		return err
	}
	a.component("agent").Info("serving", "kafka", a.kafkaListener.Addr().String(), "admin", a.adminListener.Addr().String(), "http", a.HTTPAddr(),
		"cluster", a.meta.ClusterID(), "epoch", a.meta.NodeEpoch(), "bucket", bucketurl.Redact(a.cfg.bucketURL()), "topics", len(a.broker.Topics()))
	return nil
}

// serveHTTP starts the HTTP gateway, a Kafka client of this agent. It reaches
// the agent at its listener whatever address the agent tells its clients.
func (a *Agent) serveHTTP() error {
	if a.httpListener == nil {
		return nil
	}
	self, err := a.self()
	if err != nil {
		return err
	}
	advertised := net.JoinHostPort(self.Host, strconv.Itoa(int(self.Port)))
	addr := a.kafkaListener.Addr().(*net.TCPAddr)
	listener := addr.String()
	if addr.IP.IsUnspecified() {
		listener = net.JoinHostPort("localhost", strconv.Itoa(addr.Port))
	}
	var d net.Dialer
	gate, err := httpgate.New(httpgate.Options{Brokers: []string{listener}, Logger: a.component("http"), Observe: a.metrics.httpRequest,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == advertised {
				addr = listener
			}
			return d.DialContext(ctx, network, addr)
		}})
	if err != nil {
		return err
	}
	a.http = gate
	go func() { a.serving <- gate.Serve(a.httpListener) }()
	return nil
}

// HTTPAddr is where the HTTP gateway is; "" if it is off.
func (a *Agent) HTTPAddr() string {
	if a.httpListener == nil {
		return ""
	}
	return a.httpListener.Addr().String()
}

// httpStop bounds the time that requests at the HTTP gateway have to end.
const httpStop = 5 * time.Second

// stopHTTP stops the HTTP gateway, if there is one.
func (a *Agent) stopHTTP(ctx context.Context) {
	if a.http == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, httpStop)
	defer cancel()
	if err := a.http.Shutdown(ctx); err != nil {
		a.component("agent").Warn("some requests at the HTTP gateway were cut", "err", err)
	}
}

// KafkaAddr is where the Kafka listener is.
func (a *Agent) KafkaAddr() string { return a.kafkaListener.Addr().String() }

// AdminAddr is where the admin listener is.
func (a *Agent) AdminAddr() string { return a.adminListener.Addr().String() }

// Failed delivers the error that stopped the agent from leading.
func (a *Agent) Failed() <-chan error { return a.failed }

// Shutdown gives what this agent leads to the others of its cluster, if there are any, stops
// serving, uploads what is closed while ctx lasts, and closes everything. What is acknowledged is durable with or without the upload.
func (a *Agent) Shutdown(ctx context.Context) error {
	close(a.draining)
	if a.stream != nil { // what waits for a bucket that is away waits no longer than this
		defer context.AfterFunc(ctx, func() { a.stream.Poison(context.Cause(ctx)) })()
	}
	var errs []error
	if m := a.leading.Load(); m != nil && a.storageErr() == nil {
		if err := m.Drain(ctx); err != nil {
			a.component("agent").Warn("not all partitions were given to other agents; they take them over when this one's lease has ended", "err", err)
		}
	}
	a.stopHTTP(ctx)
	errs = append(errs, a.kafka.Shutdown(ctx))
	if err := a.broker.Drain(ctx); err != nil {
		a.component("agent").Warn("some closed segments were not uploaded; they will be at the next start", "err", err)
	}
	adminCtx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := a.admin.Shutdown(adminCtx); err != nil {
		a.admin.Close()
	}
	errs = append(errs, <-a.serving, <-a.serving)
	if a.http != nil {
		errs = append(errs, <-a.serving)
	}
	errs = append(errs, a.closeAll())
	return errors.Join(errs...)
}

// fencedStop bounds the stop of an agent whose partitions were given to others: nothing that it
// has counts any more.
const fencedStop = time.Second

// anewPause is how long an agent that begins anew waits for a metadata store or bucket that is away.
const anewPause = time.Second

// Run serves until ctx ends, then shuts down within the configured time. An agent whose
// stream was sealed, because the others took it for dead, begins anew, as soon as metadata store and bucket can be reached.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if path := os.Getenv(testClock); path != "" {
		c := newJumpingClock(path)
		defer c.stop()
		cfg.Now = c.Now
	}
	for began := false; ; {
		started, err := runOnce(ctx, cfg, log)
		began = began || started
		switch {
		case ctx.Err() != nil && anew(err):
			log.Warn("others lead this agent's partitions, or will; what it had not acknowledged is for its clients to send again", "err", err)
			return nil
		case ctx.Err() != nil && !started && (errors.Is(err, context.Canceled) || away(err)):
			log.Info("stopped before it served", "err", err)
			return nil
		case ctx.Err() != nil:
			return err
		case started && anew(err):
			log.Warn("others lead this agent's partitions, or will: it was taken for dead, or does not reach the bucket; starting anew", "err", err)
			continue
		case started || !began || !away(err):
			return err
		}
		log.Warn("this agent can't start anew yet; trying again", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(anewPause):
		}
	}
}

// away tells whether what was to be opened can't be reached now.
func away(err error) bool {
	return errors.Is(err, metadata.ErrUnavailable) || errors.Is(err, kv.ErrUnavailable) || objstore.Retriable(err) || errors.Is(err, objstore.ErrDenied) || errors.Is(err, objstore.ErrNoBucket)
}

// runOnce is one life of the agent; started tells whether it came to serve.
func runOnce(ctx context.Context, cfg Config, log *slog.Logger) (started bool, _ error) {
	a, err := Start(ctx, cfg, log)
	if err != nil {
		return false, err
	}
	var failure error
	select {
	case <-ctx.Done():
	case failure = <-a.Failed():
	}
	a.component("agent").Info("shutting down")
	limit := a.cfg.ShutdownTimeout
	if anew(failure) {
		limit = fencedStop
		failure = errors.Join(failure, a.replaced())
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	err = errors.Join(failure, a.Shutdown(stop))
	if err == nil {
		a.component("agent").Info("stopped")
	}
	return true, err
}
