package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// resetKind is where offsets are set to.
type resetKind uint8

const (
	toEarliest resetKind = iota + 1
	toLatest
	toCurrent
	toOffset
	toTime
	shiftBy
	fromFile
)

// resetFlags are the flags of group reset.
type resetFlags struct {
	earliest, latest, current bool
	offset, shift             int64
	time, file                string
	topics                    []string
	all, dryRun               bool
}

// reset is what the flags say.
type reset struct {
	group  string
	kind   resetKind
	n      int64 // offset, shift, or ms since 1970
	topics []topicParts
	all    bool
	file   map[string]map[int32]int64 // by topic and partition
}

// resetOffset is a row of what group reset prints.
type resetOffset struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Old       int64  `json:"old_offset"` // -1: none
	New       int64  `json:"new_offset"`
}

func (a *app) groupResetCmd() *cobra.Command {
	var f resetFlags
	cmd := &cobra.Command{
		Use: "reset GROUP", Short: "Set the committed offsets of a group without members",
		Long: "Set the committed offsets of a group without members. Offsets that a partition does not have become its\n" +
			"first one or its end, with a warning. A group that there is not is made.",
		Example: "cirrolog group reset billing --topic orders --to-time -2h --dry-run\n" +
			"cirrolog group reset billing --topic orders:0,3 --shift-by -100\n" +
			"cirrolog group reset billing --all-topics --to-earliest --yes",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: a.completeGroups(1),
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.earliest, "to-earliest", false, "the first record there is")
	fs.BoolVar(&f.latest, "to-latest", false, "the end")
	fs.BoolVar(&f.current, "to-current", false, "where it is, brought into bounds; the end without a committed offset")
	fs.Int64Var(&f.offset, "to-offset", 0, "this offset")
	fs.StringVar(&f.time, "to-time", "", "the first record at or after this time: RFC 3339, a date, ms since 1970, or how long ago, as -2h")
	fs.Int64Var(&f.shift, "shift-by", 0, "this many offsets on, or back if negative")
	fs.StringVar(&f.file, "from-file", "", "the offsets in a file of lines TOPIC,PARTITION,OFFSET (- is stdin)")
	topicsFlag(cmd, &f.topics)
	fs.BoolVar(&f.all, "all-topics", false, "all partitions that the group has offsets of")
	fs.BoolVar(&f.dryRun, "dry-run", false, "only show old and new offsets")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		r, err := a.parseReset(cmd, names[0], &f)
		if err != nil {
			return err
		}
		return a.withAdmin(cmd.Context(), func(ctx context.Context, adm *kadm.Client) error {
			return a.reset(ctx, cmd, adm, r, f.dryRun)
		})
	}
	return cmd
}

// parseReset checks that the flags say one place and one set of partitions.
func (a *app) parseReset(cmd *cobra.Command, group string, f *resetFlags) (r reset, err error) {
	r = reset{group: group, all: f.all}
	places := []struct {
		flag string
		kind resetKind
	}{{"to-earliest", toEarliest}, {"to-latest", toLatest}, {"to-current", toCurrent}, {"to-offset", toOffset}, {"to-time", toTime},
		{"shift-by", shiftBy}, {"from-file", fromFile}}
	var given, names []string
	for _, p := range places {
		names = append(names, "--"+p.flag)
		if cmd.Flags().Changed(p.flag) {
			given, r.kind = append(given, "--"+p.flag), p.kind
		}
	}
	if len(given) != 1 {
		return r, fmt.Errorf("%w: give one of %s, not %s", errUsage, strings.Join(names, ", "), cmp.Or(strings.Join(given, " and "), "none"))
	}
	switch r.kind {
	case toOffset:
		r.n = f.offset
	case shiftBy:
		r.n = f.shift
	case toTime:
		if r.n, err = parseTime(f.time, time.Now()); err != nil {
			return r, fmt.Errorf("%w: --to-time: %w", errUsage, err)
		}
	case fromFile:
		if r.all || len(f.topics) > 0 {
			return r, fmt.Errorf("%w: --from-file says which partitions: leave --topic and --all-topics out", errUsage)
		}
		r.file, err = a.readOffsets(f.file)
		return r, err
	}
	if r.topics, err = parseTopicParts(f.topics); err != nil {
		return r, err
	}
	if r.all == (len(r.topics) > 0) {
		return r, fmt.Errorf("%w: give either --topic or --all-topics", errUsage)
	}
	return r, nil
}

// maxOffsetsFile is the most bytes of a file of offsets.
const maxOffsetsFile = 64 << 20

// readOffsets reads lines TOPIC,PARTITION,OFFSET.
func (a *app) readOffsets(path string) (map[string]map[int32]int64, error) {
	in := a.o.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read --from-file: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxOffsetsFile+1))
	if err == nil && len(b) > maxOffsetsFile {
		err = fmt.Errorf("it has more than %d bytes", maxOffsetsFile)
	}
	if err != nil {
		return nil, fmt.Errorf("read --from-file %s: %w", path, err)
	}
	out := map[string]map[int32]int64{}
	for i, line := range strings.Split(string(b), "\n") {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		bad := fmt.Errorf("%w: --from-file %s: line %d is %q: want TOPIC,PARTITION,OFFSET, each partition once", errUsage, path, i+1, line)
		cells := strings.Split(line, ",")
		if len(cells) != 3 {
			return nil, bad
		}
		topic := strings.TrimSpace(cells[0])
		p, err1 := strconv.ParseInt(strings.TrimSpace(cells[1]), 10, 32)
		offset, err2 := strconv.ParseInt(strings.TrimSpace(cells[2]), 10, 64)
		if out[topic] == nil {
			out[topic] = map[int32]int64{}
		}
		_, twice := out[topic][int32(p)]
		if errors.Join(err1, err2) != nil || topic == "" || p < 0 || twice {
			return nil, bad
		}
		out[topic][int32(p)] = offset
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: --from-file %s has no lines", errUsage, path)
	}
	return out, nil
}

// reset shows the new offsets and, after a question, commits them.
func (a *app) reset(ctx context.Context, cmd *cobra.Command, adm *kadm.Client, r reset, dryRun bool) error {
	g, err := describeGroup(ctx, adm, r.group)
	if err == nil {
		err = idle(g, "reset its offsets")
	}
	if err != nil {
		return err
	}
	plan, warnings, err := r.plan(ctx, adm)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
	}
	if !dryRun {
		if err := a.confirm(fmt.Sprintf("Set the offsets of %d partitions in group %s?", len(plan), r.group)); err != nil {
			return err
		}
		plan, err = commitReset(ctx, adm, r.group, plan)
		if len(plan) == 0 && err != nil {
			return err
		}
	}
	t := table{header: []string{"TOPIC", "PARTITION", "OLD", "NEW"}}
	for _, o := range plan {
		t.add(o.Topic, o.Partition, known(o.Old), o.New)
	}
	return errors.Join(a.render(cmd.OutOrStdout(), plan, &t), err)
}

// commitReset commits the offsets and returns those that were.
func commitReset(ctx context.Context, adm *kadm.Client, group string, plan []resetOffset) (done []resetOffset, err error) {
	offsets := kadm.Offsets{}
	for _, o := range plan {
		offsets.AddOffset(o.Topic, o.Partition, o.New, -1)
	}
	resp, err := adm.CommitOffsets(ctx, group, offsets)
	if err != nil {
		return nil, fmt.Errorf("commit the offsets of group %s: %w", group, err)
	}
	var errs []error
	for _, o := range plan {
		got, ok := resp.Lookup(o.Topic, o.Partition)
		switch {
		case !ok:
			err = errors.New("the cluster does not answer for it")
		case errors.Is(got.Err, kerr.UnknownMemberID), errors.Is(got.Err, kerr.IllegalGeneration), errors.Is(got.Err, kerr.RebalanceInProgress):
			err = fmt.Errorf("the group has become active (%w): stop its consumers first", got.Err)
		default:
			err = got.Err
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("commit the offset of %s-%d in group %s: %w", o.Topic, o.Partition, group, err))
			continue
		}
		done = append(done, o)
	}
	return done, someFailed(errs, len(done))
}
