package dynamo

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/metadata/kv"
)

// goldenRev is a revision beyond every clock, so that the next ones count from it.
const goldenRev = 8_000_000_000_000_000

// plain is an attribute as JSON.
type plain struct {
	S *string `json:"S,omitempty"`
	N *string `json:"N,omitempty"`
	B []byte  `json:"B,omitempty"`
	L []plain `json:"L,omitempty"`
	E bool    `json:"empty,omitempty"` // no bytes
}

func plainOf(t *testing.T, v types.AttributeValue) (p plain) {
	t.Helper()
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		p.S = &v.Value
	case *types.AttributeValueMemberN:
		p.N = &v.Value
	case *types.AttributeValueMemberB:
		p.B, p.E = v.Value, len(v.Value) == 0
	case *types.AttributeValueMemberL:
		for _, e := range v.Value {
			p.L = append(p.L, plainOf(t, e))
		}
	default:
		t.Fatalf("attribute %T", v)
	}
	return p
}

func (p plain) value() types.AttributeValue {
	switch {
	case p.S != nil:
		return text(*p.S)
	case p.N != nil:
		return &types.AttributeValueMemberN{Value: *p.N}
	case p.L != nil:
		l := &types.AttributeValueMemberL{}
		for _, e := range p.L {
			l.Value = append(l.Value, e.value())
		}
		return l
	}
	return blob(p.B)
}

// itemsOf are the items below a prefix as lines of JSON, with P for it and 9999999999 for times of expiry.
func itemsOf(t *testing.T, s *Store) string {
	t.Helper()
	var lines []string
	in := &dynamodb.ScanInput{TableName: &s.lay.table, ConsistentRead: aws.Bool(true)}
	for {
		out, err := s.api.Scan(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range out.Items {
			pk := item[attrPK].(*types.AttributeValueMemberS)
			kind, ours := strings.CutPrefix(pk.Value, s.lay.prefix+"/")
			if !ours {
				continue
			}
			item[attrPK] = text("P/" + kind)
			delete(item, attrGen) // random; tables that were made before there was one lack it
			if item[attrExpires] != nil {
				item[attrExpires] = number(9_999_999_999)
			}
			m := map[string]plain{}
			for k, v := range item {
				m[k] = plainOf(t, v)
			}
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, string(b)+"\n")
		}
		if in.ExclusiveStartKey = out.LastEvaluatedKey; in.ExclusiveStartKey == nil {
			slices.Sort(lines)
			return strings.Join(lines, "")
		}
	}
}

// TestGolden opens items as an earlier program left them, and leaves the same after the same calls.
func TestGolden(t *testing.T) {
	s := openStore(t, fresh())
	s.clock.observe(goldenRev)
	s.shards.mu.Lock() // the last one is taken first
	slices.SortFunc(s.shards.idle, func(a, b *shard) int { return a.n - b.n })
	s.shards.mu.Unlock()
	mustCommit(t, s, set("a/1", "one"), set("a/2", "two\x00\xff"))
	revs, err := s.Commit(testCtx(t), []kv.Op{set("a/1", "uno"), {Key: "a/2", Delete: true}, set("b", "")}, []kv.Precondition{{Key: "a/1", Revision: goldenRev + 1}, {Key: "c"}})
	if err != nil || revs[0] != goldenRev+2 {
		t.Fatal(revs, err)
	}
	if err := s.Acquire(testCtx(t), "lease/x", "me", time.Hour); err != nil {
		t.Fatal(err)
	}

	yesterday := string(golden.Bytes(t, "items-v1.txt", []byte(itemsOf(t, s))))
	old := fresh()
	for l := range strings.Lines(yesterday) {
		var m map[string]plain
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatal(err)
		}
		item := attrs{}
		for k, v := range m {
			item[k] = v.value()
		}
		pk := item[attrPK].(*types.AttributeValueMemberS)
		pk.Value = strings.Replace(pk.Value, "P/", old+"/", 1)
		if _, err := s.api.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &s.lay.table, Item: item}); err != nil {
			t.Fatal(fmt.Errorf("%s: %w", l, err))
		}
	}
	s = openStore(t, old)
	items, err := s.Range(testCtx(t), "", "", 10, false)
	if err != nil || len(items) != 2 || items[0].Key != "a/1" || string(items[0].Value) != "uno" || items[0].Revision != goldenRev+2 || items[1].Key != "b" || len(items[1].Value) != 0 {
		t.Errorf("rows %+v, %v", items, err)
	}
	if owner, counter, err := s.Holder(testCtx(t), "lease/x"); err != nil || owner != "me" || counter == 0 {
		t.Errorf("lease of %q, %d, %v", owner, counter, err)
	}
	if _, err := s.Commit(testCtx(t), []kv.Op{set("a/1", "x")}, []kv.Precondition{{Key: "a/1", Revision: goldenRev + 2}}); err != nil {
		t.Error(err)
	}
}
