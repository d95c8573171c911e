package tiering

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

const testBlock = 16 << 10

type readRig struct {
	*Reader
	b   *hooks
	x   *memIndex
	dir string
	log []byte // of all segments
	end int64
	o   ReaderOptions
}

// newReadRig makes count segments of 50 batches (500 offsets, about 60 KB).
func newReadRig(t testing.TB, count int, change func(*ReaderOptions)) *readRig {
	t.Helper()
	r := &readRig{b: newHooks(), x: newMemIndex(), dir: t.TempDir()}
	for i := range count {
		s := makeSegment(testTP, int64(i)*500, 50, 1000+int64(i)*500, 1)
		s.put(t, r.b, r.x)
		r.log = append(r.log, s.log...)
		r.end = s.meta.Last + 1
	}
	r.o = ReaderOptions{
		Bucket: r.b, Index: r.x, FS: vfs.OS(), CacheDir: r.dir, CacheBytes: 64 << 20,
		MemoryBytes: 64 * testBlock, BlockBytes: testBlock, ReadAhead: -1, Logger: testLogger(t),
		AttemptTimeout: 2 * time.Second, Timeout: 10 * time.Second,
	}
	if change != nil {
		change(&r.o)
	}
	r.open(t)
	t.Cleanup(func() { r.Close() })
	return r
}

func (r *readRig) open(t testing.TB) {
	t.Helper()
	var err error
	if r.Reader, err = NewReader(r.o); err != nil {
		t.Fatal(err)
	}
}

func (r *readRig) reopen(t testing.TB) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r.open(t)
}

// readAll reads sequentially and returns all bytes.
func (r *readRig) readAll(ctx context.Context, maxBytes int) ([]byte, error) {
	var out []byte
	for at := int64(0); at < r.end; {
		res, err := r.Read(ctx, testTP, at, maxBytes, true)
		if err != nil {
			return out, fmt.Errorf("at %d: %w", at, err)
		}
		if res.NextOffset <= at {
			res.Release()
			return out, fmt.Errorf("no progress at %d", at)
		}
		for _, d := range res.Data {
			out = append(out, d...)
		}
		at = res.NextOffset
		res.Release()
	}
	return out, nil
}

func (r *readRig) checkAll(t *testing.T, maxBytes int) {
	t.Helper()
	got, err := r.readAll(t.Context(), maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, r.log) {
		t.Fatalf("read %d bytes, want the %d that were written", len(got), len(r.log))
	}
}

func TestReadEverything(t *testing.T) {
	for _, size := range []int{1, 3000, 20_000, 100_000, 10 << 20} {
		r := newReadRig(t, 3, nil)
		r.checkAll(t, size)
		if m := r.Stats().Memory - r.trailers.size() - r.blocks.memory(); m != 0 {
			t.Errorf("%d bytes of results not given back", m)
		}
	}
}

func TestReadFromEveryOffset(t *testing.T) {
	r := newReadRig(t, 2, nil)
	for at := int64(0); at < r.end; at++ {
		res, err := r.Read(t.Context(), testTP, at, 2500, true)
		if err != nil {
			t.Fatal(err)
		}
		h, err := batch.Check(res.Data[0])
		if err != nil || h.BaseOffset != at/10*10 {
			t.Fatalf("offset %d: batch at %d, %v", at, h.BaseOffset, err)
		}
		if res.Size > 2500 || res.Size < 1000 {
			t.Fatalf("offset %d: %d bytes", at, res.Size)
		}
		res.Release()
		res.Release() // harmless
	}
	if _, err := r.Read(t.Context(), testTP, r.end, 100, true); !errors.Is(err, ErrNoSegment) {
		t.Errorf("behind the end: %v", err)
	}
}

func TestReadMinOne(t *testing.T) {
	r := newReadRig(t, 1, nil)
	res, err := r.Read(t.Context(), testTP, 15, 10, false)
	if err != nil || res.Size != 0 || res.NextOffset != 15 {
		t.Errorf("without minOne: %d bytes, next %d, %v", res.Size, res.NextOffset, err)
	}
	res.Release()
	res, err = r.Read(t.Context(), testTP, 15, 10, true)
	if err != nil || res.Size == 0 || res.NextOffset != 20 {
		t.Errorf("with minOne: %d bytes, next %d, %v", res.Size, res.NextOffset, err)
	}
	res.Release()
}

func TestReadNeverSkipsAGap(t *testing.T) {
	r := newReadRig(t, 3, nil)
	rows := r.x.all(testTP)
	if err := r.x.Drop(t.Context(), testTP, []SegmentKey{rows[1].SegmentKey}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(t.Context(), testTP, 700, 1000, true); !errors.Is(err, ErrNoSegment) {
		t.Errorf("read of a lost row: %v", err)
	}
	res, err := r.Read(t.Context(), testTP, 499, 1<<20, true)
	if err != nil || res.NextOffset != 500 {
		t.Errorf("next %d, %v", res.NextOffset, err)
	}
	res.Release()
}

func TestBlocksAreFetchedOnce(t *testing.T) {
	r := newReadRig(t, 1, func(o *ReaderOptions) { o.ReadAhead = 1 << 20 })
	r.b.get = func(_ context.Context, _ string, _ int64, body []byte) ([]byte, error) {
		time.Sleep(5 * time.Millisecond)
		return body, nil
	}
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			got, err := r.readAll(t.Context(), 30_000)
			if err != nil || !bytes.Equal(got, r.log) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	r.b.got.Range(func(k, v any) bool {
		if n := v.(*atomic.Int64).Load(); n != 1 {
			t.Errorf("%s fetched %d times", k, n)
		}
		return true
	})
}

func TestReadOutlivesTheCall(t *testing.T) {
	r := newReadRig(t, 1, nil)
	var slow atomic.Bool
	slow.Store(true)
	r.b.get = func(ctx context.Context, _ string, _ int64, body []byte) ([]byte, error) {
		if slow.Load() {
			if err := sleep(ctx, 150*time.Millisecond); err != nil {
				return nil, err
			}
		}
		return body, nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.Read(ctx, testTP, 0, 1000, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("first read: %v", err)
	}
	waitFor(t, "the trailer to arrive", func() bool { return r.trailers.size() > 0 })
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.Read(ctx, testTP, 0, 1000, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("second read: %v", err)
	}
	waitFor(t, "the block to arrive", func() bool { return r.Stats().CacheFiles == 1 })
	gets := r.b.gets.Load()
	res, err := r.Read(t.Context(), testTP, 0, 1000, true)
	if err != nil || r.b.gets.Load() != gets {
		t.Errorf("third read: %v, %d more gets", err, r.b.gets.Load()-gets)
	}
	res.Release()
}

func TestCacheSurvivesRestart(t *testing.T) {
	r := newReadRig(t, 3, nil)
	r.checkAll(t, 50_000)
	if err := os.WriteFile(filepath.Join(r.dir, cacheTemp+"999"), []byte("unfinished"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.reopen(t)
	if _, err := os.Stat(filepath.Join(r.dir, cacheTemp+"999")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unfinished file still there: %v", err)
	}
	r.checkAll(t, 50_000)
	if s := r.Stats(); s.Gets != 3 { // the trailers
		t.Errorf("%d gets after a restart, want 3; %+v", s.Gets, s)
	}
}

func TestCacheIsBounded(t *testing.T) {
	const limit = 150 << 10
	r := newReadRig(t, 10, func(o *ReaderOptions) { o.CacheBytes = limit })
	r.checkAll(t, 50_000)
	r.Close() // waits for what is being written
	s := r.Stats()
	if s.CacheBytes > limit || s.CacheFiles == 0 || s.CacheEvicted == 0 {
		t.Errorf("stats %+v", s)
	}
	var onDisk int64
	entries, err := os.ReadDir(r.dir)
	if err != nil || len(entries) != s.CacheFiles {
		t.Fatalf("%d files, the cache says %d; %v", len(entries), s.CacheFiles, err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		onDisk += info.Size()
	}
	if onDisk > limit {
		t.Errorf("%d bytes on disk, limit %d", onDisk, limit)
	}
	r.o.CacheBytes = 60 << 10 // a smaller limit counts at the next start
	r.reopen(t)
	if s := r.Stats(); s.CacheBytes > 60<<10 {
		t.Errorf("stats %+v", s)
	}
}

// Every damage to a cached file is found and the block fetched again.
func TestDamagedCacheFiles(t *testing.T) {
	r := newReadRig(t, 1, func(o *ReaderOptions) { o.Logger = nil })
	r.checkAll(t, 50_000)
	r.Close()
	id := blockID{r.x.all(testTP)[0].Key(), 1}
	path := filepath.Join(r.dir, id.file())
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, bad []byte) {
		t.Helper()
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := openDiskCache(vfs.OS(), r.dir, 1<<30, testBlock, testLogger(t), func() time.Time { return time.Time{} })
		if err != nil {
			t.Fatal(err)
		}
		c.muted = time.Now()
		buf := make([]byte, testBlock)
		if c.get(id, buf) {
			t.Fatalf("%s: served", what)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: file is still there", what)
		}
	}
	flip := func(i int) []byte { b := bytes.Clone(good); b[i] ^= 1 << (i % 8); return b }
	for i := 0; i < len(good); i++ {
		if i > cacheKeyAt+200 && i < cacheCRCAt || i > cacheHeader+64 {
			i += 97
		}
		if i < len(good) {
			check(fmt.Sprintf("byte %d flipped", i), flip(i))
		}
	}
	for _, n := range []int{0, 1, cacheHeader - 1, cacheHeader, cacheHeader + 1, len(good) - 1} {
		check(fmt.Sprintf("cut to %d", n), good[:n])
	}
	check("longer", append(bytes.Clone(good), 0))
	other, err := os.ReadFile(filepath.Join(r.dir, blockID{id.key, 0}.file()))
	if err != nil {
		t.Fatal(err)
	}
	check("another block's file", other)

	// and through the whole reader
	if err := os.WriteFile(path, flip(cacheHeader+5000), 0o600); err != nil {
		t.Fatal(err)
	}
	r.open(t)
	r.checkAll(t, 50_000)
	if s := r.Stats(); s.Gets != 2 { // the trailer and the block
		t.Errorf("%d gets, want 2", s.Gets)
	}
}

func TestReaderFaultStorm(t *testing.T) {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(5, 6))
	draw := func(n int) int { mu.Lock(); defer mu.Unlock(); return rng.IntN(n) }
	r := newReadRig(t, 4, func(o *ReaderOptions) {
		o.ReadAhead, o.AttemptTimeout, o.Logger = 64<<10, 50*time.Millisecond, nil
	})
	r.fetcher.backoff = backoff{time.Millisecond, 5 * time.Millisecond}
	r.fetcher.gate.backoff = backoff{time.Millisecond, 5 * time.Millisecond}
	r.b.get = func(ctx context.Context, _ string, _ int64, body []byte) ([]byte, error) {
		switch draw(8) {
		case 0:
			return nil, objstore.ErrThrottled
		case 1:
			return nil, fmt.Errorf("reset: %w", objstore.ErrUnknown)
		case 2: // cut
			return body[:draw(len(body))], objstore.ErrUnknown
		case 3: // cut and silent, which the contract forbids
			return body[:draw(len(body))], nil
		case 4: // hangs
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return body, nil
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got, err := r.readAll(t.Context(), 40_000); err != nil || !bytes.Equal(got, r.log) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if s := r.Stats(); s.GetFailures == 0 {
		t.Errorf("no faults happened: %+v", s)
	}
}

// Bytes that are wrong once are fetched again; bytes that stay wrong are an
// error, and never served.
func TestWrongBytes(t *testing.T) {
	for _, where := range []string{"trailer", "data", "head"} {
		for _, always := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/always=%v", where, always), func(t *testing.T) {
				r := newReadRig(t, 1, func(o *ReaderOptions) { o.Logger = nil })
				logSize := r.x.all(testTP)[0].LogSize
				var hits atomic.Int64
				r.b.get = func(_ context.Context, _ string, offset int64, body []byte) ([]byte, error) {
					if (offset == logSize) != (where == "trailer") || hits.Add(1) > 1 && !always {
						return body, nil
					}
					at := len(body) / 2
					if where == "head" {
						at = 5 // base offset of the first batch: not under Kafka's CRC
					}
					body[at] ^= 4
					return body, nil
				}
				got, err := r.readAll(t.Context(), 10_000)
				if always {
					if !errors.Is(err, ErrDamaged) || !bytes.HasPrefix(r.log, got) {
						t.Errorf("%d bytes, %v", len(got), err)
					}
					return
				}
				if err != nil || !bytes.Equal(got, r.log) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if s := r.Stats(); s.Damaged != 1 {
					t.Errorf("stats %+v", s)
				}
				r.reopen(t) // what the disk cache kept must be good too
				r.b.get = nil
				r.checkAll(t, 10_000)
			})
		}
	}
}

func TestRowThatLies(t *testing.T) {
	for name, lie := range map[string]func(*Segment){
		"log size":  func(s *Segment) { s.LogSize-- },
		"negative":  func(s *Segment) { s.LogSize = -1 },
		"too large": func(s *Segment) { s.Size = 1 << 60 },
		"too small": func(s *Segment) { s.Size = s.LogSize },
		"longer":    func(s *Segment) { s.Size += 7; s.LogSize += 7 },
	} {
		t.Run(name, func(t *testing.T) {
			r := newReadRig(t, 1, func(o *ReaderOptions) { o.Timeout = time.Second })
			lie(&r.x.rows[testTP][0])
			if _, err := r.Read(t.Context(), testTP, 0, 1000, true); !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v, want ErrDamaged", err)
			}
		})
	}
}

func TestMemoryIsBounded(t *testing.T) {
	const limit = 32 * testBlock
	r := newReadRig(t, 6, func(o *ReaderOptions) { o.MemoryBytes = limit; o.ReadAhead = 1 << 20 })
	ctx, cancel := context.WithCancel(t.Context())
	var most atomic.Int64
	var wg sync.WaitGroup
	watch := make(chan struct{})
	go func() {
		defer close(watch)
		for ctx.Err() == nil {
			if m := r.Stats().Memory; m > most.Load() {
				most.Store(m)
			}
		}
	}()
	for i := range 24 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 0))
			for range 40 {
				at := rng.Int64N(r.end)
				res, err := r.Read(ctx, testTP, at, 50_000, true)
				if err != nil {
					t.Errorf("read: %v", err)
					return
				}
				if h, err := batch.Check(res.Data[0]); err != nil || h.BaseOffset != at/10*10 {
					t.Errorf("offset %d: %+v, %v", at, h, err)
				}
				time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
				if _, err := batch.Check(res.Data[0]); err != nil {
					t.Errorf("data changed before Release: %v", err)
				}
				res.Release()
			}
		})
	}
	wg.Wait()
	cancel()
	<-watch
	if m := most.Load(); m > limit || m < limit/4 {
		t.Errorf("used up to %d bytes, limit %d", m, limit)
	}
}

// Results that nobody releases must not stop others for ever, nor be exceeded.
func TestReadWaitsForMemory(t *testing.T) {
	r := newReadRig(t, 3, func(o *ReaderOptions) { o.MemoryBytes = 32 * testBlock })
	var held []ReadResult
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		res, err := r.Read(ctx, testTP, 0, 40_000, true)
		cancel()
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			break
		}
		held = append(held, res)
	}
	if len(held) < 2 {
		t.Errorf("only %d results at once", len(held))
	}
	for _, h := range held {
		h.Release()
	}
	r.checkAll(t, 40_000)
}

func TestReadAhead(t *testing.T) {
	r := newReadRig(t, 8, func(o *ReaderOptions) { o.ReadAhead = 128 << 10 })
	var waited atomic.Int64
	r.b.get = func(ctx context.Context, _ string, _ int64, body []byte) ([]byte, error) {
		return body, sleep(ctx, time.Millisecond)
	}
	reads := 0
	for at := int64(0); at < r.end; reads++ {
		before := r.Stats()
		res, err := r.Read(t.Context(), testTP, at, 8000, true)
		if err != nil {
			t.Fatal(err)
		}
		after := r.Stats()
		if after.BlockLoads-after.AheadLoads > before.BlockLoads-before.AheadLoads {
			waited.Add(1)
		}
		at = res.NextOffset
		res.Release()
		time.Sleep(2 * time.Millisecond) // a consumer at work
	}
	s := r.Stats()
	if n := waited.Load(); n > 3 {
		t.Errorf("%d of %d sequential reads had to begin a GET themselves", n, reads)
	}
	t.Logf("%d reads, %d began a GET, %+v", reads, waited.Load(), s)
	// random reads must not read ahead
	ahead := s.AheadLoads
	for _, at := range []int64{3000, 100, 2050, 777} {
		res, err := r.Read(t.Context(), testTP, at, 100, true)
		if err != nil {
			t.Fatal(err)
		}
		res.Release()
	}
	if s := r.Stats(); s.AheadLoads != ahead {
		t.Errorf("%d blocks read ahead of random reads", s.AheadLoads-ahead)
	}
}

func TestConcurrencyLimit(t *testing.T) {
	r := newReadRig(t, 8, func(o *ReaderOptions) { o.Concurrency = 3; o.ReadAhead = 1 << 20 })
	var now, peak atomic.Int64
	r.b.get = func(_ context.Context, _ string, _ int64, body []byte) ([]byte, error) {
		if n := now.Add(1); n > peak.Load() {
			peak.Store(n)
		}
		time.Sleep(time.Millisecond)
		now.Add(-1)
		return body, nil
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := r.readAll(t.Context(), 60_000); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if p := peak.Load(); p < 2 || p > 3 {
		t.Errorf("%d GETs at once, want 2 to 3", p)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	r := newReadRig(t, 2, nil)
	r.b.get = func(ctx context.Context, _ string, _ int64, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	done := make(chan error)
	go func() { _, err := r.Read(t.Context(), testTP, 0, 100, true); done <- err }()
	waitFor(t, "the get", func() bool { return r.b.gets.Load() > 0 })
	r.Close()
	if err := <-done; err == nil {
		t.Error("a read succeeded without bytes")
	}
	if _, err := r.Read(t.Context(), testTP, 0, 100, true); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestReaderOptions(t *testing.T) {
	if _, err := NewReader(ReaderOptions{}); err == nil {
		t.Error("no error for missing options")
	}
	if _, err := NewReader(ReaderOptions{Bucket: newHooks(), Index: newMemIndex(), MemoryBytes: 1 << 20}); err == nil {
		t.Error("no error for too little memory")
	}
}

func TestReadWithoutDiskCache(t *testing.T) {
	r := newReadRig(t, 2, func(o *ReaderOptions) { o.CacheDir = "" })
	r.checkAll(t, 30_000)
	var _ io.Closer = r
}
