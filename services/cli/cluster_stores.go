package cli

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/services/agent"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// clusterStores are the bucket and the metadata store of a cluster, for verbs that need no agent.
type clusterStores struct {
	bucket objstore.Bucket
	store  kv.Store
	log    *slog.Logger // warnings, to standard error
}

// busyWait is for how long verbs that would have to be run again wait for a bucket that is busy.
const busyWait = time.Minute

// openCluster opens what --metadata and --bucket name; both are required. The caller closes it.
func openCluster(cmd *cobra.Command, cfg *agent.Config) (*clusterStores, error) {
	if cfg.Metadata == "" || cfg.Bucket == "" {
		return nil, fmt.Errorf("%w: --metadata and --bucket are required", errUsage)
	}
	c := &clusterStores{log: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
	var err error
	if c.bucket, err = openBucket(cmd.Context(), cfg.Bucket); err != nil {
		return nil, err
	}
	c.bucket = objstore.Patient(c.bucket, busyWait)
	if c.store, _, err = agent.OpenMetadata(cmd.Context(), cfg.Metadata, c.log); err != nil {
		_ = objstore.Close(c.bucket)
		return nil, err
	}
	return c, nil
}

func (c *clusterStores) close() {
	_ = c.store.Close()
	_ = objstore.Close(c.bucket)
}
