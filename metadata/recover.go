package metadata

import (
	"context"
	"errors"
	"fmt"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// ErrNotLost: the metadata store has the cluster, so there is nothing to recover.
var ErrNotLost = errors.New("nothing to recover")

// rowRecovering is there while a recovery is under way: agents of the cluster that run may come back.
const rowRecovering = "recovering"

// OpenRecovery begins to rebuild an empty metadata store from the bucket, or goes on with a rebuilding that was
// interrupted: topics and log starts are there when it returns, and the bucket belongs to this store. The caller adds what
// streams and segments say and ends with FinishRecovery; until then no agent starts on the store. may, if not nil, is
// asked when agents can see in the store that it is being rebuilt, and before the bucket is touched; its error ends it all. The
// Store that is returned has no node id. ErrNotLost: the store has the cluster. ErrForeignBucket: bucket and store do not
// belong together.
func OpenRecovery(ctx context.Context, opts Options, may func(context.Context, *Store) error) (*Store, error) {
	return open(ctx, opts, "recover metadata", func(s *Store) []step {
		return []step{{"take the bucket over", func(ctx context.Context) error { return s.takeOver(ctx, may) }}}
	})
}

// Lost tells whether OpenRecovery would begin: the bucket has a cluster, and the metadata store, which stays
// as it is, none. owner is who the bucket belongs to.
func (s *Store) lost(ctx context.Context) (owner *clusterObject, err error) {
	owner, row, err := s.readCluster(ctx)
	if err != nil {
		return nil, err
	}
	if owner == nil {
		return nil, fmt.Errorf("%w: the bucket has no cluster: check the bucket's name and prefix", ErrForeignBucket)
	}
	if row.ClusterID == "" {
		return owner, nil
	}
	storeID, err := s.storeID(ctx)
	if err == nil && storeID != owner.Store {
		return nil, fmt.Errorf("%w: cluster %s was recovered from this metadata store into another one (generation %d): use that one, or empty this one first", ErrForeignBucket, owner.ClusterID, owner.Recovery)
	}
	if err == nil {
		err = fmt.Errorf("%w: the metadata store has cluster %s", ErrNotLost, owner.ClusterID)
	}
	return nil, err
}

// Generation counts the recoveries of the bucket.
func (s *Store) Generation() int64 { return s.generation.Load() }

// takeOver tells agents that run that this metadata store is theirs, and makes the bucket belong to it.
func (s *Store) takeOver(ctx context.Context, may func(context.Context, *Store) error) error {
	owner, err := s.lost(ctx)
	if err != nil {
		return err
	}
	storeID, err := s.storeIdentity(ctx)
	if err != nil {
		return err
	}
	s.clusterID = owner.ClusterID
	v, err := encode(clusterRow{Format: formatVersion, ClusterID: s.clusterID, Recovery: owner.Recovery})
	if err == nil {
		err = s.put(ctx, kv.Op{Key: rowRecovering, Value: v})
	}
	if err == nil && may != nil {
		if err = may(ctx, s); err != nil {
			return errors.Join(err, s.deleteRows(context.WithoutCancel(ctx), []string{rowRecovering, rowStore}))
		}
	}
	if err == nil && owner.Store != storeID {
		owner, err = s.succeed(ctx, owner, storeID)
	}
	if err == nil {
		s.generation.Store(owner.Recovery)
	}
	return err
}

// put writes rows whatever is there. Writing twice is harmless, so an unknown outcome is simply repeated.
func (s *Store) put(ctx context.Context, ops ...kv.Op) error {
	return s.retry(ctx, func() error {
		_, err := s.opts.KV.Commit(ctx, ops, nil)
		return err
	})
}

// FinishRecovery says that the metadata store is whole: agents start on it.
func (s *Store) FinishRecovery(ctx context.Context) error {
	err := s.writeClusterRow(ctx)
	if err == nil {
		err = s.deleteRows(ctx, []string{rowRecovering})
	}
	return unavailable("finish recovery", err)
}

// IndexSegments writes rows of segments as they are, for a store that is being rebuilt; those that
// are there are written again. It may be called by several goroutines.
func (s *Store) IndexSegments(ctx context.Context, rows []SegmentRow) error {
	var ops []kv.Op
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		err := s.put(ctx, ops...)
		ops = ops[:0]
		return unavailable("index segments", err)
	}
	for _, r := range rows {
		if err := r.check(); err != nil {
			return err
		}
		v, err := r.encode()
		if err != nil {
			return err
		}
		if ops = append(ops, kv.Op{Key: r.row(r.TP), Value: v}); len(ops) == rowsAtOnce {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// NoteLogStart notes a log start that the bucket has told, without writing a row.
func (s *Store) NoteLogStart(tp ids.TopicPartition, offset int64) {
	s.parts.raise(tp, partitionRow{LogStart: offset})
}

// followRecovery accepts that the cluster was recovered (key is there) if it was into this very store: it had
// lost its data.
func (s *Store) followRecovery(ctx context.Context, key string) error {
	var row clusterRow
	it, err := s.row(ctx, rowCluster)
	if err == nil && it.Revision == 0 {
		if it, err = s.row(ctx, rowRecovering); err == nil && it.Revision != 0 {
			return fmt.Errorf("%w: the metadata store is being recovered", ErrUnavailable)
		}
	}
	if err == nil && it.Revision != 0 {
		err = decode("row "+it.Key, it.Value, &row)
	}
	if err != nil {
		return unavailable("check "+key, err)
	}
	owner, err := s.bucketOwner(ctx)
	if err != nil {
		return unavailable("check "+key, err)
	}
	if owner == nil || owner.ClusterID != s.clusterID || row.ClusterID != s.clusterID || row.Recovery != owner.Recovery {
		return fmt.Errorf("%w: cluster %s was recovered into another metadata store (%s exists): stop this one", ErrForeignBucket, s.clusterID, key)
	}
	s.generation.Store(owner.Recovery)
	s.opts.Logger.Warn("the cluster's metadata store was recovered from the bucket; going on with it", "generation", owner.Recovery)
	return nil
}

// notRecovering refuses a store that is being rebuilt, or whose rebuilding was interrupted.
func (s *Store) notRecovering(ctx context.Context, row clusterRow) error {
	if row.ClusterID != "" {
		return nil
	}
	var it kv.Item
	err := s.retry(ctx, func() (err error) {
		it, err = s.row(ctx, rowRecovering)
		return err
	})
	if err == nil && it.Revision != 0 {
		err = fmt.Errorf("%w: the metadata store is being rebuilt from the bucket: wait until `cirrolog recover` is done, or run it again", ErrForeignBucket)
	}
	return err
}

// rejoin goes on with what `recover` has put in the place of what the metadata store lost.
func (s *Store) rejoin(ctx context.Context) error {
	r, ok := s.opts.KV.(kv.Reopener)
	if !ok {
		return nil
	}
	return r.Reopen(ctx, func(now kv.Store) error {
		for _, key := range []string{rowRecovering, rowCluster} {
			it, err := now.Get(ctx, key)
			if errors.Is(err, kv.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			var row clusterRow
			if err := decode("row "+key, it.Value, &row); err != nil {
				return err
			}
			if row.ClusterID != s.clusterID || row.Recovery < s.generation.Load() {
				return fmt.Errorf("%w: it belongs to cluster %s, generation %d, and this agent to %s, generation %d", ErrForeignBucket, row.ClusterID, row.Recovery, s.clusterID, s.generation.Load())
			}
			return nil
		}
		return errNotRecovered
	})
}

var errNotRecovered = errors.New("it has no cluster: run `cirrolog recover`")
