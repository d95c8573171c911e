package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/storage/batch"
)

// readBack reads every offset as a reader of disk or bucket does: footer,
// trailer, spans, verified bytes. It returns an error, or what was read.
func readBack(ob []byte, base, last int64) ([]byte, error) {
	if len(ob) < FooterSize {
		return nil, errors.New("too short")
	}
	f, err := ParseFooter(ob[len(ob)-FooterSize:])
	if err != nil {
		return nil, err
	}
	if f.TrailerSize+f.Meta.LogSize != int64(len(ob)) {
		return nil, errors.New("size")
	}
	x, err := ParseTrailer(ob[f.Meta.LogSize:])
	if err != nil {
		return nil, err
	}
	var out []byte
	for o := base; o <= last; {
		spans, end := x.SpansFrom(o, 300)
		if len(spans) == 0 {
			return out, errors.New("no span")
		}
		b := ob[spans[0].Pos:end]
		if err := VerifySpan(b, spans, end); err != nil {
			return out, err
		}
		b, _ = Cut(b, o, 1<<20, true)
		if len(b) == 0 {
			return out, errors.New("nothing")
		}
		out = append(out, b...)
		for ; len(b) > 0; b = b[binary.BigEndian.Uint32(b[8:])+12:] {
			h, err := batch.Check(b)
			if err != nil {
				return out, err
			}
			o = h.LastOffset() + 1
		}
	}
	return out, nil
}

// mutations calls f with every truncation of b and with every byte of it flipped in two ways.
func mutations(b []byte, f func(what string, m []byte)) {
	for n := range b {
		f(fmt.Sprintf("cut to %d", n), b[:n:n])
	}
	m := append([]byte(nil), b...)
	for i := range m {
		for _, x := range []byte{1 << (i % 8), 0xff} {
			m[i] ^= x
			f(fmt.Sprintf("byte %d xor %#x", i, x), m)
			m[i] ^= x
		}
	}
}

// No damage of an object is ever served: a reader gets the original bytes or an error.
func TestSweepObject(t *testing.T) {
	b, log, trailer := object(t, 14, 200)
	ob := append(append([]byte(nil), log...), trailer...)
	last := b.Meta().Last
	if got, err := readBack(ob, 1000, last); err != nil || !bytes.Equal(got, log) {
		t.Fatalf("undamaged: %v", err)
	}
	mutations(ob, func(what string, m []byte) {
		got, err := readBack(m, 1000, last)
		if !bytes.HasPrefix(log, got) {
			t.Errorf("%s: other bytes were served", what)
		}
		if err == nil {
			t.Errorf("%s: not noticed", what)
		}
		rep, err := Verify(bytes.NewReader(m), int64(len(m)))
		if err == nil && !(what == fmt.Sprintf("cut to %d", rep.LogSize) && rep.Kind == KindLog) { // a cut between two batches leaves a good log
			t.Errorf("%s: not noticed by Verify", what)
		}
		if err != nil && !Damaged(err) && !errors.Is(err, ErrVersion) {
			t.Errorf("%s: Verify says %v", what, err)
		}
	})
}

// The same for the two files of a closed local segment.
func TestSweepFiles(t *testing.T) {
	b, log, trailer := object(t, 14, 200)
	x := parse(t, trailer)
	mutations(trailer, func(what string, m []byte) {
		if _, err := ParseTrailer(m); err == nil {
			t.Errorf(".idx, %s: not noticed", what)
		}
		if rep, err := Verify(bytes.NewReader(m), int64(len(m))); err == nil && len(m) > 0 {
			t.Errorf(".idx, %s: not noticed by Verify: %+v", what, rep)
		}
	})
	mutations(log, func(what string, m []byte) {
		if _, err := VerifyLog(bytes.NewReader(m), int64(len(m)), x); err == nil {
			t.Errorf(".log, %s: not noticed", what)
		}
		for o := int64(1000); o <= b.Meta().Last; o++ {
			pos, end := x.Lookup(o)
			spans, _ := x.SpansFrom(o, 1)
			if end > int64(len(m)) {
				continue // a short read is an error before VerifySpan is asked
			}
			if err := VerifySpan(m[pos:end], spans, end); err == nil && !bytes.Equal(m[pos:end], log[pos:end]) {
				t.Fatalf(".log, %s: offset %d is served with other bytes", what, o)
			}
		}
	})
}

// What a scan of a damaged log without index gives is a prefix of the batches,
// but for the leader epoch, which nothing covers until the segment is closed.
func TestSweepScan(t *testing.T) {
	_, log := sample(t, 8, 1)
	mutations(log, func(what string, m []byte) {
		var got []byte
		end, err := ScanLog(bytes.NewReader(m), int64(len(m)), 0, 1000, func(h batch.Header, raw []byte, pos int64) error {
			raw = append([]byte(nil), raw...)
			batch.Stamp(raw, h.BaseOffset, int32(binary.BigEndian.Uint32(log[pos+12:])))
			got = append(got, raw...)
			return nil
		})
		if !bytes.HasPrefix(log, got) || int64(len(got)) != end {
			t.Errorf("%s: wrong bytes up to %d", what, end)
		}
		if (err == nil) != (end == int64(len(m))) {
			t.Errorf("%s: ends at %d of %d with %v", what, end, len(m), err)
		}
	})
}

// reseal gives a trailer the checksums that its bytes need.
func reseal(b []byte) []byte {
	if len(b) < FooterSize {
		return b
	}
	b = append([]byte(nil), b...)
	f := b[len(b)-FooterSize:]
	copy(f, magic)
	le := binary.LittleEndian
	le.PutUint32(f[8:], version)
	le.PutUint32(f[100:], uint32(len(b)))
	for i := range sections {
		at, n := uint64(le.Uint32(f[104+12*i:])), uint64(le.Uint32(f[108+12*i:]))
		if at+n <= uint64(len(b)) {
			le.PutUint32(f[112+12*i:], crc32.Checksum(b[at:at+n], castagnoli))
		}
	}
	le.PutUint32(f[188:], crc32.Checksum(f[:188], castagnoli))
	return b
}

// FuzzTrailer: whatever parses can be used without a crash, and encodes to what parses the same.
func FuzzTrailer(f *testing.F) {
	for _, n := range []int{1, 5, 30} {
		_, _, trailer := object(f, n, 100)
		f.Add(trailer)
		f.Add(trailer[len(trailer)-FooterSize:])
	}
	_, log := sample(f, 20, 100)
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := ParseTrailer(reseal(b))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		for _, o := range []int64{-1, 0, 999, 1000, 1020, x.Meta.Base, x.Meta.Last, 1<<63 - 1} {
			pos, end := x.Lookup(o)
			if pos < 0 || end < pos || end > x.Meta.LogSize {
				t.Fatalf("offset %d at [%d,%d) of %d", o, pos, end, x.Meta.LogSize)
			}
			if spans, to := x.SpansFrom(o, 1000); len(spans) > 0 && to <= int64(len(log)) {
				_ = VerifySpan(log[spans[0].Pos:to], spans, to) // must not panic
			}
			x.LookupTime(o, 0)
			x.Aborted(0, o)
		}
		again := encodeTrailer(&x.Meta, x.spans, x.aborted, x.Producers, x.Epochs)
		y, err := ParseTrailer(again)
		if err != nil {
			t.Fatalf("encoded again: %v", err)
		}
		if fmt.Sprintf("%+v", *x) != fmt.Sprintf("%+v", *withCRC(y, x.objectCRC)) {
			t.Fatalf("got %+v\nwant %+v", y, x)
		}
	})
}

// withCRC: the same content may have had longer varints.
func withCRC(x *Index, crc uint32) *Index {
	x.objectCRC = crc
	return x
}

// FuzzScanLog: the scan ends where it says, and what it gave are whole batches in order.
func FuzzScanLog(f *testing.F) {
	_, log := sample(f, 8, 1)
	f.Add(log, int64(1000))
	f.Add(log[:len(log)-3], int64(-1))
	f.Add(append(append([]byte(nil), log...), make([]byte, 100)...), int64(1000))
	f.Fuzz(func(t *testing.T, b []byte, expect int64) {
		for at := 0; at+batch.HeaderSize <= len(b); { // get past the CRCs
			h, err := batch.Parse(b[at:])
			if err != nil || at+h.Size() > len(b) {
				break
			}
			binary.BigEndian.PutUint32(b[at+17:], crc32.Checksum(b[at+HeadSize:at+h.Size()], castagnoli))
			at += h.Size()
		}
		next, sum := expect, int64(0)
		end, err := ScanLog(bytes.NewReader(b), int64(len(b)), 0, expect, func(h batch.Header, raw []byte, pos int64) error {
			if pos != sum || h.BaseOffset < next || expect >= 0 && h.BaseOffset != next || !bytes.Equal(raw, b[pos:pos+int64(h.Size())]) {
				t.Fatalf("batch at %d: %+v, expected offset %d", pos, h, next)
			}
			sum += int64(len(raw))
			next = h.LastOffset() + 1
			return nil
		})
		if end != sum || end > int64(len(b)) || (err == nil) != (end == int64(len(b))) || err != nil && !errors.Is(err, ErrTorn) {
			t.Fatalf("ends at %d of %d after %d bytes: %v", end, len(b), sum, err)
		}
	})
}

func TestVersion(t *testing.T) {
	_, _, trailer := object(t, 3, 100)
	binary.LittleEndian.PutUint32(trailer[len(trailer)-FooterSize+8:], 2)
	if _, err := ParseTrailer(trailer); !errors.Is(err, ErrVersion) || errors.Is(err, ErrCorrupt) {
		t.Errorf("version 2: %v", err)
	}
	if _, err := Verify(bytes.NewReader(trailer), int64(len(trailer))); !errors.Is(err, ErrVersion) || Damaged(err) {
		t.Errorf("version 2: Verify says %v", err)
	}
}

func TestVerify(t *testing.T) {
	b, log, trailer := object(t, 14, 200)
	ob := append(append([]byte(nil), log...), trailer...)
	for kind, in := range map[Kind][]byte{KindLog: log, KindIndex: trailer, KindObject: ob} {
		rep, err := Verify(bytes.NewReader(in), int64(len(in)))
		m := b.Meta()
		if err != nil || rep.Kind != kind || rep.Records != m.Records || rep.Base != m.Base || rep.Last != m.Last || rep.MinTimestamp != m.MinTimestamp || rep.MaxTimestamp != m.MaxTimestamp {
			t.Errorf("%s: %+v, %v", kind, rep, err)
		}
		if kind != KindIndex && (rep.Batches != 14 || rep.LogSize != m.LogSize || rep.LogCRC != m.LogCRC) {
			t.Errorf("%s: %+v", kind, rep)
		}
	}
	// A trailer that is intact in itself but of another log.
	_, _, other := object(t, 13, 200)
	if _, err := VerifyLog(bytes.NewReader(log), int64(len(log)), parse(t, other)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("other trailer: %v", err)
	}
	m := b.Meta()
	m.LogCRC++
	lie := encodeTrailer(&m, b.spans, nil, nil, nil)
	if _, err := VerifyLog(bytes.NewReader(log), int64(len(log)), parse(t, lie)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("wrong log checksum: %v", err)
	}
	rep, err := Verify(bytes.NewReader(log[:len(log)-1]), int64(len(log)-1))
	if !errors.Is(err, ErrTorn) || rep.Batches != 13 {
		t.Errorf("torn log: %+v, %v", rep, err)
	}
	if rep, err := Verify(bytes.NewReader(nil), 0); err != nil || rep.Batches != 0 || rep.Base != -1 {
		t.Errorf("empty log: %+v, %v", rep, err)
	}
}

// Offsets that go back are damage even where all checksums are right, and so
// are spans that do not lie in the bytes.
func TestVerifySpanOrder(t *testing.T) {
	b := NewBuilder(testTP, 0, 1<<20)
	var log []byte
	for _, base := range []int64{10, 9} {
		raw, err := batch.Encode([]batch.Record{{}, {}}, batch.EncodeOptions{BaseOffset: base})
		if err != nil {
			t.Fatal(err)
		}
		h, _ := batch.Check(raw)
		b.Add(h, raw)
		log = append(log, raw...)
	}
	if err := VerifySpan(log, b.spans, b.Size()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("offsets go back: %v", err)
	}
	s := b.spans[0]
	for _, spans := range [][]Span{nil, {s, s}, {s, {Pos: 1 << 40}}, {s, {Pos: -5}}} {
		if err := VerifySpan(log, spans, b.Size()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("spans %+v: %v", spans, err)
		}
	}
	s.Base = 9
	raw := log[:len(log)/2]
	s.HeadCRC = crc32.Checksum(raw[:HeadSize], castagnoli)
	if err := VerifySpan(raw, []Span{s}, int64(len(raw))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("span of another base: %v", err)
	}
}

func TestDump(t *testing.T) {
	b, log, trailer := object(t, 5, 200)
	ob := append(append([]byte(nil), log...), trailer...)
	var out strings.Builder
	if err := Dump(&out, bytes.NewReader(ob), int64(len(ob)), DumpOptions{Name: "x", Records: true}); err != nil {
		t.Fatal(err)
	}
	h, _ := batch.Parse(log)
	for _, want := range []string{
		"Dumping x\nLog starting offset: 1000\n",
		fmt.Sprintf("baseOffset: 1000 lastOffset: 1000 count: 1 baseSequence: -1 lastSequence: -1 producerId: -1 producerEpoch: -1 partitionLeaderEpoch: 0 isTransactional: false isControl: false deleteHorizonMs: OptionalLong.empty position: 0 CreateTime: 5000 size: %d magic: 2 compresscodec: none crc: %d isvalid: true\n", h.Size(), h.CRC),
		"| offset: 1000 CreateTime: 5000 keySize: 1 valueSize: 0 sequence: -1 headerKeys: [] key: \x00 payload: \n",
		"compresscodec: gzip", "compresscodec: snappy",
		"baseOffset: 1000 lastOffset: 1008 leaderEpoch: 1 lastStableOffset: 1009 records: 9\n",
		"span: 0 position: 0 baseOffset: 1000",
		"aborted: producerId: 6 firstOffset: 1010 lastOffset: 1012 lastStableOffset: 1009\n",
		"producer: producerId: 5 producerEpoch: 1 coordinatorEpoch: -1 lastTimestamp: 77 currentTxnFirstOffset: -1\n| firstSequence: 0 lastSequence: 4 firstOffset: 1000 lastOffset: 1004 timestamp: 50\n",
		"epoch: 1 startOffset: 1007\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if n := strings.Count(out.String(), "baseOffset: ") - strings.Count(out.String(), "span: ") - 1; n != 5 {
		t.Errorf("%d batches", n)
	}
	if strings.Count(out.String(), "| offset: ") != int(b.Meta().Records) {
		t.Error("records missing")
	}
	out.Reset()
	err := Dump(&out, bytes.NewReader(log[:len(log)-5]), int64(len(log)-5), DumpOptions{})
	if !errors.Is(err, ErrTorn) || !strings.Contains(out.String(), "invalid bytes at the end, from position") {
		t.Errorf("torn: %v\n%s", err, out.String())
	}
}
