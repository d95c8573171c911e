package httpgate

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestDecodeBounds: of what a partition sends only the batches that are needed
// are decoded; the place behind them is where the next fetch goes on.
func TestDecodeBounds(t *testing.T) {
	var all []byte
	var ends []int
	for i := range 4 { // 10 records of 100 bytes each
		var recs []*kgo.Record
		for range 10 {
			recs = append(recs, &kgo.Record{Value: []byte(strings.Repeat("x", 100))})
		}
		at := len(all)
		all = appendBatch(all, recs, -1, -1, -1, time.UnixMilli(1))
		binary.BigEndian.PutUint64(all[at:], uint64(10*i))
		ends = append(ends, len(all))
	}
	decode := func(batches []byte, offset int64, b bounds) chunk {
		o := kgo.ProcessFetchPartitionOpts{KeepControlRecords: true, Offset: offset, Topic: "t"}
		p := kmsg.NewFetchResponseTopicPartition()
		p.HighWatermark, p.RecordBatches = 40, batches
		return b.decode(o, &p, kgo.DefaultDecompressor())
	}
	damaged := append([]byte(nil), all...)
	damaged[ends[2]-1] ^= 1
	for i, c := range []struct {
		batches       []byte
		offset        int64
		b             bounds
		records, next int64
		failed        bool
	}{
		{all, 0, bounds{}, 40, 40, false},
		{all, 13, bounds{}, 27, 40, false},
		{all, 0, bounds{records: 1}, 10, 10, false},
		{all, 5, bounds{records: 6}, 15, 20, false}, // 5 of the first, 10 of the second
		{all, 0, bounds{size: 10 * 164}, 10, 10, false},
		{all, 0, bounds{size: 10*164 + 1}, 20, 20, false},
		{all, 0, bounds{records: 100, size: 1 << 20}, 40, 40, false},
		{all[:ends[1]+70], 0, bounds{}, 20, 20, false},
		{all[:ends[1]+5], 0, bounds{}, 20, 20, false},
		{all[:30], 0, bounds{}, 0, 0, false},
		{nil, 7, bounds{}, 0, 7, false},
		{damaged, 0, bounds{}, 20, 20, false},
		{damaged, 20, bounds{}, 0, 20, true},
		{damaged[ends[1]:], 20, bounds{}, 0, 20, true},
	} {
		got := decode(c.batches, c.offset, c.b)
		if int64(len(got.records)) != c.records || got.next != c.next || (got.err != nil) != c.failed || got.end != 40 {
			t.Errorf("%d: %d records, next %d, end %d, %v; want %d and %d, failed %v", i, len(got.records), got.next, got.end, got.err, c.records, c.next, c.failed)
		}
		for j, r := range got.records {
			if r.Offset != c.offset+int64(j) {
				t.Errorf("%d: record %d has offset %d", i, j, r.Offset)
			}
		}
	}
}
