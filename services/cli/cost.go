package cli

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cirrolog/cirrolog/services/cost"
)

// costFlags are the flags of `cost`.
type costFlags struct {
	in        []float64 // bytes/s
	retention []time.Duration
	load      cost.Load
	setup     cost.Setup
	prices    cost.Prices
	live      bool
	metrics   []string
	window    time.Duration
}

// priceDate is when the defaults were looked up.
const priceDate = "2026-11-22"

func defaultCost() costFlags {
	const day = 24 * time.Hour
	return costFlags{
		in: []float64{1 << 20, 10 << 20, 100 << 20}, retention: []time.Duration{day, 7 * day, 30 * day},
		load: cost.Load{Compression: 1, Batch: 16 << 10, FanOut: 2, Partitions: 100},
		setup: cost.Setup{Zones: 3, Linger: 100 * time.Millisecond, SweepInterval: 10 * time.Minute, SegmentBytes: 64 << 20,
			InstanceCPUs: 4, InstanceNetwork: 223 << 20, DiskFill: 0.7, FollowerFetch: true},
		prices: cost.Prices{Put: 0.005, Get: 0.0004, Storage: 0.023, CrossZone: 0.02, Instance: 0.2136, Metadata: 37.38,
			KafkaInstance: 0.1632, KafkaDisk: 0.08, KafkaThroughput: 0.04},
		window: time.Minute,
	}
}

// costRow is one load and what it costs.
type costRow struct {
	Load             cost.Load     `json:"load"`
	RetentionSeconds float64       `json:"retention_seconds,omitempty"`
	Cirrolog         cost.Cirrolog `json:"cirrolog"`
	Kafka            cost.Kafka    `json:"kafka"`
}

// assumption is what the figures rest on.
type assumption struct {
	What  string `json:"what"`
	Value string `json:"value"`
	From  string `json:"from"`
}

// costReport is what `cost` prints.
type costReport struct {
	Rows        []costRow    `json:"rows"` // US dollars a month
	Live        *liveCount   `json:"live,omitempty"`
	Assumptions []assumption `json:"assumptions"`
}

func (a *app) costCmd() *cobra.Command {
	c := defaultCost()
	cmd := &cobra.Command{
		Use: "cost", Short: "Reckon what a cluster costs a month on AWS, beside Kafka on EBS", Args: args(cobra.NoArgs),
		Long: "Reckon what a cluster costs a month on AWS, in US dollars, beside Kafka with three replicas on gp3 volumes: a row for each\n" +
			"--in and --retention. The formulas are in docs/operations.md; what they rest on is printed with them. Prices are list prices\n" +
			"of us-east-1, without discounts: give your own.\n\n" +
			"With --live what the agents count takes the place of the load: requests, bytes produced and fetched in --window, and the\n" +
			"bytes that are in the bucket. Name all agents' admin addresses with --metrics: an agent knows its own counters only.",
		Example: "  cirrolog cost --in 50MiB --retention 7d --partitions 200\n  cirrolog cost --live --metrics 10.0.0.1:9644,10.0.1.1:9644,10.0.2.1:9644",
	}
	c.declare(cmd.Flags())
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := c.validate(cmd.Flags()); err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		r, missing := costReport{Assumptions: c.assumptions()}, error(nil)
		if c.live {
			count, err := a.countLive(cmd.Context(), c.metrics, c.window)
			if count == nil {
				return err
			}
			r.Live, missing = count, err
			r.Rows = []costRow{c.liveRow(count)}
		} else {
			r.Rows = c.rows()
		}
		return errors.Join(a.renderCost(cmd.OutOrStdout(), &r), missing)
	}
	return cmd
}

func (c *costFlags) declare(f *pflag.FlagSet) {
	f.Var((*rateList)(&c.in), "in", "bytes a second that applications produce, one or more")
	f.Var((*durationList)(&c.retention), "retention", "how long they are kept, one or more")
	f.Float64Var(&c.load.Compression, "compression", c.load.Compression, "bytes before producers compress over bytes after")
	f.Var((*floatSize)(&c.load.Batch), "batch", "mean size of a batch, compressed")
	f.Float64Var(&c.load.FanOut, "fan-out", c.load.FanOut, "how many times each byte is consumed")
	f.Float64Var(&c.load.Cold, "cold", c.load.Cold, "share of what is consumed that is read from the bucket, 0 to 1")
	f.IntVar(&c.load.Partitions, "partitions", c.load.Partitions, "partitions that are written to, evenly")
	f.IntVar(&c.setup.Agents, "agents", 0, "agents (0: as many as network and processors take, one in each zone)")
	f.IntVar(&c.setup.Zones, "zones", c.setup.Zones, "zones that agents, brokers and clients are in, evenly")
	f.Var((*duration)(&c.setup.Linger), "wal-linger", "the agents' --wal-linger")
	f.Var((*duration)(&c.setup.SweepInterval), "sweep-interval", "the agents' --sweep-interval")
	f.Var((*floatSize)(&c.setup.SegmentBytes), "segment-bytes", "segment.bytes of the topics")
	f.Float64Var(&c.setup.InstanceCPUs, "instance-cpus", c.setup.InstanceCPUs, "processors of an instance")
	f.Var((*floatSize)(&c.setup.InstanceNetwork), "instance-network", "bytes a second of an instance's network, each way")
	f.Float64Var(&c.prices.Put, "price-put", c.prices.Put, "dollars for 1,000 PUT, COPY, POST and LIST requests")
	f.Float64Var(&c.prices.Get, "price-get", c.prices.Get, "dollars for 1,000 GET and HEAD requests")
	f.Float64Var(&c.prices.Storage, "price-storage", c.prices.Storage, "dollars for a GiB in the bucket for a month")
	f.Float64Var(&c.prices.CrossZone, "price-cross-zone", c.prices.CrossZone, "dollars for a GiB from one zone to another, both sides together")
	f.Float64Var(&c.prices.Instance, "price-instance", c.prices.Instance, "dollars for an agent's instance and hour")
	f.Float64Var(&c.prices.Metadata, "price-metadata", c.prices.Metadata, "dollars for the metadata store and month")
	f.IntVar(&c.setup.Brokers, "kafka-brokers", 0, "Kafka's brokers (0: as many as their network takes, three at least)")
	f.Float64Var(&c.setup.DiskFill, "kafka-disk-fill", c.setup.DiskFill, "share of Kafka's volumes that is used, up to 1")
	f.BoolVar(&c.setup.FollowerFetch, "kafka-follower-fetch", c.setup.FollowerFetch, "Kafka's consumers read from a replica in their zone")
	f.Float64Var(&c.prices.KafkaInstance, "kafka-price-instance", c.prices.KafkaInstance, "dollars for a broker's instance and hour")
	f.Float64Var(&c.prices.KafkaDisk, "kafka-price-disk", c.prices.KafkaDisk, "dollars for a GiB of gp3 for a month")
	f.Float64Var(&c.prices.KafkaThroughput, "kafka-price-throughput", c.prices.KafkaThroughput, "dollars for a MiB/s of gp3 for a month, beyond 125 for each volume")
	f.BoolVar(&c.live, "live", false, "reckon with what agents count")
	f.StringSliceVar(&c.metrics, "metrics", nil, "admin addresses of all agents, HOST:PORT,… (default: that of --admin)")
	f.Var((*duration)(&c.window), "window", "how long to count (0: since each agent's start)")
}

// ofLive and ofLoad are flags that count only with, or without, --live.
var (
	ofLive = []string{"metrics", "window"}
	ofLoad = []string{"in", "retention", "compression", "batch", "fan-out", "cold", "partitions", "agents", "wal-linger", "sweep-interval", "segment-bytes"}
)

// validate says what is wrong with the flags, the first by its name.
func (c *costFlags) validate(f *pflag.FlagSet) error {
	var errs []error
	f.Visit(func(x *pflag.Flag) {
		switch {
		case c.live && slices.Contains(ofLoad, x.Name):
			errs = append(errs, fmt.Errorf("--%s does not go with --live: that is counted", x.Name))
		case !c.live && slices.Contains(ofLive, x.Name):
			errs = append(errs, fmt.Errorf("--%s goes with --live only", x.Name))
		}
	})
	within := func(flag string, v, least, most float64) {
		if !(v >= least && v <= most) { // NaN is neither
			errs = append(errs, fmt.Errorf("--%s %v: want %v to %v", flag, v, least, most))
		}
	}
	size := func(flag string, v, least, most float64) {
		if !(v >= least && v <= most) {
			errs = append(errs, fmt.Errorf("--%s %s: want %s to %s", flag, ibytes(int64(v)), ibytes(int64(least)), ibytes(int64(most))))
		}
	}
	times := func(flag string, v, least, most time.Duration) {
		if v < least || v > most {
			errs = append(errs, fmt.Errorf("--%s %s: want %s to %s", flag, days(v), days(least), days(most)))
		}
	}
	for _, in := range c.in {
		size("in", in, 1, 1<<40)
	}
	for _, r := range c.retention {
		times("retention", r, time.Minute, 100*365*24*time.Hour)
	}
	within("compression", c.load.Compression, 1, 1000)
	size("batch", c.load.Batch, 100, 64<<20)
	within("fan-out", c.load.FanOut, 0, 1000)
	within("cold", c.load.Cold, 0, 1)
	within("partitions", float64(c.load.Partitions), 1, 1e6)
	within("agents", float64(c.setup.Agents), 0, 1e4)
	within("zones", float64(c.setup.Zones), 1, 6)
	times("wal-linger", c.setup.Linger, time.Millisecond, time.Minute)
	times("sweep-interval", c.setup.SweepInterval, time.Second, 365*24*time.Hour)
	size("segment-bytes", c.setup.SegmentBytes, cost.TierMinBytes, math.MaxInt32)
	within("instance-cpus", c.setup.InstanceCPUs, 0.1, 1e4)
	size("instance-network", c.setup.InstanceNetwork, 1<<20, 1<<40)
	within("kafka-brokers", float64(c.setup.Brokers), 0, 1e4)
	within("kafka-disk-fill", c.setup.DiskFill, 0.01, 1)
	for flag, v := range c.priceFlags() {
		within(flag, *v, 0, 1e6)
	}
	if c.window != 0 {
		times("window", c.window, time.Second, 24*time.Hour)
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	if len(errs) > 0 {
		return errs[0]
	}
	return nil
}

func (c *costFlags) priceFlags() map[string]*float64 {
	p := &c.prices
	return map[string]*float64{"price-put": &p.Put, "price-get": &p.Get, "price-storage": &p.Storage, "price-cross-zone": &p.CrossZone, "price-instance": &p.Instance,
		"price-metadata": &p.Metadata, "kafka-price-instance": &p.KafkaInstance, "kafka-price-disk": &p.KafkaDisk, "kafka-price-throughput": &p.KafkaThroughput}
}

// rows reckons each rate with each retention.
func (c *costFlags) rows() (out []costRow) {
	for _, in := range c.in {
		for _, r := range c.retention {
			l := c.load
			l.In, l.Retention = in, r
			out = append(out, costRow{l, r.Seconds(), cost.Reckon(l, c.setup, c.prices), cost.ReckonKafka(l, c.setup, c.prices)})
		}
	}
	return out
}

// assumptions are the prices with their sources, and what else the figures rest on.
func (c *costFlags) assumptions() []assumption {
	def, s := defaultCost(), &c.setup
	defaults := def.priceFlags()
	out := []assumption{{"list prices", "us-east-1, " + priceDate, "as others quote AWS's pages; look there before you rely on them"}}
	price := func(what, flag, unit, page string) {
		v, from := *c.priceFlags()[flag], page
		if v != *defaults[flag] {
			from = "--" + flag
		}
		out = append(out, assumption{what, "$" + strconv.FormatFloat(v, 'f', -1, 64) + " " + unit, from})
	}
	price("PUT, LIST", "price-put", "for 1,000", "aws.amazon.com/s3/pricing, Standard")
	price("GET, HEAD", "price-get", "for 1,000", "aws.amazon.com/s3/pricing, Standard")
	price("storage", "price-storage", "a GiB and month", "aws.amazon.com/s3/pricing, Standard, first 50 TB")
	price("traffic between zones", "price-cross-zone", "a GiB", "aws.amazon.com/ec2/pricing/on-demand, 0.01 each way")
	price("agent", "price-instance", "an hour", "aws.amazon.com/ec2/pricing/on-demand, m7gd.xlarge")
	price("metadata store", "price-metadata", "a month", "aws.amazon.com/elasticache/pricing, two cache.t4g.small of Valkey")
	price("Kafka's broker", "kafka-price-instance", "an hour", "aws.amazon.com/ec2/pricing/on-demand, m7g.xlarge")
	price("gp3", "kafka-price-disk", "a GiB and month", "aws.amazon.com/ebs/pricing")
	price("gp3 beyond 125 MiB/s", "kafka-price-throughput", "a MiB/s and month", "aws.amazon.com/ebs/pricing")
	add := func(what, value, from string) { out = append(out, assumption{what, value, from}) }
	add("zones", strconv.Itoa(s.Zones), "--zones; clients and leaders are spread evenly, the way to the bucket is free (gateway endpoint)")
	add("instance", fmt.Sprintf("%v processors, %s/s each way", s.InstanceCPUs, ibytes(int64(s.InstanceNetwork))), "--instance-cpus, --instance-network; half of both is used")
	add("Kafka", fmt.Sprintf("%d replicas, volumes %.0f %% full", cost.Replicas, 100*s.DiskFill), "--kafka-disk-fill")
	reads := "their own zone"
	if !s.FollowerFetch {
		reads = "any zone"
	}
	add("Kafka's consumers read in", reads, "--kafka-follower-fetch")
	if !c.live {
		l := &c.load
		add("load", fmt.Sprintf("consumed %v times, %v of it from the bucket; %d partitions, batches of %s, compressed %v : 1", l.FanOut, l.Cold, l.Partitions, ibytes(int64(l.Batch)), l.Compression),
			"--fan-out, --cold, --partitions, --batch, --compression")
		add("agents", fmt.Sprintf("linger %s, segments up to %s, a sweep each %s", s.Linger, ibytes(int64(s.SegmentBytes)), s.SweepInterval), "--wal-linger, --segment-bytes, --sweep-interval")
	}
	return out
}

func (a *app) renderCost(w io.Writer, r *costReport) error {
	t := table{header: []string{"IN/S", "RETENTION", "AGENTS", "WAL PUT/S", "SEGMENT", "PUT/S", "INSTANCES", "PUTS", "READS", "STORAGE", "CROSS-ZONE", "METADATA", "TOTAL",
		"BROKERS", "INSTANCES", "DISKS", "CROSS-ZONE", "KAFKA"}}
	for i := range r.Rows {
		row := &r.Rows[i]
		c, k, retention, segment := &row.Cirrolog, &row.Kafka, "-", "-"
		if row.RetentionSeconds > 0 {
			retention = days(row.Load.Retention)
		}
		if c.Segment > 0 {
			segment = ibytes(int64(c.Segment))
		}
		t.add(ibytes(int64(row.Load.In)), retention, c.Agents, rate(c.Rates.WALPuts), segment, rate(c.Rates.SegmentPuts), dollars(c.Instances), dollars(c.Puts), dollars(c.Reads), dollars(c.Storage),
			dollars(c.CrossZone), dollars(c.Metadata), dollars(c.Total), k.Brokers, dollars(k.Instances), dollars(k.Disks), dollars(k.CrossZone), dollars(k.Total))
	}
	if err := a.render(w, r, &t); err != nil || a.output != "table" {
		return err
	}
	fmt.Fprint(w, "\nUS dollars a month, if these hold:\n\n")
	rest := table{header: []string{"ASSUMED", "VALUE", "FROM"}}
	for _, x := range r.Assumptions {
		rest.add(x.What, x.Value, x.From)
	}
	return rest.write(w)
}

// dollars are whole, but for small sums.
func dollars(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2f", v)
	}
	return humanize.Comma(int64(math.Round(v)))
}

func rate(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// days is a duration as flags take it, in days where it has whole ones.
func days(d time.Duration) string {
	if d >= 24*time.Hour && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	return d.String()
}

// floatSize is a flag of bytes that is reckoned with.
type floatSize float64

func (b *floatSize) String() string { return ibytes(int64(*b)) }
func (b *floatSize) Type() string   { return "bytes" }
func (b *floatSize) Set(s string) error {
	v, err := parseBytes(s)
	*b = floatSize(v)
	return err
}

// rateList is a flag of one or more sizes.
type rateList []float64

func (l *rateList) String() string {
	out := make([]string, len(*l))
	for i, v := range *l {
		out[i] = ibytes(int64(v))
	}
	return strings.Join(out, ",")
}
func (l *rateList) Type() string { return "bytes,…" }
func (l *rateList) Set(s string) error {
	var out []float64
	for one := range strings.SplitSeq(s, ",") {
		v, err := parseBytes(strings.TrimSpace(one))
		if err != nil {
			return err
		}
		out = append(out, float64(v))
	}
	*l = out
	return nil
}

// durationList is a flag of one or more durations.
type durationList []time.Duration

func (l *durationList) String() string {
	out := make([]string, len(*l))
	for i, v := range *l {
		out[i] = days(v)
	}
	return strings.Join(out, ",")
}
func (l *durationList) Type() string { return "duration,…" }
func (l *durationList) Set(s string) error {
	var out []time.Duration
	for one := range strings.SplitSeq(s, ",") {
		v, err := parseDuration(strings.TrimSpace(one))
		if err != nil {
			return err
		}
		out = append(out, v)
	}
	*l = out
	return nil
}
