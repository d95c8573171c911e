package metadata

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Keys in the bucket.
const (
	clusterKey     = "meta/cluster"
	recoveryPrefix = "meta/recovery/"
	nodePrefix     = "meta/node/"
	pidPrefix      = "meta/pid/"
	topicPrefix    = "meta/topics/"
	startsPrefix   = "meta/log-start/"
)

// Keys of rows.
const (
	rowStore   = "store"   // identity of this key-value store
	rowCluster = "cluster" // written last: the store belongs to the cluster
)

// clusterObject is meta/cluster and, with Recovery > 0, meta/recovery/<n>.
type clusterObject struct {
	Format    int    `json:"format"`
	ClusterID string `json:"cluster_id"`
	// Store is the key-value store that the bucket belongs to: that of the
	// newest of these objects.
	Store    string `json:"store"`
	Recovery int64  `json:"recovery,omitempty"`
	CreateMs int64  `json:"created_ms"`
	Nonce    string `json:"nonce"`
}

type storeRow struct {
	Format int    `json:"format"`
	Store  string `json:"store"`
}

type clusterRow struct {
	Format    int    `json:"format"`
	ClusterID string `json:"cluster_id"`
	Recovery  int64  `json:"recovery"`
}

// numbered is the key of a numbered object; padded, so that a list is in order.
func numbered(prefix string, n int64) string { return fmt.Sprintf("%s%020d", prefix, n) }

// parseNumbered is the number in a key of numbered.
func parseNumbered(prefix, key string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimPrefix(key, prefix), 10, 64)
	if err != nil || n < 0 || numbered(prefix, n) != key {
		return 0, fmt.Errorf("%w: object %s: want %s and 20 digits", ErrDamaged, key, prefix)
	}
	return n, nil
}

// openCluster makes bucket and key-value store agree on the cluster id. The
// bucket's create-only object decides between concurrent first boots; the row
// "cluster" is written after it and so implies it.
func (s *Store) openCluster(ctx context.Context) error {
	owner, row, err := s.readCluster(ctx) // before anything is written
	if err == nil {
		err = s.notRecovering(ctx, row)
	}
	if err != nil {
		return err
	}
	storeID, err := s.storeIdentity(ctx)
	if err != nil {
		return err
	}
	if owner == nil {
		if owner, err = s.foundCluster(ctx, storeID); err != nil {
			return err
		}
		if err := s.checkCluster(owner, row); err != nil { // another one may have founded it
			return err
		}
	}
	s.clusterID = owner.ClusterID
	if owner.Store != storeID {
		if owner, err = s.adopt(ctx, owner, row, storeID); err != nil {
			return err
		}
	}
	s.generation.Store(owner.Recovery)
	return s.writeClusterRow(ctx)
}

// readCluster reads what bucket and key-value store say, and compares it with each other and
// with the disk; owner is nil if the bucket has no cluster.
func (s *Store) readCluster(ctx context.Context) (owner *clusterObject, row clusterRow, err error) {
	var it kv.Item
	err = s.retry(ctx, func() (err error) {
		it, err = s.row(ctx, rowCluster)
		return err
	})
	if err == nil && it.Revision != 0 {
		err = decode("row "+rowCluster, it.Value, &row)
	}
	if err == nil {
		owner, err = s.bucketOwner(ctx)
	}
	switch {
	case err != nil:
	case owner != nil:
		err = s.checkCluster(owner, row)
	case row.ClusterID != "":
		err = fmt.Errorf("%w: the metadata store belongs to cluster %s, but the bucket has no cluster: check the bucket's name, or restore it", ErrForeignBucket, row.ClusterID)
	case s.opts.ClusterID != "":
		err = fmt.Errorf("%w: the data directory belongs to cluster %s, but the bucket has no cluster: check the bucket's name, or start with an empty data directory", ErrForeignBucket, s.opts.ClusterID)
	}
	return owner, row, err
}

// checkCluster compares the bucket's cluster with the row and the disk.
func (s *Store) checkCluster(owner *clusterObject, row clusterRow) error {
	if row.ClusterID != "" && row.ClusterID != owner.ClusterID {
		return fmt.Errorf("%w: the bucket belongs to cluster %s, the metadata store to %s: run with the bucket or the data directory that belongs to the other", ErrForeignBucket, owner.ClusterID, row.ClusterID)
	}
	if s.opts.ClusterID != "" && s.opts.ClusterID != owner.ClusterID {
		return fmt.Errorf("%w: the bucket belongs to cluster %s, the data directory to %s: run with the bucket or the data directory that belongs to the other", ErrForeignBucket, owner.ClusterID, s.opts.ClusterID)
	}
	return nil
}

// storeID reads the identity of the key-value store; "": it has none yet.
func (s *Store) storeID(ctx context.Context) (string, error) {
	var row storeRow
	err := s.retry(ctx, func() error {
		it, err := s.row(ctx, rowStore)
		if err == nil && it.Revision != 0 {
			err = decode("row "+rowStore, it.Value, &row)
		}
		return err
	})
	return row.Store, err
}

// storeIdentity returns the identity of the key-value store, given at its first use.
func (s *Store) storeIdentity(ctx context.Context) (string, error) {
	var row storeRow
	err := s.update(ctx, func() ([]kv.Op, []kv.Precondition, error) {
		it, err := s.row(ctx, rowStore)
		if err != nil {
			return nil, nil, err
		}
		if it.Revision != 0 {
			return nil, nil, decode("row "+rowStore, it.Value, &row)
		}
		v, err := encode(storeRow{Format: formatVersion, Store: string(ids.NewIncarnation())})
		if err != nil {
			return nil, nil, err
		}
		row = storeRow{}
		return []kv.Op{{Key: rowStore, Value: v}}, []kv.Precondition{{Key: rowStore}}, nil
	})
	if err != nil || row.Store != "" {
		return row.Store, err
	}
	it, err := s.opts.KV.Get(ctx, rowStore)
	if err != nil {
		return "", err
	}
	err = decode("row "+rowStore, it.Value, &row)
	return row.Store, err
}

// bucketOwner reads the newest of meta/cluster and meta/recovery/<n>; nil: none.
func (s *Store) bucketOwner(ctx context.Context) (*clusterObject, error) {
	key, err := s.last(ctx, recoveryPrefix, "")
	if err != nil {
		return nil, err
	}
	if key == "" {
		key = clusterKey
	}
	body, err := s.get(ctx, key)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeCluster(key, body)
}

func decodeCluster(key string, body []byte) (*clusterObject, error) {
	var c clusterObject
	if err := decode(key, body, &c); err != nil {
		return nil, err
	}
	if c.ClusterID == "" || c.Store == "" {
		return nil, fmt.Errorf("%s: %w: no cluster id or store", key, ErrDamaged)
	}
	return &c, nil
}

// foundCluster creates meta/cluster, or returns the one that another created first.
func (s *Store) foundCluster(ctx context.Context, storeID string) (*clusterObject, error) {
	c := &clusterObject{
		Format: formatVersion, ClusterID: ids.NewTopicID().String(), Store: storeID,
		CreateMs: s.nowMs(), Nonce: string(ids.NewIncarnation()),
	}
	return s.createCluster(ctx, clusterKey, c)
}

func (s *Store) createCluster(ctx context.Context, key string, c *clusterObject) (*clusterObject, error) {
	body, err := encode(c)
	if err != nil {
		return nil, err
	}
	won, other, err := s.create(ctx, key, body)
	if err != nil {
		return nil, err
	}
	if won {
		return c, nil
	}
	return decodeCluster(key, other)
}

// mayAdopt refuses to take over a bucket that belongs to another key-value store than
// this one, unless it is without topics.
func (s *Store) mayAdopt(ctx context.Context, owner *clusterObject, row clusterRow) error {
	if row.ClusterID != "" {
		return fmt.Errorf("%w: cluster %s was recovered into another metadata store (generation %d): run with that one", ErrForeignBucket, owner.ClusterID, owner.Recovery)
	}
	first := ""
	err := s.retry(ctx, func() error {
		objects, _, err := s.opts.Bucket.List(ctx, topicPrefix, "", 1)
		if err == nil && len(objects) > 0 {
			first = objects[0].Key
		}
		return err
	})
	if err == nil && first != "" {
		err = fmt.Errorf("%w: the bucket holds cluster %s with topics (%s), but the metadata store is new: run with the original data directory or metadata store, rebuild a lost one with `cirrolog recover`, or use another bucket or prefix", ErrForeignBucket, owner.ClusterID, first)
	}
	return err
}

// adopt takes a bucket over that belongs to another key-value store than this one,
// which the former store finds out by the recovery object.
func (s *Store) adopt(ctx context.Context, owner *clusterObject, row clusterRow, storeID string) (*clusterObject, error) {
	if err := s.mayAdopt(ctx, owner, row); err != nil {
		return nil, err
	}
	return s.succeed(ctx, owner, storeID)
}

// succeed makes the bucket belong to this key-value store.
func (s *Store) succeed(ctx context.Context, owner *clusterObject, storeID string) (*clusterObject, error) {
	next := &clusterObject{
		Format: formatVersion, ClusterID: owner.ClusterID, Store: storeID, Recovery: owner.Recovery + 1,
		CreateMs: s.nowMs(), Nonce: string(ids.NewIncarnation()),
	}
	got, err := s.createCluster(ctx, numbered(recoveryPrefix, next.Recovery), next)
	if err != nil {
		return nil, err
	}
	if got.Store != storeID {
		return nil, fmt.Errorf("%w: another metadata store took cluster %s over at the same time: use another bucket or prefix", ErrForeignBucket, owner.ClusterID)
	}
	return got, nil
}

func (s *Store) writeClusterRow(ctx context.Context) error {
	v, err := encode(clusterRow{Format: formatVersion, ClusterID: s.clusterID, Recovery: s.generation.Load()})
	if err != nil {
		return err
	}
	return s.update(ctx, func() ([]kv.Op, []kv.Precondition, error) {
		it, err := s.row(ctx, rowCluster)
		if err != nil {
			return nil, nil, err
		}
		if it.Revision != 0 {
			var row clusterRow
			if err := decode("row "+rowCluster, it.Value, &row); err != nil {
				return nil, nil, err
			}
			if row.ClusterID == s.clusterID && row.Recovery == s.generation.Load() {
				return nil, nil, nil
			}
			return nil, nil, fmt.Errorf("%w: the metadata store belongs to cluster %s, generation %d, the bucket to %s, generation %d: run with the bucket or the data directory that belongs to the other",
				ErrForeignBucket, row.ClusterID, row.Recovery, s.clusterID, s.generation.Load())
		}
		return []kv.Op{{Key: rowCluster, Value: v}}, []kv.Precondition{{Key: rowCluster}}, nil
	})
}

// CheckOwner makes sure that the bucket was not taken over by another metadata
// store since Open. Whoever creates or deletes on the word of this store asks first.
func (s *Store) CheckOwner(ctx context.Context) error {
	key := numbered(recoveryPrefix, s.generation.Load()+1)
	err := s.retry(ctx, func() error {
		_, err := s.opts.Bucket.Head(ctx, key)
		return err
	})
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return nil
	case err != nil:
		return unavailable("check "+key, err)
	}
	return s.followRecovery(ctx, key)
}
