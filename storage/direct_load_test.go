package storage_test

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/vfs/crashtest"
)

// withPayload returns a batch of n records with payload behind its header.
func withPayload(n int, payload []byte) []byte {
	b := append(makeBatch(n, 0, 1), payload...)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// mixed is a log under load, and the checksum of each of its batches by base offset.
type mixed struct {
	log *storage.Log
	mu  sync.Mutex
	sum map[int64]uint32
}

// append appends one batch. It returns before the batch is durable.
func (m *mixed) append(t *testing.T, b []byte, wg *sync.WaitGroup) {
	h, err := batch.Parse(b)
	if err != nil {
		t.Error(err)
		return
	}
	wg.Add(1)
	room, in := maybeRoom(m.log, b, len(b)%3*70)
	if room != nil {
		defer room.Release()
	}
	err = m.log.Append(context.Background(), in, h, storage.AppendOptions{Epoch: crashEpoch, Room: room}, func(r storage.AppendResult) {
		defer wg.Done()
		if r.Err != nil {
			t.Error(r.Err)
		}
		batch.Stamp(b, r.Base, crashEpoch)
		m.mu.Lock()
		m.sum[r.Base] = crc32.ChecksumIEEE(b)
		m.mu.Unlock()
	})
	if err != nil {
		wg.Done()
		t.Error(err)
	}
}

// follow reads l from its start while it grows, until done and nothing is left. It
// returns what was read as mixed.sum has it.
func follow(t *testing.T, l *storage.Log, seed uint64, done *atomic.Bool) map[int64]uint32 {
	got := map[int64]uint32{}
	rng := rand.New(rand.NewPCG(seed, 7))
	for at := int64(0); ; {
		last := done.Load()
		r, err := l.Read(context.Background(), at, 1+rng.IntN(4<<20), true)
		if err != nil {
			t.Errorf("read at %d: %v", at, err)
			return got
		}
		if r.Size == 0 && last {
			return got
		}
		if r.Size == 0 {
			time.Sleep(time.Millisecond)
		}
		for _, d := range r.Data {
			for len(d) > 0 {
				h, err := batch.Check(d)
				if err != nil || h.BaseOffset != at {
					t.Errorf("batch %d at %d: %v", h.BaseOffset, at, err)
					return got
				}
				got[at] = crc32.ChecksumIEEE(d[:h.Size()])
				at, d = h.LastOffset()+1, d[h.Size():]
			}
		}
		r.Release()
	}
}

func (m *mixed) compare(t *testing.T, when string, got map[int64]uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wrong := 0
	for at, sum := range m.sum {
		if got[at] != sum {
			wrong++
		}
	}
	if wrong > 0 || len(got) != len(m.sum) {
		t.Errorf("%s: %d batches read, %d of %d are missing or wrong", when, len(got), wrong, len(m.sum))
	}
}

// Many appenders of large and small batches, readers, rolls, trims and evictions at
// the same time: everything is read back as it was appended, after a restart too.
func TestMixedSizesUnderLoad(t *testing.T) {
	t.Run("with little memory", func(t *testing.T) { mixedSizesUnderLoad(t, 1) })
	t.Run("with rooms", func(t *testing.T) { mixedSizesUnderLoad(t, 128<<20) })
}

func mixedSizesUnderLoad(t *testing.T, tail int64) {
	const writers, each = 8, 40
	o := storage.Options{FS: vfs.OS(), Dir: t.TempDir(), WALSize: 8 << 20, TailBytes: tail, DirectBytes: 64 << 10, ReadBytes: 1}
	s, err := storage.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	var logs []*mixed
	for p := range int32(3) {
		l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}, Partition: p}, storage.LogConfig{SegmentBytes: 2 << 20}, 0)
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, &mixed{log: l, sum: map[int64]uint32{}})
	}
	random := makeBatch(1, 2<<20, 5)
	var acks, appends, others sync.WaitGroup
	var done atomic.Bool
	for g := range uint64(writers) {
		appends.Go(func() {
			rng := rand.New(rand.NewPCG(g, 1))
			for range each {
				size := 100 << rng.IntN(14)
				size = min(size+rng.IntN(size), 1<<20)
				from := 100 + rng.IntN(1<<20)
				logs[rng.IntN(len(logs))].append(t, withPayload(1+rng.IntN(3), random[from:from+size]), &acks)
			}
		})
	}
	for i, m := range logs {
		others.Go(func() { m.compare(t, "while it grew", follow(t, m.log, uint64(i), &done)) })
		others.Go(func() {
			for !done.Load() {
				time.Sleep(20 * time.Millisecond)
				m.log.RollIfOld(true)
			}
		})
	}
	appends.Wait()
	acks.Wait()
	done.Store(true)
	others.Wait()
	for i, m := range logs {
		m.compare(t, "before the restart", follow(t, m.log, uint64(i), &done))
	}
	if st := s.Stats(); st.DiskUsed <= st.WALSize {
		t.Errorf("%+v", st)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = storage.Open(o); err != nil {
		t.Fatal(err)
	}
	for i, m := range logs {
		m.log = s.Log(m.log.TP())
		m.compare(t, "after the restart", follow(t, m.log, uint64(i), &done))
	}
	if err := errors.Join(s.Close(), s.Err()); err != nil {
		t.Fatal(err)
	}
}

// Topics go while their large batches are in flight, and the power goes at any
// moment: nothing else is harmed.
func TestRemoveUnderLargeBatches(t *testing.T) {
	seed := crashtest.Seed(t)
	mem := newCrashFS(t)
	w := newWorld(t, mem, 2)
	sampler := crashtest.Sample(mem, seed, 250, w.observe)
	for round := range 8 {
		victim := ids.TopicPartition{Topic: ids.TopicID{100, byte(round)}}
		l, err := w.store.Create(victim, crashConfig, 0)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for g := range uint64(2) {
			wg.Go(func() {
				for i := uint64(0); ; i++ {
					b := makeBatch(1, []int{20_000, 9000, 100}[i%3], g<<8+i)
					h, _ := batch.Parse(b)
					err := l.Append(context.Background(), b, h, storage.AppendOptions{}, func(storage.AppendResult) {})
					if errors.Is(err, storage.ErrClosed) {
						return
					}
					if err != nil {
						t.Errorf("append to a topic that is being removed: %v", err)
						return
					}
				}
			})
		}
		for i := range 12 {
			w.append(w.parts[i%2], []int{12_000, 100, 20_000}[i%3])
			if i == 6 {
				wg.Go(func() {
					if err := w.store.Remove(victim); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
	}
	w.settle()
	w.readBack()
	points, seen := sampler.End()
	t.Logf("%d operations, %d of them tried", seen, len(points))
	crashtest.Each(t, points, func(t *testing.T, p crashtest.Point[[]known]) { checkPoint(t, p, w.parts, seed) })
	w.reopen(crashOptions(mem))
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
}
