package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/localstack/e2e/faultproxy"
	"github.com/cirrolog/cirrolog/localstack/minio"
)

// envSeconds reads a duration in seconds.
func envSeconds(t *testing.T, name string, def time.Duration) time.Duration {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want seconds", name, s)
	}
	return time.Duration(n) * time.Second
}

// Memory of the nodes here. What `serve` may hold is the sum of: the memory
// tail, the buffers of reads from disk, the tiered reader, and the requests in
// flight, which are at most one of loadRequest per producing connection here.
const (
	tailMemory  = 32 << 20
	readMemory  = 32 << 20
	cacheMemory = 128 << 20
	loadRequest = 8 << 20 // --max-frame
	// runtimeMemory is the allowance beside it: program text and stacks, the
	// Go heap of metadata, indexes and HTTP clients with as much garbage again
	// (GOGC=100), two 4 MiB staging buffers, one for the cleaner, and what an
	// upload buffers.
	runtimeMemory = 128 << 20
)

func memoryArgs() []string {
	return []string{"--memory-tail", "32MiB", "--read-memory", "32MiB", "--cache-memory", "128MiB", "--max-frame", "8MiB"}
}

// fixture is a node on a bucket behind a fault proxy, with one topic under load.
type fixture struct {
	t      *testing.T
	proxy  *faultproxy.Proxy
	node   *Node
	load   *load
	budget int64 // of memory

	stop      context.CancelFunc
	producers group
	readers   group
	watchers  group
	stopRead  context.CancelFunc

	tail, history, passes, errs atomic.Int64
	peakRSS, peakDisk           atomic.Int64
	peakRoutines                atomic.Int64
}

const (
	faultTopic = "faults"
	// idleRoutines is how many more goroutines there may be after the load than
	// before: two for each idle connection to the bucket, of which at most 16
	// reads and 4 uploads at once leave one.
	idleRoutines = 2*20 + 10
)

// newFixture starts a node whose segments are 1 MiB and whose bucket is read
// again and again, because the block cache is small.
func newFixture(t *testing.T, e minio.Endpoint, driver string, partitions int32, producers int, args ...string) *fixture {
	t.Helper()
	return newFixtureOn(t, "", e, driver, partitions, producers, args...)
}

// newFixtureOn is newFixture with the node's disk in a directory.
func newFixtureOn(t *testing.T, disk string, e minio.Endpoint, driver string, partitions int32, producers int, args ...string) *fixture {
	t.Helper()
	addr := freeAddr(t)
	proxy, err := faultproxy.New(addr, e.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	through := e
	through.URL = proxy.URL()
	url, env := bucketOn(through, driver)
	f := &fixture{t: t, proxy: proxy, load: newLoad(faultTopic, partitions, producers),
		budget: tailMemory + readMemory + cacheMemory + int64(producers)*loadRequest}
	f.node = NewNode(t, NodeOptions{Disk: disk, Env: env, Args: append(append(memoryArgs(), "--bucket", url, "--cache-size", "16MiB", "--retention-interval", "500ms"), args...)})
	createTopic(t, f.node, faultTopic, partitions, map[string]string{"segment.bytes": "1048576", "local.retention.bytes": "2097152"})
	return f
}

// start begins to produce at speed bytes per second in all, to read both ends,
// and to measure the process.
func (f *fixture) start(speed float64) {
	f.t.Helper()
	wctx, stopWatch := context.WithCancel(context.Background())
	pctx, stop := context.WithCancel(wctx)
	rctx, stopRead := context.WithCancel(wctx)
	f.stop, f.stopRead = stop, stopRead
	n := len(f.load.books[0])
	for i := range n {
		f.producers.Go(func() error { return f.load.produce(pctx, f.node.Kafka, i, speed/float64(n), 3*time.Minute) })
	}
	f.readers.Go(func() error { return f.load.readTail(rctx, f.node.Kafka, &f.tail, &f.errs) })
	f.readers.Go(func() error {
		return f.load.readHistory(rctx, f.node.Kafka, &f.history, &f.passes, &f.errs)
	})
	f.watchers.Go(func() error { f.watch(wctx); return nil })
	f.t.Cleanup(func() {
		stop()
		stopWatch()
		_ = errors.Join(f.producers.Wait(), f.readers.Wait(), f.watchers.Wait())
	})
}

// watch samples memory, disk and goroutines until ctx ends.
func (f *fixture) watch(ctx context.Context) {
	pid := f.node.Pid()
	for i := 0; ctx.Err() == nil; i++ {
		if now, _, err := rss(pid); err == nil {
			f.peakRSS.Store(max(f.peakRSS.Load(), now))
		}
		f.peakDisk.Store(max(f.peakDisk.Load(), diskUse(f.node)))
		if i%10 == 0 {
			f.peakRoutines.Store(max(f.peakRoutines.Load(), int64(f.routines(ctx))))
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// diskUse returns the bytes that ring and logs take on the disk: the larger of
// a file's length and its blocks counts, but never twice.
func diskUse(n *Node) (sum int64) {
	for _, dir := range []string{"wal", "logs"} {
		_ = filepath.WalkDir(filepath.Join(n.Dir, dir), func(_ string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				if info, err := d.Info(); err == nil { // else just removed
					sum += info.Size()
				}
			}
			return nil
		})
	}
	return sum
}

// page returns a page of the admin port, whatever its status.
func (f *fixture) page(ctx context.Context, path string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.node.Admin+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// routines returns the number of goroutines of the node, 0 when it does not tell.
func (f *fixture) routines(ctx context.Context) (n int) {
	_, body, err := f.page(ctx, "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return 0
	}
	if _, err := fmt.Sscanf(body, "goroutine profile: total %d", &n); err != nil {
		return 0
	}
	return n
}

func (f *fixture) metric(name string, with ...string) float64 {
	f.t.Helper()
	return metricOf(f.t, f.node, name, with...)
}

// metricOf returns the sum of the samples of a node's metric whose labels hold what is in with.
func metricOf(t testing.TB, n *Node, name string, with ...string) (sum float64) {
	t.Helper()
	resp, err := http.Get("http://" + n.Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
next:
	for lines.Scan() {
		series, value, ok := strings.Cut(lines.Text(), " ")
		if base, _, _ := strings.Cut(series, "{"); !ok || base != name {
			continue
		}
		for _, w := range with {
			if !strings.Contains(series, w) {
				continue next
			}
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("metric %s: %v", lines.Text(), err)
		}
		sum += v
	}
	return sum
}

// speed returns the acknowledged bytes per second over d.
func (f *fixture) speed(d time.Duration) float64 {
	before := f.load.acked.Load()
	time.Sleep(d)
	return float64(f.load.acked.Load()-before) / d.Seconds()
}

// caughtUp waits until everything closed is in the bucket and indexed.
func (f *fixture) caughtUp(limit time.Duration) time.Duration {
	f.t.Helper()
	began := time.Now()
	eventually(f.t, limit, "all closed segments in the bucket", func() bool {
		f.node.MustRun()
		for _, s := range f.node.Storage(faultTopic) {
			if s.ClosedNotTiered > 0 {
				return false
			}
		}
		return true
	})
	return time.Since(began)
}

// finish ends the load and checks what was written, and that the node let go of
// what it held for it.
func (f *fixture) finish(idle int) {
	t := f.t
	t.Helper()
	step := stopwatch(t)
	f.stop()
	if err := f.producers.Wait(); err != nil {
		t.Error(err)
	}
	step("producers ended")
	f.stopRead()
	if err := f.readers.Wait(); err != nil {
		t.Errorf("a reader got what was not written: %v", err)
	}
	step("readers ended")
	for _, s := range f.node.Storage(faultTopic) {
		if want := int64(f.load.records(s.Partition)); s.LogStart != 0 || s.HighWatermark != want {
			t.Errorf("partition %d is from %d to %d, acknowledged were %d", s.Partition, s.LogStart, s.HighWatermark, want)
		}
	}
	f.load.check(t, f.node.Kafka, 2*time.Minute)
	step("read from offset 0")
	f.node.MustRun()
	_, peak, err := rss(f.node.Pid())
	if err != nil {
		t.Error(err)
	}
	if peak = max(peak, f.peakRSS.Load()); peak > f.budget+runtimeMemory {
		t.Errorf("resident memory was %d MiB, the budget is %d MiB and %d MiB for the runtime", peak>>20, f.budget>>20, runtimeMemory>>20)
	}
	n := 0
	eventually(t, 30*time.Second, "goroutines ended", func() bool {
		n = f.routines(context.Background())
		return n > 0 && n <= idle+idleRoutines
	})
	step("idle again")
	counts, requests := f.proxy.Counts()
	t.Logf("%d MiB acknowledged; %d records read at the tail, %d of history in %d whole passes, %d fetch errors; %d bucket requests, faults %v",
		f.load.acked.Load()>>20, f.tail.Load(), f.history.Load(), f.passes.Load(), f.errs.Load(), requests, counts)
	t.Logf("peaks: %d MiB resident of %d + %d, %d goroutines (%d idle), %d MiB of disk",
		peak>>20, f.budget>>20, runtimeMemory>>20, f.peakRoutines.Load(), idle, f.peakDisk.Load()>>20)
}

const (
	faultSpeed = 6 << 20 // bytes per second
	// catchUp bounds what uploads take after the last fault: a lost answer is
	// waited for up to 30 s, then comes a wait of at most 30 s.
	catchUp = 75 * time.Second
)

// Faults of the bucket under load, FAULT_SECONDS long: nothing acknowledged is
// lost or there twice, readers never get wrong bytes, memory and goroutines
// stay bounded, and uploads catch up.
func TestFaults(t *testing.T) {
	t.Parallel()
	length := envSeconds(t, "FAULT_SECONDS", 15*time.Second)
	for _, driver := range []string{"s3", "minio"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, minio.Start(t), driver, 4, 2)
			idle := f.routines(context.Background())
			f.start(faultSpeed)
			eventually(t, time.Minute, "segments in the bucket and read back", func() bool { return f.passes.Load() > 0 && f.metric("cirrolog_fetch_tier_total", `tier="remote"`) > 0 })
			f.proxy.Set(faultproxy.Rates{BusyEvery: 3 * time.Second, BusyFor: time.Second, Slow: .1, Delay: 2 * time.Second,
				Lost: .05, Hold: min(length/5, 40*time.Second), Reset: .05, Cut: .2})
			began, read := f.load.acked.Load(), f.history.Load()
			time.Sleep(length)
			f.node.MustRun()
			acked, read := f.load.acked.Load()-began, f.history.Load()-read
			f.proxy.Set(faultproxy.Rates{})
			t.Logf("during the faults: %.1f MB/s acknowledged, %d records of history read, %d MiB not tiered", float64(acked)/1e6/length.Seconds(), read, int64(f.metric("cirrolog_tier_lag_bytes"))>>20)
			f.stop()
			t.Logf("uploads caught up after %.1f s", f.caughtUp(catchUp).Seconds())
			counts, _ := f.proxy.Counts()
			for _, fault := range []faultproxy.Fault{faultproxy.Busy, faultproxy.Slow, faultproxy.Lost, faultproxy.Cut, faultproxy.Reset} {
				if counts[fault] == 0 {
					t.Errorf("the bucket never was %s", fault)
				}
			}
			if acked == 0 || read == 0 {
				t.Errorf("nothing went on meanwhile: %d bytes acknowledged, %d records read", acked, read)
			}
			f.finish(idle)
		})
	}
}
