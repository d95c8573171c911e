package ring_test

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/storage/wal/ring"
)

var errTorn = errors.New("not there")

// refRing is a ring whose references are checked by check. Answers are counted.
type refRing struct {
	*ring.Ring
	acks  chan error
	found []int64 // bases that its replay brought
}

func openRefs(t *testing.T, fsys vfs.FS, check func(*wal.Entry) error) *refRing {
	t.Helper()
	r := &refRing{acks: make(chan error, 100)}
	if err := errors.Join(fsys.MkdirAll("/d"), fsys.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	var err error
	r.Ring, err = ring.Open(ring.Options{FS: fsys, Path: ringPath, Size: ring.MinSize, Pool: wal.NewPool(1), CheckRef: check,
		Announce: func(es []*wal.Entry, err error) {
			for _, e := range es {
				e.Chunk.Release()
				r.acks <- err
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Replay(func(e *wal.Entry) error { r.found = append(r.found, e.Base); return nil }); err != nil {
		t.Fatal(err)
	}
	return r
}

func refEntry(base int64, ready func() error) *wal.Entry {
	ref := wal.Ref{Size: 9000, Rest: []byte("rest")}
	return &wal.Entry{Kind: wal.KindRef, Base: base, Last: base, InSegment: true, Data: ref.Append(nil), Ready: ready}
}

func startEntry(base int64) *wal.Entry {
	return &wal.Entry{Kind: wal.KindLogStart, Base: base, Last: base}
}

// put appends entries as one commit and waits.
func (r *refRing) put(t *testing.T, entries ...*wal.Entry) {
	t.Helper()
	if err := r.Append(context.Background(), entries...); err != nil {
		t.Fatal(err)
	}
	for range entries {
		if err := <-r.acks; err != nil {
			t.Fatal(err)
		}
	}
}

func (r *refRing) close(t *testing.T) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

func wantFound(t *testing.T, r *refRing, want ...int64) {
	t.Helper()
	if !reflect.DeepEqual(r.found, want) {
		t.Fatalf("replayed %v, want %v", r.found, want)
	}
}

// A commit is announced when what its entries refer to is durable, and nothing is
// written behind it before.
func TestReadyIsWaitedFor(t *testing.T) {
	mem := vfs.NewMem()
	r := openRefs(t, mem, nil)
	ready := make(chan struct{})
	if err := r.Append(context.Background(), startEntry(1), refEntry(2, func() error { <-ready; return nil })); err != nil {
		t.Fatal(err)
	}
	if err := r.Append(context.Background(), startEntry(3)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-r.acks:
		t.Fatalf("announced before it was ready: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if st := r.State(); st.Durable != 0 {
		t.Errorf("durable up to %d before it was ready", st.Durable)
	}
	close(ready)
	for range 3 {
		if err := <-r.acks; err != nil {
			t.Fatal(err)
		}
	}
	r.close(t)
	again := openRefs(t, mem, func(*wal.Entry) error { return nil })
	wantFound(t, again, 1, 2, 3)
	again.close(t)
}

// When what an entry refers to fails, so do its commit and all that follow.
func TestFailedReadyPoisons(t *testing.T) {
	r := openRefs(t, vfs.NewMem(), nil)
	called := make(chan struct{}, 1)
	err := r.Append(context.Background(), startEntry(1), refEntry(2, func() error { return errTorn }),
		refEntry(3, func() error { called <- struct{}{}; return nil }))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := <-r.acks; !errors.Is(err, errTorn) || !errors.Is(err, wal.ErrPoisoned) {
			t.Fatalf("announced %v", err)
		}
	}
	<-called
	if err := r.Append(context.Background(), startEntry(4)); !errors.Is(err, errTorn) {
		t.Fatalf("append after the failure: %v", err)
	}
	if err := r.Close(); !errors.Is(err, errTorn) {
		t.Fatalf("close: %v", err)
	}
}

// The last commit counts as torn when what it refers to is not there, for ever:
// what it referred to may be removed meanwhile, and is not missed then.
func TestTornRefIsWiped(t *testing.T) {
	mem := vfs.NewMem()
	torn := func(*wal.Entry) error { return errTorn }
	there := func(*wal.Entry) error { return nil }
	r := openRefs(t, mem, there)
	r.put(t, startEntry(1))
	r.put(t, startEntry(2), refEntry(3, nil))
	r.close(t)
	r = openRefs(t, mem, torn)
	wantFound(t, r, 1)
	r.close(t)
	r = openRefs(t, mem, there)
	wantFound(t, r, 1)
	r.put(t, startEntry(4))
	r.close(t)
	r = openRefs(t, mem, there)
	wantFound(t, r, 1, 4)
	r.close(t)
}

// Only the last commit can be torn: what one before it refers to was durable.
func TestOnlyLastRefIsChecked(t *testing.T) {
	mem := vfs.NewMem()
	r := openRefs(t, mem, nil)
	r.put(t, refEntry(1, nil))
	r.put(t, refEntry(2, nil))
	r.close(t)
	r = openRefs(t, mem, func(e *wal.Entry) error {
		if e.Base == 1 {
			return errTorn
		}
		return nil
	})
	wantFound(t, r, 1, 2)
	r.put(t, startEntry(3))
	r.close(t)
	r = openRefs(t, mem, func(*wal.Entry) error { return errTorn }) // the last one has none
	wantFound(t, r, 1, 2, 3)
	r.close(t)
}

// A torn commit near the ring's end stays away when the one after it begins
// another lap.
func TestTornRefBeforeNextLap(t *testing.T) {
	mem := vfs.NewMem()
	there := func(*wal.Entry) error { return nil }
	r := openRefs(t, mem, there)
	blocks := ring.MinSize / blockSize
	for i := range blocks - 1 {
		r.put(t, startEntry(int64(i)))
	}
	if err := r.Trim(r.State().Durable); err != nil {
		t.Fatal(err)
	}
	r.put(t, refEntry(100, nil)) // the last block
	r.close(t)
	r = openRefs(t, mem, func(*wal.Entry) error { return errTorn })
	wantFound(t, r)
	var long []*wal.Entry
	for i := range int64(blockSize / wal.EntryHeader) {
		long = append(long, startEntry(200+i))
	}
	r.put(t, long...)
	r.close(t)
	r = openRefs(t, mem, there)
	if len(r.found) != len(long) || r.found[0] != 200 {
		t.Fatalf("replayed %v", r.found)
	}
	r.close(t)
}

// A reference that is damaged in a commit with others behind it is damage.
func TestDamagedRef(t *testing.T) {
	mem := vfs.NewMem()
	r := openRefs(t, mem, nil)
	r.put(t, refEntry(1, nil))
	r.put(t, startEntry(2))
	r.close(t)
	f, err := mem.Open(ringPath, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Behind the first 21 bytes of its data: under the reference's own checksum.
	_, err = f.WriteAt([]byte("?"), dataStart+64+wal.EntryHeader+33)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = ring.Scan(mem, ringPath, nil)
	if !errors.Is(err, wal.ErrDamaged) || !strings.Contains(err.Error(), "reference checksum") {
		t.Fatalf("scan: %v", err)
	}
}
