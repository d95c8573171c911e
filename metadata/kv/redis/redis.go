// Package redis is the driver of the metadata store on a Redis server of
// version 6.2 or later, a cluster of them, or what speaks like one. All of a
// store lies under one namespace; docs/format/kv-redis.md describes its keys.
//
// A commit is as durable as Redis makes it. Redis answers before its replicas
// have a write, and before the disk has it unless appendfsync is always, so a
// failover or a power failure may take the last commits back. Nothing that was
// acknowledged to a client lies in the metadata store alone; revisions go on
// growing over such a loss, and watches end.
package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// FormatVersion of a namespace. One of another version is refused.
const FormatVersion = 1

// ErrVersion: the namespace has a format version that this program does not know.
var ErrVersion = errors.New("unknown format version of metadata in redis")

const (
	logBytes   = 16 << 20 // of changes that are kept for watches
	blockFor   = 2 * time.Second
	patience   = 5 * time.Second // of Watch for changes made before it
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// Options of Open; the zero value is the default.
type Options struct {
	Namespace string       // if the URL names none; "": cirrolog
	Logger    *slog.Logger // nil: slog.Default()

	logBytes int           // 0: logBytes
	blockFor time.Duration // longest wait of one read of the changes; 0: blockFor
}

// Store is the Redis driver.
type Store struct {
	name    string // HOST:PORT, namespace NAME; for errors
	keys    keys
	gen     atomic.Pointer[string] // of the namespace
	node    *node
	changes *changes
	opts    Options
	logger  *slog.Logger

	mu     sync.RWMutex
	closed bool
	calls  sync.WaitGroup // requests under way; Add under mu, while not closed
}

var (
	_ kv.Store    = (*Store)(nil)
	_ kv.Reopener = (*Store)(nil)
)

// silence keeps go-redis from writing lines of its own about errors that it
// also returns. Its logger is one for the process; no other package uses it.
var silence = sync.OnceFunc(logging.Disable)

// Open opens the namespace that url names, or creates it:
// redis[s]://[USER:PASSWORD@]HOST[:PORT][/DB][?namespace=NAME]. It refuses a
// server older than 6.2, one that may evict keys, and with ErrVersion a
// namespace of another format. A server that keeps nothing over a restart gets a
// warning; one that still reads its file is waited for until ctx ends.
func Open(ctx context.Context, url string, opts Options) (*Store, error) {
	silence()
	o, ns, err := parseURL(url, opts.Namespace)
	if err != nil {
		return nil, err
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.logBytes == 0 {
		opts.logBytes = logBytes
	}
	if opts.blockFor == 0 {
		opts.blockFor = blockFor
	}
	s := &Store{name: fmt.Sprintf("redis %s, namespace %s", o.Addr, ns), keys: keysOf(ns), opts: opts, logger: opts.Logger}
	info, err := inspect(ctx, o, opts.Logger)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", s.name, err)
	}
	for _, w := range info.warnings() {
		s.logger.Warn(w, "redis", o.Addr)
	}
	clustered := info.clustered()
	if clustered && o.DB != 0 {
		return nil, fmt.Errorf("open %s: a cluster has no database %d: leave it out of the URL", s.name, o.DB)
	}
	s.node = newNode(o, clustered, s.keys.meta, 0)
	if err := s.enter(ctx); err != nil {
		err = errors.Join(fmt.Errorf("open %s: %w", s.name, err), s.node.close())
		s.calls.Wait()
		return nil, err
	}
	s.changes = newChanges(s, func() *node { return newNode(o, clustered, s.keys.meta, 1) })
	return s, nil
}

// enter reads the namespace's version and generation, or creates it.
func (s *Store) enter(ctx context.Context) error {
	m := &mark{text: strconv.Itoa(FormatVersion)}
	k := []string{s.keys.meta, s.keys.sorted, s.keys.rows, s.keys.log}
	a, err := s.send(ctx, m, openScript, k, []any{rand.Text()})
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fault(err, false) // to create it twice does no harm
	case len(a) == 1 && a[0] == "damaged":
		return fmt.Errorf("the key %s is gone or incomplete, though others of the namespace are there: restore it, or delete them and start on the same bucket", s.keys.meta)
	case len(a) != 3:
		return fmt.Errorf("%w: unexpected answer %q", kv.ErrUnavailable, a)
	case a[1] != strconv.Itoa(FormatVersion):
		return fmt.Errorf("%w: %q, this program knows %d", ErrVersion, a[1], FormatVersion)
	}
	s.gen.Store(&a[2])
	return nil
}

// Reopen implements kv.Reopener.
func (s *Store) Reopen(ctx context.Context, check func(kv.Store) error) error {
	a, err := s.send(ctx, &mark{text: strconv.Itoa(FormatVersion)}, generationScript, []string{s.keys.meta}, nil)
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fault(err, false)
	case len(a) == 1 && a[0] == "absent", len(a) == 3 && a[2] == *s.gen.Load():
		return nil
	case len(a) != 3:
		return unexpected("reopen", "", a)
	case a[1] != strconv.Itoa(FormatVersion):
		return fmt.Errorf("reopen %s: %w: %q, this program knows %d", s.name, ErrVersion, a[1], FormatVersion)
	}
	now := &Store{name: s.name, keys: s.keys, node: s.node, changes: s.changes, opts: s.opts, logger: s.logger}
	now.gen.Store(&a[2])
	if err := check(now); err != nil {
		return fmt.Errorf("reopen %s: %w", s.name, err)
	}
	s.gen.Store(&a[2])
	return nil
}

// begin counts a call in, unless the store is closed; the caller calls
// s.calls.Done.
func (s *Store) begin() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return kv.ErrClosed
	}
	s.calls.Add(1)
	return nil
}

// run runs a script on the namespace and returns the first word of its answer,
// and the rest. writes says that it may change something, so that a lost answer
// is kv.ErrUnknown. The arguments must not be changed afterwards, even when ctx
// ended.
func (s *Store) run(ctx context.Context, writes bool, sc script, keys []string, argv ...any) (word string, rest []string, err error) {
	m := &mark{text: *s.gen.Load()}
	a, err := s.send(ctx, m, sc, keys, argv)
	wasSent := m.abandon()
	switch {
	case errors.Is(err, kv.ErrClosed):
		return "", nil, err
	case err != nil && ctx.Err() != nil && !isReply(err):
		return "", nil, ended(ctx, writes && wasSent)
	case err != nil:
		return "", nil, fault(err, writes && wasSent)
	case len(a) == 0:
		return "", nil, fault(errors.New("empty answer"), writes)
	case a[0] == "lost":
		return "", nil, fmt.Errorf("%w: %s: %w: restart on the same bucket, or restore it", kv.ErrUnavailable, s.name, ErrDataLost)
	}
	return a[0], a[1:], nil
}

// send runs a script and waits for its answer until ctx ends; m tells whether
// it was sent then, and keeps it from being sent later.
func (s *Store) send(ctx context.Context, m *mark, sc script, keys []string, argv []any) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.begin(); err != nil {
		return nil, err
	}
	type result struct {
		answer []any
		err    error
	}
	done := make(chan result, 1)
	go func() { // the client does not heed ctx while it waits for an answer
		defer s.calls.Done()
		answer, err := s.node.eval(ctx, m, sc, keys, argv)
		done <- result{answer, err}
	}()
	select {
	case r := <-done:
		return texts(r.answer), r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ended is the error of a call whose ctx ended.
func ended(ctx context.Context, mayHaveChanged bool) error {
	if mayHaveChanged {
		return fmt.Errorf("%w: %w", kv.ErrUnknown, ctx.Err())
	}
	return ctx.Err()
}

// texts turns an answer into strings; what is none becomes "".
func texts(answer []any) []string {
	out := make([]string, len(answer))
	for i, v := range answer {
		out[i], _ = v.(string)
	}
	return out
}

// Close waits for requests under way, ends the watches and closes the
// connections. Closing twice is no error.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.changes.close()
	s.calls.Wait() // each ends by the client's timeouts
	if err := s.node.close(); err != nil && !errors.Is(err, goredis.ErrClosed) {
		return fmt.Errorf("close %s: %w", s.name, err)
	}
	return nil
}
