package cli

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/cirrolog/cirrolog/services/agent"
)

func (a *app) clusterCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "Look at the agents of a cluster, drain them, and give up lost disks", Args: knownVerb, RunE: needsVerb}
	cmd.AddCommand(a.clusterInfoCmd(), a.clusterAgentsCmd(), a.clusterLeasesCmd(), a.clusterPartitionsCmd(), a.clusterDrainCmd(), a.clusterDisksCmd(), a.abandonDiskCmd())
	return cmd
}

func (a *app) clusterPartitionsCmd() *cobra.Command {
	var topic string
	cmd := &cobra.Command{
		Use: "partitions", Short: "Show all partitions as the agents that lead them have them", Args: args(cobra.NoArgs),
	}
	cmd.Flags().StringVarP(&topic, "topic", "t", "", "only those of this topic")
	if err := cmd.RegisterFlagCompletionFunc("topic", a.completeTopics(0)); err != nil {
		panic(err) // the flag was not declared: a mistake in this function
	}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		query := url.Values{}
		if topic != "" {
			query.Set("topic", topic)
		}
		var s agent.ClusterPartitions
		if err := a.getJSON(cmd.Context(), "/v1/cluster/partitions", query, &s); err != nil {
			return err
		}
		t := table{header: []string{"TOPIC", "PARTITION", "LEADER", "EPOCH", "START", "END", "TIERED END", "LOCAL", "BUCKET"}}
		for _, p := range s.Partitions {
			t.add(p.Topic, p.Partition.Partition, p.Node, p.Epoch, p.LogStart, p.HighWatermark, p.TieredEnd, ibytes(p.LocalBytes), ibytes(p.BucketBytes))
		}
		if err := a.render(cmd.OutOrStdout(), s, &t); err != nil {
			return err
		}
		for _, o := range s.Silent {
			fmt.Fprintf(cmd.ErrOrStderr(), "node %d did not answer: %s\n", o.Node, o.Error)
		}
		if len(s.Silent) > 0 {
			return fmt.Errorf("%w: what %d agents lead is missing", errPartial, len(s.Silent))
		}
		return nil
	}
	return cmd
}
