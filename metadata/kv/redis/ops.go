package redis

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// revDigits is the length of a revision or counter in a row, a lease and a
// precondition.
const revDigits = 16

func formatRevision(r kv.Revision) string {
	if r == 0 {
		return "" // absent
	}
	return fmt.Sprintf("%0*d", revDigits, uint64(r))
}

func parseRevision(s string) (kv.Revision, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	return kv.Revision(n), err
}

// decodeRow splits a row into revision and value.
func decodeRow(key, row string) (kv.Item, error) {
	if len(row) >= revDigits {
		if rev, err := parseRevision(row[:revDigits]); err == nil {
			return kv.Item{Key: key, Revision: rev, Value: []byte(row[revDigits:])}, nil
		}
	}
	return kv.Item{}, fmt.Errorf("read %q: row of %d bytes has no revision: metadata in redis is damaged", key, len(row))
}

// Get implements kv.Store.
func (s *Store) Get(ctx context.Context, key string) (kv.Item, error) {
	word, a, err := s.run(ctx, false, getScript, []string{s.keys.meta, s.keys.rows}, key)
	switch {
	case err != nil:
		return kv.Item{}, fmt.Errorf("get %q: %w", key, err)
	case word == "absent":
		return kv.Item{}, fmt.Errorf("get %q: %w", key, kv.ErrNotFound)
	case word != "ok" || len(a) != 1:
		return kv.Item{}, unexpected("get", word, a)
	}
	return decodeRow(key, a[0])
}

// Range implements kv.Store. The items are those of one moment.
func (s *Store) Range(ctx context.Context, prefix, from string, limit int, reverse bool) ([]kv.Item, error) {
	if err := kv.CheckRange(prefix, from, limit); err != nil {
		return nil, err
	}
	low, high := bounds(prefix, from, reverse)
	command, first, second := "ZRANGEBYLEX", low, high
	if reverse {
		command, first, second = "ZREVRANGEBYLEX", high, low
	}
	word, a, err := s.run(ctx, false, rangeScript, []string{s.keys.meta, s.keys.sorted, s.keys.rows}, command, first, second, limit)
	switch {
	case err != nil:
		return nil, fmt.Errorf("range %q: %w", prefix, err)
	case word != "ok" || len(a)%2 != 0:
		return nil, unexpected("range", word, a)
	}
	var out []kv.Item
	for i := 0; i < len(a); i += 2 {
		it, err := decodeRow(a[i], a[i+1])
		if err != nil {
			return nil, err
		}
		out = append(out, it)
	}
	return out, nil
}

// bounds are those of a range in the words of ZRANGEBYLEX.
func bounds(prefix, from string, reverse bool) (low, high string) {
	low, high = "-", "+"
	if prefix != "" {
		low = "[" + prefix
	}
	if end := prefixEnd(prefix); end != "" {
		high = "(" + end
	}
	if from != "" {
		if reverse {
			high = "(" + from
		} else {
			low = "(" + from
		}
	}
	return low, high
}

// prefixEnd is the smallest key after all those with prefix; "": there is none.
func prefixEnd(prefix string) string {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return string(b[:i+1])
		}
	}
	return ""
}

// Commit implements kv.Store. All keys of a commit get one revision.
func (s *Store) Commit(ctx context.Context, ops []kv.Op, pre []kv.Precondition) ([]kv.Revision, error) {
	if err := kv.CheckCommit(ops, pre); err != nil {
		return nil, err
	}
	argv := make([]any, 0, 2+2*len(pre)+3*len(ops))
	argv = append(argv, s.opts.logBytes, len(pre))
	for _, p := range pre {
		argv = append(argv, p.Key, formatRevision(p.Revision))
	}
	for _, op := range ops {
		if op.Delete {
			argv = append(argv, "-", op.Key, "")
		} else {
			argv = append(argv, "+", op.Key, bytes.Clone(op.Value))
		}
	}
	k := []string{s.keys.meta, s.keys.sorted, s.keys.rows, s.keys.log}
	word, a, err := s.run(ctx, len(ops) > 0, commitScript, k, argv...)
	switch {
	case err != nil:
		return nil, fmt.Errorf("commit: %w", err)
	case word == "conflict" && len(a) == 2:
		return nil, conflict(a[0], a[1], pre)
	case word != "ok" || len(a) != 1:
		return nil, unexpected("commit", word, a)
	case len(ops) == 0:
		return nil, nil
	}
	rev, err := parseRevision(a[0])
	if err != nil {
		return nil, unexpected("commit", word, a)
	}
	revs := make([]kv.Revision, len(ops))
	for i, op := range ops {
		if !op.Delete {
			revs[i] = rev
		}
	}
	return revs, nil
}

func conflict(key, at string, pre []kv.Precondition) error {
	rev, _ := parseRevision(at) // "": absent, 0
	for _, p := range pre {
		if p.Key == key {
			return fmt.Errorf("commit: %w: %q is at revision %d, not %d", kv.ErrConflict, key, rev, p.Revision)
		}
	}
	return fmt.Errorf("commit: %w: %q is at revision %d", kv.ErrConflict, key, rev)
}

// unexpected is the error of an answer that no script gives.
func unexpected(what, word string, rest []string) error {
	return fmt.Errorf("%s: unexpected answer %q of redis with %d parts", what, word, len(rest))
}

// position returns the last revision given in the namespace.
func (s *Store) position(ctx context.Context) (kv.Revision, error) {
	word, a, err := s.run(ctx, false, positionScript, []string{s.keys.meta})
	if err != nil {
		return 0, err
	}
	if word != "ok" || len(a) != 1 {
		return 0, unexpected("position", word, a)
	}
	return parseRevision(a[0])
}

// Watch implements kv.Store, for changes made by any client of the namespace.
func (s *Store) Watch(ctx context.Context, prefix string) (<-chan []kv.Item, error) {
	at, err := s.position(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch %q: %w", prefix, err)
	}
	return s.changes.watch(ctx, prefix, at)
}

// Acquire implements kv.Leases. The server's clock tells when a lease expires.
func (s *Store) Acquire(ctx context.Context, key, owner string, ttl time.Duration) error {
	if err := kv.CheckKey(key); err != nil {
		return err
	}
	if owner == "" || ttl <= 0 {
		return fmt.Errorf("%w: lease of %q needs an owner and a positive ttl", kv.ErrInvalid, key)
	}
	ms := (ttl + time.Millisecond - 1) / time.Millisecond
	word, a, err := s.run(ctx, true, acquireScript, s.leaseKeys(key), owner, int64(ms))
	switch {
	case err != nil:
		return fmt.Errorf("acquire lease %q: %w", key, err)
	case word == "held" && len(a) == 1:
		return fmt.Errorf("acquire lease %q: %w: held by %s", key, kv.ErrLeaseLost, a[0])
	case word != "ok":
		return unexpected("acquire lease", word, a)
	}
	return nil
}

// Release implements kv.Leases. Releasing a lease one does not have is kv.ErrLeaseLost.
func (s *Store) Release(ctx context.Context, key, owner string) error {
	if err := kv.CheckKey(key); err != nil {
		return err
	}
	word, a, err := s.run(ctx, true, releaseScript, s.leaseKeys(key), owner)
	switch {
	case err != nil:
		return fmt.Errorf("release lease %q: %w", key, err)
	case word == "free":
		return fmt.Errorf("release lease %q: %w", key, kv.ErrLeaseLost)
	case word != "ok":
		return unexpected("release lease", word, a)
	}
	return nil
}

// Holder implements kv.Leases.
func (s *Store) Holder(ctx context.Context, key string) (owner string, counter uint64, err error) {
	if err := kv.CheckKey(key); err != nil {
		return "", 0, err
	}
	word, a, err := s.run(ctx, false, holderScript, s.leaseKeys(key))
	switch {
	case err != nil:
		return "", 0, fmt.Errorf("holder of lease %q: %w", key, err)
	case word == "free":
		return "", 0, nil
	case word != "ok" || len(a) != 1 || len(a[0]) <= revDigits+1:
		return "", 0, unexpected("holder of lease", word, a)
	}
	n, err := parseRevision(a[0][:revDigits])
	if err != nil {
		return "", 0, unexpected("holder of lease", word, a)
	}
	return a[0][revDigits+1:], uint64(n), nil
}

func (s *Store) leaseKeys(key string) []string { return []string{s.keys.meta, s.keys.leases + key} }
