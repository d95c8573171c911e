package s3core_test

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/internal/s3core"
)

// sink takes puts and gives 16 MiB objects; it runs in the same process, so
// the CPU time of the benchmarks is that of both ends.
func sink(b *testing.B, data []byte) string {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"x"`)
		if r.Method == http.MethodPut {
			_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 1<<20))
			return
		}
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data)
	}))
	b.Cleanup(srv.Close)
	return srv.URL
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchmark(b *testing.B, f func(b *testing.B, bkt bucket, data []byte)) {
	data := make([]byte, 16<<20)
	for i := range data {
		data[i] = byte(i * i >> 9)
	}
	for name, open := range drivers() {
		b.Run(name, func(b *testing.B) {
			bkt, err := open(s3core.Options{Bucket: "bkt", Endpoint: sink(b, data), AccessKey: "key", SecretKey: "secretsecret"})
			if err != nil {
				b.Fatal(err)
			}
			defer bkt.Close()
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			start := cpu()
			f(b, bkt, data)
			b.ReportMetric((cpu()-start).Seconds()/(float64(b.N)*float64(len(data))/(1<<30)), "cpu-s/GiB")
		})
	}
}

func BenchmarkPut16MiB(b *testing.B) {
	benchmark(b, func(b *testing.B, bkt bucket, data []byte) {
		sum := crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
		for b.Loop() {
			if _, err := bkt.Put(context.Background(), "k", bytes.NewReader(data), objstore.PutOptions{CRC32C: &sum, IfNoneMatch: true}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkGet16MiB(b *testing.B) {
	benchmark(b, func(b *testing.B, bkt bucket, data []byte) {
		buf := make([]byte, 1<<20)
		for b.Loop() {
			r, _, err := bkt.Get(context.Background(), "k", 0, -1)
			if err != nil {
				b.Fatal(err)
			}
			n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf)
			if err != nil || n != int64(len(data)) {
				b.Fatal(n, err)
			}
			if err := r.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
