package cli

import (
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/cirrolog/cirrolog/services/agent"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// diskList is the answer of GET /v1/disks.
type diskList struct {
	Disks []agent.DiskInfo `json:"disks"`
}

func diskTable(list []agent.DiskInfo) *table {
	t := table{header: []string{"DISK", "NODE", "STATE", "SINCE", "PARTITIONS", "INCARNATION"}}
	for _, d := range list {
		t.add(d.Disk, d.Node, d.State, time.UnixMilli(d.SinceMs).UTC().Format(time.RFC3339), d.Partitions, d.Incarnation)
	}
	return &t
}

func (a *app) clusterDisksCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "disks", Short: "List the disks that have partitions of class local",
		Long: "List the data directories of agents that have, or had, partitions of topics with durability=local: active while an\n" +
			"agent runs on them, away while none does, abandoned when they were given up.",
		Args: args(cobra.NoArgs),
	}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var list diskList
		if err := a.getJSON(cmd.Context(), "/v1/disks", nil, &list); err != nil {
			return err
		}
		return a.render(cmd.OutOrStdout(), list.Disks, diskTable(list.Disks))
	}
	return cmd
}

func (a *app) abandonDiskCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "abandon-disk DISK-ID", Short: "Declare a disk lost and give its partitions to other agents",
		Long: "Declare the data directory of an agent lost, for ever. Its partitions of topics with durability=local go on at other\n" +
			"agents behind what is in the bucket; what was acknowledged and is only on that disk is lost. An agent that starts\n" +
			"with that data directory is refused from then on. Partitions of class object need no such thing.",
		Args: args(cobra.ExactArgs(1)),
	}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		if _, err := ids.ParseDiskID(names[0]); err != nil {
			return fmt.Errorf("%w: %w; `cirrolog cluster disks` lists them", errUsage, err)
		}
		if err := a.confirm("Give up for ever what only disk " + names[0] + " has?"); err != nil {
			return err
		}
		var d agent.DiskInfo
		if err := a.adminJSON(cmd.Context(), http.MethodPost, "/v1/disks/"+names[0]+"/abandon", nil, &d); err != nil {
			return fmt.Errorf("abandon disk %s: %w", names[0], err)
		}
		return a.render(cmd.OutOrStdout(), d, diskTable([]agent.DiskInfo{d}))
	}
	return cmd
}
