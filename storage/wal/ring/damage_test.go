package ring_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/storage/wal/ring"
	"github.com/cirrolog/cirrolog/storage/wal/waltest"
)

const (
	blockSize = vfs.BlockSize
	dataStart = 4 * blockSize
)

// writer appends one batch per commit and knows where each went.
type writer struct {
	t    testing.TB
	s    wal.Stream
	next int64
	acks chan error
}

func newWriter(t testing.TB, fsys vfs.FS, size int64) *writer {
	t.Helper()
	w := &writer{t: t, acks: make(chan error, 1)}
	s, err := openRing(waltest.Config{FS: fsys, Size: size, Pool: wal.NewPool(1), Announce: func(es []*wal.Entry, err error) {
		for _, e := range es {
			e.Chunk.Release()
			w.acks <- err
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	w.s = s
	return w
}

func (w *writer) replay() (got []int64) {
	w.t.Helper()
	err := w.s.Replay(func(e *wal.Entry) error { got = append(got, e.Base); return checkData(e) })
	if err != nil {
		w.t.Fatal(err)
	}
	if n := len(got); n > 0 {
		w.next = got[n-1] + 1
	}
	return got
}

func checkData(e *wal.Entry) error {
	if want := waltest.Entry(e.TP, e.Base, len(e.Data)); e.Kind != wal.KindBatch || !bytes.Equal(e.Data, want.Data) {
		return errors.New("wrong bytes")
	}
	return nil
}

// put appends a batch that makes a commit of blocks blocks.
func (w *writer) put(blocks int) wal.Pos {
	w.t.Helper()
	e := waltest.Entry(ids.TopicPartition{}, w.next, blocks*blockSize-200)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.s.Append(ctx, e); err != nil {
		w.t.Fatal(err)
	}
	pos := e.Pos
	select {
	case err := <-w.acks:
		if err != nil {
			w.t.Fatal(err)
		}
	case <-ctx.Done():
		w.t.Fatal("no announcement")
	}
	w.next++
	return pos
}

// trim trims once State has caught up with the last announcement.
func (w *writer) trim(to wal.Pos) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); w.s.State().Durable < to; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("durable up to %d only", w.s.State().Durable)
		}
	}
	if err := w.s.Trim(to); err != nil {
		w.t.Fatal(err)
	}
}

func (w *writer) close() {
	w.t.Helper()
	if err := w.s.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// patch changes the ring's file.
func patch(t testing.TB, fsys vfs.FS, off int64, b []byte) {
	t.Helper()
	f, err := fsys.Open(ringPath, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// The last commit of a lap is torn but for its header; after the restart a longer
// one goes to the next lap's start. Both places are looked at.
func TestTornCommitBeforeTheLap(t *testing.T) {
	mem := vfs.NewMem()
	w := newWriter(t, mem, 16*blockSize)
	w.replay()
	var pos []wal.Pos
	for range 7 {
		pos = append(pos, w.put(2))
		w.trim(pos[len(pos)-1])
	}
	torn := w.put(2) // ends at the ring's end
	w.close()
	patch(t, mem, dataStart+int64(torn)+blockSize+100, []byte{0xff})
	w = newWriter(t, mem, 16*blockSize)
	if got := w.replay(); len(got) != 1 || got[0] != 6 {
		t.Fatalf("replayed %v, want [6]", got)
	}
	w.trim(w.s.State().Durable)
	w.put(3) // fits only to the next lap
	w.put(1)
	w.close()
	w = newWriter(t, mem, 16*blockSize)
	if got := w.replay(); len(got) != 2 || got[0] != 7 || got[1] != 8 {
		t.Fatalf("replayed %v, want [7 8]", got)
	}
	w.close()
}

// sample makes a ring of several commits in its second lap, trimmed twice, and
// returns it with the offsets that it holds.
func sample(t testing.TB) (*vfs.Mem, []int64) {
	t.Helper()
	mem := vfs.NewMem()
	w := newWriter(t, mem, 16*blockSize)
	w.replay()
	var at []wal.Pos
	for i := range 11 {
		at = append(at, w.put(1+i%3))
		if i > 2 {
			w.trim(at[i-2])
		}
	}
	w.close()
	return mem, []int64{8, 9, 10}
}

func readRing(t testing.TB, fsys vfs.FS) []byte {
	t.Helper()
	f, err := fsys.Open(ringPath, vfs.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		t.Fatal(err)
	}
	return b
}

// scanBytes scans b as a ring and returns the offsets it has.
func scanBytes(t testing.TB, b []byte) (got []int64, err error) {
	t.Helper()
	mem := vfs.NewMem()
	if err := mem.MkdirAll("/d"); err != nil {
		t.Fatal(err)
	}
	f, err := mem.Open(ringPath, vfs.Create)
	if err == nil {
		_, err = f.WriteAt(b, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	_, err = ring.Scan(mem, ringPath, func(e *wal.Entry) error {
		got = append(got, e.Base)
		if err := checkData(e); err != nil {
			t.Errorf("offset %d: %v", e.Base, err)
		}
		return nil
	})
	return got, err
}

// reported says that an error tells what is wrong and where.
func reported(err error) bool {
	known := errors.Is(err, wal.ErrDamaged) || errors.Is(err, wal.ErrVersion) || errors.Is(err, wal.ErrForeign)
	return known && strings.Contains(err.Error(), ringPath)
}

// A ring that was cut is refused.
func TestTruncatedRing(t *testing.T) {
	mem, _ := sample(t)
	b := readRing(t, mem)
	for n := range b {
		if _, err := scanBytes(t, b[:n]); !reported(err) {
			t.Fatalf("%d of %d bytes: %v", n, len(b), err)
		}
	}
}

// Every byte of a ring is flipped in turn. Either all is there, or an error tells
// of it; only the last commit may go without one, as if it were torn.
func TestFlippedRing(t *testing.T) {
	mem, want := sample(t)
	b := readRing(t, mem)
	got, err := scanBytes(t, b)
	if err != nil || len(got) != len(want) {
		t.Fatalf("%v, %v", got, err)
	}
	damaged, cut := 0, 0
	for i := range b {
		old := b[i]
		b[i] ^= 1 << (i % 8)
		got, err := scanBytes(t, b)
		b[i] = old
		for k, base := range got {
			if base < got[0] || base != got[0]+int64(k) || base > want[2] {
				t.Fatalf("byte %d: offsets %v", i, got)
			}
		}
		switch {
		case err != nil && !reported(err):
			t.Fatalf("byte %d: %v", i, err)
		case err != nil:
			damaged++
		case len(got) == 0 || got[0] > want[0] || got[len(got)-1] < want[1]:
			t.Fatalf("byte %d: offsets %v, want %v, and no error", i, got, want)
		case got[len(got)-1] < want[2]:
			cut++
		}
	}
	if damaged == 0 || cut == 0 {
		t.Errorf("%d flips were reported, %d took the end", damaged, cut)
	}
}

// When the newer trim slot is lost, the older one may name a place that was
// written over since: that is told, not taken for the end.
func TestLostTrimSlot(t *testing.T) {
	mem := vfs.NewMem()
	w := newWriter(t, mem, 16*blockSize)
	w.replay()
	var at []wal.Pos
	for range 7 {
		at = append(at, w.put(2))
	}
	w.trim(at[1])
	w.trim(at[6])
	for range 4 {
		w.put(2)
	}
	w.close()
	b := readRing(t, mem)
	if got, err := scanBytes(t, b); err != nil || len(got) != 5 {
		t.Fatalf("%v, %v", got, err)
	}
	b[blockSize+20] ^= 1 // the slot of the third, newest, counter
	if got, err := scanBytes(t, b); !reported(err) {
		t.Fatalf("%v, %v", got, err)
	}
	b[2*blockSize+20] ^= 1
	if got, err := scanBytes(t, b); !reported(err) {
		t.Fatalf("both slots: %v, %v", got, err)
	}
}

// Whatever a ring's file holds, what a scan brings are whole batches.
func FuzzScan(f *testing.F) {
	mem, _ := sample(f)
	b := readRing(f, mem)
	f.Add(uint32(0), []byte("CIRRORNG"))
	f.Add(uint32(blockSize), []byte("CIRROTRM"))
	for at := uint32(dataStart); int(at) < len(b); at += blockSize {
		f.Add(at, b[at:at+256])
	}
	f.Fuzz(func(t *testing.T, at uint32, patch []byte) {
		c := bytes.Clone(b)
		copy(c[min(int(at), len(c)):], patch)
		if _, err := scanBytes(t, c); err != nil && !reported(err) {
			t.Fatal(err)
		}
	})
}
