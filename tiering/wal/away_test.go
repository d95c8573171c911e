package wal

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// refusing is a bucket that refuses puts while it is told to.
type refusing struct {
	objstore.Bucket
	why  atomic.Pointer[error]
	puts atomic.Int64 // that were refused
}

func (r *refusing) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) (objstore.ObjectInfo, error) {
	if why := r.why.Load(); why != nil {
		r.puts.Add(1)
		return objstore.ObjectInfo{}, fmt.Errorf("put %s: %w", key, *why)
	}
	return r.Bucket.Put(ctx, key, body, o)
}

// Credentials that expire, or a bucket that is away for the store: appends wait for as long as that takes, with
// few puts meanwhile, and go on where they were. The stream does not fail.
func TestDeniedForAWhile(t *testing.T) {
	for _, why := range []error{objstore.ErrDenied, objstore.ErrClock, objstore.ErrNoBucket, objstore.ErrThrottled} {
		t.Run(why.Error(), func(t *testing.T) {
			t.Parallel()
			b := &refusing{Bucket: objstore.NewMem()}
			w := newOwner(t, b, Options{})
			w.accept(part(0))
			b.why.Store(&why)
			const appends = 8
			for range appends {
				if err := w.append(part(0), 100); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second)
			w.mu.Lock()
			if w.acked[part(0)] != 0 || w.err != nil {
				t.Errorf("acknowledged to %d, %v", w.acked[part(0)], w.err)
			}
			w.mu.Unlock()
			if n := b.puts.Load(); n < 2 || n > 100 {
				t.Errorf("%d puts in a second", n)
			}
			b.why.Store(nil)
			w.settle()
			if st := w.State(); st.Err != nil {
				t.Fatal(st.Err)
			}
			heir := ids.NewIncarnation()
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			s, err := SealStream(context.Background(), b, [16]byte{}, w.inc, heir, heirsOf(heir))
			if err != nil {
				t.Fatal(err)
			}
			w.check(b, s, nil)
			if w.acked[part(0)] != appends {
				t.Errorf("acknowledged to %d of %d", w.acked[part(0)], appends)
			}
		})
	}
}

// pages is a bucket whose lists have few keys, and which is told between two of them.
type pages struct {
	objstore.Bucket
	keys    int
	between func(page int)
	n       int
}

func (p *pages) List(ctx context.Context, prefix, after string, limit int) ([]objstore.ObjectInfo, bool, error) {
	out, more, err := p.Bucket.List(ctx, prefix, after, min(limit, p.keys))
	if more {
		p.between(p.n)
		p.n++
	}
	return out, more, err
}

// A stream that its owner writes and trims between two pages of its sealer's list is sealed behind all that was
// acknowledged, and all of that which is needed is found.
func TestSealBetweenPages(t *testing.T) {
	for at := range 11 {
		for _, keys := range []int{1, 3} {
			mem := objstore.NewMem()
			w := newOwner(t, mem, Options{CheckpointEvery: 3})
			w.accept(part(0))
			grow := func(n int) {
				for range n {
					if err := w.append(part(0), 100); err != nil {
						t.Fatal(err)
					}
					w.settle()
				}
			}
			grow(12)
			const upTo = 9
			moved := map[ids.TopicPartition]int64{}
			b := &pages{Bucket: mem, keys: keys, between: func(page int) {
				if page != at/keys {
					return
				}
				grow(5)
				if err := w.Trim(w.pos[part(0)][upTo]); err != nil {
					t.Fatal(err)
				}
				moved[part(0)] = upTo
				for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
					if _, err := mem.Head(context.Background(), Key(w.inc, upTo)); errors.Is(err, objstore.ErrNotFound) {
						break
					}
					if time.Now().After(end) {
						t.Fatal("trimmed objects stay")
					}
				}
			}}
			heir := ids.NewIncarnation()
			s, err := SealStream(context.Background(), b, [16]byte{}, w.inc, heir, heirsOf(heir))
			if err != nil {
				t.Fatal(err)
			}
			if moved[part(0)] != upTo {
				t.Fatalf("the list had %d pages", b.n)
			}
			w.check(mem, s, moved)
			if err := w.append(part(0), 100); err == nil {
				w.settle()
			}
			_ = w.Close() // it was fenced
			if w.acked[part(0)] != 17 {
				t.Errorf("acknowledged to %d", w.acked[part(0)])
			}
		}
	}
}
