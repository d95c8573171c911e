package clients

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	bigValue = 900 << 10 // bytes of a big value
	bigEvery = 10_000    // one of so many records has one
	nobody   = "\\N"     // stands for null on the lines of Kafka's console tools
)

// made is the record that drivers make for an index; nil is null.
type made struct {
	key, value []byte
	headers    []kgo.RecordHeader
}

// makeRecord makes the record of an index, as README.md says it.
func makeRecord(i int) (m made) {
	if i%4 != 0 {
		m.key = fmt.Appendf(nil, "k%d", i)
	}
	if i%50 != 7 {
		size := i * 7919 % 200
		if i%bigEvery == bigEvery/2 {
			size = bigValue
		}
		m.value = fmt.Appendf(nil, "%d é %s", i, filler(i, size))
	}
	if i%3 == 0 {
		m.headers = []kgo.RecordHeader{{Key: "n", Value: fmt.Append(nil, i)}, {Key: "n", Value: []byte("again")}, {Key: "empty", Value: []byte{}}, {Key: "null"}}
	}
	return m
}

// filler is size characters that shrink to about half.
func filler(i, size int) string {
	var b strings.Builder
	for j := 0; b.Len() < size; j++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d:%d", i, j))
		b.WriteString(hex.EncodeToString(sum[:]))
	}
	return b.String()[:size]
}

// index is the index of a record that was read: from its value, or its key.
func index(r *kgo.Record) (int, error) {
	if r.Value != nil {
		head, _, _ := bytes.Cut(r.Value[:min(20, len(r.Value))], []byte{' '})
		return strconv.Atoi(string(head))
	}
	if len(r.Key) < 2 {
		return 0, errors.New("neither key nor value")
	}
	return strconv.Atoi(string(r.Key[1:]))
}

// differs tells where a record is not what it was made; "" if nowhere.
func (m made) differs(r *kgo.Record) string {
	same := func(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }
	switch {
	case !same(m.key, r.Key):
		return fmt.Sprintf("key %q, want %q", r.Key, m.key)
	case !same(m.value, r.Value):
		return fmt.Sprintf("value %.60q of %d bytes, want %.60q of %d", r.Value, len(r.Value), m.value, len(m.value))
	case len(m.headers) != len(r.Headers):
		return fmt.Sprintf("%d headers, want %d", len(r.Headers), len(m.headers))
	}
	for i, h := range m.headers {
		if h.Key != r.Headers[i].Key || !same(h.Value, r.Headers[i].Value) {
			return fmt.Sprintf("header %q=%q, want %q=%q", r.Headers[i].Key, r.Headers[i].Value, h.Key, h.Value)
		}
	}
	return ""
}

// hash is the sum that drivers print of a record they consumed, see README.md.
func hash(partition int32, offset int64, m made) string {
	b := binary.BigEndian.AppendUint32(nil, uint32(partition))
	b = binary.BigEndian.AppendUint64(b, uint64(offset))
	b = appendSized(appendSized(b, m.key), m.value)
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.headers)))
	for _, h := range m.headers {
		b = appendSized(appendSized(b, []byte(h.Key)), h.Value)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

func appendSized(b, v []byte) []byte {
	if v == nil {
		return binary.BigEndian.AppendUint32(b, ^uint32(0))
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
}
