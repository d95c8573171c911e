package main

// The whole path: produce at a steady pace, one consumer at the tail, upload.
import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// uploadPiece is Cirrolog's default segment size.
const uploadPiece = 64 << 20

// upload puts what was committed, by pieces, from the WAL's file.
func (r *ring) upload(file, url string) {
	size := int64(len(r.mem))
	for n := int64(0); ; n++ {
		for r.written.Load() < (n+1)*uploadPiece {
			time.Sleep(5 * time.Millisecond)
		}
		f, err := os.Open(file)
		must(err)
		_, err = f.Seek(n*uploadPiece%size, io.SeekStart)
		must(err)
		req, err := http.NewRequest(http.MethodPut, url+"/"+strconv.FormatInt(n, 10), f)
		must(err)
		req.ContentLength = uploadPiece
		resp, err := http.DefaultClient.Do(req)
		must(err)
		resp.Body.Close()
	}
}

func uploaded(url string) int64 {
	if url == "" {
		return 0
	}
	resp, err := http.Get(url)
	must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(err)
	n, _ := strconv.ParseInt(string(b), 10, 64)
	return n
}

// full measures the server until the last record was consumed and the uploads
// have been at rest for a second, which costs it nothing.
func (k *kraw) full(settle string) {
	c0, p0, u0 := selfCPU(), pidCPU(k.pid), uploaded(settle)
	var want atomic.Int64
	want.Store(-1)
	done := make(chan int64)
	go func() { done <- k.follow(&want) }()
	d, l, by := k.produce()
	want.Store(by / int64(k.rec))
	got := <-done
	c1 := selfCPU()
	up := uploaded(settle)
	for rest := 0; settle != "" && rest < 10; rest++ {
		time.Sleep(100 * time.Millisecond)
		if n := uploaded(settle); n != up {
			up, rest = n, 0
		}
	}
	gb := float64(by) / GiB
	fmt.Printf("FULL parts=%d: %6.0f MB/s %8.0f rec/s broker %.3f client %.3f CPU-s/GiB rss %.0fMB | uploaded %.2f consumed %.2f of it | req %s\n", k.parts, float64(by)/1e6/d.Seconds(),
		float64(by)/float64(k.rec)/d.Seconds(), pidCPU(k.pid).sub(p0).tot()/gb, c1.sub(c0).tot()/gb, pidRSS(k.pid), float64(up-u0)/float64(by), float64(got*int64(k.rec))/float64(by), lat(l))
}

// follow consumes partition 0 from its tail until it has as many records as
// want says, once that is known.
func (k *kraw) follow(want *atomic.Int64) (records int64) {
	cn, err := net.Dial("tcp", k.addr)
	must(err)
	defer cn.Close()
	br := bufio.NewReaderSize(cn, 64<<10)
	offs := []int64{0}
	var buf []byte
	for n := want.Load(); n < 0 || records < n; n = want.Load() {
		_, err := cn.Write(k.fetchReq([]int{0}, offs, 100, 1))
		must(err)
		buf, err = readResp(br, buf)
		must(err)
		parseFetch(buf, func(_ int32, ec int16, _ int64, recs []byte) {
			if ec != 0 {
				panic(fmt.Sprint("fetch err ", ec))
			}
			if next, n, _ := walk(recs); next > 0 {
				offs[0] = next
				records += n
			}
		})
	}
	return records
}
