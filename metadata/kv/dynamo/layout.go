package dynamo

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// FormatVersion of the table's items. Those of another version are refused.
const FormatVersion = 1

// Part of the format; docs/format/kv-dynamo.md has all of it.
const (
	buckets = 4  // partition keys of the rows
	shards  = 64 // of the change log; fits the low byte of a logRef
	depth   = 3  // slashes of a key that choose its bucket

	attrPK      = "pk"
	attrSK      = "sk"
	attrValue   = "v" // of a row; absent in a tombstone
	attrRev     = "r" // revision, of rows, entries and heads
	attrLog     = "l" // logRef of the commit, 0 when it wrote this row alone
	attrPrev    = "p" // attrLog of the commit before
	attrExpires = "x" // seconds since 1970 after which the table's TTL may delete
	attrSeq     = "q" // of a head: sequence number of its last entry
	attrKeys    = "k" // of an entry: the keys the commit writes
	attrAnchor  = "a" // of a large commit's entry: revision of its first key before it
	attrOutcome = "e" // of a large commit's entry: applied or failed; absent: not known
	attrVersion = "f" // of the format item
	attrGen     = "g" // of the format item: random, made with it

	// keep is how long tombstones and entries stay at least.
	keep = time.Hour
	// recent is how old a commit must be for all its items to be surely visible.
	recent = time.Minute
)

type attrs = map[string]types.AttributeValue

func number(n uint64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatUint(n, 10)}
}

func blob(b []byte) types.AttributeValue {
	if b == nil {
		b = []byte{} // nil would be sent as null
	}
	return &types.AttributeValueMemberB{Value: b}
}

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func numberOf(a attrs, name string) (uint64, bool) {
	n, ok := a[name].(*types.AttributeValueMemberN)
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseUint(n.Value, 10, 64)
	return v, err == nil
}

func blobOf(a attrs, name string) ([]byte, bool) {
	b, ok := a[name].(*types.AttributeValueMemberB)
	if !ok {
		return nil, false
	}
	return append([]byte{}, b.Value...), true
}

// layout names the items of one store.
type layout struct{ table, prefix string }

func (l layout) pk(kind string) string { return l.prefix + "/" + kind }

func (l layout) key(kind string, sk []byte) attrs {
	return attrs{attrPK: text(l.pk(kind)), attrSK: blob(sk)}
}

func (l layout) rowKey(key string) attrs   { return l.key(rowKind(bucketOf(key)), []byte(key)) }
func (l layout) leaseKey(key string) attrs { return l.key("lease/"+hashOf(key), []byte(key)) }
func (l layout) headKey(shard int) attrs   { return l.key("heads", []byte{byte(shard)}) }
func (l layout) formatKey() attrs          { return l.key("format", []byte("version")) }
func (l layout) entryKey(r logRef) attrs   { return l.key(logKind(r.shard()), seqKey(r.seq())) }

func rowKind(bucket int) string { return "kv/" + strconv.Itoa(bucket) }
func logKind(shard int) string  { return "log/" + strconv.Itoa(shard) }
func seqKey(seq uint64) []byte  { return binary.BigEndian.AppendUint64(nil, seq) }
func hashOf(s string) string    { return strconv.Itoa(int(hash(s))) }

func hash(s string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s))
	return h.Sum32() % buckets
}

// bucketOf spreads the keys: those that agree up to their third slash are
// together, so that their range is one query; others go by the whole key.
func bucketOf(key string) int {
	slashes := 0
	for i := range len(key) {
		if key[i] != '/' {
			continue
		}
		if slashes++; slashes == depth {
			return int(hash(key[:i+1]))
		}
	}
	return int(hash(key))
}

// bucketsOf returns the buckets that may hold keys with prefix.
func bucketsOf(prefix string) []int {
	if strings.Count(prefix, "/") >= depth {
		return []int{bucketOf(prefix)}
	}
	all := make([]int, buckets)
	for i := range all {
		all[i] = i
	}
	return all
}

// logRef names an entry of the change log.
type logRef uint64

func refOf(shard int, seq uint64) logRef { return logRef(seq<<8 | uint64(shard)) }
func (r logRef) shard() int              { return int(r & 0xff) }
func (r logRef) seq() uint64             { return uint64(r >> 8) }

// row is what a key's item says.
type row struct {
	key       string
	value     []byte // nil: deleted, or never there
	rev       kv.Revision
	log, prev logRef
}

// visible is the revision as preconditions mean it.
func (r row) visible() kv.Revision {
	if r.value == nil {
		return 0
	}
	return r.rev
}

func (r row) item() kv.Item { return kv.Item{Key: r.key, Value: r.value, Revision: r.rev} }

func (r row) size() int { return len(r.key) + len(r.value) + 100 }

func decodeRow(a attrs) (row, error) {
	key, ok := blobOf(a, attrSK)
	rev, ok2 := numberOf(a, attrRev)
	if !ok || !ok2 || rev == 0 {
		return row{}, fmt.Errorf("item of key %q has no key or revision: the table is damaged, or not ours", key)
	}
	log, _ := numberOf(a, attrLog)
	prev, _ := numberOf(a, attrPrev)
	r := row{key: string(key), rev: kv.Revision(rev), log: logRef(log), prev: logRef(prev)}
	if v, ok := blobOf(a, attrValue); ok {
		r.value = v
	}
	return r, nil
}

// Outcomes of a large commit.
const (
	applied = 1
	failed  = 2
)

// entry is what one commit noted in the change log.
type entry struct {
	ref     logRef
	rev     kv.Revision
	keys    []string
	large   bool        // written before the commit, which may never come
	anchor  kv.Revision // of a large one: revision of keys[0] that the commit demands
	outcome uint64      // of a large one: 0, applied or failed
}

func (e entry) attrs(l layout, expires int64) attrs {
	keys := make([]types.AttributeValue, len(e.keys))
	for i, k := range e.keys {
		keys[i] = blob([]byte(k))
	}
	a := l.entryKey(e.ref)
	a[attrRev] = number(uint64(e.rev))
	a[attrKeys] = &types.AttributeValueMemberL{Value: keys}
	a[attrExpires] = number(uint64(expires))
	if e.large {
		a[attrAnchor] = number(uint64(e.anchor))
	}
	return a
}

func decodeEntry(shard int, a attrs) (entry, error) {
	sk, _ := blobOf(a, attrSK)
	rev, ok := numberOf(a, attrRev)
	list, ok2 := a[attrKeys].(*types.AttributeValueMemberL)
	if len(sk) != 8 || !ok || !ok2 {
		return entry{}, fmt.Errorf("entry %x of change log %d is damaged, or not ours", sk, shard)
	}
	e := entry{ref: refOf(shard, binary.BigEndian.Uint64(sk)), rev: kv.Revision(rev)}
	for _, v := range list.Value {
		b, ok := v.(*types.AttributeValueMemberB)
		if !ok {
			return entry{}, fmt.Errorf("entry %x of change log %d is damaged, or not ours", sk, shard)
		}
		e.keys = append(e.keys, string(b.Value))
	}
	anchor, large := numberOf(a, attrAnchor)
	e.anchor, e.large = kv.Revision(anchor), large && len(e.keys) > 0
	e.outcome, _ = numberOf(a, attrOutcome)
	return e, nil
}

// matching returns the keys that start with one of the prefixes.
func (e entry) matching(prefixes []string) []string {
	var out []string
	for _, k := range e.keys {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(k, p) }) {
			out = append(out, k)
		}
	}
	return out
}
