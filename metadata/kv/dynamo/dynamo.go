// Package dynamo is the driver of the metadata store on Amazon DynamoDB, for
// several agents: one table, plain reads and transactions, no streams.
//
// A commit is one TransactWriteItems with a condition for each key. In the same
// transaction it notes its keys in a change log, which is cut into shards so
// that commits do not wait for each other; watches poll the heads of the
// shards. Deleted keys leave a tombstone for an hour, so that revisions go on
// and a Range can tell that nothing came and went while it read.
//
// docs/format/kv-dynamo.md has the layout of the table, what each call costs,
// and why reads and watches are complete although DynamoDB shows the items of
// one transaction one after the other.
package dynamo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/smithy-go/logging"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

const (
	defaultTimeout = 5 * time.Second
	defaultBudget  = 10 * time.Second
	defaultPoll    = 500 * time.Millisecond
	dialLimit      = 5 * time.Second
	idleLimit      = 90 * time.Second
	connections    = 128
)

// ErrTable: the table is missing or not one of ours.
var ErrTable = errors.New("unsuitable DynamoDB table")

// ErrDataLost: the table no longer has what was there when it was opened: it was deleted, and made anew. Nothing is
// served until the store is opened again. It comes with kv.ErrUnavailable.
var ErrDataLost = fmt.Errorf("%w: the DynamoDB table was deleted or emptied", kv.ErrLost)

// ErrVersion: the table has a format version that this program does not know.
var ErrVersion = errors.New("unknown format version of metadata table")

// Options of Open; the zero value is the default.
type Options struct {
	// AccessKey and SecretKey replace AWS's credential chain.
	AccessKey, SecretKey string
	Timeout              time.Duration // of one request; 0: 5 s
	Budget               time.Duration // of one call with all its repetitions; 0: 10 s
	Poll                 time.Duration // how often a store with watches looks for changes; 0: 500 ms
	Logger               *slog.Logger  // nil: slog.Default()
	// Shorter times for tests.
	recent, fenceAfter time.Duration
}

// Store is the DynamoDB driver. Several stores, in one process or in many, may
// use one table. It is safe for concurrent use.
type Store struct {
	api       *dynamodb.Client
	transport *http.Transport
	lay       layout
	opts      Options
	clock     *clock
	shards    *shardPool
	watch     *poller
	leases    *sightings

	gen  atomic.Pointer[string] // generation of what the table has
	lost atomic.Bool            // the table has another one, or none

	mu     sync.RWMutex
	closed bool
}

var (
	_ kv.Store    = (*Store)(nil)
	_ kv.Reopener = (*Store)(nil)
)

// Open opens the table that url names:
//
//	dynamodb://TABLE[/PREFIX]?region=NAME&endpoint=URL&create=true
//
// PREFIX keeps several clusters apart in one table. With create=true a missing
// table is created, billed on demand. A table that is missing or has another
// key is ErrTable, one of another format ErrVersion. ctx bounds Open alone.
func Open(ctx context.Context, url string, opts Options) (*Store, error) {
	loc, err := parseURL(url)
	if err != nil {
		return nil, fmt.Errorf("open metadata: %w", err)
	}
	s, err := connect(ctx, loc, opts)
	if err != nil {
		return nil, fmt.Errorf("open metadata dynamodb://%s: %w", loc.table, err)
	}
	if err := s.prepare(ctx, loc); err != nil {
		s.transport.CloseIdleConnections()
		return nil, fmt.Errorf("open metadata dynamodb://%s: %w", loc.table, err)
	}
	s.watch.start()
	return s, nil
}

func connect(ctx context.Context, loc location, opts Options) (*Store, error) {
	if opts.Timeout <= 0 {
		opts.Timeout = defaultTimeout
	}
	if opts.Budget <= 0 {
		opts.Budget = defaultBudget
	}
	if opts.Poll <= 0 {
		opts.Poll = defaultPoll
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.recent <= 0 {
		opts.recent = recent
	}
	if opts.fenceAfter <= 0 {
		opts.fenceAfter = fenceAfter
	}
	cfg, err := loadConfig(ctx, loc, opts)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: dialLimit, KeepAlive: idleLimit / 3}).DialContext,
		TLSHandshakeTimeout: dialLimit, IdleConnTimeout: idleLimit, ForceAttemptHTTP2: true,
		MaxConnsPerHost: connections, MaxIdleConns: connections, MaxIdleConnsPerHost: connections,
	}
	s := &Store{
		transport: t, opts: opts, lay: layout{table: loc.table, prefix: loc.prefix},
		clock: newClock(), shards: newShardPool(), leases: newSightings(),
	}
	s.api = dynamodb.NewFromConfig(cfg, func(o *dynamodb.Options) {
		o.HTTPClient = &http.Client{Transport: t}
		if loc.endpoint != "" {
			o.BaseEndpoint = aws.String(loc.endpoint)
		}
		// The SDK expects a checksum in every answer; others than Amazon send none.
		o.DisableValidateResponseChecksum = loc.endpoint != ""
		o.Logger = logging.LoggerFunc(func(_ logging.Classification, format string, v ...any) {
			opts.Logger.Debug(fmt.Sprintf(format, v...), "from", "aws-sdk")
		})
		o.Retryer = aws.NopRetryer{} // do repeats, and knows what a lost answer means
	})
	s.watch = newPoller(s)
	return s, nil
}

func loadConfig(ctx context.Context, loc location, opts Options) (aws.Config, error) {
	var load []func(*config.LoadOptions) error
	if loc.region != "" {
		load = append(load, config.WithRegion(loc.region))
	}
	if opts.AccessKey != "" {
		load = append(load, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(opts.AccessKey, opts.SecretKey, "")))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return cfg, err
	}
	if cfg.Region == "" {
		if loc.endpoint == "" {
			return cfg, errors.New("region is not known: give region= or set AWS_REGION")
		}
		cfg.Region = "us-east-1"
	}
	return cfg, nil
}

// usable returns why the store can't be used, or nil.
func (s *Store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case s.closed:
		return kv.ErrClosed
	case s.lost.Load():
		return fmt.Errorf("%w: table %q: %w", kv.ErrUnavailable, s.lay.table, ErrDataLost)
	}
	return nil
}

// Get implements kv.Store.
func (s *Store) Get(ctx context.Context, key string) (kv.Item, error) {
	if err := s.usable(ctx); err != nil {
		return kv.Item{}, err
	}
	if err := kv.CheckKey(key); err != nil {
		return kv.Item{}, fmt.Errorf("get %q: %w: %w", key, kv.ErrNotFound, err) // no commit takes it
	}
	r, err := s.row(ctx, key)
	if err != nil {
		return kv.Item{}, fmt.Errorf("get %q: %w", key, err)
	}
	if r.value == nil {
		return kv.Item{}, fmt.Errorf("get %q: %w", key, kv.ErrNotFound)
	}
	return r.item(), nil
}

// row reads the row of a key; without one it is the zero row.
func (s *Store) row(ctx context.Context, key string) (row, error) {
	var r row
	err := s.do(ctx, s.newTries(), func(ctx context.Context) error {
		out, err := s.api.GetItem(ctx, &dynamodb.GetItemInput{
			TableName: &s.lay.table, Key: s.lay.rowKey(key), ConsistentRead: aws.Bool(true),
		})
		if err != nil {
			return err
		}
		s.clock.server(out.ResultMetadata)
		if out.Item == nil {
			r = row{key: key}
			return nil
		}
		r, err = decodeRow(out.Item)
		return err
	})
	return r, err
}

// Watch implements kv.Store. Watches of one store share one poll.
func (s *Store) Watch(ctx context.Context, prefix string) (<-chan []kv.Item, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	ch, err := s.watch.add(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("watch %q: %w", prefix, err)
	}
	return ch, nil
}

// Close ends the watches and drops the connections. Calls that are under way
// end by their own limits.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.watch.stop()
	s.transport.CloseIdleConnections()
	return nil
}
