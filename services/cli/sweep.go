package cli

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
)

// sweepResult is the answer of `sweep`.
type sweepResult struct {
	Segments tiering.SweepReport `json:"segments"`
	Streams  broker.SweptStreams `json:"streams"`
	DryRun   bool                `json:"dry_run"`
}

func (a *app) sweepCmd() *cobra.Command {
	cfg := a.o.ServeDefaults
	dryRun := false
	cmd := &cobra.Command{
		Use: "sweep", Short: "Delete what nobody needs from the bucket of a cluster, without an agent", Args: args(cobra.NoArgs),
		Long: "Delete what nobody needs from the bucket of a cluster: segments of deleted topics, below the log start, or covered by a\n" +
			"compacted one, and objects of sealed streams whose records are all tiered. The bucket itself proves what can go; what merely\n" +
			"lacks a row of the index is indexed again. Agents do the same by themselves, and may run meanwhile or not at all.",
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Metadata, "metadata", cfg.Metadata, "metadata store of the cluster: redis://…, rediss:// or dynamodb://…, as the agents are given")
	f.StringVar(&cfg.Bucket, "bucket", cfg.Bucket, "bucket of the cluster: s3://BUCKET/PREFIX?… or dir://PATH")
	f.Var((*duration)(&cfg.SweepGrace), "grace", "how long segments that nobody needs stay, for readers that are at them (0: 1h)")
	f.BoolVar(&dryRun, "dry-run", false, "delete nothing, only say what would be; streams are not looked at")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		c, err := openCluster(cmd, &cfg)
		if err != nil {
			return err
		}
		defer c.close()
		meta, err := metadata.OpenTool(ctx, metadata.Options{KV: c.store, Bucket: c.bucket, Incarnation: ids.NewIncarnation(), Logger: c.log})
		if err != nil {
			return err
		}
		defer func() { _ = meta.Close() }()
		s := broker.NewSweeper(broker.SweeperOptions{Meta: meta, Bucket: c.bucket, Logger: c.log})
		r := sweepResult{DryRun: dryRun}
		if r.Segments, err = s.Segments(ctx, cfg.SweepGrace, dryRun); err != nil {
			return err
		}
		if !dryRun {
			if r.Streams, err = s.Streams(ctx); err != nil {
				return err
			}
		}
		return errors.Join(a.render(cmd.OutOrStdout(), r, sweepTable(&r)), failedSweep(&r))
	}
	return cmd
}

func sweepTable(r *sweepResult) *table {
	t := table{header: []string{"WHAT", "OBJECTS", "BYTES"}}
	t.add("segments seen", r.Segments.Seen.Objects, ibytes(r.Segments.Seen.Bytes))
	actions := make([]tiering.SweepAction, 0, len(r.Segments.By))
	for action := range r.Segments.By {
		actions = append(actions, action)
	}
	slices.SortFunc(actions, cmp.Compare)
	for _, action := range actions {
		t.add(action, r.Segments.By[action].Objects, ibytes(r.Segments.By[action].Bytes))
	}
	switch {
	case r.DryRun:
	case r.Streams.Elsewhere:
		t.add("sealed streams: another sweep is at them", "-", "-")
	default:
		t.add("delete: of sealed streams", r.Streams.Objects, ibytes(r.Streams.Bytes))
		t.add("sealed streams that still have some", r.Streams.Waiting, "-")
	}
	return &t
}

// failedSweep is the error of a sweep that could not do all.
func failedSweep(r *sweepResult) error {
	if n := r.Segments.By[tiering.SweepFailed].Objects; n > 0 {
		return fmt.Errorf("%w: %d objects failed", errPartial, n)
	}
	return nil
}
