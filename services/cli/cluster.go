package cli

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/cirrolog/cirrolog/services/agent"
)

func (a *app) clusterCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "Look at the agents of a cluster, and give up lost disks", Args: knownVerb, RunE: needsVerb}
	cmd.AddCommand(a.clusterStateCmd(), a.clusterPartitionsCmd(), a.clusterDisksCmd(), a.abandonDiskCmd())
	return cmd
}

func (a *app) clusterStateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "state", Short: "Show all agents, their leases and streams, and what they lead", Args: args(cobra.NoArgs),
		Long: "Show all agents, their leases and streams, and what they lead. The agent at --admin asks the others; of one that does not\n" +
			"answer it shows what it knows, and why (exit code 3). SEEN is how long that agent has seen a lease unchanged.",
	}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var s agent.ClusterState
		if err := a.getJSON(cmd.Context(), "/v1/cluster/state", nil, &s); err != nil {
			return err
		}
		silent := 0
		t := table{header: []string{"NODE", "ADDRESS", "RACK", "ROLE", "STATE", "LEASE", "SEEN", "LEADS", "NEXT OBJECT", "OBJECTS", "BACKLOG", "UNTRIMMED", "SEALS", "INCARNATION"}}
		for _, o := range s.Agents {
			role, state, seen := string(agent.RoleLeader), "ok", "-"
			if o.Reader {
				role = string(agent.RoleReader)
			}
			if o.UnchangedMs >= 0 {
				seen = (time.Duration(o.UnchangedMs) * time.Millisecond).String()
			}
			addr := net.JoinHostPort(o.Host, strconv.Itoa(int(o.Port)))
			st := o.State
			if st == nil {
				silent++
				t.add(o.Node, addr, cmp.Or(o.Rack, "-"), role, "no answer: "+o.Error, o.Lease, seen, o.Leads, "-", "-", "-", "-", "-", o.Incarnation)
				continue
			}
			switch {
			case st.Stream.Error != "":
				state = "stream ended"
			case st.Draining:
				state = "draining"
			case !st.LeaseLive:
				state = "lease not renewed"
			}
			t.add(o.Node, addr, cmp.Or(o.Rack, "-"), role, state, o.Lease, seen, st.Partitions, st.Stream.Next, st.Stream.Present, ibytes(st.Stream.Backlog), ibytes(st.Stream.Used), len(st.Sealed), o.Incarnation)
		}
		if err := a.render(cmd.OutOrStdout(), s, &t); err != nil {
			return err
		}
		return silentAgents(silent, len(s.Agents))
	}
	return cmd
}

// silentAgents is the error of an answer that lacks some agents.
func silentAgents(silent, all int) error {
	if silent == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d of %d agents did not answer", errPartial, silent, all)
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
