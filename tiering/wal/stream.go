package wal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// ErrFenced: the stream was sealed, or somebody else writes it. What was not
// announced before will never count; the incarnation must stop serving.
var ErrFenced = errors.New("wal: the stream was sealed by another agent")

// Defaults of Options.
const (
	DefaultLinger      = 100 * time.Millisecond
	DefaultFlushBytes  = 4 << 20
	DefaultMaxInFlight = 8
	DefaultCapacity    = 1 << 30
	DefaultMaxAppend   = 64 << 20
	// DefaultCheckpointEvery is in objects.
	DefaultCheckpointEvery = 256
	// DefaultCloseTimeout bounds the time that Close waits for puts.
	DefaultCloseTimeout = 10 * time.Second
)

// Options of a Stream; zero values mean the defaults above. Bucket, Cluster,
// Incarnation, Pool and Announce are required.
type Options struct {
	Bucket      objstore.Bucket
	Cluster     [16]byte
	Incarnation ids.Incarnation
	Pool        *contract.Pool
	Announce    contract.Announce
	// OnFull is called, without locks, when an Append has to wait for Trim.
	OnFull func()
	// Linger is the least time between two puts, unless FlushBytes are pending:
	// a lone batch leaves at once.
	Linger time.Duration
	// FlushBytes of pending data are put without waiting for Linger.
	FlushBytes int64
	// MaxInFlight bounds the puts under way at the same time.
	MaxInFlight int
	// Capacity bounds the bytes that are appended and not trimmed.
	Capacity int64
	// MaxAppend bounds the data of one Append, in bytes.
	MaxAppend       int
	CheckpointEvery uint64
	CloseTimeout    time.Duration
	Logger          *slog.Logger
	// Spare, if not nil, is asked just before an object goes: whether the offsets are indexed, below the
	// durable log start, or of a deleted topic, now. As long as they are not, the object stays. It may
	// be called by several goroutines.
	Spare func(ctx context.Context, tp ids.TopicPartition, base, last int64) (bool, error)
	// OnCheckpoint, if not nil, is called, without locks, when a checkpoint is durable.
	OnCheckpoint func()
	// OnPut, if not nil, is told of every object that was put.
	OnPut func(bytes int64, took time.Duration)
	// OnDurable, if not nil, is told in order of every object that is in the bucket with all before it:
	// when its put was begun, nobody had sealed the stream. An object that was put proves nothing, it may
	// lie behind a seal.
	OnDurable func(began time.Time)
	Now       func() time.Time // the clock of OnDurable; default: time.Now
}

func (o *Options) setDefaults() error {
	if o.Bucket == nil || o.Pool == nil || o.Announce == nil || o.Incarnation == "" {
		return errors.New("open stream: bucket, incarnation, pool and announce are required")
	}
	if o.Linger == 0 {
		o.Linger = DefaultLinger
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.FlushBytes <= 0 {
		o.FlushBytes = DefaultFlushBytes
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = DefaultMaxInFlight
	}
	if o.Capacity <= 0 {
		o.Capacity = DefaultCapacity
	}
	if o.MaxAppend <= 0 {
		o.MaxAppend = DefaultMaxAppend
	}
	if o.CheckpointEvery == 0 {
		o.CheckpointEvery = DefaultCheckpointEvery
	}
	if o.CloseTimeout <= 0 {
		o.CloseTimeout = DefaultCloseTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// commit is what becomes one object.
type commit struct {
	seq        uint64
	pos, end   contract.Pos
	bytes      int64 // of data
	entries    []*contract.Entry
	chunks     []*contract.Chunk // one reference to each
	change     Change
	waiting    []chan changed // of those who changed something
	filling    sync.WaitGroup // copies under way
	checkpoint *Checkpoint
	ckptAt     uint64
	made       time.Time // when it was to be put
	began      time.Time // of the put, by Options.Now
	done       bool      // the object is in the bucket
}

// changed is what became of a Change: the object that has it, or an error.
type changed struct {
	seq uint64
	err error
}

// holding is a partition that the stream's incarnation owns.
type holding struct {
	Held
	// own is the offset from which on batches that are not tiered are in this stream.
	own int64
}

// object is one of the stream that is durable and not deleted.
type object struct {
	seq  uint64
	end  contract.Pos
	offs []offsets // of its batches, by partition
}

// Stream is a contract.Stream on the objects of one incarnation. A Pos counts
// the bytes of its entries, not those of the objects.
type Stream struct {
	o     Options
	nonce [16]byte

	mu      sync.Mutex
	cond    *sync.Cond // of flusher, announcer and trimmer
	open    *commit    // takes appends; nil when nothing is pending
	queue   []*commit  // being put, in order
	flights int        // puts under way
	next    uint64     // number of the next object
	last    time.Time  // when the last commit was taken
	chunk   *contract.Chunk
	used    int
	end     contract.Pos
	durable contract.Pos
	trimmed contract.Pos
	live    []object      // durable, not trimmed
	doomed  []object      // trimmed, not deleted yet
	newest  uint64        // last durable object
	ckptAt  uint64        // newest checkpoint that was taken
	ckptOK  uint64        // newest checkpoint that is durable
	space   chan struct{} // closed and replaced when something was taken or trimmed
	held    map[ids.TopicPartition]*holding
	given   map[ids.TopicPartition]Release
	err     error
	closed  bool

	ctx    context.Context
	cancel context.CancelFunc
	asking context.Context // of those who look whether an object may go: Close does not wait for them
	hush   context.CancelFunc
	wg     sync.WaitGroup
}

var _ contract.Stream = (*Stream)(nil)

// Open begins the stream of a new incarnation by putting its object 0.
func Open(ctx context.Context, o Options) (*Stream, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	s := &Stream{o: o, space: make(chan struct{}), held: map[ids.TopicPartition]*holding{}, given: map[ids.TopicPartition]Release{}}
	s.cond = sync.NewCond(&s.mu)
	rand.Read(s.nonce[:])
	first := &commit{checkpoint: &Checkpoint{}}
	b, sum, err := s.build(first)
	if err != nil {
		return nil, err
	}
	if _, err := objstore.PutCreateOnly(ctx, o.Bucket, Key(o.Incarnation, 0), b, objstore.PutOptions{CRC32C: &sum}); err != nil {
		return nil, fmt.Errorf("begin stream %s: %w", o.Incarnation, err)
	}
	s.next = 1
	s.live = []object{{seq: 0}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.asking, s.hush = context.WithCancel(s.ctx)
	s.wg.Add(3)
	go s.flush()
	go s.announce()
	go s.delete()
	return s, nil
}

// Replay implements the contract: a new incarnation's stream has nothing.
func (s *Stream) Replay(func(*contract.Entry) error) error { return nil }

// MaxAppend implements the contract.
func (s *Stream) MaxAppend() int { return s.o.MaxAppend }

// maxObject is how large an object grows while all puts are under way.
const maxObject = 4 * DefaultFlushBytes

// Append implements the contract.
func (s *Stream) Append(ctx context.Context, entries ...*contract.Entry) error {
	n, size := 0, contract.Pos(0)
	for _, e := range entries {
		n += len(e.Data)
		size += contract.Pos(contract.EntrySize(len(e.Data)))
	}
	if n > s.o.MaxAppend {
		return fmt.Errorf("%w: %d bytes, limit %d", contract.ErrTooLarge, n, s.o.MaxAppend)
	}
	var spare *contract.Chunk
	defer func() {
		if spare != nil {
			spare.Release()
		}
	}()
	for {
		s.mu.Lock()
		if err := s.usableLocked(); err != nil {
			s.mu.Unlock()
			return err
		}
		wait, full := s.roomLocked(int64(n), size)
		switch {
		case wait != nil:
			s.mu.Unlock()
			if full && s.o.OnFull != nil {
				s.o.OnFull()
			}
			select {
			case <-wait:
			case <-ctx.Done():
				return fmt.Errorf("append: no room in the stream: %w", context.Cause(ctx))
			}
		case spare == nil && (s.chunk == nil || s.used+n > len(s.chunk.B)):
			s.mu.Unlock()
			c, err := s.o.Pool.Get(ctx, n)
			if err != nil {
				return err
			}
			spare = c
		default:
			spare = s.takeLocked(entries, n, size, spare)
			return nil
		}
	}
}

func (s *Stream) usableLocked() error {
	switch {
	case s.closed:
		return contract.ErrClosed
	case s.err != nil:
		return s.err
	}
	return nil
}

// roomLocked returns what to wait for before n bytes of data fit; full says
// that it is a Trim.
func (s *Stream) roomLocked(n int64, size contract.Pos) (wait chan struct{}, full bool) {
	if s.end > s.trimmed && int64(s.end-s.trimmed+size) > s.o.Capacity {
		return s.space, true
	}
	if s.open != nil && s.open.bytes > 0 && s.open.bytes+n > max(maxObject, s.o.FlushBytes) {
		return s.space, false
	}
	return nil, false
}

// takeLocked gives the entries their place and unlocks. It returns what is not needed of
// spare.
func (s *Stream) takeLocked(entries []*contract.Entry, n int, size contract.Pos, spare *contract.Chunk) *contract.Chunk {
	if s.chunk == nil || s.used+n > len(s.chunk.B) {
		if s.chunk != nil {
			s.chunk.Release()
		}
		s.chunk, s.used, spare = spare, 0, nil
	}
	c := s.openLocked()
	if k := len(c.chunks); k == 0 || c.chunks[k-1] != s.chunk {
		s.chunk.Retain()
		c.chunks = append(c.chunks, s.chunk)
	}
	chunk, at := s.chunk, s.used
	s.used += n
	for _, e := range entries {
		chunk.Retain()
		e.Chunk, e.Pos = chunk, c.pos
	}
	c.entries = append(c.entries, entries...)
	c.bytes += int64(n)
	s.end += size
	c.end = s.end
	c.filling.Add(1)
	s.cond.Broadcast()
	s.mu.Unlock()
	for _, e := range entries {
		k := copy(chunk.B[at:at+len(e.Data)], e.Data)
		e.Data = chunk.B[at : at+k : at+k]
		at += k
	}
	c.filling.Done()
	return spare
}

func (s *Stream) openLocked() *commit {
	if s.open == nil {
		s.open = &commit{pos: s.end, end: s.end}
	}
	return s.open
}

// Change is what a stream says of its partitions beside their batches.
type Change struct {
	LogStarts   []LogStart
	Acceptances []Acceptance
	Releases    []Release
}

// Change puts the change into the stream, behind all that was appended before,
// and waits until it is durable. When ctx ends first it may become durable later.
func (s *Stream) Change(ctx context.Context, ch Change) error {
	_, err := s.change(ctx, ch)
	return err
}

// Release is a Change that gives partitions away, of which nothing may be appended after it. What was
// appended before may not be durable yet: it is when the release is. It returns the number of the object that has the releases.
func (s *Stream) Release(ctx context.Context, rs []Release) (seq uint64, err error) {
	return s.change(ctx, Change{Releases: rs})
}

func (s *Stream) change(ctx context.Context, ch Change) (seq uint64, err error) {
	done := make(chan changed, 1)
	s.mu.Lock()
	if err := s.usableLocked(); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	c := s.openLocked()
	c.change.LogStarts = append(c.change.LogStarts, ch.LogStarts...)
	c.change.Acceptances = append(c.change.Acceptances, ch.Acceptances...)
	c.change.Releases = append(c.change.Releases, ch.Releases...)
	c.waiting = append(c.waiting, done)
	s.end++ // so that the object has a position of its own
	c.end = s.end
	s.cond.Broadcast()
	s.mu.Unlock()
	select {
	case c := <-done:
		return c.seq, c.err
	case <-ctx.Done():
		return 0, fmt.Errorf("change partitions of the stream: %w", context.Cause(ctx))
	}
}

// Tiered says that the partition's batches below end are tiered and indexed:
// checkpoints need not name older streams for them any more.
func (s *Stream) Tiered(tp ids.TopicPartition, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.held[tp]
	if h == nil {
		return
	}
	h.own = max(h.own, end)
	var keep []OlderRange // a new one: a checkpoint may have the old one
	for _, o := range h.Older {
		if o.End > end {
			o.Base = max(o.Base, end)
			keep = append(keep, o)
		}
	}
	h.Older = keep
}

// Trim implements the contract. The objects are deleted in the background, in order.
func (s *Stream) Trim(to contract.Pos) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(); err != nil {
		return err
	}
	moved := false
	for len(s.live) > 0 && s.live[0].end <= min(to, s.durable) {
		s.trimmed = s.live[0].end
		s.doomed = append(s.doomed, s.live[0])
		s.live = s.live[1:]
		moved = true
	}
	if moved {
		s.spaceLocked()
		s.cond.Broadcast()
	}
	return nil
}

func (s *Stream) spaceLocked() {
	close(s.space)
	s.space = make(chan struct{})
}

// State implements the contract.
func (s *Stream) State() contract.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return contract.State{Trimmed: s.trimmed, Durable: s.durable, End: s.end, Capacity: s.o.Capacity, TrimsLater: true, Err: s.err}
}

// Objects returns how many objects of the stream are in the bucket and how many
// of them are still needed.
func (s *Stream) Objects() (present, needed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live) + len(s.doomed), len(s.live)
}

// Next returns the number of the next object.
func (s *Stream) Next() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

// Waiting returns for how long the oldest object that is to be put is not durable; 0: there is none.
func (s *Stream) Waiting() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return 0
	}
	return time.Since(s.queue[0].made)
}

// Oldest returns the end of the n-th oldest object that is not trimmed; n counts from 1.
func (s *Stream) Oldest(n int) contract.Pos {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n = min(n, len(s.live)); n < 1 {
		return s.trimmed
	}
	return s.live[n-1].end
}

// Poison ends the stream with an error of somebody else.
func (s *Stream) Poison(err error) {
	s.mu.Lock()
	s.failLocked(err)
	s.mu.Unlock()
}

func (s *Stream) failLocked(err error) {
	if s.err != nil {
		return
	}
	if !errors.Is(err, contract.ErrPoisoned) {
		err = fmt.Errorf("%w: %w", contract.ErrPoisoned, err)
	}
	s.err = err
	s.cancel()
	s.spaceLocked()
	s.cond.Broadcast()
}

// Close implements the contract. Puts that are not done within CloseTimeout
// are given up; what they have is announced as failed.
func (s *Stream) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return contract.ErrClosed
	}
	s.closed = true
	s.hush()
	s.spaceLocked()
	s.cond.Broadcast()
	s.mu.Unlock()
	late := time.AfterFunc(s.o.CloseTimeout, s.cancel)
	s.wg.Wait()
	late.Stop()
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chunk != nil {
		s.chunk.Release()
		s.chunk = nil
	}
	return s.err
}
