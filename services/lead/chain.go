package lead

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/lock"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// chain reads who gave partitions, link by link. What it has read it remembers: a sealed stream has a footer for each
// object, and many partitions are given by one. It is made for one takeover. It is safe for concurrent use.
type chain struct {
	m        *Manager
	mu       lock.Mutex // held while something is read: whoever needs the same waits for it
	sealed   map[ids.Incarnation]*wal.Sealed
	released map[metadata.Released][]wal.Release
}

func newChain(m *Manager) *chain {
	return &chain{m: m, sealed: map[ids.Incarnation]*wal.Sealed{}, released: map[metadata.Released][]wal.Release{}}
}

// readSealed is wal.ReadSealed.
func (c *chain) readSealed(ctx context.Context, inc ids.Incarnation) (*wal.Sealed, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.sealed[inc]; s != nil {
		return s, nil
	}
	s, err := wal.ReadSealed(ctx, c.m.o.Bucket, c.m.o.Cluster, inc)
	if err == nil && s != nil {
		c.sealed[inc] = s
	}
	return s, err
}

// readReleases is wal.ReadReleases.
func (c *chain) readReleases(ctx context.Context, r metadata.Released) ([]wal.Release, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rs := c.released[r]; rs != nil {
		return rs, nil
	}
	rs, err := wal.ReadReleases(ctx, c.m.o.Bucket, c.m.o.Cluster, r.Incarnation, r.Seq)
	if err == nil {
		c.released[r] = rs
	}
	return rs, err
}

// inherit is what an heir begins with: what the sealed stream has, or what had been given to its
// owner. own are the batches of the stream itself.
func (c *chain) inherit(ctx context.Context, s *wal.Sealed, h wal.Heir) (a wal.Acceptance, own []wal.Placed, err error) {
	if s.Swept {
		return a, nil, fmt.Errorf("inherit %s from %s: %w", h.TP, s.Stream, errSwept)
	}
	if r, ok := s.Released[h.TP]; ok && h.Released {
		a = fromRelease(r, s.Key())
		a.Epoch = h.Epoch
		return a, nil, nil
	}
	if h.Giver != "" {
		if a, own, err = c.origin(ctx, h.Giver, h.TP); err != nil {
			return a, nil, fmt.Errorf("read %s, which gave %s: %w", h.Giver, h.TP, err)
		}
		a.Epoch, a.Giver = h.Epoch, s.Key()
		return a, own, nil
	}
	a = wal.Acceptance{TP: h.TP, Epoch: h.Epoch, Giver: s.Key()}
	if t := s.Tails[h.TP]; t != nil {
		a.LogStart, a.End, a.Older = t.LogStart, t.End, t.Older
		if n := len(t.Batches); n > 0 {
			a.Older = append(slices.Clone(a.Older), wal.OlderRange{Stream: s.Stream, From: s.First, To: s.End - 1, Base: t.Batches[0].Base, End: t.End})
		}
		own = t.Batches
	}
	return a, own, nil
}

// origin is what a partition's acceptance would be by the object that gave it: a topic, one with a
// release, a seal or a claim.
func (c *chain) origin(ctx context.Context, giver string, tp ids.TopicPartition) (wal.Acceptance, []wal.Placed, error) {
	if metadata.IsTopicObject(giver) {
		return wal.Acceptance{TP: tp, Giver: giver}, nil, nil
	}
	if metadata.IsDiskObject(giver) {
		return c.m.fromDiskObject(ctx, giver, tp)
	}
	if _, _, _, ok := wal.ParseClaimKey(giver); ok {
		claim, err := wal.ReadClaim(ctx, c.m.o.Bucket, c.m.o.Cluster, giver)
		if err != nil {
			return wal.Acceptance{}, nil, err
		}
		return c.origin(ctx, claim.Giver, tp)
	}
	inc, seq, err := wal.ParseKey(giver)
	if err != nil {
		return wal.Acceptance{}, nil, err
	}
	s, err := c.readSealed(ctx, inc)
	if err != nil {
		return wal.Acceptance{}, nil, err
	}
	if s != nil && s.At == seq {
		for _, h := range s.Seal.Heirs {
			if h.TP == tp {
				return c.inherit(ctx, s, h)
			}
		}
		return wal.Acceptance{}, nil, errors.New("its seal does not name the partition")
	}
	// A release, whatever became of the stream later: its seal may give the partition on once more,
	// and may cite whoever this release gave it to.
	rs, err := c.readReleases(ctx, metadata.Released{Incarnation: inc, Seq: seq})
	if err != nil {
		if s != nil && errors.Is(err, objstore.ErrNotFound) { // trimmed: the newest checkpoint has it
			if r, ok := s.Released[tp]; ok {
				return fromRelease(r, giver), nil, nil
			}
		}
		return wal.Acceptance{}, nil, err
	}
	for _, r := range rs {
		if r.TP == tp {
			return fromRelease(r, wal.Key(inc, seq)), nil, nil
		}
	}
	return wal.Acceptance{}, nil, errors.New("it does not release the partition")
}
