package cost

import (
	"math"
	"testing"
	"time"
)

// example is a load whose bill can be made by hand.
func example() (Load, Setup, Prices) {
	return Load{In: 20 << 20, Compression: 2, Batch: 1 << 20, FanOut: 3, Cold: 0.5, Retention: 99 * time.Hour, Partitions: 3},
		Setup{Zones: 3, Linger: 100 * time.Millisecond, SweepInterval: 10 * time.Minute, SegmentBytes: 64 << 20, InstanceCPUs: 4, InstanceNetwork: 200 << 20, DiskFill: 0.5, FollowerFetch: true},
		Prices{Put: 0.005, Get: 0.0004, Storage: 0.02, CrossZone: 0.02, Instance: 0.1, Metadata: 50, KafkaInstance: 0.2, KafkaDisk: 0.1, KafkaThroughput: 0.04}
}

func TestReckon(t *testing.T) {
	l, s, p := example()
	c := Reckon(l, s, p)
	const mib, month = 1 << 20, 730 * 3600.0
	each := 10.0 * mib / 3 // bytes/s of an agent, and of a partition
	puts := 10.0 / 3       // one for each batch of 1 MiB
	window := Capacity / 2 / each
	if full := 64 * mib / each; full > window {
		t.Fatal("the example is to fill its segments")
	}
	segments := 10.0 / 64
	stored := 10*mib*100*3600.0 + 3*each*window
	lists := (1 + 10*mib*100*3600.0/(64*mib)/1000) / 600
	gets := 10.0 * 3 * 0.5 / 64 * 17 // 16 blocks and a trailer
	for what, x := range map[string][2]float64{
		"agents":            {float64(c.Agents), 3},
		"segment":           {c.Segment, 64 * mib},
		"WAL puts":          {c.Rates.WALPuts, 3 * puts},
		"segment puts":      {c.Rates.SegmentPuts, segments},
		"lists":             {c.Rates.Lists, lists},
		"gets":              {c.Rates.Gets, gets},
		"heads":             {c.Rates.Heads, segments + 0.1},
		"stored":            {c.Rates.Stored, stored},
		"dollars instances": {c.Instances, 3 * 0.1 * 730},
		"dollars puts":      {c.Puts, (3*puts + segments + lists) * month * 5e-6},
		"dollars reads":     {c.Reads, (gets + segments + 0.1) * month * 4e-7},
		"dollars storage":   {c.Storage, stored / (1 << 30) * 0.02},
		"dollars crossed":   {c.CrossZone, (10 + 15) * 2.0 / 3 * mib * month / (1 << 30) * 0.02},
		"dollars total":     {c.Total, c.Instances + c.Puts + c.Reads + c.Storage + c.CrossZone + 50},
	} {
		if math.Abs(x[0]-x[1]) > 1e-9*x[1] {
			t.Errorf("%s: %v, want %v", what, x[0], x[1])
		}
	}
}

func TestReckonKafka(t *testing.T) {
	l, s, p := example()
	k := ReckonKafka(l, s, p)
	const mib, month = 1 << 20, 730 * 3600.0
	disk := 10 * mib * 99 * 3600.0 * 3 / 0.5
	for what, x := range map[string][2]float64{
		"brokers":           {float64(k.Brokers), 3},
		"disk":              {k.Disk, disk},
		"dollars instances": {k.Instances, 3 * 0.2 * 730},
		"dollars disks":     {k.Disks, disk / (1 << 30) * 0.1},
		"dollars crossed":   {k.CrossZone, 10 * (2.0/3 + 2) * mib * month / (1 << 30) * 0.02},
		"dollars total":     {k.Total, k.Instances + k.Disks + k.CrossZone},
	} {
		if math.Abs(x[0]-x[1]) > 1e-9*x[1] {
			t.Errorf("%s: %v, want %v", what, x[0], x[1])
		}
	}
	s.FollowerFetch, s.Brokers = false, 4
	l.In = 400 * mib // 200 on the wire, 150 on each volume
	k = ReckonKafka(l, s, p)
	if want := 200 * (2.0/3 + 2 + 3*2.0/3) * mib * month / (1 << 30) * 0.02; math.Abs(k.CrossZone-want) > 1e-9*want {
		t.Errorf("consumers in any zone: %v, want %v", k.CrossZone, want)
	}
	if want := 4*25*0.04 + k.Disk/(1<<30)*0.1; math.Abs(k.Disks-want) > 1e-9*want {
		t.Errorf("throughput: %v, want %v", k.Disks, want)
	}
}

func TestSizing(t *testing.T) {
	l, s, _ := example()
	for in, want := range map[float64]int{1 << 20: 3, 200 << 20: 5, 2000 << 20: 50} { // half of it on the wire, 5 times out, 100 MiB/s each
		l.In = in
		if got := Agents(l, s); got != want {
			t.Errorf("%v bytes/s: %d agents, want %d", in, got, want)
		}
	}
	s.InstanceCPUs = 0.1
	l.In = 200 << 20 // 100 MiB/s take 1.08 processors
	if got := Agents(l, s); got != 22 {
		t.Errorf("by processors: %d agents, want 22", got)
	}
	if got := Brokers(l, s); got != 5 {
		t.Errorf("%d brokers, want 5", got)
	}
	for zones, want := range map[int]float64{1: 0, 2: 4.0 / 3, 3: 2, 6: 2} {
		if got := replicated(zones); got != want {
			t.Errorf("%d zones: %v replicas elsewhere, want %v", zones, got, want)
		}
	}
}
