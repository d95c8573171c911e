package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
)

// produceOptions are the flags of produce.
type produceOptions struct {
	format    string
	input     string
	key       string
	hasKey    bool
	headers   []string
	partition int32
	codec     string
	acks      string
	batchMax  byteSize
	timeout   duration
}

func (a *app) produceCmd() *cobra.Command {
	o := produceOptions{batchMax: 1 << 20, timeout: duration(2 * time.Minute)}
	cmd := &cobra.Command{
		Use: "produce TOPIC", Short: "Send records, one per line of stdin unless -f says otherwise",
		Long: "Send records read from stdin or --from-file. -f says how a record looks in the input, in franz-go's\n" +
			"notation: %k key, %v value, %h{…} headers, %t topic, %d timestamp in ms; a size (%K, %V) before what it sizes.",
		Example: "  printf 'k1 v1\\nk2 v2\\n' | cirrolog produce orders -f '%k %v\\n'",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: a.completeTopics(1),
	}
	f := cmd.Flags()
	f.StringVarP(&o.format, "format", "f", `%v\n`, "how a record looks in the input")
	f.StringVar(&o.input, "from-file", "", "read this file instead of stdin")
	f.StringVarP(&o.key, "key", "k", "", "key of all records")
	f.StringArrayVarP(&o.headers, "header", "H", nil, "header KEY:VALUE of all records; repeat for more")
	f.Int32VarP(&o.partition, "partition", "p", -1, "partition of all records (-1: by key)")
	f.StringVarP(&o.codec, "compression", "z", "none", "none, gzip, snappy, lz4 or zstd")
	f.StringVar(&o.acks, "acks", "all", "all, 1 or 0")
	f.Var(&o.batchMax, "batch-max", "largest batch, and so the largest record")
	f.Var(&o.timeout, "timeout", "give up on a record after")
	complete(cmd, "compression", "none", "gzip", "snappy", "lz4", "zstd")
	complete(cmd, "acks", "all", "1", "0")
	cmd.RunE = func(cmd *cobra.Command, topics []string) error {
		o.hasKey = cmd.Flags().Changed("key")
		return a.produce(cmd.Context(), topics[0], o)
	}
	return cmd
}

func (o *produceOptions) clientOptions() ([]kgo.Opt, error) {
	opts := []kgo.Opt{kgo.ProducerBatchMaxBytes(int32(min(o.batchMax, 1<<30))), kgo.RecordDeliveryTimeout(time.Duration(o.timeout)),
		kgo.ProducerLinger(5 * time.Millisecond)}
	switch o.acks {
	case "all", "-1":
		opts = append(opts, giveUp())
	case "1":
		opts = append(opts, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	case "0":
		opts = append(opts, kgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite())
	default:
		return nil, fmt.Errorf("%w: --acks %q: want all, 1 or 0", errUsage, o.acks)
	}
	codec, err := parseCodec(o.codec)
	if err != nil {
		return nil, err
	}
	opts = append(opts, kgo.ProducerBatchCompression(codec))
	if o.partition >= 0 {
		opts = append(opts, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	}
	return opts, nil
}

// giveUp lets records fail by time whose answer was lost with a broker; without
// it a client waits for ever for a broker that does not come back. Nothing here
// sends a failed record again, so none is there twice.
func giveUp() kgo.Opt { return kgo.AllowIdempotentProduceCancellation() }

func parseCodec(s string) (kgo.CompressionCodec, error) {
	switch s {
	case "none":
		return kgo.NoCompression(), nil
	case "gzip":
		return kgo.GzipCompression(), nil
	case "snappy":
		return kgo.SnappyCompression(), nil
	case "lz4":
		return kgo.Lz4Compression(), nil
	case "zstd":
		return kgo.ZstdCompression(), nil
	}
	return kgo.NoCompression(), fmt.Errorf("%w: --compression %q: want none, gzip, snappy, lz4 or zstd", errUsage, s)
}

func (o *produceOptions) recordHeaders() ([]kgo.RecordHeader, error) {
	var out []kgo.RecordHeader
	for _, h := range o.headers {
		k, v, ok := strings.Cut(h, ":")
		if !ok {
			return nil, fmt.Errorf("%w: --header %q: want KEY:VALUE", errUsage, h)
		}
		out = append(out, kgo.RecordHeader{Key: k, Value: []byte(v)})
	}
	return out, nil
}

func (a *app) produce(ctx context.Context, topic string, o produceOptions) error {
	in := a.o.Stdin
	if o.input != "" {
		f, err := os.Open(o.input)
		if err != nil {
			return fmt.Errorf("open input: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	headers, err := o.recordHeaders()
	if err != nil {
		return err
	}
	in = bufio.NewReaderSize(in, 1<<20)
	if strings.HasSuffix(o.format, `\n`) {
		in = &finalNewline{r: in}
	}
	reader, err := kgo.NewRecordReader(in, o.format)
	if err != nil {
		return fmt.Errorf("%w: --format: %w", errUsage, err)
	}
	opts, err := o.clientOptions()
	if err != nil {
		return err
	}
	cl, err := a.client(ctx, append(opts, kgo.DefaultProduceTopic(topic), kgo.AllowAutoTopicCreation())...)
	if err != nil {
		return err
	}
	defer cl.Close()
	out := outcome{}
	readErr := sendAll(ctx, cl, reader, &out, func(r *kgo.Record) {
		r.Headers = append(r.Headers, headers...)
		if o.hasKey {
			r.Key = []byte(o.key)
		}
		if o.partition >= 0 {
			r.Partition = o.partition
		}
	})
	// What was read is sent also when ctx has ended; each record has its timeout.
	flushErr := cl.Flush(context.WithoutCancel(ctx))
	fmt.Fprintf(a.o.Stderr, "produced %d records\n", out.sent.Load())
	err = errors.Join(readErr, flushErr, out.err())
	if err != nil && out.sent.Load() > 0 {
		return fmt.Errorf("%w: %w", errPartial, err)
	}
	return err
}

// sendAll produces what reader gives until its end, the end of ctx or the first
// record that fails.
func sendAll(ctx context.Context, cl *kgo.Client, reader *kgo.RecordReader, out *outcome, prepare func(*kgo.Record)) error {
	for ctx.Err() == nil && out.failed.Load() == 0 {
		r, err := reader.ReadRecord()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read record: %w", err)
		}
		prepare(r)
		cl.Produce(ctx, r, out.done)
	}
	return ctx.Err()
}

// outcome counts records; its methods may be called concurrently.
type outcome struct {
	sent, failed atomic.Int64
	mu           sync.Mutex
	first        error
}

func (o *outcome) done(_ *kgo.Record, err error) {
	if err == nil {
		o.sent.Add(1)
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.first == nil {
		o.first = err
	}
	o.failed.Add(1)
}

// err is the first failure, with how many there were.
func (o *outcome) err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.first == nil {
		return nil
	}
	return fmt.Errorf("%d %w: %w", o.failed.Load(), errNotProduced, o.first)
}

var errNotProduced = errors.New("records were not produced")

// finalNewline ends its input with a newline, so that the last line counts
// without one.
type finalNewline struct {
	r    io.Reader
	last byte
	any  bool
	end  bool
}

func (f *finalNewline) Read(p []byte) (int, error) {
	if f.end {
		return 0, io.EOF
	}
	n, err := f.r.Read(p)
	if n > 0 {
		f.last, f.any = p[n-1], true
		if errors.Is(err, io.EOF) {
			err = nil // the next call finds the end again
		}
		return n, err
	}
	if !errors.Is(err, io.EOF) || !f.any || f.last == '\n' || len(p) == 0 {
		return n, err
	}
	f.end = true
	p[0] = '\n'
	return 1, nil
}
