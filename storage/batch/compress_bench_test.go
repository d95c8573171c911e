package batch_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cirrolog/cirrolog/storage/batch"
)

// What it costs to pack a batch again, as compaction does.
func BenchmarkCompress(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10, 1 << 20} {
		raw := bytes.Repeat([]byte("some value that shrinks well, "), size/30)
		for _, c := range codecs {
			b.Run(fmt.Sprintf("%s/%d", c, size), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(raw)))
				for b.Loop() {
					if _, err := batch.Compress(c, raw, true); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
