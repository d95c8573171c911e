package cost

import (
	"context"
	"log/slog"
	"math"
	"os"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

type load struct {
	in         float64 // bytes/s
	batch      int
	partitions int
	linger     time.Duration
	segment    int64
	warm, took time.Duration // only what comes behind warm counts
}

// played is what a store on a stream did, a second.
type played struct {
	puts, bytes, segments, size float64
}

// play runs an agent's storage and stream, with the settings of an agent, in fake time, and tiers what it closes at once.
func play(t *testing.T, c load) (out played) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		var puts, bytes, segments, size atomic.Int64
		var stream *wal.Stream
		b := objstore.NewMem()
		s, err := storage.Open(storage.Options{FS: vfs.NewMem(), Dir: "d", TailBytes: 64 << 20, Logger: slog.New(slog.DiscardHandler),
			Remote: storage.RemoteOptions{MaxObjects: int(StreamObjects(c.linger)), Open: func(o storage.StreamConfig) (contract.Stream, error) {
				var err error
				stream, err = wal.Open(ctx, wal.Options{Bucket: b, Incarnation: ids.NewIncarnation(), Pool: o.Pool, Announce: o.Announce, OnFull: o.OnFull,
					Linger: c.linger, OnPut: func(n int64, _ time.Duration) { puts.Add(1); bytes.Add(n) },
					Spare: func(context.Context, ids.TopicPartition, int64, int64) (bool, error) { return true, nil }})
				return stream, err
			}}})
		if err != nil {
			t.Fatal(err)
		}
		var logs []*storage.Log
		var ch wal.Change
		for i := range c.partitions {
			tp := ids.TopicPartition{Topic: ids.TopicID{7}, Partition: int32(i)}
			l, err := s.CreateAt(tp, storage.LogConfig{SegmentBytes: c.segment}, storage.Begin{})
			if err != nil {
				t.Fatal(err)
			}
			logs = append(logs, l)
			ch.Acceptances = append(ch.Acceptances, wal.Acceptance{TP: tp, Epoch: 1})
		}
		if err := stream.Change(ctx, ch); err != nil {
			t.Fatal(err)
		}
		tier := func() {
			for _, l := range logs {
				end := int64(-1)
				for _, g := range l.ClosedSegments() {
					if !g.Tiered {
						segments.Add(1)
						size.Add(g.Bytes)
						l.MarkTiered(g.Meta.Last)
						end = g.Meta.Last + 1
					}
				}
				if end > 0 {
					_ = l.DropLocal(end)
				}
			}
		}
		raw, err := batch.Encode([]batch.Record{{Value: make([]byte, c.batch)}}, batch.EncodeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		began, warm := time.Now(), played{}
		gap := time.Duration(float64(c.batch) / c.in * float64(time.Second))
		next, turn := time.Now(), 0
		for time.Since(began) < c.warm+c.took {
			if warm.puts == 0 && time.Since(began) >= c.warm {
				warm = played{float64(puts.Load()), float64(bytes.Load()), float64(segments.Load()), float64(size.Load())}
			}
			b := append([]byte(nil), raw...)
			h, err := batch.Validate(b)
			if err != nil {
				t.Fatal(err)
			}
			wg.Add(1)
			if err := logs[turn%len(logs)].Append(ctx, b, h, storage.AppendOptions{Epoch: 1}, func(r storage.AppendResult) {
				if r.Err != nil {
					t.Error(r.Err)
				}
				wg.Done()
			}); err != nil {
				t.Fatal(err)
			}
			if turn++; turn%64 == 0 {
				tier()
			}
			next = next.Add(gap)
			time.Sleep(time.Until(next))
		}
		wg.Wait()
		n := c.took.Seconds()
		out = played{(float64(puts.Load()) - warm.puts) / n, (float64(bytes.Load()) - warm.bytes) / n, (float64(segments.Load()) - warm.segments) / n, 0}
		out.size = (float64(size.Load()) - warm.size) / n / out.segments
		for _, l := range logs {
			_ = s.Remove(l.TP())
		}
		_ = s.Close()
	})
	return out
}

// TestStreamRules plays an agent's storage and stream in fake time and holds the formulas to what it puts: puts and bytes within
// 10 %, segments, of which few are counted, within 20.
func TestStreamRules(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]load{
		"a put for each linger":       {1 * mib, 16 << 10, 4, 100 * time.Millisecond, 64 * mib, 2 * time.Minute, 154 * time.Second},
		"a put for each batch":        {100 << 10, 64 << 10, 4, 100 * time.Millisecond, 64 * mib, 6 * time.Minute, 20 * time.Minute},
		"a put for each 4 MiB":        {64 * mib, 1 << 20, 16, 100 * time.Millisecond, 16 * mib, 8 * time.Second, 8 * time.Second},
		"linger 25 ms":                {1 * mib, 16 << 10, 4, 25 * time.Millisecond, 64 * mib, time.Minute, 154 * time.Second},
		"half the stream is used":     {32 * mib, 1 << 20, 100, 100 * time.Millisecond, 64 * mib, 24 * time.Second, 32 * time.Second},
		"segments are full":           {4 * mib, 64 << 10, 16, 100 * time.Millisecond, 8 * mib, 64 * time.Second, 96 * time.Second},
		"small ones, carried forward": {1 * mib, 16 << 10, 100, 100 * time.Millisecond, 64 * mib, 200 * time.Second, 400 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			got := play(t, c)
			s := NewStream(c.in, float64(c.batch), c.partitions, float64(c.segment), c.linger)
			t.Logf("%+v is %+v", got, s)
			near(t, "puts a second", s.Puts+s.CarryPuts(), got.puts, 0.1)
			near(t, "MiB/s", (c.in+s.Carried)/mib, got.bytes/mib, 0.1)
			near(t, "segments a second", c.in/s.Segment, got.segments, 0.2)
			near(t, "MiB of a segment", s.Segment/mib, got.size/mib, 0.2)
		})
	}
}

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if math.Abs(got-want) > within*want {
		t.Errorf("%s: the formula says %.4g, it is %.4g", what, got, want)
	}
}

// TestConstants: what the formulas know of the stream is what it does.
func TestConstants(t *testing.T) {
	if FlushBytes != wal.DefaultFlushBytes || Capacity != wal.DefaultCapacity {
		t.Errorf("puts of %d bytes, a capacity of %d: want %d and %d", FlushBytes, Capacity, wal.DefaultFlushBytes, wal.DefaultCapacity)
	}
}

// TestMeasuredPuts compares WALPuts with the figures of docs/performance.md, which are read from there: an agent at 20 MB/s
// in batches of 16 KiB puts what the formula says or up to a quarter less, as each put's time is rounded up. At full speed, where the
// store is the bottleneck, it waits with eight puts under way, and objects have between 4 and 16 MiB.
func TestMeasuredPuts(t *testing.T) {
	doc, err := os.ReadFile("../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	number := func(s string) float64 {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	paced := regexp.MustCompile(`(?m)^\| (\d+)ms \| [\d]+ partitions? \|[^|]+\|[^|]+\| ([\d.]+) \| (\d+) \+ \d+ \|`).FindAllStringSubmatch(string(doc), -1)
	if len(paced) != 6 {
		t.Fatalf("%d rows at 20 MB/s: want 6", len(paced))
	}
	for _, m := range paced {
		const in = 20e6
		want, measured := WALPuts(in, 16<<10, time.Duration(number(m[1]))*time.Millisecond), number(m[2])
		if measured > want*1.01 || measured < want*0.75 {
			t.Errorf("linger %s ms: %.1f puts a second, measured %.1f", m[1], want, measured)
		}
		if perGiB := want / in * (1 << 30); number(m[3]) > perGiB*1.02 || number(m[3]) < perGiB*0.75 {
			t.Errorf("linger %s ms: %.0f puts for a GiB, measured %s", m[1], perGiB, m[3])
		}
	}
	full := regexp.MustCompile(`(?m)^\| (\d+)ms \| (\d+) \| [\d, ]+\|[^|]+\| ([\d.]+) \| (\d+) \+ (\d+) \|`).FindAllStringSubmatch(string(doc), -1)
	if len(full) != 3 {
		t.Fatalf("%d rows at full speed: want 3", len(full))
	}
	for _, m := range full {
		if n := number(m[4]); n < gib/(4*FlushBytes) || n > gib/FlushBytes {
			t.Errorf("linger %s ms at full speed: %v puts for a GiB are not of 4 to 16 MiB", m[1], n)
		}
		in := number(m[2]) * 1e6
		s := NewStream(in, 1<<20, 16, 64<<20, time.Duration(number(m[1]))*time.Millisecond)
		near(t, "segments for a GiB at full speed", gib/s.Segment, number(m[5]), 0.36) // with those of 2 GiB that only the end closed
	}
}
