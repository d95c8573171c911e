package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// shownConfig is a line of topic config.
type shownConfig struct {
	Name   string  `json:"name"`
	Value  *string `json:"value"`
	Source string  `json:"source"`
}

func (a *app) topicConfigCmd() *cobra.Command {
	var set, del []string
	var all, dryRun bool
	cmd := &cobra.Command{
		Use: "config NAME", Short: "Show or change the configs of a topic",
		Example: "  cirrolog topic config orders --set retention.ms=7d --delete segment.bytes",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: a.completeTopics(1),
	}
	f := cmd.Flags()
	f.StringArrayVar(&set, "set", nil, "set KEY=VALUE; repeat for more. Values in ms and bytes may have a unit")
	f.StringArrayVar(&del, "delete", nil, "set KEY back to its default; repeat for more")
	f.BoolVar(&all, "all", false, "show defaults too")
	f.BoolVar(&dryRun, "dry-run", false, "only check the change")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		kv, err := keyValues(set)
		if err != nil {
			return err
		}
		var ops []kadm.AlterConfig
		for _, k := range sortedKeys(kv) {
			v := kv[k]
			ops = append(ops, kadm.AlterConfig{Op: kadm.SetConfig, Name: k, Value: &v})
		}
		for _, k := range del {
			ops = append(ops, kadm.AlterConfig{Op: kadm.DeleteConfig, Name: k})
		}
		return a.withAdmin(cmd.Context(), func(ctx context.Context, adm *kadm.Client) error {
			if err := alterTopic(ctx, adm, names[0], ops, dryRun); err != nil {
				return err
			}
			return a.showConfigs(ctx, cmd, adm, names[0], all)
		})
	}
	return cmd
}

func alterTopic(ctx context.Context, adm *kadm.Client, name string, ops []kadm.AlterConfig, dryRun bool) error {
	if len(ops) == 0 {
		return nil
	}
	alter := adm.AlterTopicConfigs
	if dryRun {
		alter = adm.ValidateAlterTopicConfigs
	}
	resp, err := alter(ctx, ops, name)
	if err != nil {
		return fmt.Errorf("alter topic %s: %w", name, err)
	}
	for _, r := range resp {
		if r.Err != nil {
			return fmt.Errorf("alter topic %s: %w", name, responseError(r.Err, r.ErrMessage))
		}
	}
	return nil
}

func (a *app) showConfigs(ctx context.Context, cmd *cobra.Command, adm *kadm.Client, name string, all bool) error {
	configs, err := topicConfigs(ctx, adm, name)
	if err != nil {
		return err
	}
	slices.SortFunc(configs, func(x, y kadm.Config) int { return cmp.Compare(x.Key, y.Key) })
	out := []shownConfig{}
	t := table{header: []string{"CONFIG", "VALUE", "SOURCE"}}
	for _, c := range configs {
		if !all && c.Source != kmsg.ConfigSourceDynamicTopicConfig {
			continue
		}
		out = append(out, shownConfig{Name: c.Key, Value: c.Value, Source: c.Source.String()})
		t.add(c.Key, c.MaybeValue(), c.Source)
	}
	return a.render(cmd.OutOrStdout(), out, &t)
}
