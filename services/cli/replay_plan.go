package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

const (
	planBlock     = 4 << 20       // bytes that one GET of the tiered reader brings
	pricePerGet   = 0.0004 / 1000 // US dollars, Amazon S3 Standard
	defaultRate   = 100_000_000   // bytes/s
	planPrecision = 10 * time.Millisecond
)

// planSegment is a segment that a replay reads.
type planSegment struct {
	Partition int32  `json:"partition"`
	Tier      string `json:"tier"`
	Base      int64  `json:"base"`
	Last      int64  `json:"last"`
	Size      int64  `json:"size"`  // bytes of the whole
	Bytes     int64  `json:"bytes"` // about what is read of it
	Gets      int64  `json:"gets"`
	Key       string `json:"key,omitempty"`
}

// clip estimates how much of the segment lies in a range, as if its records had
// the same size.
func (p *planSegment) clip(r partRange) {
	from, to := max(r.From, p.Base), min(r.To, p.Last+1)
	if from >= to {
		p.Bytes = 0
		return
	}
	p.Bytes = max(int64(float64(p.Size)*float64(to-from)/float64(p.Last-p.Base+1)), 1)
}

// price counts GETs: blocks, and extra ones for footer and trailer.
func (p *planSegment) price(extra int64) {
	if p.Tier == "bucket" {
		p.Gets = extra + (p.Bytes+planBlock-1)/planBlock
	}
}

// replayPlan is what replay --plan prints.
type replayPlan struct {
	Topic       string        `json:"topic"`
	Ranges      []partRange   `json:"ranges"`
	Segments    []planSegment `json:"segments"`
	Offsets     int64         `json:"offsets"`
	Bytes       int64         `json:"bytes"`
	BucketBytes int64         `json:"bucket_bytes"`
	Gets        int64         `json:"gets"`
	CostUSD     float64       `json:"cost_usd"` // of GETs, at 0.0004 per 1000
	Rate        int64         `json:"bytes_per_second"`
	Seconds     float64       `json:"seconds"`
}

func makePlan(topic string, ranges []partRange, segs []planSegment, rate int64) replayPlan {
	p := replayPlan{Topic: topic, Ranges: ranges, Segments: segs, Rate: rate}
	if p.Segments == nil {
		p.Segments = []planSegment{}
	}
	for _, r := range ranges {
		p.Offsets += r.To - r.From
	}
	for _, s := range segs {
		p.Bytes += s.Bytes
		p.Gets += s.Gets
		if s.Tier == "bucket" {
			p.BucketBytes += s.Bytes
		}
	}
	p.CostUSD = float64(p.Gets) * pricePerGet
	p.Seconds = float64(p.Bytes) / float64(rate)
	return p
}

func (a *app) printPlan(cmd *cobra.Command, p replayPlan) error {
	t := table{header: []string{"PARTITION", "TIER", "BASE", "LAST", "READ", "GETS", "KEY"}}
	for _, s := range p.Segments {
		t.add(s.Partition, s.Tier, s.Base, s.Last, ibytes(s.Bytes), s.Gets, s.Key)
	}
	if err := a.render(cmd.OutOrStdout(), p, &t); err != nil || a.output != "table" {
		return err
	}
	took := time.Duration(p.Seconds * float64(time.Second)).Round(planPrecision)
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "\n%d segments, %d offsets, %s (%s from the bucket), %d GETs, about $%.6f, about %s at %s/s\n",
		len(p.Segments), p.Offsets, ibytes(p.Bytes), ibytes(p.BucketBytes), p.Gets, p.CostUSD, took, ibytes(p.Rate))
	return err
}
