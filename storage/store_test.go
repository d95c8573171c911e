package storage_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// makeBatch returns a batch of n records with size bytes of payload together.
// Only the header is meaningful: storage does not look at records.
func makeBatch(n, size int, seed uint64) []byte {
	b := make([]byte, batch.HeaderSize+size)
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := batch.HeaderSize; i < len(b); i++ {
		b[i] = byte(rng.Uint32())
	}
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	b[16] = 2
	binary.BigEndian.PutUint32(b[23:], uint32(n-1))
	binary.BigEndian.PutUint64(b[27:], 1000+seed)
	binary.BigEndian.PutUint64(b[35:], 1000+seed)
	binary.BigEndian.PutUint64(b[43:], ^uint64(0))
	binary.BigEndian.PutUint16(b[51:], ^uint16(0))
	binary.BigEndian.PutUint32(b[53:], ^uint32(0))
	binary.BigEndian.PutUint32(b[57:], uint32(n))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func appendOne(t testing.TB, l *storage.Log, b []byte, wg *sync.WaitGroup) {
	t.Helper()
	h, err := batch.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	wg.Add(1)
	err = l.Append(context.Background(), b, h, storage.AppendOptions{Epoch: 3}, func(r storage.AppendResult) {
		if r.Err != nil {
			t.Errorf("append: %v", r.Err)
		}
		wg.Done()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// readAll returns every batch from the log's local start on.
func readAll(t testing.TB, l *storage.Log) (out []byte) {
	t.Helper()
	off := l.Offsets()
	for o := off.LocalStart; o < off.HighWatermark; {
		r, err := l.Read(context.Background(), o, 1<<20, true)
		if err != nil {
			t.Fatalf("read at %d of %+v: %v", o, off, err)
		}
		if r.Size == 0 {
			t.Fatalf("read at %d of %+v: nothing", o, off)
		}
		for _, d := range r.Data {
			out = append(out, d...)
			for len(d) > 0 {
				h, err := batch.Check(d)
				if err != nil {
					t.Fatal(err)
				}
				if h.BaseOffset != o {
					t.Fatalf("batch at %d, expected %d", h.BaseOffset, o)
				}
				o = h.LastOffset() + 1
				d = d[h.Size():]
			}
		}
		r.Release()
	}
	return out
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	open := func() *storage.Store {
		s, err := storage.Open(storage.Options{FS: vfs.OS(), Dir: dir, WALSize: 32 << 20, TailBytes: 16 << 20})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	var tps []ids.TopicPartition
	for p := range 5 {
		tps = append(tps, ids.TopicPartition{Topic: ids.TopicID{1}, Partition: int32(p)})
	}
	want := map[int][]byte{}
	cfg := storage.LogConfig{SegmentBytes: 1 << 20, IndexInterval: 4096}
	for round := range 4 {
		s := open()
		var wg sync.WaitGroup
		for p, tp := range tps {
			l, err := s.Create(tp, cfg, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got := readAll(t, l); string(got) != string(want[p]) {
				t.Fatalf("round %d partition %d: %d bytes, want %d", round, p, len(got), len(want[p]))
			}
		}
		for i := range 2000 {
			p := i % 4
			if p == 3 && i%100 != 3 { // one quiet partition
				continue
			}
			b := makeBatch(3, 100+i*17%9000, uint64(round*100000+i))
			appendOne(t, s.Log(tps[p]), b, &wg)
			want[p] = append(want[p], b...)
		}
		wg.Wait()
		for p, tp := range tps {
			if got := readAll(t, s.Log(tp)); string(got) != string(want[p]) {
				t.Fatalf("round %d partition %d before close: %d bytes, want %d", round, p, len(got), len(want[p]))
			}
		}
		fmt.Printf("%+v\n", s.Stats())
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
