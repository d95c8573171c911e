// Package bolt is the embedded driver of the metadata store: one bbolt file
// that belongs to one process. A commit is durable when Commit returns;
// concurrent commits share one sync.
//
// The file has two buckets: "format" with the format version under "version",
// and "kv" with, for each key, 8 bytes of big-endian revision followed by the
// value. The revision is the sequence of the "kv" bucket, so it goes on growing
// over deletes and restarts.
package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	bbolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// FormatVersion of the file. A file of another version is refused.
const FormatVersion = 1

const (
	queueLen = 128 // commits that wait for the writer
	maxGroup = 128 // commits that share one sync
)

// ErrLocked: another process has the file open.
var ErrLocked = errors.New("metadata file is in use by another process")

// ErrVersion: the file has a format version that this program does not know.
var ErrVersion = errors.New("unknown format version of metadata file")

var errNoChange = errors.New("nothing to write") // ends a transaction without a sync

// Options of Open; the zero value is the default.
type Options struct {
	LockTimeout time.Duration // how long to wait for the file lock; 0: 1 s
	Logger      *slog.Logger  // nil: slog.Default()
	Now         func() time.Time
	// openFile replaces os.OpenFile, for tests that break the file.
	openFile func(string, int, os.FileMode) (*os.File, error)
}

// Store is the bbolt driver. Leases live in memory only: the file lock already
// makes sure that no other process can hold one.
type Store struct {
	*kv.LeaseTable
	db     *bbolt.DB
	hub    *kv.Hub
	logger *slog.Logger
	queue  chan *commit
	done   chan struct{} // closed by Close
	writer sync.WaitGroup

	mu       sync.RWMutex
	poisoned error // after a failed write or sync; the outcome of it is unknown
	closed   bool
}

var _ kv.Store = (*Store)(nil)

type commit struct {
	ops    []kv.Op
	pre    []kv.Precondition
	revs   []kv.Revision
	err    error
	change []kv.Item
	done   chan struct{}
}

func bucketKV() []byte     { return []byte("kv") }
func bucketFormat() []byte { return []byte("format") }

// Open opens or creates the file at path; its directory must exist. It returns
// ErrLocked when another process has it and ErrVersion when its format is unknown.
func Open(path string, opts Options) (*Store, error) {
	if opts.LockTimeout <= 0 {
		opts.LockTimeout = time.Second
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: opts.LockTimeout, FreelistType: bbolt.FreelistMapType, OpenFile: opts.openFile,
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("open metadata %s: %w: stop it, or use another data directory", path, ErrLocked)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, fmt.Errorf("open metadata %s: not a metadata file, or damaged (%w): restore it, or move it away and start on the same bucket", path, err)
	case err != nil:
		return nil, fmt.Errorf("open metadata %s: %w", path, err)
	}
	if err := prepare(db, path); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s := &Store{
		LeaseTable: kv.NewLeaseTable(opts.Now), db: db, hub: kv.NewHub(), logger: opts.Logger,
		queue: make(chan *commit, queueLen), done: make(chan struct{}),
	}
	s.writer.Go(s.write)
	return s, nil
}

// prepare makes the buckets of a new file, or checks the version of an old one,
// and makes the directory entry durable, which bbolt does not.
func prepare(db *bbolt.DB, path string) error {
	var version []byte
	err := db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(bucketFormat()); b != nil {
			version = bytes.Clone(b.Get([]byte("version")))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read metadata %s: %w", path, err)
	}
	want := strconv.Itoa(FormatVersion)
	if version != nil {
		if string(version) != want {
			return fmt.Errorf("open metadata %s: %w: %q, this program knows %s", path, ErrVersion, version, want)
		}
		return nil
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		f, err := tx.CreateBucketIfNotExists(bucketFormat())
		if err != nil {
			return err
		}
		if _, err := tx.CreateBucketIfNotExists(bucketKV()); err != nil {
			return err
		}
		return f.Put([]byte("version"), []byte(want))
	})
	if err != nil {
		return fmt.Errorf("create metadata %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
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
	case s.poisoned != nil:
		return fmt.Errorf("%w: an earlier write failed (%v); restart to find out what is on the disk", kv.ErrUnavailable, s.poisoned)
	}
	return nil
}

// Get implements kv.Store.
func (s *Store) Get(ctx context.Context, key string) (kv.Item, error) {
	if err := s.usable(ctx); err != nil {
		return kv.Item{}, err
	}
	var it kv.Item
	err := s.view(func(b *bbolt.Bucket) error {
		v := b.Get([]byte(key))
		if v == nil {
			return fmt.Errorf("get %q: %w", key, kv.ErrNotFound)
		}
		var err error
		it, err = decode([]byte(key), v)
		return err
	})
	return it, err
}

// Range implements kv.Store.
func (s *Store) Range(ctx context.Context, prefix, from string, limit int, reverse bool) ([]kv.Item, error) {
	if err := kv.CheckRange(prefix, from, limit); err != nil {
		return nil, err
	}
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	var out []kv.Item
	err := s.view(func(b *bbolt.Bucket) error {
		c := b.Cursor()
		step := c.Next
		if reverse {
			step = c.Prev
		}
		for k, v := first(c, prefix, from, reverse); k != nil && bytes.HasPrefix(k, []byte(prefix)) && len(out) < limit; k, v = step() {
			it, err := decode(k, v)
			if err != nil {
				return err
			}
			out = append(out, it)
		}
		return nil
	})
	return out, err
}

// first places the cursor on the first key of a range.
func first(c *bbolt.Cursor, prefix, from string, reverse bool) (k, v []byte) {
	if !reverse {
		k, v = c.Seek([]byte(max(prefix, from)))
		if from != "" && string(k) == from {
			return c.Next()
		}
		return k, v
	}
	end := []byte(from)
	if from == "" {
		end = prefixEnd(prefix)
	}
	if end == nil {
		return c.Last()
	}
	if k, _ := c.Seek(end); k == nil {
		return c.Last()
	}
	return c.Prev()
}

// prefixEnd is the smallest key after all those with prefix; nil: there is none.
func prefixEnd(prefix string) []byte {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return b[:i+1]
		}
	}
	return nil
}

func (s *Store) view(f func(*bbolt.Bucket) error) error {
	err := s.db.View(func(tx *bbolt.Tx) error { return f(tx.Bucket(bucketKV())) })
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return kv.ErrClosed
	}
	return err
}

func decode(k, v []byte) (kv.Item, error) {
	if len(v) < 8 {
		return kv.Item{}, fmt.Errorf("read %q: value of %d bytes has no revision: metadata file is damaged", k, len(v))
	}
	return kv.Item{Key: string(k), Revision: kv.Revision(binary.BigEndian.Uint64(v)), Value: append([]byte{}, v[8:]...)}, nil
}

// Commit implements kv.Store. If ctx ends while the commit waits for the disk
// the outcome is unknown.
func (s *Store) Commit(ctx context.Context, ops []kv.Op, pre []kv.Precondition) ([]kv.Revision, error) {
	if err := kv.CheckCommit(ops, pre); err != nil {
		return nil, err
	}
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	c := &commit{ops: cloneOps(ops), pre: append([]kv.Precondition(nil), pre...), done: make(chan struct{})}
	select {
	case s.queue <- c:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.done:
		return nil, kv.ErrClosed
	}
	select {
	case <-c.done:
		return c.revs, c.err
	case <-ctx.Done():
		return nil, fmt.Errorf("commit: %w: %w", kv.ErrUnknown, ctx.Err())
	case <-s.done:
		s.writer.Wait() // it answers what it has taken, then stops
		select {
		case <-c.done:
			return c.revs, c.err
		default:
			return nil, kv.ErrClosed // still in the queue: nothing was done
		}
	}
}

// cloneOps copies the ops, because a caller whose ctx ends goes on while the
// writer still reads them.
func cloneOps(ops []kv.Op) []kv.Op {
	out := make([]kv.Op, len(ops))
	for i, op := range ops {
		out[i] = kv.Op{Key: op.Key, Value: bytes.Clone(op.Value), Delete: op.Delete}
	}
	return out
}

// write is the writer goroutine: it takes what waits, up to maxGroup commits,
// through one transaction.
func (s *Store) write() {
	for {
		var group []*commit
		select {
		case <-s.done:
			return
		case c := <-s.queue:
			group = append(group, c)
		}
	more:
		for len(group) < maxGroup {
			select {
			case c := <-s.queue:
				group = append(group, c)
			default:
				break more
			}
		}
		s.writeGroup(group)
	}
}

func (s *Store) writeGroup(group []*commit) {
	err := s.usable(context.Background())
	if err == nil {
		err = s.db.Update(func(tx *bbolt.Tx) error { return applyAll(tx.Bucket(bucketKV()), group) })
		if errors.Is(err, errNoChange) {
			err = nil
		}
		err = s.failed(err)
	}
	for _, c := range group {
		if err != nil {
			c.revs, c.err = nil, err
		} else if c.err == nil {
			s.hub.Publish(c.change)
		}
		close(c.done)
	}
}

// failed turns an error of the transaction into what callers are told. A full
// disk leaves the file as it was. After any other failure nobody knows what the
// disk holds, so the store answers nothing more until it is opened again.
func (s *Store) failed(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("write metadata: %w: %w", kv.ErrUnavailable, err)
	}
	s.mu.Lock()
	s.poisoned = err
	s.mu.Unlock()
	s.logger.Error("metadata write failed; the store is out of service until restart", "err", err)
	return fmt.Errorf("write metadata: %w: %w", kv.ErrUnknown, err)
}

// applyAll applies the commits one after the other; one whose preconditions do
// not hold gets its own error and changes nothing. errNoChange saves the sync
// when none did.
func applyAll(b *bbolt.Bucket, group []*commit) error {
	changes := 0
	for _, c := range group {
		c.err = check(b, c.pre)
		if c.err != nil {
			continue
		}
		if err := apply(b, c); err != nil {
			return err
		}
		changes += len(c.ops)
	}
	if changes == 0 {
		return errNoChange
	}
	return nil
}

func check(b *bbolt.Bucket, pre []kv.Precondition) error {
	for _, p := range pre {
		var at kv.Revision
		if v := b.Get([]byte(p.Key)); len(v) >= 8 {
			at = kv.Revision(binary.BigEndian.Uint64(v))
		}
		if at != p.Revision {
			return fmt.Errorf("commit: %w: %q is at revision %d, not %d", kv.ErrConflict, p.Key, at, p.Revision)
		}
	}
	return nil
}

func apply(b *bbolt.Bucket, c *commit) error {
	c.revs = make([]kv.Revision, len(c.ops))
	c.change = make([]kv.Item, len(c.ops))
	for i, op := range c.ops {
		rev, err := b.NextSequence()
		if err != nil {
			return err
		}
		c.change[i] = kv.Item{Key: op.Key, Revision: kv.Revision(rev)}
		if op.Delete {
			if err := b.Delete([]byte(op.Key)); err != nil {
				return err
			}
			continue
		}
		v := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(op.Value)), rev)
		v = append(v, op.Value...)
		if err := b.Put([]byte(op.Key), v); err != nil {
			return err
		}
		c.change[i].Value, c.revs[i] = v[8:], kv.Revision(rev)
	}
	return nil
}

// Watch implements kv.Store, for changes made by this process; there is no other.
func (s *Store) Watch(ctx context.Context, prefix string) (<-chan []kv.Item, error) {
	return s.hub.Watch(ctx, prefix)
}

// Close waits for the commits under way, ends the watches and unlocks the file.
// Closing twice is no error.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.done)
	s.writer.Wait()
	s.hub.Close()
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close metadata: %w", err)
	}
	return nil
}
