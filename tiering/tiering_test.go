package tiering

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

func TestSegmentKey(t *testing.T) {
	for _, k := range []SegmentKey{
		{TP: testTP, Base: 0, Last: 0, Epoch: 0, Incarnation: testInc},
		{TP: testTP, Base: 1<<62 + 1, Last: 1<<63 - 1, Epoch: 1<<31 - 1, Incarnation: testInc, Generation: 1<<63 - 1},
	} {
		got, err := ParseSegmentKey(k.Key())
		if err != nil || got != k {
			t.Errorf("%s: %+v, %v", k.Key(), got, err)
		}
		if !strings.HasPrefix(k.Key(), PartitionPrefix(k.TP)) {
			t.Errorf("%s is not under %s", k.Key(), PartitionPrefix(k.TP))
		}
	}
	good := SegmentKey{TP: testTP, Base: 5, Last: 9, Epoch: 3, Incarnation: testInc}.Key()
	for _, bad := range []string{
		"", "data/", strings.TrimPrefix(good, DataPrefix), good + "-g0", good + "-g01", good + "-x1", good + "/", good + "-g1-g2",
		strings.Replace(good, "/7/", "/07/", 1), strings.Replace(good, "/7/", "/-7/", 1), strings.Replace(good, "-3-", "-+3-", 1),
		strings.Replace(good, "-3-", "--3-", 1), strings.Replace(good, "0005-", "5-", 1), strings.ToLower(good),
		SegmentKey{TP: testTP, Base: 9, Last: 5, Incarnation: testInc}.Key(), SegmentKey{TP: testTP, Base: 1, Last: 5, Epoch: -1, Incarnation: testInc}.Key(),
	} {
		if k, err := ParseSegmentKey(bad); err == nil {
			t.Errorf("%q parsed as %+v", bad, k)
		}
	}
}

func FuzzParseSegmentKey(f *testing.F) {
	f.Add(SegmentKey{TP: testTP, Base: 5, Last: 9, Epoch: 3, Incarnation: testInc}.Key())
	f.Add(SegmentKey{TP: ids.TopicPartition{}, Base: 5, Last: 9, Epoch: 3, Incarnation: testInc, Generation: 7}.Key())
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseSegmentKey(s)
		if err == nil && k.Key() != s {
			t.Errorf("%q parsed as %q", s, k.Key())
		}
	})
}

// No header but the block's own is accepted, whatever its checksum says.
func FuzzCacheHeader(f *testing.F) {
	c := &diskCache{blockSize: testBlock, fs: vfs.OS(), now: time.Now}
	id := blockID{"data/some/key", 3}
	data := []byte("the bytes of a block")
	f.Add(c.header(id, data))
	f.Add(c.header(blockID{"data/other", 3}, data))
	f.Fuzz(func(t *testing.T, h []byte) {
		if len(h) < cacheHeader {
			return
		}
		h = bytes.Clone(h[:cacheHeader])
		binary.LittleEndian.PutUint32(h[cacheCRCAt:], crc32.Checksum(h[:cacheCRCAt], castagnoli()))
		crc, err := c.checkHeader(h, id, len(data))
		if err == nil && crc == crc32.Checksum(data, castagnoli()) && !bytes.Equal(h[:cacheKeyAt+len(id.key)], c.header(id, data)[:cacheKeyAt+len(id.key)]) {
			t.Errorf("accepted %x", h[:64])
		}
	})
}
