package dynamo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// maxTransact is DynamoDB's limit of items in one transaction; maxTogether what
// is left beside an entry of the change log and its head.
const (
	maxTransact = 100
	maxTogether = maxTransact - 2
)

// write is what a commit does to one key: an op, a precondition, or both.
type write struct {
	key string
	op  *kv.Op
	pre *kv.Revision
	// at is a condition of our own: the revision of the row, of a tombstone
	// too; 0: there is none.
	at *kv.Revision
}

// writesOf merges ops and preconditions by key; the first len(ops) are the ops.
func writesOf(ops []kv.Op, pre []kv.Precondition) []write {
	out := make([]write, 0, len(ops)+len(pre))
	at := make(map[string]int, len(ops))
	for i := range ops {
		at[ops[i].Key] = i
		out = append(out, write{key: ops[i].Key, op: &ops[i]})
	}
	for i := range pre {
		if j, ok := at[pre[i].Key]; ok {
			out[j].pre = &pre[i].Revision
		} else {
			out = append(out, write{key: pre[i].Key, pre: &pre[i].Revision})
		}
	}
	return out
}

// Commit implements kv.Store. A commit whose answer does not come is sent again
// with the same token, by which DynamoDB knows it.
func (s *Store) Commit(ctx context.Context, ops []kv.Op, pre []kv.Precondition) ([]kv.Revision, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	if err := kv.CheckCommit(ops, pre); err != nil {
		return nil, err
	}
	revs := make([]kv.Revision, len(ops))
	if len(ops)+len(pre) == 0 {
		return revs, nil
	}
	rev, err := s.commit(ctx, writesOf(ops, pre), len(ops))
	if err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	for i := range ops {
		if !ops[i].Delete {
			revs[i] = rev
		}
	}
	s.watch.hurry()
	return revs, nil
}

// errAgain asks for another try of a commit with what the last one taught.
var errAgain = errors.New("another commit was faster")

// commit carries out writes, whose first ops have one, and returns the revision
// they got.
func (s *Store) commit(ctx context.Context, writes []write, ops int) (kv.Revision, error) {
	t := s.newWriteTries()
	for {
		rev, err := s.tryCommit(ctx, t, writes, ops)
		if !errors.Is(err, errAgain) {
			return rev, err
		}
		if err := t.pause(ctx, err); err != nil {
			return 0, err
		}
	}
}

func (s *Store) tryCommit(ctx context.Context, t *tries, writes []write, ops int) (kv.Revision, error) {
	if ops == 0 {
		return 0, s.judge(writes, nil, s.transact(ctx, t, s.items(writes, 0, 0)))
	}
	sh, err := s.shards.take(ctx)
	if err != nil {
		return 0, t.failed(err, errors.New("not sent"))
	}
	seq := sh.seq
	defer func() { s.shards.put(sh, err != nil && sh.seq != seq) }()
	rev := s.clock.next()
	if len(writes) > maxTogether {
		err = s.commitLarge(ctx, t, sh, writes, ops, rev)
		return rev, err
	}
	e := s.entryOf(sh, writes[:ops], rev)
	ref := e.ref
	if ops == 1 {
		ref = 0
	}
	err = s.judge(writes, sh, s.transact(ctx, t, append(s.items(writes, rev, ref), s.append(sh, e)...)))
	if err == nil {
		sh.seq++
	}
	return rev, err
}

// transact sends one transaction, again and again with the same token, until
// DynamoDB says what became of it.
func (s *Store) transact(ctx context.Context, t *tries, items []types.TransactWriteItem) error {
	in := &dynamodb.TransactWriteItemsInput{TransactItems: items, ClientRequestToken: aws.String(rand.Text())}
	return s.do(ctx, t, func(ctx context.Context) error {
		out, err := s.api.TransactWriteItems(ctx, in)
		if err == nil {
			s.clock.server(out.ResultMetadata)
		}
		return err
	})
}

// items are those of the keys, in the order of writes.
func (s *Store) items(writes []write, rev kv.Revision, ref logRef) []types.TransactWriteItem {
	out := make([]types.TransactWriteItem, len(writes), len(writes)+2)
	expires := s.clock.now().Add(keep).Unix()
	for i, w := range writes {
		values := attrs{}
		cond := w.condition(values)
		if w.op == nil {
			out[i].ConditionCheck = &types.ConditionCheck{
				TableName: &s.lay.table, Key: s.lay.rowKey(w.key), ConditionExpression: &cond,
				ExpressionAttributeValues:           orNil(values),
				ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
			}
			continue
		}
		values[":r"], values[":l"], values[":zero"] = number(uint64(rev)), number(uint64(ref)), number(0)
		update := "SET r = :r, l = :l, p = if_not_exists(l, :zero), v = :v REMOVE x"
		if w.op.Delete {
			update = "SET r = :r, l = :l, p = if_not_exists(l, :zero), x = :x REMOVE v"
			values[":x"] = number(uint64(expires))
		} else {
			values[":v"] = blob(w.op.Value)
		}
		out[i].Update = &types.Update{
			TableName: &s.lay.table, Key: s.lay.rowKey(w.key), ConditionExpression: &cond,
			UpdateExpression: &update, ExpressionAttributeValues: values,
			ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		}
	}
	return out
}

func orNil(a attrs) attrs {
	if len(a) == 0 {
		return nil
	}
	return a
}

// condition of a key's item: the precondition, our own, and that revisions grow.
func (w write) condition(values attrs) string {
	cond := ""
	and := func(c string) {
		if cond != "" {
			cond += " AND "
		}
		cond += c
	}
	if w.op != nil {
		and("(attribute_not_exists(r) OR r < :r)")
	}
	if w.pre != nil && *w.pre == 0 {
		and("attribute_not_exists(v)")
	} else if w.pre != nil {
		values[":pre"] = number(uint64(*w.pre))
		and("r = :pre AND attribute_exists(v)")
	}
	if w.at != nil && *w.at == 0 {
		and("attribute_not_exists(r)")
	} else if w.at != nil {
		values[":at"] = number(uint64(*w.at))
		and("r = :at")
	}
	return cond
}

func (s *Store) entryOf(sh *shard, writes []write, rev kv.Revision) entry {
	e := entry{ref: refOf(sh.n, sh.seq+1), rev: rev, keys: make([]string, len(writes))}
	for i, w := range writes {
		e.keys[i] = w.key
	}
	return e
}

// append are the items that add e to the change log. Its number follows that of
// the head, so that the log has no gaps.
func (s *Store) append(sh *shard, e entry) []types.TransactWriteItem {
	values := attrs{":q": number(e.ref.seq()), ":r": number(uint64(e.rev))}
	cond := "attribute_not_exists(q)"
	if sh.seq > 0 {
		cond, values[":was"] = "q = :was", number(sh.seq)
	}
	return []types.TransactWriteItem{
		{Update: &types.Update{
			TableName: &s.lay.table, Key: s.lay.headKey(sh.n), ConditionExpression: &cond,
			UpdateExpression: aws.String("SET q = :q, r = :r"), ExpressionAttributeValues: values,
			ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		}},
		{Put: &types.Put{TableName: &s.lay.table, Item: e.attrs(s.lay, s.clock.now().Add(keep).Unix())}},
	}
}

// judge turns the refusal of a transaction into ErrConflict if a precondition
// failed, and into errAgain if another try may succeed: it has learnt from what
// the refusal shows. The items were those of writes, then those of sh.
func (s *Store) judge(writes []write, sh *shard, err error) error {
	var cancelled *types.TransactionCanceledException
	if !errors.As(err, &cancelled) {
		return err
	}
	again := false
	var conflict error
	for i, reason := range cancelled.CancellationReasons {
		switch aws.ToString(reason.Code) {
		case "None", "":
		case "ConditionalCheckFailed":
			again = true
			if i < len(writes) {
				conflict = errors.Join(conflict, s.failedRow(writes[i], reason.Item))
			} else if sh != nil {
				seq, _ := numberOf(reason.Item, attrSeq)
				sh.seq = seq
			}
		case "TransactionConflict", "ProvisionedThroughputExceeded", "ThrottlingError":
			again = true
		default:
			return err
		}
	}
	switch {
	case conflict != nil:
		return conflict
	case again:
		return fmt.Errorf("%w: %w", errAgain, err)
	}
	return err
}

// failedRow tells a failed precondition from a revision that was too low.
func (s *Store) failedRow(w write, item attrs) error {
	var have row
	if len(item) > 0 {
		r, err := decodeRow(item)
		if err != nil {
			return err
		}
		have = r
	}
	if w.pre != nil && *w.pre != have.visible() {
		return fmt.Errorf("%w: %q is at revision %d, not %d", kv.ErrConflict, w.key, have.visible(), *w.pre)
	}
	s.clock.observe(have.rev)
	return nil
}

// commitLarge is a commit that leaves no room in its transaction for the change
// log. Its entry goes first, in a transaction of its own, and names the revision
// of the first key, on which the commit then depends: whoever waits for the
// commit and sees another revision there knows that it has happened or never
// will, and can bring that about.
func (s *Store) commitLarge(ctx context.Context, t *tries, sh *shard, writes []write, ops int, rev kv.Revision) error {
	first, err := s.row(ctx, writes[0].key)
	if err != nil {
		return err
	}
	e := s.entryOf(sh, writes[:ops], rev)
	e.large, e.anchor = true, first.rev
	announce := &tries{until: t.until, write: true}
	if err := s.judge(nil, sh, s.transact(ctx, announce, s.append(sh, e))); err != nil {
		if errors.Is(err, kv.ErrUnknown) { // the entry, not the commit
			return fmt.Errorf("%w: %v", kv.ErrUnavailable, err)
		}
		return err
	}
	sh.seq++
	anchored := append([]write(nil), writes...)
	anchored[0].at = &first.rev
	err = s.judge(anchored, nil, s.transact(ctx, t, s.items(anchored, rev, e.ref)))
	switch {
	case err == nil:
		s.decided(ctx, e.ref, applied)
	case !errors.Is(err, kv.ErrUnknown):
		s.decided(ctx, e.ref, failed)
	}
	return err
}

// decided spares the watches further looks at a large commit. They find out
// without it too.
func (s *Store) decided(ctx context.Context, ref logRef, outcome uint64) {
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.Timeout)
	defer cancel()
	_, err := s.api.UpdateItem(actx, &dynamodb.UpdateItemInput{
		TableName: &s.lay.table, Key: s.lay.entryKey(ref), UpdateExpression: aws.String("SET e = :e"),
		ConditionExpression: aws.String("attribute_exists(r)"), ExpressionAttributeValues: attrs{":e": number(outcome)},
	})
	if err != nil {
		s.opts.Logger.Debug("could not note that a commit is decided", "err", err)
	}
}

// fence settles that a large commit which still waits for a key's revision will
// never come: it writes the same row again.
func (s *Store) fence(ctx context.Context, key string, anchor kv.Revision) error {
	r, err := s.row(ctx, key)
	if err != nil || r.rev != anchor {
		return err
	}
	op := kv.Op{Key: key, Value: r.value, Delete: r.value == nil}
	_, err = s.tryCommit(ctx, s.newWriteTries(), []write{{key: key, op: &op, at: &anchor}}, 1)
	return err
}
