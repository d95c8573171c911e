// Package wal is the contract of a write-ahead stream: the one place where an
// agent makes appended batches durable, for all its partitions together.
//
// A stream has one writer process. Entries enter by Append in the order of the
// calls; everything pending is committed together (group commit), and durable
// entries are announced in stream order, never with a gap. A failed write or
// sync poisons the stream: every pending and later entry fails with the same
// error and nothing is retried, because a sync that failed once may have
// dropped the bytes.
//
// Drivers: storage/wal/ring (class local) and tiering/wal (class object).
// storage/wal/waltest is the conformance suite that every driver passes.
package wal

import (
	"context"
	"errors"

	"github.com/cirrolog/cirrolog/storage/ids"
)

var (
	// ErrPoisoned is wrapped by every error after a failed write or sync.
	ErrPoisoned = errors.New("wal: poisoned by a failed write")
	// ErrClosed is returned by Append after Close.
	ErrClosed = errors.New("wal: closed")
	// ErrTooLarge is returned for an entry that can never fit.
	ErrTooLarge = errors.New("wal: entry too large")
	// ErrDamaged is wrapped when bytes that must be whole are not: a commit in
	// the middle of the stream. A torn end is not damage: it was never acked.
	ErrDamaged = errors.New("wal: damaged")
	// ErrVersion is wrapped when the stream was written by another format version.
	ErrVersion = errors.New("wal: unknown format version")
	// ErrForeign is wrapped when the stream belongs to another disk or cluster.
	ErrForeign = errors.New("wal: belongs to another disk")
)

// Pos is a position in a stream. It only grows, through restarts too.
type Pos uint64

// Kind says what an entry is.
type Kind uint8

const (
	// KindBatch is one Kafka v2 record batch, stamped with its final base
	// offset and leader epoch.
	KindBatch Kind = 1
	// KindLogStart moves the partition's log start offset to Base. It has no data.
	KindLogStart Kind = 2
	// KindRef is a batch whose bytes lie in a segment file, all but those of its
	// last block: see Ref. Streams of before do not take it: State.Refs tells.
	KindRef Kind = 3
)

// Entry is one thing appended. The caller owns it and must not change it
// between Append and its announcement.
type Entry struct {
	TP    ids.TopicPartition
	Kind  Kind
	Epoch int32
	// Base and Last are the first and last offset of a batch.
	Base, Last int64
	// Segment is the base offset of the segment that the batch belongs to, when
	// InSegment says that it is known. At most 2^32-1 before Base.
	Segment   int64
	InSegment bool
	// FilePos is where the batch lies in that segment's file, in bytes, when
	// HasPos, beside InSegment, says that it is known.
	FilePos int64
	HasPos  bool
	// Ready, if not nil, waits until what the entry refers to is durable: the entry
	// is announced after that, and so is all that is committed with it. Nothing
	// is written behind it before. Its error poisons the stream. It is called
	// whatever becomes of the entry, once it was appended.
	Ready func() error
	// Newest says in a replay that no commit follows: of what a KindRef entry
	// refers to only the batch itself was looked at.
	Newest bool
	// Data is the batch. Append copies it and sets Data to the stable copy,
	// which stays valid as long as the caller holds Chunk.
	Data []byte
	// Chunk is the memory that holds Data after Append; Append leaves one
	// reference to the caller.
	Chunk *Chunk
	// Pos is where the entry's commit is, set by Append: the entries of one
	// commit share it. Trim(p) with p > Pos gives it up.
	Pos Pos
	// Owner is the caller's: the announcement gets the entry back with it.
	Owner any
}

// Announce is called by a stream, from one goroutine, in stream order, with
// entries that have become durable (err nil) or never will (err not nil; the
// stream is poisoned or closed). It must not block and must not call the stream.
type Announce func(entries []*Entry, err error)

// Stream is one write-ahead stream. Replay is called exactly once, before the
// first Append. Append, Trim and State may then be called from several goroutines.
type Stream interface {
	// Replay calls fn with every entry at or after the trim position that was
	// committed, in order. Data is only valid during the call. An error of fn
	// ends the replay. Damage in the middle of the stream is ErrDamaged.
	Replay(fn func(*Entry) error) error
	// Append puts the entries behind all earlier ones, next to each other and
	// in one commit, and returns when they have their place, not when they
	// are durable: the stream's Announce says that. It waits while the stream
	// or the memory is full; when ctx ends first, or on any error, none of the
	// entries entered the stream. The entries' Data together must not exceed
	// MaxAppend.
	Append(ctx context.Context, entries ...*Entry) error
	// Trim says that entries before to are no longer needed. to is the Pos of
	// an entry or a State().Durable. It is durable when Trim returns, or, as
	// State.TrimsLater tells, some time later; until then a replay may show
	// trimmed entries again.
	Trim(to Pos) error
	// State tells the stream's bounds.
	State() State
	// MaxAppend is the most data bytes one Append can take.
	MaxAppend() int
	// Close commits what is pending, announces it and releases the stream.
	Close() error
}

// State is a snapshot of a stream's bounds, in bytes of positions.
type State struct {
	// Trimmed <= Durable <= End: first position kept, end of the durable
	// prefix whose announcements have returned, and end of what was appended.
	Trimmed, Durable, End Pos
	// Capacity is how far End may be ahead of Trimmed before Append waits;
	// 0 means no limit.
	Capacity int64
	// Refs tells that the stream takes KindRef.
	Refs bool
	// TrimsLater tells that a trim becomes durable after Trim has returned, and
	// can't fail then.
	TrimsLater bool
	// Err is the error that poisoned the stream, or nil.
	Err error
}
