package cli

import (
	"net/url"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/cirrolog/cirrolog/services/broker"
)

// topicStorage is the answer of GET /v1/topics/{topic}/storage.
type topicStorage struct {
	Topic      string                    `json:"topic"`
	ID         string                    `json:"id"`
	Partitions []broker.PartitionStorage `json:"partitions"`
}

func (a *app) topicStorageCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "storage NAME", Short: "Show where the records of a topic are: on this disk, in the bucket",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: a.completeTopics(1),
	}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		var s topicStorage
		if err := a.getJSON(cmd.Context(), "/v1/topics/"+url.PathEscape(names[0])+"/storage", nil, &s); err != nil {
			return err
		}
		t := table{header: []string{"PARTITION", "START", "LOCAL START", "TIERED END", "END", "LOCAL", "BUCKET", "LOCAL SEGMENTS", "BUCKET SEGMENTS", "TO UPLOAD"}}
		for _, p := range s.Partitions {
			t.add(p.Partition, p.LogStart, p.LocalStart, p.TieredEnd, p.HighWatermark, ibytes(p.LocalBytes), ibytes(p.BucketBytes),
				p.LocalSegments, p.BucketSegments, p.ClosedNotTiered)
		}
		return a.render(cmd.OutOrStdout(), s, &t)
	}
	return cmd
}

// ibytes prints a size for people.
func ibytes(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
