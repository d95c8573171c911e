package segment

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
)

var testTP = ids.TopicPartition{Topic: ids.TopicID{1, 2, 3}, Partition: 7}

var testProducers = []ProducerState{
	{ProducerID: 5, Epoch: 1, CoordinatorEpoch: -1, LastTimestamp: 77, TxnFirstOffset: -1, Batches: []BatchRef{
		{BaseSequence: 0, LastSequence: 4, BaseOffset: 1000, LastOffset: 1004, Timestamp: 50},
		{BaseSequence: 5, LastSequence: 5, BaseOffset: 1005, LastOffset: 1005, Timestamp: 51}}},
	{ProducerID: 6, Epoch: 3, CoordinatorEpoch: 2, LastTimestamp: 78, TxnFirstOffset: 1010},
}

var testAborted = []AbortedTxn{{ProducerID: 5, First: 1002, Last: 1006, LastStable: 1001}, {ProducerID: 6, First: 1010, Last: 1012, LastStable: 1009}}

// sample builds a segment from offset 1000 of n batches with growing sizes,
// several codecs and leader epochs, and timestamps that go back and forth.
func sample(t testing.TB, n, interval int) (b *Builder, log []byte) {
	t.Helper()
	b = NewBuilder(testTP, 1000, interval)
	offset := int64(1000)
	for i := range n {
		records := make([]batch.Record, i%3+1)
		for j := range records {
			records[j] = batch.Record{Timestamp: 5000 + int64(i*i%7*100+j), Key: []byte{byte(i)}, Value: bytes.Repeat([]byte{byte(i + j)}, i*5%60)}
		}
		raw, err := batch.Encode(records, batch.EncodeOptions{BaseOffset: offset, LeaderEpoch: int32(i / 4), Codec: batch.Codec(i % 3)})
		if err != nil {
			t.Fatal(err)
		}
		h, err := batch.Check(raw)
		if err != nil {
			t.Fatal(err)
		}
		b.Add(h, raw[:batch.HeaderSize])
		log = append(log, raw...)
		offset = h.LastOffset() + 1
	}
	return b, log
}

func object(t testing.TB, n, interval int) (b *Builder, log, trailer []byte) {
	b, log = sample(t, n, interval)
	return b, log, b.Trailer(b.Meta().Last+1, testAborted, testProducers)
}

func parse(t testing.TB, trailer []byte) *Index {
	t.Helper()
	x, err := ParseTrailer(trailer)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestCombine(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var c combiner
	for range 2000 {
		a, b := make([]byte, rng.IntN(3000)), make([]byte, rng.IntN(1<<rng.IntN(18)))
		for _, s := range [][]byte{a, b} {
			for i := range s {
				s[i] = byte(rng.Uint32())
			}
		}
		want := crc32.Update(crc32.Checksum(a, castagnoli), castagnoli, b)
		ca, cb, n := crc32.Checksum(a, castagnoli), crc32.Checksum(b, castagnoli), int64(len(b))
		if got := Combine(ca, cb, n); got != want {
			t.Fatalf("Combine of %d and %d bytes: %08x, want %08x", len(a), len(b), got, want)
		}
		if got := c.combine(ca, cb, n); got != want {
			t.Fatalf("combiner, %d and %d bytes: %08x, want %08x", len(a), len(b), got, want)
		}
	}
	// Lengths too large to compute directly: in two steps or in one.
	for _, n := range []int64{1 << 31, 1<<40 + 12345, 1<<47 - 1} {
		if a, b := Combine(Combine(7, 9, n), 11, 5), Combine(7, Combine(9, 11, 5), n+5); a != b {
			t.Errorf("%d bytes: %08x and %08x", n, a, b)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	b, log, trailer := object(t, 30, 200)
	x := parse(t, trailer)
	m := x.Meta
	if m.TP != testTP || m.Base != 1000 || m.LogSize != int64(len(log)) || m.LogCRC != crc32.Checksum(log, castagnoli) ||
		m.Last != b.Meta().Last || m.Epoch != 7 || m.LastStable != m.Last+1 || m.MinTimestamp != 5000 || m.MaxTimestamp != 5402 {
		t.Errorf("meta %+v", m)
	}
	if m.Records != m.Last-m.Base+1 {
		t.Errorf("%d records", m.Records)
	}
	if !reflect.DeepEqual(x.Producers, testProducers) || !reflect.DeepEqual(x.aborted, testAborted) || !reflect.DeepEqual(x.spans, b.spans) {
		t.Errorf("got %+v", x)
	}
	if len(x.Epochs) != 8 || x.Epochs[0] != (EpochStart{0, 1000}) || x.Epochs[1].Start != 1007 {
		t.Errorf("epochs %+v", x.Epochs)
	}
	whole := append(append([]byte(nil), log...), trailer...)
	if want := crc32.Checksum(whole, castagnoli); x.ObjectCRC() != want || b.ObjectCRC(trailer) != want {
		t.Errorf("object crc %08x and %08x, want %08x", x.ObjectCRC(), b.ObjectCRC(trailer), want)
	}
	if got := x.Aborted(1003, 1005); len(got) != 1 || got[0].ProducerID != 5 {
		t.Errorf("aborted %+v", got)
	}
	if f, err := ParseFooter(whole[len(whole)-FooterSize:]); err != nil || f.TrailerSize != int64(len(trailer)) || f.Meta != m {
		t.Errorf("footer %+v, %v", f, err)
	}
}

// Every offset is found, by builder and index alike, in a span that verifies.
func TestLookup(t *testing.T) {
	for _, interval := range []int{1, 150, 1000, 1 << 20} {
		b, log, trailer := object(t, 30, interval)
		x := parse(t, trailer)
		if interval == 1 && len(x.spans) != 30 || interval == 1<<20 && len(x.spans) != 1 {
			t.Errorf("interval %d: %d spans", interval, len(x.spans))
		}
		for o := int64(1000); o <= x.Meta.Last; o++ {
			pos, end := x.Lookup(o)
			if p, e := b.Lookup(o); p != pos || e != end {
				t.Fatalf("offset %d: index says [%d,%d), builder [%d,%d)", o, pos, end, p, e)
			}
			if got := find(log[pos:end], o); got == nil {
				t.Fatalf("offset %d is not in [%d,%d)", o, pos, end)
			}
			spans, to := x.SpansFrom(o, 300)
			if spans[0].Pos != pos || to < end || to-pos > 300 && len(spans) > 1 && spans[len(spans)-1].Pos-pos >= 300 {
				t.Fatalf("offset %d: spans %+v to %d", o, spans, to)
			}
			if err := VerifySpan(log[pos:to], spans, to); err != nil {
				t.Fatal(err)
			}
		}
		if pos, end := x.Lookup(999); pos != 0 || end != 0 {
			t.Errorf("found offset 999 at [%d,%d)", pos, end)
		}
		if spans, _ := b.SpansFrom(1000, 1<<20, 0); len(spans) != 0 {
			t.Errorf("spans that are not available: %+v", spans)
		}
	}
}

// find returns the batch of b that holds offset o.
func find(b []byte, o int64) []byte {
	for len(b) > 0 {
		h, err := batch.Check(b)
		if err != nil {
			return nil
		}
		if h.BaseOffset <= o && o <= h.LastOffset() {
			return b[:h.Size()]
		}
		b = b[h.Size():]
	}
	return nil
}

// The span found by time is the first with a record at or after it: nothing
// before the returned offset is as late.
func TestLookupTime(t *testing.T) {
	for _, interval := range []int{1, 150, 1000} {
		b, log, trailer := object(t, 30, interval)
		x := parse(t, trailer)
		for ts := int64(4990); ts < 5420; ts++ {
			first := int64(-1)
			_, err := ScanLog(bytes.NewReader(log), int64(len(log)), 0, 1000, func(h batch.Header, _ []byte, _ int64) error {
				if first < 0 && h.MaxTimestamp >= ts {
					first = h.BaseOffset
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			at, behind, ok := x.LookupTime(ts, 0)
			if at2, behind2, ok2 := b.LookupTime(ts, 0); at2 != at || behind2 != behind || ok2 != ok {
				t.Fatalf("builder and index differ at %d", ts)
			}
			if ok && (first < at || first >= behind) {
				t.Fatalf("timestamp %d: span %d to %d, first batch %d", ts, at, behind, first)
			}
			if again, _, ok2 := x.LookupTime(ts, behind-1); ok && (!ok2 || again != at) {
				t.Fatalf("timestamp %d: from the span's last offset on, span %d %t, want %d", ts, again, ok2, at)
			}
			if later, _, ok2 := x.LookupTime(ts, behind); ok && ok2 && later < behind {
				t.Fatalf("timestamp %d: behind the span that ends at %d, span %d", ts, behind, later)
			}
			if ok != (first >= 0) || ok && at > first || ok && interval == 1 && at != first {
				t.Fatalf("timestamp %d: offset %d %t, first batch %d", ts, at, ok, first)
			}
			if pos, end := x.Lookup(at); ok && (find(log[pos:end], first) == nil) {
				t.Fatalf("timestamp %d: the span of %d does not hold %d", ts, at, first)
			}
		}
	}
}

func TestEndSpan(t *testing.T) {
	b, _ := sample(t, 5, 1<<20)
	b.EndSpan()
	raw, err := batch.Encode([]batch.Record{{Timestamp: 1}}, batch.EncodeOptions{BaseOffset: b.Meta().Last + 1})
	if err != nil {
		t.Fatal(err)
	}
	size := b.Size()
	h, _ := batch.Check(raw)
	b.Add(h, raw)
	if len(b.spans) != 2 || b.spans[1].Pos != size {
		t.Fatalf("spans %+v", b.spans)
	}
}

func TestNames(t *testing.T) {
	for _, base := range []int64{0, 42, 1<<63 - 1} {
		for i, name := range []string{LogName(base), IndexName(base)} {
			got, isIndex, err := ParseName(name)
			if err != nil || got != base || isIndex != (i == 1) || len(name) != 24 {
				t.Errorf("%s: %d %t %v", name, got, isIndex, err)
			}
		}
	}
	for _, bad := range []string{"", ".log", "1.log", "00000000000000000001", "00000000000000000001.log.tmp", "-0000000000000000001.log", "-0000000000000000000.log", "+0000000000000000001.idx", "99999999999999999999.log", "0000000000000000000x.log", "00000000000000000001.timeindex"} {
		if _, _, err := ParseName(bad); err == nil {
			t.Errorf("parsed %q", bad)
		}
	}
}

func TestScanLog(t *testing.T) {
	_, log := sample(t, 12, 1)
	read := func(b []byte, pos, expect int64) (n int, end int64, err error) {
		end, err = ScanLog(bytes.NewReader(b), int64(len(b)), pos, expect, func(h batch.Header, raw []byte, at int64) error {
			if !bytes.Equal(raw, b[at:at+int64(h.Size())]) {
				t.Errorf("wrong bytes at %d", at)
			}
			n++
			return nil
		})
		return n, end, err
	}
	if n, end, err := read(log, 0, 1000); n != 12 || end != int64(len(log)) || err != nil {
		t.Fatalf("%d batches to %d, %v", n, end, err)
	}
	first, _ := batch.Parse(log)
	if n, _, err := read(log, int64(first.Size()), 1001); n != 11 || err != nil {
		t.Fatalf("from the second: %d batches, %v", n, err)
	}
	if n, end, err := read(append(append([]byte(nil), log...), make([]byte, 5000)...), 0, 1000); n != 12 || end != int64(len(log)) || !errors.Is(err, ErrTorn) {
		t.Fatalf("zeros behind: %d to %d, %v", n, end, err)
	}
	hole := append(append([]byte(nil), log[:first.Size()]...), log[first.Size()+sizeAt(t, log, first.Size()):]...)
	if n, end, err := read(hole, 0, 1000); n != 1 || end != int64(first.Size()) || !errors.Is(err, ErrTorn) {
		t.Fatalf("hole: %d to %d, %v", n, end, err)
	}
	if n, _, err := read(hole, 0, -1); n != 11 || err != nil {
		t.Fatalf("hole, not strict: %d, %v", n, err)
	}
	if _, _, err := read(log, 0, 999); !errors.Is(err, ErrTorn) || !strings.Contains(err.Error(), "expected 999") {
		t.Fatalf("wrong base: %v", err)
	}
	big, err := batch.Encode([]batch.Record{{Value: make([]byte, 700<<10)}}, batch.EncodeOptions{BaseOffset: 0})
	if err != nil {
		t.Fatal(err)
	}
	small, _ := batch.Encode([]batch.Record{{}}, batch.EncodeOptions{BaseOffset: 1})
	if n, _, err := read(append(big, small...), 0, 0); n != 2 || err != nil {
		t.Fatalf("batch larger than the buffer: %d, %v", n, err)
	}
	stop := errors.New("stop")
	if end, err := ScanLog(bytes.NewReader(log), int64(len(log)), 0, 1000, func(batch.Header, []byte, int64) error { return stop }); end != 0 || err != stop {
		t.Fatalf("stopped at %d, %v", end, err)
	}
}

func sizeAt(t *testing.T, log []byte, at int) int {
	h, err := batch.Parse(log[at:])
	if err != nil {
		t.Fatal(err)
	}
	return h.Size()
}

func TestCut(t *testing.T) {
	_, log := sample(t, 6, 1)
	h, _ := batch.Parse(log)
	second := h.LastOffset() + 1
	end := int64(0)
	for b := log; len(b) > 0; b = b[sizeAt(t, b, 0):] {
		x, _ := batch.Parse(b)
		end = x.LastOffset() + 1
	}
	for _, c := range []struct {
		name     string
		offset   int64
		maxBytes int
		minOne   bool
		want     []byte
		next     int64
	}{
		{"all", 1000, 1 << 20, false, log, end},
		{"from the second", second, 1 << 20, false, log[h.Size():], end},
		{"one", 1000, h.Size(), false, log[:h.Size()], second},
		{"too large", 1000, 10, false, nil, 1000},
		{"at least one", 1000, 10, true, log[:h.Size()], second},
		{"behind the end", 1 << 40, 1 << 20, true, nil, 1 << 40},
	} {
		if got, next := Cut(log, c.offset, c.maxBytes, c.minOne); !bytes.Equal(got, c.want) || next != c.next {
			t.Errorf("%s: %d bytes up to offset %d, want %d and %d", c.name, len(got), next, len(c.want), c.next)
		}
	}
}

func TestAddDoesNotAllocate(t *testing.T) {
	b, log := sample(t, 1, 1<<30)
	h, _ := batch.Parse(log)
	if n := testing.AllocsPerRun(1000, func() { b.Add(h, log) }); n != 0 {
		t.Errorf("Add allocates %v times", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	for _, interval := range []int{4096, 1 << 20} {
		b.Run(fmt.Sprintf("interval=%d", interval), func(b *testing.B) {
			bld, log := sample(b, 1, interval)
			h, _ := batch.Parse(log)
			b.ReportAllocs()
			size := uint32(0)
			for b.Loop() {
				size = size*1664525 + 1013904223
				h.Length = int32(1000 + size%1000000) // every batch of another size
				bld.Add(h, log)
				if len(bld.spans) > 1<<16 {
					bld.spans = bld.spans[:0]
				}
			}
		})
	}
}
