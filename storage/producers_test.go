package storage_test

import (
	"encoding/binary"
	"hash/crc32"
	"sync"
	"testing"

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
