package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// describedTopic is what topic describe prints.
type describedTopic struct {
	Name       string               `json:"name"`
	ID         string               `json:"id"`
	Configs    map[string]string    `json:"configs"` // what the topic sets itself
	Partitions []describedPartition `json:"partitions"`
}

type describedPartition struct {
	Partition   int32 `json:"partition"`
	Leader      int32 `json:"leader"`
	LeaderEpoch int32 `json:"leader_epoch"`
	Start       int64 `json:"start_offset"` // -1: not known
	LocalStart  int64 `json:"local_start_offset"`
	End         int64 `json:"end_offset"`
}

func (a *app) topicDescribeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "describe NAME...", Short: "Show partitions, offsets and the configs that topics set",
		Args: args(cobra.MinimumNArgs(1)), ValidArgsFunction: a.completeTopics(0),
	}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		return a.withAdmin(cmd.Context(), func(ctx context.Context, adm *kadm.Client) error {
			out := []describedTopic{}
			t := table{header: []string{"TOPIC", "PARTITION", "LEADER", "EPOCH", "START", "LOCAL START", "END"}}
			var errs []error
			for _, name := range names {
				d, err := describeTopic(ctx, adm, name)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				out = append(out, d)
				for _, p := range d.Partitions {
					t.add(d.Name, p.Partition, p.Leader, p.LeaderEpoch, p.Start, p.LocalStart, p.End)
				}
			}
			if len(out) > 0 {
				if err := a.render(cmd.OutOrStdout(), out, &t); err != nil {
					return err
				}
				if a.output == "table" {
					printTopicConfigs(cmd, out)
				}
			}
			return someFailed(errs, len(out))
		})
	}
	return cmd
}

func printTopicConfigs(cmd *cobra.Command, topics []describedTopic) {
	for _, d := range topics {
		fmt.Fprintf(cmd.OutOrStdout(), "\n%s (%s)\n", d.Name, d.ID)
		for _, k := range sortedKeys(d.Configs) {
			fmt.Fprintf(cmd.OutOrStdout(), "  %s=%s\n", k, d.Configs[k])
		}
	}
}

func describeTopic(ctx context.Context, adm *kadm.Client, name string) (describedTopic, error) {
	d, err := oneTopic(ctx, adm, name)
	if err != nil {
		return describedTopic{}, err
	}
	listed, err := listThree(ctx, adm, name)
	if err != nil {
		return describedTopic{}, err
	}
	starts, ends, local := listed[0], listed[1], listed[2]
	at := func(l kadm.ListedOffsets, p int32) int64 {
		if o, ok := l.Lookup(name, p); ok && o.Err == nil {
			return o.Offset
		}
		return -1
	}
	out := describedTopic{Name: name, ID: topicID(d.ID), Configs: map[string]string{}, Partitions: []describedPartition{}}
	for _, p := range d.Partitions.Sorted() {
		out.Partitions = append(out.Partitions, describedPartition{Partition: p.Partition, Leader: p.Leader, LeaderEpoch: p.LeaderEpoch,
			Start: at(starts, p.Partition), LocalStart: at(local, p.Partition), End: at(ends, p.Partition)})
	}
	rc, err := topicConfigs(ctx, adm, name)
	for _, c := range rc {
		if c.Source == kmsg.ConfigSourceDynamicTopicConfig {
			out.Configs[c.Key] = c.MaybeValue()
		}
	}
	return out, err
}

func topicConfigs(ctx context.Context, adm *kadm.Client, name string) ([]kadm.Config, error) {
	all, err := adm.DescribeTopicConfigs(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("describe configs of %s: %w", name, err)
	}
	rc, err := all.On(name, nil)
	if err == nil {
		err = responseError(rc.Err, rc.ErrMessage)
	}
	if err != nil {
		return nil, fmt.Errorf("describe configs of %s: %w", name, err)
	}
	return rc.Configs, nil
}
