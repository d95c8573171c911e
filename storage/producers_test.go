package storage_test

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// A producer whose records have timestamps of long ago is still known after a
// start: its retry is a duplicate.
func TestProducerOldTimestampsReopen(t *testing.T) {
	fs := vfs.NewMem()
	tp := ids.TopicPartition{Topic: ids.TopicID{1}}
	open := func() (*storage.Store, *storage.Log) {
		s, err := storage.Open(storage.Options{FS: fs, Dir: "/data", WALSize: 16 << 20, TailBytes: 2 << 20})
		if err != nil {
			t.Fatal(err)
		}
		l, err := s.Create(tp, storage.LogConfig{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return s, l
	}
	keyed := func() []byte {
		b := makeBatch(1, 50, 1) // of 1970
		binary.BigEndian.PutUint64(b[43:], 77)
		binary.BigEndian.PutUint16(b[51:], 0)
		binary.BigEndian.PutUint32(b[53:], 5)
		binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
		return b
	}
	s, l := open()
	var wg sync.WaitGroup
	appendOne(t, l, keyed(), &wg)
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, l = open()
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if n := len(l.Producers()); n != 1 {
		t.Errorf("%d producers are known", n)
	}
	b := keyed()
	h, err := batch.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan storage.AppendResult, 1)
	if err := l.Append(t.Context(), b, h, storage.AppendOptions{Epoch: 4}, func(r storage.AppendResult) { done <- r }); err != nil {
		t.Fatal(err)
	}
	if r := <-done; !r.Duplicate || r.Base != 0 {
		t.Errorf("retry: %+v", r)
	}
}

// sequenced is a log of one idempotent producer, whose batches have three records.
type sequenced struct {
	t *testing.T
	l *storage.Log
}

// send appends a batch and returns its offset.
func (s sequenced) send(seq int32) (base int64, dup bool, err error) {
	s.t.Helper()
	b := makeBatch(3, 50, uint64(seq))
	idempotent(b, 77, seq)
	h, err := batch.Parse(b)
	if err != nil {
		s.t.Fatal(err)
	}
	done := make(chan storage.AppendResult, 1)
	if err := s.l.Append(s.t.Context(), b, h, storage.AppendOptions{Epoch: 4}, func(r storage.AppendResult) { done <- r }); err != nil {
		return 0, false, err
	}
	r := <-done
	return r.Base, r.Duplicate, r.Err
}

// openSequenced opens a store with one log, whose clock shows now.
func openSequenced(t *testing.T, fs vfs.FS, topic byte, now *atomic.Int64) (*storage.Store, sequenced) {
	t.Helper()
	s, err := storage.Open(storage.Options{FS: fs, Dir: "/data", WALSize: 16 << 20, TailBytes: 2 << 20, Now: func() time.Time { return time.UnixMilli(now.Load()) }})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{topic}}, storage.LogConfig{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return s, sequenced{t, l}
}

// Behind 2^31-1 sequences go on with 0, in the middle of a batch and between two, also after a start; retries from before
// the wrap are told from gaps.
func TestSequenceWraps(t *testing.T) {
	const top = math.MaxInt32
	fs, now := vfs.NewMem(), &atomic.Int64{}
	for n, seqs := range [][]int32{{top - 4, top - 1, 1, 4}, {top - 5, top - 2, 0, 3}} {
		topic := byte(n + 1)
		s, l := openSequenced(t, fs, topic, now)
		first, _, err := l.send(seqs[0])
		if err != nil {
			t.Fatal(err)
		}
		check := func(when string) {
			t.Helper()
			for i, seq := range seqs[1:] {
				want := first + 3*int64(i+1)
				if base, dup, err := l.send(seq); err != nil || base != want || dup != (when != "at first") {
					t.Errorf("%s: sequence %d: offset %d, duplicate %v, %v; want offset %d", when, seq, base, dup, err, want)
				}
			}
			if base, dup, err := l.send(seqs[0]); err != nil || base != first || !dup {
				t.Errorf("%s: the first again: offset %d, duplicate %v, %v", when, base, dup, err)
			}
			for _, gap := range []int32{seqs[3] + 4, 1000} {
				if base, _, err := l.send(gap); !errors.Is(err, storage.ErrOutOfOrderSequence) {
					t.Errorf("%s: sequence %d: offset %d, %v", when, gap, base, err)
				}
			}
			if base, _, err := l.send(top - 100); !errors.Is(err, storage.ErrDuplicateSequence) {
				t.Errorf("%s: a sequence of long before the wrap: offset %d, %v", when, base, err)
			}
		}
		check("at first")
		check("again")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, l = openSequenced(t, fs, topic, now)
		check("after a start")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A producer that was idle for a day is forgotten when a segment is closed, and not before; then it may begin with any sequence.
func TestProducerExpires(t *testing.T) {
	fs, now := vfs.NewMem(), &atomic.Int64{}
	now.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli())
	s, l := openSequenced(t, fs, 1, now)
	if _, _, err := l.send(0); err != nil {
		t.Fatal(err)
	}
	now.Add((23 * time.Hour).Milliseconds())
	l.l.RollIfOld(true)
	if base, dup, err := l.send(0); err != nil || base != 0 || !dup {
		t.Errorf("a retry after 23 h: offset %d, duplicate %v, %v", base, dup, err)
	}
	if _, _, err := l.send(50); !errors.Is(err, storage.ErrOutOfOrderSequence) {
		t.Errorf("a gap after 23 h: %v", err)
	}
	now.Add((2 * time.Hour).Milliseconds())
	if n := len(l.l.Producers()); n != 0 {
		t.Errorf("%d producers are known after 25 h", n)
	}
	if base, dup, err := l.send(50); err != nil || base != 3 || dup {
		t.Errorf("the next batch after 25 h: offset %d, duplicate %v, %v", base, dup, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
