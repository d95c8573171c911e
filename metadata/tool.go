package metadata

import (
	"context"
	"fmt"
)

// OpenTool opens the metadata of a cluster for a tool that is no agent: it claims no node id, founds nothing, and sees topics
// as they were when it was opened. ErrForeignBucket: bucket and metadata store do not belong together, or have no cluster.
func OpenTool(ctx context.Context, opts Options) (*Store, error) {
	return open(ctx, opts, "open metadata", func(s *Store) []step { return []step{{"look for the cluster", s.joinCluster}} })
}

// joinCluster is openCluster that writes nothing.
func (s *Store) joinCluster(ctx context.Context) error {
	owner, row, err := s.readCluster(ctx)
	if err == nil {
		err = s.notRecovering(ctx, row)
	}
	if err != nil {
		return err
	}
	storeID, err := s.storeID(ctx)
	switch {
	case err != nil:
		return err
	case owner == nil:
		return fmt.Errorf("%w: the bucket has no cluster: check the bucket's name and prefix", ErrForeignBucket)
	case row.ClusterID == "" || storeID != owner.Store:
		return fmt.Errorf("%w: cluster %s has another metadata store than this one: give that one, or rebuild a lost one with `cirrolog recover`", ErrForeignBucket, owner.ClusterID)
	}
	s.clusterID = owner.ClusterID
	s.generation.Store(owner.Recovery)
	return nil
}
