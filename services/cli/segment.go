package cli

import (
	"context"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/cirrolog/cirrolog/services/broker"
)

func (a *app) segmentCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "segment", Short: "List, print and verify segments", Args: knownVerb, RunE: needsVerb,
	}
	cmd.AddCommand(a.segmentListCmd(), a.segmentDumpCmd(), a.segmentVerifyCmd())
	return cmd
}

// segmentList is the answer of GET /v1/topics/{topic}/segments.
type segmentList struct {
	Topic    string               `json:"topic"`
	ID       string               `json:"id"`
	Segments []broker.SegmentInfo `json:"segments"`
}

// segmentList asks for the segments of a topic; partition -1: of all partitions.
func (a *app) segmentList(ctx context.Context, topic string, partition int32) (segmentList, error) {
	q := url.Values{}
	if partition >= 0 {
		q.Set("partition", strconv.Itoa(int(partition)))
	}
	var out segmentList
	err := a.getJSON(ctx, "/v1/topics/"+url.PathEscape(topic)+"/segments", q, &out)
	return out, err
}

func (a *app) segmentListCmd() *cobra.Command {
	var partition int32
	cmd := &cobra.Command{
		Use: "ls TOPIC", Short: "List the segments of a topic on disk and in the bucket",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: a.completeTopics(1),
	}
	cmd.Flags().Int32VarP(&partition, "partition", "p", -1, "only this partition (-1: all)")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, topics []string) error {
		list, err := a.segmentList(cmd.Context(), topics[0], partition)
		if err != nil {
			return err
		}
		t := table{header: []string{"PARTITION", "TIER", "STATE", "BASE", "LAST", "BYTES", "MAX TIME", "KEY"}}
		for _, s := range list.Segments {
			t.add(s.Partition, s.Tier, s.State, s.Base, s.Last, ibytes(s.Bytes), showTime(s.MaxTimestamp), s.Key)
		}
		return a.render(cmd.OutOrStdout(), list, &t)
	}
	return cmd
}

// showTime prints ms since 1970; "-" when negative.
func showTime(ms int64) string {
	if ms < 0 {
		return "-"
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}
