package tiering

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	testTopic = ids.TopicID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	testTP    = ids.TopicPartition{Topic: testTopic, Partition: 7}
	testInc   = ids.Incarnation("01K00000000000000000000000")
)

// makeBatch returns an uncompressed batch of n records with values of size
// bytes; record i has timestamp ts+i.
func makeBatch(base int64, n int, ts int64, size int, epoch int32) []byte {
	rng := rand.New(rand.NewPCG(uint64(base), 1))
	var recs []byte
	for i := range n {
		value := make([]byte, size)
		for j := range value {
			value[j] = byte(rng.Uint32())
		}
		r := []byte{0}
		r = binary.AppendVarint(r, int64(i))
		r = binary.AppendVarint(r, int64(i))
		r = binary.AppendVarint(r, -1)
		r = binary.AppendVarint(r, int64(size))
		r = append(r, value...)
		r = binary.AppendVarint(r, 0)
		recs = append(binary.AppendVarint(recs, int64(len(r))), r...)
	}
	b := make([]byte, batch.HeaderSize, batch.HeaderSize+len(recs))
	be := binary.BigEndian
	be.PutUint32(b[8:], uint32(batch.HeaderSize-batch.LogOverhead+len(recs)))
	b[16] = 2
	be.PutUint32(b[23:], uint32(n-1))
	be.PutUint64(b[27:], uint64(ts))
	be.PutUint64(b[35:], uint64(ts+int64(n)-1))
	be.PutUint64(b[43:], ^uint64(0))
	be.PutUint16(b[51:], ^uint16(0))
	be.PutUint32(b[53:], ^uint32(0))
	be.PutUint32(b[57:], uint32(n))
	b = append(b, recs...)
	be.PutUint32(b[17:], crc32.Checksum(b[batch.HeadSize:], crc32.MakeTable(crc32.Castagnoli)))
	batch.Stamp(b, base, epoch)
	return b
}

// testSegment is a segment as bytes.
type testSegment struct {
	meta    segment.Meta
	log     []byte
	object  []byte
	crc     uint32
	batches [][]byte
}

// makeSegment makes a segment of batches of 10 records of 100 bytes.
func makeSegment(tp ids.TopicPartition, base int64, batches int, ts int64, epoch int32) *testSegment {
	bs := make([][]byte, batches)
	for i := range bs {
		bs[i] = makeBatch(base+int64(i)*10, 10, ts+int64(i)*10, 100, epoch)
	}
	return segmentOf(tp, base, bs...)
}

func segmentOf(tp ids.TopicPartition, base int64, batches ...[]byte) *testSegment {
	s := &testSegment{batches: batches}
	b := segment.NewBuilder(tp, base, 4096)
	for _, raw := range batches {
		h, err := batch.Check(raw)
		if err != nil {
			panic(err)
		}
		b.Add(h, raw)
		s.log = append(s.log, raw...)
	}
	trailer := b.Trailer(b.Meta().Last+1, nil, []segment.ProducerState{{ProducerID: 5, TxnFirstOffset: -1}})
	s.meta = b.Meta()
	s.meta.LastStable = s.meta.Last + 1
	s.object = append(slices.Clone(s.log), trailer...)
	s.crc = b.ObjectCRC(trailer)
	return s
}

func (s *testSegment) row() Segment {
	m := s.meta
	return Segment{
		SegmentKey: SegmentKey{TP: m.TP, Base: m.Base, Last: m.Last, Epoch: m.Epoch, Incarnation: testInc},
		Size:       int64(len(s.object)), LogSize: m.LogSize, Records: m.Records,
		MinTimestamp: m.MinTimestamp, MaxTimestamp: m.MaxTimestamp, LastStable: m.LastStable,
	}
}

// put puts the object and its row.
func (s *testSegment) put(t testing.TB, b objstore.Writer, x Index) Segment {
	t.Helper()
	return s.putAs(t, b, x, s.row())
}

func (s *testSegment) putAs(t testing.TB, b objstore.Writer, x Index, row Segment) Segment {
	t.Helper()
	if _, err := b.Put(t.Context(), row.Key(), bytes.NewReader(s.object), objstore.PutOptions{IfNoneMatch: true}); err != nil {
		t.Fatal(err)
	}
	if x != nil {
		if err := x.Add(t.Context(), row); err != nil {
			t.Fatal(err)
		}
	}
	return row
}

// source serves a testSegment to the uploader.
type source struct {
	*bytes.Reader
	s      *testSegment
	closed *atomic.Int64
}

func (s *source) Size() int64      { return int64(len(s.s.object)) }
func (s *source) CRC32C() uint32   { return s.s.crc }
func (s *source) Segment() Segment { r := s.s.row(); r.Incarnation = ""; r.Size = 0; return r }
func (s *source) Close() error     { s.closed.Add(1); return nil }

// fakeLocal is the local tier: segments that are closed and not tiered.
type fakeLocal struct {
	mu     sync.Mutex
	segs   []LocalSegment
	tiered []Segment
	opened atomic.Int64
	closed atomic.Int64
	onTier func(Segment)
}

func (l *fakeLocal) add(segs ...*testSegment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range segs {
		l.segs = append(l.segs, LocalSegment{
			TP: s.meta.TP, Base: s.meta.Base, Last: s.meta.Last, Bytes: int64(len(s.object)), ClosedAt: time.Now().Add(-time.Minute),
			Open: func() (Source, error) {
				l.opened.Add(1)
				return &source{bytes.NewReader(s.object), s, &l.closed}, nil
			},
		})
	}
}

func (l *fakeLocal) Closed(limit int) []LocalSegment {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.segs[:min(limit, len(l.segs))])
}

func (l *fakeLocal) Lag() (lag Lag) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segs {
		lag.Segments++
		lag.Bytes += s.Bytes
		if lag.Oldest.IsZero() || s.ClosedAt.Before(lag.Oldest) {
			lag.Oldest = s.ClosedAt
		}
	}
	return lag
}

func (l *fakeLocal) Tiered(s Segment) {
	if l.onTier != nil {
		l.onTier(s)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tiered = append(l.tiered, s)
	l.segs = slices.DeleteFunc(l.segs, func(c LocalSegment) bool { return c.TP == s.TP && c.Last <= s.Last })
}

func (l *fakeLocal) left() int { return len(l.Closed(1 << 20)) }

// memIndex is an Index in memory.
type memIndex struct {
	mu      sync.Mutex
	rows    map[ids.TopicPartition][]Segment
	queries int
	onAdd   func(Segment) error
	onDrop  func([]SegmentKey) error
}

func newMemIndex() *memIndex { return &memIndex{rows: map[ids.TopicPartition][]Segment{}} }

func (x *memIndex) Segments(_ context.Context, tp ids.TopicPartition, from int64, limit int) ([]Segment, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.queries++
	var out []Segment
	for _, r := range x.rows[tp] {
		if r.Last >= from && len(out) < limit {
			out = append(out, r)
		}
	}
	return out, nil
}

func (x *memIndex) Add(_ context.Context, s Segment) error {
	if x.onAdd != nil {
		if err := x.onAdd(s); err != nil {
			return err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	rows := x.rows[s.TP]
	for _, r := range rows {
		if r.SegmentKey == s.SegmentKey {
			return nil
		}
	}
	rows = append(rows, s)
	slices.SortFunc(rows, func(a, b Segment) int { return cmp.Or(cmp.Compare(a.Last, b.Last), cmp.Compare(a.Key(), b.Key())) })
	x.rows[s.TP] = rows
	return nil
}

func (x *memIndex) Drop(_ context.Context, tp ids.TopicPartition, keys []SegmentKey) error {
	if x.onDrop != nil {
		if err := x.onDrop(keys); err != nil {
			return err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.rows[tp] = slices.DeleteFunc(x.rows[tp], func(r Segment) bool { return slices.Contains(keys, r.SegmentKey) })
	return nil
}

func (x *memIndex) all(tp ids.TopicPartition) []Segment {
	rows, _ := x.Segments(context.Background(), tp, 0, 1<<20)
	return rows
}

// hooks is a bucket whose operations tests can bend.
type hooks struct {
	objstore.Bucket
	put  func(ctx context.Context, key string, next func() error) error
	get  func(ctx context.Context, key string, offset int64, body []byte) ([]byte, error)
	head func(key string) error

	puts, gets, heads atomic.Int64
	got               sync.Map // "key@offset" -> *atomic.Int64
	inFlight, peak    atomic.Int64
}

func newHooks() *hooks { return &hooks{Bucket: objstore.NewMem()} }

func (h *hooks) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) (info objstore.ObjectInfo, err error) {
	h.puts.Add(1)
	next := func() error {
		var err error
		info, err = h.Bucket.Put(ctx, key, body, o)
		return err
	}
	if h.put == nil {
		return info, next()
	}
	err = h.put(ctx, key, next)
	return info, err
}

func (h *hooks) Head(ctx context.Context, key string) (objstore.ObjectInfo, error) {
	h.heads.Add(1)
	if h.head != nil {
		if err := h.head(key); err != nil {
			return objstore.ObjectInfo{}, err
		}
	}
	return h.Bucket.Head(ctx, key)
}

func (h *hooks) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, objstore.ObjectInfo, error) {
	h.gets.Add(1)
	n, _ := h.got.LoadOrStore(fmt.Sprintf("%s@%d", key, offset), new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	now := h.inFlight.Add(1)
	defer h.inFlight.Add(-1)
	for p := h.peak.Load(); now > p && !h.peak.CompareAndSwap(p, now); p = h.peak.Load() {
	}
	rc, info, err := h.Bucket.Get(ctx, key, offset, length)
	if err != nil || h.get == nil {
		return rc, info, err
	}
	body, err := io.ReadAll(rc)
	if err != nil {
		return nil, info, errors.Join(err, rc.Close())
	}
	body, err = h.get(ctx, key, offset, body)
	if err != nil && body == nil {
		return nil, info, err
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(body), errReader{err})), info, nil
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) {
	if e.err == nil {
		return 0, io.EOF
	}
	return 0, e.err
}

func (h *hooks) keys(t testing.TB) []string {
	t.Helper()
	var out []string
	for after, more := "", true; more; {
		var page []objstore.ObjectInfo
		var err error
		if page, more, err = h.List(context.Background(), "", after, 1000); err != nil {
			t.Fatal(err)
		}
		for _, i := range page {
			out = append(out, i.Key)
			after = i.Key
		}
	}
	return out
}

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting: %s", what)
		}
	}
}
