package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

func (a *app) groupCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "group", Short: "Show consumer groups with their lag, change and delete their offsets",
		Args: knownVerb, RunE: needsVerb,
	}
	cmd.AddCommand(a.groupListCmd(), a.groupDescribeCmd(), a.groupResetCmd(), a.groupRemoveCmd(), a.groupOffsetDeleteCmd())
	return cmd
}

// The states of groups that verbs tell apart.
const (
	stateEmpty = "Empty"
	stateDead  = "Dead"
)

// describeGroup asks for one group. One that there is not is Dead.
func describeGroup(ctx context.Context, adm *kadm.Client, name string) (kadm.DescribedGroup, error) {
	all, err := adm.DescribeGroups(ctx, name)
	if err != nil {
		return kadm.DescribedGroup{}, fmt.Errorf("describe group %s: %w", name, err)
	}
	g, ok := all[name]
	switch {
	case !ok:
		return g, fmt.Errorf("describe group %s: the cluster does not answer for it", name)
	case errors.Is(g.Err, kerr.GroupIDNotFound):
		g.Err, g.State = nil, stateDead
	case g.Err != nil:
		return g, fmt.Errorf("describe group %s: %w", name, responseError(g.Err, g.ErrMessage))
	}
	return g, nil
}

func noGroup(name string) error {
	return fmt.Errorf("there is no group %s: `cirrolog group ls` lists what there is", name)
}

// fetchOffsets returns all committed offsets of a group.
func fetchOffsets(ctx context.Context, adm *kadm.Client, name string) (kadm.OffsetResponses, error) {
	offsets, err := adm.FetchOffsets(ctx, name)
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("fetch the offsets of group %s: %w", name, err)
	}
	return offsets, nil
}

// listedGroup is a line of group ls.
type listedGroup struct {
	Group        string `json:"group"`
	State        string `json:"state"`
	ProtocolType string `json:"protocol_type"`
	Coordinator  int32  `json:"coordinator"`
}

func (a *app) groupListCmd() *cobra.Command {
	var states []string
	cmd := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List consumer groups", Args: args(cobra.NoArgs)}
	cmd.Flags().StringSliceVar(&states, "state", nil, "only groups in these states: Stable, Empty, PreparingRebalance, CompletingRebalance, Dead")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.withAdmin(cmd.Context(), func(ctx context.Context, adm *kadm.Client) error {
			groups, err := adm.ListGroups(ctx, states...)
			if err != nil {
				return fmt.Errorf("list groups: %w", err)
			}
			out := []listedGroup{}
			t := table{header: []string{"GROUP", "STATE", "TYPE", "COORDINATOR"}}
			for _, g := range groups.Sorted() {
				out = append(out, listedGroup{g.Group, g.State, g.ProtocolType, g.Coordinator})
				t.add(g.Group, g.State, orDash(g.ProtocolType), g.Coordinator)
			}
			return a.render(cmd.OutOrStdout(), out, &t)
		})
	}
	return cmd
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) groupRemoveCmd() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use: "rm GROUP...", Aliases: []string{"delete"}, Short: "Delete groups without members, with their offsets",
		Args: args(cobra.MinimumNArgs(1)), ValidArgsFunction: a.completeGroups(0),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be deleted")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		return a.withAdmin(cmd.Context(), func(ctx context.Context, adm *kadm.Client) error {
			found, errs := removable(ctx, cmd, adm, names)
			if dryRun || len(found) == 0 {
				return someFailed(errs, len(found))
			}
			if err := a.confirm("Delete " + strings.Join(found, ", ") + " and all offsets?"); err != nil {
				return err
			}
			resp, err := adm.DeleteGroups(ctx, found...)
			if err != nil {
				return fmt.Errorf("delete groups: %w", err)
			}
			done := 0
			for _, r := range resp.Sorted() {
				if r.Err != nil {
					errs = append(errs, fmt.Errorf("delete group %s: %w", r.Group, responseError(r.Err, r.ErrMessage)))
					continue
				}
				done++
				fmt.Fprintf(cmd.OutOrStdout(), "deleted %s\n", r.Group)
			}
			return someFailed(errs, done)
		})
	}
	return cmd
}

// removable says what the groups hold and returns those that can be deleted.
func removable(ctx context.Context, cmd *cobra.Command, adm *kadm.Client, names []string) (found []string, errs []error) {
	for _, name := range names {
		g, err := describeGroup(ctx, adm, name)
		if err == nil {
			err = idle(g, "delete it")
		}
		if err == nil && g.State == stateDead {
			err = noGroup(name)
		}
		var offsets kadm.OffsetResponses
		if err == nil {
			offsets, err = fetchOffsets(ctx, adm, name)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, name)
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s, offsets of %d partitions\n", name, g.State, len(offsets.Sorted()))
	}
	return found, errs
}

// idle is an error if the group has members, with what can't be done then.
func idle(g kadm.DescribedGroup, to string) error {
	if g.State == stateEmpty || g.State == stateDead {
		return nil
	}
	return fmt.Errorf("group %s is active (%s, %d members): stop its consumers, or wait until their sessions end, to %s", g.Group, g.State, len(g.Members), to)
}

func (a *app) groupOffsetDeleteCmd() *cobra.Command {
	var dryRun bool
	var topics []string
	cmd := &cobra.Command{
		Use: "offset-delete GROUP --topic T[:P,…]...", Short: "Delete the committed offsets of topics that a group does not consume now",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: a.completeGroups(1),
	}
	topicsFlag(cmd, &topics)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would be deleted")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		asked, err := parseTopicParts(topics)
		if err != nil {
			return err
		}
		if len(asked) == 0 {
			return fmt.Errorf("%w: give the topics with --topic", errUsage)
		}
		return a.withAdmin(cmd.Context(), func(ctx context.Context, adm *kadm.Client) error {
			return a.offsetDelete(ctx, cmd, adm, names[0], asked, dryRun)
		})
	}
	return cmd
}

func (a *app) offsetDelete(ctx context.Context, cmd *cobra.Command, adm *kadm.Client, name string, asked []topicParts, dryRun bool) error {
	offsets, err := fetchOffsets(ctx, adm, name)
	if err != nil {
		return err
	}
	type deleted struct {
		Topic     string `json:"topic"`
		Partition int32  `json:"partition"`
		Offset    int64  `json:"committed_offset"`
	}
	out := []deleted{}
	t := table{header: []string{"TOPIC", "PARTITION", "COMMITTED"}}
	set := kadm.TopicsSet{}
	for _, o := range offsets.Sorted() {
		if slices.ContainsFunc(asked, func(tp topicParts) bool { return tp.has(o.Topic, o.Partition) }) {
			out = append(out, deleted{o.Topic, o.Partition, o.At})
			t.add(o.Topic, o.Partition, o.At)
			set.Add(o.Topic, o.Partition)
		}
	}
	if len(out) == 0 {
		return fmt.Errorf("group %s has no committed offsets of these partitions: `cirrolog group describe %s` shows what it has", name, name)
	}
	if dryRun {
		return a.render(cmd.OutOrStdout(), out, &t)
	}
	if err := a.confirm(fmt.Sprintf("Delete the offsets of %d partitions in group %s?", len(out), name)); err != nil {
		return err
	}
	resp, err := adm.DeleteOffsets(ctx, name, set)
	if err != nil {
		return fmt.Errorf("delete offsets of group %s: %w", name, err)
	}
	var errs []error
	shown := out[:0]
	t.rows = nil
	for _, d := range out {
		err, ok := resp.Lookup(d.Topic, d.Partition)
		if errors.Is(err, kerr.GroupSubscribedToTopic) {
			err = fmt.Errorf("the group consumes it now (%w): stop its consumers first", err)
		}
		if !ok || err != nil {
			errs = append(errs, fmt.Errorf("delete the offset of %s-%d in group %s: %w", d.Topic, d.Partition, name, err))
			continue
		}
		shown = append(shown, d)
		t.add(d.Topic, d.Partition, d.Offset)
	}
	if len(shown) > 0 {
		if err := a.render(cmd.OutOrStdout(), shown, &t); err != nil {
			return err
		}
	}
	return someFailed(errs, len(shown))
}

// topicParts are partitions of a topic; none means all.
type topicParts struct {
	topic string
	parts []int32
}

func (tp topicParts) has(topic string, p int32) bool {
	return tp.topic == topic && (len(tp.parts) == 0 || slices.Contains(tp.parts, p))
}

func topicsFlag(cmd *cobra.Command, topics *[]string) {
	cmd.Flags().StringArrayVar(topics, "topic", nil, "topic, or some partitions of it as TOPIC:0,2; may be given several times")
}

// parseTopicParts reads TOPIC and TOPIC:P,P.
func parseTopicParts(list []string) (out []topicParts, err error) {
	for _, s := range list {
		name, numbers, some := strings.Cut(s, ":")
		tp := topicParts{topic: name}
		bad := name == "" || slices.ContainsFunc(out, func(o topicParts) bool { return o.topic == name })
		if some {
			for n := range strings.SplitSeq(numbers, ",") {
				p, err := strconv.ParseInt(n, 10, 32)
				bad = bad || err != nil || p < 0 || slices.Contains(tp.parts, int32(p))
				tp.parts = append(tp.parts, int32(p))
			}
		}
		if bad {
			return nil, fmt.Errorf("%w: --topic %q: want TOPIC or TOPIC:0,2, each topic and partition once", errUsage, s)
		}
		out = append(out, tp)
	}
	return out, nil
}

// completeGroups offers group names; limit is how many arguments are groups, 0
// for all.
func (a *app) completeGroups(limit int) cobra.CompletionFunc {
	return a.completeNames(limit, func(ctx context.Context, adm *kadm.Client) ([]string, error) {
		groups, err := adm.ListGroups(ctx)
		return groups.Groups(), err
	})
}
