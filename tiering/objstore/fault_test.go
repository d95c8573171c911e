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

func putString(f objstore.Bucket, key, data string) error {
	_, err := f.Put(context.Background(), key, strings.NewReader(data), objstore.PutOptions{IfNoneMatch: true})
	return err
}

func getString(f objstore.Bucket, key string) (string, error) {
	r, _, err := f.Get(context.Background(), key, 0, -1)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(r)
	return string(data), errors.Join(err, r.Close())
}

func TestFaultOutcomes(t *testing.T) {
	for _, c := range []struct {
		kind   objstore.FaultKind
		want   error
		stored bool
	}{
		{objstore.FaultThrottle, objstore.ErrThrottled, false},
		{objstore.FaultDeny, objstore.ErrDenied, false},
		{objstore.FaultTimeoutBefore, objstore.ErrUnknown, false},
		{objstore.FaultTimeoutAfter, objstore.ErrUnknown, true},
		{objstore.FaultSlow, nil, true},
		{objstore.FaultSwallowPut, nil, false},
		{objstore.FaultCutBody, nil, true}, // does nothing to a put
	} {
		t.Run(c.kind.String(), func(t *testing.T) {
			m := objstore.NewMem()
			f := objstore.NewFault(m, 1, objstore.FaultRule{Kind: c.kind, Prefix: "a/", Delay: time.Millisecond})
			if err := putString(f, "a/k", "x"); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			_, err := m.Head(context.Background(), "a/k")
			if stored := err == nil; stored != c.stored {
				t.Fatalf("stored: %v, want %v", stored, c.stored)
			}
			if err := putString(f, "b/k", "x"); err != nil {
				t.Fatalf("a key outside of the prefix: %v", err)
			}
			want := int64(1)
			if c.kind == objstore.FaultCutBody {
				want = 0
			}
			if n := f.Injected(c.kind); n != want || f.TotalInjected() != want {
				t.Fatalf("%d injected, %d in total, want %d", n, f.TotalInjected(), want)
			}
			if n := f.Calls("put"); n != 2 {
				t.Fatalf("%d puts counted", n)
			}
		})
	}
}

func TestFaultHang(t *testing.T) {
	m := objstore.NewMem()
	f := objstore.NewFault(m, 1, objstore.FaultRule{Kind: objstore.FaultHang})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := f.Put(ctx, "k", strings.NewReader("x"), objstore.PutOptions{})
	if !errors.Is(err, objstore.ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("hang: %v", err)
	}
	if _, err := m.Head(context.Background(), "k"); !errors.Is(err, objstore.ErrNotFound) {
		t.Fatalf("a hanging put was done: %v", err)
	}
}

func TestFaultBodies(t *testing.T) {
	data := strings.Repeat("0123456789abcdef", 512)
	f := objstore.NewFault(objstore.NewMem(), 7)
	if err := putString(f, "k", data); err != nil {
		t.Fatal(err)
	}
	f.SetRules(objstore.FaultRule{Kind: objstore.FaultCutBody})
	got, err := getString(f, "k")
	if !errors.Is(err, objstore.ErrUnknown) || len(got) >= len(data) || !strings.HasPrefix(data, got) {
		t.Fatalf("cut: %d bytes, %v", len(got), err)
	}
	f.SetRules(objstore.FaultRule{Kind: objstore.FaultWrongBytes})
	got, err = getString(f, "k")
	if err != nil || len(got) != len(data) {
		t.Fatalf("wrong bytes: %d bytes, %v", len(got), err)
	}
	wrong := 0
	for i := range got {
		if got[i] != data[i] {
			wrong++
		}
	}
	if wrong != len(data)/1024 {
		t.Fatalf("%d bytes are wrong", wrong)
	}
	f.SetRules()
	if got, err := getString(f, "k"); err != nil || got != data {
		t.Fatalf("without rules: %d bytes, %v", len(got), err)
	}
}

func TestFaultNthCountProbability(t *testing.T) {
	f := objstore.NewFault(objstore.NewMem(), 3, objstore.FaultRule{Kind: objstore.FaultThrottle, Op: "head", Nth: 3, Count: 2})
	var hit []int
	for i := range 6 {
		if _, err := f.Head(context.Background(), "k"); errors.Is(err, objstore.ErrThrottled) {
			hit = append(hit, i+1)
		}
	}
	if len(hit) != 2 || hit[0] != 3 || hit[1] != 4 {
		t.Fatalf("hit requests %v, want 3 and 4", hit)
	}
	run := func(seed uint64) (hits []int) {
		f := objstore.NewFault(objstore.NewMem(), seed, objstore.FaultRule{Kind: objstore.FaultThrottle, Probability: 0.5})
		for i := range 200 {
			if _, err := f.Head(context.Background(), "k"); errors.Is(err, objstore.ErrThrottled) {
				hits = append(hits, i)
			}
		}
		return hits
	}
	a, b := run(1), run(1)
	if len(a) < 60 || len(a) > 140 || len(a) != len(b) {
		t.Fatalf("%d and %d of 200 hit at one half", len(a), len(b))
	}
	for i := range a {
		if a[i] != b[i] {
			t.Fatal("the same seed gave other faults")
		}
	}
}

// PutCreateOnly must find out what became of a put by looking.
func TestPutCreateOnlySettlesUnknown(t *testing.T) {
	for _, c := range []struct {
		name  string
		rules []objstore.FaultRule
	}{
		{"done, answer lost", []objstore.FaultRule{{Kind: objstore.FaultTimeoutAfter, Op: "put", Count: 1}}},
		{"not done, answer lost", []objstore.FaultRule{{Kind: objstore.FaultTimeoutBefore, Op: "put", Count: 2}}},
		{"busy", []objstore.FaultRule{{Kind: objstore.FaultThrottle, Op: "put", Count: 2}}},
		{"done, answer lost, look fails", []objstore.FaultRule{
			{Kind: objstore.FaultTimeoutAfter, Op: "put", Count: 1}, {Kind: objstore.FaultThrottle, Op: "head", Count: 1},
		}},
		{"done, answer lost, body of the look cut", []objstore.FaultRule{
			{Kind: objstore.FaultTimeoutAfter, Op: "put", Count: 1}, {Kind: objstore.FaultCutBody, Op: "get", Count: 1},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := objstore.NewFault(objstore.NewMem(), 1, c.rules...)
			created, err := objstore.PutCreateOnly(context.Background(), f, "k", strings.NewReader("mine"), objstore.PutOptions{})
			if err != nil || !created {
				t.Fatalf("created %v, %v", created, err)
			}
			if got, err := getString(f, "k"); err != nil || got != "mine" {
				t.Fatalf("holds %q, %v", got, err)
			}
		})
	}
	m := objstore.NewMem()
	if err := putString(m, "k", "hers"); err != nil {
		t.Fatal(err)
	}
	f := objstore.NewFault(m, 1, objstore.FaultRule{Kind: objstore.FaultTimeoutAfter, Op: "put", Count: 1})
	created, err := objstore.PutCreateOnly(context.Background(), f, "k", strings.NewReader("mine"), objstore.PutOptions{})
	if created || !errors.Is(err, objstore.ErrPrecondition) {
		t.Fatalf("another's object: created %v, %v", created, err)
	}
}

func TestProbeRefusesStoresWithoutConditions(t *testing.T) {
	for _, b := range []objstore.Bucket{ignoresNoneMatch{objstore.NewMem()}, ignoresMatch{objstore.NewMem()}} {
		if err := objstore.Probe(context.Background(), b); !errors.Is(err, objstore.ErrUnsuitable) {
			t.Fatalf("%T: %v", b, err)
		}
		if list, _, err := b.List(context.Background(), "", "", 10); err != nil || len(list) != 0 {
			t.Fatalf("%T: probe left %v, %v", b, list, err)
		}
	}
}

type ignoresNoneMatch struct{ *objstore.Mem }

func (b ignoresNoneMatch) Put(ctx context.Context, key string, body objstore.Body, opts objstore.PutOptions) (objstore.ObjectInfo, error) {
	opts.IfNoneMatch = false
	return b.Mem.Put(ctx, key, body, opts)
}

type ignoresMatch struct{ *objstore.Mem }

func (b ignoresMatch) Put(ctx context.Context, key string, body objstore.Body, opts objstore.PutOptions) (objstore.ObjectInfo, error) {
	opts.IfMatch = ""
	return b.Mem.Put(ctx, key, body, opts)
}

func TestExactBody(t *testing.T) {
	read := func(data string, size int64) (string, error) {
		got, err := io.ReadAll(objstore.ExactBody(io.NopCloser(bytes.NewReader([]byte(data))), size))
		return string(got), err
	}
	if got, err := read("abc", 3); err != nil || got != "abc" {
		t.Fatalf("%q, %v", got, err)
	}
	if got, err := read("abcdef", 3); err != nil || got != "abc" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := read("ab", 3); !errors.Is(err, objstore.ErrUnknown) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("short body: %v", err)
	}
}
