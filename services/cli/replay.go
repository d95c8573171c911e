package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/term"
)

// replayOptions are the flags of replay.
type replayOptions struct {
	partitions       []int32
	from, to         int64
	fromTime, toTime string
	format           string
	toFile, toTopic  string
	codec            string
	bucket           string
	plan             bool
	rate             byteSize
	checkpoint       string
	every            duration
}

const replayHelp = `Bring back a topic: every record from the first to the last one there is at the start of the replay,
partition by partition, by offset. --from and --to are offsets in each partition, --to and --to-time without the
place itself; a time means the first record at or after it. Output is stdout, a file, or another topic.

Records come through the brokers, or with --bucket straight from the bucket while every agent may be stopped;
the bucket has what was tiered.

With --checkpoint the replay can be interrupted and run again. --to-file then has every record once; with
--to-topic, records sent after the last checkpoint are sent again.`

func (a *app) replayCmd() *cobra.Command {
	o := replayOptions{rate: defaultRate, every: duration(time.Second)}
	cmd := &cobra.Command{
		Use: "replay TOPIC", Short: "Bring back a topic, or a range of it, from disk and bucket",
		Long:    replayHelp,
		Example: "  cirrolog replay orders --from-time 2026-01-01 --to-file orders.txt --checkpoint orders.ckpt\n  cirrolog replay orders --bucket s3://backup/prod --plan",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: a.completeTopics(1),
	}
	f := cmd.Flags()
	f.Int32SliceVarP(&o.partitions, "partitions", "p", nil, "partitions (default: all)")
	f.Int64Var(&o.from, "from", -1, "first offset")
	f.Int64Var(&o.to, "to", -1, "offset at which to end, exclusive")
	f.StringVar(&o.fromTime, "from-time", "", "time of the first record: ms since 1970, 2026-01-31, RFC 3339, or -7d")
	f.StringVar(&o.toTime, "to-time", "", "time at which to end, exclusive")
	f.StringVarP(&o.format, "format", "f", `%v\n`, "how a record is printed")
	f.StringVar(&o.toFile, "to-file", "", "write to this file")
	f.StringVar(&o.toTopic, "to-topic", "", "produce to this topic, which must exist; key, value, headers and timestamp stay")
	f.StringVarP(&o.codec, "compression", "z", "none", "with --to-topic: none, gzip, snappy, lz4 or zstd")
	f.StringVar(&o.bucket, "bucket", "", "read from this bucket: dir://PATH or s3://BUCKET/PREFIX?…")
	f.BoolVar(&o.plan, "plan", false, "only print segments, GETs, bytes, and about what it costs and takes")
	f.Var(&o.rate, "rate", "bytes per second that --plan reckons with")
	f.StringVar(&o.checkpoint, "checkpoint", "", "file that says how far the replay has come; run again to go on")
	f.Var(&o.every, "checkpoint-interval", "how often the checkpoint is written")
	a.outputFlag(cmd)
	complete(cmd, "compression", "none", "gzip", "snappy", "lz4", "zstd")
	cmd.RunE = func(cmd *cobra.Command, topics []string) error { return a.replay(cmd, topics[0], o) }
	return cmd
}

// selection parses what part of the topic is asked for.
func (o *replayOptions) selection(now time.Time) (selection, error) {
	s := selection{partitions: o.partitions, from: o.from, to: o.to, fromTime: -1, toTime: -1}
	for _, t := range []struct {
		flag, value string
		into        *int64
	}{{"--from-time", o.fromTime, &s.fromTime}, {"--to-time", o.toTime, &s.toTime}} {
		if t.value == "" {
			continue
		}
		ms, err := parseTime(t.value, now)
		if err != nil {
			return s, fmt.Errorf("%w: %s: %w", errUsage, t.flag, err)
		}
		*t.into = ms
	}
	if o.from < -1 || o.to < -1 || o.rate <= 0 || o.every < 0 {
		return s, fmt.Errorf("%w: --from and --to are offsets from 0, --rate is above 0", errUsage)
	}
	if o.toFile != "" && o.toTopic != "" {
		return s, fmt.Errorf("%w: --to-file and --to-topic can't be given together", errUsage)
	}
	if o.to >= 0 && o.to < o.from || s.toTime >= 0 && s.toTime < s.fromTime {
		return s, fmt.Errorf("%w: the range ends before it begins", errUsage)
	}
	return s, nil
}

// request names the replay in its checkpoint.
func (o *replayOptions) request() string {
	return fmt.Sprintf("partitions=%v from=%d to=%d from-time=%q to-time=%q format=%q to-file=%q to-topic=%q",
		o.partitions, o.from, o.to, o.fromTime, o.toTime, o.format, o.toFile, o.toTopic)
}

func (a *app) replay(cmd *cobra.Command, topic string, o replayOptions) (err error) {
	ctx := cmd.Context()
	sel, err := o.selection(time.Now())
	if err != nil {
		return err
	}
	format, err := kgo.NewRecordFormatter(o.format)
	if err != nil {
		return fmt.Errorf("%w: --format: %w", errUsage, err)
	}
	var src replaySource
	if o.bucket != "" {
		src, err = newBucketSource(ctx, o.bucket, topic)
	} else {
		src, err = a.newBrokerSource(ctx, topic)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	if o.plan {
		ranges, err := sel.ranges(ctx, src)
		if err != nil {
			return err
		}
		segs, err := src.segments(ctx, ranges)
		if err != nil {
			return err
		}
		return a.printPlan(cmd, makePlan(topic, ranges, segs, int64(o.rate)))
	}
	state, err := o.state(ctx, topic, sel, src)
	if err != nil {
		return err
	}
	if state.Done {
		fmt.Fprintf(a.o.Stderr, "nothing to do: %s says that all %d records were replayed\n", o.checkpoint, state.Records)
		return nil
	}
	sink, err := a.openSink(ctx, o, state, format)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sink.close()) }()
	r := replayer{src: src, sink: sink, state: state, path: o.checkpoint, every: time.Duration(o.every), bar: a.progress(topic, o, state)}
	return r.run(ctx, a.o.Stderr)
}

// state is where to begin: as the checkpoint says, or at the selection's start.
func (o *replayOptions) state(ctx context.Context, topic string, sel selection, src replaySource) (*checkpoint, error) {
	if o.checkpoint != "" {
		c, err := readCheckpoint(o.checkpoint)
		if err != nil {
			return nil, err
		}
		if c != nil {
			return c, c.matches(o.checkpoint, topic, src.id(), o.request())
		}
	}
	ranges, err := sel.ranges(ctx, src)
	if err != nil {
		return nil, err
	}
	c := &checkpoint{Topic: topic, TopicID: src.id(), Request: o.request(), Ranges: ranges}
	for _, r := range ranges {
		c.Total += r.To - r.From
	}
	return c, nil
}

func (a *app) openSink(ctx context.Context, o replayOptions, state *checkpoint, format *kgo.RecordFormatter) (replaySink, error) {
	switch {
	case o.toTopic != "":
		if o.toTopic == state.Topic && o.bucket == "" {
			return nil, fmt.Errorf("%w: --to-topic is the topic itself", errUsage)
		}
		return a.newTopicSink(ctx, o.toTopic, o.codec)
	case o.toFile == "":
		return newStdoutSink(a.o.Stdout, format), nil
	}
	if fi, err := os.Stat(o.toFile); err == nil && fi.Mode().IsRegular() && fi.Size() > state.FileSize && state.Records == 0 {
		if err := a.confirm(fmt.Sprintf("Overwrite %s (%s)?", o.toFile, ibytes(fi.Size()))); err != nil {
			return nil, err
		}
	}
	return newFileSink(o.toFile, state.FileSize, format)
}

// progress is a bar on stderr if that is a terminal on which no records are
// printed, else nil.
func (a *app) progress(topic string, o replayOptions, state *checkpoint) *progressbar.ProgressBar {
	f, ok := a.o.Stderr.(*os.File)
	if !ok || !isTerminal(f) || o.toFile == "" && o.toTopic == "" && isTerminal(a.o.Stdout) {
		return nil
	}
	bar := progressbar.NewOptions64(state.Total, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(topic),
		progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("offsets"),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth())
	_ = bar.Set64(state.Total - remaining(state.Ranges)) // a broken bar does not matter
	return bar
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func remaining(ranges []partRange) int64 {
	var n int64
	for _, r := range ranges {
		n += r.To - r.From
	}
	return n
}

// replayer copies from source to sink and keeps the checkpoint.
type replayer struct {
	src   replaySource
	sink  replaySink
	state *checkpoint
	path  string // of the checkpoint; "": none
	every time.Duration
	bar   *progressbar.ProgressBar

	saved time.Time
	n     int64 // records of this run
}

// checkEvery is how many records go by between looks at clock and bar.
const checkEvery = 256

func (r *replayer) run(ctx context.Context, stderr io.Writer) error {
	began := time.Now()
	r.saved = began
	var missing error
	var err error
	for i := range r.state.Ranges {
		err = r.partition(ctx, &r.state.Ranges[i])
		if errors.Is(err, errMissing) {
			missing, err = errors.Join(missing, err), nil
		}
		if err != nil {
			break
		}
	}
	// What was written is worth keeping, also when ctx has ended.
	r.state.Done = err == nil && missing == nil
	serr := r.save(context.WithoutCancel(ctx))
	if errors.Is(err, errNotProduced) && errors.Is(serr, errNotProduced) {
		err = nil // serr counts them all
	}
	if r.bar != nil {
		_ = r.bar.Finish()
	}
	if serr == nil {
		fmt.Fprintf(stderr, "replayed %d records in %s\n", r.n, time.Since(began).Round(time.Millisecond))
	}
	if err != nil && r.path != "" && serr == nil {
		err = fmt.Errorf("%w (run the same command again to go on)", err)
	}
	if missing != nil {
		err = errors.Join(err, fmt.Errorf("%w: %w", errPartial, missing))
	}
	return errors.Join(err, serr)
}

func (r *replayer) partition(ctx context.Context, left *partRange) error {
	if left.empty() {
		return nil
	}
	err := r.src.read(ctx, *left, func(rec *kgo.Record) error {
		if err := r.sink.write(ctx, rec); err != nil {
			return err
		}
		left.From = rec.Offset + 1
		r.n++
		r.state.Records++
		if r.n%checkEvery != 0 {
			return nil
		}
		if r.bar != nil {
			_ = r.bar.Set64(r.state.Total - remaining(r.state.Ranges))
		}
		if r.path != "" && time.Since(r.saved) >= r.every {
			return r.save(ctx)
		}
		return ctx.Err()
	})
	if err == nil || errors.Is(err, errMissing) {
		left.From = left.To // what was compacted away or is no record counts as read
	}
	return err
}

// save flushes the output, then writes the checkpoint.
func (r *replayer) save(ctx context.Context) error {
	size, err := r.sink.flush(ctx)
	if err != nil || r.path == "" {
		return err
	}
	r.saved = time.Now()
	r.state.FileSize = size
	return r.state.write(r.path)
}
