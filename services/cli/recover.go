package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cirrolog/cirrolog/services/recovery"
)

func (a *app) recoverCmd() *cobra.Command {
	cfg := a.o.ServeDefaults
	takeOver := false
	cmd := &cobra.Command{
		Use: "recover", Short: "Rebuild the lost metadata store of a cluster from its bucket", Args: args(cobra.NoArgs),
		Long: "Rebuild the lost metadata store of a cluster from its bucket alone: the cluster's id, topics and configs, who leads what,\n" +
			"log starts, and the index of segments. No node id or producer id is given twice, and leader epochs go on growing.\n" +
			"Agents may run meanwhile: they go on acknowledging, and come back to the metadata store by themselves. A store that has the\n" +
			"cluster is refused, and so is a bucket that agents of another metadata store write to. It can be run again when it\n" +
			"was interrupted; until it is done no agent starts. What is damaged or missing in the bucket is listed (exit code 3).",
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Metadata, "metadata", cfg.Metadata, "metadata store to rebuild: redis://…, rediss:// or dynamodb://…, as the agents are given")
	f.StringVar(&cfg.Bucket, "bucket", cfg.Bucket, "bucket of the cluster: s3://BUCKET/PREFIX?… or dir://PATH")
	f.BoolVar(&takeOver, "take-over", false, "go on although agents of another metadata store write to the bucket: they are stopped by what is recovered")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		c, err := openCluster(cmd, &cfg)
		if err != nil {
			return err
		}
		defer c.close()
		r, err := recovery.Run(ctx, recovery.Options{Bucket: c.bucket, KV: c.store, TakeOver: takeOver, Logger: c.log})
		if err != nil {
			return err
		}
		t := table{header: []string{"CLUSTER", "GENERATION", "TOPICS", "PARTITIONS", "STREAMS", "SEALED", "SEGMENTS", "BYTES", "DAMAGED", "TOOK"}}
		t.add(r.ClusterID, r.Generation, r.Topics, r.Partitions, r.Streams, r.Sealed, r.Segments, ibytes(r.Bytes), len(r.Lost), r.Took.Round(time.Millisecond))
		if err := a.render(cmd.OutOrStdout(), r, &t); err != nil {
			return err
		}
		if len(r.Lost) > 0 {
			return fmt.Errorf("%w: %d objects or ranges of offsets of the bucket are damaged or missing", errPartial, len(r.Lost))
		}
		return nil
	}
	return cmd
}
