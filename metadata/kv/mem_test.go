package kv_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/metadata/kv/kvtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMem(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kv.Store {
		s := kv.NewMem(kv.MemOptions{})
		t.Cleanup(func() { s.Close() })
		return s
	})
}

func TestHooks(t *testing.T) {
	ctx := context.Background()
	var before, after error
	s := kv.NewMem(kv.MemOptions{Hooks: kv.Hooks{
		Before: func(kv.Call) error { return before },
		After:  func(kv.Call) error { return after },
	}})
	defer s.Close()
	op := []kv.Op{{Key: "a", Value: []byte("1")}}
	before = kv.ErrUnavailable
	if _, err := s.Commit(ctx, op, nil); !errors.Is(err, kv.ErrUnavailable) {
		t.Fatal(err)
	}
	before = nil
	if _, err := s.Get(ctx, "a"); !errors.Is(err, kv.ErrNotFound) {
		t.Fatalf("a commit kept from the store was carried out: %v", err)
	}
	after = kv.ErrUnknown
	if _, err := s.Commit(ctx, op, nil); !errors.Is(err, kv.ErrUnknown) {
		t.Fatal(err)
	}
	after = nil
	if it, err := s.Get(ctx, "a"); err != nil || string(it.Value) != "1" {
		t.Fatalf("a commit whose answer was lost was not carried out: %v", err)
	}
}

func TestHubEndsOverflowingWatch(t *testing.T) {
	h := kv.NewHub()
	defer h.Close()
	ch, err := h.Watch(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	// The watch may have taken 100,000 keys to hand them out: as many again, and more.
	for i := range 210 {
		items := make([]kv.Item, 1000)
		for j := range items {
			items[j] = kv.Item{Key: fmt.Sprint(i, "/", j), Value: []byte{}, Revision: 1}
		}
		h.Publish(items)
	}
	for range ch { // must end
	}
}
