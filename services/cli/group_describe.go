package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// describedGroup is what group describe prints.
type describedGroup struct {
	Group        string           `json:"group"`
	State        string           `json:"state"`
	ProtocolType string           `json:"protocol_type"`
	Protocol     string           `json:"protocol"`
	Coordinator  int32            `json:"coordinator"`
	Lag          int64            `json:"lag"` // of all partitions where it is known
	Members      []groupMember    `json:"members"`
	Partitions   []groupPartition `json:"partitions"`
}

type groupMember struct {
	MemberID   string           `json:"member_id"`
	InstanceID string           `json:"instance_id,omitempty"`
	ClientID   string           `json:"client_id"`
	Host       string           `json:"host"`
	Assigned   []assignedTopics `json:"assigned"`
}

type assignedTopics struct {
	Topic      string  `json:"topic"`
	Partitions []int32 `json:"partitions"`
}

// groupPartition is a partition that the group has an offset for, or that a
// member has been given.
type groupPartition struct {
	Topic      string   `json:"topic"`
	Partition  int32    `json:"partition"`
	Committed  int64    `json:"committed_offset"` // -1: none
	Metadata   string   `json:"metadata,omitempty"`
	Start      int64    `json:"start_offset"` // -1: not known, as after the topic was deleted
	End        int64    `json:"end_offset"`
	Lag        int64    `json:"lag"`         // -1: not known
	LagSeconds *float64 `json:"lag_seconds"` // age of the next record; null: not known
	MemberID   string   `json:"member_id,omitempty"`
}

func (a *app) groupDescribeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "describe GROUP...", Short: "Show state, members, committed offsets and lag",
		Long: "Show state, members, committed offsets and lag. BEHIND is the age of the next record that the group has to\n" +
			"read. It is read from the log, of up to 100 partitions whose next record is on the node's own disk; others have -.",
		Args: args(cobra.MinimumNArgs(1)), ValidArgsFunction: a.completeGroups(0),
	}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		return a.withAdmin(cmd.Context(), func(ctx context.Context, adm *kadm.Client) error {
			out := []describedGroup{}
			t := table{header: []string{"GROUP", "TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "BEHIND", "MEMBER"}}
			var errs []error
			for _, name := range names {
				d, err := a.oneGroup(ctx, adm, name)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				out = append(out, d)
				for _, p := range d.Partitions {
					t.add(d.Group, p.Topic, p.Partition, known(p.Committed), known(p.End), known(p.Lag), behind(p.LagSeconds), orDash(p.MemberID))
				}
			}
			if len(out) > 0 {
				if err := a.render(cmd.OutOrStdout(), out, &t); err != nil {
					return err
				}
				if a.output == "table" {
					printGroups(cmd.OutOrStdout(), out)
				}
			}
			return someFailed(errs, len(out))
		})
	}
	return cmd
}

func known(n int64) string {
	if n < 0 {
		return "-"
	}
	return strconv.FormatInt(n, 10)
}

func behind(seconds *float64) string {
	if seconds == nil {
		return "-"
	}
	return time.Duration(*seconds * float64(time.Second)).Round(100 * time.Millisecond).String()
}

func printGroups(w io.Writer, groups []describedGroup) {
	for _, d := range groups {
		fmt.Fprintf(w, "\n%s: %s, %d members, lag %d, coordinator %d", d.Group, d.State, len(d.Members), d.Lag, d.Coordinator)
		if d.Protocol != "" {
			fmt.Fprintf(w, ", %s protocol %s", d.ProtocolType, d.Protocol)
		}
		fmt.Fprintln(w)
		for _, m := range d.Members {
			fmt.Fprintf(w, "  %s", m.MemberID)
			if m.InstanceID != "" {
				fmt.Fprintf(w, " (static, %s)", m.InstanceID)
			}
			fmt.Fprintf(w, " at %s:", m.Host)
			for _, t := range m.Assigned {
				fmt.Fprintf(w, " %s:%s", t.Topic, strings.Trim(strings.Join(strings.Fields(fmt.Sprint(t.Partitions)), ","), "[]"))
			}
			fmt.Fprintln(w)
		}
	}
}

// oneGroup collects what is known of a group.
func (a *app) oneGroup(ctx context.Context, adm *kadm.Client, name string) (describedGroup, error) {
	g, err := describeGroup(ctx, adm, name)
	if err != nil {
		return describedGroup{}, err
	}
	offsets, err := fetchOffsets(ctx, adm, name)
	if err != nil {
		return describedGroup{}, err
	}
	if g.State == stateDead && len(offsets) == 0 {
		return describedGroup{}, noGroup(name)
	}
	d := describedGroup{Group: name, State: g.State, ProtocolType: g.ProtocolType, Protocol: g.Protocol, Coordinator: g.Coordinator.NodeID,
		Members: []groupMember{}, Partitions: []groupPartition{}}
	rows := map[string]map[int32]*groupPartition{}
	row := func(topic string, p int32) *groupPartition {
		if rows[topic] == nil {
			rows[topic] = map[int32]*groupPartition{}
		}
		if rows[topic][p] == nil {
			rows[topic][p] = &groupPartition{Topic: topic, Partition: p, Committed: -1, Start: -1, End: -1, Lag: -1}
		}
		return rows[topic][p]
	}
	for _, m := range g.Members {
		gm := groupMember{MemberID: m.MemberID, ClientID: m.ClientID, Host: m.ClientHost, Assigned: []assignedTopics{}}
		if m.InstanceID != nil {
			gm.InstanceID = *m.InstanceID
		}
		if c, ok := m.Assigned.AsConsumer(); ok {
			for _, t := range c.Topics {
				gm.Assigned = append(gm.Assigned, assignedTopics{t.Topic, t.Partitions})
				for _, p := range t.Partitions {
					row(t.Topic, p).MemberID = m.MemberID
				}
			}
		}
		d.Members = append(d.Members, gm)
	}
	offsets.Each(func(o kadm.OffsetResponse) {
		r := row(o.Topic, o.Partition)
		r.Committed, r.Metadata = o.At, o.Metadata
	})
	var all []*groupPartition
	for _, parts := range rows {
		for _, r := range parts {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(x, y *groupPartition) int {
		return cmp.Or(cmp.Compare(x.Topic, y.Topic), cmp.Compare(x.Partition, y.Partition))
	})
	if err := a.lags(ctx, adm, sortedKeys(rows), all); err != nil {
		return d, err
	}
	for _, r := range all {
		d.Lag += max(r.Lag, 0)
		d.Partitions = append(d.Partitions, *r)
	}
	return d, nil
}

// lags fills in the bounds of the partitions and how far the group is behind.
func (a *app) lags(ctx context.Context, adm *kadm.Client, topics []string, rows []*groupPartition) error {
	if len(topics) == 0 {
		return nil
	}
	listed, err := listThree(ctx, adm, topics...)
	if err != nil {
		return err
	}
	at := func(i int, r *groupPartition) int64 {
		if o, ok := listed[i].Lookup(r.Topic, r.Partition); ok && o.Err == nil {
			return o.Offset
		}
		return -1
	}
	var late []*groupPartition
	for _, r := range rows {
		r.Start, r.End = at(0, r), at(1, r)
		if r.Committed < 0 || r.End < 0 {
			continue
		}
		next := max(r.Committed, r.Start)
		r.Lag = max(r.End-next, 0)
		switch {
		case r.Lag == 0:
			r.LagSeconds = new(float64)
		case next >= at(2, r) && len(late) < maxAges:
			late = append(late, r)
		}
	}
	return a.ages(ctx, late)
}

const (
	// maxAges bounds of how many partitions the next record is read.
	maxAges = 100
	// agesTime bounds how long that takes.
	agesTime = 5 * time.Second
	// ageBytes is how much of a partition is asked for at once.
	ageBytes = 16 << 10
)

// ages reads the next record of each partition. What can't be read in time is
// left out.
func (a *app) ages(ctx context.Context, rows []*groupPartition) error {
	if len(rows) == 0 {
		return nil
	}
	from := map[string]map[int32]kgo.Offset{}
	left := map[string]map[int32]*groupPartition{}
	for _, r := range rows {
		if from[r.Topic] == nil {
			from[r.Topic], left[r.Topic] = map[int32]kgo.Offset{}, map[int32]*groupPartition{}
		}
		from[r.Topic][r.Partition] = kgo.NewOffset().At(max(r.Committed, r.Start))
		left[r.Topic][r.Partition] = r
	}
	cl, err := a.client(ctx, kgo.ConsumePartitions(from), kgo.FetchMaxPartitionBytes(ageBytes), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, agesTime)
	defer cancel()
	for missing := len(rows); missing > 0 && ctx.Err() == nil; {
		now := time.Now()
		cl.PollFetches(ctx).EachPartition(func(f kgo.FetchTopicPartition) {
			r := left[f.Topic][f.Partition]
			if r == nil || r.LagSeconds != nil || len(f.Records) == 0 {
				return
			}
			age := math.Round(max(now.Sub(f.Records[0].Timestamp).Seconds(), 0)*1000) / 1000
			r.LagSeconds = &age
			missing--
			cl.PauseFetchPartitions(map[string][]int32{f.Topic: {f.Partition}})
		})
	}
	return nil
}
