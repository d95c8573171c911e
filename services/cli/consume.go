package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// consumeOptions are the flags of consume.
type consumeOptions struct {
	partitions []int32
	offset     string
	count      int64
	toEnd      bool
	format     string
	committed  bool
}

func (a *app) consumeCmd() *cobra.Command {
	var o consumeOptions
	cmd := &cobra.Command{
		Use: "consume TOPIC", Short: "Print records as they come",
		Long: "Print records as they come, from the start unless -o says otherwise. -o takes start, end, N, +N (records\n" +
			"after the start), -N (records before the end), @TIME or a range @TIME:@TIME, where a time is ms since 1970,\n" +
			"2026-01-31, 2026-01-31T15:04:05Z, or how long ago: -1h. Formats are franz-go's: %t topic, %p partition,\n" +
			"%o offset, %k key, %v value, %d timestamp, %h{%k=%v } headers.",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: a.completeTopics(1),
	}
	f := cmd.Flags()
	f.Int32SliceVarP(&o.partitions, "partitions", "p", nil, "partitions (default: all)")
	f.StringVarP(&o.offset, "offset", "o", "start", "where to begin")
	f.Int64VarP(&o.count, "count", "n", 0, "end after so many records (0: no bound)")
	f.BoolVarP(&o.toEnd, "exit", "e", false, "end at the end there is now")
	f.StringVarP(&o.format, "format", "f", `%v\n`, "how a record is printed")
	f.BoolVar(&o.committed, "read-committed", false, "leave out records of open and aborted transactions")
	complete(cmd, "offset", "start", "end")
	cmd.RunE = func(cmd *cobra.Command, topics []string) error { return a.consume(cmd.Context(), topics[0], o) }
	return cmd
}

// errStop ends reading without an error.
var errStop = errors.New("stop")

func (a *app) consume(ctx context.Context, topic string, o consumeOptions) error {
	spec, err := parseOffsetSpec(o.offset, time.Now())
	if err != nil {
		return err
	}
	format, err := kgo.NewRecordFormatter(o.format)
	if err != nil {
		return fmt.Errorf("%w: --format: %w", errUsage, err)
	}
	if o.count < 0 {
		return fmt.Errorf("%w: --count %d: want 0 or more", errUsage, o.count)
	}
	cl, err := a.client(ctx, consumerOptions(o.committed)...)
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	d, err := oneTopic(ctx, adm, topic)
	if err != nil {
		return err
	}
	parts, err := choosePartitions(d, o.partitions)
	if err != nil {
		return err
	}
	b, err := topicBounds(ctx, adm, topic, o.committed)
	if err != nil {
		return err
	}
	ranges, err := spec.resolve(ctx, adm, topic, parts, b, o.toEnd)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(a.o.Stdout, 256<<10)
	var line []byte
	var n int64
	err = readRanges(ctx, cl, topic, clipStarts(ranges, topic, b), func(p *kgo.FetchPartition, r *kgo.Record) error {
		line = format.AppendPartitionRecord(line[:0], p, r)
		if _, err := out.Write(line); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if n++; n == o.count {
			return errStop
		}
		return nil
	}, out.Flush)
	if ferr := out.Flush(); err == nil {
		err = ferr
	}
	if errors.Is(err, context.Canceled) {
		return nil // the user has seen enough
	}
	return err
}

// consumerOptions are for reading given offsets: what is out of range is an
// error, never a jump. Control records show how far reading has come.
func consumerOptions(committed bool) []kgo.Opt {
	opts := []kgo.Opt{kgo.ConsumeResetOffset(kgo.NoResetOffset()), kgo.KeepControlRecords(), kgo.FetchMaxPartitionBytes(8 << 20)}
	if committed {
		opts = append(opts, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	}
	return opts
}

// fetchRange is a range with the place from which it can be fetched, which is
// before From when that lies behind the end.
type fetchRange struct {
	partRange
	at int64
}

func clipStarts(ranges []partRange, topic string, b bounds) []fetchRange {
	out := make([]fetchRange, len(ranges))
	for i, r := range ranges {
		out[i] = fetchRange{r, r.From}
		if _, end, err := b.of(topic, r.Partition); err == nil {
			out[i].at = min(r.From, end)
		}
	}
	return out
}

// readRanges fetches the ranges and calls emit for each record, and flush
// whenever it is about to wait, until all are read, emit returns an error or ctx
// ends. cl must have consumerOptions.
func readRanges(ctx context.Context, cl *kgo.Client, topic string, ranges []fetchRange,
	emit func(*kgo.FetchPartition, *kgo.Record) error, flush func() error) error {
	open := map[int32]fetchRange{}
	add := map[int32]kgo.Offset{}
	for _, r := range ranges {
		if !r.empty() {
			open[r.Partition] = r
			add[r.Partition] = kgo.NewOffset().At(r.at)
		}
	}
	if len(open) == 0 {
		return nil
	}
	cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: add})
	defer cl.PurgeTopicsFromConsuming(topic)
	for len(open) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return err
		}
		var err error
		fetches.EachPartition(func(ft kgo.FetchTopicPartition) {
			if err != nil {
				return
			}
			if ft.Err != nil {
				err = fmt.Errorf("fetch %s, partition %d: %w", topic, ft.Partition, ft.Err)
				return
			}
			if r, ok := open[ft.Partition]; ok {
				var done bool
				if done, err = emitRange(r, &ft.FetchPartition, emit); done {
					delete(open, ft.Partition)
					cl.PauseFetchPartitions(map[string][]int32{topic: {ft.Partition}})
				}
			}
		})
		if err == nil {
			err = flush()
		}
		if errors.Is(err, errStop) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// emitRange emits the fetched records that lie in r; done says that it is read.
func emitRange(r fetchRange, p *kgo.FetchPartition, emit func(*kgo.FetchPartition, *kgo.Record) error) (done bool, err error) {
	for _, rec := range p.Records {
		if rec.Offset >= r.To {
			return true, nil
		}
		if rec.Offset >= r.From && !rec.Attrs.IsControl() {
			if err := emit(p, rec); err != nil {
				return false, err
			}
		}
		if rec.Offset == r.To-1 && r.To != math.MaxInt64 {
			return true, nil
		}
	}
	return false, nil
}
