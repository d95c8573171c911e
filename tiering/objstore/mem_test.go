package objstore_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/objstoretest"
)

func TestMem(t *testing.T) {
	objstoretest.Run(t, func(t *testing.T) objstore.Bucket { return objstore.NewMem() })
}

func TestPrefix(t *testing.T) {
	m := objstore.NewMem()
	ctx := context.Background()
	for _, k := range []string{"p/", "q/x", "p"} {
		if _, err := m.Put(ctx, k, strings.NewReader("x"), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	b := objstore.Prefix(m, "p/")
	list, more, err := b.List(ctx, "", "", 10)
	if err != nil || more || len(list) != 0 {
		t.Fatalf("the view shows what is not below it: %v, %v, %v", list, more, err)
	}
	if _, err := b.Put(ctx, "k", strings.NewReader("x"), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Head(ctx, "p/k"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(ctx, strings.Repeat("k", objstore.MaxKeyLen-1), strings.NewReader("x"), objstore.PutOptions{}); !errors.Is(err, objstore.ErrInvalid) {
		t.Fatalf("a key too long with its prefix: %v", err)
	}
	if objstore.Prefix(m, "") != objstore.Bucket(m) {
		t.Fatal("the empty prefix wraps")
	}
}

func TestObserve(t *testing.T) {
	type call struct {
		op    string
		bytes int64
		err   error
	}
	var mu sync.Mutex
	var calls []call
	b := objstore.Observe(objstore.NewMem(), func(op string, dur time.Duration, n int64, err error) {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, call{op, n, err})
	})
	ctx := context.Background()
	b.Put(ctx, "k", strings.NewReader("12345"), objstore.PutOptions{})
	r, _, err := b.Get(ctx, "k", 1, 3)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	buf.ReadFrom(r)
	r.Close()
	r.Close()
	b.Head(ctx, "absent")
	b.List(ctx, "", "", 10)
	b.DeleteMany(ctx, []string{"a", "b"})
	b.Delete(ctx, "k")
	want := []call{{"put", 5, nil}, {"get", 3, nil}, {"head", 0, objstore.ErrNotFound}, {"list", 1, nil}, {"delete_many", 2, nil}, {"delete", 0, nil}}
	if len(calls) != len(want) {
		t.Fatalf("got %v", calls)
	}
	for i, w := range want {
		if c := calls[i]; c.op != w.op || c.bytes != w.bytes || !errors.Is(c.err, w.err) {
			t.Errorf("call %d: got %v, want %v", i, c, w)
		}
	}
}

// lax ignores conditions, as some stores do.
type lax struct{ objstore.Bucket }

func (l lax) Put(ctx context.Context, key string, body objstore.Body, opts objstore.PutOptions) (objstore.ObjectInfo, error) {
	opts.IfNoneMatch, opts.IfMatch = false, ""
	return l.Bucket.Put(ctx, key, body, opts)
}

func TestProbeUnsuitable(t *testing.T) {
	if _, err := objstore.Probe(context.Background(), lax{objstore.NewMem()}); !errors.Is(err, objstore.ErrUnsuitable) {
		t.Fatalf("probe of a store without conditions: %v", err)
	}
}

// strays answers lists otherwise than asked.
type strays struct {
	objstore.Bucket
	list func(b objstore.Bucket, ctx context.Context, prefix, after string, limit int) ([]objstore.ObjectInfo, bool, error)
}

func (s strays) List(ctx context.Context, prefix, after string, limit int) ([]objstore.ObjectInfo, bool, error) {
	return s.list(s.Bucket, ctx, prefix, after, limit)
}

func TestProbeWantsLists(t *testing.T) {
	for name, f := range map[string]func(b objstore.Bucket, ctx context.Context, prefix, after string, limit int) ([]objstore.ObjectInfo, bool, error){
		"out of order": func(b objstore.Bucket, ctx context.Context, prefix, after string, limit int) ([]objstore.ObjectInfo, bool, error) {
			list, more, err := b.List(ctx, prefix, after, limit)
			slices.Reverse(list)
			return list, more, err
		},
		"not from a key on": func(b objstore.Bucket, ctx context.Context, prefix, _ string, limit int) ([]objstore.ObjectInfo, bool, error) {
			return b.List(ctx, prefix, "", limit)
		},
		"without more": func(b objstore.Bucket, ctx context.Context, prefix, after string, limit int) ([]objstore.ObjectInfo, bool, error) {
			list, _, err := b.List(ctx, prefix, after, limit)
			return list, false, err
		},
	} {
		m := objstore.NewMem()
		if _, err := objstore.Probe(t.Context(), strays{m, f}); !errors.Is(err, objstore.ErrUnsuitable) || !strings.Contains(err.Error(), "list") {
			t.Errorf("probe of a store with lists %s: %v", name, err)
		}
		if list, _, err := m.List(t.Context(), "", "", 10); err != nil || len(list) != 0 {
			t.Errorf("probe of a store with lists %s left %v, %v", name, list, err)
		}
	}
}

func TestAhead(t *testing.T) {
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * float64(time.Second))) }
	for _, c := range []struct {
		shown, began, ended, want float64
	}{{10, 10.9, 11.5, 0}, {11, 10.9, 11.5, 0}, {10, 11.5, 12, -0.5}, {14, 11, 12, 2}, {5, 5.2, 5.3, 0}} {
		if got := objstore.Ahead(at(c.shown), at(c.began), at(c.ended)); got != time.Duration(c.want*float64(time.Second)) {
			t.Errorf("a clock that shows %v between %v and %v: ahead by %v, want %v s", c.shown, c.began, c.ended, got, c.want)
		}
	}
	if objstore.Ahead(time.Time{}, at(1), at(2)) != 0 {
		t.Error("no time")
	}
}
