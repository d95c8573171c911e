package objstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/objstoretest"
)

func TestFaultWithoutRules(t *testing.T) {
	objstoretest.Run(t, func(t *testing.T) objstore.Bucket { return objstore.NewFault(objstore.NewMem(), 1) })
}

func TestFaultKinds(t *testing.T) {
	ctx := context.Background()
	opts := objstore.PutOptions{IfNoneMatch: true}
	for _, c := range []struct {
		name string
		kind objstore.FaultKind
		want error
		done bool // the put was carried out
	}{
		{"throttle", objstore.FaultThrottle, objstore.ErrThrottled, false},
		{"unknown before", objstore.FaultUnknownBefore, objstore.ErrUnknown, false},
		{"unknown after", objstore.FaultUnknownAfter, objstore.ErrUnknown, true},
		{"hang", objstore.FaultHang, objstore.ErrUnknown, false},
		{"swallow", objstore.FaultSwallowPut, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
			m := objstore.NewMem()
			f := objstore.NewFault(m, 1)
			id := f.Add(objstore.FaultRule{Method: objstore.MethodPut, Prefix: "hit/", Kind: c.kind, Nth: 1})
			if _, err := f.Put(ctx, "miss/k", strings.NewReader("x"), opts); err != nil {
				t.Fatalf("another prefix: %v", err)
			}
			_, err := f.Put(ctx, "hit/k", strings.NewReader("x"), opts)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			_, err = m.Head(context.Background(), "hit/k")
			if done := err == nil; done != c.done {
				t.Fatalf("carried out: %v (%v), want %v", done, err, c.done)
			}
			if _, err := f.Put(context.Background(), "hit/k2", strings.NewReader("x"), opts); err != nil {
				t.Fatalf("the second request is hit: %v", err)
			}
			if f.Hits(id) != 1 || f.Calls(objstore.MethodPut) != 3 || f.Calls(objstore.MethodAny) != 3 {
				t.Fatalf("hits %d, calls %d", f.Hits(id), f.Calls(objstore.MethodPut))
			}
		})
	}
}

func TestFaultBodies(t *testing.T) {
	ctx := context.Background()
	data := bytes.Repeat([]byte("0123456789"), 1000)
	m := objstore.NewMem()
	if _, err := m.Put(ctx, "k", bytes.NewReader(data), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	read := func(f *objstore.Fault) ([]byte, error) {
		r, _, err := f.Get(ctx, "k", 100, 5000)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	want := data[100:5100]
	for seed := range uint64(20) {
		f := objstore.NewFault(m, seed)
		id := f.Add(objstore.FaultRule{Kind: objstore.FaultCutBody, Probability: 1})
		got, err := read(f)
		if !errors.Is(err, objstore.ErrUnknown) || len(got) >= len(want) || !bytes.HasPrefix(want, got) {
			t.Fatalf("cut body: %d bytes, %v", len(got), err)
		}
		f.Remove(id)
		f.Add(objstore.FaultRule{Kind: objstore.FaultWrongBytes, Probability: 1, Limit: 1})
		got, err = read(f)
		wrong := 0
		for i := range got {
			if got[i] != want[i] {
				wrong++
			}
		}
		if err != nil || len(got) != len(want) || wrong != 1 {
			t.Fatalf("wrong bytes: %d of %d wrong, %v", wrong, len(got), err)
		}
		if got, err = read(f); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("beyond the limit: %v", err)
		}
	}
}

// TestPutCreateOnlyFaults: with a store that fails half of the time, in every
// way it may, what PutCreateOnly answers is what the bucket holds.
func TestPutCreateOnlyFaults(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(6) {
		m := objstore.NewMem()
		f := objstore.NewFault(m, seed)
		for _, k := range []objstore.FaultKind{objstore.FaultThrottle, objstore.FaultUnknownBefore, objstore.FaultUnknownAfter, objstore.FaultCutBody} {
			f.Add(objstore.FaultRule{Kind: k, Probability: 0.15})
		}
		t.Run("", func(t *testing.T) {
			t.Parallel()
			created, err := objstore.PutCreateOnly(ctx, f, "k", strings.NewReader("mine"), objstore.PutOptions{})
			if _, herr := m.Head(ctx, "k"); created && herr != nil {
				t.Fatalf("created, but: %v", herr)
			} else if !created && !objstore.Retriable(err) {
				t.Fatalf("not created: %v", err)
			}
			f.Clear()
			if _, err := objstore.PutCreateOnly(ctx, f, "k", strings.NewReader("mine"), objstore.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			created, err = objstore.PutCreateOnly(ctx, f, "k", strings.NewReader("else"), objstore.PutOptions{})
			if created || !errors.Is(err, objstore.ErrPrecondition) {
				t.Fatalf("other bytes: %v, %v", created, err)
			}
		})
	}
}

func TestPutCreateOnlyGivesUp(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the backoff, about 2 s")
	}
	t.Parallel()
	f := objstore.NewFault(objstore.NewMem(), 1)
	f.Add(objstore.FaultRule{Kind: objstore.FaultThrottle, Probability: 1})
	created, err := objstore.PutCreateOnly(context.Background(), f, "k", strings.NewReader("x"), objstore.PutOptions{})
	if created || !errors.Is(err, objstore.ErrThrottled) || f.Calls(objstore.MethodPut) != 6 {
		t.Fatalf("created %v, %v after %d puts", created, err, f.Calls(objstore.MethodPut))
	}
}
