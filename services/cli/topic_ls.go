package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
)

// listedTopic is a line of topic ls.
type listedTopic struct {
	Name       string `json:"name"`
	ID         string `json:"id"`
	Partitions int    `json:"partitions"`
	Internal   bool   `json:"internal,omitempty"`
}

func (a *app) topicListCmd() *cobra.Command {
	var internal bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List topics", Args: args(cobra.NoArgs),
	}
	cmd.Flags().BoolVarP(&internal, "internal", "i", false, "internal topics too")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.withAdmin(cmd.Context(), func(ctx context.Context, adm *kadm.Client) error {
			list := adm.ListTopics
			if internal {
				list = adm.ListTopicsWithInternal
			}
			topics, err := list(ctx)
			if err != nil {
				return fmt.Errorf("list topics: %w", err)
			}
			out := []listedTopic{}
			t := table{header: []string{"TOPIC", "ID", "PARTITIONS"}}
			for _, d := range topics.Sorted() {
				out = append(out, listedTopic{Name: d.Topic, ID: topicID(d.ID), Partitions: len(d.Partitions), Internal: d.IsInternal})
				t.add(d.Topic, topicID(d.ID), len(d.Partitions))
			}
			return a.render(cmd.OutOrStdout(), out, &t)
		})
	}
	return cmd
}
