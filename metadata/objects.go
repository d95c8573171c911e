package metadata

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Formats of the objects under meta/ and of the rows. A greater one is ErrVersion.
const formatVersion = 1

// maxObject bounds, in bytes, what is read of one object under meta/.
const maxObject = 64 << 20

// encode renders an object or row.
func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return append(b, '\n'), nil
}

// decode parses an object or row of a known format. where names it in errors.
func decode(where string, b []byte, v any) error {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return fmt.Errorf("%s: %w: %w", where, ErrDamaged, err)
	}
	if head.Format != formatVersion {
		return fmt.Errorf("%s: %w %d, this program knows %d", where, ErrVersion, head.Format, formatVersion)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w: %w", where, ErrDamaged, err)
	}
	return nil
}

// transient says that the same may succeed when it is tried again.
func transient(err error) bool {
	return errors.Is(err, kv.ErrConflict) || errors.Is(err, kv.ErrUnknown) || errors.Is(err, kv.ErrUnavailable) || objstore.Retriable(err)
}

// unavailable wraps what clients may try again as ErrUnavailable and leaves
// alone what is about the request or the state.
func unavailable(what string, err error) error {
	if err == nil {
		return nil
	}
	for _, own := range []error{ErrForeignBucket, ErrVersion, ErrDamaged, ErrFenced, ErrNodeID, ErrUnknownNode, ErrInvalidConfig, ErrInvalidRequest,
		ErrInvalidPartitions, ErrPolicy, ErrTopicExists, ErrUnknownTopic, ErrUnavailable, ErrInvalidTopic, ErrTaken} {
		if errors.Is(err, own) {
			return err
		}
	}
	return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, err)
}

// retry calls do until it succeeds, fails for good, or s.tries are used up,
// with growing random pauses of at most 1 s.
func (s *Store) retry(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || !transient(err) || try >= s.opts.Tries {
			return err
		}
		pause := min(5*time.Millisecond<<min(try, 10), time.Second)
		pause = pause/2 + rand.N(pause)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-timer.C:
		}
	}
}

// update runs a read-decide-commit loop on rows: decide reads them and returns
// the ops that are still missing, with the preconditions of what it read. After
// a lost answer it is called again and finds the work done, or not.
func (s *Store) update(ctx context.Context, decide func() ([]kv.Op, []kv.Precondition, error)) error {
	return s.retry(ctx, func() error {
		ops, pre, err := decide()
		if err != nil || len(ops) == 0 {
			return err
		}
		_, err = s.opts.KV.Commit(ctx, ops, pre)
		return err
	})
}

// row reads a row; an absent one is an Item with revision 0.
func (s *Store) row(ctx context.Context, key string) (kv.Item, error) {
	it, err := s.opts.KV.Get(ctx, key)
	if errors.Is(err, kv.ErrNotFound) {
		return kv.Item{Key: key}, nil
	}
	return it, err
}

// rows calls f with all rows under prefix, in order.
func (s *Store) rows(ctx context.Context, prefix string, f func(kv.Item) error) error {
	from := ""
	for {
		var items []kv.Item
		err := s.retry(ctx, func() (err error) {
			items, err = s.opts.KV.Range(ctx, prefix, from, kv.MaxRangeItems, false)
			return err
		})
		if err != nil {
			return err
		}
		for _, it := range items {
			if err := f(it); err != nil {
				return err
			}
			from = it.Key
		}
		if len(items) < kv.MaxRangeItems {
			return nil
		}
	}
}

// get reads a whole object; objstore.ErrNotFound if there is none.
func (s *Store) get(ctx context.Context, key string) ([]byte, error) {
	var body []byte
	err := s.retry(ctx, func() error {
		r, _, err := s.opts.Bucket.Get(ctx, key, 0, -1)
		if err != nil {
			return err
		}
		defer r.Close()
		body, err = io.ReadAll(io.LimitReader(r, maxObject+1))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	if len(body) > maxObject {
		return nil, fmt.Errorf("read %s: object is larger than %d bytes", key, maxObject)
	}
	return body, nil
}

// create puts an object that must not exist yet. It returns true when this
// body is the object, also when the answer to the put was lost, and else what
// the object holds (nil if it was deleted since). Bodies carry a nonce, so that
// equal means one's own.
func (s *Store) create(ctx context.Context, key string, body []byte) (won bool, other []byte, err error) {
	won, err = objstore.PutCreateOnly(ctx, s.opts.Bucket, key, bytes.NewReader(body), objstore.PutOptions{})
	if err == nil || !errors.Is(err, objstore.ErrPrecondition) {
		return won, nil, err
	}
	other, err = s.get(ctx, key)
	if errors.Is(err, objstore.ErrNotFound) {
		return false, nil, nil
	}
	return false, other, err
}

// list calls f with all objects under prefix after the key after, in order.
func (s *Store) list(ctx context.Context, prefix, after string, f func(objstore.ObjectInfo) error) error {
	for {
		var objects []objstore.ObjectInfo
		var more bool
		err := s.retry(ctx, func() (err error) {
			objects, more, err = s.opts.Bucket.List(ctx, prefix, after, 1000)
			return err
		})
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		for _, o := range objects {
			if err := f(o); err != nil {
				return err
			}
			after = o.Key
		}
		if !more || len(objects) == 0 {
			return nil
		}
	}
}

// last returns the greatest key under prefix after the key after; "" if none.
func (s *Store) last(ctx context.Context, prefix, after string) (string, error) {
	last := ""
	err := s.list(ctx, prefix, after, func(o objstore.ObjectInfo) error {
		last = o.Key
		return nil
	})
	return last, err
}
