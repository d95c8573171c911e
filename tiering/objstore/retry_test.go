package objstore_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

func TestRetry(t *testing.T) {
	policy := objstore.Retry{Attempts: 3, First: time.Millisecond, Max: 2 * time.Millisecond}
	for _, c := range []struct {
		name  string
		errs  []error // of the calls in turn
		want  error
		calls int
	}{
		{"at once", []error{nil}, nil, 1},
		{"third", []error{objstore.ErrThrottled, objstore.ErrUnknown, nil}, nil, 3},
		{"never", []error{objstore.ErrThrottled, objstore.ErrThrottled, objstore.ErrUnknown}, objstore.ErrUnknown, 3},
		{"final", []error{objstore.ErrDenied}, objstore.ErrDenied, 1},
	} {
		calls := 0
		err := policy.Do(context.Background(), func() error { calls++; return c.errs[calls-1] })
		if !errors.Is(err, c.want) || calls != c.calls {
			t.Errorf("%s: %v after %d calls", c.name, err, calls)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	slow := objstore.Retry{First: time.Hour, Max: time.Hour}
	err := slow.Do(ctx, func() error { cancel(); return objstore.ErrThrottled })
	if !errors.Is(err, context.Canceled) || !errors.Is(err, objstore.ErrThrottled) {
		t.Errorf("cancelled in a pause: %v", err)
	}
	for n := range 100 {
		if d := policy.Backoff(n); d < time.Millisecond/2 || d > 2*time.Millisecond {
			t.Fatalf("pause %d is %v", n, d)
		}
	}
}

func TestExactBody(t *testing.T) {
	read := func(data string, size int64) (string, error) {
		got, err := io.ReadAll(objstore.ExactBody(io.NopCloser(strings.NewReader(data)), size))
		return string(got), err
	}
	for _, data := range []string{"abc", "abcdef"} {
		if got, err := read(data, 3); err != nil || got != "abc" {
			t.Errorf("3 bytes of %q: %q, %v", data, got, err)
		}
	}
	if _, err := read("ab", 3); !errors.Is(err, objstore.ErrUnknown) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short body: %v", err)
	}
}

// noSwaps enforces create-only puts, but ignores If-Match.
type noSwaps struct{ objstore.Bucket }

func (b noSwaps) Put(ctx context.Context, key string, body objstore.Body, opts objstore.PutOptions) (objstore.ObjectInfo, error) {
	opts.IfMatch = ""
	return b.Bucket.Put(ctx, key, body, opts)
}

func TestProbeWantsSwaps(t *testing.T) {
	b := noSwaps{objstore.NewMem()}
	if _, err := objstore.Probe(context.Background(), b); !errors.Is(err, objstore.ErrUnsuitable) {
		t.Fatalf("probe: %v", err)
	}
	if list, _, err := b.List(context.Background(), "", "", 10); err != nil || len(list) != 0 {
		t.Fatalf("probe left %v, %v", list, err)
	}
}
