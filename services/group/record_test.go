package group

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestPartitionFor(t *testing.T) {
	for id, hash := range map[string]int64{ // as Java's String.hashCode says
		"":                   0,
		"a":                  97,
		"hello":              99162322,
		"polygenelubricants": math.MinInt32, // Kafka makes 0 of it
		"Aa":                 2112,
		"é":                  233,
		"😀":                  1772899, // two units in UTF-16
		"test-group-1":       javaHash("test-group-1"),
		"zzzzzzzzzzzz":       javaHash("zzzzzzzzzzzz"),
	} {
		if hash < 0 {
			hash = -hash
		}
		if hash == -math.MinInt32 {
			hash = 0
		}
		for _, n := range []int32{1, 50, 7} {
			if got := PartitionFor(id, n); int64(got) != hash%int64(n) {
				t.Errorf("%q of %d: %d, want %d", id, n, got, hash%int64(n))
			}
		}
	}
}

func TestPartitionOfNegativeHashes(t *testing.T) {
	negative := 0
	for i := range 100 {
		id := fmt.Sprintf("a longer group id %d", i)
		h := javaHash(id)
		if h < 0 {
			h = -h
			negative++
		}
		if got := PartitionFor(id, 50); int64(got) != h%50 {
			t.Errorf("%q: %d, want %d", id, got, h%50)
		}
	}
	if negative == 0 {
		t.Error("no hash was negative")
	}
}

// javaHash is the definition: the sum of s[i]*31^(n-1-i), in 32 bits.
func javaHash(s string) int64 {
	sum, power := int32(0), int32(1)
	for i := len(s) - 1; i >= 0; i-- {
		sum += int32(s[i]) * power
		power *= 31
	}
	return int64(sum)
}

// The bytes are Kafka's: written down by hand from its schemas.
func TestRecordBytes(t *testing.T) {
	check := func(name string, got []byte, want string) {
		t.Helper()
		if hex.EncodeToString(got) != want {
			t.Errorf("%s: %x, want %s", name, got, want)
		}
	}
	k := key{"to", 3}
	rec := offsetRecord("g", k, &offset{offset: 5, commit: 7, expire: -1, epoch: 2, metadata: "m"})
	check("offset key", rec.Key, "0001"+"000167"+"0002746f"+"00000003")
	check("offset v3", rec.Value, "0003"+"0000000000000005"+"00000002"+"00016d"+"0000000000000007")
	rec = offsetRecord("g", k, &offset{offset: 5, commit: 7, expire: 9, epoch: 2, metadata: "m"})
	check("offset v1", rec.Value, "0001"+"0000000000000005"+"00016d"+"0000000000000007"+"0000000000000009")
	rec = offsetRecord("g", k, &offset{offset: 5, commit: 7, expire: -1, epoch: 2, metadata: "m", topicID: TopicID{0xab}})
	check("offset v4", rec.Value, "0004"+"0000000000000005"+"00000002"+"026d"+"0000000000000007"+"01"+"00"+"10"+"ab000000000000000000000000000000")
	if rec = offsetRecord("g", k, nil); rec.Value != nil {
		t.Error("a tombstone has a value")
	}
	check("group key", groupKey("g"), "0002"+"000167")

	g := newGroup("g")
	g.generation, g.protocolType, g.protocol, g.since = 4, "c", "r", time.UnixMilli(8)
	g.add(&member{id: "x", instance: "i", clientID: "c", clientHost: "h", session: 10 * time.Millisecond,
		rebalance: 11 * time.Millisecond, protocols: []Protocol{{"r", []byte{1}}}, assignment: []byte{2, 3}})
	check("group v3", g.record(nil).Value, "0003"+"000163"+"00000004"+"000172"+"000178"+"0000000000000008"+"00000001"+
		"000178"+"000169"+"000163"+"000168"+"0000000b"+"0000000a"+"0000000101"+"000000020203")
	e := newGroup("g")
	check("empty group v3", e.record(nil).Value, "0003"+"0000"+"00000000"+"ffff"+"ffff"+"ffffffffffffffff"+"00000000")
}

// Every version of a value that Kafka has written is read.
func TestApplyVersions(t *testing.T) {
	for v := range int16(5) {
		kk := kmsg.OffsetCommitKey{Version: v % 2, Group: "g", Topic: "t", Partition: 1}
		ov := kmsg.OffsetCommitValue{Version: v, Offset: 9, LeaderEpoch: 6, Metadata: "m", CommitTimestamp: 1000, ExpireTimestamp: 2000}
		gk := kmsg.GroupMetadataKey{Version: 2, Group: "g"}
		gv := kmsg.GroupMetadataValue{Version: v, ProtocolType: "consumer", Generation: 3, Protocol: nullable("range"), Leader: nullable("m2"),
			CurrentStateTimestamp: 500, Members: []kmsg.GroupMetadataValueMember{
				{MemberID: "m1", ClientID: "c", ClientHost: "h", SessionTimeoutMillis: 10, RebalanceTimeoutMillis: 20, Subscription: topics("a"), Assignment: []byte("1")},
				{MemberID: "m2", InstanceID: nullable("i"), SessionTimeoutMillis: 10, RebalanceTimeoutMillis: -1, Subscription: topics("b"), Assignment: []byte("2")}}}
		gv.UnknownTags.Set(77, []byte("new"))
		c, _ := New(Config{NewID: func() string { return "" }})
		for _, rec := range [][2][]byte{{kk.AppendTo(nil), ov.AppendTo(nil)}, {gk.AppendTo(nil), gv.AppendTo(nil)}} {
			if err := c.Apply(rec[0], rec[1]); err != nil {
				t.Fatalf("version %d: %v", v, err)
			}
			clear(rec[0])
			clear(rec[1]) // nothing of it may be kept
		}
		o, ok := c.groups["g"].offset("t", 1)
		want := offset{offset: 9, commit: 1000, expire: -1, epoch: -1, metadata: "m"}
		if v == 1 {
			want.expire = 2000
		}
		if v >= 3 {
			want.epoch = 6
		}
		if !ok || o != want {
			t.Errorf("version %d: %+v", v, o)
		}
		d, _ := c.Describe("g")
		if d.State != Stable || d.Generation != 3 || d.Leader != "m2" || len(d.Members) != 2 || d.Protocol != "range" {
			t.Errorf("version %d: %+v", v, d)
		}
		if m := d.Members[1]; string(m.Assignment) != "2" || !bytes.Equal(m.Metadata, topics("b")) || (v >= 3) != (m.InstanceID == "i") {
			t.Errorf("version %d: %+v", v, m)
		}
		rebalance := c.groups["g"].members["m1"].rebalance
		if (v == 0) != (rebalance == 10*time.Millisecond) || c.groups["g"].members["m2"].rebalance != 10*time.Millisecond {
			t.Errorf("version %d: rebalance timeout %v", v, rebalance)
		}
		if !c.groups["g"].subscribedTo("b") || c.groups["g"].subscribedTo("c") {
			t.Error("subscriptions are not known")
		}
	}
}

func TestApplyTombstones(t *testing.T) {
	r := newRig(t, nil)
	r.stable(1, JoinRequest{})
	o := offsetRecord("g", key{"a", 0}, &offset{offset: 1, expire: -1})
	r.log = append(r.log, o)
	r.load()
	r.state(Stable)
	r.log = append(r.log, Record{Key: groupKey("g")})
	r.load() // only its offsets are left
	if got := r.c.List(nil, nil); len(got) != 1 || got[0] != (Listed{"g", "", Empty}) || r.fetch("a", 0) != 1 {
		t.Errorf("%+v", got)
	}
	r.log = append(r.log, offsetRecord("g", key{"a", 0}, nil), offsetRecord("other", key{"a", 0}, nil), Record{Key: groupKey("other")})
	r.load()
	if len(r.c.groups) != 0 {
		t.Error("groups are left")
	}
}

func TestApplyErrors(t *testing.T) {
	member := kmsg.GroupMetadataValueMember{MemberID: "m"}
	double := kmsg.GroupMetadataValue{Version: 3, Members: []kmsg.GroupMetadataValueMember{member, member}}
	o := offsetRecord("g", key{"a", 0}, &offset{})
	for name, tc := range map[string]struct {
		key, value []byte
		want       error
	}{
		"no key":             {nil, nil, ErrCorruptRecord},
		"consumer group":     {[]byte{0, 3, 0, 1, 'g'}, nil, ErrUnknownRecord},
		"negative version":   {[]byte{0xff, 0xff}, nil, ErrUnknownRecord},
		"cut offset key":     {[]byte{0, 1, 0, 9}, nil, ErrCorruptRecord},
		"cut group key":      {[]byte{0, 2, 0, 9}, nil, ErrCorruptRecord},
		"offset, empty":      {o.Key, []byte{}, ErrCorruptRecord},
		"offset, later":      {o.Key, []byte{0, 5, 1, 2, 3}, ErrUnknownRecord},
		"offset, cut":        {o.Key, o.Value[:9], ErrCorruptRecord},
		"group, later":       {groupKey("g"), []byte{0, 5}, ErrUnknownRecord},
		"group, empty":       {groupKey("g"), []byte{}, ErrCorruptRecord},
		"group, one twice":   {groupKey("g"), double.AppendTo(nil), ErrCorruptRecord},
		"group, many":        {groupKey("g"), binary.BigEndian.AppendUint32([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 1<<30), ErrCorruptRecord},
		"group, many tags":   {groupKey("g"), []byte{0, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x07}, ErrCorruptRecord},
		"group, rest at end": {groupKey("g"), append((&kmsg.GroupMetadataValue{Version: 3}).AppendTo(nil), 0), ErrCorruptRecord},
	} {
		c, _ := New(Config{NewID: func() string { return "" }})
		start := time.Now()
		if err := c.Apply(tc.key, tc.value); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		if len(c.groups) != 0 || time.Since(start) > 10*time.Second {
			t.Errorf("%s: %d groups after %v", name, len(c.groups), time.Since(start))
		}
	}
}

// seeds are records of all kinds, as a log would have them.
func seeds() (out []Record) {
	out = append(out, offsetRecord("g", key{"a", 0}, nil), Record{Key: groupKey("g")},
		offsetRecord("g", key{"a", 0}, &offset{offset: 5, expire: -1, metadata: "m"}),
		offsetRecord("g", key{"a", 0}, &offset{offset: 5, expire: 7}),
		offsetRecord("g", key{"a", 0}, &offset{offset: 5, expire: -1, topicID: TopicID{1}}))
	g := newGroup("g")
	g.protocolType, g.protocol = ConsumerType, "r"
	for i := range 2 {
		g.add(&member{id: fmt.Sprint("m", i), instance: fmt.Sprint(i), protocols: []Protocol{{"r", topics("a", "b")}}, assignment: []byte("x")})
		out = append(out, g.record(nil))
	}
	for v := range int16(5) {
		gv := kmsg.GroupMetadataValue{Version: v, ProtocolType: "consumer", Members: []kmsg.GroupMetadataValueMember{{MemberID: "m", Subscription: topics("a")}}}
		gv.UnknownTags.Set(3, []byte("x"))
		out = append(out, Record{groupKey("g"), gv.AppendTo(nil)})
	}
	return out
}

// Cut anywhere, a record is refused, and nothing is left of it.
func TestApplyCutRecords(t *testing.T) {
	for _, rec := range seeds() {
		for n := range rec.Value {
			c, _ := New(Config{NewID: func() string { return "" }})
			if err := c.Apply(rec.Key, rec.Value[:n]); !errors.Is(err, ErrCorruptRecord) || len(c.groups) != 0 {
				t.Fatalf("%x cut to %d: %v, %d groups", rec.Value, n, err, len(c.groups))
			}
		}
		for n := range rec.Key {
			c, _ := New(Config{NewID: func() string { return "" }})
			if err := c.Apply(rec.Key[:n], rec.Value); err == nil {
				t.Fatalf("key %x cut to %d was taken", rec.Key, n)
			}
		}
	}
}

func FuzzApply(f *testing.F) {
	for _, rec := range seeds() {
		f.Add(rec.Key, rec.Value)
	}
	f.Fuzz(func(t *testing.T, k, v []byte) {
		c, _ := New(Config{NewID: func() string { return "" }})
		now := time.UnixMilli(1e12)
		if err := c.Apply(k, v); err != nil {
			if !errors.Is(err, ErrCorruptRecord) && !errors.Is(err, ErrUnknownRecord) {
				t.Fatal(err)
			}
			return
		}
		if len(k)+len(v) < 1<<15 { // what was read is written and read the same
			for _, g := range c.groups {
				roundTrip(t, c, g)
			}
		}
		c.Loaded(now)
		c.ExpireOffsets(now)
		c.Tick(now.Add(time.Hour))
		c.Stats()
		c.Unload()
	})
}

func roundTrip(t *testing.T, c *Coordinator, g *group) {
	t.Helper()
	var log []Record
	if g.stored {
		log = append(log, g.record(nil))
	}
	for topic, ps := range g.offsets {
		for p, o := range ps {
			log = append(log, offsetRecord(g.id, key{topic, p}, &o))
		}
	}
	again, _ := New(c.cfg)
	for _, rec := range log {
		if err := again.Apply(rec.Key, rec.Value); err != nil {
			t.Fatal(err)
		}
	}
	h := again.groups[g.id]
	a, _ := c.Describe(g.id)
	b, _ := again.Describe(g.id)
	if fmt.Sprintf("%+v", a) != fmt.Sprintf("%+v", b) || len(g.offsets) != len(h.offsets) {
		t.Fatalf("%+v\n%+v", a, b)
	}
	for topic, ps := range g.offsets {
		for p, o := range ps {
			if o.expire >= 0 {
				o.epoch, o.topicID = -1, TopicID{} // version 1 has none
			}
			if got := h.offsets[topic][p]; !reflect.DeepEqual(got, o) {
				t.Fatalf("%+v, want %+v", got, o)
			}
		}
	}
}
