package dynamo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

const maxBatch = 100 // keys of one BatchGetItem

// batch reads items by their keys, each consistently but not all at one instant.
func (s *Store) batch(ctx context.Context, keys []attrs) ([]attrs, error) {
	var out []attrs
	for part := range slices.Chunk(keys, maxBatch) {
		t := s.newTries()
		for len(part) > 0 {
			var got *dynamodb.BatchGetItemOutput
			err := s.do(ctx, t, func(ctx context.Context) (err error) {
				got, err = s.api.BatchGetItem(ctx, &dynamodb.BatchGetItemInput{RequestItems: map[string]types.KeysAndAttributes{
					s.lay.table: {Keys: part, ConsistentRead: aws.Bool(true)},
				}})
				return err
			})
			if err != nil {
				return nil, err
			}
			out = append(out, got.Responses[s.lay.table]...)
			left := got.UnprocessedKeys[s.lay.table].Keys
			if len(left) >= len(part) {
				if err := t.pause(ctx, errors.New("throttled: no item was read")); err != nil {
					return nil, err
				}
			}
			part = left
		}
	}
	return out, nil
}

// rows reads the rows of keys, each consistently. Keys without one are missing.
func (s *Store) rows(ctx context.Context, keys []string) (map[string]row, error) {
	items, err := s.batch(ctx, s.rowKeys(keys))
	if err != nil {
		return nil, err
	}
	return rowsByKey(items)
}

func (s *Store) rowKeys(keys []string) []attrs {
	out := make([]attrs, len(keys))
	for i, k := range keys {
		out[i] = s.lay.rowKey(k)
	}
	return out
}

func rowsByKey(items []attrs) (map[string]row, error) {
	out := make(map[string]row, len(items))
	for _, it := range items {
		if len(it) == 0 {
			continue
		}
		r, err := decodeRow(it)
		if err != nil {
			return nil, err
		}
		out[r.key] = r
	}
	return out, nil
}

// rowsAtOnce reads the rows of at most 100 keys as they were at one instant, at
// which no transaction was under way on them.
func (s *Store) rowsAtOnce(ctx context.Context, t *tries, keys []string) (map[string]row, error) {
	in := &dynamodb.TransactGetItemsInput{}
	for _, k := range s.rowKeys(keys) {
		in.TransactItems = append(in.TransactItems, types.TransactGetItem{Get: &types.Get{TableName: &s.lay.table, Key: k}})
	}
	var out *dynamodb.TransactGetItemsOutput
	err := s.do(ctx, t, func(ctx context.Context) (err error) {
		out, err = s.api.TransactGetItems(ctx, in)
		if ranIntoAnother(err) {
			return fmt.Errorf("%w: %w", errBusy, err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	items := make([]attrs, len(out.Responses))
	for i, r := range out.Responses {
		items[i] = r.Item
	}
	return rowsByKey(items)
}

// ranIntoAnother reports whether a transaction was cancelled for nothing but
// others on its items, or throttling.
func ranIntoAnother(err error) bool {
	var cancelled *types.TransactionCanceledException
	if !errors.As(err, &cancelled) {
		return false
	}
	for _, r := range cancelled.CancellationReasons {
		switch aws.ToString(r.Code) {
		case "None", "", "TransactionConflict", "ProvisionedThroughputExceeded", "ThrottlingError":
		default:
			return false
		}
	}
	return true
}

// entries reads entries of the change log. Those that are not there are missing.
func (s *Store) entries(ctx context.Context, refs []logRef) (map[logRef]entry, error) {
	keys := make([]attrs, len(refs))
	for i, r := range refs {
		keys[i] = s.lay.entryKey(r)
	}
	items, err := s.batch(ctx, keys)
	if err != nil {
		return nil, err
	}
	kinds := make(map[string]int, len(refs))
	for _, r := range refs {
		kinds[s.lay.pk(logKind(r.shard()))] = r.shard()
	}
	out := make(map[logRef]entry, len(items))
	for _, it := range items {
		pk, _ := it[attrPK].(*types.AttributeValueMemberS)
		if pk == nil {
			return nil, errors.New("entry of the change log without a partition key")
		}
		e, err := decodeEntry(kinds[pk.Value], it)
		if err != nil {
			return nil, err
		}
		out[e.ref] = e
	}
	return out, nil
}

// page is one answer of a query in one partition.
type page struct {
	items []attrs
	next  attrs // where the next page starts; nil: this was the last
}

// query is a consistent read of one page of items under a partition key.
func (s *Store) query(ctx context.Context, t *tries, in dynamodb.QueryInput) (page, error) {
	in.TableName, in.ConsistentRead = &s.lay.table, aws.Bool(true)
	var p page
	err := s.do(ctx, t, func(ctx context.Context) error {
		out, err := s.api.Query(ctx, &in)
		if err != nil {
			return err
		}
		s.clock.server(out.ResultMetadata)
		p = page{items: out.Items, next: orNil(out.LastEvaluatedKey)}
		return nil
	})
	return p, err
}

// head is the end of one shard of the change log.
type head struct {
	seq uint64
	rev kv.Revision // of the last entry
}

// heads reads the ends of all shards, in one small query. Shards without an
// entry are missing.
func (s *Store) heads(ctx context.Context) (map[int]head, error) {
	out := make(map[int]head, shards)
	in := dynamodb.QueryInput{
		KeyConditionExpression:    aws.String("pk = :pk"),
		ExpressionAttributeValues: attrs{":pk": text(s.lay.pk("heads"))},
	}
	for {
		p, err := s.query(ctx, s.newTries(), in)
		if err != nil {
			return nil, err
		}
		for _, it := range p.items {
			sk, _ := blobOf(it, attrSK)
			seq, ok := numberOf(it, attrSeq)
			rev, ok2 := numberOf(it, attrRev)
			if len(sk) != 1 || int(sk[0]) >= shards || !ok || !ok2 {
				return nil, fmt.Errorf("head %x of the change log is damaged, or not ours", sk)
			}
			out[int(sk[0])] = head{seq: seq, rev: kv.Revision(rev)}
		}
		if p.next == nil {
			s.shards.learn(out)
			return out, nil
		}
		in.ExclusiveStartKey = p.next
	}
}

// logAfter reads the entries of a shard with numbers after to last, in order.
func (s *Store) logAfter(ctx context.Context, shard int, after, last uint64) ([]entry, error) {
	return s.log(ctx, shard, after, last, true, nil)
}

// logBack reads the entries of a shard from last backwards, as long as more says.
func (s *Store) logBack(ctx context.Context, shard int, last uint64, more func(entry) bool) ([]entry, error) {
	return s.log(ctx, shard, 0, last, false, more)
}

func (s *Store) log(ctx context.Context, shard int, after, last uint64, forward bool, more func(entry) bool) ([]entry, error) {
	in := dynamodb.QueryInput{
		KeyConditionExpression: aws.String("pk = :pk AND sk BETWEEN :first AND :last"),
		ExpressionAttributeValues: attrs{
			":pk": text(s.lay.pk(logKind(shard))), ":first": blob(seqKey(after + 1)), ":last": blob(seqKey(last)),
		},
		ScanIndexForward: aws.Bool(forward),
	}
	if !forward {
		in.Limit = aws.Int32(maxBatch)
	}
	var out []entry
	for {
		p, err := s.query(ctx, s.newTries(), in)
		if err != nil {
			return nil, err
		}
		for _, it := range p.items {
			e, err := decodeEntry(shard, it)
			if err != nil {
				return nil, err
			}
			if more != nil && !more(e) {
				return out, nil
			}
			out = append(out, e)
		}
		if p.next == nil {
			return out, nil
		}
		in.ExclusiveStartKey = p.next
	}
}
