package broker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/lock"
	"github.com/cirrolog/cirrolog/tiering"
)

// Follower serves the tiered part of a partition that another agent leads: what
// is in the bucket and indexed can be read by any. It knows nothing else of the
// partition, so every question that it can't answer with records gets
// ErrNotLeader: only the leader says that an offset is out of range.
type Follower struct {
	b    *Broker
	tp   ids.TopicPartition
	end  atomic.Int64 // of the index as far as it was read: behind the last tiered record
	used atomic.Int64 // ms since 1970

	mu     lock.Mutex // held while the index is read
	looked time.Time  // when that was tried last
}

const (
	// followerView is how old the end of the index may be that readers are told,
	// followerMiss how old when an offset seems to be behind it. The leader may
	// have tiered it just now.
	followerView = 5 * time.Second
	followerMiss = 100 * time.Millisecond
	// manyFollowers is from how many on those that were not read for followerIdle are forgotten.
	manyFollowers = 4096
	followerIdle  = time.Minute
)

// followers are the partitions of other agents that were read of late.
type followers struct {
	mu    sync.Mutex
	m     map[ids.TopicPartition]*Follower
	prune int // at how many
}

func (s *followers) get(b *Broker, tp ids.TopicPartition) *Follower {
	now := b.opts.Now().UnixMilli()
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.m[tp]
	if f == nil {
		if s.m == nil {
			s.m, s.prune = map[ids.TopicPartition]*Follower{}, manyFollowers
		}
		if len(s.m) >= s.prune {
			for tp, f := range s.m {
				if now-f.used.Load() > followerIdle.Milliseconds() {
					delete(s.m, tp)
				}
			}
			s.prune = max(manyFollowers, 2*len(s.m))
		}
		f = &Follower{b: b, tp: tp}
		s.m[tp] = f
	}
	f.used.Store(now)
	return f
}

// Follower returns a partition that another agent leads, for reads of its tiered part.
func (b *Broker) Follower(id ids.TopicID, p int32) (*Follower, error) {
	v := b.view.Load()
	t, parts := v.byID[id], v.parts[id]
	switch {
	case t == nil:
		return nil, ErrUnknownTopic
	case p < 0 || int(p) >= len(parts):
		return nil, ErrUnknownPartition
	case b.opts.Leaders == nil || !t.Config.RemoteStorage:
		return nil, ErrNotLeader
	}
	return b.followers.get(b, ids.TopicPartition{Topic: id, Partition: p}), nil
}

// Read reads from o.Offset on, as Partition.Read does. The high watermark that
// it tells is the end of what it knows to be tiered, never more. The leader epoch
// that the client knows does not matter: what is tiered is never cut.
func (f *Follower) Read(ctx context.Context, o ReadOptions) ReadResult {
	switch {
	case o.Offset >= f.end.Load():
		f.look(ctx, followerMiss)
	case !o.CacheOnly:
		f.look(ctx, followerView)
	}
	end := f.end.Load()
	res := ReadResult{HighWatermark: end, LastStable: end, LogStart: f.b.opts.Meta.LogStart(f.tp)}
	switch {
	case o.Offset < res.LogStart, o.Offset >= end, o.LastFetchedEpoch >= 0:
		res.Err = ErrNotLeader
	case o.MaxBytes <= 0 && !o.MinOneBatch:
	case o.CacheOnly:
		res.Tiered = true
	default:
		f.read(ctx, o, &res)
	}
	return res
}

func (f *Follower) read(ctx context.Context, o ReadOptions, res *ReadResult) {
	r, err := f.b.opts.Reader.Read(ctx, f.tp, o.Offset, max(o.MaxBytes, 1), o.MinOneBatch)
	switch {
	case err == nil && r.Size > 0:
		res.Data, res.Release = r.Data, r.Release
		f.b.tieredReads.Add(1)
		raise(&f.end, r.NextOffset)
		res.HighWatermark = f.end.Load()
		res.LastStable = res.HighWatermark
	case err == nil:
		r.Release()
		if r.NextOffset > o.Offset { // compaction has emptied the rest; the leader knows what follows
			res.Err = ErrNotLeader
		}
	case ctx.Err() != nil: // it arrives in the cache
	case errors.Is(err, tiering.ErrNoSegment):
		res.Err = ErrNotLeader
	default:
		f.b.opts.Logger.Warn("tiered read failed; the client is sent to the leader", "topic_id", f.tp.Topic.String(), "partition", f.tp.Partition, "offset", o.Offset, "err", err)
		res.Err = ErrNotLeader
	}
}

// Watch implements what a fetch session needs. There is nothing to wait for: who
// has read all that is tiered goes to the leader.
func (f *Follower) Watch(Watcher) (cancel func()) { return func() {} }

// look reads the end of the index, unless that was done within age.
func (f *Follower) look(ctx context.Context, age time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.b.opts.Now(); f.looked.IsZero() || now.Sub(f.looked) >= age {
		last, ok, err := f.b.opts.Meta.LastSegment(ctx, f.tp)
		if err != nil && ctx.Err() == nil {
			f.b.opts.Logger.Warn("can't read the segment index; what is known of it is served", "topic_id", f.tp.Topic.String(), "partition", f.tp.Partition, "err", err)
		}
		if err == nil && ok {
			raise(&f.end, last.Last+1)
		}
		f.looked = f.b.opts.Now()
	}
}
