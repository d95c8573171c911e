package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

const big = 900 << 10 // bytes of a big value

// header of a record; a nil value is null.
type header struct {
	key   string
	value []byte
}

// record is one of the records that all drivers make, by its index; nil is null.
type record struct {
	key, value []byte
	headers    []header
}

func makeRecord(i int) (r record) {
	if i%4 != 0 {
		r.key = []byte("k" + strconv.Itoa(i))
	}
	if i%50 != 7 {
		size := i * 7919 % 200
		if i%10000 == 5000 {
			size = big
		}
		r.value = []byte(strconv.Itoa(i) + " é " + filler(i, size))
	}
	if i%3 == 0 {
		r.headers = []header{{"n", []byte(strconv.Itoa(i))}, {"n", []byte("again")}, {"empty", []byte{}}, {"null", nil}}
	}
	return r
}

// filler is size characters that shrink to about half: SHA-256 sums in hex.
func filler(i, size int) string {
	var b strings.Builder
	for j := 0; b.Len() < size; j++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d:%d", i, j))
		b.WriteString(hex.EncodeToString(sum[:]))
	}
	return b.String()[:size]
}

// read is a record that was consumed.
type read struct {
	partition int32
	offset    int64
	record
}

// hash is the first 16 hex digits of the SHA-256 of partition i32, offset i64,
// key, value, number of headers i32, and of each its name and value;
// big-endian, bytes with an i32 length in front, -1 for null.
func (r read) hash() string {
	b := binary.BigEndian.AppendUint32(nil, uint32(r.partition))
	b = binary.BigEndian.AppendUint64(b, uint64(r.offset))
	b = appendBytes(appendBytes(b, r.key), r.value)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.headers)))
	for _, h := range r.headers {
		b = appendBytes(appendBytes(b, []byte(h.key)), h.value)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

func appendBytes(b, v []byte) []byte {
	if v == nil {
		return binary.BigEndian.AppendUint32(b, ^uint32(0))
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
}
