package tiering

import (
	"testing"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// BenchmarkReplay reads 64 MiB from a bucket in memory, 1 MiB a read.
func BenchmarkReplay(b *testing.B) {
	bucket, index := objstore.NewMem(), newMemIndex()
	var end, size int64
	for s := range 4 {
		var batches [][]byte
		for i := range 16 {
			batches = append(batches, makeBatch(int64(s*16+i)*1000, 1000, 0, 1024, 1))
		}
		seg := segmentOf(testTP, int64(s)*16000, batches...)
		seg.put(b, bucket, index)
		end, size = seg.meta.Last+1, size+seg.meta.LogSize
	}
	for _, cache := range []string{"memory", "disk"} {
		b.Run(cache, func(b *testing.B) {
			o := ReaderOptions{Bucket: bucket, Index: index}
			if cache == "disk" {
				o.FS, o.CacheDir = vfs.OS(), b.TempDir()
			}
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				r, err := NewReader(o)
				if err != nil {
					b.Fatal(err)
				}
				for at := int64(0); at < end; {
					res, err := r.Read(b.Context(), testTP, at, 1<<20, true)
					if err != nil {
						b.Fatal(err)
					}
					at = res.NextOffset
					res.Release()
				}
				if err := r.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
