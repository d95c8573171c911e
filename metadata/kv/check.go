package kv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
)

// CheckCommit refuses what no driver takes: ErrLimit beyond the limits of a
// commit, ErrInvalid for an empty key or one that stands twice among the ops or
// among the preconditions. Drivers call it first.
func CheckCommit(ops []Op, pre []Precondition) error {
	if n := len(ops) + len(pre); n > MaxCommitKeys {
		return fmt.Errorf("%w: commit of %d ops and preconditions, at most %d", ErrLimit, n, MaxCommitKeys)
	}
	total := 0
	seen := make(map[string]bool, len(ops))
	for _, op := range ops {
		if err := checkKey(op.Key, seen); err != nil {
			return err
		}
		if len(op.Value) > MaxValueBytes {
			return fmt.Errorf("%w: value of %q has %d bytes, at most %d", ErrLimit, op.Key, len(op.Value), MaxValueBytes)
		}
		total += len(op.Key) + len(op.Value)
	}
	clear(seen)
	for _, p := range pre {
		if err := checkKey(p.Key, seen); err != nil {
			return err
		}
		total += len(p.Key)
	}
	if total > MaxCommitBytes {
		return fmt.Errorf("%w: commit of %d bytes, at most %d", ErrLimit, total, MaxCommitBytes)
	}
	return nil
}

func checkKey(key string, seen map[string]bool) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if seen[key] {
		return fmt.Errorf("%w: key %q stands twice in one commit", ErrInvalid, key)
	}
	seen[key] = true
	return nil
}

// CheckKey refuses an empty or too long key.
func CheckKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: empty key", ErrInvalid)
	case len(key) > MaxKeyBytes:
		return fmt.Errorf("%w: key of %d bytes, at most %d", ErrLimit, len(key), MaxKeyBytes)
	}
	return nil
}

// CheckRange refuses a limit outside 1 to MaxRangeItems and a from that does
// not start with prefix.
func CheckRange(prefix, from string, limit int) error {
	if limit < 1 || limit > MaxRangeItems {
		return fmt.Errorf("%w: range limit %d, want 1 to %d", ErrInvalid, limit, MaxRangeItems)
	}
	if from != "" && (len(from) < len(prefix) || from[:len(prefix)] != prefix) {
		return fmt.Errorf("%w: range from %q lies outside prefix %q", ErrInvalid, from, prefix)
	}
	return nil
}

// Probe checks with one small row below "probe/" that a store can be written, and that its commits heed
// their preconditions. It removes the row.
func Probe(ctx context.Context, s Store) (err error) {
	key := "probe/" + rand.Text()
	create := func() error {
		_, err := s.Commit(ctx, []Op{{Key: key, Value: []byte("x")}}, []Precondition{{Key: key}})
		return err
	}
	if err := create(); err != nil && !errors.Is(err, ErrUnknown) {
		return fmt.Errorf("probe metadata store: write: %w", err)
	}
	defer func() {
		if _, derr := s.Commit(context.WithoutCancel(ctx), []Op{{Key: key, Delete: true}}, nil); derr != nil && err == nil {
			err = fmt.Errorf("probe metadata store: clean up: %w", derr)
		}
	}()
	if _, err := s.Get(ctx, key); err != nil {
		return fmt.Errorf("probe metadata store: read what was written: %w", err)
	}
	if err := create(); !errors.Is(err, ErrConflict) {
		return fmt.Errorf("probe metadata store: a commit whose precondition does not hold was not refused: %w", err)
	}
	return nil
}
