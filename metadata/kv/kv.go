// Package kv is the contract of the metadata store: a small ordered key-value
// store with atomic multi-key compare-and-set, watches by revision and leases.
// Nothing in it is the only copy of anything acknowledged: the bucket is the
// authority, this is what everyone reads.
//
// Drivers: the in-memory one here, kv/bolt (embedded), and later redis and
// dynamo. kvtest is the conformance suite that every driver passes.
package kv

import (
	"context"
	"errors"
	"time"
)

// Limits of one commit on every driver (DynamoDB's, with room), and of a key.
const (
	MaxCommitKeys  = 100       // ops and preconditions together
	MaxCommitBytes = 1 << 20   // keys and values together
	MaxValueBytes  = 256 << 10 // one value
	MaxKeyBytes    = 1024
	MaxRangeItems  = 1000 // items of one Range
)

var (
	// ErrNotFound: Get of an absent key.
	ErrNotFound = errors.New("kv: key not found")
	// ErrConflict: a precondition did not hold; nothing was changed.
	ErrConflict = errors.New("kv: precondition failed")
	// ErrUnknown: the commit may or may not have happened. Read and compare;
	// never repeat blindly.
	ErrUnknown = errors.New("kv: outcome unknown")
	// ErrUnavailable: the store can't be reached or throttles; nothing was done.
	ErrUnavailable = errors.New("kv: store unavailable")
	// ErrInvalid: the request makes no sense (empty key, a key twice in one
	// commit, a range limit out of bounds); nothing was done.
	ErrInvalid = errors.New("kv: invalid request")
	// ErrClosed: the store was closed; nothing was done.
	ErrClosed = errors.New("kv: store closed")
	// ErrLimit: a limit above was exceeded; nothing was done.
	ErrLimit = errors.New("kv: limit exceeded")
	// ErrLeaseLost: the lease expired or was taken by another owner.
	ErrLeaseLost = errors.New("kv: lease lost")
	// ErrLost: what the store had is gone, it was emptied or replaced by another; nothing was done. It comes
	// with ErrUnavailable.
	ErrLost = errors.New("kv: the store lost its data")
	// ErrCompacted: Watch from a revision that is no longer kept; range anew.
	ErrCompacted = errors.New("kv: revision no longer kept")
)

// Revision of one key: 0 means absent; each change of the key gives a greater
// one, also after a delete. Revisions of different keys do not compare.
type Revision uint64

// Item is a key with its value.
type Item struct {
	Key      string
	Value    []byte
	Revision Revision
}

// Op sets a key, or deletes it when Delete is true.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
}

// Precondition holds when the key's revision is Revision (0: absent).
type Precondition struct {
	Key      string
	Revision Revision
}

// Store is the contract. Methods may be called from several goroutines.
// Keys order by bytes. Values returned belong to the caller.
type Store interface {
	Get(ctx context.Context, key string) (Item, error)
	// Range returns up to limit (1 to 1000) items whose keys start with prefix
	// and lie strictly after from (before it when reverse), in key order (in
	// reverse order when reverse). An empty from means from the edge.
	Range(ctx context.Context, prefix, from string, limit int, reverse bool) ([]Item, error)
	// Commit applies all ops if all preconditions hold, else none. It returns
	// the new revision of each op's key, in order (0 for deletes). A key may
	// stand in one op and in one precondition. Deleting an absent key is no
	// error. A commit without ops only checks its preconditions.
	Commit(ctx context.Context, ops []Op, pre []Precondition) ([]Revision, error)
	// Watch delivers every change under prefix made after the call, in order
	// per key, at least the last value of each changed key; a delete has nil
	// Value. It ends by closing the channel: with ctx, or when the store
	// can't go on without a gap (then range and watch anew).
	Watch(ctx context.Context, prefix string) (<-chan []Item, error)
	Leases
	Close() error
}

// Leases are owned keys that expire. Owners judge their own lease by their own
// monotonic clock with a margin; a lease only reduces contention, epochs in
// the bucket give safety.
type Leases interface {
	// Acquire takes or renews the lease of key for owner: it succeeds when the
	// lease is free, expired, or already owner's.
	Acquire(ctx context.Context, key, owner string, ttl time.Duration) error
	// Release gives up the lease if owner still has it.
	Release(ctx context.Context, key, owner string) error
	// Holder returns the live owner ("" if none) and a counter that changes
	// with every renewal, so that an observer can tell a live lease from a
	// dead one without comparing clocks.
	Holder(ctx context.Context, key string) (owner string, counter uint64, err error)
}

// Reopener is what a Store may also be: one that answers ErrLost for ever, until it is told to go on with what
// was put in the place of what it lost.
type Reopener interface {
	// Reopen goes on with what is there now, if check finds it to be the right one; it
	// is given a Store that reads it. It creates nothing. Nothing there, or what was there all the time, is no error.
	Reopen(ctx context.Context, check func(Store) error) error
}

// Clock is what a Store may also be: one that tells the time of the machine that keeps it.
type Clock interface {
	// Time asks for the time, to a second or better.
	Time(ctx context.Context) (time.Time, error)
}
