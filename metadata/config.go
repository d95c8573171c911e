package metadata

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxConfigValue is the greatest length in bytes of a config value, Kafka's.
const MaxConfigValue = 32767

// Durability is what acks=all waits for.
type Durability string

// Durability classes.
const (
	DurabilityLocal  Durability = "local"  // the agent's synced log on SSD
	DurabilityObject Durability = "object" // the object store; only agents of a cluster have it
)

// TimestampType is Kafka's message.timestamp.type.
type TimestampType int8

// Timestamp types, with their value in a batch's attributes.
const (
	CreateTime    TimestampType = 0
	LogAppendTime TimestampType = 1
)

// CleanupPolicy is Kafka's cleanup.policy. Neither means that everything stays.
type CleanupPolicy struct{ Delete, Compact bool }

// TopicConfig is the effective, typed config of a topic. Sizes are in bytes,
// times in ms; -1 means unlimited.
type TopicConfig struct {
	SegmentBytes       int64
	SegmentMs          int64
	SegmentJitterMs    int64
	IndexIntervalBytes int64
	FileDeleteDelayMs  int64

	CleanupPolicy CleanupPolicy
	// RetentionMs and RetentionBytes are in force, not merely configured: they
	// are -1 unless the cleanup policy has delete.
	RetentionMs    int64
	RetentionBytes int64
	// LocalRetentionMs and LocalRetentionBytes are resolved: -2 became the
	// total, and they never exceed it. They are for records that are in the
	// bucket; without remote storage, or with copying off, they are the total.
	LocalRetentionMs        int64
	LocalRetentionBytes     int64
	RemoteStorage           bool
	RemoteCopyDisabled      bool
	RemoteDeleteOnDisable   bool
	RemoteCopyLagMs         int64
	RemoteCopyLagBytes      int64
	Durability              Durability
	DeleteRetentionMs       int64
	MinCompactionLagMs      int64
	MaxCompactionLagMs      int64
	MinCleanableDirtyRatio  float64
	MaxMessageBytes         int64
	TimestampType           TimestampType
	TimestampBeforeMaxMs    int64
	TimestampAfterMaxMs     int64
	CompressionType         string
	MinInsyncReplicas       int32
	UncleanLeaderElection   bool
	FlushMessages, FlushMs  int64 // accepted; every acknowledged record is synced
	SegmentIndexBytes       int64
	Preallocate             bool
	CompressionGzipLevel    int32
	CompressionLZ4Level     int32
	CompressionZstdLevel    int32
	LeaderThrottled         []string
	FollowerThrottled       []string
	configuredLocalMs       int64 // as set, before resolving
	configuredLocalBytes    int64
	configuredRetentionMs   int64
	configuredRetentionByte int64
}

// Defaults are the configs a topic has where it sets none of its own: built in,
// or set for the broker. A Defaults is immutable.
type Defaults struct {
	defs   map[string]configDef
	names  []string                // of defs, sorted
	static map[string]staticConfig // by topic config
	broker map[string]string       // broker configs as set, by their name
	// cluster: there are both classes of durability, and object is the default.
	cluster bool
}

type staticConfig struct {
	name  string // of the broker config
	raw   string // its value
	value string // in the topic config's unit
}

// NewDefaults returns the built-in defaults of a node that is alone, changed by broker
// configs, given by their Kafka name (log.retention.hours) or the topic config's own
// (retention.ms). Other names and bad values are ErrInvalidConfig.
func NewDefaults(broker map[string]string) (*Defaults, error) { return newDefaults(broker, false) }

// NewClusterDefaults is NewDefaults for an agent of a cluster, whose topics may be of class
// object, and are without a durability of their own.
func NewClusterDefaults(broker map[string]string) (*Defaults, error) {
	return newDefaults(broker, true)
}

func newDefaults(broker map[string]string, cluster bool) (*Defaults, error) {
	d := &Defaults{defs: map[string]configDef{}, static: map[string]staticConfig{}, broker: map[string]string{}, cluster: cluster}
	known := map[string]bool{}
	for _, def := range topicConfigDefs() {
		if def.name == durabilityConfig {
			def.def = string(d.builtInClass())
		}
		d.defs[def.name] = def
		d.names = append(d.names, def.name)
		// The first synonym that is set wins, as in Kafka.
		for _, syn := range append(slices.Clone(def.synonyms), synonym{def.name, 1}) {
			known[syn.name] = true
			raw, set := broker[syn.name]
			if _, done := d.static[def.name]; !set || done {
				continue
			}
			value, err := scale(def, syn, raw)
			if err == nil {
				_, err = def.parse(value)
			}
			if err != nil {
				return nil, fmt.Errorf("broker config %s: %w", syn.name, err)
			}
			d.static[def.name] = staticConfig{name: syn.name, raw: raw, value: value}
			d.broker[syn.name] = raw
		}
	}
	slices.Sort(d.names)
	for name := range broker {
		if !known[name] {
			return nil, fmt.Errorf("%w: unknown broker config name: %s", ErrInvalidConfig, name)
		}
	}
	_, err := d.Parse(nil)
	return d, err
}

// scale turns the value of a broker config into the unit of the topic config.
func scale(def configDef, syn synonym, raw string) (string, error) {
	if syn.unit == 1 {
		return raw, nil
	}
	n, err := strconv.ParseInt(strings.TrimSpace(raw), 10, 32)
	if err != nil {
		return "", def.bad(raw, "not a number of type INT")
	}
	if n < 0 {
		return strconv.FormatInt(n, 10), nil // -1: unlimited
	}
	return strconv.FormatInt(n*syn.unit, 10), nil
}

// bad is the error for a value, in Kafka's words.
func (c configDef) bad(value, why string) error {
	if len(value) > 100 {
		value = value[:100] + "…"
	}
	return fmt.Errorf("%w: invalid value %s for configuration %s: %s", ErrInvalidConfig, strconv.Quote(value), c.name, why)
}

// parse checks a value and returns it as int64, float64, bool, string or []string.
func (c configDef) parse(value string) (any, error) {
	if len(value) > MaxConfigValue {
		return nil, c.bad(value, fmt.Sprintf("%d bytes, at most %d", len(value), MaxConfigValue))
	}
	v := strings.TrimSpace(value)
	switch c.typ {
	case TypeBoolean:
		switch strings.ToLower(v) {
		case "true":
			return true, nil
		case "false":
			return false, nil
		}
		return nil, c.bad(value, "expected value to be either true or false")
	case TypeInt, TypeLong:
		return c.parseInt(value, v)
	case TypeDouble:
		f, err := strconv.ParseFloat(v, 64)
		if err != nil {
			return nil, c.bad(value, "not a number of type DOUBLE, "+c.bounds())
		}
		if !(f >= c.min && f <= c.max) {
			return nil, c.bad(value, c.bounds())
		}
		return f, nil
	case TypeList:
		return c.parseList(value)
	}
	if !slices.Contains(c.oneOf, v) {
		return nil, c.bad(value, "string must be one of: "+strings.Join(c.oneOf, ", "))
	}
	return v, nil
}

func (c configDef) parseInt(value, v string) (any, error) {
	bits := 64
	if c.typ == TypeInt {
		bits = 32
	}
	n, err := strconv.ParseInt(v, 10, bits)
	if err != nil {
		return nil, c.bad(value, "not a number of type "+c.typ.String()+", "+c.bounds())
	}
	if float64(n) < c.min || float64(n) > c.max || c.name == "compression.gzip.level" && n == 0 {
		return nil, c.bad(value, c.bounds())
	}
	return n, nil
}

// bounds says which numbers are allowed.
func (c configDef) bounds() string {
	num := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	switch {
	case c.name == "compression.gzip.level":
		return "value must be 1 to 9, or -1"
	case c.min <= -maxLong:
		return "any value is allowed, -1 for no limit"
	case c.max >= maxInt:
		return "value must be at least " + num(c.min)
	}
	return "value must be between " + num(c.min) + " and " + num(c.max)
}

func (c configDef) parseList(value string) (any, error) {
	items := splitList(value)
	throttled := strings.HasSuffix(c.name, ".throttled.replicas")
	for i, item := range items {
		switch {
		case throttled && (item == "*" && len(items) == 1 || isPair(item)):
		case throttled:
			return nil, c.bad(value, "must be the literal '*' or a list of replicas in the form partition:broker,…")
		case !slices.Contains(c.oneOf, item):
			return nil, c.bad(value, "each item must be one of: "+strings.Join(c.oneOf, ", "))
		case slices.Contains(items[:i], item):
			return nil, c.bad(value, "the list has "+item+" twice")
		}
	}
	return items, nil
}

// splitList splits a list value; the empty string is the empty list.
func splitList(value string) []string {
	var out []string
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

func isPair(s string) bool {
	a, b, ok := strings.Cut(s, ":")
	_, err1 := strconv.ParseUint(a, 10, 31)
	_, err2 := strconv.ParseUint(b, 10, 31)
	return ok && err1 == nil && err2 == nil
}

// value is the effective value of a config: the topic's, the broker's or the
// built-in one.
func (d *Defaults) value(name string, topic map[string]string) string {
	if v, ok := topic[name]; ok {
		return v
	}
	return d.fallback(name)
}

func (d *Defaults) fallback(name string) string {
	if s, ok := d.static[name]; ok {
		return s.value
	}
	return d.defs[name].def
}

// Parse validates the configs that a topic sets and returns the effective
// config. Errors wrap ErrInvalidConfig and name key, value and what is allowed.
func (d *Defaults) Parse(topic map[string]string) (TopicConfig, error) {
	for name := range topic {
		if _, ok := d.defs[name]; !ok {
			return TopicConfig{}, fmt.Errorf("%w: unknown topic config name: %.100q", ErrInvalidConfig, name)
		}
	}
	vals := make(map[string]any, len(d.names))
	for _, name := range d.names {
		v := d.value(name, topic)
		if name == internalSegmentBytes && v == "" {
			continue
		}
		parsed, err := d.defs[name].parse(v)
		if err != nil {
			return TopicConfig{}, err
		}
		vals[name] = parsed
	}
	c := typed(vals)
	if c.Durability == DurabilityObject && !d.cluster {
		return TopicConfig{}, d.defs[durabilityConfig].bad(string(c.Durability), "this node is alone (`cirrolog serve`) and has class local; agents of a cluster (`cirrolog agent`) have both")
	}
	if err := c.check(topic); err != nil {
		return TopicConfig{}, err
	}
	c.resolve()
	return c, nil
}

const durabilityConfig = "durability"

// Durability is that of topics which say none.
func (d *Defaults) Durability() Durability { return Durability(d.fallback(durabilityConfig)) }

// builtInClass is the durability of topics where neither the topic nor a flag says one.
func (d *Defaults) builtInClass() Durability {
	if d.cluster {
		return DurabilityObject
	}
	return DurabilityLocal
}

// ParseStored is Parse for configs that were valid when they were stored,
// perhaps by another version: what is not understood is left out and returned.
func (d *Defaults) ParseStored(topic map[string]string) (c TopicConfig, ignored []string) {
	if c, err := d.Parse(topic); err == nil {
		return c, nil
	}
	kept := map[string]string{}
	for name, v := range topic {
		def, ok := d.defs[name]
		if ok {
			_, err := def.parse(v)
			ok = err == nil
		}
		if ok {
			kept[name] = v
		} else {
			ignored = append(ignored, name)
		}
	}
	c, err := d.Parse(kept)
	if err != nil { // each is valid, together they are not: the resolved limits are
		vals := map[string]any{}
		for _, name := range d.names {
			if parsed, err := d.defs[name].parse(d.value(name, kept)); err == nil {
				vals[name] = parsed
			}
		}
		c = typed(vals)
		if !d.cluster {
			c.Durability = DurabilityLocal
		}
		c.resolve()
	}
	slices.Sort(ignored)
	return c, ignored
}

const internalSegmentBytes = "internal.segment.bytes"

// typed fills the struct from parsed values.
func typed(vals map[string]any) TopicConfig {
	num := func(name string) int64 { n, _ := vals[name].(int64); return n }
	flag := func(name string) bool { b, _ := vals[name].(bool); return b }
	str := func(name string) string { s, _ := vals[name].(string); return s }
	list := func(name string) []string { l, _ := vals[name].([]string); return l }
	policy := list("cleanup.policy")
	ratio, _ := vals["min.cleanable.dirty.ratio"].(float64)
	c := TopicConfig{
		SegmentBytes: num("segment.bytes"), SegmentMs: num("segment.ms"), SegmentJitterMs: num("segment.jitter.ms"),
		IndexIntervalBytes: num("index.interval.bytes"), FileDeleteDelayMs: num("file.delete.delay.ms"),
		CleanupPolicy: CleanupPolicy{Delete: slices.Contains(policy, "delete"), Compact: slices.Contains(policy, "compact")},
		RemoteStorage: flag("remote.storage.enable"), RemoteCopyDisabled: flag("remote.log.copy.disable"),
		RemoteDeleteOnDisable: flag("remote.log.delete.on.disable"),
		RemoteCopyLagMs:       num("remote.copy.lag.ms"), RemoteCopyLagBytes: num("remote.copy.lag.bytes"),
		Durability: Durability(str("durability")), DeleteRetentionMs: num("delete.retention.ms"),
		MinCompactionLagMs: num("min.compaction.lag.ms"), MaxCompactionLagMs: num("max.compaction.lag.ms"),
		MinCleanableDirtyRatio: ratio, MaxMessageBytes: num("max.message.bytes"),
		TimestampBeforeMaxMs: num("message.timestamp.before.max.ms"), TimestampAfterMaxMs: num("message.timestamp.after.max.ms"),
		CompressionType: str("compression.type"), MinInsyncReplicas: int32(num("min.insync.replicas")),
		UncleanLeaderElection: flag("unclean.leader.election.enable"),
		FlushMessages:         num("flush.messages"), FlushMs: num("flush.ms"),
		SegmentIndexBytes: num("segment.index.bytes"), Preallocate: flag("preallocate"),
		CompressionGzipLevel: int32(num("compression.gzip.level")), CompressionLZ4Level: int32(num("compression.lz4.level")),
		CompressionZstdLevel:    int32(num("compression.zstd.level")),
		LeaderThrottled:         list("leader.replication.throttled.replicas"),
		FollowerThrottled:       list("follower.replication.throttled.replicas"),
		configuredLocalMs:       num("local.retention.ms"),
		configuredLocalBytes:    num("local.retention.bytes"),
		configuredRetentionMs:   num("retention.ms"),
		configuredRetentionByte: num("retention.bytes"),
	}
	if str("message.timestamp.type") == "LogAppendTime" {
		c.TimestampType = LogAppendTime
	}
	if n, ok := vals[internalSegmentBytes].(int64); ok {
		c.SegmentBytes = n
	}
	return c
}

// resolve computes the retention in force.
func (c *TopicConfig) resolve() {
	c.RetentionMs, c.RetentionBytes = c.configuredRetentionMs, c.configuredRetentionByte
	if !c.CleanupPolicy.Delete {
		c.RetentionMs, c.RetentionBytes = -1, -1
	}
	c.RetentionMs, c.RetentionBytes = max(c.RetentionMs, -1), max(c.RetentionBytes, -1)
	c.LocalRetentionMs = localLimit(c.configuredLocalMs, c.RetentionMs)
	c.LocalRetentionBytes = localLimit(c.configuredLocalBytes, c.RetentionBytes)
	if !c.RemoteStorage || c.RemoteCopyDisabled {
		c.LocalRetentionMs, c.LocalRetentionBytes = c.RetentionMs, c.RetentionBytes
	}
	if c.RemoteCopyLagMs == -1 {
		c.RemoteCopyLagMs = max(c.LocalRetentionMs, 0)
	}
	if c.RemoteCopyLagBytes == -1 {
		c.RemoteCopyLagBytes = max(c.LocalRetentionBytes, 0)
	}
}

// localLimit resolves a local retention against the total.
func localLimit(local, total int64) int64 {
	switch {
	case local == -2, local == -1 && total >= 0:
		return total
	case total < 0:
		return local
	}
	return min(local, total)
}

// check holds what Kafka checks across configs. Local retention is compared
// with the total only where the topic sets it: the default adapts itself.
func (c *TopicConfig) check(topic map[string]string) error {
	if c.MinCompactionLagMs > c.MaxCompactionLagMs {
		return fmt.Errorf("%w: conflict topic config setting min.compaction.lag.ms (%d) > max.compaction.lag.ms (%d)",
			ErrInvalidConfig, c.MinCompactionLagMs, c.MaxCompactionLagMs)
	}
	if c.Durability == DurabilityObject && (!c.RemoteStorage || c.RemoteCopyDisabled) {
		return fmt.Errorf("%w: durability=object needs remote.storage.enable=true and remote.log.copy.disable=false: its records are in the bucket, and its write-ahead stream "+
			"is trimmed when they are tiered. Create the topic with durability=local to keep it on one disk", ErrInvalidConfig)
	}
	if c.CleanupPolicy.Compact && (!c.RemoteStorage || c.RemoteCopyDisabled) {
		return fmt.Errorf("%w: cleanup.policy=compact needs remote.storage.enable=true and remote.log.copy.disable=false: "+
			"segments are compacted in the bucket", ErrInvalidConfig)
	}
	if !c.RemoteStorage {
		return nil
	}
	pairs := []struct {
		local, totalName string
		value, total     int64
		lagName          string
		lag              int64
	}{
		{"local.retention.ms", "retention.ms", c.configuredLocalMs, c.configuredRetentionMs, "remote.copy.lag.ms", c.RemoteCopyLagMs},
		{"local.retention.bytes", "retention.bytes", c.configuredLocalBytes, c.configuredRetentionByte, "remote.copy.lag.bytes", c.RemoteCopyLagBytes},
	}
	for _, p := range pairs {
		_, set := topic[p.local]
		if set && c.RemoteCopyDisabled && p.value != -2 && p.value != p.total {
			return fmt.Errorf("%w: invalid value %d for configuration %s: with remote.log.copy.disable=true it must be -2 or equal %s (%d)",
				ErrInvalidConfig, p.value, p.local, p.totalName, p.total)
		}
		if set && p.total >= 0 && p.value == -1 {
			return fmt.Errorf("%w: invalid value -1 for configuration %s: must not be -1 as %s is %d", ErrInvalidConfig, p.local, p.totalName, p.total)
		}
		if set && p.total >= 0 && p.value > p.total {
			return fmt.Errorf("%w: invalid value %d for configuration %s: must not be more than %s (%d)", ErrInvalidConfig, p.value, p.local, p.totalName, p.total)
		}
		if limit := localLimit(p.value, p.total); p.lag > 0 && limit >= 0 && p.lag > limit {
			return fmt.Errorf("%w: invalid value %d for configuration %s: must not exceed %s (effective value %d)", ErrInvalidConfig, p.lag, p.lagName, p.local, limit)
		}
	}
	return nil
}

// checkChange refuses changes that only a former config makes wrong.
func checkChange(before, after TopicConfig) error {
	if before.RemoteStorage && !after.RemoteStorage && !after.RemoteDeleteOnDisable {
		return fmt.Errorf("%w: it is invalid to disable remote storage without deleting remote data. To keep it and stop copying, set "+
			"remote.storage.enable=true,remote.log.copy.disable=true; to delete it, set remote.storage.enable=false,remote.log.delete.on.disable=true", ErrInvalidConfig)
	}
	if before.Durability != after.Durability {
		return fmt.Errorf("%w: durability can't be changed from %s to %s: it is fixed when a topic is created; create another topic", ErrInvalidConfig, before.Durability, after.Durability)
	}
	return nil
}
