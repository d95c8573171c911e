package dynamo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

const (
	maxHot      = maxTransact // keys that a Range reads in one transaction
	maxHotBytes = 3 << 20     // of at most 4 MB
	warm        = 5 * time.Second
	pageSlack   = 8
)

// errMoving: the range changed each time it was read.
var errMoving = errors.New("the range changes faster than it can be read")

// Range implements kv.Store. What it returns stood in the table at one instant
// during the call; docs/format/kv-dynamo.md says why. It reads the range twice,
// and keys that changed lately once more, in one transaction.
func (s *Store) Range(ctx context.Context, prefix, from string, limit int, reverse bool) ([]kv.Item, error) {
	if err := kv.CheckRange(prefix, from, limit); err != nil {
		return nil, err
	}
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	if n := max(len(prefix), len(from)); n > kv.MaxKeyBytes {
		return nil, fmt.Errorf("range %.20q…: %w: prefix or start of %d bytes, at most %d", prefix, kv.ErrLimit, n, kv.MaxKeyBytes)
	}
	r := &ranger{
		s: s, prefix: prefix, from: from, limit: limit, reverse: reverse,
		hot: map[string]bool{}, t: s.newTries(),
	}
	rows, err := r.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("range %q: %w", prefix, err)
	}
	var out []kv.Item
	for _, row := range rows {
		if row.value != nil {
			out = append(out, row.item())
		}
	}
	return out, nil
}

// ranger is one Range.
type ranger struct {
	s            *Store
	prefix, from string
	limit        int
	reverse      bool
	t            *tries
	hot          map[string]bool // keys to read in one transaction
	hotBytes     int
}

// span is what one pass over the range found, tombstones included: all up to
// the last row, or, when whole, all.
type span struct {
	rows  []row
	whole bool
}

// before orders keys as the range does.
func (r *ranger) before(a, b string) bool {
	if r.reverse {
		return a > b
	}
	return a < b
}

// run passes over the range until two passes in a row agree on all keys but the
// hot ones, which are read in one transaction between the two. Then what the
// passes agree on stood in the table at the instant of that transaction: a
// revision never comes back, and a deleted key leaves its tombstone.
func (r *ranger) run(ctx context.Context) ([]row, error) {
	a, err := r.pass(ctx)
	if err != nil {
		return nil, err
	}
	for _, row := range a.rows {
		if r.s.clock.within(row.rev, warm) {
			r.heat(row)
		}
	}
	for {
		hot, err := r.readHot(ctx)
		if err != nil {
			return nil, err
		}
		b, err := r.pass(ctx)
		if err != nil {
			return nil, err
		}
		found, changed := r.merge(a, b, hot)
		if len(changed) == 0 {
			if found, enough := r.cut(found); enough {
				complete, err := r.complete(ctx, found)
				if err != nil {
					return nil, err
				}
				if complete {
					return found.rows, nil
				}
			}
		}
		r.learn(a, b, changed)
		a = b
		if err := r.rest(ctx); err != nil {
			return nil, err
		}
	}
}

// rest waits a little, or ends the Range.
func (r *ranger) rest(ctx context.Context) error {
	if r.t.n < 3 { // most likely one commit came between
		r.t.n++
		return ctx.Err()
	}
	return r.t.pause(ctx, errMoving)
}

// heat adds a key to the hot ones if there is room.
func (r *ranger) heat(x row) {
	if r.hot[x.key] || len(r.hot) >= maxHot || r.hotBytes+x.size() > maxHotBytes {
		return
	}
	r.hot[x.key] = true
	r.hotBytes += x.size()
}

// learn makes hot what changed between two passes, or all if that is little.
func (r *ranger) learn(a, b span, changed []row) {
	if len(changed) == 0 {
		return
	}
	for _, x := range changed {
		r.heat(x)
	}
	if len(a.rows)+len(b.rows) <= maxHot {
		for _, x := range append(a.rows[:len(a.rows):len(a.rows)], b.rows...) {
			r.heat(x)
		}
	}
	if len(r.hot) >= maxHot || r.hotBytes >= maxHotBytes {
		// Too many at a time: start again with those of the last pass.
		r.hot, r.hotBytes = map[string]bool{}, 0
		for _, x := range changed {
			r.heat(x)
		}
	}
}

func (r *ranger) readHot(ctx context.Context) (map[string]row, error) {
	if len(r.hot) == 0 {
		return nil, nil
	}
	keys := make([]string, 0, len(r.hot))
	for k := range r.hot {
		keys = append(keys, k)
	}
	return r.s.rowsAtOnce(ctx, r.t, keys)
}

// merge returns what two passes and the transaction between them agree on, as
// far as both passes came, and the rows on which the passes disagree.
func (r *ranger) merge(a, b span, hot map[string]row) (found span, changed []row) {
	end, whole := r.end(a, b)
	found.whole = whole
	x, y := a.rows, b.rows
	for len(x) > 0 || len(y) > 0 {
		var at row
		var inA, inB bool
		if len(y) == 0 || len(x) > 0 && !r.before(y[0].key, x[0].key) {
			at, inA = x[0], true
		}
		if !inA || len(y) > 0 && y[0].key == at.key {
			agree := inA && at.rev == y[0].rev
			at, inA, inB = y[0], agree, true
		}
		if !whole && r.before(end, at.key) {
			break
		}
		now, there := hot[at.key]
		switch {
		case there:
			found.rows = append(found.rows, now)
		case r.hot[at.key]: // its tombstone expired
		case inA && inB:
			found.rows = append(found.rows, at)
		default:
			changed = append(changed, at)
		}
		if len(x) > 0 && x[0].key == at.key {
			x = x[1:]
		}
		if len(y) > 0 && y[0].key == at.key {
			y = y[1:]
		}
	}
	return found, changed
}

// end is the last key that both passes reached.
func (r *ranger) end(a, b span) (key string, whole bool) {
	switch {
	case a.whole && b.whole:
		return "", true
	case a.whole:
		return b.rows[len(b.rows)-1].key, false
	case b.whole:
		return a.rows[len(a.rows)-1].key, false
	}
	x, y := a.rows[len(a.rows)-1].key, b.rows[len(b.rows)-1].key
	if r.before(x, y) {
		return x, false
	}
	return y, false
}

// cut ends a span behind its limit-th item; false: it has too few of them.
func (r *ranger) cut(s span) (span, bool) {
	live := 0
	for i, x := range s.rows {
		if x.value != nil {
			live++
		}
		if live == r.limit {
			return span{rows: s.rows[:i+1]}, true
		}
	}
	return s, s.whole
}

// complete reports whether a span holds, of every late commit that it shows a
// part of, all that belongs into it: DynamoDB shows the items of a transaction
// one after the other.
func (r *ranger) complete(ctx context.Context, s span) (bool, error) {
	needed := map[logRef]bool{} // false: of a commit before the last on some key
	for _, x := range s.rows {
		if !r.s.clock.within(x.rev, r.s.opts.recent) {
			continue
		}
		if x.log != 0 {
			needed[x.log] = true
		}
		if x.prev != 0 && !needed[x.prev] {
			needed[x.prev] = false
		}
	}
	if len(needed) == 0 {
		return true, nil
	}
	refs := make([]logRef, 0, len(needed))
	for ref := range needed {
		refs = append(refs, ref)
	}
	entries, err := r.s.entries(ctx, refs)
	if err != nil {
		return false, err
	}
	byKey := make(map[string]row, len(s.rows))
	for _, x := range s.rows {
		byKey[x.key] = x
	}
	for ref, must := range needed {
		e, ok := entries[ref]
		if !ok && must {
			return false, nil // not visible yet
		}
		if !ok || !r.s.clock.within(e.rev, r.s.opts.recent) {
			continue
		}
		for _, k := range e.keys {
			if r.covers(s, k) && byKey[k].rev < e.rev {
				return false, nil
			}
		}
	}
	return true, nil
}

// covers reports whether a span tells about a key.
func (r *ranger) covers(s span, key string) bool {
	switch {
	case !strings.HasPrefix(key, r.prefix), r.from != "" && !r.before(r.from, key):
		return false
	case s.whole:
		return true
	}
	return !r.before(s.rows[len(s.rows)-1].key, key)
}

// stream reads one bucket's part of the range, page by page.
type stream struct {
	bucket int
	rows   []row
	next   attrs // of the page after
	end    bool
}

// pass reads the range once, up to limit items and one for each hot key, which
// may vanish: a query of each bucket, merged.
func (r *ranger) pass(ctx context.Context) (span, error) {
	want := r.limit + len(r.hot)
	var streams []*stream
	for _, b := range bucketsOf(r.prefix) {
		st := &stream{bucket: b}
		if r.from != "" {
			// Any key may start a page, also one that lies in another bucket.
			st.next = r.s.lay.key(rowKind(b), []byte(r.from))
		}
		streams = append(streams, st)
	}
	size := want/len(streams) + pageSlack
	g, gctx := errgroup.WithContext(ctx)
	for _, st := range streams {
		g.Go(func() error { return r.fetch(gctx, st, size) })
	}
	if err := g.Wait(); err != nil {
		return span{}, err
	}
	var out span
	for live := 0; live < want; {
		var first *stream
		for _, st := range streams {
			for len(st.rows) == 0 && !st.end {
				if err := r.fetch(ctx, st, size); err != nil {
					return span{}, err
				}
			}
			if len(st.rows) > 0 && (first == nil || r.before(st.rows[0].key, first.rows[0].key)) {
				first = st
			}
		}
		if first == nil {
			out.whole = true
			break
		}
		if first.rows[0].value != nil {
			live++
		}
		out.rows = append(out.rows, first.rows[0])
		first.rows = first.rows[1:]
	}
	return out, nil
}

// fetch reads the next page of a stream.
func (r *ranger) fetch(ctx context.Context, st *stream, size int) error {
	in := dynamodb.QueryInput{
		KeyConditionExpression:    aws.String("pk = :pk"),
		ExpressionAttributeValues: attrs{":pk": text(r.s.lay.pk(rowKind(st.bucket)))},
		ScanIndexForward:          aws.Bool(!r.reverse), Limit: aws.Int32(int32(size)), ExclusiveStartKey: st.next,
	}
	if r.prefix != "" {
		in.KeyConditionExpression = aws.String("pk = :pk AND begins_with(sk, :prefix)")
		in.ExpressionAttributeValues[":prefix"] = blob([]byte(r.prefix))
	}
	p, err := r.s.query(ctx, &tries{until: r.t.until}, in)
	if err != nil {
		return err
	}
	for _, it := range p.items {
		row, err := decodeRow(it)
		if err != nil {
			return err
		}
		st.rows = append(st.rows, row)
	}
	st.next, st.end = p.next, p.next == nil
	return nil
}
