package cli

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// benchOptions are the flags of bench.
type benchOptions struct {
	topic      string
	partitions int32
	keep       bool
	size       byteSize
	duration   duration
	rate       int64 // records/s; 0: as fast as possible
	codec      string
	acks       string
	linger     duration
	batchMax   byteSize
}

// benchResult is what a bench prints. Latencies are in ms.
type benchResult struct {
	Bench     string  `json:"bench"`
	Topic     string  `json:"topic"`
	Records   int64   `json:"records"`
	Bytes     int64   `json:"bytes"` // of values
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"records_per_second"`
	MBPerS    float64 `json:"mb_per_second"` // 10^6 bytes
	P50       float64 `json:"p50_ms,omitempty"`
	P99       float64 `json:"p99_ms,omitempty"`
	P999      float64 `json:"p999_ms,omitempty"`
	Max       float64 `json:"max_ms,omitempty"`
}

func (a *app) benchCmd() *cobra.Command {
	o := &benchOptions{size: 1000, duration: duration(10 * time.Second), linger: duration(5 * time.Millisecond), batchMax: 1_000_000}
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure a cluster with records of random bytes",
		Args: knownVerb, RunE: needsVerb,
	}
	f := cmd.PersistentFlags()
	f.StringVarP(&o.topic, "topic", "t", "cirrolog-bench", "topic; it is made if it is missing and deleted at the end if it was made")
	f.Int32VarP(&o.partitions, "partitions", "p", 6, "partitions of the topic if it is made")
	f.BoolVar(&o.keep, "keep", false, "do not delete the topic")
	f.Var(&o.size, "size", "size of a record's value")
	f.VarP(&o.duration, "duration", "d", "how long to produce")
	f.Int64Var(&o.rate, "rate", 0, "records per second (0: as many as possible; e2e: 1000)")
	f.StringVarP(&o.codec, "compression", "z", "none", "none, gzip, snappy, lz4 or zstd")
	f.StringVar(&o.acks, "acks", "all", "all, 1 or 0")
	f.Var(&o.linger, "linger", "how long a batch waits for more records")
	f.Var(&o.batchMax, "batch-max", "largest batch")
	for _, b := range []struct {
		name, short string
		run         func(context.Context, *kadm.Client, benchOptions) (benchResult, error)
	}{
		{"produce", "Produce as fast as possible, or at --rate", a.benchProduce},
		{"consume", "Read a topic from the start to its end; a made one is filled first", a.benchConsume},
		{"e2e", "Measure the time from produce to consume", a.benchEndToEnd},
	} {
		sub := &cobra.Command{Use: b.name, Short: b.short, Args: args(cobra.NoArgs)}
		a.outputFlag(sub)
		sub.RunE = func(cmd *cobra.Command, _ []string) error {
			if o.size < 8 || o.size > 64<<20 || o.duration <= 0 || o.rate < 0 || o.partitions < 1 {
				return fmt.Errorf("%w: want --size 8B to 64MiB, --duration above 0, --rate from 0, --partitions from 1", errUsage)
			}
			return a.bench(cmd, *o, b.run)
		}
		cmd.AddCommand(sub)
	}
	return cmd
}

func (a *app) bench(cmd *cobra.Command, o benchOptions, run func(context.Context, *kadm.Client, benchOptions) (benchResult, error)) error {
	return a.withAdmin(cmd.Context(), func(ctx context.Context, adm *kadm.Client) (err error) {
		made, err := makeBenchTopic(ctx, adm, o)
		if err != nil {
			return err
		}
		if made && !o.keep {
			defer func() {
				_, derr := adm.DeleteTopic(context.WithoutCancel(ctx), o.topic)
				err = errors.Join(err, derr)
			}()
		}
		if made && cmd.Name() == "consume" {
			if _, err := a.benchProduce(ctx, adm, o); err != nil {
				return err
			}
		}
		r, err := run(ctx, adm, o)
		if err != nil {
			return err
		}
		r.Topic = o.topic
		r.PerSecond = float64(r.Records) / max(r.Seconds, 1e-9)
		r.MBPerS = float64(r.Bytes) / 1e6 / max(r.Seconds, 1e-9)
		t := table{header: []string{"BENCH", "RECORDS", "SECONDS", "RECORDS/S", "MB/S", "P50 MS", "P99 MS", "P99.9 MS", "MAX MS"}}
		f := func(v float64) string { return fmt.Sprintf("%.2f", v) }
		t.add(r.Bench, r.Records, f(r.Seconds), fmt.Sprintf("%.0f", r.PerSecond), f(r.MBPerS), f(r.P50), f(r.P99), f(r.P999), f(r.Max))
		return a.render(cmd.OutOrStdout(), r, &t)
	})
}

func makeBenchTopic(ctx context.Context, adm *kadm.Client, o benchOptions) (made bool, err error) {
	topics, err := adm.ListTopics(ctx)
	if err != nil {
		return false, fmt.Errorf("list topics: %w", err)
	}
	if topics.Has(o.topic) {
		return false, nil
	}
	r, err := adm.CreateTopic(ctx, o.partitions, -1, nil, o.topic)
	if err != nil {
		return false, fmt.Errorf("create topic %s: %w", o.topic, responseError(err, r.ErrMessage))
	}
	return true, nil
}

// benchClient produces with the flags of bench.
func (a *app) benchClient(ctx context.Context, o benchOptions) (*kgo.Client, error) {
	p := produceOptions{codec: o.codec, acks: o.acks, batchMax: o.batchMax, timeout: duration(2 * time.Minute), partition: -1}
	opts, err := p.clientOptions()
	if err != nil {
		return nil, err
	}
	return a.client(ctx, append(opts, kgo.DefaultProduceTopic(o.topic), kgo.ProducerLinger(time.Duration(o.linger)))...)
}

// latencies collects samples; it may be used concurrently.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

const maxSamples = 10_000_000

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) < maxSamples {
		l.all = append(l.all, d)
	}
}

func (l *latencies) fill(r *benchResult) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) == 0 {
		return
	}
	slices.Sort(l.all)
	at := func(permille int) float64 {
		return float64(l.all[min(len(l.all)-1, len(l.all)*permille/1000)]) / float64(time.Millisecond)
	}
	r.P50, r.P99, r.P999, r.Max = at(500), at(990), at(999), at(1000)
}

// load produces values whose first 8 bytes are the time (ns since 1970) until
// the duration is over, at the rate asked for.
func load(ctx context.Context, cl *kgo.Client, o benchOptions, acked func(time.Duration)) (sent int64, err error) {
	random := rand.New(rand.NewChaCha8([32]byte{1}))
	block := make([]byte, int(o.size)+64<<10)
	for i := range block {
		block[i] = byte(random.Uint32())
	}
	var out outcome
	began := time.Now()
	for n := int64(0); ctx.Err() == nil && out.failed.Load() == 0 && time.Since(began) < time.Duration(o.duration); n++ {
		if o.rate > 0 {
			due := began.Add(time.Duration(float64(n) / float64(o.rate) * float64(time.Second)))
			time.Sleep(time.Until(due))
		}
		from := random.IntN(64 << 10)
		value := slices.Clone(block[from : from+int(o.size)])
		now := time.Now()
		binary.LittleEndian.PutUint64(value, uint64(now.UnixNano()))
		cl.Produce(ctx, &kgo.Record{Value: value}, func(r *kgo.Record, err error) {
			out.done(r, err)
			if err == nil && acked != nil {
				acked(time.Since(now))
			}
		})
	}
	err = cl.Flush(context.WithoutCancel(ctx))
	return out.sent.Load(), errors.Join(err, out.err())
}

func (a *app) benchProduce(ctx context.Context, _ *kadm.Client, o benchOptions) (benchResult, error) {
	cl, err := a.benchClient(ctx, o)
	if err != nil {
		return benchResult{}, err
	}
	defer cl.Close()
	var l latencies
	began := time.Now()
	sent, err := load(ctx, cl, o, l.add)
	r := benchResult{Bench: "produce", Records: sent, Bytes: sent * int64(o.size), Seconds: time.Since(began).Seconds()}
	l.fill(&r)
	return r, err
}

func (a *app) benchConsume(ctx context.Context, adm *kadm.Client, o benchOptions) (benchResult, error) {
	cl, err := a.client(ctx, consumerOptions(false)...)
	if err != nil {
		return benchResult{}, err
	}
	defer cl.Close()
	d, err := oneTopic(ctx, adm, o.topic)
	if err != nil {
		return benchResult{}, err
	}
	b, err := topicBounds(ctx, adm, o.topic, false)
	if err != nil {
		return benchResult{}, err
	}
	ranges, err := offsetSpec{kind: atStart, until: endOfTime}.resolve(ctx, adm, o.topic, d.Partitions.Numbers(), b, true)
	if err != nil {
		return benchResult{}, err
	}
	r := benchResult{Bench: "consume"}
	began := time.Now()
	err = readRanges(ctx, cl, o.topic, clipStarts(ranges, o.topic, b), func(_ *kgo.FetchPartition, rec *kgo.Record) error {
		r.Records++
		r.Bytes += int64(len(rec.Key) + len(rec.Value))
		return nil
	}, func() error { return nil })
	r.Seconds = time.Since(began).Seconds()
	return r, err
}

// drainTime is how long e2e waits for the last records.
const drainTime = 10 * time.Second

func (a *app) benchEndToEnd(ctx context.Context, adm *kadm.Client, o benchOptions) (benchResult, error) {
	if o.rate == 0 {
		o.rate = 1000
	}
	d, err := oneTopic(ctx, adm, o.topic)
	if err != nil {
		return benchResult{}, err
	}
	b, err := topicBounds(ctx, adm, o.topic, false)
	if err != nil {
		return benchResult{}, err
	}
	ranges, err := offsetSpec{kind: atEnd, until: noEnd}.resolve(ctx, adm, o.topic, d.Partitions.Numbers(), b, false)
	if err != nil {
		return benchResult{}, err
	}
	in, err := a.client(ctx, consumerOptions(false)...)
	if err != nil {
		return benchResult{}, err
	}
	defer in.Close()
	o.linger = 0
	out, err := a.benchClient(ctx, o)
	if err != nil {
		return benchResult{}, err
	}
	defer out.Close()

	var l latencies
	var got, want atomic.Int64
	want.Store(-1)
	began := time.Now()
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	finished := make(chan error, 1)
	go func() {
		finished <- readRanges(rctx, in, o.topic, clipStarts(ranges, o.topic, b), func(_ *kgo.FetchPartition, rec *kgo.Record) error {
			if len(rec.Value) >= 8 {
				l.add(time.Since(time.Unix(0, int64(binary.LittleEndian.Uint64(rec.Value)))))
			}
			if n := got.Add(1); n == want.Load() {
				return errStop
			}
			return nil
		}, func() error { return nil })
	}()
	sent, err := load(ctx, out, o, nil)
	want.Store(sent)
	for deadline := time.Now().Add(drainTime); got.Load() < sent && time.Now().Before(deadline) && err == nil && ctx.Err() == nil; {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if rerr := <-finished; rerr != nil && !errors.Is(rerr, context.Canceled) {
		err = errors.Join(err, rerr)
	}
	if err == nil && got.Load() < sent {
		err = fmt.Errorf("%d of %d records came back", got.Load(), sent)
	}
	r := benchResult{Bench: "e2e", Records: got.Load(), Bytes: got.Load() * int64(o.size), Seconds: time.Since(began).Seconds()}
	l.fill(&r)
	return r, err
}
