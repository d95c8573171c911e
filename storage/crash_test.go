package storage_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/vfs/crashtest"
)

const (
	crashDir   = "/data/node"
	crashEpoch = 3
	// crashPoints bounds the operations at which a power loss is tried.
	crashPoints = 1500
)

var crashConfig = storage.LogConfig{SegmentBytes: 40 << 10, IndexInterval: 2048}

// sent is one batch as it must come back.
type sent struct {
	base, last int64
	seq        int32
	data       []byte
}

// model is what a test knows of a partition.
type model struct {
	tp      ids.TopicPartition
	batches []sent
	known
}

// known are the bounds that a recovery must keep to, offsets each.
type known struct {
	acked   int64 // all before is acknowledged
	tried   int64 // nothing from here on was appended
	start   int64 // log start: not readable before
	drop    int64 // before it, closed segments may be gone
	removed bool  // a removal has begun
}

// world is a store, and what is known of its partitions.
type world struct {
	t     testing.TB
	rng   *rand.Rand
	store *storage.Store

	mu     sync.Mutex
	parts  []*model
	topics byte
	killed bool // appends may fail
	left   int  // appends without an answer
}

func (w *world) observe() []known {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]known, len(w.parts))
	for i, m := range w.parts {
		out[i] = m.known
	}
	return out
}

func (w *world) add(partitions int) {
	w.topics++
	for p := range partitions {
		w.parts = append(w.parts, &model{tp: ids.TopicPartition{Topic: ids.TopicID{w.topics}, Partition: int32(p)}})
	}
}

// crashTail is the memory tail: the least, so that batches are evicted, or enough for
// rooms, so that large ones are not copied.
var crashTail int64 = 1

func crashOptions(fsys vfs.FS) storage.Options {
	return storage.Options{FS: fsys, Dir: crashDir, WALSize: 128 << 10, TailBytes: crashTail, ReadBytes: 1, MaxFiles: 4, DirectBytes: 8 << 10,
		Now: func() time.Time { return time.UnixMilli(5000) }}
}

func newCrashFS(t testing.TB) *vfs.Mem {
	t.Helper()
	mem := vfs.NewMem()
	for _, err := range []error{mem.MkdirAll(crashDir), mem.SyncDir("/"), mem.SyncDir("/data")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return mem
}

// idempotent makes b a batch of producer id.
func idempotent(b []byte, id int64, seq int32) {
	binary.BigEndian.PutUint64(b[43:], uint64(id))
	binary.BigEndian.PutUint16(b[51:], 0)
	binary.BigEndian.PutUint32(b[53:], uint32(seq))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
}

func (w *world) append(m *model, size int) {
	w.t.Helper()
	w.appendAs(m, size, crashConfig)
}

// appendAs appends one batch of one to four records to m.
func (w *world) appendAs(m *model, size int, cfg storage.LogConfig) {
	w.t.Helper()
	w.appendBatch(m, 1+w.rng.IntN(4), size, w.rng.Uint64N(1000), cfg)
}

// appendBatch appends a batch of n records made from seed.
func (w *world) appendBatch(m *model, n, size int, seed uint64, cfg storage.LogConfig) {
	w.t.Helper()
	l, err := w.store.Create(m.tp, cfg, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	b := makeBatch(n, size, seed)
	s := sent{base: m.tried, last: m.tried + int64(n) - 1}
	if k := len(m.batches); k > 0 {
		s.seq = m.batches[k-1].seq + int32(m.batches[k-1].last-m.batches[k-1].base) + 1
	}
	idempotent(b, int64(m.tp.Partition)+1, s.seq)
	s.data = bytes.Clone(b)
	batch.Stamp(s.data, s.base, crashEpoch)
	w.mu.Lock()
	m.batches = append(m.batches, s)
	m.tried = s.last + 1
	w.left++
	w.mu.Unlock()
	h, err := batch.Parse(b)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	room, b := maybeRoom(l, b, int(seed%5)*50)
	err = l.Append(ctx, b, h, storage.AppendOptions{Epoch: crashEpoch, Room: room}, func(r storage.AppendResult) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.left--
		switch {
		case r.Err == nil && r.Base == s.base:
			m.acked = s.last + 1
		case !w.killed:
			w.t.Errorf("append to %s at %d: %+v", m.tp, s.base, r)
		}
	})
	if err != nil {
		w.mu.Lock()
		w.left--
		if !w.killed {
			w.t.Errorf("append to %s at %d: %v", m.tp, s.base, err)
		}
		w.mu.Unlock()
	}
	if room != nil {
		room.Release()
	}
}

// settle waits until every append is answered.
func (w *world) settle() {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		w.mu.Lock()
		left := w.left
		w.mu.Unlock()
		if left == 0 {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%d appends without an answer", left)
		}
	}
}

// work does one random thing: mostly appends, to two partitions much and to
// others little.
func (w *world) work() {
	w.t.Helper()
	var live []*model
	for _, m := range w.parts {
		if !m.removed {
			live = append(live, m)
		}
	}
	m := live[w.rng.IntN(len(live))]
	if w.rng.IntN(3) > 0 {
		m = live[w.rng.IntN(2)]
	}
	l := w.store.Log(m.tp)
	switch w.rng.IntN(40) {
	case 0:
		if l != nil {
			l.RollIfOld(true)
		}
	case 1, 2, 3: // tiered, then dropped by local retention
		if l != nil {
			w.drop(m, l)
		}
	case 4: // DeleteRecords
		if l != nil {
			w.settle()
			w.mu.Lock()
			m.start = max(m.start, m.acked-int64(w.rng.IntN(40)))
			start := m.start
			w.mu.Unlock()
			l.SetStart(start)
		}
	case 5: // the topic made last goes, another one comes
		if len(live) > 4 {
			w.remove(live[len(live)-1])
			w.mu.Lock()
			w.add(1)
			w.mu.Unlock()
		}
	default:
		size := w.rng.IntN(3000)
		if w.rng.IntN(5) == 0 {
			size = w.rng.IntN(20_000)
		}
		w.append(m, size)
		if w.rng.IntN(4) == 0 {
			w.settle()
		}
	}
}

func (w *world) drop(m *model, l *storage.Log) {
	closed := l.ClosedSegments()
	if len(closed) == 0 {
		return
	}
	last := closed[w.rng.IntN(len(closed))].Meta.Last
	w.mu.Lock()
	m.drop = max(m.drop, last+1)
	w.mu.Unlock()
	l.MarkTiered(last)
	l.DropLocal(last + 1)
}

func (w *world) remove(m *model) {
	w.mu.Lock()
	m.removed = true
	killed := w.killed
	w.mu.Unlock()
	if err := w.store.Remove(m.tp); err != nil && !killed {
		w.t.Errorf("remove %s: %v", m.tp, err)
	}
}

// checkRecovered opens what a crash left and compares it with what was known
// just before and after. It returns the store.
func checkRecovered(t testing.TB, fsys vfs.FS, parts []*model, before, after []known) *storage.Store {
	t.Helper()
	s, err := storage.Open(crashOptions(fsys))
	if err != nil {
		t.Fatalf("open after the crash: %v", err)
	}
	for i, k := range after {
		b := known{}
		if i < len(before) {
			b = before[i]
		}
		checkLog(t, s, parts[i], b, k)
	}
	return s
}

func checkLog(t testing.TB, s *storage.Store, m *model, before, after known) {
	t.Helper()
	l := s.Log(m.tp)
	if after.removed {
		if l != nil {
			readRest(t, l, m) // what is left of it may end anywhere
			if err := s.Remove(m.tp); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	if l == nil {
		if before.acked > 0 {
			t.Fatalf("%s is gone, %d offsets were acknowledged", m.tp, before.acked)
		}
		return
	}
	if _, err := s.Create(m.tp, crashConfig, after.start); err != nil {
		t.Fatal(err)
	}
	o := l.Offsets()
	if o.End < before.acked || o.End > after.tried || o.HighWatermark != o.End || o.Start != after.start {
		t.Fatalf("%s: %+v, want the end from %d to %d, start %d", m.tp, o, before.acked, after.tried, after.start)
	}
	if o.LocalStart > max(after.drop, after.start) {
		t.Fatalf("%s: %+v, but only what is before %d was given up", m.tp, o, after.drop)
	}
	if after.start > 0 {
		if _, err := l.Read(context.Background(), after.start-1, 100, true); !errors.Is(err, storage.ErrOutOfRange) {
			t.Fatalf("%s: read below the log start: %v", m.tp, err)
		}
	}
	if end := readRest(t, l, m); end != o.End {
		t.Fatalf("%s: can be read up to %d, ends at %d", m.tp, end, o.End)
	}
	if n := ended(m, o.End); n > 0 && m.batches[n-1].last+1 == o.End {
		retry(t, l, m.batches[n-1])
	}
}

// ended is how many batches end at or before offset.
func ended(m *model, offset int64) int {
	n, _ := slices.BinarySearchFunc(m.batches, offset, func(s sent, o int64) int {
		if s.last < o {
			return -1
		}
		return 1
	})
	return n
}

// readRest reads from the local start on, compares every batch with what was
// appended and returns where it ended.
func readRest(t testing.TB, l *storage.Log, m *model) int64 {
	t.Helper()
	o := l.Offsets()
	at := o.LocalStart
	for at < o.HighWatermark {
		r, err := l.Read(context.Background(), at, 1<<20, true)
		if err != nil || r.Size == 0 {
			if m.removed {
				return at
			}
			t.Fatalf("%s: read at %d of %+v: %v, %d bytes", m.tp, at, o, err, r.Size)
		}
		for _, d := range r.Data {
			for len(d) > 0 {
				h, err := batch.Check(d)
				if err != nil {
					t.Fatalf("%s: read at %d: %v", m.tp, at, err)
				}
				i := ended(m, h.BaseOffset)
				if i == len(m.batches) || !bytes.Equal(m.batches[i].data, d[:h.Size()]) || h.LastOffset() < at || h.BaseOffset > at {
					t.Fatalf("%s: read at %d: batch %d to %d was not appended", m.tp, at, h.BaseOffset, h.LastOffset())
				}
				at = h.LastOffset() + 1
				d = d[h.Size():]
			}
		}
		r.Release()
	}
	return at
}

// retry sends a batch again: it is answered with the offset that it has.
func retry(t testing.TB, l *storage.Log, s sent) {
	t.Helper()
	b := bytes.Clone(s.data)
	h, err := batch.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan storage.AppendResult, 1)
	if err := l.Append(context.Background(), b, h, storage.AppendOptions{Epoch: crashEpoch}, func(r storage.AppendResult) { got <- r }); err != nil {
		t.Fatalf("%s: retry of batch %d: %v", l.TP(), s.base, err)
	}
	if r := <-got; r.Err != nil || !r.Duplicate || r.Base != s.base || r.Last != s.last {
		t.Fatalf("%s: retry of batch %d: %+v", l.TP(), s.base, r)
	}
}

// goOn appends to every partition and reads all again, after another start too.
func goOn(t testing.TB, fsys vfs.FS, s *storage.Store, parts []*model, after []known) {
	t.Helper()
	w := &world{t: t, rng: rand.New(rand.NewPCG(9, 9)), store: s}
	for i, k := range after {
		m := &model{tp: parts[i].tp, known: k}
		if k.removed {
			continue
		}
		if l := s.Log(m.tp); l != nil {
			m.tried = l.Offsets().End
		} else {
			m.tried = 0
		}
		m.acked = m.tried
		m.batches = slices.Clone(parts[i].batches[:ended(parts[i], m.tried)])
		w.parts = append(w.parts, m)
	}
	for range 2 {
		for _, m := range w.parts {
			w.append(m, 1000)
		}
	}
	w.settle()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	k := w.observe()
	if err := checkRecovered(t, fsys, w.parts, k, k).Close(); err != nil {
		t.Fatal(err)
	}
}

// checkPoint tries a power loss, a second one during the recovery from it, and
// that the log goes on.
func checkPoint(t *testing.T, p crashtest.Point[[]known], parts []*model, seed uint64) {
	t.Helper()
	sampler := crashtest.Sample(p.FS, seed+uint64(p.Index), 1, func() struct{} { return struct{}{} })
	s := checkRecovered(t, p.FS, parts, p.Before, p.After)
	again, _ := sampler.End()
	goOn(t, p.FS, s, parts, p.After)
	for _, q := range again {
		if err := checkRecovered(t, q.FS, parts, p.Before, p.After).Close(); err != nil {
			t.Fatal(err)
		}
	}
	if t.Failed() {
		t.Logf("power loss at operation %d: %v", p.Index, p.Event)
	}
}

// A power loss at any file operation keeps every acknowledged batch, once and in
// order, and invents none; so does a second one during the recovery.
func TestCrashAtEveryOperation(t *testing.T) {
	seed := crashtest.Seed(t)
	mem := newCrashFS(t)
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1))}
	w.add(4)
	w.add(1)
	sampler := crashtest.Sample(mem, seed, crashPoints, w.observe)
	s, err := storage.Open(crashOptions(mem))
	if err != nil {
		t.Fatal(err)
	}
	w.store = s
	for range 350 {
		w.work()
	}
	w.settle()
	if st := s.Stats(); st.WALUsed > st.WALSize {
		t.Errorf("%+v", st)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	points, seen := sampler.End()
	t.Logf("%d operations, %d of them tried", seen, len(points))
	crashtest.Each(t, points, func(t *testing.T, p crashtest.Point[[]known]) { checkPoint(t, p, w.parts, seed) })
}

var errKilled = errors.New("killed")

// kill makes every later operation of the store fail, as if the process was gone:
// what it wrote is there, synced or not.
func kill(f *vfs.Fault) {
	for _, op := range []vfs.Op{vfs.OpOpen, vfs.OpRead, vfs.OpWrite, vfs.OpSync, vfs.OpTruncate, vfs.OpRename, vfs.OpRemove, vfs.OpLink, vfs.OpSyncDir, vfs.OpMkdir, vfs.OpList} {
		f.Add(vfs.Rule{Op: op, Err: errors.Join(errKilled, syscall.EIO)})
	}
}

// Generations of the store follow each other on the same disk: each is killed, or
// loses power, or both: what a killed process had not synced may be lost with the
// power much later.
func TestKillsAndPowerLosses(t *testing.T) {
	seed := crashtest.Seed(t)
	defer func() { crashTail = 1 }()
	for round := range uint64(12) {
		crashTail = 1 + int64(round%2)*128<<20
		w := &world{t: t, rng: rand.New(rand.NewPCG(seed, round))}
		mem := newCrashFS(t)
		w.add(4)
		w.add(1)
		for range 6 {
			mem = w.generation(mem)
			if t.Failed() {
				t.Fatalf("round %d", round)
			}
		}
	}
}

// generation runs one life of a store on mem and returns what the next one finds.
func (w *world) generation(mem *vfs.Mem) *vfs.Mem {
	t := w.t
	fault := vfs.NewFault(mem)
	k := w.observe()
	w.store = checkRecovered(t, fault, w.parts, k, k)
	for _, m := range w.parts { // what was not acknowledged is decided now
		if m.removed {
			continue
		}
		end := int64(0)
		if l := w.store.Log(m.tp); l != nil {
			end = l.Offsets().End
		}
		m.acked, m.tried, m.batches = end, end, m.batches[:ended(m, end)]
	}
	sampler := crashtest.Sample(mem, w.rng.Uint64(), 6, w.observe)
	n, die := 20+w.rng.IntN(120), 1<<30
	if w.rng.IntN(2) == 0 {
		die = w.rng.IntN(n)
	}
	for i := range n {
		if i == die {
			w.mu.Lock()
			w.killed = true
			w.mu.Unlock()
			kill(fault)
		}
		w.work()
	}
	w.settle()
	if err := w.store.Close(); err != nil && !w.killed {
		t.Fatal(err)
	}
	w.killed = false
	points, _ := sampler.End()
	k = w.observe()
	points = append(points, crashtest.Point[[]known]{FS: mem.CrashClone(w.rng), Before: k, After: k, Index: -1})
	p := points[w.rng.IntN(len(points))]
	for _, q := range points {
		if q.Index == p.Index {
			q.FS = q.FS.CrashClone(w.rng)
		}
		s := checkRecovered(t, q.FS, w.parts, q.Before, q.After)
		goOn(t, q.FS, s, w.parts, q.After)
	}
	if die < n && w.rng.IntN(2) == 0 {
		return mem
	}
	for i, m := range w.parts {
		if i < len(p.After) {
			m.known = p.After[i]
			if i < len(p.Before) {
				m.acked = p.Before[i].acked
			}
		} else {
			m.known = known{removed: true}
		}
	}
	return p.FS
}

// Open segments are written block by block when the ring must be trimmed; what
// the ring gave up is durable there.
func TestCrashOfOpenSegment(t *testing.T) {
	seed := crashtest.Seed(t)
	mem := newCrashFS(t)
	o := crashOptions(mem)
	o.WALSize = 512 << 10 // more than is worth a write of its own
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1))}
	w.add(2)
	sampler := crashtest.Sample(mem, seed, 150, w.observe)
	var err error
	if w.store, err = storage.Open(o); err != nil {
		t.Fatal(err)
	}
	for i := range 250 {
		w.appendAs(w.parts[i%10/9], 6000, storage.LogConfig{SegmentBytes: 4 << 20})
		if i%3 == 0 {
			w.settle()
		}
	}
	w.settle()
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	points, _ := sampler.End()
	crashtest.Each(t, points, func(t *testing.T, p crashtest.Point[[]known]) { checkPoint(t, p, w.parts, seed) })
}
