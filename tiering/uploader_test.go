package tiering

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

type uploadRig struct {
	*Uploader
	b *hooks
	x *memIndex
	l *fakeLocal
}

func newRig(t testing.TB, change func(*UploaderOptions, *uploadRig)) *uploadRig {
	t.Helper()
	r := &uploadRig{b: newHooks(), x: newMemIndex(), l: &fakeLocal{}}
	o := UploaderOptions{
		Bucket: r.b, Index: r.x, Local: r.l, Incarnation: testInc, Logger: testLogger(t),
		Interval: 20 * time.Millisecond, Backoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond, MinTime: 5 * time.Second,
	}
	if change != nil {
		change(&o, r)
	}
	u, err := NewUploader(o)
	if err != nil {
		t.Fatal(err)
	}
	r.Uploader = u
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
		if o, c := r.l.opened.Load(), r.l.closed.Load(); o != c {
			t.Errorf("%d sources opened, %d closed", o, c)
		}
	})
	return r
}

// check verifies that all segments are in the bucket, byte for byte, and indexed.
func (r *uploadRig) check(t *testing.T, segs ...*testSegment) {
	t.Helper()
	for _, s := range segs {
		row := s.row()
		i := slices.IndexFunc(r.x.all(s.meta.TP), func(x Segment) bool { return x.SegmentKey == row.SegmentKey })
		if i < 0 {
			t.Errorf("%s is not indexed", row.Key())
			continue
		}
		if got := r.x.all(s.meta.TP)[i]; got.Size != row.Size || got.Uploaded == 0 || got.MaxTimestamp != row.MaxTimestamp {
			t.Errorf("row is %+v", got)
		}
		rc, _, err := r.b.Bucket.Get(context.Background(), row.Key(), 0, -1)
		if err != nil {
			t.Error(err)
			continue
		}
		if got, err := io.ReadAll(rc); err != nil || !slices.Equal(got, s.object) {
			t.Errorf("object %s differs (%v)", row.Key(), err)
		}
		rc.Close()
	}
}

func segments(tps, each int) (out []*testSegment) {
	for i := range each {
		for p := range tps {
			tp := ids.TopicPartition{Topic: testTopic, Partition: int32(p)}
			out = append(out, makeSegment(tp, int64(i)*50, 5, int64(i)*100, 1))
		}
	}
	return out
}

func TestUploaderUploadsInOrderPerPartition(t *testing.T) {
	var mu sync.Mutex
	last := map[ids.TopicPartition]int64{}
	var now, peak atomic.Int64
	r := newRig(t, func(o *UploaderOptions, r *uploadRig) {
		r.x.onAdd = func(s Segment) error {
			if _, err := r.b.Bucket.Head(context.Background(), s.Key()); err != nil {
				t.Errorf("indexed before it was put: %v", err)
			}
			return nil
		}
		r.l.onTier = func(s Segment) {
			if !slices.ContainsFunc(r.x.all(s.TP), func(x Segment) bool { return x.SegmentKey == s.SegmentKey }) {
				t.Errorf("%s: local told before the index", s.Key())
			}
			mu.Lock()
			defer mu.Unlock()
			if s.Base != last[s.TP] {
				t.Errorf("%s: tiered %d, expected %d next", s.TP, s.Base, last[s.TP])
			}
			last[s.TP] = s.Last + 1
		}
		r.b.put = func(ctx context.Context, key string, next func() error) error {
			if n := now.Add(1); n > peak.Load() {
				peak.Store(n)
			}
			defer now.Add(-1)
			time.Sleep(3 * time.Millisecond)
			return next()
		}
	})
	segs := segments(6, 5)
	r.l.add(segs...)
	r.Kick()
	waitFor(t, "uploads", func() bool { return r.l.left() == 0 })
	r.check(t, segs...)
	if p := peak.Load(); p < 2 || p > 4 {
		t.Errorf("%d uploads at once, want 2 to 4", p)
	}
	if s := r.Stats(); s.Uploads != 30 || s.Failures != 0 || s.LagBytes != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestUploaderNeedsNoEvent(t *testing.T) {
	r := newRig(t, nil)
	s := makeSegment(testTP, 0, 3, 0, 1)
	time.Sleep(5 * time.Millisecond)
	r.l.add(s)
	waitFor(t, "upload without Kick", func() bool { return r.l.left() == 0 })
	r.check(t, s)
}

func TestUploaderFaultStorm(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var mu sync.Mutex
	draw := func() int { mu.Lock(); defer mu.Unlock(); return rng.IntN(10) }
	r := newRig(t, func(o *UploaderOptions, r *uploadRig) {
		o.MinTime, o.MinRate = 60*time.Millisecond, 1<<30
		r.b.put = func(ctx context.Context, key string, next func() error) error {
			switch draw() {
			case 0, 1, 2:
				return fmt.Errorf("503: %w", objstore.ErrThrottled)
			case 3:
				if err := next(); err != nil {
					return err
				}
				return fmt.Errorf("timeout after success: %w", objstore.ErrUnknown)
			case 4:
				return fmt.Errorf("timeout before: %w", objstore.ErrUnknown)
			case 5:
				<-ctx.Done() // hangs
				return ctx.Err()
			case 6:
				return nil // says yes, keeps nothing
			case 7:
				return fmt.Errorf("bytes changed on the way: %w", objstore.ErrChecksum)
			case 8:
				return objstore.ErrDenied
			}
			return next()
		}
		r.x.onAdd = func(s Segment) error {
			if draw() < 3 {
				return errors.New("metadata store away")
			}
			return nil
		}
	})
	segs := segments(4, 5)
	r.l.add(segs...)
	waitFor(t, "uploads through the storm", func() bool { return r.l.left() == 0 })
	r.check(t, segs...)
	s := r.Stats()
	if s.Uploads != 20 || s.Failures == 0 || s.Damaged != 0 {
		t.Errorf("stats %+v", s)
	}
	t.Logf("%d puts for 20 segments, %+v", r.b.puts.Load(), s)
}

// After the object is in the bucket, trouble with the index must not send it again.
func TestUploaderDoesNotSendTwice(t *testing.T) {
	var adds atomic.Int64
	r := newRig(t, func(o *UploaderOptions, r *uploadRig) {
		r.b.put = func(ctx context.Context, key string, next func() error) error {
			if err := next(); err != nil {
				return err
			}
			return objstore.ErrUnknown
		}
		r.x.onAdd = func(Segment) error {
			if adds.Add(1) < 4 {
				return errors.New("away")
			}
			return nil
		}
	})
	s := makeSegment(testTP, 0, 3, 0, 1)
	r.l.add(s)
	waitFor(t, "upload", func() bool { return r.l.left() == 0 })
	r.check(t, s)
	if n := r.b.puts.Load(); n != 1 {
		t.Errorf("%d puts, want 1", n)
	}
}

func TestUploaderSwallowedPut(t *testing.T) {
	var n atomic.Int64
	r := newRig(t, func(o *UploaderOptions, r *uploadRig) {
		r.b.put = func(ctx context.Context, key string, next func() error) error {
			if n.Add(1) < 3 {
				return nil
			}
			return next()
		}
	})
	s := makeSegment(testTP, 0, 3, 0, 1)
	r.l.add(s)
	waitFor(t, "upload", func() bool { return r.l.left() == 0 })
	r.check(t, s)
}

// A put that hangs is given up after its time and tried again; it holds up no other partition.
func TestUploaderWatchdog(t *testing.T) {
	var n atomic.Int64
	other := makeSegment(ids.TopicPartition{Topic: testTopic, Partition: 99}, 0, 3, 0, 1)
	s := makeSegment(testTP, 0, 3, 0, 1)
	r := newRig(t, func(o *UploaderOptions, r *uploadRig) {
		o.MinTime, o.MinRate = 500*time.Millisecond, 1<<30
		r.b.put = func(ctx context.Context, key string, next func() error) error {
			if key == s.row().Key() && n.Add(1) == 1 {
				<-ctx.Done()
				if len(r.x.all(other.meta.TP)) == 0 {
					t.Error("a put that hangs holds up another partition")
				}
				return fmt.Errorf("put: %w", ctx.Err())
			}
			return next()
		}
	})
	r.l.add(s, other)
	waitFor(t, "upload after the stuck one", func() bool { return r.l.left() == 0 })
	r.check(t, s, other)
}

func TestUploaderDamagedIsReportedAndNotServed(t *testing.T) {
	var reports atomic.Int64
	r := newRig(t, func(o *UploaderOptions, r *uploadRig) {
		o.MaxBackoff = 100 * time.Millisecond
		o.OnDamaged = func(s LocalSegment, err error) {
			if s.Base != 0 || !errors.Is(err, objstore.ErrChecksum) {
				t.Errorf("damaged %d: %v", s.Base, err)
			}
			reports.Add(1)
		}
	})
	s := makeSegment(testTP, 0, 3, 0, 1)
	s.object[100] ^= 1 // the checksum is from the append path
	r.l.add(s)
	waitFor(t, "report", func() bool { return reports.Load() > 0 })
	time.Sleep(250 * time.Millisecond)
	if n := r.b.puts.Load(); n > 4 {
		t.Errorf("%d puts of a damaged segment in a quarter of a second", n)
	}
	if len(r.b.keys(t)) != 0 || len(r.x.all(testTP)) != 0 {
		t.Error("damaged bytes reached the bucket")
	}
	s.object[100] ^= 1 // repaired
	waitFor(t, "upload after repair", func() bool { return r.l.left() == 0 })
	if st := r.Stats(); st.Damaged == 0 || st.Uploads != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestUploaderFenced(t *testing.T) {
	r := newRig(t, func(o *UploaderOptions, r *uploadRig) {
		o.MaxBackoff = time.Hour
		r.x.onAdd = func(s Segment) error {
			if s.TP == testTP {
				return fmt.Errorf("epoch 2: %w", ErrFenced)
			}
			return nil
		}
	})
	other := makeSegment(ids.TopicPartition{Topic: testTopic, Partition: 99}, 0, 3, 0, 1)
	r.l.add(makeSegment(testTP, 0, 3, 0, 1), other)
	waitFor(t, "the other partition", func() bool { return r.l.left() == 1 })
	waitFor(t, "fenced", func() bool { return r.Stats().Failures > 0 })
	time.Sleep(50 * time.Millisecond)
	if n := r.b.puts.Load(); n != 2 {
		t.Errorf("%d puts, want 2", n)
	}
	if len(r.l.tiered) != 1 {
		t.Errorf("tiered %v", r.l.tiered)
	}
}

// A busy store must see fewer requests, not more.
func TestUploaderNoRetryStorm(t *testing.T) {
	var busy atomic.Bool
	busy.Store(true)
	r := newRig(t, func(o *UploaderOptions, r *uploadRig) {
		o.Concurrency, o.Backoff, o.MaxBackoff = 8, 20*time.Millisecond, 80*time.Millisecond
		r.b.put = func(ctx context.Context, key string, next func() error) error {
			if busy.Load() {
				return objstore.ErrThrottled
			}
			return next()
		}
	})
	segs := segments(50, 1)
	r.l.add(segs...)
	time.Sleep(400 * time.Millisecond)
	// 8 at first, then the gate: at most a few every 40 ms or more
	if n := r.b.puts.Load(); n > 40 {
		t.Errorf("%d puts to a busy store in 400 ms", n)
	}
	if s := r.Stats(); s.LagSegments != 50 || s.LagAge < time.Minute || s.Throttled == 0 {
		t.Errorf("stats %+v", s)
	}
	busy.Store(false)
	waitFor(t, "catching up", func() bool { return r.l.left() == 0 })
	r.check(t, segs...)
}

func TestUploaderDrain(t *testing.T) {
	r := newRig(t, func(o *UploaderOptions, r *uploadRig) { o.Interval = time.Hour })
	segs := segments(5, 3)
	r.l.add(segs...)
	if err := r.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.check(t, segs...)

	r.b.put = func(context.Context, string, func() error) error { return objstore.ErrDenied }
	r.l.add(makeSegment(testTP, 0, 3, 0, 1))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, objstore.ErrDenied) {
		t.Errorf("drain of an unreachable bucket: %v", err)
	}
}

// Partitions in trouble must not hide those behind them.
func TestUploaderLooksBehindTroubledPartitions(t *testing.T) {
	r := newRig(t, func(o *UploaderOptions, r *uploadRig) {
		o.Backoff, o.MaxBackoff = time.Hour, time.Hour
		r.x.onAdd = func(s Segment) error {
			if s.TP.Partition == 0 {
				return errors.New("no")
			}
			return nil
		}
	})
	for i := range scanLimit + 50 {
		r.l.add(makeSegment(ids.TopicPartition{Topic: testTopic}, int64(i)*10, 1, 0, 1))
	}
	r.l.add(makeSegment(testTP, 0, 1, 0, 1))
	waitFor(t, "the last one", func() bool { return len(r.x.all(testTP)) == 1 })
}

func TestUploaderOptions(t *testing.T) {
	if _, err := NewUploader(UploaderOptions{}); err == nil {
		t.Error("no error for missing options")
	}
}

// An object of the same name with other bytes is never overwritten, and never
// taken for the segment.
func TestUploaderConflict(t *testing.T) {
	r := newRig(t, nil)
	s, other := makeSegment(testTP, 0, 3, 0, 1), makeSegment(testTP, 0, 3, 5, 1)
	if len(s.object) != len(other.object) {
		t.Fatal("the two must differ in content alone")
	}
	other.put(t, r.b, nil)
	r.l.add(s)
	waitFor(t, "refusals", func() bool { return r.Stats().Failures >= 2 })
	if r.l.left() != 1 || len(r.x.all(testTP)) != 0 {
		t.Error("the other object was taken for the segment")
	}
	if got, err := getAll(t.Context(), r.b.Bucket, s.row().Key(), 0, int64(len(s.object))); err != nil || !slices.Equal(got, other.object) {
		t.Errorf("the object has changed (%v)", err)
	}
}
