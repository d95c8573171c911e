package cli

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cirrolog/cirrolog/services/agent"
)

// clusterView is a verb that shows something of the state of all agents.
func (a *app) clusterView(cmd *cobra.Command, show func(*agent.ClusterState) *table) *cobra.Command {
	cmd.Args = args(cobra.NoArgs)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var s agent.ClusterState
		if err := a.getJSON(cmd.Context(), "/v1/cluster/state", nil, &s); err != nil {
			return err
		}
		if err := a.render(cmd.OutOrStdout(), s, show(&s)); err != nil {
			return err
		}
		silent := 0
		for _, o := range s.Agents {
			if o.State == nil {
				silent++
			}
		}
		if silent > 0 {
			return fmt.Errorf("%w: %d of %d agents did not answer", errPartial, silent, len(s.Agents))
		}
		return nil
	}
	return cmd
}

func (a *app) clusterInfoCmd() *cobra.Command {
	return a.clusterView(&cobra.Command{
		Use: "info", Short: "Show the cluster as a whole",
		Long: "Show the cluster as a whole: its id, how often its metadata store was recovered (GENERATION), agents that answer of those\n" +
			"that are registered, topics, partitions, and those of them that no agent leads.",
	}, func(s *agent.ClusterState) *table {
		answer := 0
		var versions []string
		for _, o := range s.Agents {
			if o.State != nil {
				answer++
				versions = append(versions, o.State.Version)
			}
		}
		slices.Sort(versions)
		t := table{header: []string{"CLUSTER", "GENERATION", "AGENTS", "TOPICS", "PARTITIONS", "LEADERLESS", "METADATA", "BUCKET", "VERSION"}}
		t.add(s.Cluster, s.Generation, fmt.Sprintf("%d/%d", answer, len(s.Agents)), s.Topics, s.Partitions, s.Leaderless, s.Metadata, s.Bucket, strings.Join(slices.Compact(versions), ","))
		return &t
	})
}

func (a *app) clusterAgentsCmd() *cobra.Command {
	return a.clusterView(&cobra.Command{
		Use: "agents", Aliases: []string{"state"}, Short: "Show all agents, what they lead, and their streams in the bucket",
		Long: "Show all agents, what they lead, and their streams in the bucket. The agent at --admin asks the others; of one that does\n" +
			"not answer it shows what it knows, and why (exit code 3).",
	}, func(s *agent.ClusterState) *table {
		t := table{header: []string{"NODE", "ADDRESS", "RACK", "ROLE", "STATE", "LEADS", "NEXT OBJECT", "OBJECTS", "BACKLOG", "UNTRIMMED", "SEALS", "VERSION"}}
		for _, o := range s.Agents {
			role := agent.RoleLeader
			if o.Reader {
				role = agent.RoleReader
			}
			cells := []any{o.Node, net.JoinHostPort(o.Host, strconv.Itoa(int(o.Port))), cmp.Or(o.Rack, "-"), role, agentState(&o)}
			if st := o.State; st != nil {
				t.add(append(cells, st.Partitions, st.Stream.Next, st.Stream.Present, ibytes(st.Stream.Backlog), ibytes(st.Stream.Used), len(st.Sealed), st.Version)...)
			} else {
				t.add(append(cells, o.Leads, "-", "-", "-", "-", "-", "-")...)
			}
		}
		return &t
	})
}

func agentState(o *agent.ClusterAgent) string {
	switch st := o.State; {
	case st == nil:
		return "no answer: " + o.Error
	case st.Stream.Error != "":
		return "stream ended"
	case st.Draining:
		return "stopping"
	case !st.LeaseLive:
		return "lease not renewed"
	case o.Drained:
		return "drained"
	}
	return "ok"
}

func (a *app) clusterLeasesCmd() *cobra.Command {
	return a.clusterView(&cobra.Command{
		Use: "leases", Short: "Show the leases of all agents",
		Long: "Show the leases of all agents, as the metadata store has them (LEASE), how long the agent at --admin has seen each unchanged\n" +
			"(SEEN; after the time of --lease it takes over what that agent leads), and whether its holder takes it for alive (HOLDER).",
	}, func(s *agent.ClusterState) *table {
		t := table{header: []string{"NODE", "EPOCH", "LEASE", "SEEN", "HOLDER", "LEADS", "STARTED", "INCARNATION"}}
		for _, o := range s.Agents {
			seen, holder := "-", "no answer"
			if o.UnchangedMs >= 0 {
				seen = (time.Duration(o.UnchangedMs) * time.Millisecond).String()
			}
			if o.State != nil {
				if holder = "lapsed"; o.State.LeaseLive {
					holder = "live"
				}
			}
			t.add(o.Node, o.Epoch, o.Lease, seen, holder, o.Leads, time.UnixMilli(o.StartedMs).UTC().Format(time.RFC3339), o.Incarnation)
		}
		return &t
	})
}

const (
	// drainPoll is how often `cluster drain` asks how far an agent is.
	drainPoll = 200 * time.Millisecond
	drainWait = time.Minute
)

func (a *app) clusterDrainCmd() *cobra.Command {
	var undo bool
	wait := drainWait
	cmd := &cobra.Command{
		Use: "drain NODE", Short: "Have an agent give its partitions to the others, before it is stopped",
		Long: "Have an agent give its partitions to the others; it is given none while it is drained, which lasts until it is started again, or\n" +
			"until --undo. Clients are sent to the new leaders and see no error. Partitions of class local stay with their disk. The agent\n" +
			"goes on to serve reads of what is in the bucket. An agent that is stopped by SIGTERM does the same by itself.",
		Args: args(cobra.ExactArgs(1)),
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "let the agent lead again; the others give it its share within seconds")
	cmd.Flags().DurationVar(&wait, "wait", wait, "how long to wait until it has given everything away; 0s: not at all")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		if n, err := strconv.ParseInt(names[0], 10, 32); err != nil || n < 1 {
			return fmt.Errorf("%w: node %q: want a node id; `cirrolog cluster agents` lists them", errUsage, names[0])
		}
		verb := "drain"
		if undo {
			verb = "undrain"
		}
		var s agent.DrainState
		for end := time.Now().Add(wait); ; {
			if err := a.adminJSON(cmd.Context(), http.MethodPost, "/v1/agents/"+names[0]+"/"+verb, nil, &s); err != nil {
				return fmt.Errorf("%s agent %s: %w", verb, names[0], err)
			}
			if undo || s.Leads <= s.Stays || !time.Now().Before(end) {
				break
			}
			select {
			case <-cmd.Context().Done():
				return cmd.Context().Err()
			case <-time.After(drainPoll):
			}
		}
		t := table{header: []string{"NODE", "DRAINED", "LEADS", "STAYS"}}
		t.add(s.Node, s.Drained, s.Leads, s.Stays)
		if err := a.render(cmd.OutOrStdout(), s, &t); err != nil {
			return err
		}
		if !undo && wait > 0 && s.Leads > s.Stays {
			return fmt.Errorf("%w: node %d leads %d partitions still, after %s", errPartial, s.Node, s.Leads-s.Stays, wait)
		}
		return nil
	}
	return cmd
}
