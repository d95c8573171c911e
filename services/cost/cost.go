// Package cost reckons what a cluster costs a month on AWS, beside Kafka with three replicas on EBS. It is arithmetic
// only: what goes in is a load, a set-up and prices, or what agents have counted. Rates are bytes a second, money is US dollars.
package cost

import (
	"math"
	"time"
)

const (
	// Month has 730 hours, as in AWS's price lists.
	Month = 730 * time.Hour
	// Replicas of Kafka's partitions.
	Replicas = 3
	// busy is the share of an instance's network and processors that is used: the rest is for peaks, and for the
	// share of one that is gone.
	busy = 0.5
	// produceCPU and fetchCPU are processor seconds for a GiB, from docs/performance.md: batches of 16 KiB over 1,000
	// partitions with a linger of 100 ms, segments uploaded; and fetches from the disk.
	produceCPU, fetchCPU = 9.0, 0.7
	// grace is how long what retention has freed stays in the bucket (--sweep-grace).
	grace = time.Hour
	// ebsThroughput is what a gp3 volume gives without extra pay, bytes/s.
	ebsThroughput = 125 << 20
	gib           = 1 << 30
)

// Load is what clients do.
type Load struct {
	In          float64       `json:"in_bytes_per_second"` // as applications produce it
	Compression float64       `json:"compression"`         // by producers: bytes before over bytes after, from 1
	Batch       float64       `json:"batch_bytes"`         // of a batch, compressed
	FanOut      float64       `json:"fan_out"`             // how many times each byte is consumed
	Cold        float64       `json:"cold"`                // share of what is consumed that is read from the bucket
	Retention   time.Duration `json:"-"`
	Partitions  int           `json:"partitions"`
}

// Wire is the rate at which compressed bytes arrive, and are stored.
func (l Load) Wire() float64 { return l.In / l.Compression }

// Setup is what a cluster is made of.
type Setup struct {
	Agents          int           `json:"agents"` // 0: as many as Agents says
	Zones           int           `json:"zones"`
	Linger          time.Duration `json:"-"`
	SweepInterval   time.Duration `json:"-"`
	SegmentBytes    float64       `json:"segment_bytes"`
	InstanceCPUs    float64       `json:"instance_cpus"`
	InstanceNetwork float64       `json:"instance_network_bytes_per_second"` // each way
	Brokers         int           `json:"kafka_brokers"`                     // 0: as many as Brokers says
	DiskFill        float64       `json:"kafka_disk_fill"`                   // share of Kafka's volumes that is used
	FollowerFetch   bool          `json:"kafka_follower_fetch"`              // Kafka's consumers read in their own zone
}

// Prices are in US dollars.
type Prices struct {
	Put             float64 `json:"put_per_1000"`
	Get             float64 `json:"get_per_1000"`
	Storage         float64 `json:"storage_gib_month"`
	CrossZone       float64 `json:"cross_zone_gib"` // both directions together
	Instance        float64 `json:"instance_hour"`
	Metadata        float64 `json:"metadata_month"`
	KafkaInstance   float64 `json:"kafka_instance_hour"`
	KafkaDisk       float64 `json:"kafka_disk_gib_month"`
	KafkaThroughput float64 `json:"kafka_throughput_mib_month"` // beyond what a volume has anyway
}

// Rates are requests a second to the bucket, of all agents, and what lies there.
type Rates struct {
	WALPuts     float64 `json:"wal_puts"`     // objects of the streams, with what is carried forward
	SegmentPuts float64 `json:"segment_puts"` // and all other puts
	Lists       float64 `json:"lists"`
	Gets        float64 `json:"gets"`
	Heads       float64 `json:"heads"`
	Stored      float64 `json:"stored_bytes"`
}

// Cirrolog is what a cluster costs a month.
type Cirrolog struct {
	Agents    int     `json:"agents"`
	Segment   float64 `json:"segment_bytes"` // mean; 0: not known
	Rates     Rates   `json:"rates"`
	Instances float64 `json:"instances"`
	Puts      float64 `json:"puts"`  // PUT and LIST
	Reads     float64 `json:"reads"` // GET and HEAD
	Storage   float64 `json:"storage"`
	CrossZone float64 `json:"cross_zone"`
	Metadata  float64 `json:"metadata"`
	Total     float64 `json:"total"`
}

// Kafka is what the same costs with three replicas on gp3 volumes.
type Kafka struct {
	Brokers   int     `json:"brokers"`
	Disk      float64 `json:"disk_bytes"` // of all volumes
	Instances float64 `json:"instances"`
	Disks     float64 `json:"disks"`
	CrossZone float64 `json:"cross_zone"`
	Total     float64 `json:"total"`
}

// perMonth turns a rate a second into a sum a month.
func perMonth(rate float64) float64 { return rate * Month.Seconds() }

// Agents is how many agents a load takes: one in each zone, and enough that half of their network and processors do.
// Each byte goes to the bucket twice, in the stream and in a segment.
func Agents(l Load, s Setup) int {
	out := l.Wire() * (2 + l.FanOut)
	cpu := l.Wire() * (produceCPU + l.FanOut*fetchCPU) / gib
	return max(s.Zones, int(math.Ceil(max(out/s.InstanceNetwork, cpu/s.InstanceCPUs)/busy)))
}

// Brokers is how many of Kafka's brokers it takes, by their network: a leader sends each byte to two followers.
func Brokers(l Load, s Setup) int {
	return max(Replicas, s.Zones, int(math.Ceil(l.Wire()*max(Replicas, Replicas-1+l.FanOut)/s.InstanceNetwork/busy)))
}

// Requests reckons what agents ask of the bucket, and what lies there.
func Requests(l Load, s Setup, agents int) (Rates, float64) {
	n, wire := float64(agents), l.Wire()
	st := NewStream(wire/n, l.Batch, max(l.Partitions/agents, 1), s.SegmentBytes, s.Linger)
	r := Rates{WALPuts: n * (st.Puts + st.CarryPuts()), SegmentPuts: wire / st.Segment}
	kept := wire * (l.Retention + grace).Seconds()
	r.Stored = kept + n*st.Bytes
	r.Lists = (1 + kept/st.Segment/ListPage) / s.SweepInterval.Seconds() // one agent lists all segments
	r.Heads = r.SegmentPuts + n/checkInterval.Seconds()                  // an upload is looked at; readiness
	r.Gets = wire * l.FanOut * l.Cold / st.Segment * (math.Ceil(st.Segment/BlockBytes) + 1)
	return r, st.Segment
}

// checkInterval is how often an agent looks by itself whether it is ready.
const checkInterval = 30 * time.Second

// crossed is the part of traffic with clients that leaves their zone, when nobody looks where leaders are.
func crossed(zones int) float64 { return float64(zones-1) / float64(zones) }

// Bill puts prices on what agents do. fetched is what consumers get from agents of another zone or their own: in, too, it is
// compressed bytes a second.
func Bill(in, fetched float64, agents int, r Rates, zones int, p Prices) Cirrolog {
	c := Cirrolog{Agents: agents, Rates: r,
		Instances: float64(agents) * p.Instance * Month.Hours(),
		Puts:      perMonth(r.WALPuts+r.SegmentPuts+r.Lists) * p.Put / 1000,
		Reads:     perMonth(r.Gets+r.Heads) * p.Get / 1000,
		Storage:   r.Stored / gib * p.Storage,
		CrossZone: perMonth((in+fetched)*crossed(zones)) / gib * p.CrossZone,
		Metadata:  p.Metadata}
	c.Total = c.Instances + c.Puts + c.Reads + c.Storage + c.CrossZone + c.Metadata
	return c
}

// Reckon is what the load costs on agents. What is read from the bucket comes from an agent of the consumer's zone
// (client.rack), everything else from the leader.
func Reckon(l Load, s Setup, p Prices) Cirrolog {
	agents := s.Agents
	if agents == 0 {
		agents = Agents(l, s)
	}
	r, segment := Requests(l, s, agents)
	c := Bill(l.Wire(), l.Wire()*l.FanOut*(1-l.Cold), agents, r, s.Zones, p)
	c.Segment = segment
	return c
}

// Compare is what Kafka costs that takes in bytes/s, gives out fetched, and keeps stored bytes three times.
func Compare(in, fetched, stored float64, brokers int, s Setup, p Prices) Kafka {
	k := Kafka{Brokers: brokers, Disk: stored * Replicas / s.DiskFill}
	k.Instances = float64(brokers) * p.KafkaInstance * Month.Hours()
	extra := max(in*Replicas/float64(brokers)-ebsThroughput, 0) * float64(brokers)
	k.Disks = k.Disk/gib*p.KafkaDisk + extra/(1<<20)*p.KafkaThroughput
	away := in * (crossed(s.Zones) + replicated(s.Zones))
	if !s.FollowerFetch {
		away += fetched * crossed(s.Zones)
	}
	k.CrossZone = perMonth(away) / gib * p.CrossZone
	k.Total = k.Instances + k.Disks + k.CrossZone
	return k
}

// replicated is how many of a leader's two followers are in another zone than it, in the mean.
func replicated(zones int) float64 {
	switch zones {
	case 1:
		return 0
	case 2:
		return 4.0 / 3
	}
	return Replicas - 1
}

// ReckonKafka is what the load costs on Kafka.
func ReckonKafka(l Load, s Setup, p Prices) Kafka {
	brokers := s.Brokers
	if brokers == 0 {
		brokers = Brokers(l, s)
	}
	return Compare(l.Wire(), l.Wire()*l.FanOut, l.Wire()*l.Retention.Seconds(), brokers, s, p)
}
