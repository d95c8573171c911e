package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	objwal "github.com/cirrolog/cirrolog/tiering/wal"
)

// remote is a store whose stream is in a bucket, and what it has acknowledged.
type remote struct {
	t      *testing.T
	bucket objstore.Bucket
	inc    ids.Incarnation
	stream *objwal.Stream
	*storage.Store

	mu     sync.Mutex
	acked  map[ids.TopicPartition]map[int64][]byte // by base offset
	ends   map[ids.TopicPartition]int64
	tiered map[ids.TopicPartition]int64
}

func openRemote(t *testing.T, b objstore.Bucket, dir string, o storage.RemoteOptions) *remote {
	t.Helper()
	return openRemoteOf(t, b, dir, o, 32<<20)
}

// openRemoteOf is openRemote with a stream of capacity bytes.
func openRemoteOf(t *testing.T, b objstore.Bucket, dir string, o storage.RemoteOptions, capacity int64) *remote {
	t.Helper()
	return openRemoteOn(t, vfs.OS(), b, dir, o, capacity)
}

// openRemoteOn is openRemoteOf on a file system.
func openRemoteOn(t *testing.T, fsys vfs.FS, b objstore.Bucket, dir string, o storage.RemoteOptions, capacity int64) *remote {
	t.Helper()
	r := &remote{t: t, bucket: b, inc: ids.NewIncarnation(), acked: map[ids.TopicPartition]map[int64][]byte{},
		ends: map[ids.TopicPartition]int64{}, tiered: map[ids.TopicPartition]int64{}}
	o.Open = func(c storage.StreamConfig) (wal.Stream, error) {
		var err error
		r.stream, err = objwal.Open(context.Background(), objwal.Options{Bucket: b, Incarnation: r.inc, Pool: c.Pool, Announce: c.Announce,
			OnFull: c.OnFull, Linger: time.Millisecond, CheckpointEvery: 8, Capacity: capacity})
		return r.stream, err
	}
	var err error
	r.Store, err = storage.Open(storage.Options{FS: fsys, Dir: dir, TailBytes: 64 << 20, Remote: o})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *remote) create(n int, cfg storage.LogConfig) (logs []*storage.Log) {
	r.t.Helper()
	var ch objwal.Change
	for i := range n {
		tp := ids.TopicPartition{Topic: ids.TopicID{7}, Partition: int32(i)}
		l, err := r.CreateAt(tp, cfg, storage.Begin{})
		if err != nil {
			r.t.Fatal(err)
		}
		logs = append(logs, l)
		r.acked[tp] = map[int64][]byte{}
		ch.Acceptances = append(ch.Acceptances, objwal.Acceptance{TP: tp, Epoch: 1})
	}
	if err := r.stream.Change(context.Background(), ch); err != nil {
		r.t.Fatal(err)
	}
	return logs
}

// append appends a batch of about size bytes; the acknowledgement comes later.
func (r *remote) append(l *storage.Log, size int, wg *sync.WaitGroup) error {
	value := make([]byte, size)
	for i := range value {
		value[i] = byte(i * size)
	}
	b, err := batch.Encode([]batch.Record{{Value: value}}, batch.EncodeOptions{})
	if err != nil {
		return err
	}
	h, err := batch.Validate(b)
	if err != nil {
		return err
	}
	wg.Add(1)
	err = l.Append(context.Background(), b, h, storage.AppendOptions{Epoch: 1}, func(res storage.AppendResult) {
		defer wg.Done()
		if res.Err != nil {
			return
		}
		batch.Stamp(b, res.Base, 1)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.acked[l.TP()][res.Base] = b
		r.ends[l.TP()] = max(r.ends[l.TP()], res.Last+1)
	})
	if err != nil {
		wg.Done()
	}
	return err
}

// tier marks what is closed as tiered, as an uploader does; of some partitions it is
// late, unless rng is nil.
func (r *remote) tier(rng *rand.Rand, logs []*storage.Log) {
	for _, l := range logs {
		if rng != nil && rng.IntN(8) > 0 {
			continue
		}
		for _, s := range l.ClosedSegments() {
			if !s.Tiered {
				r.mu.Lock()
				r.tiered[l.TP()] = s.Meta.Last + 1
				r.mu.Unlock()
				l.MarkTiered(s.Meta.Last)
			}
		}
	}
}

// check seals the stream, as an heir does, and looks for all that was acknowledged and is
// not tiered.
func (r *remote) check() *objwal.Sealed {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx := context.Background()
	heir := ids.NewIncarnation()
	s, err := objwal.SealStream(ctx, r.bucket, [16]byte{}, r.inc, heir, func(st *objwal.State) (out []objwal.Heir) {
		for tp, t := range st.Tails {
			out = append(out, objwal.Heir{TP: tp, Epoch: t.Epoch + 1, To: heir})
		}
		return out
	})
	if err != nil {
		r.t.Fatal(err)
	}
	for tp, want := range r.acked {
		tail := s.Tails[tp]
		if tail == nil || tail.End < r.ends[tp] {
			r.t.Fatalf("%s: acknowledged to %d, the stream has %+v", tp, r.ends[tp], tail)
		}
		next := r.tiered[tp]
		for _, p := range tail.Batches {
			if p.Last < next {
				continue
			}
			if p.Base != next {
				r.t.Fatalf("%s: offset %d is neither tiered (to %d) nor in the stream, which goes on at %d", tp, next, r.tiered[tp], p.Base)
			}
			got, err := objwal.ReadBatches(ctx, r.bucket, p.Stream, p.Seq, []objwal.Batch{p.Batch})
			if w := want[p.Base]; err != nil || w != nil && !bytes.Equal(got, w) {
				r.t.Fatalf("%s at %d: %v, or other bytes", tp, p.Base, err)
			}
			next = p.Last + 1
		}
		if next < r.ends[tp] {
			r.t.Fatalf("%s: acknowledged to %d, tiered to %d, the stream's batches end at %d", tp, r.ends[tp], r.tiered[tp], next)
		}
	}
	return s
}

// Busy and quiet partitions, segments that are tiered meanwhile, a stream that is trimmed and
// carried forward: at any moment bucket and tiered segments have all that was acknowledged.
func TestRemoteStreamHasWhatIsNotTiered(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			r := openRemote(t, objstore.NewMem(), t.TempDir(), storage.RemoteOptions{MaxObjects: 12, TierMinBytes: 128 << 10, TierMaxDelay: 50 * time.Millisecond})
			logs := r.create(12, storage.LogConfig{SegmentBytes: 512 << 10})
			var wg sync.WaitGroup
			for i := range 1500 {
				l := logs[rng.IntN(3)] // three busy ones
				size := rng.IntN(8000)
				if i%10 == 0 {
					l, size = logs[rng.IntN(len(logs))], 100
				}
				if err := r.append(l, size, &wg); err != nil {
					t.Fatal(err)
				}
				if i%50 == 0 {
					wg.Wait()
					r.tier(rng, logs)
				}
			}
			if rng.IntN(2) == 0 {
				wg.Wait()
			}
			r.check()
			if _, needed := r.stream.Objects(); needed > 400 {
				t.Errorf("%d objects are needed", needed)
			}
			wg.Wait()
			if err := r.Close(); err != nil && !errors.Is(err, objwal.ErrFenced) {
				t.Fatal(err)
			}
		})
	}
}

// The retry of a batch that is not durable yet is answered with it, not before.
func TestDuplicateWaitsForOriginal(t *testing.T) {
	b := objstore.NewFault(objstore.NewMem(), 1)
	r := openRemote(t, b, t.TempDir(), storage.RemoteOptions{})
	defer r.Close()
	l := r.create(1, storage.LogConfig{})[0]
	b.Add(objstore.FaultRule{Method: objstore.MethodPut, Kind: objstore.FaultThrottle, Probability: 1})
	data, err := batch.Encode([]batch.Record{{Timestamp: 1, Value: []byte("v")}}, batch.EncodeOptions{Producer: &batch.Producer{ID: 77}})
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan storage.AppendResult, 2)
	for range 2 {
		one := bytes.Clone(data)
		h, err := batch.Parse(one)
		if err == nil {
			err = l.Append(t.Context(), one, h, storage.AppendOptions{Epoch: 4}, func(a storage.AppendResult) { answers <- a })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	select {
	case a := <-answers:
		t.Fatalf("answered before anything is in the bucket: %+v", a)
	case <-time.After(100 * time.Millisecond):
	}
	b.Clear()
	for _, dup := range []bool{false, true} {
		if a := <-answers; a.Err != nil || a.Base != 0 || a.Duplicate != dup {
			t.Errorf("answer %+v, want offset 0, duplicate %v", a, dup)
		}
	}
}

// An append that waits for room in the stream does not keep the segment open that has to be tiered for
// that room: neither when the stream is nearly full, nor when only a large append does not fit.
func TestRoomWhileAppendWaits(t *testing.T) {
	for name, size := range map[string]int{"nearly full": 12 << 10, "large": 90 << 10} {
		t.Run(name, func(t *testing.T) {
			const capacity = 256 << 10
			r := openRemoteOf(t, objstore.NewMem(), t.TempDir(), storage.RemoteOptions{}, capacity)
			defer r.Close()
			logs := r.create(3, storage.LogConfig{})
			ctx, cancel := context.WithCancel(t.Context())
			var tiers, appends, acks sync.WaitGroup
			defer tiers.Wait()
			defer cancel()
			tiers.Go(func() {
				for ctx.Err() == nil {
					r.tier(nil, logs)
					time.Sleep(time.Millisecond)
				}
			})
			began := time.Now()
			for _, l := range logs {
				appends.Go(func() {
					for range 4 * capacity / size {
						if err := r.append(l, size, &acks); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			done := make(chan struct{})
			go func() {
				appends.Wait()
				acks.Wait()
				close(done)
			}()
			select {
			case <-done:
				t.Logf("%v", time.Since(began))
			case <-time.After(20 * time.Second):
				st := r.stream.State()
				t.Errorf("appends wait for room for ever: %+v", st)
				r.stream.Poison(errors.New("the test is over"))
				<-done
			}
		})
	}
}

// Nothing waits for an append that waits for room in the stream: its segment can be closed, and a log that is given
// away or removed refuses the append at once.
func TestNothingWaitsForRoom(t *testing.T) {
	const capacity = 64 << 10
	for name, do := range map[string]func(r *remote, l *storage.Log) error{
		"roll": func(_ *remote, l *storage.Log) error {
			l.RollIfOld(true) // false: the cleaner has done it
			return nil
		},
		"freeze": func(_ *remote, l *storage.Log) error {
			end, err := l.Freeze()
			if err == nil && end != l.Offsets().HighWatermark {
				return fmt.Errorf("frozen at %d", end)
			}
			return err
		},
		"remove": func(r *remote, l *storage.Log) error { return r.Remove(l.TP()) },
	} {
		t.Run(name, func(t *testing.T) {
			r := openRemoteOf(t, objstore.NewMem(), t.TempDir(), storage.RemoteOptions{}, capacity)
			defer r.Close()
			l := r.create(1, storage.LogConfig{SegmentAge: time.Hour})[0]
			var acks sync.WaitGroup
			if err := r.append(l, capacity/2, &acks); err != nil {
				t.Fatal(err)
			}
			acks.Wait()
			refused := make(chan error, 1)
			go func() { refused <- r.append(l, capacity*3/4, &acks) }()
			time.Sleep(100 * time.Millisecond)
			did := make(chan error, 1)
			go func() { did <- do(r, l) }()
			select {
			case err := <-did:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(10 * time.Second):
				t.Error("it waits for an append that waits for room")
			}
			if name == "roll" { // makes the room
				for i := 0; len(l.ClosedSegments()) == 0 && i < 1000; i++ {
					time.Sleep(10 * time.Millisecond)
				}
				r.tier(nil, []*storage.Log{l})
			}
			select {
			case err := <-refused:
				if want := map[bool]error{name != "roll": storage.ErrClosed}[true]; !errors.Is(err, want) {
					t.Errorf("append: %v, want %v", err, want)
				}
			case <-time.After(10 * time.Second):
				t.Error("the append waits for ever")
				r.stream.Poison(errors.New("the test is over"))
				<-refused
			}
			acks.Wait()
		})
	}
}
