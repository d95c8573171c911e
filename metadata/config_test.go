package metadata

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/internal/golden"
)

func defaults(t testing.TB, broker map[string]string) *Defaults {
	t.Helper()
	d, err := NewDefaults(broker)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestKafkaConfigNames: the table has every topic config of Kafka 4.3 and
// nothing else but durability.
func TestKafkaConfigNames(t *testing.T) {
	want := strings.Fields(`cleanup.policy compression.gzip.level compression.lz4.level compression.type compression.zstd.level
		delete.retention.ms durability file.delete.delay.ms flush.messages flush.ms follower.replication.throttled.replicas
		index.interval.bytes internal.segment.bytes leader.replication.throttled.replicas local.retention.bytes local.retention.ms
		max.compaction.lag.ms max.message.bytes message.timestamp.after.max.ms message.timestamp.before.max.ms message.timestamp.type
		min.cleanable.dirty.ratio min.compaction.lag.ms min.insync.replicas preallocate remote.copy.lag.bytes remote.copy.lag.ms
		remote.log.copy.disable remote.log.delete.on.disable remote.storage.enable retention.bytes retention.ms segment.bytes
		segment.index.bytes segment.jitter.ms segment.ms unclean.leader.election.enable`)
	d := defaults(t, nil)
	if !slices.Equal(d.names, want) {
		t.Fatalf("names are\n%v\nwant\n%v", d.names, want)
	}
	for _, def := range d.defs {
		if def.doc == "" || def.effect == "" {
			t.Errorf("%s lacks doc or effect", def.name)
		}
		if def.kafka != "-" && def.name != internalSegmentBytes {
			if _, err := def.parse(def.kafka); err != nil {
				t.Errorf("Kafka's own default is refused: %v", err)
			}
		}
	}
}

func TestDefaultsDifferOnlyWhereSaid(t *testing.T) {
	var got []string
	for _, def := range topicConfigDefs() {
		if def.kafka != def.def {
			got = append(got, def.name+"="+def.def)
		}
	}
	slices.Sort(got)
	want := []string{"durability=local", "local.retention.ms=3600000", "remote.storage.enable=true", "segment.bytes=67108864"}
	if !slices.Equal(got, want) {
		t.Fatalf("differences are %v, want %v", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	d := defaults(t, nil)
	for _, tc := range []struct {
		configs string
		want    string // all words must be in the error
	}{
		{"foo=1", "unknown topic config name foo"},
		{"retention.ms=-2", `retention.ms "-2" at least -1`},
		{"retention.ms=abc", `retention.ms "abc" LONG`},
		{"retention.ms=1.5", `retention.ms "1.5" LONG`},
		{"retention.ms=9223372036854775808", "retention.ms LONG"},
		{"retention.ms=", "retention.ms LONG"},
		{"segment.bytes=1048575", "segment.bytes 1048575 at least 1048576"},
		{"segment.bytes=2147483648", "segment.bytes 2147483648 INT"},
		{"max.message.bytes=-1", "max.message.bytes at least 0"},
		{"min.cleanable.dirty.ratio=1.1", "min.cleanable.dirty.ratio 1.1 between 0 and 1"},
		{"min.cleanable.dirty.ratio=NaN", "min.cleanable.dirty.ratio between 0 and 1"},
		{"cleanup.policy=shrink", "cleanup.policy shrink compact, delete"},
		{"cleanup.policy=delete,delete", "cleanup.policy delete twice"},
		{"compression.type=br", "compression.type br uncompressed, zstd, lz4, snappy, gzip, producer"},
		{"compression.gzip.level=0", "compression.gzip.level 0 1 to 9, or -1"},
		{"compression.zstd.level=23", "compression.zstd.level 23 between -131072 and 22"},
		{"remote.storage.enable=yes", "remote.storage.enable yes true or false"},
		{"message.timestamp.type=createtime", "message.timestamp.type createtime CreateTime, LogAppendTime"},
		{"durability=replicated", "durability replicated local object"},
		{"durability=object", "durability object alone serve local agent"},
		{"leader.replication.throttled.replicas=1-2", "leader.replication.throttled.replicas 1-2 partition:broker"},
		{"min.compaction.lag.ms=5 max.compaction.lag.ms=4", "min.compaction.lag.ms (5) max.compaction.lag.ms (4)"},
		{"local.retention.ms=-1", "local.retention.ms -1 retention.ms"},
		{"local.retention.ms=1001 retention.ms=1000", "local.retention.ms 1001 retention.ms 1000"},
		{"local.retention.bytes=1001 retention.bytes=1000", "local.retention.bytes 1001 retention.bytes 1000"},
		{"local.retention.bytes=-1 retention.bytes=1000", "local.retention.bytes -1 retention.bytes 1000"},
		{"remote.log.copy.disable=true local.retention.ms=5", "local.retention.ms 5 remote.log.copy.disable"},
		{"remote.copy.lag.ms=3600001", "remote.copy.lag.ms 3600001 local.retention.ms 3600000"},
		{"leader.replication.throttled.replicas=" + strings.Repeat("1:1,", 10000), "leader.replication.throttled.replicas at most 32767"},
	} {
		_, err := d.Parse(parseConfigs(tc.configs))
		if !errors.Is(err, ErrInvalidConfig) {
			t.Errorf("%.60s: error %v, want ErrInvalidConfig", tc.configs, err)
			continue
		}
		for _, word := range strings.Fields(tc.want) {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%.60s: error %q lacks %q", tc.configs, err, word)
			}
		}
	}
}

func parseConfigs(s string) map[string]string {
	out := map[string]string{}
	for _, pair := range strings.Fields(s) {
		k, v, _ := strings.Cut(pair, "=")
		out[k] = v
	}
	return out
}

func TestRetentionInForce(t *testing.T) {
	d := defaults(t, nil)
	for _, tc := range []struct {
		configs                        string
		ms, bytes, localMs, localBytes int64
	}{
		{"", 604800000, -1, 3600000, -1},
		{"retention.ms=1000", 1000, -1, 1000, -1},
		{"retention.ms=-1", -1, -1, 3600000, -1},
		{"retention.ms=-1 local.retention.ms=-2", -1, -1, -1, -1},
		{"retention.ms=-1 local.retention.ms=-1", -1, -1, -1, -1},
		{"local.retention.ms=-2", 604800000, -1, 604800000, -1},
		{"retention.bytes=5000", 604800000, 5000, 3600000, 5000},
		{"retention.bytes=5000 local.retention.bytes=100", 604800000, 5000, 3600000, 100},
		{"local.retention.bytes=0", 604800000, -1, 3600000, 0},
		{"local.retention.bytes=2097152", 604800000, -1, 3600000, 2097152},
		{"cleanup.policy=compact", -1, -1, 3600000, -1},
		{"cleanup.policy=compact retention.ms=5 retention.bytes=5", -1, -1, 3600000, -1},
		{"cleanup.policy=", -1, -1, 3600000, -1},
		{"cleanup.policy=compact,delete retention.ms=5", 5, -1, 5, -1},
		{"remote.storage.enable=false", 604800000, -1, 604800000, -1},
		{"remote.log.copy.disable=true", 604800000, -1, 604800000, -1},
		{"retention.bytes=-7", 604800000, -1, 3600000, -1},
	} {
		c, err := d.Parse(parseConfigs(tc.configs))
		if err != nil {
			t.Errorf("%s: %v", tc.configs, err)
			continue
		}
		got := [4]int64{c.RetentionMs, c.RetentionBytes, c.LocalRetentionMs, c.LocalRetentionBytes}
		if want := [4]int64{tc.ms, tc.bytes, tc.localMs, tc.localBytes}; got != want {
			t.Errorf("%s: total ms, bytes, local ms, bytes = %v, want %v", tc.configs, got, want)
		}
	}
}

func TestTyped(t *testing.T) {
	d := defaults(t, map[string]string{"log.retention.hours": "2", "durability": "local", "log.roll.ms": "77", "log.roll.hours": "9", "message.max.bytes": "200000000"})
	c, err := d.Parse(parseConfigs("message.timestamp.type=LogAppendTime cleanup.policy=delete remote.storage.enable=FALSE internal.segment.bytes=100"))
	if err != nil {
		t.Fatal(err)
	}
	if c.RetentionMs != 7200000 || c.Durability != DurabilityLocal || c.SegmentMs != 77 || c.MaxMessageBytes != 200000000 ||
		c.TimestampType != LogAppendTime || c.CleanupPolicy.Compact || !c.CleanupPolicy.Delete || c.RemoteStorage || c.SegmentBytes != 100 {
		t.Fatalf("%+v", c)
	}
	if c, _ := defaults(t, nil).Parse(nil); c.SegmentBytes != 64<<20 || !c.RemoteStorage || c.Durability != DurabilityLocal || c.MaxMessageBytes != 1048588 {
		t.Fatalf("%+v", c)
	}
	for _, bad := range []map[string]string{{"log.retention.hourz": "1"}, {"log.retention.hours": "x"}, {"durability": "none"}, {"durability": "object"}} {
		if _, err := NewDefaults(bad); !errors.Is(err, ErrInvalidConfig) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestParseStoredKeepsWhatItKnows(t *testing.T) {
	d := defaults(t, nil)
	c, ignored := d.ParseStored(map[string]string{"retention.ms": "1000", "from.the.future": "1", "segment.ms": "soon", "local.retention.ms": "2000"})
	if !slices.Equal(ignored, []string{"from.the.future", "segment.ms"}) {
		t.Fatalf("ignored %v", ignored)
	}
	if c.RetentionMs != 1000 || c.LocalRetentionMs != 1000 || c.SegmentMs != 604800000 {
		t.Fatalf("%+v", c)
	}
}

func op(kind OpKind, key, value string) ConfigOp {
	return ConfigOp{Key: key, Value: &value, Kind: kind}
}

func TestApply(t *testing.T) {
	d := defaults(t, nil)
	before := map[string]string{"retention.ms": "1000", "segment.ms": "5"}
	for _, tc := range []struct {
		ops  []ConfigOp
		want string // of the result, or of the error
		err  error
	}{
		{[]ConfigOp{op(OpSet, "retention.ms", "7")}, "map[retention.ms:7 segment.ms:5]", nil},
		{[]ConfigOp{{Key: "retention.ms", Kind: OpDelete}}, "map[segment.ms:5]", nil},
		{[]ConfigOp{{Key: "retention.bytes", Kind: OpDelete}}, "map[retention.ms:1000 segment.ms:5]", nil},
		{[]ConfigOp{op(OpAppend, "cleanup.policy", "compact,delete")}, "map[cleanup.policy:delete,compact retention.ms:1000 segment.ms:5]", nil},
		{[]ConfigOp{op(OpSubtract, "cleanup.policy", "delete,compact")}, "map[cleanup.policy: retention.ms:1000 segment.ms:5]", nil},
		{[]ConfigOp{op(OpAppend, "retention.ms", "1")}, "retention.ms", ErrInvalidConfig},
		{[]ConfigOp{op(OpSubtract, "retention.ms", "1")}, "LIST", ErrInvalidConfig},
		{[]ConfigOp{op(OpAppend, "cleanup.policy", "x")}, "compact, delete", ErrInvalidConfig},
		{[]ConfigOp{op(OpSet, "nope", "x")}, "nope", ErrInvalidConfig},
		{[]ConfigOp{{Key: "nope", Kind: OpDelete}}, "nope", ErrInvalidConfig},
		{[]ConfigOp{{Key: "segment.ms", Kind: OpSet}}, "null", ErrInvalidRequest},
		{[]ConfigOp{op(9, "segment.ms", "1")}, "operation 9", ErrInvalidRequest},
		{[]ConfigOp{op(OpSet, "segment.ms", "1"), op(OpSet, "segment.ms", "2")}, "duplicate", ErrInvalidRequest},
		{[]ConfigOp{op(OpSet, "local.retention.ms", "1001")}, "local.retention.ms", ErrInvalidConfig},
		{[]ConfigOp{op(OpSet, "remote.storage.enable", "false")}, "remote.log.copy.disable", ErrInvalidConfig},
	} {
		got, err := d.Apply(before, tc.ops)
		text := fmt.Sprint(got)
		if err != nil {
			text = err.Error()
		}
		if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) || !strings.Contains(text, tc.want) {
			t.Errorf("%v: %s, want %v %s", tc.ops, text, tc.err, tc.want)
		}
	}
	if len(before) != 2 {
		t.Fatalf("the current configs were changed: %v", before)
	}
	if _, err := d.Replace(before, map[string]*string{"segment.ms": nil}); !errors.Is(err, ErrInvalidConfig) {
		t.Fatal(err)
	}
}

func TestDescribe(t *testing.T) {
	d := defaults(t, map[string]string{"log.segment.bytes": "2097152", "log.retention.minutes": "3"})
	find := func(entries []ConfigEntry, name string) string {
		for _, e := range entries {
			if e.Name != name {
				continue
			}
			s := "nil"
			if e.Value != nil {
				s = *e.Value
			}
			s += fmt.Sprintf(" %d %s", e.Source, e.Type)
			for _, syn := range e.Synonyms {
				s += fmt.Sprintf(" %s=%s/%d", syn.Name, *syn.Value, syn.Source)
			}
			return s
		}
		return "none"
	}
	topic := d.Describe(map[string]string{"segment.bytes": "1048576", "cleanup.policy": "compact"})
	for name, want := range map[string]string{
		"segment.bytes":          "1048576 1 INT segment.bytes=1048576/1 log.segment.bytes=2097152/4 log.segment.bytes=67108864/5",
		"retention.ms":           "180000 4 LONG log.retention.minutes=3/4 log.retention.hours=168/5",
		"segment.ms":             "604800000 5 LONG log.roll.hours=168/5",
		"cleanup.policy":         "compact 1 LIST cleanup.policy=compact/1 log.cleanup.policy=delete/5",
		"remote.storage.enable":  "true 5 BOOLEAN remote.storage.enable=true/5",
		"internal.segment.bytes": "none",
	} {
		if got := find(topic, name); got != want {
			t.Errorf("topic config %s: %s, want %s", name, got, want)
		}
	}
	broker := d.BrokerConfigs(map[string]string{"node.id": "3", "num.partitions": "4", "x.y": "z"})
	for name, want := range map[string]string{
		"log.segment.bytes":     "2097152 4 INT log.segment.bytes=2097152/4 log.segment.bytes=67108864/5",
		"log.retention.ms":      "nil 5 LONG",
		"log.retention.minutes": "3 4 INT log.retention.minutes=3/4",
		"log.retention.hours":   "168 5 INT log.retention.hours=168/5",
		"node.id":               "3 4 INT node.id=3/4",
		"num.partitions":        "4 4 INT num.partitions=4/4 num.partitions=1/5",
		"x.y":                   "z 4 STRING x.y=z/4",
	} {
		if got := find(broker, name); got != want {
			t.Errorf("broker config %s: %s, want %s", name, got, want)
		}
	}
	if !slices.IsSortedFunc(broker, func(a, b ConfigEntry) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("broker configs are not sorted")
	}
}

func TestTopicNames(t *testing.T) {
	for _, name := range []string{"a", "a.b_c-D9", "...", "-", strings.Repeat("x", 249), "__consumer_offsets"} {
		if err := ValidateTopicName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "../x", "a/b", "a b", "ä", "a\x00", "a\n", strings.Repeat("x", 250), strings.Repeat("\xff", 300)} {
		if err := ValidateTopicName(name); !errors.Is(err, ErrInvalidTopic) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("retention.ms", "5")
	f.Add("cleanup.policy", "compact,delete")
	f.Add("min.cleanable.dirty.ratio", "1e-3")
	d := defaults(f, nil)
	f.Fuzz(func(t *testing.T, key, value string) {
		c, err := d.Parse(map[string]string{key: value})
		if err != nil {
			if !errors.Is(err, ErrInvalidConfig) || len(err.Error()) > 2000 {
				t.Fatalf("error %v", err)
			}
			return
		}
		if c.LocalRetentionMs < -1 || c.RetentionMs < -1 || c.RetentionMs >= 0 && (c.LocalRetentionMs < 0 || c.LocalRetentionMs > c.RetentionMs) {
			t.Fatalf("%s=%s: total %d ms, local %d ms", key, value, c.RetentionMs, c.LocalRetentionMs)
		}
	})
}

// docs renders docs/topic-configs.md from the table.
func docs() string {
	var b strings.Builder
	b.WriteString(`# Topic configs

Generated from the table in ` + "`metadata/config_defs.go`" + ` by ` + "`go test ./metadata -run Docs -update`" + `; do not edit.

All topic configs of Kafka 4.3 are accepted with Kafka's names, types and bounds. Defaults are Kafka's
except where the third column differs from the second (**bold**). "Broker config" sets the default for all topics.
A value of a topic that sets none follows the agent's; ` + "`local.retention.*`" + ` never exceeds ` + "`retention.*`" + `.

| Config | Kafka's default | Default | Type | Allowed | Broker config | Effect | Meaning |
|---|---|---|---|---|---|---|---|
`)
	defs := topicConfigDefs()
	slices.SortFunc(defs, func(a, b configDef) int { return strings.Compare(a.name, b.name) })
	for _, def := range defs {
		allowed := "true, false"
		switch {
		case def.oneOf != nil:
			allowed = strings.Join(def.oneOf, ", ")
		case strings.HasSuffix(def.name, ".throttled.replicas"):
			allowed = "`*` or partition:broker,…"
		case def.typ != TypeBoolean:
			allowed = strings.TrimPrefix(def.bounds(), "value must be ")
		}
		var syn []string
		for _, s := range def.synonyms {
			syn = append(syn, "`"+s.name+"`")
		}
		show := func(s string) string {
			switch s {
			case longMax:
				return "2^63−1"
			case "":
				return "(empty)"
			}
			return s
		}
		own := show(def.def)
		if def.def != def.kafka {
			own = "**" + own + "**"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s | %s |\n", def.name, show(def.kafka), own, def.typ, allowed, strings.Join(syn, ", "), def.effect, def.doc)
	}
	return b.String()
}

func TestDocs(t *testing.T) {
	const path = "../docs/topic-configs.md"
	want := docs()
	if golden.Update() {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Fatalf("%s is not what the table says (%v): run go test ./metadata -run Docs -update", path, err)
	}
}
