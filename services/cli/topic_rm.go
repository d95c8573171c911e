package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
)

func (a *app) topicRemoveCmd() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use: "rm NAME...", Aliases: []string{"delete"}, Short: "Delete topics with all their records",
		Args: args(cobra.MinimumNArgs(1)), ValidArgsFunction: a.completeTopics(0),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be deleted")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		return a.withAdmin(cmd.Context(), func(ctx context.Context, adm *kadm.Client) error {
			var errs []error
			var found []string
			for _, name := range names {
				d, err := describeTopic(ctx, adm, name)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				found = append(found, name)
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %d partitions, %d offsets\n", name, len(d.Partitions), offsetsOf(d))
			}
			if dryRun || len(found) == 0 {
				return errors.Join(errs...)
			}
			if err := a.confirm("Delete " + strings.Join(found, ", ") + " and all records?"); err != nil {
				return err
			}
			resp, err := adm.DeleteTopics(ctx, found...)
			if err != nil {
				return fmt.Errorf("delete topics: %w", err)
			}
			done := 0
			for _, r := range resp.Sorted() {
				if r.Err != nil {
					errs = append(errs, fmt.Errorf("delete topic %s: %w", r.Topic, responseError(r.Err, r.ErrMessage)))
					continue
				}
				done++
				fmt.Fprintf(cmd.OutOrStdout(), "deleted %s\n", r.Topic)
			}
			return someFailed(errs, done)
		})
	}
	return cmd
}

// offsetsOf is how many offsets a topic holds, at least its records.
func offsetsOf(d describedTopic) int64 {
	var n int64
	for _, p := range d.Partitions {
		n += max(p.End-p.Start, 0)
	}
	return n
}

func (a *app) topicTrimCmd() *cobra.Command {
	var before string
	var parts []int32
	cmd := &cobra.Command{
		Use: "trim NAME --before OFFSET", Short: "Delete the records of a topic before an offset",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: a.completeTopics(1),
	}
	cmd.Flags().StringVar(&before, "before", "", "first offset that stays; -1: the end, nothing stays")
	cmd.Flags().Int32SliceVarP(&parts, "partitions", "p", nil, "partitions (default: all)")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		off, err := strconv.ParseInt(before, 10, 64)
		if err != nil || off < -1 {
			return fmt.Errorf("%w: --before %q: want an offset, or -1 for the end", errUsage, before)
		}
		return a.withAdmin(cmd.Context(), func(ctx context.Context, adm *kadm.Client) error {
			d, err := oneTopic(ctx, adm, names[0])
			if err != nil {
				return err
			}
			chosen, err := choosePartitions(d, parts)
			if err != nil {
				return err
			}
			if err := a.confirm(fmt.Sprintf("Delete the records of %d partitions of %s before %s?", len(chosen), names[0], before)); err != nil {
				return err
			}
			return a.trim(ctx, cmd, adm, names[0], chosen, off)
		})
	}
	return cmd
}

func (a *app) trim(ctx context.Context, cmd *cobra.Command, adm *kadm.Client, name string, parts []int32, before int64) error {
	os := kadm.Offsets{}
	for _, p := range parts {
		os.AddOffset(name, p, before, -1)
	}
	resp, err := adm.DeleteRecords(ctx, os)
	if err != nil {
		return fmt.Errorf("trim %s: %w", name, err)
	}
	type trimmed struct {
		Partition int32 `json:"partition"`
		Start     int64 `json:"start_offset"`
	}
	out := []trimmed{}
	t := table{header: []string{"PARTITION", "START"}}
	var errs []error
	for _, r := range resp.Sorted() {
		if r.Err != nil {
			errs = append(errs, fmt.Errorf("trim %s partition %d: %w", name, r.Partition, r.Err))
			continue
		}
		out = append(out, trimmed{r.Partition, r.LowWatermark})
		t.add(r.Partition, r.LowWatermark)
	}
	if len(out) > 0 {
		if err := a.render(cmd.OutOrStdout(), out, &t); err != nil {
			return err
		}
	}
	return someFailed(errs, len(out))
}

// choosePartitions returns the asked for partitions of a topic, or all.
func choosePartitions(d kadm.TopicDetail, asked []int32) ([]int32, error) {
	if len(asked) == 0 {
		return d.Partitions.Numbers(), nil
	}
	for _, p := range asked {
		if _, ok := d.Partitions[p]; !ok {
			return nil, fmt.Errorf("%w: topic %s has no partition %d, only 0 to %d", errUsage, d.Topic, p, len(d.Partitions)-1)
		}
	}
	return asked, nil
}
