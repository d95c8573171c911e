package wal_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"reflect"
	"testing"

	"github.com/cirrolog/cirrolog/storage/wal"
)

var refSample = wal.Ref{Pos: 5000, From: 4096, Size: 300_000, Rest: []byte("the end of the batch")}

// seal makes the checksum of an encoded reference right.
func seal(b []byte) []byte {
	c := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint32(b[20:], crc32.Update(crc32.Checksum(b[:20], c), c, b[24:]))
	return b
}

// A reference is read as it was written, behind other bytes too, and every byte of
// it is under its checksum.
func TestRef(t *testing.T) {
	for _, r := range []wal.Ref{refSample, {Size: 8192, Rest: []byte{}}, {Pos: 1 << 40, From: 1 << 40, Size: 1<<32 - 1, Rest: make([]byte, 4095)}} {
		b := r.Append([]byte("before"))
		if got, err := wal.ParseRef(b[6:]); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%+v became %+v, %v", r, got, err)
		}
	}
	b := refSample.Append(nil)
	for i := range b {
		for bit := range 8 {
			v := bytes.Clone(b)
			v[i] ^= 1 << bit
			if r, err := wal.ParseRef(v); err == nil {
				t.Fatalf("bit %d of byte %d flipped: %+v", bit, i, r)
			}
		}
	}
	for n := range b {
		if r, err := wal.ParseRef(b[:n]); err == nil {
			t.Fatalf("cut to %d bytes: %+v", n, r)
		}
	}
}

// What no program writes is refused even with a right checksum.
func TestRefRefused(t *testing.T) {
	for name, change := range map[string]func(b []byte){
		"negative position": func(b []byte) { binary.LittleEndian.PutUint64(b, 1<<63) },
		"negative from":     func(b []byte) { binary.LittleEndian.PutUint64(b[8:], 1<<63) },
		"from behind":       func(b []byte) { binary.LittleEndian.PutUint64(b[8:], 8192) },
		"smaller than rest": func(b []byte) { binary.LittleEndian.PutUint32(b[16:], uint32(len(refSample.Rest)-1)) },
	} {
		b := refSample.Append(nil)
		change(b)
		if r, err := wal.ParseRef(seal(b)); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if _, err := wal.ParseRef(seal(refSample.Append(nil))); err != nil {
		t.Error(err)
	}
}

// A reference that is taken is one that could have been written. The checksum is
// made right, so that the fuzzer comes behind it.
func FuzzRef(f *testing.F) {
	f.Add(refSample.Append(nil))
	f.Add((&wal.Ref{Size: 8192}).Append(nil))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, right := range []bool{false, true} {
			if right && len(b) >= 32 {
				b = seal(bytes.Clone(b))
			}
			r, err := wal.ParseRef(b)
			if err != nil {
				continue
			}
			if r.Pos < 0 || r.From < 0 || r.From > r.Pos || r.Size < len(r.Rest) {
				t.Fatalf("%+v", r)
			}
			again, err := wal.ParseRef(r.Append(nil))
			if err != nil || !reflect.DeepEqual(again, r) {
				t.Fatalf("%+v became %+v, %v", r, again, err)
			}
		}
	})
}
